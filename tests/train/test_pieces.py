"""Which block of a tensor a rank has, and what is read from files that hold other blocks."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from groundup.errors import DataError
from groundup.train.pieces import OFFSETS, Piece, block_of, read_pieces, read_whole, stored_pieces
from groundup.weights.write import write_tensors


def chunk(tensor: torch.Tensor, count: int, number: int) -> torch.Tensor:
    parts = torch.chunk(tensor, count)
    return parts[number] if number < len(parts) else tensor[:0]


@pytest.mark.parametrize("mesh", [(2, 2), (3, 2), (2, 3), (4, 1)])
def test_a_block_is_what_cutting_twice_leaves(mesh: tuple[int, int]) -> None:
    """Of every size, uneven and smaller than the mesh: a strided axis cuts what the one to its right has cut before,
    plain ones cut from left to right."""
    for size, first, second in itertools.product(range(1, 20), *map(range, mesh)):
        rows = torch.arange(size)
        for placements, expected in (
            ([_StridedShard(0, split_factor=mesh[1]), Shard(0)], chunk(chunk(rows, mesh[1], second), mesh[0], first)),
            ([Shard(0), Shard(0)], chunk(chunk(rows, mesh[0], first), mesh[1], second)),
            ([Replicate(), Shard(0)], chunk(rows, mesh[1], second)),
        ):
            (offset, _), (length, columns) = block_of((size, 3), placements, mesh, (first, second))
            assert torch.equal(rows[offset : offset + length], expected)
            assert columns == 3


WHOLE = torch.arange(35.0).view(5, 7)


def written(folder: Path, *blocks: tuple[slice, slice]) -> Path:
    """A directory with one file for each of these blocks of `WHOLE`."""
    for number, (rows, columns) in enumerate(blocks):
        offsets = f'{{"w": {{"saved_offsets": [{rows.start}, {columns.start}]}}}}'
        write_tensors(folder / f"model-{number}.safetensors", {"w": WHOLE[rows, columns].clone()}, {OFFSETS: offsets})
    return folder


QUARTERS = [(slice(a, b), slice(c, d)) for a, b in ((0, 2), (2, 5)) for c, d in ((0, 3), (3, 7))]


def test_any_block_is_read_from_any_blocks(tmp_path: Path) -> None:
    directory = written(tmp_path, *QUARTERS)
    for top, left in itertools.product(range(5), range(7)):
        for bottom, right in itertools.product(range(top, 6), range(left, 8)):
            local = torch.full((bottom - top, right - left), -1.0)
            read_pieces(directory, {"w": Piece((5, 7), (top, left), local)})
            assert torch.equal(local, WHOLE[top:bottom, left:right])
    assert torch.equal(read_whole(stored_pieces(directory)["w"]), WHOLE)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux to count what is read")
def test_of_a_large_tensor_only_the_block_is_read(tmp_path: Path) -> None:
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    write_tensors(tmp_path / "model.safetensors", {"w": torch.ones(1 << 12, 1 << 10)})  # 16 MiB
    before = bytes_read()
    for shape in ((4, 1 << 10), (1 << 12, 4)):
        read_pieces(tmp_path, {"w": Piece((1 << 12, 1 << 10), (0, 0), torch.zeros(shape))})
    assert bytes_read() - before < 1 << 20


def test_what_does_not_fit_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    directory, gain = written(tmp_path, QUARTERS[0], QUARTERS[1], QUARTERS[3]), torch.zeros(2, 3)
    for name, shape, why in (
        ("w", (5, 8), r"w is \[5, 7\] there, \[5, 8\] here"),
        ("v", (5, 7), r"v is missing there, \[5, 7\] here"),
        ("w", (5, 7), "9 elements of w are in no file there"),
    ):
        with pytest.raises(DataError, match=f"does not fit this model: {why}"):
            read_pieces(directory, {"w": Piece((5, 7), (0, 0), gain), name: Piece(shape, (0, 0), torch.zeros(shape))})
        assert not gain.any()
