"""Position: how the position of a token enters the model.

Each kind may add to the embedded tokens, and may leave for attention angles by which queries and keys are rotated, or
slopes by which scores fall with distance.
B batch, T time, D width, H heads, K head width, R rotated channels of a head.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.model.draw import hashed
from groundup.model.settings import (
    ALiBi,
    LearnedPosition,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    NoPosition,
    NoScaling,
    NTKScaling,
    Rotary,
    Sinusoidal,
    YaRNScaling,
)
from groundup.model.unfit import row_of


@dataclass(frozen=True)
class PositionTerms:
    """What position leaves for the blocks."""

    angles: tuple[Float[Tensor, "B 1 T R"], Float[Tensor, "B 1 T R"]] | None = None
    """Cosine and sine for each position and rotated channel."""
    slopes: Float[Tensor, "H"] | None = None
    """What each head takes off a score for every position between query and key."""
    keys: Int[Tensor, "B T"] | None = None
    """What dropout depends on, of each position; of one layer, for a block. Drawn where something is dropped, if not
    given."""

    def in_layer(self, layer: int) -> "PositionTerms":
        """For the block of this global number."""
        return self if self.keys is None else replace(self, keys=hashed(self.keys, 1 + layer))

    def rotate(self, x: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T K"]:
        """Queries or keys with their first R channels rotated, if there are angles."""
        return x if self.angles is None else rotate(x, *self.angles)


def rotate(
    x: Float[Tensor, "B H T K"], cosine: Float[Tensor, "B 1 T R"], sine: Float[Tensor, "B 1 T R"]
) -> Float[Tensor, "B H T K"]:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34), halves paired as in GPT-NeoX."""
    width = cosine.shape[-1]
    channels, rest = x[..., :width], x[..., width:]
    first, second = channels.chunk(2, dim=-1)
    rotated = channels * cosine + torch.cat((-second, first), dim=-1) * sine
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


def table(rows: int, width: int) -> nn.Embedding:
    """A table of rows without values yet. To draw them on the meta device, torch would import its compiler, which takes
    a second."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class Position(nn.Module):
    """What `config.position` says, as a module: what it adds to the embedded tokens, and leaves for attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if isinstance(config.position, LearnedPosition):
            self.table = table(config.context_length + config.position.offset, config.d_model)

    def forward(self, x: Float[Tensor, "B T D"], position: Int[Tensor, "B T"]) -> tuple[Tensor, PositionTerms]:
        match self.config.position:
            case LearnedPosition(offset=offset):
                return x + row_of(self.table, position + offset, "rows of the table of positions"), PositionTerms()
            case Sinusoidal(base=base):
                # sin(position × frequency) in even channels, the cosine in odd ones; each pair slower than the last
                angle = position[..., None] * frequencies(base, x.shape[-1], x.device)  # (B, T, D/2)
                return x + torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).to(x.dtype), PositionTerms()
            case Rotary() as settings:
                # In float32 whatever the model's precision: bfloat16 cannot tell position 256 from 257.
                frequency, magnitude = rotary_frequencies(settings, self.config.rotary_width, x.device)
                angle = position[:, None, :, None].float() * frequency  # (B, 1, T, R/2)
                angle = torch.cat((angle, angle), dim=-1)
                cosine, sine = ((wave * magnitude).to(x.dtype) for wave in (angle.cos(), angle.sin()))
                return x, PositionTerms(angles=(cosine, sine))
            case ALiBi():
                return x, PositionTerms(slopes=alibi_slopes(self.config.n_heads, x.device))
            case NoPosition():
                return x, PositionTerms()


def frequencies(base: float, width: int, device: torch.device) -> Float[Tensor, "pairs"]:
    """Radians per position of each pair of channels: base^(−2i/width) for i = 0 … width/2 − 1, in float32."""
    channel = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    # 1 / base^x and not base^−x: one float32 rounding apart, and the first is how published models were trained
    return 1.0 / base ** (channel / width)


def rotary_frequencies(settings: Rotary, width: int, device: torch.device) -> tuple[Float[Tensor, "pairs"], float]:
    """Radians per position of each pair of rotated channels, and the factor on cosine and sine."""
    original = frequencies(settings.base, width, device)
    match settings.scaling:
        case NoScaling():
            return original, 1.0
        case LinearScaling(factor=factor):
            return original / factor, 1.0
        case NTKScaling(factor=factor):
            # The slowest pair turns `factor` times slower, the fastest as before; a single pair is the fastest.
            stretched = settings.base * factor ** (width / (width - 2)) if width > 2 else settings.base
            return frequencies(stretched, width, device), 1.0
        case Llama3Scaling(factor=factor, slow=slow, fast=fast, trained_length=length):
            turns = length * original / (2 * math.pi)
            kept = ((turns - slow) / (fast - slow)).clamp(0, 1)  # 1 for fast pairs, 0 for slow ones
            return torch.lerp(original / factor, original, kept), 1.0
        case YaRNScaling(factor=factor, slow=slow, fast=fast, trained_length=length, magnitude=magnitude):

            def pair_with(turns: float) -> float:
                """The (fractional) number of the pair that turns so often in the trained length."""
                return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(settings.base))

            # To whole pairs, and up to width − 1, not pairs − 1, as in the authors' code and all published models.
            begin = max(math.floor(pair_with(fast)), 0)
            end = min(math.ceil(pair_with(slow)), width - 1)
            pair = torch.arange(width // 2, dtype=torch.float32, device=device)
            kept = 1 - ((pair - begin) / max(end - begin, 0.001)).clamp(0, 1)
            scaled = torch.lerp(original / factor, original, kept)
            return scaled, 0.1 * math.log(factor) + 1 if magnitude is None else magnitude


def alibi_slopes(n_heads: int, device: torch.device) -> Float[Tensor, "H"]:
    """2^(−8/H), 2^(−16/H), … 2^−8 where H is a power of two (Press et al. 2022, section 3).

    Otherwise those of the next lower power, and then every second of the next higher one, as in the authors' code.
    """
    power = 1 << (n_heads.bit_length() - 1)  # the largest power of two that is not above n_heads
    number = torch.arange(1, n_heads + 1, dtype=torch.float32, device=device)
    own = number[:power] * (8 / power)
    between = (2 * (number[power:] - power) - 1) * (4 / power)
    return 2.0 ** -torch.cat((own, between))


def terms_at(
    config: ModelConfig, x: Float[Tensor, "B T D"], position: Int[Tensor, "B T"] | None = None
) -> PositionTerms:
    """What positions, 0..T−1 if not given, leave for attention where nothing is embedded: in a block or an attention
    that is called alone, and in the later stages of a pipeline."""
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; it should be (rows, length, width), for one row x[None]")
    if not isinstance(config.position, (Rotary, ALiBi)):
        return PositionTerms()  # the other kinds add to the embedded tokens, and leave nothing
    if position is None:
        position = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    terms: PositionTerms = Position(config)(x, position)[1]
    return terms
