"""Recording: every collective that a piece of work asks for, and the memory that it holds at its height; of real
processes and of rehearsed ones alike."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._tools.fake_collectives import CollectiveOp
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groundup.optim.state import own
from groundup.parallel.settings import AXES

KINDS = {
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "alltoall_base_": "all-to-all",
    "broadcast_": "broadcast",
    "send": "send",
}
"""Operation of torch → what it is called. Whoever receives is counted as the one who sends; nothing is sent by
`barrier`, nor in waiting."""
SILENT = {"recv_", "barrier", "wait_tensor", "_wrap_tensor_autograd"}


@dataclass(frozen=True, order=True)
class Collective:
    """One exchange among the ranks of a group, as one of them sees it."""

    axis: str
    """Along which axes of `[parallel]` the ranks differ."""
    ranks: int
    kind: str
    dtype: str
    elements: int
    """Of the whole: what an all-gather makes, what a reduce-scatter or an all-to-all is given."""

    @property
    def moved(self) -> float:
        """Elements that a rank sends, by the formula of a ring (Rajbhandari et al. 2020, arXiv:1910.02054, section
        7.1): an all-reduce is a reduce-scatter and an all-gather."""
        match self.kind:
            case "send" | "broadcast":
                return self.elements
            case "all-reduce":
                return 2 * self.elements * (self.ranks - 1) / self.ranks
            case _:
                return self.elements * (self.ranks - 1) / self.ranks

    @property
    def moved_bytes(self) -> float:
        return self.moved * int(getattr(torch, self.dtype).itemsize)


class Recorder(TorchDispatchMode):
    """Inside, counts collectives and the bytes of tensors that are alive."""

    def __init__(self, sizes: dict[str, int]) -> None:
        """
        Args:
            sizes: of each of `AXES`, in their order.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.collectives: Counter[Collective] = Counter()
        self.peak: Counter[str] = Counter()
        """Bytes by what they are, at the moment when all together were most."""
        self._sizes = [sizes[axis] for axis in AXES]
        self._axes: dict[str, tuple[str, int]] = {}
        self._alive: dict[int, tuple[str, int]] = {}
        """Storage → what it is, and its bytes."""
        self._now: Counter[str] = Counter()
        self._total = self._most = 0

    def start(self) -> None:
        """Forget what was counted, but not what is alive."""
        self.collectives, self._most = Counter(), 0
        self._look()

    def book(self, what: str, tensors: Iterable[Tensor]) -> None:
        """These tensors are `what`, whatever they were counted as before."""
        for tensor in tensors:
            self._book(own(tensor), what)

    def alive(self) -> dict[str, int]:
        """Bytes that are held now, by what they are."""
        return {what: size for what, size in self._now.items() if size}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # comes again as what it does on this rank
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func, args)
        result = func(*args, **(kwargs or {}))
        if func.namespace not in ("c10d", "_c10d_functional"):
            what = "gathered weights" if func.namespace == "fsdp" else "activations and buffers"
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._alive:
                    self._book(leaf, what)
        return result

    def _count(self, func: Any, args: Any) -> None:
        name = func._opname
        if name in SILENT:
            return
        group = CollectiveOp.get_process_group(func, args)
        axis, ranks = self._axis(group)
        if ranks == 1:
            return
        kind = KINDS[name]
        of = args[1] if name in ("_reduce_scatter_base_", "alltoall_base_") else args[0]
        leaves = [leaf for leaf in tree_leaves(of) if isinstance(leaf, Tensor)]
        elements = sum(leaf.numel() for leaf in leaves) * (ranks if name == "all_gather_into_tensor" else 1)
        dtype = str(leaves[0].dtype).removeprefix("torch.")
        self.collectives[Collective(axis, ranks, kind, dtype, elements)] += 1

    def _axis(self, group: Any) -> tuple[str, int]:
        if group.group_name not in self._axes:
            ranks = dist.get_process_group_ranks(group)
            places = zip(*(_places(rank, self._sizes) for rank in ranks), strict=True)
            varying = [axis for axis, place in zip(AXES, places, strict=True) if len({*place}) > 1]
            self._axes[group.group_name] = (" × ".join(varying), len(ranks))
        return self._axes[group.group_name]

    # Memory

    def _book(self, tensor: Tensor, what: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            weakref.finalize(storage, self._set, key, None, 0).atexit = False
        self._set(key, what, storage.nbytes())

    def _set(self, key: int, what: str | None, size: int) -> None:
        before, was = self._alive.pop(key, (what or "", 0))
        self._now[before] -= was
        if what is not None:
            self._alive[key] = what, size
            self._now[what] += size
        self._total += size - was
        self._look()

    def _look(self) -> None:
        if self._total > self._most:
            self._most, self.peak = self._total, self._now.copy()

    @contextmanager
    def watching(self) -> Iterator["Recorder"]:
        """Inside, counts; storages that FSDP fills and empties are those of gathered weights."""
        plain = torch.UntypedStorage.resize_

        def resize(storage: Any, size: int) -> Any:
            result = plain(storage, size)
            if storage._cdata in self._alive:
                self._set(storage._cdata, "gathered weights", storage.nbytes())
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        try:
            with self:
                yield self
        finally:
            torch.UntypedStorage.resize_ = plain  # type: ignore[method-assign]


def _places(rank: int, sizes: list[int]) -> list[int]:
    """A rank's place along each axis, the last axis of which neighbours differ in."""
    places = []
    for size in reversed(sizes):
        rank, place = divmod(rank, size)
        places.append(place)
    return places[::-1]
