"""Decoder-only Transformer.

B batch, T time, D width, H query heads, G key/value heads, K head width, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.model.attention import Attend, Causal, GroupedQueryAttention
from groundup.model.feedforward import make_feedforward
from groundup.model.position import Rotation, make_position
from groundup.model.settings import LayerNorm, ModelConfig, RMSNorm

Tap = Callable[[str, Tensor], None]
"""Is shown by name what enters the stream of vectors and what the stream then is, such as `blocks.3.attention`."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = GroupedQueryAttention(config, layer)
        self.feedforward_norm = make_norm(config)
        self.feedforward = make_feedforward(config)
        self.dropout = config.dropout

    def forward(
        self, x: Float[Tensor, "B T D"], rotation: Rotation | None, attend: Attend, tap: Tap
    ) -> Float[Tensor, "B T D"]:
        attention = self.attention(self.attention_norm(x), rotation, attend)
        tap("attention", attention)
        x = x + F.dropout(attention, self.dropout, self.training)
        feedforward = self.feedforward(self.feedforward_norm(x))
        tap("feedforward", feedforward)
        return x + F.dropout(feedforward, self.dropout, self.training)


class Transformer(nn.Module):
    """Tokens in, a score for every possible next token out.

    Raises:
        ValueError: for a config without a `vocab_size`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("ModelConfig.vocab_size is not set: use config.with_vocabulary(tokenizer.vocab_size)")
        self.config = config
        self.embed: nn.Embedding | None = nn.Embedding(config.vocab_size, config.d_model)
        self.position = make_position(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config)
        self.head: nn.Linear | None = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embed.weight
        initialise(self)

    def forward(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B T D"],
        position: Int[Tensor, "B T"] | None = None,
        attend: Attend | None = None,
    ) -> Float[Tensor, "B T V"]:
        """The logits of the token after each position."""
        return self.logits(self.hidden(tokens, position, attend))

    def hidden(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B T D"],
        position: Int[Tensor, "B T"] | None = None,
        attend: Attend | None = None,
        tap: Tap | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The last hidden state of each position.

        Args:
            tokens: ids; hidden states where `embed` is None, as in the later stages of a pipeline.
            position: of each token in its document; 0..T−1 if not given.
            attend: which keys each query may read; all before it if not given.
            tap: is shown what each sublayer adds, and the stream after each block.
        """
        tap = tap or _no_tap
        if position is None:
            position = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        attend = attend or Causal()
        x = tokens if self.embed is None else self.embed(tokens)
        x, rotation = self.position(x, position)
        x = F.dropout(x, self.config.dropout, self.training)
        tap("embed", x)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, attend, lambda name, tensor, layer=layer: tap(f"blocks.{layer}.{name}", tensor))
            tap(f"blocks.{layer}", x)
        hidden: Tensor = self.norm(x)
        tap("norm", hidden)
        return hidden

    def logits(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """Scores over the vocabulary; the hidden states themselves where `head` is None."""
        scores: Tensor = hidden if self.head is None else self.head(hidden)
        return scores


def _no_tap(name: str, tensor: Tensor) -> None:
    """For callers who do not look inside."""


def make_norm(config: ModelConfig) -> nn.Module:
    match config.norm:
        case LayerNorm(epsilon=epsilon, bias=bias):
            return nn.LayerNorm(config.d_model, eps=epsilon, bias=bias)
        case RMSNorm(epsilon=epsilon):
            return nn.RMSNorm(config.d_model, eps=epsilon)


@torch.no_grad()
def initialise(model: Transformer) -> None:
    """GPT-2's initialisation, all of it.

    Every matrix is drawn from a normal distribution of standard deviation 0.02, every bias is zero, every gain one.
    The two matrices of a block that write into the residual stream are drawn 1/√(2 n_layers) as wide: the stream adds
    up 2 n_layers independent terms, so its variance at the top then does not grow with depth (Radford et al. 2019,
    section 2.3).
    """
    residual_deviation = 0.02 / math.sqrt(2 * model.config.n_layers)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name.endswith(("attention.out.weight", "feedforward.down.weight")):
            parameter.normal_(0.0, residual_deviation)
        else:
            parameter.normal_(0.0, 0.02)
