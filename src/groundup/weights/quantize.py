"""Numbers in blocks, as llama.cpp packs them: 32 neighbours of a row share a scale, and each is a small whole number.

N blocks. A number is d × q in `Q8_0` (q of 8 bits), d × (q − 8) in `Q4_0` (q of 4 bits), d × q + m in `Q4_1`; d and m
are float16. The 4-bit numbers of a block lie in 16 bytes: the first half in the low bits, the second in the high ones.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def _float16(raw: UInt8[Tensor, "N 2"]) -> Float32[Tensor, "N 1"]:
    return raw.view(torch.float16).float()


def _nibbles(raw: UInt8[Tensor, "N 16"]) -> UInt8[Tensor, "N 32"]:
    return torch.cat((raw & 15, raw >> 4), dim=1)


def _pack_q8_0(blocks: Float32[Tensor, "N 32"]) -> UInt8[Tensor, "N 34"]:
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = (blocks * _inverse(scale)).abs()
    whole = scaled.floor()
    away_from_zero = whole + (2 * (scaled - whole)).floor()  # torch.round goes to even where two are as near
    numbers = (blocks.sign() * away_from_zero).to(torch.int8)
    return torch.cat((scale.half().view(torch.uint8), numbers.view(torch.uint8)), dim=1)


def _pack_q4_0(blocks: Float32[Tensor, "N 32"]) -> UInt8[Tensor, "N 18"]:
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))  # with its sign: it becomes −8
    scale = largest / -8
    numbers = (blocks * _inverse(scale) + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    return torch.cat((scale.half().view(torch.uint8), numbers[:, :16] | numbers[:, 16:] << 4), dim=1)


def _inverse(scale: Float[Tensor, "N 1"]) -> Float[Tensor, "N 1"]:
    return torch.where(scale == 0, 0, 1 / scale)


UNPACK: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda raw: raw.view(torch.float32),
    "F16": lambda raw: raw.view(torch.float16),
    "BF16": lambda raw: raw.view(torch.bfloat16),
    "Q8_0": lambda raw: _float16(raw[:, :2]) * raw[:, 2:].view(torch.int8),
    "Q4_0": lambda raw: _float16(raw[:, :2]) * (_nibbles(raw[:, 2:]).to(torch.int8) - 8),
    "Q4_1": lambda raw: _float16(raw[:, :2]) * _nibbles(raw[:, 4:]) + _float16(raw[:, 2:4]),
}
"""Type → the bytes of N blocks as (N, bytes) → their numbers; those of a plain type are seen in the same memory."""
PACK: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda blocks: blocks.view(torch.uint8),
    "F16": lambda blocks: blocks.half().view(torch.uint8),
    "BF16": lambda blocks: blocks.bfloat16().view(torch.uint8),
    "Q8_0": _pack_q8_0,
    "Q4_0": _pack_q4_0,
}
"""Type → (N, numbers in a block), float32 → the bytes of N blocks, as ggml's reference rounds."""


def pack(kind: str, numbers: Float[Tensor, "..."], block: int) -> UInt8[Tensor, "bytes"]:
    """The bytes of a tensor.

    Args:
        kind: one of `PACK`.
        block: numbers in a block of this type, of which a row is a multiple.

    Raises:
        ValueError: numbers too large for this type.
    """
    packed = PACK[kind](numbers.detach().cpu().float().contiguous().view(-1, block))
    scales = packed if kind == "F16" else packed[:, :2] if kind.startswith("Q") else packed[:0]
    if not scales.reshape(-1).view(torch.float16).isfinite().all():
        raise ValueError(f"{numbers.abs().max():g} is too large for {kind}")
    return packed.view(-1)
