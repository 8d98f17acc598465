"""Linear: rows of activations times a matrix of whole numbers from −127 to 127, each of whose rows has a scale, compiled.

A task is a block of the matrix's rows; threads take tasks until none is left. Four rows at once become float32, and meet
each row of activations in turn: a row of the answer has the same bits beside any others and with any number of threads.
"""

import numba
import numpy as np

from groundup.compiled.loops import at, in_vectors, pointer, put, take

CALL = np.dtype(
    [(name, np.int64) for name in ("rows", "codes", "scale", "bias", "product", "room", "taken")]
    + [(name, np.int64) for name in ("n_rows", "n_in", "n_out")]
)
"""One call: addresses of bfloat16, int8, float32, float32 (0 for none), bfloat16; sizes."""

BLOCK = 32
"""Rows of the matrix in a task."""


def multiply_int8(call):
    multiply(numba.carray(call, 1)[0])


@in_vectors
def multiply(call):
    rows, codes, scale = pointer(call.rows, np.uint16), pointer(call.codes, np.int8), pointer(call.scale, np.float32)
    bias, product, taken = pointer(call.bias, np.float32), pointer(call.product, np.uint16), pointer(call.taken, np.int64)
    width = call.n_in
    room = call.room + 16 * width * take(taken, 1)
    a, b = pointer(room, np.float32), pointer(room + 4 * width, np.float32)
    c, d = pointer(room + 8 * width, np.float32), pointer(room + 12 * width, np.float32)
    while True:
        begin = take(taken, 0) * BLOCK
        if begin >= call.n_out:
            return
        for n in range(begin, min(begin + BLOCK, call.n_out), 4):
            for i in range(4 * width):
                put(a, i, np.float32(at(codes, n * width + i)))
            for m in range(call.n_rows):
                p = q = r = s = np.float32(0)
                for i in range(width):
                    x = at(rows, m * width + i)
                    p += x * at(a, i)
                    q += x * at(b, i)
                    r += x * at(c, i)
                    s += x * at(d, i)
                place = m * call.n_out + n
                put(product, place, finish(p, n, scale, bias, call.bias))
                put(product, place + 1, finish(q, n + 1, scale, bias, call.bias))
                put(product, place + 2, finish(r, n + 2, scale, bias, call.bias))
                put(product, place + 3, finish(s, n + 3, scale, bias, call.bias))


@in_vectors
def finish(total, n, scale, bias, has_bias):
    return total * at(scale, n) + (at(bias, n) if has_bias else np.float32(0))
