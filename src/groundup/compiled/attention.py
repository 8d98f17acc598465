"""Attention kernel: a query's scores over a paged cache, their softmax, and the values weighted by it, compiled.

A task is one query, with the query heads that share a key/value head; threads take tasks until none is left. A head is
computed in an order that depends on the number of its keys alone: its bits depend neither on the other queries nor on
the number of threads.
"""

import math

import numba
import numpy as np

from groundup.compiled.loops import at, fetch, greater, in_vectors, pointer, power_of_two, put, take

NAMES = (
    *("table", "length", "slot", "taken", "room"),
    *("queries", "heads", "groups", "key_width", "value_width", "page", "pages"),
    *("key_page", "key_group", "key_step", "value_page", "value_group", "value_step"),
    *("keys", "values", "q", "k", "v", "read", "slopes", "window", "q_row", "k_row", "v_row", "factors"),
)
CALL = np.dtype([(name, np.int64) for name in NAMES])
"""One call: what all layers of a step have in common, addresses, sizes and distances in the cache, in numbers; then the
rest. `v`, `window` and `slopes` are 0 for none; `factors` is the address of the scale and of the soft cap, float32."""

TERMS = tuple(np.float32(math.log(2) ** n / math.factorial(n)) for n in range(8))
"""Of the series of 2^x, which is right to 6e-9 within [−1/2, 1/2]."""


def attend_float32(call):
    attend(numba.carray(call, 1)[0], np.float32)


def attend_bfloat16(call):
    attend(numba.carray(call, 1)[0], np.uint16)


def write_float32(call):
    write(numba.carray(call, 1)[0], np.float32)


def write_bfloat16(call):
    write(numba.carray(call, 1)[0], np.uint16)


@in_vectors
def write(call, kind):
    """Copy the new keys and values into the cache: `slot` is page × tokens of a page + number in the page."""
    keys, values, slot = pointer(call.keys, kind), pointer(call.values, kind), pointer(call.slot, np.int64)
    k, v = pointer(call.k, kind), pointer(call.v, kind)
    for row in range(call.queries):
        page, number = at(slot, row) // call.page, at(slot, row) % call.page
        for group in range(call.groups):
            to = page * call.key_page + group * call.key_group + number * call.key_step
            for i in range(call.key_width):
                put(keys, to + i, at(k, row * call.k_row + group * call.key_width + i))
            if call.v:
                to = page * call.value_page + group * call.value_group + number * call.value_step
                for i in range(call.value_width):
                    put(values, to + i, at(v, row * call.v_row + group * call.value_width + i))


@in_vectors
def attend(call, kind):
    """Tasks, until none is left."""
    q, read = pointer(call.q, kind), pointer(call.read, kind)
    keys, values = pointer(call.keys, kind), pointer(call.values, kind)
    table, length = pointer(call.table, np.int32), pointer(call.length, np.int32)
    slopes, taken = pointer(call.slopes, np.float32), pointer(call.taken, np.int64)
    scale, soft_cap = at(pointer(call.factors, np.float32), 0), at(pointer(call.factors, np.float32), 1)
    most = call.pages * call.page
    room = call.room + 4 * (most + call.key_width + call.value_width) * take(taken, 1)  # of this thread
    scores, query = pointer(room, np.float32), pointer(room + 4 * most, np.float32)
    sums = pointer(room + 4 * (most + call.key_width), np.float32)
    shared = call.heads // call.groups
    while True:
        task = take(taken, 0)
        if task >= call.queries * call.groups:
            return
        row, group = task // call.groups, task % call.groups
        end = np.int64(at(length, row))
        begin = max(end - call.window, 0) if call.window > 0 else 0
        for head in range(group * shared, (group + 1) * shared):
            for i in range(call.key_width):
                put(query, i, at(q, row * call.q_row + head * call.key_width + i) * scale)
            score(call, query, scores, keys, values, table, row, group, begin, end)
            bend(scores, end - begin, soft_cap, at(slopes, head) if call.slopes else np.float32(0))
            share = np.float32(1) / weigh(scores, end - begin)
            add_up(call, scores, sums, values, table, row, group, begin, end)
            for i in range(call.value_width):
                put(read, (row * call.heads + head) * call.value_width + i, at(sums, i) * share)


@in_vectors
def score(call, query, scores, keys, values, table, row, group, begin, end):
    """`scores[i]` of key `begin + i`, up to `end`. Meanwhile the values of the page and the keys of the next are
    fetched, as pages lie anywhere: behind the last page, the first of the next group."""
    key = begin
    while key < end:
        number = key // call.page
        until, first = min((number + 1) * call.page, end), key - number * call.page
        page = np.int64(at(table, row * call.pages + number))
        place = page * call.key_page + group * call.key_group + first * call.key_step
        value = page * call.value_page + group * call.value_group + first * call.value_step
        is_last = until == end
        page = np.int64(at(table, row * call.pages + (0 if is_last else number + 1)))
        later = page * call.key_page + (group + is_last) * call.key_group
        for i in range(key - begin, until - begin):
            for line in range(0, call.key_width, 32):
                fetch(keys, later + line)
                fetch(values, value + line)
            put(scores, i, dot(query, keys, place, call.key_width))
            place, value, later = place + call.key_step, value + call.value_step, later + call.key_step
        key = until


@in_vectors
def dot(query, keys, place, width):
    total = np.float32(0)
    for i in range(width):
        total += at(query, i) * at(keys, place + i)
    return total


@in_vectors
def bend(scores, count, soft_cap, slope):
    """Scores squeezed into ±soft_cap, by tanh x = 1 − 2 / (e^2x + 1), and lower with the distance; 0 for neither."""
    if soft_cap > 0:
        for i in range(count):
            twice = at(scores, i) * (np.float32(2) / soft_cap)
            raised = exponential(np.float32(80) if twice > np.float32(80) else twice)
            put(scores, i, soft_cap * (np.float32(1) - np.float32(2) / (raised + np.float32(1))))
    if slope != 0:
        for i in range(count):
            put(scores, i, at(scores, i) - slope * np.float32(count - 1 - i))


@in_vectors
def weigh(scores, count):
    """Scores to weights that are not yet divided by their sum, which is given."""
    most = at(scores, 0)
    for i in range(1, count):
        most = greater(most, at(scores, i))
    total = np.float32(0)
    for i in range(count):
        weight = exponential(at(scores, i) - most)
        put(scores, i, weight)
        total += weight
    return total


@in_vectors
def exponential(x):
    """e^x of x ≤ 88 to a relative error of 2e-7 (from −87 on; below, less than 2e-38); NaN of NaN."""
    scaled = x * np.float32(1 / math.log(2))
    scaled = np.float32(-126) if scaled < np.float32(-126) else scaled
    whole = np.floor(scaled + np.float32(0.5))
    rest = scaled - whole
    series = TERMS[7] * rest + TERMS[6]
    series = ((series * rest + TERMS[5]) * rest + TERMS[4]) * rest + TERMS[3]
    series = ((series * rest + TERMS[2]) * rest + TERMS[1]) * rest + TERMS[0]
    return series * power_of_two(whole)


@in_vectors
def add_up(call, scores, sums, values, table, row, group, begin, end):
    """`sums`: the values from `begin` to `end`, weighted, four at once."""
    width, step = call.value_width, call.value_step
    for j in range(width):
        put(sums, j, np.float32(0))
    key = begin
    while key < end:
        number = key // call.page
        until = min((number + 1) * call.page, end)
        page = np.int64(at(table, row * call.pages + number))
        place = page * call.value_page + group * call.value_group + (key - number * call.page) * step
        i = key - begin
        while i + 4 <= until - begin:
            a, b, c, d = at(scores, i), at(scores, i + 1), at(scores, i + 2), at(scores, i + 3)
            second, third, fourth = place + step, place + 2 * step, place + 3 * step
            for j in range(width):
                two = a * at(values, place + j) + b * at(values, second + j)
                four = two + (c * at(values, third + j) + d * at(values, fourth + j))
                put(sums, j, at(sums, j) + four)
            place, i = place + 4 * step, i + 4
        while i < until - begin:
            a = at(scores, i)
            for j in range(width):
                put(sums, j, at(sums, j) + a * at(values, place + j))
            place, i = place + step, i + 1
        key = until
