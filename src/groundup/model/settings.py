"""Settings of the model: its sizes, and which block stands in each place."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from groundup.settings import Settings


class LearnedPosition(Settings):
    """A learned vector for each position, added to the token's (GPT-2)."""

    kind: Literal["learned"] = "learned"


class Rotary(Settings):
    """Queries and keys turned by angles that grow with position (Su et al. 2021, arXiv:2104.09864)."""

    kind: Literal["rotary"] = "rotary"
    base: float = Field(default=10_000.0, gt=1)
    """The slowest pair of channels turns once in about 2π × base positions."""


class LayerNorm(Settings):
    """Subtract the mean, divide by the standard deviation (Ba et al. 2016, arXiv:1607.06450)."""

    kind: Literal["layernorm"] = "layernorm"
    epsilon: float = Field(default=1e-5, gt=0)
    """Added to the variance, so that nothing is divided by nought."""
    bias: bool = True
    """A learned shift besides the gain."""


class RMSNorm(Settings):
    """Divide by the root mean square (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    epsilon: float = Field(default=1e-5, gt=0)
    """Added to the mean square, so that nothing is divided by nought."""


class GroupedQuery(Settings):
    """Attention whose key/value heads are each shared by a group of query heads (Ainslie et al. 2023,
    arXiv:2305.13245); with as many key/value as query heads it is multi-head attention."""

    kind: Literal["grouped_query"] = "grouped_query"
    bias: bool = False
    """A bias on query, key, value and output."""
    qk_norm: bool = False
    """RMS-normalise each query and key head before they meet (Dehghani et al. 2023, arXiv:2302.05442)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights set to zero in training."""


class GELU(Settings):
    """Two matrices with a Gaussian error linear unit between (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    kind: Literal["gelu"] = "gelu"
    approximate: Literal["tanh", "none"] = "tanh"
    """`tanh` is GPT-2's approximation, `none` the exact function."""
    bias: bool = True
    """A bias on both matrices."""


class SwiGLU(Settings):
    """Two matrices, the first gated by the SiLU of a third (Shazeer 2020, arXiv:2002.05202)."""

    kind: Literal["swiglu"] = "swiglu"
    bias: bool = False
    """A bias on all three matrices."""


Position = Annotated[LearnedPosition | Rotary, Field(discriminator="kind")]
Norm = Annotated[LayerNorm | RMSNorm, Field(discriminator="kind")]
FeedForward = Annotated[GELU | SwiGLU, Field(discriminator="kind")]


class ModelConfig(Settings):
    """A decoder-only Transformer. The defaults are Llama's shape; `presets.py` has published ones by name."""

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
    """Width inside the feed-forward; `4 × d_model` if not set."""
    position: Position = Rotary()
    norm: Norm = RMSNorm()
    attention: GroupedQuery = GroupedQuery()
    feedforward: FeedForward = SwiGLU()
    tied_embeddings: bool = True
    """One matrix reads tokens in and scores them out."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations set to zero in training: after the embedding and after every sublayer."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "ModelConfig":
        if self.d_head is None and self.d_model % self.n_heads:
            below = max(n for n in range(1, self.n_heads + 1) if self.d_model % n == 0)
            raise ValueError(
                f"n_heads = {self.n_heads} does not divide d_model = {self.d_model}; nearest number of heads: {below}, "
                f"nearest width: {round(self.d_model / self.n_heads) * self.n_heads or self.n_heads}; or set d_head"
            )
        if self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_kv_heads = {self.kv_heads} does not divide n_heads = {self.n_heads}: each key/value head serves "
                "equally many query heads"
            )
        if isinstance(self.position, Rotary) and self.head_width % 2:
            raise ValueError(f"rotary position turns pairs of channels, but a head has {self.head_width}; make it even")
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def feedforward_width(self) -> int:
        return self.d_ff or 4 * self.d_model

    def with_vocabulary(self, vocab_size: int) -> "ModelConfig":
        """The same model over a vocabulary of this size."""
        return self.model_copy(update={"vocab_size": vocab_size})
