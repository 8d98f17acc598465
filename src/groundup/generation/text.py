"""Text around the engine: prompts in, whole characters out, stop strings."""

import codecs
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from groundup.errors import SettingsError
from groundup.generation.constrain import constraint_of
from groundup.generation.engine import Chosen, Ending, Engine, Request, write_all
from groundup.generation.settings import Sampling
from groundup.generation.uncached import continue_uncached
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""A text, before which the tokenizer's opener goes, or ids as they are."""


@overload
def generate(
    model: Transformer, tokenizer: Tokenizer, prompt: str = "", *, stream: Literal[True], **options: Any
) -> Iterator[str]: ...
@overload
def generate(model: Transformer, tokenizer: Tokenizer, prompt: str = "", **options: Any) -> str: ...
@overload
def generate(model: Transformer, tokenizer: Tokenizer, prompt: Sequence[str], **options: Any) -> list[str]: ...
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str] = "",
    *,
    stream: bool = False,
    stop: str | Iterable[str] = (),
    **sampling: Any,
) -> str | list[str] | Iterator[str]:
    """What the model writes after `prompt`; or, after several prompts, a text for each, computed together.

    Args:
        tokenizer: the model's own; its opener goes before the prompt.
        stream: give the text in parts, as they come.
        stop: texts that end the answer; they are not part of it.
        sampling: fields of `groundup.generation.settings.Sampling`, such as `max_tokens`, `temperature`, `top_p` and
            `seed`; None for what is not set. Of several prompts each has the next seed.

    Raises:
        SettingsError: an option that cannot be, or a prompt longer than the context.

    >>> from groundup.model.settings import ModelConfig
    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> text = generate(model, tokenizer, "low", max_tokens=9, seed=1)
    >>> text == "".join(generate(model, tokenizer, "low", stream=True, max_tokens=9, seed=1))
    True
    >>> text == generate(model, tokenizer, ["lower", "low"], max_tokens=9, seed=0)[1]
    True
    """
    given = {name: value for name, value in sampling.items() if value is not None}
    given["stop"] = [stop] if isinstance(stop, str) else list(stop)
    settings = Sampling.from_table(given, "generate")
    if isinstance(prompt, str):
        parts = _parts(model, tokenizer, prompt, settings)
        return parts if stream else "".join(parts)
    if stream:
        raise SettingsError("stream gives one text in parts: give one prompt, not a list")
    writer = Writer(model, tokenizer, most_requests=len(prompt))
    return [answer.text for answer in writer.write(prompt, settings)]


def stream(model: Transformer, tokenizer: Tokenizer, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
    """`generate` in parts as they come: never half a character, never a part of a stop string.

    Args:
        prompt: a text, or ids.
        sampling: all the options of `generate`.

    >>> from groundup.model.settings import ModelConfig
    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> parts = list(stream(model, tokenizer, "low", Sampling(max_tokens=9, seed=1)))
    >>> "".join(parts) == generate(model, tokenizer, "low", max_tokens=9, seed=1)
    True
    """
    # Cut over ranks, or wrapped by what cuts it (FSDP makes a class of its own, and may leave weights gathered).
    if type(model) is not Transformer or hasattr(next(model.parameters()), "device_mesh"):
        text = Text(tokenizer, sampling.stop, follows=bool(prompt))
        stops, never = tokenizer.roles.stops, reserved(tokenizer, model)
        for id in continue_uncached(model, ids_of(tokenizer, model, prompt), sampling, stops, never):
            yield text.add([id])
            if text.is_stopped:
                return
        yield text.end()
        return
    writer = Writer(model, tokenizer, most_requests=1)
    yield from writer.parts(writer.submit(prompt, sampling))


_parts = stream  # for `generate`, which has an argument of that name


@dataclass(eq=False)
class Answer:
    """A text that grows as the steps of its `Writer` are made, until `ending` is set."""

    request: Request
    unfinished: "Text"
    text: str = ""
    read: int = 0
    """How many of the request's ids are in `unfinished`."""

    @property
    def ending(self) -> Ending | None:
        """`stop` also where a stop string ended it."""
        return self.request.ending


class Writer:
    """Continues texts, many together, with an engine.

    Args:
        tokenizer: the model's own.
        engine: its further arguments, such as `most_requests`.

    >>> from groundup.model.settings import ModelConfig
    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> writer = Writer(Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1)), tokenizer)
    >>> answer, other = (writer.submit(text, Sampling(max_tokens=5)) for text in ("low", "lower"))
    >>> _ = writer.step()
    >>> "".join(writer.parts(answer)) == writer.write(["low"], Sampling(max_tokens=5))[0].text
    True
    >>> answer.ending, len(other.request.answer)  # it got on meanwhile
    ('length', 5)
    >>> writer.cancel(writer.submit("low", Sampling()))
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, **engine: Any) -> None:
        self.tokenizer, self.model = tokenizer, model
        self.engine = Engine(model, never=reserved(tokenizer, model), **engine)
        self._answers: dict[Request, Answer] = {}

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        stops: Collection[int] | None = None,
        best: int | None = None,
        echo: int = 0,
    ) -> Answer:
        """Let a text wait to be continued by `step`.

        Args:
            prompt: a text, or ids.
            sampling: how ids are chosen, how many, and what text ends the answer.
            stops: ids that end the answer; the tokenizer's if not given.
            best, echo: as of `Engine.submit`.

        Raises:
            SettingsError: what cannot be read or followed.
        """
        stops = self.tokenizer.roles.stops if stops is None else stops
        request = self.engine.submit(
            ids_of(self.tokenizer, self.model, prompt),
            sampling,
            stops=stops,
            constraint=constraint_of(sampling, self.tokenizer, stops),
            best=best,
            echo=echo,
        )
        answer = Answer(request, Text(self.tokenizer, sampling.stop, follows=bool(prompt)))
        if request.ending is None:
            self._answers[request] = answer
        return answer

    def step(self) -> list[Answer]:
        """Compute one step, and give the answers that got on."""
        found = []
        for request in self.engine.step():
            answer = self._answers[request]
            answer.text += answer.unfinished.add(request.answer[answer.read :])
            answer.read = len(request.answer)
            if answer.unfinished.is_stopped:
                self.engine.cancel(request, "stop")
                request.ending = "stop"
            elif request.ending is not None:
                answer.text += answer.unfinished.end()
            if request.ending is not None:
                del self._answers[request]
            found.append(answer)
        return found

    def parts(self, answer: Answer) -> Iterator[str]:
        """An answer's text in parts as they come; others get on meanwhile. Who stops asking for parts cancels it.

        Raises:
            GroundupError: as it failed.
        """
        said = 0
        try:
            while answer.ending is None or said < len(answer.text):
                if said < len(answer.text):
                    part, said = answer.text[said:], len(answer.text)
                    yield part
                else:
                    self.step()
        finally:
            self.cancel(answer)
        if answer.request.error is not None:
            raise answer.request.error

    def cancel(self, answer: Answer) -> None:
        """End an answer before its time."""
        self.engine.cancel(answer.request)
        self._answers.pop(answer.request, None)

    def write(
        self, prompts: Iterable[Prompt], sampling: Sampling, *, n: int = 1, best_of: int | None = None, **told: Any
    ) -> list[Answer]:
        """`n` answers to each prompt, in order, the next seed for each.

        Args:
            prompts: texts, or ids.
            sampling: as of `submit`.
            best_of: write so many for each prompt, and give the `n` that are likeliest as a whole.
            told: `best` and `echo`, as of `submit`.

        Raises:
            SettingsError, DivergedError: as of the first answer that fails.
        """
        return write_all(self, lambda answer: answer.request, prompts, sampling, n, best_of, **told)


class Text:
    """The text of an answer, as its ids come: whole characters, up to the first stop string.

    Args:
        stop: texts of which the first that comes ends the answer.
        follows: whether there is text before it; the first of a vocabulary that writes its spaces before the words
            loses its space.

    >>> text = Text(Tokenizer.learn(["low lower lowest"], vocab_size=320), stop=("er",), follows=True)
    >>> [text.add(text.tokenizer.encode(part)) for part in ("low", "e", "r", "low")], text.is_stopped
    (['low', '', '', ''], True)
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], follows: bool) -> None:
        self.tokenizer, self.stop, self.is_stopped = tokenizer, stop, False
        self._silent = {*tokenizer.special.values()}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = follows or not tokenizer.begins_with_space
        self._waiting = ""
        """What could be the beginning of a stop string."""

    def add(self, ids: Iterable[int]) -> str:
        """What these ids complete."""
        return "" if self.is_stopped else self._until_stop(self._decoder.decode(b"".join(map(self._bytes, ids))))

    def end(self) -> str:
        """What waited; half a character is U+FFFD now."""
        if self.is_stopped:
            return ""
        text = self._until_stop(self._decoder.decode(b"", final=True))
        return text if self.is_stopped else text + self._waiting

    def _bytes(self, id: int) -> bytes:
        # A model's vocabulary may be padded beyond its tokenizer's; such an id has no text.
        if id in self._silent or id >= len(self.tokenizer.tokens):
            return b""
        token = self.tokenizer.tokens[id]
        if not self._begun:
            self._begun, token = bool(token), token.removeprefix(b" ")
        return token

    def _until_stop(self, more: str) -> str:
        self._waiting += more
        found = [self._waiting.find(text) for text in self.stop if text in self._waiting]
        if found:
            self.is_stopped = True
            return self._waiting[: min(found)]
        begun = (n for text in self.stop for n in range(len(text)) if self._waiting.endswith(text[:n]))
        ready = self._waiting[: len(self._waiting) - max(begun, default=0)]
        self._waiting = self._waiting[len(ready) :]
        return ready


def ids_of(tokenizer: Tokenizer, model: Transformer, prompt: Prompt) -> list[int]:
    """The ids of a prompt, of which the model has a row each."""
    if isinstance(prompt, str):
        opener = tokenizer.roles.opener
        ids = [*([] if opener is None else [opener]), *tokenizer.encode(prompt)]
    else:
        ids = list(prompt)
    tokenizer.refuse_without_row(ids, model.config.vocab_size or 0)
    return ids


def reserved(tokenizer: Tokenizer, model: Transformer) -> list[int]:
    """The special tokens of a vocabulary of ours that pretraining never shows: a model scores them at random."""
    if not tokenizer.is_ours:
        return []
    seen = {*tokenizer.roles.stops, tokenizer.roles.opener}
    return [i for i in tokenizer.special.values() if i not in seen and i < (model.config.vocab_size or 0)]


def described(tokenizer: Tokenizer, chosen: Iterable[Chosen], alternatives: int) -> list[dict[str, Any]]:
    """How likely each token was, by the model and by what it was drawn from, and what else it might have been.
    Different ids may have the same text: bytes that are half a character."""

    def text(id: int) -> str:
        return tokenizer.decode([id]) if id < tokenizer.vocab_size else f"(id {id})"

    return [
        {
            "id": each.id,
            "text": text(each.id),
            "probability": math.exp(each.logprob),
            "drawn_probability": math.exp(each.drawn_logprob),
            "instead": [
                {"id": id, "text": text(id), "probability": math.exp(logprob)}
                for id, logprob in each.best
                if id != each.id
            ][:alternatives],
        }
        for each in chosen
    ]
