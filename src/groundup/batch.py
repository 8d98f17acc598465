"""Batch: the rows of one step as tensors, rows first, and the three functions that work on any such dataclass."""

from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows for language modelling. B rows, T tokens each."""

    tokens: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    """The token after each."""
    weight: Float[Tensor, "B T"]
    """How much each target counts; 0 for padding."""
    position: Int[Tensor, "B T"]
    """Of each token within (row, document)."""
    document: Int[Tensor, "B T"]
    """Number of the document in its split; −1 for padding."""


@runtime_checkable
class Weighted(Protocol):
    """Any frozen dataclass of tensors, rows first, that says how much each of its targets counts."""

    @property
    def weight(self) -> Tensor: ...


Rows = TypeVar("Rows", bound=Weighted)


def split(batch: Rows, n: int) -> list[Rows]:
    """At most `n` pieces of nearly equal numbers of rows; every row in one piece, in order."""
    names = [field.name for field in fields(batch)]  # type: ignore[arg-type]
    pieces = [getattr(batch, name).tensor_split(min(n, len(batch.weight))) for name in names]
    return [replace(batch, **dict(zip(names, piece, strict=True))) for piece in zip(*pieces, strict=True)]  # type: ignore[type-var]


def to(batch: Rows, device: torch.device) -> Rows:
    """The same batch on another device."""
    moved = {field.name: getattr(batch, field.name).to(device, non_blocking=True) for field in fields(batch)}  # type: ignore[arg-type]
    return replace(batch, **moved)  # type: ignore[type-var]


def total_weight(batch: Weighted) -> Float[Tensor, ""]:
    """What the summed loss of this batch is divided by."""
    return batch.weight.sum()
