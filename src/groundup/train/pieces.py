"""Tensors in pieces: the piece of a tensor that a rank has, which rank writes it, and the pieces that lie in files.

A piece is a contiguous block of a tensor: an offset and a length along each of its dims.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from groundup.errors import DataError, ResourceError
from groundup.train.peers import Peers

OFFSETS = "DCP_SHARDING_INFO"
"""Key in a file's metadata by which torch.distributed.checkpoint, too, knows where its pieces belong."""


@dataclass(frozen=True)
class Piece:
    """A block of a tensor, in memory."""

    shape: tuple[int, ...]
    """That of the whole tensor."""
    offset: tuple[int, ...]
    local: Tensor
    """The block itself; it may be empty."""


def piece_of(tensor: Tensor | Piece) -> Piece:
    """The block that this rank has of a tensor: all of a plain one, its own part of a `DTensor`.

    Raises:
        ValueError: a `DTensor` whose value is a sum over ranks that has not been taken.

    >>> piece_of(torch.ones(2, 3)).offset
    (0, 0)
    """
    if isinstance(tensor, Piece):
        return tensor
    if not isinstance(tensor, DTensor):
        return Piece(tuple(tensor.shape), (0,) * tensor.ndim, tensor.detach())
    if any(placement.is_partial() for placement in tensor.placements):
        raise ValueError(f"a tensor of placements {tensor.placements} has no pieces: redistribute it first")
    mesh, local = tensor.device_mesh, tensor.to_local().detach()
    offset, lengths = block_of(tuple(tensor.shape), tensor.placements, mesh.shape, mesh.get_coordinate() or ())
    assert local.shape == lengths, f"{tensor.placements} of {tensor.shape} gave {local.shape}"
    return Piece(tuple(tensor.shape), offset, local)


def block_of(
    shape: Sequence[int], placements: Sequence[Any], mesh: Sequence[int], coordinate: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offset and lengths of the block that the rank at `coordinate` of a mesh has of a tensor.

    Each axis cuts what those before it have left, as `torch.chunk` does; a strided one comes after those to its right.
    torch's `compute_local_shape_and_global_offset` differs from what FSDP2 does to 7 rows over 3 × 2 ranks.

    >>> block_of((7, 4), [_StridedShard(0, split_factor=2), Shard(0)], mesh=(3, 2), coordinate=(2, 1))
    ((6, 0), (1, 4))
    """
    strided = [axis for axis, placement in enumerate(placements) if isinstance(placement, _StridedShard)]
    plain = [axis for axis, placement in enumerate(placements) if isinstance(placement, Shard) and axis not in strided]
    starts, ends = [0] * len(shape), list(shape)
    for axis in plain + strided[::-1]:
        dim = placements[axis].dim
        length = -(-(ends[dim] - starts[dim]) // mesh[axis])
        starts[dim] = min(starts[dim] + coordinate[axis] * length, ends[dim])
        ends[dim] = min(starts[dim] + length, ends[dim])
    return tuple(starts), tuple(end - start for start, end in zip(starts, ends, strict=True))


def layout_of(pieces: Mapping[str, Piece]) -> dict[str, list[Any]]:
    """Whole shape, offset, own shape and type of each piece, as JSON values."""
    return {
        name: [list(each.shape), list(each.offset), list(each.local.shape), str(each.local.dtype)]
        for name, each in pieces.items()
    }


@dataclass(frozen=True)
class Shares:
    """Which rank writes what: each piece is written by the lowest rank that has it."""

    own: frozenset[str]
    """Names of the tensors whose pieces this rank writes."""
    file: str | None
    """Where to; None if this rank writes nothing."""
    n_files: int
    weight_map: Mapping[str, str]
    """Name of each tensor → the file with its first piece."""


def share_out(pieces: Mapping[str, Piece], peers: Peers) -> Shares:
    """Agree with the other ranks on who writes which of all their pieces.

    Raises:
        ValueError: the pieces of all ranks together are not the whole of some tensor, or more than it.
    """
    owners: dict[tuple[str, tuple[int, ...]], int] = {}
    shapes: dict[str, list[int]] = {}
    sizes: Counter[str] = Counter()
    for rank, layout in enumerate(peers.all_do(lambda: layout_of(pieces), ResourceError)):
        for name, (shape, offset, lengths, _) in layout.items():
            shapes.setdefault(name, shape)
            nothing = 0 in lengths and 0 not in shape
            if not nothing and (name, tuple(offset)) not in owners:
                owners[name, tuple(offset)] = rank
                sizes[name] += prod(lengths)
    if wrong := [name for name, shape in shapes.items() if sizes[name] != prod(shape)]:
        raise ValueError(f"the pieces of {peers.size} ranks do not make up the whole of {', '.join(wrong[:3])}")
    writing = sorted(set(owners.values())) or [0]
    files = {rank: f"model-{number:05d}-of-{len(writing):05d}.safetensors" for number, rank in enumerate(writing, 1)}
    weight_map: dict[str, str] = {}
    for (name, _), rank in sorted(owners.items()):
        weight_map.setdefault(name, files[rank])
    own = frozenset(name for (name, _), rank in owners.items() if rank == peers.rank)
    return Shares(own, files.get(peers.rank), len(files), weight_map)


@dataclass(frozen=True)
class StoredPiece:
    """A block of a tensor, in a file."""

    name: str
    """That of the tensor."""
    path: Path
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    """That of the block."""


def stored_pieces(directory: Path) -> dict[str, list[StoredPiece]]:
    """Name of each tensor in the `model*.safetensors` of a directory → its pieces."""
    found: dict[str, list[StoredPiece]] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        with opened(path) as file:
            offsets = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                shape = tuple(file.get_slice(name).get_shape())
                offset = tuple(offsets[name]["saved_offsets"]) if name in offsets else (0,) * len(shape)
                found.setdefault(name, []).append(StoredPiece(name, path, offset, shape))
    return found


def whole_shape(pieces: Iterable[StoredPiece]) -> tuple[int, ...]:
    """The shape of the tensor that has these pieces."""
    ends = [[start + length for start, length in zip(each.offset, each.shape, strict=True)] for each in pieces]
    return tuple(map(max, zip(*ends, strict=True)))


def read_whole(pieces: Sequence[StoredPiece]) -> Tensor:
    """The tensor that has these pieces, joined.

    >>> import tempfile
    >>> from groundup.train.checkpoint import save
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     directory = save(Path(folder), {"model.gain": torch.ones(2)}, {"step": 10}, settings={}, inputs={})
    ...     read_whole(stored_pieces(directory)["model.gain"])
    tensor([1., 1.])
    """
    whole = _read(pieces[0])
    if len(pieces) > 1:
        whole = whole.new_empty(whole_shape(pieces))
        for piece in pieces:
            whole[block(piece.offset, piece.shape)] = _read(piece)
    return whole


def _read(piece: StoredPiece) -> Tensor:
    with opened(piece.path) as file:
        tensor: Tensor = file.get_tensor(piece.name)
    return tensor


@torch.no_grad()
def read_pieces(directory: Path, wanted: Mapping[str, Piece]) -> None:
    """Fill the pieces in memory from whichever of a directory's pieces they overlap with, in place.

    Raises:
        DataError: a tensor that is not there, not in this shape, or not all of it; nothing was read then.
    """
    found = stored_pieces(directory)
    for name, piece in wanted.items():
        there = whole_shape(found[name]) if name in found else None
        if piece.shape != there:
            shapes = f"{name} is {'missing' if there is None else list(there)} there, {list(piece.shape)} here"
            raise DataError(f"{directory} does not fit this model: {shapes}")
    by_file: dict[Path, list[tuple[StoredPiece, Piece, list[int], list[int]]]] = {}
    for name, piece in wanted.items():
        missing = piece.local.numel()
        for stored in found[name]:
            starts, lengths = _overlap(stored, piece)
            missing -= prod(lengths)
            if 0 not in lengths:
                by_file.setdefault(stored.path, []).append((stored, piece, starts, lengths))
        if missing:
            raise DataError(f"{directory} does not fit this model: {missing:,} elements of {name} are in no file there")
    for path, overlaps in by_file.items():
        _copy(path, overlaps)


def _overlap(stored: StoredPiece, piece: Piece) -> tuple[list[int], list[int]]:
    """Where a piece in a file and one in memory meet in their tensor: first element and length, by dim."""
    starts = [max(pair) for pair in zip(stored.offset, piece.offset, strict=True)]
    ends = [
        min(one + its, other + mine)
        for one, its, other, mine in zip(stored.offset, stored.shape, piece.offset, piece.local.shape, strict=True)
    ]
    return starts, [max(0, end - start) for start, end in zip(starts, ends, strict=True)]


def _copy(path: Path, overlaps: Sequence[tuple[StoredPiece, Piece, list[int], list[int]]]) -> None:
    with opened(path) as file, safe_open(path, framework="pt") as mapped:
        for stored, piece, starts, lengths in overlaps:
            if tuple(lengths) == stored.shape:
                source = file.get_tensor(stored.name)
            else:  # a mapped file is read no further than the block goes; the other way reads the whole tensor
                source = mapped.get_slice(stored.name)[block(starts, lengths, stored.offset)]
            piece.local[block(starts, lengths, piece.offset)].copy_(source)


def block(starts: Sequence[int], lengths: Sequence[int], origin: Sequence[int] | None = None) -> tuple[slice, ...]:
    """Indices of a block within one that begins at `origin`; within the whole tensor if not given."""
    begins = [start - first for start, first in zip(starts, origin or [0] * len(starts), strict=True)]
    return tuple(slice(begin, begin + length) for begin, length in zip(begins, lengths, strict=True))


def opened(path: Path) -> Any:
    """A safetensors file whose tensors are read, not mapped: mapped files would count as memory that the training
    needs."""
    return safe_open(path, framework="pt", backend="pread")
