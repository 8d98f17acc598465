"""Paged attention: single queries over keys and values that lie in pages.

N queries, H query heads, G key/value heads, K key width, W value width, P pages of S tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.model.attention import Pairs
from groundup.model.equation import weighted_values


def paged_attention(
    q: Float[Tensor, "N H K"],
    keys: Float[Tensor, "P G S K"],
    values: Float[Tensor, "P G S W"],
    table: Int[Tensor, "N pages"],
    length: Int[Tensor, "N"],
    *,
    scale: float | None = None,
    window: int | None = None,
    slopes: Float[Tensor, "H"] | None = None,
    soft_cap: float | None = None,
) -> Float[Tensor, "N H W"]:
    """What each query, the last token of its `length`, reads of its own sequence.

    On a CPU, float32 and bfloat16 go through a compiled kernel that reads each key and value once, where it lies, and
    sums in float32; a query's bits are the same in any company and with any number of threads. The rest is `gathered`.

    Args:
        values: may be a part of the keys, `keys[..., :W]`, as in latent attention.
        table: int32, the pages of each sequence in order; behind the last one that is needed, any.
        length: int32, tokens of each sequence up to the query's own, at least 1.
        scale, window, slopes, soft_cap: as of `Attend`.

    >>> q, cache = torch.randn(1, 2, 8), torch.randn(3, 2, 16, 8)
    >>> read = paged_attention(q, cache, cache, torch.tensor([[2, 0]]).int(), torch.tensor([20]).int())
    >>> in_order = torch.cat((cache[2], cache[0, :, :4]), dim=1)  # (H, 20, K)
    >>> plain = torch.nn.functional.scaled_dot_product_attention(q[:, :, None], in_order[None], in_order[None])
    >>> torch.allclose(read, plain[:, :, 0], atol=1e-6)
    True
    """
    if q.device.type != "cpu" or q.dtype not in KERNELS:
        return gathered(q, keys, values, table, length, scale=scale, window=window, slopes=slopes, soft_cap=soft_cap)
    q, table, length = q.contiguous(), table.contiguous(), length.contiguous()
    strides = (*keys.stride(), *values.stride())
    assert keys.dtype == values.dtype == q.dtype and strides[3] == strides[7] == 1
    assert table.dtype == length.dtype == torch.int32 and (slopes is None or slopes.dtype == torch.float32)
    (n, heads, width), (_, groups, page, value_width), pages = q.shape, values.shape, table.shape[1]
    n_threads = torch.get_num_threads()
    read = q.new_empty(n, heads, value_width)
    room = torch.empty(n_threads, pages * page + width + value_width)
    taken = torch.zeros(2, dtype=torch.long)
    given = (q, keys, values, table, length, slopes, read, room, taken)
    addresses = (0 if tensor is None else tensor.data_ptr() for tensor in given)
    sizes = (n, heads, groups, width, value_width, page, pages, window or 0)
    factors = (width**-0.5 if scale is None else scale, soft_cap or 0.0)
    run, record = _kernel(q.dtype)
    run(np.array([(*addresses, *sizes, *strides[:3], *strides[4:7], *factors)], record), n_threads)
    return read


def gathered(
    q: Float[Tensor, "N H K"],
    keys: Float[Tensor, "P G S K"],
    values: Float[Tensor, "P G S W"],
    table: Int[Tensor, "N pages"],
    length: Int[Tensor, "N"],
    *,
    window: int | None = None,
    **options: Any,
) -> Float[Tensor, "N H W"]:
    """`paged_attention` by a copy of the pages, each sequence's side by side."""
    k, v = (each[table].transpose(1, 2).flatten(2, 3) for each in (keys, values))  # (N, G, pages S, K)
    distance = length[:, None] - 1 - torch.arange(k.shape[2], dtype=torch.int32, device=q.device)
    pairs = Pairs.of(distance[:, None, None])
    return weighted_values(q[:, :, None], k, v, pairs.mask(window), pairs.distance, **options)[:, :, 0]


KERNELS = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}


@functools.cache
def _kernel(dtype: torch.dtype) -> tuple[Callable[[Any, int], None], Any]:
    """The compiled kernel and the numpy type of its argument. The first time a machine needs it, it is compiled, which
    takes some seconds; then loaded, in half a second."""
    from groundup.compiled import attention
    from groundup.compiled.loops import on_threads

    return on_threads(getattr(attention, KERNELS[dtype]), attention.CALL), attention.CALL
