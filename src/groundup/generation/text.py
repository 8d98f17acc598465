"""Text around the engine: prompts in, whole characters out, stop strings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from groundup.generation.engine import Look, continue_ids
from groundup.generation.settings import Sampling
from groundup.model.transformer import Transformer, evaluating
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.vocabulary import whole_characters, without_first_space


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str = "",
    *,
    stop: str | Iterable[str] = (),
    **sampling: Any,
) -> str:
    """What the model writes after `prompt`.

    Args:
        tokenizer: the model's own; its opener goes before the prompt.
        stop: texts that end the answer; they are not part of it.
        sampling: fields of `groundup.generation.settings.Sampling`: `max_tokens`, `temperature`, `top_k`, `top_p` and
            `seed`; None for what is not set.

    Raises:
        SettingsError: an option that cannot be, or a prompt longer than the context.

    >>> from groundup.model.settings import ModelConfig
    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> text = generate(model, tokenizer, "low", max_tokens=9, seed=1)
    >>> text == generate(model, tokenizer, "low", max_tokens=9, seed=1)
    True
    """
    given = {name: value for name, value in sampling.items() if value is not None}
    given["stop"] = [stop] if isinstance(stop, str) else list(stop)
    with evaluating(model):
        return "".join(stream(model, tokenizer, prompt, Sampling.from_table(given, "generate")))


def stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    sampling: Sampling,
    look: Look | None = None,
) -> Iterator[str]:
    """`generate` in parts as they come: never half a character, never a part of a stop string.

    Args:
        model: writes after the `prompt`.
        tokenizer: the model's own.
        prompt: a text, before which its opener goes; or ids, which are read as they are.
        sampling: all the options of `generate`.
        look: is shown each id that was chosen and the logits, (V,), that it was chosen by.

    >>> from groundup.model.settings import ModelConfig
    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> parts = list(stream(model, tokenizer, "low", Sampling(max_tokens=9, seed=1)))
    >>> "".join(parts) == generate(model, tokenizer, "low", max_tokens=9, seed=1)
    True
    """
    roles, rows = tokenizer.roles, model.config.vocab_size or 0
    opener = [] if roles.opener is None else [roles.opener]
    ids = [*opener, *tokenizer.encode(prompt)] if isinstance(prompt, str) else list(prompt)
    tokenizer.refuse_without_row(ids, rows)
    never = [i for i in reserved(tokenizer) if i < rows]
    silent = {*tokenizer.special.values()}
    tokens = [b"" if i in silent else token for i, token in enumerate(tokenizer.tokens)]
    parts: Iterator[bytes] = (
        # A model's vocabulary may be padded beyond its tokenizer's; such an id has no text.
        tokens[i] if i < len(tokens) else b""
        for i in continue_ids(model, ids, sampling, roles.stops, never, look)
    )
    if tokenizer.begins_with_space and not prompt:
        parts = without_first_space(parts)
    return until_stop(whole_characters(parts), sampling.stop)


def reserved(tokenizer: Tokenizer) -> list[int]:
    """The special tokens of a vocabulary of ours that pretraining never shows: a model scores them at random."""
    if "<|reserved_0|>" not in tokenizer.special:
        return []
    return [i for i in tokenizer.special.values() if i not in tokenizer.roles.stops and i != tokenizer.roles.opener]


@dataclass
class Probabilities:
    """Collects, as a `look`, how sure the model was of each token that was chosen, and what it thought of instead."""

    tokenizer: Tokenizer
    alternatives: int = 3
    chosen: list[dict[str, Any]] = field(default_factory=list)
    """`id`, `text` and `probability` (of the model, at temperature 1), and `instead`: the same of the likeliest others.
    Different ids may have the same text: bytes that are half a character."""

    def __call__(self, chosen: int, logits: Float[Tensor, "V"]) -> None:
        shares = logits.float().softmax(dim=0)
        best = shares.topk(min(self.alternatives + 1, len(shares))).indices.tolist()
        others = [i for i in best if i != chosen][: self.alternatives]
        self.chosen.append({**self._describe(chosen, shares), "instead": [self._describe(i, shares) for i in others]})

    def _describe(self, token: int, shares: Float[Tensor, "V"]) -> dict[str, Any]:
        return {"id": token, "text": self._text(token), "probability": shares[token].item()}

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token]) if token < self.tokenizer.vocab_size else f"(id {token})"


def until_stop(parts: Iterable[str], stop: tuple[str, ...]) -> Iterator[str]:
    """The text before the first stop string, wherever the parts cut it.

    >>> "".join(until_stop(["one t", "wo th", "ree"], ("two",)))
    'one '
    """
    waiting = ""
    for part in parts:
        waiting += part
        found = [waiting.find(text) for text in stop if text in waiting]
        if found:
            if before := waiting[: min(found)]:
                yield before
            return
        held = max((_overlap(waiting, text) for text in stop), default=0)
        if ready := waiting[: len(waiting) - held]:
            yield ready
        waiting = waiting[len(waiting) - held :]
    if waiting:
        yield waiting


def _overlap(text: str, stop: str) -> int:
    """How much of the end of `text` could be the beginning of `stop`."""
    return max((n for n in range(1, min(len(text), len(stop)) + 1) if text.endswith(stop[:n])), default=0)
