"""Numbers by place: splitmix64, the right distributions, and any part of a tensor the bits of the whole."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from groundup.model import draw
from groundup.model.draw import drawn, hashed, key, normal
from groundup.model.transformer import initialise

MASK = 2**64 - 1


def splitmix64(seed: int, n: int) -> int:
    """Output `n` of the reference's next(), in plain Python, as a number without a sign."""
    z = (seed + (n + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_hashes_are_splitmix64() -> None:
    numbers = [0, 1, 2, 1000, 2**31, 2**32 + 5, 2**62]
    for seed in (0, 1, 1234567, -1, key(3, "embed.weight"), 2**63 - 1, -(2**63)):
        expected = [splitmix64(seed, n) for n in numbers]
        assert [h & MASK for h in hashed(seed, torch.tensor(numbers)).tolist()] == expected
        for n in numbers:
            assert hashed(torch.tensor([seed]), n).item() & MASK == splitmix64(seed, n)
    assert splitmix64(1234567, 0) == 6457827717110365317  # the published test vector of the generator


def test_normals_have_the_distribution() -> None:
    numbers = normal(hashed(key(0, "a"), torch.arange(1 << 20)))
    count = len(numbers)
    assert abs(numbers.mean()) < 4 / count**0.5
    assert numbers.var().item() == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    below = 0.5 * (1 + torch.erf(numbers.sort().values / 2**0.5))
    apart = (below - (torch.arange(count) + 0.5) / count).abs().max()
    assert apart < 1.95 / count**0.5, "Kolmogorov and Smirnov's limit for one in a thousand"
    bits = hashed(key(0, "a"), torch.arange(1 << 20))
    for shift in (0, 24, 56):
        chi_square = ((torch.bincount((bits >> shift) & 255) - count / 256).square() / (count / 256)).sum()
        assert abs(chi_square - 255) < 4 * (2 * 255) ** 0.5


def test_neighbours_rows_names_and_seeds_are_not_correlated() -> None:
    weight = drawn(key(0, "blocks.0.attention.query.weight"), (1024, 1024))
    others = [
        (weight[:, 1:], weight[:, :-1]),
        (weight[1:], weight[:-1]),
        (weight, weight.T.contiguous()),
        *((weight, drawn(key(*name), (1024, 1024))) for name in ((0, "blocks.0.attention.key.weight"),
                                                                (1, "blocks.0.attention.query.weight"))),
    ]  # fmt: skip
    for one, other in others:
        pairs = torch.stack([one.flatten(), other.flatten()])
        off = pairs[0] != pairs[1]  # the diagonal of a matrix and its transpose
        for moment in (pairs, pairs.square()):
            assert abs(torch.corrcoef(moment[:, off])[0, 1]) < 5 / off.sum() ** 0.5


@pytest.mark.parametrize("shape", [(37,), (50, 33), (6, 17, 9)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_part_has_the_bits_of_the_whole(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn(key(1, "w"), shape, deviation=0.02, dtype=dtype)
    monkeypatch.setattr(draw, "AT_ONCE", 100)  # other chunks
    axes = [[(0, n), (n // 3, n - 1), (n - 1, n), (2, 2)] for n in shape]
    for ranges in itertools.product(*axes):
        part = drawn(key(1, "w"), shape, ranges, 0.02, dtype)
        assert torch.equal(part, whole[tuple(slice(*each) for each in ranges)])


def test_default_device_and_generator_change_nothing() -> None:
    expected = drawn(key(1, "w"), (5, 6))
    state = torch.get_rng_state()
    with torch.device("meta"):
        assert torch.equal(drawn(key(1, "w"), (5, 6)), expected)
    assert torch.equal(torch.get_rng_state(), state)


def distributed_parts() -> None:
    """Every rank's part of a tensor over a mesh, in a process of its own that says it is each of them in turn."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    whole, plain, sharded = torch.arange(11 * 7.0).view(11, 7), nn.Linear(7, 11), nn.Linear(7, 11)
    initialise(plain, 1, seed=3)
    two_axes = [Shard(0), Shard(1)], [Shard(0), Shard(0)], [_StridedShard(0, split_factor=3), Shard(0)]
    dist.init_process_group("fake", rank=0, world_size=6, store=FakeStore())
    mesh = init_device_mesh("cpu", (2, 3))
    for placements in ([Replicate(), Shard(0)], [Shard(1), Replicate()], *two_axes):
        for rank in itertools.product(range(2), range(3)):
            DeviceMesh.get_coordinate = lambda _, rank=rank: rank
            part, cuts = whole, [*zip(rank, mesh.shape, placements, strict=True)]
            if isinstance(placements[0], _StridedShard):
                cuts.reverse()  # tensor parallelism cut first
            for index, ranks, placement in cuts:
                if not isinstance(placement, Replicate):
                    pieces = part.chunk(ranks, dim=placement.dim)
                    part = pieces[index] if index < len(pieces) else part.narrow(placement.dim, 0, 0)
            held = part.clone()
            options = {"run_check": False, "shape": whole.shape, "stride": whole.stride()}
            sharded.weight = nn.Parameter(DTensor.from_local(held, mesh, placements, **options))
            square = tuple(slice(*each) for each in draw.local_part(sharded.weight)[1])
            assert torch.equal(part, whole[square]), (placements, rank)
            initialise(sharded, 1, seed=3)
            assert torch.equal(held, plain.weight[square]), (placements, rank)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_a_rank_finds_the_ranges_of_its_part_and_draws_it() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    distributed_parts()
