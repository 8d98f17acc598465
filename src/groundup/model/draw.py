"""Draw: random numbers as functions of where they stand, and of nothing that was drawn before them.

A seed and a name make a key, a key and a number make a hash, a hash makes a number that looks random. Whoever holds a
part of a tensor, of a batch or of a model computes the numbers of that part, the same bits as whoever holds all of it.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15  # of splitmix64, as are the other constants: Steele et al. 2014, and its code by Vigna
AT_ONCE = 1 << 16
"""Numbers that are drawn together: their temporaries, of 8 bytes each, stay near the processor."""
Ranges = Sequence[tuple[int, int]]
"""For each axis of a tensor, the first index of a part, and the one after its last."""


def key(*of: int | str) -> int:
    """64 bits of all that is named, such as a seed and the name of a weight.

    >>> key(0, "embed.weight") == key(0, "embed.weight"), key(0, "embed.weight") == key(1, "embed.weight")
    (True, False)
    """
    named = "/".join(map(str, of)).encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little", signed=True)


def hashed(key: int | Int[Tensor, "..."], number: int | Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Output number `number` of the generator splitmix64 with seed `key`: 64 bits; one of the two is a tensor.

    >>> hashed(0, torch.arange(2)).tolist() == [0xE220A8397B1DCDAF - 2**64, 0x6E789E6AA1B965F4]
    True
    """
    z = key + ((number + 1) * _signed(GAMMA) if isinstance(number, Tensor) else _signed((number + 1) * GAMMA))
    assert isinstance(z, Tensor), "one of the two is"
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(number: int) -> int:
    """The 64 bits of a number as a tensor has them."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shifted right, with zeros coming in from the left; torch's own shift brings the sign in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def normal(hashes: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Numbers of the standard normal distribution, in float64 (Box and Muller 1958): a radius from the upper half of
    each hash, an angle from the lower one."""
    upper, lower = _shifted(hashes, 32), hashes & 0xFFFFFFFF
    radius = ((upper + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
    return radius.mul_((lower * (2 * math.pi * 2.0**-32)).cos_())


def drawn(
    key: int,
    shape: Sequence[int],
    ranges: Ranges | None = None,
    deviation: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A part of a tensor of normally distributed numbers, each of which depends on `key` and its place alone.

    Computed on the CPU, whatever the default device, so that every device begins with the same bits.

    Args:
        shape: of the whole tensor.
        ranges: of the part; the whole if not given.
        deviation: of the numbers.
        dtype: what they are rounded to.

    >>> whole, part = drawn(7, (4, 6)), drawn(7, (4, 6), [(1, 3), (2, 6)])
    >>> torch.equal(part, whole[1:3, 2:6])
    True
    """
    ranges = [(0, size) for size in shape] if ranges is None else ranges
    rows = torch.zeros(1, dtype=torch.int64, device="cpu")
    for size, (begin, end) in zip(shape[:-1], ranges[:-1], strict=True):
        rows = (rows[:, None] * size + torch.arange(begin, end, device="cpu")).flatten()
    columns = torch.arange(*ranges[-1], device="cpu")
    part = torch.empty(len(rows), len(columns), dtype=dtype, device="cpu")
    rows_at_once = max(1, AT_ONCE // max(1, len(columns)))
    for some, numbers in zip(rows.split(rows_at_once), part.split(rows_at_once), strict=True):
        numbers.copy_(normal(hashed(key, some[:, None] * shape[-1] + columns)).mul_(deviation))
    return part.view([end - begin for begin, end in ranges])


def local_part(parameter: Tensor) -> tuple[Tensor, Ranges]:
    """What this process holds of a tensor, and the ranges that this has in the whole: all of it, unless it is a
    `DTensor`. Where two axes of a mesh cut one axis of the tensor, the first cuts first; but FSDP's, whose placement is
    strided, cuts what tensor parallelism has left."""
    ranges = [(0, size) for size in parameter.shape]
    if not hasattr(parameter, "device_mesh"):
        return parameter, ranges
    from torch.distributed.tensor import DTensor  # takes half a second; loaded by whoever made one
    from torch.distributed.tensor.placement_types import Shard, _StridedShard

    assert isinstance(parameter, DTensor), "no other tensor has a mesh"
    mesh = parameter.device_mesh
    cuts = [*zip(mesh.get_coordinate() or (), mesh.shape, parameter.placements, strict=True)]
    for kind in (Shard, _StridedShard):
        for rank, ranks, placement in cuts:
            if type(placement) is kind:
                begin, end = ranges[placement.dim]
                size = -(-(end - begin) // ranks)  # as torch.chunk cuts
                ranges[placement.dim] = (min(begin + rank * size, end), min(begin + (rank + 1) * size, end))
    return parameter.to_local(), ranges
