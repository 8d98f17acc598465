"""Cache: keys and values of the tokens read so far, in pages, and the `attend` that writes and reads them.

L layers, P pages, G key/value heads, S tokens of a page, K key width, W value width; N tokens of a step, each a row of
its own, from whatever requests.
"""

import contextlib
import itertools
import math
import mmap
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.generation.paged_attention import KERNELS, PagedReader, gathered
from groundup.generation.schedule import Work
from groundup.model.attention import Attend, Pairs
from groundup.model.equation import weighted_values
from groundup.model.kernels.blocks import BLOCK, MOST_BLOCKS, spans
from groundup.model.settings import ModelConfig

ROWS = 4
"""If their number is a multiple of this, the rows of a matmul have the bits that they have in any other: in float32 no
thread gets fewer, for which there is another kernel; in bfloat16 a row alone is added up in another order, and takes
longer than four (docs/generation.md)."""


@dataclass
class PagedCache:
    """The memory of all pages."""

    keys: Float[Tensor, "L P G S K"]
    values: Float[Tensor, "L P G S W"]
    """W = 0 where the values are the keys' first channels (latent attention)."""

    @classmethod
    def empty(
        cls, config: ModelConfig, pages: int, size: int, device: torch.device, dtype: torch.dtype
    ) -> "PagedCache":
        """One page more than asked for: no request holds it, and it fills up lists of pages. On a CPU, memory is taken
        as pages are written."""
        heads, *widths = config.cached
        shape = (config.n_layers, pages + 1, heads, size)
        return cls(*(_zeros((*shape, width), device, dtype) for width in widths))

    def clear(self, pages: Sequence[int]) -> None:
        """Write zeros over pages, where what a request left there is not finite."""
        self.keys[:, pages], self.values[:, pages] = 0, 0

    def attend(self, works: Sequence[Work[Any]], static: int | None = None) -> "Attend":
        """The `attend` of the next forward pass, over the works' tokens one after the other; behind them may be rows
        that nobody reads.

        Args:
            static: keys that are read whatever there are, for the bits of a forward pass over so many positions.
        """
        slot = torch.tensor(self.slots(works), device=self.keys.device)
        if static is None and self.keys.dtype in KERNELS and self.keys.device.type == "cpu":
            each = [work for work in works for _ in work.ids]
            ends = [at + 1 for work in works for at in range(work.first, work.end)]
            table, length = self.gather(each, max(ends)).int(), torch.tensor(ends, dtype=torch.int32)
            return PagedReader(self.keys, self.values, slot, table, length)
        return PagedAttend(self, self.pages_of(slot), works, static)

    def slots(self, works: Sequence[Work[Any]]) -> list[int]:
        """Where the keys and values of the works' tokens go: page × size + number in the page."""
        size = self.keys.shape[3]
        return [
            work.request.pages[at // size] * size + at % size for work in works for at in range(work.first, work.end)
        ]

    def pages_of(self, slots: Int[Tensor, "n"]) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        """The pages of `slots`, and the numbers in them."""
        size = self.keys.shape[3]
        return slots // size, slots % size

    def gather(self, works: Sequence[Work[Any]], length: int) -> Int[Tensor, "B pages"]:
        """The pages of each work's request as far as `length` tokens, filled up with the one that no one holds."""
        size, spare = self.keys.shape[3], self.keys.shape[1] - 1
        wanted = -(-length // size)
        rows = [(work.request.pages + [spare] * wanted)[:wanted] for work in works]
        return torch.tensor(rows, device=self.keys.device)


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """On a CPU memory that the system gives as it is written, in large pages of its own if it has them."""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, device=device, dtype=dtype)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    with contextlib.suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@dataclass(frozen=True)
class Alike:
    """Works that are computed together: equally many queries, which meet equally many keys."""

    index: Int[Tensor, "B T"]
    """Rows of their queries in the step; the last is repeated where there are too few."""
    count: int
    """Queries of each that are not repeated."""
    pages: Int[Tensor, "B pages"]
    first: int
    """Of the keys that are read."""
    end: int
    pairs: Pairs


@dataclass
class PagedAttend:
    """Writes the keys and values of new tokens into their pages, and lets each read its request up to itself."""

    cache: PagedCache
    where: tuple[Int[Tensor, "n"], Int[Tensor, "n"]]
    """Page of each token, and number in it."""
    works: Sequence[Work[Any]] = ()
    """What the tokens are of, where there is no table."""
    static: int | None = None
    groups: dict[int | None, list[Alike]] = field(default_factory=dict)
    """By window: which of the works are read together."""
    table: Int[Tensor, "n pages"] | None = None
    """Pages of each token's request, where each is read by itself."""
    length: Int[Tensor, "n"] | None = None
    """Tokens of the request up to it."""
    wants_latents: ClassVar[bool] = True

    def prepared(self, length: int, device: torch.device, windows: Collection[int | None]) -> "PagedAttend":
        """With what all layers need, made once."""
        if self.table is not None:
            return self
        return replace(self, groups={window: self._group(window) for window in windows})

    def _group(self, window: int | None) -> list[Alike]:
        """Works side by side that have equally many tokens; with `static`, each in the blocks of queries that a forward
        pass over so many positions has."""
        blocks = [(0, 1 << 62, 0)]
        if self.static is not None:
            n_blocks = max(1, min(MOST_BLOCKS, self.static // BLOCK))
            blocks = spans(self.static, n_blocks, window)
        found = defaultdict[tuple[int, int, int], list[tuple[int, Work[Any]]]](list)
        starts = itertools.accumulate((len(work.ids) for work in self.works), initial=0)
        for start, work in zip(starts, self.works, strict=False):
            for begin, end, oldest in blocks:
                first, last = max(begin, work.first), min(end, work.end)
                if first < last:
                    part = Work(work.request, first, work.ids[first - work.first : last - work.first])
                    found[last - first, end, oldest].append((start + first - work.first, part))
        device, groups = self.cache.keys.device, list[Alike]()
        for (count, end, oldest), works in found.items():
            end = min(end, max(work.end for _, work in works)) if self.static is None else end
            queries = torch.arange(-(-count // ROWS) * ROWS, device=device).clamp(max=count - 1)
            starts, firsts = torch.tensor([(start, work.first) for start, work in works], device=device).T
            distance = (firsts[:, None] + queries)[:, None, :, None] - torch.arange(oldest, end, device=device)
            pairs = Pairs.of(distance).over({window})
            pages = self.cache.gather([work for _, work in works], end)
            groups.append(Alike(starts[:, None] + queries, count, pages, oldest, end, pairs))
        return groups

    def __call__(
        self,
        q: Float[Tensor, "N H 1 K"],
        k: Float[Tensor, "N G 1 K"],
        v: Float[Tensor, "N G 1 W"],
        *,
        layer: int,
        window: int | None = None,
        **options: Any,
    ) -> Float[Tensor, "N H 1 W"]:
        all_keys, all_values = self.cache.keys[layer], self.cache.values[layer]
        (page, number), has_values = self.where, all_values.shape[-1] > 0
        all_keys[page, :, number] = k[: len(page), :, 0]
        if has_values:
            all_values[page, :, number] = v[: len(page), :, 0]
        if self.table is not None and self.length is not None:
            values = all_values if has_values else all_keys[..., : v.shape[-1]]
            return gathered(q[:, :, 0], all_keys, values, self.table, self.length, window=window, **options)[:, :, None]
        read = q.new_zeros(*q.shape[:3], v.shape[-1])
        for alike in self.groups[window]:
            keys = self._read(all_keys, alike)
            values = self._read(all_values, alike) if has_values else keys[..., : v.shape[-1]]
            queries = q[alike.index].squeeze(3).transpose(1, 2)  # (B, H, T, K)
            met = weighted_values(queries, keys, values, alike.pairs.mask(window), alike.pairs.distance, **options)
            kept = alike.index[:, : alike.count]
            read[kept] = met[:, :, : alike.count].transpose(1, 2)[:, :, :, None]
        return read

    @staticmethod
    def _read(pages: Float[Tensor, "P G S K"], alike: Alike) -> Float[Tensor, "B G keys K"]:
        read: Tensor = pages[alike.pages].transpose(1, 2).flatten(2, 3)[:, :, alike.first : alike.end]
        return read
