"""Decoder-only Transformer.

B batch, T time, D width, V vocabulary.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.model.attention import Attend, Causal, GroupedQueryAttention
from groundup.model.draw import drawn, key, local_part
from groundup.model.dropout import ATTENTION, FEEDFORWARD, Dropout, position_keys
from groundup.model.feedforward import AuxiliaryLosses, Tap, make_feedforward, no_tap, under
from groundup.model.latent import LatentAttention
from groundup.model.norm import make_norm
from groundup.model.position import Position, PositionTerms, table, terms_at
from groundup.model.settings import (
    Classes,
    Experts,
    GroupedQuery,
    LanguageModel,
    Latent,
    ModelConfig,
    Parallel,
    Scalar,
    Sequential,
)
from groundup.model.unfit import refuse_unfit, row_of


class SequentialBlock(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)); or with the norms in other places."""

    def __init__(self, config: ModelConfig, settings: Sequential, layer: int) -> None:
        super().__init__()

        def norm_if(*places: str) -> nn.Module:
            return make_norm(config.norm, config.d_model) if settings.norm in places else nn.Identity()

        self.attention_norm = norm_if("before", "around")
        self.attention = make_attention(config, layer)
        self.attention_output_norm = norm_if("output", "around")
        self.attention_sum_norm = norm_if("after")
        self.feedforward_norm = norm_if("before", "around")
        self.feedforward = make_feedforward(config)
        self.feedforward_output_norm = norm_if("output", "around")
        self.feedforward_sum_norm = norm_if("after")
        self.attention_dropout = Dropout(config.dropout, ATTENTION)
        self.feedforward_dropout = Dropout(config.dropout, FEEDFORWARD)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        terms: PositionTerms | None = None,
        attend: Attend | None = None,
        tap: Tap = no_tap,
    ) -> Float[Tensor, "B T D"]:
        keys = None if terms is None else terms.keys
        attention = self.attention_output_norm(self.attention(self.attention_norm(x), terms, attend))
        tap("attention", attention)
        x = self.attention_sum_norm(x + self.attention_dropout(attention, keys))
        feedforward = self.feedforward(self.feedforward_norm(x), under("feedforward", tap))
        feedforward = self.feedforward_output_norm(feedforward)
        tap("feedforward", feedforward)
        output: Tensor = self.feedforward_sum_norm(x + self.feedforward_dropout(feedforward, keys))
        return output


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + feedforward(norm(x))."""

    def __init__(self, config: ModelConfig, settings: Parallel, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config.norm, config.d_model)
        self.attention = make_attention(config, layer)
        self.feedforward_norm = None if settings.shared_norm else make_norm(config.norm, config.d_model)
        self.feedforward = make_feedforward(config)
        self.attention_dropout = Dropout(config.dropout, ATTENTION)
        self.feedforward_dropout = Dropout(config.dropout, FEEDFORWARD)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        terms: PositionTerms | None = None,
        attend: Attend | None = None,
        tap: Tap = no_tap,
    ) -> Float[Tensor, "B T D"]:
        normed = self.attention_norm(x)
        attention = self.attention(normed, terms, attend)
        tap("attention", attention)
        feedforward = self.feedforward(
            normed if self.feedforward_norm is None else self.feedforward_norm(x), under("feedforward", tap)
        )
        tap("feedforward", feedforward)
        keys = None if terms is None else terms.keys
        output: Tensor = x + self.attention_dropout(attention, keys) + self.feedforward_dropout(feedforward, keys)
        return output


def make_attention(config: ModelConfig, layer: int) -> nn.Module:
    match config.attention:
        case GroupedQuery() as settings:
            return GroupedQueryAttention(config, settings, layer)
        case Latent() as settings:
            return LatentAttention(config, settings, layer)


def make_block(config: ModelConfig, layer: int) -> nn.Module:
    """The block that `config` describes, to be called as `block(x)`, or as in `Transformer.hidden`.

    Args:
        layer: its number from 0, for an `Attend` that remembers keys and values.

    >>> block = make_block(ModelConfig(d_model=16), layer=0)
    >>> block(torch.randn(2, 10, 16)).shape
    torch.Size([2, 10, 16])
    """
    match config.block:
        case Sequential() as settings:
            return SequentialBlock(config, settings, layer)
        case Parallel() as settings:
            return ParallelBlock(config, settings, layer)


class MultiTokenHead(nn.Module):
    """One more block and norm: from each last hidden state to one from which the same head reads a later token."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.block = make_block(config, layer)
        self.norm = make_norm(config.norm, config.d_model)

    def forward(self, x: Float[Tensor, "B T D"], *block_arguments: Any) -> Float[Tensor, "B T D"]:
        hidden: Tensor = self.norm(self.block(x, *block_arguments))
        return hidden


class Transformer(nn.Module):
    """Tokens in, a score for every possible next token out.

    Args:
        config: sizes and kinds of everything, with a `vocab_size`.
        seed: of the weights; drawn from torch's generator if not given.

    Raises:
        ValueError: for a config without a `vocab_size`.

    >>> model = Transformer(ModelConfig(vocab_size=320, context_length=32, d_model=16, n_layers=2)).eval()
    >>> tokens = torch.tensor([[72, 101, 108, 108, 111]])
    >>> model(tokens).shape, torch.equal(model(tokens), model.logits(model.hidden(tokens)))
    (torch.Size([1, 5, 320]), True)
    >>> hidden, auxiliary = model.hidden_and_auxiliary(tokens)
    >>> torch.equal(hidden, model.hidden(tokens)), auxiliary  # only mixtures of experts have auxiliary losses
    (True, None)
    """

    def __init__(self, config: ModelConfig, seed: int | None = None) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("ModelConfig.vocab_size is not set: use config.with_vocabulary(tokenizer.vocab_size)")
        self.config = config
        d_embedding = config.d_embedding or config.d_model
        self.embed: nn.Embedding | None = table(config.vocab_size, d_embedding)
        self.project_in = nn.Linear(d_embedding, config.d_model, bias=False) if config.d_embedding else nn.Identity()
        self.embedding_norm = make_norm(config.norm, config.d_model) if config.embedding_norm else nn.Identity()
        self.position = Position(config)
        # By number, so that the stage of a pipeline that holds blocks 6 to 11 has them under these names.
        self.blocks = nn.ModuleDict({str(layer): make_block(config, layer) for layer in range(config.n_layers)})
        self.dropout = Dropout(config.dropout, number=0)
        self.keys: Int[Tensor, "B 1"] | Int[Tensor, "B T"] | None = None
        """What dropout depends on: a key for each row (`row_keys`), or for each position, of what is read next in
        training; drawn from torch's generator if not set."""
        self.norm = nn.Identity() if config.block.ends_normed else make_norm(config.norm, config.d_model)
        self.project_out: nn.Module = nn.Identity()
        self.soft_cap: float | None = None
        self.head: nn.Linear | None
        match config.head:
            case LanguageModel(bias=bias, soft_cap=soft_cap):
                if config.d_embedding:
                    self.project_out = nn.Linear(config.d_model, d_embedding, bias=False)
                self.head = nn.Linear(d_embedding, config.vocab_size, bias=bias)
                self.soft_cap = soft_cap
            case Classes(n_classes=n_classes):
                self.head = nn.Linear(config.d_model, n_classes, bias=False)
            case Scalar():
                self.head = nn.Linear(config.d_model, 1, bias=False)
        self.multi_token = nn.ModuleList()
        """What a loss reads the second token from, the third, …; empty but in training with that loss."""
        self.logprobs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        """(logits, targets) → log p(target), log Σ exp(logits), where in training `logits` gives only some scores."""
        self.earlier_auxiliary: Tensor | None = None
        """(B, T) what the stages before ask the loss to add for each token, in a pipeline."""
        self.tie()
        initialise(self, config.n_layers, seed)

    @property
    def has_auxiliary_losses(self) -> bool:
        """Whether its blocks ask the loss to add something for each token.

        >>> Transformer(ModelConfig(vocab_size=8, d_model=16, feedforward=Experts(n_experts=2))).has_auxiliary_losses
        True
        """
        return isinstance(self.config.feedforward, Experts)

    def add_multi_token(self, n: int, seed: int | None = None) -> None:
        """Add heads for the `n` tokens after the next one, for `hidden_multi_token`; `forward` does without.

        Args:
            n: how many.
            seed: of their weights; drawn from torch's generator if not given.

        >>> model = Transformer(ModelConfig(vocab_size=8, d_model=16))
        >>> model.add_multi_token(2)
        >>> tokens = torch.tensor([[1, 2, 3]])
        >>> states = model.hidden_multi_token(model.hidden(tokens), torch.tensor([[0, 1, 2]]), Causal())
        >>> [model.logits(state).shape for state in states]
        [torch.Size([1, 3, 8]), torch.Size([1, 3, 8])]
        """
        layers = range(self.config.n_layers, self.config.n_layers + n)
        self.multi_token.extend(MultiTokenHead(self.config, layer) for layer in layers)
        initialise(self.multi_token, self.config.n_layers, seed, "multi_token.")

    def tie(self) -> None:
        """Let the head score with the embedding's own matrix, if the config says so and both are here; needed where
        either was replaced.

        >>> model = Transformer(ModelConfig(vocab_size=8, d_model=16))
        >>> model.embed = nn.Embedding(8, 16)
        >>> model.tie()
        >>> model.is_tied, model.head.weight is model.embed.weight
        (True, True)
        """
        if self.is_tied and self.head is not None and self.embed is not None:
            self.head.weight = self.embed.weight

    @property
    def is_tied(self) -> bool:
        """Whether head and embedding are to be one matrix."""
        return isinstance(self.config.head, LanguageModel) and self.config.head.tied

    def forward(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B T D"],
        position: Int[Tensor, "B T"] | None = None,
        attend: Attend | None = None,
    ) -> Float[Tensor, "B T V"]:
        """The logits of the token after each position: `logits` of `hidden`, which tells what `tokens`, `position` and
        `attend` are. A model is called, `model(tokens)`, and not its `forward`.

        >>> Transformer(ModelConfig(vocab_size=8, d_model=16))(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 8])
        """
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
            tokens: ids; hidden states where `embed` is None, as in the later stages of a pipeline. The last norm comes
                where there is a `head`.
            position: of each token in its document; 0..T−1 if not given.
            attend: which keys each query may read; all before it if not given.
            tap: is shown what each sublayer adds, and the stream after each block.

        Shown as `embed`, `blocks.3.attention`, `blocks.3.feedforward`, `blocks.3`, …, `norm`, and what a sublayer
        shows of itself, such as `blocks.3.feedforward.router`.

        Raises:
            ValueError: shapes that do not fit, or more tokens than `context_length`.
            TypeError: tokens that are not ids.
            IndexError: ids or positions that are not in their table, on a CPU.
        """
        return self.hidden_and_auxiliary(tokens, position, attend, no_tap if tap is None else tap)[0]

    def hidden_and_auxiliary(
        self,
        tokens: Int[Tensor, "B T"] | Float[Tensor, "B T D"],
        position: Int[Tensor, "B T"] | None = None,
        attend: Attend | None = None,
        tap: Tap = no_tap,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T"] | None]:
        """`hidden`, and the sum of what blocks ask the loss to add for each token; None if they ask for nothing.

        Args:
            tokens, position, attend, tap: those of `hidden`.
        """
        refuse_unfit(self.config, self.embed is not None, tokens, position)
        if position is None:
            position = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        attend = self._prepared(Causal() if attend is None else attend, tokens)
        if self.embed is None:
            x, terms = tokens, self._with_keys(terms_at(self.config, tokens, position), tokens)
        else:
            x, terms = self.position(self._embedded(tokens), position)
            terms = self._with_keys(terms, tokens)
            x = self.dropout(x, terms.keys)
            tap("embed", x)
        asked = AuxiliaryLosses(self.earlier_auxiliary)
        inside = asked.beside(tap) if self.has_auxiliary_losses else tap
        for layer, block in self.blocks.items():
            x = block(x, terms.in_layer(int(layer)), attend, under(f"blocks.{layer}", inside))
            tap(f"blocks.{layer}", x)
        if self.head is not None:
            x = self.norm(x)
            tap("norm", x)
        return x, asked.total()

    def hidden_multi_token(
        self, hidden: Float[Tensor, "B T D"], position: Int[Tensor, "B T"], attend: Attend, tap: Tap = no_tap
    ) -> list[Float[Tensor, "B T D"]]:
        """Hidden states for the second token, the third, …, one for each head that was added.

        Args:
            hidden: the last hidden states, made with the same `position` and `attend`.
            tap: as in `hidden`; sees what the added blocks compute.
        """
        terms, attend = self._with_keys(terms_at(self.config, hidden, position), hidden), self._prepared(attend, hidden)
        layers = range(self.config.n_layers, self.config.n_layers + len(self.multi_token))
        heads = zip(layers, self.multi_token, strict=True)
        return [head(hidden, terms.in_layer(layer), attend, tap) for layer, head in heads]

    def _with_keys(self, terms: PositionTerms, x: Tensor) -> PositionTerms:
        """With a key for each position of `x`, if the model drops something by its `keys`."""
        if self.keys is None or not (self.training and self.config.drops):
            return terms
        if len(self.keys) != len(x):
            raise ValueError(
                f"model.keys are of {len(self.keys)} rows, and {len(x)} are read: set it to row_keys(…) of these rows, "
                "or to None"
            )
        return replace(terms, keys=position_keys(self.keys, x.shape[1]))

    def _prepared(self, attend: Attend, x: Tensor) -> Attend:
        """With what it makes once for all layers, if it makes such things."""
        prepare = getattr(attend, "prepared", None)
        return attend if prepare is None else prepare(x.shape[1], x.device, self.config.attention.windows)

    def _embedded(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        assert self.embed is not None, "asked for only where there is one"
        x = row_of(self.embed, tokens, "ids of tokens")
        if self.config.embedding_scale is not None:
            x = x * self.config.embedding_scale
        embedded: Tensor = self.embedding_norm(self.project_in(x))
        return embedded

    def logits(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """Scores over the vocabulary, the classes, or one number; the hidden states where `head` is None."""
        if self.head is None:
            return hidden
        scores: Tensor = self.head(self.project_out(hidden))
        return scores if self.soft_cap is None else self.soft_cap * torch.tanh(scores / self.soft_cap)


@torch.no_grad()
def initialise(module: nn.Module, n_layers: int, seed: int | None = None, prefix: str = "") -> None:
    """GPT-2's initialisation, but for its table of positions, which has 0.01 there.

    Every matrix is drawn from a normal distribution of standard deviation 0.02, every bias is zero, every gain one.
    The two matrices of a block that write into the residual stream are drawn 1/√(2 n_layers) as wide: the stream adds
    up 2 n_layers independent terms, so its variance at the top then does not grow with depth (Radford et al. 2019,
    section 2.3). A new block is known by its names: what writes into the stream is called `out` or `down`, a parameter
    of one axis that is no `bias` is a gain.

    A weight depends on the seed, its name in the whole model and its place in the whole tensor alone: a stage of a
    pipeline and a rank that holds parts of tensors have the bits of the whole model.

    Args:
        module: a model or a part of it; what is on the meta device stays without values.
        n_layers: those of the whole model.
        seed: drawn from torch's generator if not given.
        prefix: what comes before the names that `module` has, in the whole model.
    """
    residual_deviation = 0.02 / math.sqrt(2 * n_layers)
    here = [(prefix + name, parameter) for name, parameter in module.named_parameters() if not parameter.is_meta]
    if seed is None and here:
        seed = int(torch.randint(1 << 62, (), device="cpu"))
    for name, parameter in here:
        if name.endswith(".bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            deviation = residual_deviation if name.endswith((".out.weight", ".down.weight")) else 0.02
            if name == "head.weight" and isinstance(module, Transformer) and module.is_tied:
                name = "embed.weight"  # the last stage of a pipeline has a copy of it
            part, ranges = local_part(parameter)
            part.copy_(drawn(key(seed or 0, name), parameter.shape, ranges, deviation, part.dtype))


@contextlib.contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """Inside, the model has no dropout and no gradients; afterwards it is in the mode that it was in."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()
