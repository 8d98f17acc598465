"""Batch: the rows of one step as tensors, rows first, and the three functions that work on any such dataclass."""

from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows for language modelling. B rows, T tokens each.

    >>> ids = torch.tensor([[5, 6, 7, 8]])
    >>> ones, position = torch.ones(1, 3), torch.tensor([[0, 1, 2]])
    >>> Batch(ids[:, :-1], ids[:, 1:], weight=ones, position=position, document=0 * position).targets
    tensor([[6, 7, 8]])
    """

    tokens: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    """The token after each."""
    weight: Float[Tensor, "B T"]
    """How much each target counts; 0 for padding."""
    position: Int[Tensor, "B T"]
    """Number of each token within its row and document, from 0."""
    document: Int[Tensor, "B T"]
    """Number of the document in its split; −1 for padding."""


@runtime_checkable
class Weighted(Protocol):
    """Any frozen dataclass of tensors, rows first, that says how much each of its targets counts."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def weight(self) -> Tensor: ...


Rows = TypeVar("Rows", bound=Weighted)


def split(batch: Rows, n: int) -> list[Rows]:
    """Split a batch into at most `n` micro-batches of nearly equal numbers of rows, in order.

    >>> ids = torch.zeros(5, 3, dtype=torch.long)
    >>> [len(micro_batch.tokens) for micro_batch in split(Batch(ids, ids, torch.ones(5, 3), ids, ids), 2)]
    [3, 2]
    """
    columns = [column.tensor_split(min(n, len(batch.weight))) for column in vars(batch).values()]
    return [replace(batch, **dict(zip(vars(batch), parts, strict=True))) for parts in zip(*columns, strict=True)]


def to(batch: Rows, device: torch.device) -> Rows:
    """Copy a batch to a device.

    >>> ids = torch.zeros(5, 3, dtype=torch.long)
    >>> to(Batch(ids, ids, torch.ones(5, 3), ids, ids), torch.device("meta")).tokens.device
    device(type='meta')
    """
    return replace(batch, **{name: column.to(device, non_blocking=True) for name, column in vars(batch).items()})


def total_weight(batch: Weighted) -> Float[Tensor, ""]:
    """The weight of all targets together: what the summed loss of this batch is divided by.

    >>> ids = torch.zeros(5, 3, dtype=torch.long)
    >>> total_weight(Batch(ids, ids, torch.ones(5, 3), ids, ids))
    tensor(15.)
    """
    return batch.weight.sum()
