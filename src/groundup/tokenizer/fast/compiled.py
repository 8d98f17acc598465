"""What the compiled loops of the tokenizer share: bytes of a text as numbers, and what is equal or hashed by them."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from groundup.compiled.loops import compiled


@intrinsic
def word_at(typing_context: Any, array: Any, start: Any) -> Any:
    """The eight bytes of `array` (uint8) from `start` on, the first one lowest; all eight must be there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        word = builder.load(address)
        word.align = 1
        return word

    return types.uint64(array, types.int64), generate


@intrinsic
def byte_at(typing_context: Any, array: Any, index: Any) -> Any:
    """`array[index]` of a uint8 array as a whole number, without Python's meaning of negative indices."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.zext(builder.load(builder.gep(data, [arguments[1]])), ir.IntType(64))

    return types.int64(array, types.int64), generate


@intrinsic
def prefetch(typing_context: Any, table: Any, row: Any) -> Any:
    """Begin to fetch the cache line in which row `row` of a table begins; nothing waits for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, number = ir.IntType(8), ir.IntType(32)
        start = builder.bitcast(array.data, byte.as_pointer())
        address = builder.gep(start, [builder.mul(arguments[1], builder.extract_value(array.strides, 0))])
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [address, *(ir.Constant(number, n) for n in (0, 3, 1))])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(table, types.uint64), generate


LOW_BYTES = np.array([(1 << 8 * min(length, 8)) - 1 for length in range(17)], np.uint64)
HIGH_BYTES = np.array([(1 << 8 * max(length - 8, 0)) - 1 for length in range(17)], np.uint64)
"""Which bytes of its two words a pre-token of each length has."""


@compiled
def two_words(text, start, length):
    """A pre-token of at most 16 bytes as two numbers, the bytes that it does not have being 0."""
    low = np.uint64(0)
    high = np.uint64(0)
    if start + 16 <= len(text):
        low = word_at(text, start) & LOW_BYTES[length]
        high = word_at(text, start + 8) & HIGH_BYTES[length]
    else:
        for i in range(length):
            byte = np.uint64(byte_at(text, start + i))
            if i < 8:
                low |= byte << np.uint64(8 * i)
            else:
                high |= byte << np.uint64(8 * (i - 8))
    return low, high


@compiled
def mix(low, high, length):
    """A hash of a pre-token of at most 16 bytes; the multipliers are odd and have no pattern."""
    mixed = (low ^ (high * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(length)) * np.uint64(0xD6E8FEB86659FD93)
    return mixed ^ (mixed >> np.uint64(32))


@compiled
def mix_bytes(text, start, end):
    """A hash of any bytes."""
    mixed = np.uint64(end - start)
    while start + 8 <= end:
        mixed = (mixed ^ word_at(text, start)) * np.uint64(0xD6E8FEB86659FD93)
        mixed ^= mixed >> np.uint64(32)
        start += 8
    for i in range(start, end):
        mixed = (mixed ^ np.uint64(byte_at(text, i))) * np.uint64(0xD6E8FEB86659FD93)
        mixed ^= mixed >> np.uint64(32)
    return mixed


@compiled
def same_bytes(text, start, other, other_start, length):
    """Whether `length` bytes of `text` from `start` are those of `other` from `other_start`."""
    same = 0
    while same < length and byte_at(text, start + same) == byte_at(other, other_start + same):
        same += 1
    return same == length
