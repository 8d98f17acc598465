"""Linear: rows times a matrix of whole numbers from −127 to 127, each row of which has a scale: compiled.

A row of activations becomes whole numbers too, as fine as its sums still fit into 32 bits: up to 4,096 channels that is
13 bits or more, where bfloat16 has 8. These sums are exact, so a row of the answer has the same bits beside any others
and with any number of threads. A task is a block of the matrix's rows; threads take tasks until none is left.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.extending import intrinsic

from groundup.compiled.loops import INT, LONG, at, greater, in_vectors, pointer, put, take

NAMES = ("codes", "scale", "bias", "n_in", "n_out", "rows", "product", "room", "taken", "n_rows", "room_bytes")
CALL = np.dtype([(name, np.int64) for name in NAMES])
"""One call: addresses of int8, float32, float32; sizes, of which `n_in` is a multiple of 32; addresses of bfloat16,
bfloat16, of what threads need, and of two zeros; sizes."""

BLOCK = 32
"""Rows of the matrix in a task."""
AT_ONCE = 4
"""Rows of activations that meet a row of the matrix at once."""
LANES = 32


@intrinsic
def meet(typing_context: Any, codes: Any, first: Any, rows: Any, second: Any, width: Any, sums: Any, count: Any) -> Any:
    """`sums[i]`, int32: the products of int8 from `first` with int16 from `second + i width`, added up, for `count`
    rows, a constant. Written so that it becomes multiply-add of pairs, where the processor has it."""
    if not isinstance(count, types.Literal):
        raise errors.RequireLiteralValue(count)
    number = count.literal_value
    narrow, middle, wide = (ir.VectorType(ir.IntType(bits), LANES) for bits in (8, 16, 32))
    pairs = ir.VectorType(INT, LANES // 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, first, rows, second, width, sums, _ = arguments
        totals = [cgutils.alloca_once_value(builder, ir.Constant(pairs, None)) for _ in range(number)]

        def load(numbers: Any, place: Any, kind: Any) -> Any:
            held = builder.load(builder.bitcast(builder.gep(numbers, [place], inbounds=True), kind.as_pointer()))
            held.align = 1
            return held

        with cgutils.for_range(builder, builder.sdiv(width, LONG(LANES))) as loop:
            here = builder.mul(loop.index, LONG(LANES))
            code = builder.sext(load(codes, builder.add(first, here), narrow), middle)
            for i, total in enumerate(totals):
                place = builder.add(builder.add(second, here), builder.mul(width, LONG(i)))
                product = builder.mul(builder.sext(code, wide), builder.sext(load(rows, place, middle), wide))
                even, odd = (
                    builder.shuffle_vector(product, product, ir.Constant(pairs, [*range(start, LANES, 2)]))
                    for start in (0, 1)
                )
                builder.store(builder.add(builder.load(total), builder.add(even, odd)), total)
        kind = ir.FunctionType(INT, [pairs])
        add_up = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{LANES // 2}i32")
        for i, total in enumerate(totals):
            builder.store(builder.call(add_up, [builder.load(total)]), builder.gep(sums, [LONG(i)], inbounds=True))
        return context.get_dummy_value()

    long = types.int64
    return types.void(codes, long, rows, long, long, sums, count), generate


@intrinsic
def put_whole(typing_context: Any, numbers: Any, index: Any, number: Any) -> Any:
    """Write a whole float32 as an int16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held, index, number = arguments
        whole = builder.trunc(builder.fptosi(number, INT), ir.IntType(16))
        builder.store(whole, builder.gep(held, [index], inbounds=True))
        return context.get_dummy_value()

    return types.void(numbers, types.int64, types.float32), generate


def multiply_int8(call):
    multiply(numba.carray(call, 1)[0])


@in_vectors
def multiply(call):
    """Tasks, until none is left."""
    codes, product = pointer(call.codes, np.int8), pointer(call.product, np.uint16)
    scale, bias = pointer(call.scale, np.float32), pointer(call.bias, np.float32)
    taken, width = pointer(call.taken, np.int64), call.n_in
    room = call.room + call.room_bytes * take(taken, 1)  # of this thread
    rows, sums = pointer(room, np.int16), pointer(room + 2 * width * call.n_rows, np.int32)
    steps = pointer(room + 2 * width * call.n_rows + 64, np.float32)
    for m in range(call.n_rows):
        put(steps, m, round_row(pointer(call.rows + 2 * m * width, np.uint16), rows, m * width, width))
    while True:
        begin = take(taken, 0) * BLOCK
        if begin >= call.n_out:
            return
        m = 0
        while m < call.n_rows:
            together = AT_ONCE if m + AT_ONCE <= call.n_rows else 1
            for n in range(begin, min(begin + BLOCK, call.n_out)):
                if together == 1:
                    meet(codes, n * width, rows, m * width, width, sums, 1)
                else:
                    meet(codes, n * width, rows, m * width, width, sums, AT_ONCE)
                for i in range(together):
                    answer = np.float32(at(sums, i)) * at(steps, m + i) * at(scale, n) + at(bias, n)
                    put(product, (m + i) * call.n_out + n, answer)
            m += together


@in_vectors
def round_row(row, rows, first, width):
    """Write a row as whole numbers, and give the step between them; NaN of what is not finite."""
    most = np.float32(0)
    for i in range(width):
        most = greater(most, abs(at(row, i)))
    if not most < np.float32(np.inf):
        return np.float32(np.nan)
    finest = np.float32(min(32767, (2**31 - 1) // (127 * width)) - 1)
    factor = finest / most if most > 0 else np.float32(0)
    for i in range(width):
        put_whole(rows, first + i, np.rint(at(row, i) * factor))
    return most / finest
