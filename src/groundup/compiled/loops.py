"""Loops: how those of this package are compiled by numba, and what they need beside what numba has.

numba keeps a compiled loop until the file that it stands in changes: who changes this file removes `__pycache__`.
Imported where such a loop runs and not before, as that takes a third of a second.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

FLOAT, INT, LONG, BYTES = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with numba, kept on disk beside this file or in the user's cache, and run without Python's lock."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no file can be written: compiled anew in each process
        return numba.njit(nogil=True)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of each compiled loop that calls it: a call costs more than what such a function does."""
    return numba.njit(inline="always", nogil=True)(function)


def in_vectors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of what calls it; sums may be added in vectors, and each product together with its sum. The
    order is fixed when it is compiled."""
    return numba.njit(nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")(function)


def on_threads(function: Callable[..., Any], record: Any) -> Callable[[int, int], None]:
    """Compile `function(record)`, which must not raise, to be run by several threads at once: `(address, number)`, with
    the address of a record of this numpy type.

    The threads are those that torch computes with, if its OpenMP is GNU's, as it is on Linux: other threads would wait
    for a core while torch's keep it, in expectation of the next matmul. Elsewhere the calling thread runs alone.
    """
    callback = as_callback(function, record)
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError):
        alone = callback.ctypes
        return lambda address, number: alone(address)
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    code = callback.address
    return lambda address, number: parallel(code, address, number, 0)


def on_this_thread(function: Callable[..., Any], record: Any) -> Callable[[int], None]:
    """Compile `function(record)`, which must not raise, to be called with the address of a record of this type."""
    run: Callable[[int], None] = as_callback(function, record).ctypes
    return run


def as_callback(function: Callable[..., Any], record: Any) -> Any:
    signature = types.void(types.CPointer(numba.from_dtype(record)))
    try:
        return numba.cfunc(signature, cache=True)(function)
    except RuntimeError:  # as in `compiled`
        return numba.cfunc(signature)(function)


@intrinsic
def pointer(typing_context: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer to numbers of this kind."""
    to = types.CPointer(kind.instance_type)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(to))

    return to(types.int64, kind), generate


@intrinsic
def at(typing_context: Any, numbers: Any, index: Any) -> Any:
    """A number by its index, which is not negative; a bfloat16, held as uint16, becomes a float32."""
    is_short = numbers.dtype == types.uint16

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = builder.load(builder.gep(arguments[0], [arguments[1]], inbounds=True))
        if is_short:
            return builder.bitcast(builder.shl(builder.zext(number, INT), INT(16)), FLOAT)
        return number

    return (types.float32 if is_short else numbers.dtype)(numbers, types.int64), generate


@intrinsic
def put(typing_context: Any, numbers: Any, index: Any, number: Any) -> Any:
    """Write a float32 by its index; as a bfloat16 rounded to the nearest, of two to the even one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held, index, number = arguments
        if numbers.dtype == types.uint16:
            bits = builder.bitcast(number, INT)
            is_odd = builder.and_(builder.lshr(bits, INT(16)), INT(1))
            rounded = builder.add(bits, builder.add(is_odd, INT(0x7FFF)))
            rounded = builder.select(builder.fcmp_unordered("uno", number, number), INT(0x7FC00000), rounded)
            number = builder.trunc(builder.lshr(rounded, INT(16)), ir.IntType(16))
        builder.store(number, builder.gep(held, [index], inbounds=True))
        return context.get_dummy_value()

    return types.void(numbers, types.int64, types.float32), generate


@intrinsic
def take(typing_context: Any, counters: Any, index: Any) -> Any:
    """A counter (int64) by its index; it is one more for the thread that asks next."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", builder.gep(arguments[0], [arguments[1]]), LONG(1), "monotonic")

    return types.int64(counters, types.int64), generate


@intrinsic
def fetch(typing_context: Any, numbers: Any, index: Any) -> Any:
    """Begin to fetch the cache line of a number; nothing waits for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [BYTES, INT, INT, INT])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), BYTES)
        builder.call(prefetch, [address, INT(0), INT(3), INT(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(numbers, types.int64), generate


@intrinsic
def greater(typing_context: Any, a: Any, b: Any) -> Any:
    """The greater of two float32; NaN if one is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(FLOAT, [FLOAT, FLOAT])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.maximum.f32"), arguments)

    return types.float32(types.float32, types.float32), generate


@intrinsic
def power_of_two(typing_context: Any, exponent: Any) -> Any:
    """2^exponent of a whole float32 from −126 to 127, by its bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = builder.fptosi(arguments[0], INT)
        return builder.bitcast(builder.shl(builder.add(whole, INT(127)), INT(23)), FLOAT)

    return types.float32(types.float32), generate
