"""Paged attention: single queries over keys and values that lie in pages.

L layers, N queries, H query heads, G key/value heads, K key width, W value width, P pages of S tokens.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.model.attention import Pairs
from groundup.model.dropout import Drop
from groundup.model.equation import weighted_values


class PagedReader:
    """Writes the keys and values of a step's tokens into their pages, and lets each token read its own sequence; on a
    CPU, in float32 and bfloat16.

    A compiled kernel reads each key and value once, where it lies, and sums in float32. A token's bits are the same in
    any company and with any number of threads.

    Args:
        values: of width 0 where they are the keys' first channels (latent attention).
        slot: int64, where each token goes: page × tokens of a page + number in the page.
        table: int32, the pages of each token's sequence in order; behind the last one that is needed, any.
        length: int32, tokens of each sequence up to the token itself, at least 1.

    >>> cache = torch.zeros(1, 3, 2, 16, 8)
    >>> k, slot = torch.randn(20, 2, 1, 8), torch.tensor([*range(32, 48), *range(4)])  # pages 2, then 0
    >>> table, length = torch.tensor([[2, 0]] * 20).int(), torch.arange(1, 21).int()
    >>> read = PagedReader(cache, cache.clone(), slot, table, length)(k, k, k, layer=0)
    >>> plain = torch.nn.functional.scaled_dot_product_attention(
    ...     *[k[None, :, :, 0].transpose(1, 2)] * 3, is_causal=True
    ... )
    >>> torch.allclose(read[:, :, 0], plain[0].transpose(0, 1), atol=1e-6)
    True
    """

    wants_latents: ClassVar[bool] = True

    def __init__(
        self,
        keys: Float[Tensor, "L P G S K"],
        values: Float[Tensor, "L P G S W"],
        slot: Int[Tensor, "N"],
        table: Int[Tensor, "N pages"],
        length: Int[Tensor, "N"],
    ) -> None:
        assert table.dtype == length.dtype == torch.int32 and slot.dtype == torch.int64
        self._write, self._attend, n_fields = _kernel(keys.dtype)
        self._keys, self._values = keys, values if values.shape[-1] else keys
        self._has_values, self._n, self._threads = values.shape[-1] > 0, len(slot), torch.get_num_threads()
        self._held = table, length, slot = table.contiguous(), length.contiguous(), slot
        _, _, groups, page, width = keys.shape
        # One call for all layers, one after the other; behind it two counters for the threads, and the factors.
        self._call = np.zeros(n_fields + 3, np.int64)
        self._address = self._call.ctypes.data
        self._factors = self._call[n_fields + 2 :].view(np.float32)
        same = [
            *(table.data_ptr(), length.data_ptr(), slot.data_ptr(), self._address + 8 * n_fields, 0),
            *(self._n, 0, groups, width, 0, page, table.shape[1], *keys.stride()[1:4], *self._values.stride()[1:4]),
        ]
        self._call[: len(same)] = same
        self._layers = [each.stride(0) * each.element_size() for each in (keys, self._values)]
        self._starts = [each.data_ptr() for each in (keys, self._values)]
        self._rest = slice(len(same), n_fields + 2)
        self._room: Tensor | None = None

    def __call__(
        self,
        q: Float[Tensor, "N H 1 K"],
        k: Float[Tensor, "N G 1 K"],
        v: Float[Tensor, "N G 1 W"],
        *,
        layer: int,
        window: int | None = None,
        slopes: Float[Tensor, "H"] | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
        dropout: Drop | None = None,
    ) -> Float[Tensor, "N H 1 W"]:
        """Arguments are those of an `Attend`, without dropout; rows behind those of the tokens are zeros."""
        if self._room is None:
            self._begin(q.shape[1], v.shape[-1], q.shape[-1])
        q, k, v = _in_rows(q), _in_rows(k), _in_rows(v)
        read = q.new_empty(*q.shape[:3], v.shape[-1])
        if len(q) > self._n:
            read[self._n :] = 0
        self._factors[:] = q.shape[-1] ** -0.5 if scale is None else scale, soft_cap or 0.0
        (keys, values), (key_layer, value_layer) = self._starts, self._layers
        self._call[self._rest] = (
            *(keys + layer * key_layer, values + layer * value_layer),
            *(q.data_ptr(), k.data_ptr(), v.data_ptr() if self._has_values else 0, read.data_ptr()),
            *(0 if slopes is None else slopes.data_ptr(), window or 0, q.stride(0), k.stride(0), v.stride(0)),
            *(self._address + 8 * (self._rest.stop), 0, 0),
        )
        self._write(self._address)
        self._attend(self._address, self._threads)
        return read

    def _begin(self, heads: int, value_width: int, width: int) -> None:
        """What is known with the first layer's queries, and the room that each thread needs."""
        self._room = torch.empty(self._threads, self._held[0].shape[1] * self._keys.shape[3] + width + value_width)
        self._call[4], self._call[6], self._call[9] = self._room.data_ptr(), heads, value_width


def _in_rows(x: Float[Tensor, "N heads 1 width"]) -> Float[Tensor, "N heads 1 width"]:
    """With the channels of a token's heads side by side, as a linear map leaves them."""
    return x if x.stride(3) == 1 and (x.shape[1] == 1 or x.stride(1) == x.shape[3]) else x.contiguous()


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
    """What each query, the last token of its `length`, reads of its own sequence, by a copy of the pages side by side:
    the slow twin of `PagedReader`, and what a GPU computes.

    Args:
        table: the pages of each sequence in order; behind the last one that is needed, any.
        length: tokens of each sequence up to the query's own, at least 1.
        window, options: as of `Attend`.
    """
    k, v = (each[table].transpose(1, 2).flatten(2, 3) for each in (keys, values))  # (N, G, pages S, K)
    distance = length[:, None] - 1 - torch.arange(k.shape[2], dtype=torch.int32, device=q.device)
    pairs = Pairs.of(distance[:, None, None])
    return weighted_values(q[:, :, None], k, v, pairs.mask(window), pairs.distance, **options)[:, :, 0]


KERNELS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@functools.cache
def _kernel(dtype: torch.dtype) -> tuple[Callable[[int], None], Callable[[int, int], None], int]:
    """What writes, what attends, and how many numbers their call has. The first time that a machine needs it, it is
    compiled, which takes some seconds; then loaded, in half a second."""
    from groundup.compiled import attention
    from groundup.compiled.loops import on_this_thread, on_threads

    write, attend = (getattr(attention, f"{what}_{KERNELS[dtype]}") for what in ("write", "attend"))
    return on_this_thread(write, attention.CALL), on_threads(attend, attention.CALL), len(attention.NAMES)
