"""Linear: rows times a matrix of float32, or of whole numbers from −127 to 127 with a scale for each row, compiled.

Of float32 each number of the answer is added up in one order. Beside whole numbers a row of activations becomes whole
numbers too, as fine as its sums still fit into 32 bits: up to 4,096 channels that is 13 bits or more, where bfloat16
has 8; these sums are exact. So a row of the answer has the same bits beside any others and with any number of threads.
A task is a block of the matrix's rows; threads take tasks until none is left.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.extending import intrinsic

from groundup.compiled.loops import FLOAT, INT, LONG, at, greater, in_vectors, pointer, put, take

NAMES = ("weights", "scale", "bias", "n_in", "n_out", "rows", "product", "room", "taken", "n_rows", "room_bytes")
CALL = np.dtype([(name, np.int64) for name in NAMES])
"""One call: addresses of the matrix, its scales, what is added; sizes, of which `n_in` is a multiple of 32; addresses
of the rows, of the answer, of what threads need, and of two zeros; sizes."""

BLOCK = 32
"""Rows of the matrix in a task."""
AT_ONCE = 4
"""Rows of activations that meet a row of the matrix at once."""
LANES = 32


@intrinsic
def meet(typing_context: Any, left: Any, first: Any, rows: Any, second: Any, width: Any, sums: Any, count: Any) -> Any:
    """`sums[i]`: the products of numbers of `left` from `first` with those of `rows` from `second + i width`, added up,
    for `count` rows, a constant: float32 with float32, or int8 with int16 into int32."""
    if not isinstance(count, types.Literal):
        raise errors.RequireLiteralValue(count)
    long, add_up = types.int64, _add_floats if left.dtype == types.float32 else _add_whole

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        add_up(builder, arguments, count.literal_value)
        return context.get_dummy_value()

    return types.void(left, long, rows, long, long, sums, count), generate


def _load(builder: Any, numbers: Any, place: Any, kind: Any, align: int) -> Any:
    held = builder.load(builder.bitcast(builder.gep(numbers, [place], inbounds=True), kind.as_pointer()))
    held.align = align
    return held


def _add_whole(builder: Any, arguments: Any, count: int) -> None:
    """Written so that it becomes multiply-add of pairs, where the processor has it."""
    codes, first, rows, second, width, sums, _ = arguments
    narrow, middle, wide = (ir.VectorType(ir.IntType(bits), LANES) for bits in (8, 16, 32))
    pairs = ir.VectorType(INT, LANES // 2)
    totals = [cgutils.alloca_once_value(builder, ir.Constant(pairs, None)) for _ in range(count)]
    with cgutils.for_range(builder, builder.sdiv(width, LONG(LANES))) as loop:
        here = builder.mul(loop.index, LONG(LANES))
        code = builder.sext(_load(builder, codes, builder.add(first, here), narrow, 1), middle)
        for i, total in enumerate(totals):
            place = builder.add(builder.add(second, here), builder.mul(width, LONG(i)))
            row = _load(builder, rows, place, middle, 1)
            product = builder.mul(builder.sext(code, wide), builder.sext(row, wide))
            even, odd = (
                builder.shuffle_vector(product, product, ir.Constant(pairs, [*range(start, LANES, 2)]))
                for start in (0, 1)
            )
            builder.store(builder.add(builder.load(total), builder.add(even, odd)), total)
    kind = ir.FunctionType(INT, [pairs])
    add_up = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{LANES // 2}i32")
    for i, total in enumerate(totals):
        builder.store(builder.call(add_up, [builder.load(total)]), builder.gep(sums, [LONG(i)], inbounds=True))


def _add_floats(builder: Any, arguments: Any, count: int) -> None:
    """In one order, whatever `count` is."""
    left, first, rows, second, width, sums, _ = arguments
    floats = ir.VectorType(FLOAT, LANES // 2)
    zero = ir.Constant(floats, [0.0] * (LANES // 2))
    # two sums for each row: the next is begun before the last is done
    totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in range(count)]
    kind = ir.FunctionType(floats, [floats] * 3)
    add_product = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES // 2}f32")
    with cgutils.for_range(builder, builder.sdiv(width, LONG(LANES))) as loop:
        for part in range(2):
            here = builder.add(builder.mul(loop.index, LONG(LANES)), LONG(part * LANES // 2))
            weight = _load(builder, left, builder.add(first, here), floats, 4)
            for i, each in enumerate(totals):
                place = builder.add(builder.add(second, here), builder.mul(width, LONG(i)))
                other = _load(builder, rows, place, floats, 4)
                builder.store(builder.call(add_product, [weight, other, builder.load(each[part])]), each[part])
    for i, (one, two) in enumerate(totals):
        total, lanes = builder.fadd(builder.load(one), builder.load(two)), LANES // 2
        while lanes > 1:
            lanes //= 2
            lower, upper = (
                builder.shuffle_vector(total, total, ir.Constant(ir.VectorType(INT, lanes), [*chosen]))
                for chosen in (range(lanes), range(lanes, 2 * lanes))
            )
            total = builder.fadd(lower, upper)
        builder.store(builder.extract_element(total, INT(0)), builder.gep(sums, [LONG(i)], inbounds=True))


@intrinsic
def put_whole(typing_context: Any, numbers: Any, index: Any, number: Any) -> Any:
    """Write a whole float32 as an int16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held, index, number = arguments
        whole = builder.trunc(builder.fptosi(number, INT), ir.IntType(16))
        builder.store(whole, builder.gep(held, [index], inbounds=True))
        return context.get_dummy_value()

    return types.void(numbers, types.int64, types.float32), generate


def multiply_float32(call):
    multiply_floats(numba.carray(call, 1)[0])


def multiply_int8(call):
    multiply_whole(numba.carray(call, 1)[0])


@in_vectors
def multiply_floats(call):
    weights, rows = pointer(call.weights, np.float32), pointer(call.rows, np.float32)
    taken, product = pointer(call.taken, np.int64), pointer(call.product, np.float32)
    sums = pointer(call.room + call.room_bytes * take(taken, 1), np.float32)  # of this thread
    multiply(call, weights, rows, sums, None, product)


@in_vectors
def multiply_whole(call):
    codes, product = pointer(call.weights, np.int8), pointer(call.product, np.uint16)
    taken, width = pointer(call.taken, np.int64), call.n_in
    room = call.room + call.room_bytes * take(taken, 1)  # of this thread
    rows, sums = pointer(room, np.int16), pointer(room + 2 * width * call.n_rows, np.int32)
    steps = pointer(room + 2 * width * call.n_rows + 64, np.float32)
    for m in range(call.n_rows):
        put(steps, m, round_row(pointer(call.rows + 2 * m * width, np.uint16), rows, m * width, width))
    multiply(call, codes, rows, sums, steps, product)


@in_vectors
def multiply(call, weights, rows, sums, steps, product):
    """Tasks, until none is left; of whole numbers with the steps of their rows, of float32 with None."""
    scale, bias = pointer(call.scale, np.float32), pointer(call.bias, np.float32)
    taken, width = pointer(call.taken, np.int64), call.n_in
    while True:
        begin = take(taken, 0) * BLOCK
        if begin >= call.n_out:
            return
        m = 0
        while m < call.n_rows:
            together = AT_ONCE if m + AT_ONCE <= call.n_rows else 1
            for n in range(begin, min(begin + BLOCK, call.n_out)):
                if together == 1:
                    meet(weights, n * width, rows, m * width, width, sums, 1)
                else:
                    meet(weights, n * width, rows, m * width, width, sums, AT_ONCE)
                for i in range(together):
                    if steps is None:
                        put(product, (m + i) * call.n_out + n, at(sums, i) + at(bias, n))
                    else:
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
