"""Paged attention: the compiled kernel against a copy of the pages and plain operations."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from groundup.generation.paged_attention import PagedReader, gathered


def problem(dtype, *, n=5, heads=6, groups=2, width=20, value_width=None, page=16, longest=100, seed=0):
    """Queries, a cache, and tables whose pages lie anywhere in it."""
    generator = torch.Generator().manual_seed(seed)
    pages = math.ceil(longest / page)
    total = n * pages + 3
    q = torch.randn(n, heads, width, generator=generator).to(dtype)
    keys = torch.randn(total, groups, page, width, generator=generator).to(dtype)
    values = torch.randn(total, groups, page, value_width or width, generator=generator).to(dtype)
    table = torch.randperm(total, generator=generator)[: n * pages].view(n, pages).int()
    length = torch.randint(1, longest + 1, (n,), generator=generator).int()
    return q, keys, values, table, length


def paged_attention(q, keys, values, table, length, **options):
    """The kernel; each sequence's last key and value, which it writes, are those that are there."""
    last = (length - 1).long()
    page, number = table.long().gather(1, last[:, None] // keys.shape[2])[:, 0], last % keys.shape[2]
    k, v = (each[page, :, number][:, :, None] for each in (keys, values))
    if values.data_ptr() == keys.data_ptr():  # the keys' first channels
        values = keys[..., :0]
    reader = PagedReader(keys[None], values[None], page * keys.shape[2] + number, table, length)
    return reader(q[:, :, None], k, v, layer=0, **options)[:, :, 0]


SHAPES = {
    "one head": {"heads": 1, "groups": 1, "width": 8},
    "one token": {"longest": 1},
    "widths that no vector fits": {"width": 33, "value_width": 17},
    "grouped": {"heads": 9, "groups": 3, "width": 64, "page": 32, "longest": 200},
    "all heads share": {"heads": 8, "groups": 1, "width": 128, "page": 64, "longest": 130},
    "whole pages": {"page": 16, "longest": 16, "width": 64},
    "many": {"n": 40, "heads": 4, "groups": 4, "width": 64, "longest": 70},
}
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "window": {"window": 7},
    "slopes": {"slopes": True},
    "soft cap": {"soft_cap": 2.0},
    "all": {"window": 21, "slopes": True, "soft_cap": 3.0, "scale": 0.5},
}


def with_slopes(options, heads):
    return {**options, "slopes": torch.linspace(0.1, 1.0, heads)} if "slopes" in options else options


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_kernel_equals_plain_operations(dtype, shape, options):
    q, *rest = problem(dtype, **SHAPES[shape])
    options = with_slopes(OPTIONS[options], q.shape[1])
    exact = gathered(q.double(), rest[0].double(), rest[1].double(), *rest[2:], **options)
    # float32: sums in another order. bfloat16: all is summed in float32, and only the answer, below 4, is rounded.
    bound = 2e-6 if dtype == torch.float32 else 2**-8 * exact.abs().max().item() + 1e-6
    assert_close(paged_attention(q, *rest, **options).double(), exact.to(torch.float64), atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_query_has_the_same_bits_alone_in_company_and_with_any_number_of_threads(dtype):
    q, keys, values, table, length = problem(dtype, n=64, heads=4, groups=2, width=64, longest=300, page=32)
    together = paged_attention(q, keys, values, table, length)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert torch.equal(paged_attention(q, keys, values, table, length), together)
            for row in range(0, 64, 7):
                one = slice(row, row + 1)
                assert torch.equal(paged_attention(q[one], keys, values, table[one], length[one]), together[one])
    finally:
        torch.set_num_threads(threads)


def test_what_lies_behind_a_sequence_is_not_read():
    q, keys, values, table, length = problem(torch.float32, longest=60)
    before = paged_attention(q, keys, values, table, length)
    for row, held in zip(table.long(), length.tolist(), strict=True):
        for slot in range(held, len(row) * 16):
            keys[row[slot // 16], :, slot % 16] = values[row[slot // 16], :, slot % 16] = math.nan
    assert keys.isnan().any()
    assert torch.equal(paged_attention(q, keys, values, table, length), before)


def test_values_may_be_a_part_of_the_keys():
    q, keys, _, table, length = problem(torch.bfloat16, heads=4, groups=1, width=40)
    whole = paged_attention(q, keys, keys[..., :24].contiguous(), table, length)
    assert torch.equal(paged_attention(q, keys, keys[..., :24], table, length), whole)


def test_a_page_may_be_in_several_tables_and_pages_may_be_of_any_size():
    q, keys, values, table, length = problem(torch.float32, n=3, longest=64, page=16)
    table[1] = table[0]
    joined = [each[table[0].long()].transpose(0, 1).reshape(1, 2, 64, -1) for each in (keys, values)]
    one_page = paged_attention(q[:2], *joined, torch.zeros(2, 1, dtype=torch.int32), length[:2])
    assert_close(paged_attention(q, keys, values, table, length)[:2], one_page, atol=2e-6, rtol=0)  # another order


def test_scores_that_are_not_numbers_give_no_numbers():
    q, *rest = problem(torch.float32)
    q[2, 1] = math.nan
    read = paged_attention(q, *rest)
    assert read[2, 1].isnan().all() and read.isnan().sum() == read.shape[2]


def test_large_scores_do_not_overflow():
    q, *rest = problem(torch.float32)
    read = paged_attention(q * 1e4, *rest)
    assert_close(read, gathered(q * 1e4, *rest), atol=1e-2, rtol=0)  # scores of 1e5 are known to 0.01


def test_callers_on_several_threads_do_not_disturb_each_other():
    problems = [problem(torch.bfloat16, seed=seed, longest=200) for seed in range(4)]
    expected = [paged_attention(*each) for each in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            answers = pool.map(lambda each: paged_attention(*each), problems)
            assert all(torch.equal(*pair) for pair in zip(answers, expected, strict=True))
