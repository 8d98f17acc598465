"""Settings of the model: its sizes, and which block stands in each place."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from groundup.settings import Settings
from groundup.words import contradiction

# --- position: how a token's place enters the model ---


class LearnedPosition(Settings):
    """A learned vector for each position, added to the token's (GPT-2)."""

    kind: Literal["learned"] = "learned"
    offset: int = Field(default=0, ge=0)
    """Rows of the table before the one of position 0; OPT has 2."""


class Sinusoidal(Settings):
    """Sines and cosines of the position, added to the token's vector (Vaswani et al. 2017, arXiv:1706.03762, 3.5)."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    base: float = Field(default=10_000.0, gt=1)
    """The slowest pair of channels repeats after about 2π × base positions."""


class NoScaling(Settings):
    """The angles as they are."""

    kind: Literal["none"] = "none"


class LinearScaling(Settings):
    """Every angle divided by a factor: positions interpolated (Chen et al. 2023, arXiv:2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(default=2.0, ge=1, le=1e6)
    """How many times the length that the model was trained on."""


class NTKScaling(Settings):
    """A larger base: slow channels interpolated, fast ones left ("NTK-aware"; Peng et al. 2023, arXiv:2309.00071)."""

    kind: Literal["ntk"] = "ntk"
    factor: float = Field(default=2.0, ge=1, le=1e6)
    """How many times slower the slowest pair of channels turns."""


def _rising(scaling: "Llama3Scaling | YaRNScaling") -> "Llama3Scaling | YaRNScaling":
    slow, fast = scaling.slow, scaling.fast
    if fast <= slow:
        raise contradiction(
            f"fast = {fast} is not more than slow = {slow}; channels between them are scaled in part", "fast", "slow"
        )
    return scaling


class Llama3Scaling(Settings):
    """Slow channels interpolated, fast ones left, a ramp between (Llama 3.1; Grattafiori et al. 2024)."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(default=8.0, ge=1, le=1e6)
    """How many times slower the slow channels turn."""
    slow: float = Field(default=1.0, gt=0)
    """A pair with fewer turns than this in `trained_length` is slow."""
    fast: float = Field(default=4.0, gt=0)
    """A pair with more turns than this is fast."""
    trained_length: int = Field(default=8192, ge=1)
    """Context length before the scaling."""

    _ramp_rises = model_validator(mode="after")(_rising)


class YaRNScaling(Settings):
    """Slow channels interpolated, fast ones left, scores sharpened (Peng et al. 2023, arXiv:2309.00071, 3.4)."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(default=2.0, ge=1, le=1e6)
    """How many times slower the slow channels turn."""
    slow: float = Field(default=1.0, gt=0)
    """Turns in `trained_length` at which interpolation is whole; β slow or α in the paper."""
    fast: float = Field(default=32.0, gt=0)
    """Turns in `trained_length` from which on nothing is interpolated; β fast or β in the paper."""
    trained_length: int = Field(default=2048, ge=1)
    """Context length before the scaling."""
    magnitude: float | None = Field(default=None, gt=0)
    """Factor on the rotated queries and keys; 0.1 ln(factor) + 1 if not set."""

    _ramp_rises = model_validator(mode="after")(_rising)


RotaryScaling = Annotated[
    NoScaling | LinearScaling | NTKScaling | Llama3Scaling | YaRNScaling, Field(discriminator="kind")
]


class Rotary(Settings):
    """Queries and keys rotated by angles that grow with position (Su et al. 2021, arXiv:2104.09864)."""

    kind: Literal["rotary"] = "rotary"
    base: float = Field(default=10_000.0, gt=1)
    """The slowest pair of channels turns once in about 2π × base positions."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of each head's channels that is rotated; GPT-NeoX rotates a quarter."""
    scaling: RotaryScaling = NoScaling()


class ALiBi(Settings):
    """Scores fall in proportion to distance, in each head at its own rate (Press et al. 2022, arXiv:2108.12409)."""

    kind: Literal["alibi"] = "alibi"


class NoPosition(Settings):
    """Nothing: order is known from the causal mask alone (Kazemnejad et al. 2023, arXiv:2305.19466)."""

    kind: Literal["none"] = "none"


# --- norm ---


class LayerNorm(Settings):
    """Subtract the mean, divide by the standard deviation (Ba et al. 2016, arXiv:1607.06450)."""

    kind: Literal["layernorm"] = "layernorm"
    epsilon: float = Field(default=1e-5, gt=0)
    """Added to the variance, so that nothing is divided by zero."""
    bias: bool = True
    """A learned shift besides the gain."""

    def parameters(self, width: int) -> int:
        return width * (2 if self.bias else 1)


class RMSNorm(Settings):
    """Divide by the root mean square (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    epsilon: float = Field(default=1e-5, gt=0)
    """Added to the mean square, so that nothing is divided by zero."""

    def parameters(self, width: int) -> int:
        return width


@dataclass(frozen=True)
class Sizes:
    """What a sublayer is made of, in numbers."""

    matrices: int = 0
    """Entries of its matrices."""
    vectors: int = 0
    """Entries of its biases and gains."""
    scores: int = 0
    """Multiply-adds for one query and one key: their product, and the share of the value."""
    idle: int = 0
    """Entries of matrices that one token does not meet."""


# --- attention: how a position reads others ---


class GroupedQuery(Settings):
    """Attention whose key/value heads are each shared by a group of query heads (Ainslie et al. 2023,
    arXiv:2305.13245); with as many key/value as query heads it is multi-head, with one multi-query attention."""

    kind: Literal["grouped_query"] = "grouped_query"
    bias: Literal["none", "qkv", "all"] = "none"
    """A bias on no matrix, on query, key and value, or on the output too."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """Normalise queries and keys before they meet: each head (Qwen3) or all heads as one vector (OLMo 2); from Henry et
    al. 2020, arXiv:2010.04245."""
    window: int | None = Field(default=None, ge=1)
    """Keys that a query may look back over, its own included; all if not set."""
    windowed_layers: tuple[bool, ...] = Field(default=(True,), min_length=1)
    """Which layers keep to the window, from the first on, over and over; Gemma 2 has `[true, false]`."""
    scale: float | None = Field(default=None, gt=0)
    """Factor on the scores; 1/√d_head if not set."""
    soft_cap: float | None = Field(default=None, gt=0)
    """Scores are squeezed into ± this by tanh (Gemma 2)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights set to zero in training."""

    @model_validator(mode="after")
    def _windowed_by_what(self) -> "GroupedQuery":
        if self.window is None and self.windowed_layers != (True,):
            raise contradiction(
                f"windowed_layers = {list(self.windowed_layers)} without a window; set window, or leave it out too",
                "windowed_layers",
            )
        return self

    @property
    def windows(self) -> set[int | None]:
        """All that layers have."""
        return {self.window if is_windowed else None for is_windowed in self.windowed_layers}

    def window_of(self, layer: int) -> int | None:
        """The window of one layer, counted from 0."""
        return self.window if self.windowed_layers[layer % len(self.windowed_layers)] else None

    def cached(self, n_kv_heads: int, d_head: int) -> tuple[int, int, int]:
        """Heads, key width and value width that generation keeps of each token."""
        return n_kv_heads, d_head, d_head

    def sizes(self, model: "ModelConfig") -> Sizes:
        queries, keys = model.n_heads * model.head_width, model.kv_heads * model.head_width
        biases = {"none": 0, "qkv": queries + 2 * keys, "all": queries + 2 * keys + model.d_model}[self.bias]
        normed = {"none": (), "head": (model.head_width, model.head_width), "full": (queries, keys)}[self.qk_norm]
        return Sizes(
            matrices=2 * model.d_model * (queries + keys),
            vectors=biases + sum(model.norm.parameters(width) for width in normed),
            scores=2 * queries,
        )


class Latent(Settings):
    """Keys and values made from one small latent vector a token, the only thing to be cached, besides a few rotary
    channels that all heads share (multi-head latent attention, DeepSeek-V2 2024, arXiv:2405.04434, 2.1)."""

    kind: Literal["latent"] = "latent"
    d_latent: int = Field(default=128, ge=1)
    """Width of the vector that keys and values are made from."""
    d_query_latent: int | None = Field(default=None, ge=1)
    """Width of a like vector for queries; they are made from the input itself if not set."""
    d_rotary: int = Field(default=32, ge=2, multiple_of=2)
    """Channels a head has besides its `d_head`, which are rotated by position; an even number."""
    d_value: int | None = Field(default=None, ge=1)
    """Width of a head's values; `d_head` if not set."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights set to zero in training."""

    @property
    def windows(self) -> set[int | None]:
        """No layer has one."""
        return {None}

    def cached(self, n_kv_heads: int, d_head: int) -> tuple[int, int, int]:
        """Heads, key width and value width that generation keeps; 0: the values are the keys' first channels."""
        return 1, self.d_latent + self.d_rotary, 0

    def sizes(self, model: "ModelConfig") -> Sizes:
        key, value, read = model.head_width, self.d_value or model.head_width, self.d_query_latent or model.d_model
        ways = [
            (read, model.n_heads * (key + self.d_rotary)),
            (model.d_model, self.d_latent + self.d_rotary),
            (self.d_latent, model.n_heads * (key + value)),
            (model.n_heads * value, model.d_model),
            (model.d_model, self.d_query_latent or 0),
        ]
        normed = [self.d_latent, *([self.d_query_latent] if self.d_query_latent else [])]
        return Sizes(
            matrices=sum(inward * outward for inward, outward in ways),
            vectors=sum(model.norm.parameters(width) for width in normed),
            scores=model.n_heads * (key + self.d_rotary + value),
        )


# --- feed-forward: what a position does with itself ---


class GELU(Settings):
    """Two matrices with a Gaussian error linear unit between (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    kind: Literal["gelu"] = "gelu"
    approximate: Literal["tanh", "none"] = "tanh"
    """`tanh` is GPT-2's approximation, `none` the exact function."""
    bias: bool = True
    """A bias on both matrices."""


class ReLU(Settings):
    """Two matrices with max(0, x) between (Vaswani et al. 2017, arXiv:1706.03762, 3.3)."""

    kind: Literal["relu"] = "relu"
    bias: bool = True
    """A bias on both matrices."""


class ReLUSquared(Settings):
    """Two matrices with max(0, x)² between (So et al. 2021, arXiv:2109.08668)."""

    kind: Literal["relu_squared"] = "relu_squared"
    bias: bool = False
    """A bias on both matrices."""


class SwiGLU(Settings):
    """Two matrices, the first gated by the SiLU of a third (Shazeer 2020, arXiv:2002.05202)."""

    kind: Literal["swiglu"] = "swiglu"
    bias: bool = False
    """A bias on all three matrices."""


class GeGLU(Settings):
    """Two matrices, the first gated by the GELU of a third (Shazeer 2020, arXiv:2002.05202)."""

    kind: Literal["geglu"] = "geglu"
    approximate: Literal["tanh", "none"] = "tanh"
    """`none` is the exact function."""
    bias: bool = False
    """A bias on all three matrices."""


Dense = Annotated[GELU | ReLU | ReLUSquared | SwiGLU | GeGLU, Field(discriminator="kind")]


class Experts(Settings):
    """Many feed-forwards, of which a router picks a few for each token (Shazeer et al. 2017, arXiv:1701.06538)."""

    kind: Literal["experts"] = "experts"
    n_experts: int = Field(default=8, ge=1, le=4096)
    """Feed-forwards to pick from, each `d_ff` wide."""
    n_active: int = Field(default=2, ge=1)
    """How many are picked for a token."""
    n_shared: int = Field(default=0, ge=0)
    """Shared experts, through which every token goes, computed as one `n_shared × d_ff` wide (Dai et al. 2024,
    arXiv:2401.06066)."""
    normalise: bool = True
    """The weights of the picked experts add up to one; if false they are as the router's softmax over all gave them."""
    balance: float = Field(default=0.01, ge=0)
    """Weight of the load-balancing loss (Fedus et al. 2021, arXiv:2101.03961, eq. 4), in each layer."""
    expert: Dense = SwiGLU()

    @model_validator(mode="after")
    def _enough_to_pick_from(self) -> "Experts":
        if self.n_active > self.n_experts:
            raise contradiction(
                f"n_active = {self.n_active} is more than n_experts = {self.n_experts}", "n_active", "n_experts"
            )
        return self


# --- block: how the two are joined ---


class Sequential(Settings):
    """Attention adds to the stream first, and the feed-forward reads what came of it."""

    kind: Literal["sequential"] = "sequential"
    norm: Literal["before", "after", "output", "around"] = "before"
    """Where the norms stand: `before` each sublayer (pre-norm), `after` its sum (post-norm, Vaswani et al. 2017), on
    its `output` (OLMo 2), or `around` it, before and on its output (sandwich norm, Gemma 2)."""

    @property
    def ends_normed(self) -> bool:
        """Whether what leaves the last block is normalised already."""
        return self.norm == "after"

    @property
    def n_norms(self) -> int:
        return 4 if self.norm == "around" else 2


class Parallel(Settings):
    """Attention and feed-forward read the same stream and add to it together (Wang and Komatsuzaki 2021, GPT-J)."""

    kind: Literal["parallel"] = "parallel"
    shared_norm: bool = False
    """One norm before both, as in GPT-J; GPT-NeoX has one for each."""

    @property
    def ends_normed(self) -> bool:
        return False

    @property
    def n_norms(self) -> int:
        return 1 if self.shared_norm else 2


# --- head: what is read off the stream ---


class LanguageModel(Settings):
    """A score for every token of the vocabulary."""

    kind: Literal["language_model"] = "language_model"
    tied: bool = True
    """One matrix reads tokens in and scores them out (Press and Wolf 2017, arXiv:1608.05859)."""
    bias: bool = False
    """A bias on the scores (GPT-J)."""
    soft_cap: float | None = Field(default=None, gt=0)
    """Scores are squeezed into ± this by tanh (Gemma 2)."""


class Classes(Settings):
    """A score for each of some classes."""

    kind: Literal["classes"] = "classes"
    n_classes: int = Field(default=2, ge=2)
    """How many there are."""


class Scalar(Settings):
    """One number, such as a reward."""

    kind: Literal["scalar"] = "scalar"


Position = Annotated[LearnedPosition | Sinusoidal | Rotary | ALiBi | NoPosition, Field(discriminator="kind")]
Norm = Annotated[LayerNorm | RMSNorm, Field(discriminator="kind")]
Attention = Annotated[GroupedQuery | Latent, Field(discriminator="kind")]
FeedForward = Annotated[Dense | Experts, Field(discriminator="kind")]
Block = Annotated[Sequential | Parallel, Field(discriminator="kind")]
Head = Annotated[LanguageModel | Classes | Scalar, Field(discriminator="kind")]


class ModelConfig(Settings):
    """A decoder-only Transformer. The defaults are Llama's blocks, the head tied; `presets.py` has published sizes."""

    vocab_size: int | None = Field(default=None, ge=1)
    """Filled in from the tokenizer; not set in a recipe."""
    context_length: int = Field(default=256, ge=2)
    """Tokens that one row holds, and the most that the model sees at once."""
    d_model: int = Field(default=256, ge=1)
    """Width of the stream of vectors that the blocks add to."""
    n_layers: int = Field(default=6, ge=1, le=1000)
    """Blocks, one after another."""
    n_heads: int = Field(default=4, ge=1)
    """Query heads in each block."""
    n_kv_heads: int | None = Field(default=None, ge=1)
    """Key/value heads; as many as `n_heads` if not set."""
    d_head: int | None = Field(default=None, ge=1)
    """`d_model / n_heads` if not set."""
    d_ff: int | None = Field(default=None, ge=1)
    """Width inside the feed-forward; `4 × d_model` if not set. Gated kinds have a third matrix and usually 8/3."""
    d_embedding: int | None = Field(default=None, ge=1)
    """Width of a token's own vector, if it is not `d_model`: one matrix then leads in and one out (OPT-350M)."""
    embedding_scale: float | None = Field(default=None, gt=0)
    """Factor on the tokens' vectors; Vaswani et al. 2017 and Gemma have √d_model."""
    embedding_norm: bool = False
    """Normalise the tokens' vectors before the first block (BLOOM)."""
    position: Position = Rotary()
    norm: Norm = RMSNorm()
    attention: Attention = GroupedQuery()
    feedforward: FeedForward = SwiGLU()
    block: Block = Sequential()
    head: Head = LanguageModel()
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training: after the embedding and after every sublayer."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "ModelConfig":
        if self.d_head is None and self.d_model % self.n_heads:
            below = max(n for n in range(1, self.n_heads + 1) if self.d_model % n == 0)
            raise contradiction(
                f"n_heads = {self.n_heads} does not divide d_model = {self.d_model}; nearest number of heads: {below}, "
                f"nearest width: {round(self.d_model / self.n_heads) * self.n_heads or self.n_heads}; or set d_head",
                "n_heads",
                "d_model",
            )
        if self.n_heads % self.kv_heads:
            nearest = sorted(n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0)
            raise contradiction(
                f"n_kv_heads = {self.kv_heads} does not divide n_heads = {self.n_heads}: each key/value head serves "
                f"equally many query heads; possible: {', '.join(map(str, nearest))}",
                "n_kv_heads",
                "n_heads",
            )
        return self

    @model_validator(mode="after")
    def _latent_fits(self) -> "ModelConfig":
        if not isinstance(self.attention, Latent):
            return self
        if not isinstance(self.position, Rotary) or self.position.fraction != 1:
            raise contradiction(
                f"position.kind = {self.position.kind}, but latent attention keeps channels for rotary position "
                "(attention.d_rotary): set position.kind to rotary, and leave its fraction at 1",
                "position.kind",
            )
        if self.kv_heads != self.n_heads:
            raise contradiction(
                f"n_kv_heads = {self.kv_heads}, but latent attention makes a key and a value for each of the "
                f"{self.n_heads} query heads: leave n_kv_heads out",
                "n_kv_heads",
            )
        return self

    @model_validator(mode="after")
    def _position_fits(self) -> "ModelConfig":
        if isinstance(self.position, Rotary) and (self.rotary_width % 2 or not self.rotary_width):
            wanted = max(2, self.rotary_width // 2 * 2)
            way = (
                f"set position.fraction to {wanted / self.head_width:.6g}"
                if wanted <= self.head_width
                else "give heads more channels"
            )
            raise contradiction(
                f"rotary position rotates pairs of channels, but position.fraction = {self.position.fraction:g} of a "
                f"head's {self.head_width} is {self.rotary_width}; {way}",
                "position.fraction",
            )
        if isinstance(self.position, Sinusoidal) and self.d_model % 2:
            raise contradiction(
                f"sinusoidal position fills pairs of channels, but d_model = {self.d_model}; nearest: "
                f"{self.d_model - 1}, {self.d_model + 1}",
                "d_model",
            )
        return self

    @property
    def drops(self) -> bool:
        """Whether anything is set to zero in training."""
        return self.dropout > 0 or self.attention.dropout > 0

    @property
    def kv_heads(self) -> int:
        """Key/value heads of each block."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        """Channels of each head."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def rotary_width(self) -> int:
        """Channels of each head that rotary position rotates; 0 for other kinds of position."""
        if isinstance(self.attention, Latent):
            return self.attention.d_rotary
        return round(self.position.fraction * self.head_width) if isinstance(self.position, Rotary) else 0

    @property
    def feedforward_width(self) -> int:
        """Width inside the feed-forward."""
        return self.d_ff or 4 * self.d_model

    @property
    def cached(self) -> tuple[int, int, int]:
        """Heads, key width and value width that generation keeps of each token and layer."""
        return self.attention.cached(self.kv_heads, self.head_width)

    @property
    def parameters(self) -> int:
        """How many there are: the closed form of what `count.py` counts, for where torch is not imported."""
        norm = self.norm.parameters(self.d_model)
        attention, feedforward = self._sublayers
        block = attention.matrices + attention.vectors + feedforward.matrices + feedforward.vectors
        total = self.n_layers * (block + self.block.n_norms * norm) + self._embedding + self._projections
        total += norm * (self.embedding_norm + (not self.block.ends_normed))
        if isinstance(self.position, LearnedPosition):
            total += (self.context_length + self.position.offset) * self.d_model
        if not isinstance(self.head, LanguageModel):
            return total + self._head
        return total + (0 if self.head.tied else self._head) + ((self.vocab_size or 0) if self.head.bias else 0)

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward, two for each multiply-add, in rows of `context_length`; as `count.py` counts."""
        attention, feedforward = self._sublayers
        block = attention.matrices + feedforward.matrices - feedforward.idle + attention.scores * self.context_length
        return 3 * 2 * (self.n_layers * block + self._projections + self._head)

    @property
    def _sublayers(self) -> tuple[Sizes, Sizes]:
        return self.attention.sizes(self), _feedforward_sizes(self.feedforward, self.d_model, self.feedforward_width)

    @property
    def _embedding(self) -> int:
        return (self.vocab_size or 0) * (self.d_embedding or self.d_model)

    @property
    def _projections(self) -> int:
        """Between vectors of `d_embedding` and of `d_model`, on the way in and, to score tokens, out."""
        ways = 2 if isinstance(self.head, LanguageModel) else 1
        return ways * self.d_model * (self.d_embedding or 0)

    @property
    def _head(self) -> int:
        match self.head:
            case LanguageModel():
                return self._embedding
            case Classes(n_classes=n_classes):
                return n_classes * self.d_model
            case Scalar():
                return self.d_model

    def with_vocabulary(self, vocab_size: int) -> "ModelConfig":
        """The same model over a vocabulary of `vocab_size` ids.

        >>> config = ModelConfig(d_model=64, n_layers=2, n_heads=4, n_kv_heads=2).with_vocabulary(320)
        >>> config.vocab_size, config.kv_heads, config.head_width, config.rotary_width, config.feedforward_width
        (320, 2, 16, 16, 256)
        >>> config.parameters, config.training_flops_per_token, config.cached, config.drops
        (143680, 1253376, (2, 16, 16), False)
        """
        return self.model_copy(update={"vocab_size": vocab_size})


def _feedforward_sizes(settings: FeedForward, d_model: int, d_ff: int) -> Sizes:
    if isinstance(settings, Experts):
        one = _feedforward_sizes(settings.expert, d_model, d_ff)
        shared = (
            _feedforward_sizes(settings.expert, d_model, settings.n_shared * d_ff) if settings.n_shared else Sizes()
        )
        return Sizes(
            d_model * settings.n_experts + settings.n_experts * one.matrices + shared.matrices,
            settings.n_experts * one.vectors + shared.vectors,
            idle=(settings.n_experts - settings.n_active) * one.matrices,
        )
    n_matrices = 3 if isinstance(settings, SwiGLU | GeGLU) else 2
    return Sizes(n_matrices * d_model * d_ff, (n_matrices - 1) * d_ff + d_model if settings.bias else 0)
