"""Ask: put items to a model, through the engine, which reads what items have in common once.

An answer does not depend on how many items are asked together, nor on their order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from groundup.errors import SettingsError
from groundup.evals.items import Choice, Item, Likelihood, Passage, Writing
from groundup.generation.engine import Engine, Request, not_finite
from groundup.generation.packed import Precision
from groundup.generation.settings import Sampling
from groundup.generation.text import Answer, Writer
from groundup.model.draw import key
from groundup.model.transformer import Transformer
from groundup.tokenizer.chat import Chat
from groundup.tokenizer.tokenizer import Tokenizer

STEP_TOKENS = 1024
"""Read in one step: enough for matmuls at their full speed."""
PAGE = 4
"""Tokens of a page: few, so that little is read again of a context that several options share."""
CACHE_TOKENS = 1 << 15
"""Kept for what items have in common, where the context is not longer."""


@dataclass(frozen=True)
class Answered:
    """What a model made of an item."""

    item: Item
    likelihoods: tuple[Likelihood, ...] = ()
    """Of a choice's options, or of a passage."""
    texts: tuple[str, ...] = ()
    """What it wrote."""
    is_cut: bool = False
    """Whether the beginning of a context was left out, since the model sees no more at once."""


@dataclass(eq=False)
class _Asked:
    """An item whose requests are on their way."""

    item: Item
    spans: list[tuple[list[int], int]]
    """The ids of each request, and the first of them that is scored."""
    found: list[Likelihood | None] = field(default_factory=list)
    is_cut: bool = False


class Examinee:
    """A model that is asked.

    Args:
        together: requests that run at once.
        precision: that the weights are packed in; as they are if not given.
        chat: puts a context as a user's message and what follows as the reply; None leaves both as they are.
        stride: tokens that a window of a passage adds to the one before; the context length if not given.

    >>> from groundup.model.settings import ModelConfig
    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> examinee = Examinee(Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1)), tokenizer)
    >>> [answered] = examinee.answers([Item("0", Choice(("low",) * 2, ("lower", "est"), right=(0,)))])
    >>> len(answered.likelihoods), answered.is_cut
    (2, False)
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        together: int = 32,
        precision: Precision | None = None,
        chat: Chat | None = None,
        stride: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer if chat is None else chat.tokenizer
        self.chat, self.context = chat, model.config.context_length
        self.stride = stride or self.context
        sizes = {"most_requests": together, "cache_tokens": max(CACHE_TOKENS, self.context)}
        self._engine: dict[str, Any] = {"precision": precision, **sizes}
        self._model = model
        opener = self.tokenizer.roles.opener
        self._opener = [] if opener is None else [opener]

    @cached_property
    def _reader(self) -> Engine:
        """Scores what is given."""
        return Engine(self._model, reads=True, page=PAGE, step_tokens=STEP_TOKENS, **self._engine)

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self._model, self.tokenizer, **self._engine)

    def answers(
        self, items: Sequence[Item], *, n: int = 1, sampling: Sampling | None = None, unconditional: bool = False
    ) -> Iterator[Answered]:
        """What the model makes of each item, in the order in which it is done with them.

        Args:
            items: all of one kind.
            n: texts written for each, with seeds of their own that follow from the item and the seed given.
            sampling: how they are written; greedily if not given.
            unconditional: also score the options of choices after nothing.

        Raises:
            SettingsError: a continuation without tokens, or longer than the context.
            DivergedError: scores that are not finite.
        """
        writings, others = ([i for i in items if isinstance(i.ask, Writing) is is_one] for is_one in (True, False))
        yield from self._written(writings, n, sampling or Sampling(temperature=0.0))
        yield from self._scored(others, unconditional)

    def _scored(self, items: Sequence[Item], unconditional: bool) -> Iterator[Answered]:
        """Choices and passages, whose tokens are given."""
        engine, told = self._reader, Sampling(max_tokens=0)
        every = [self._asked(item, unconditional) for item in items]
        jobs = [(ids, start, asked, number) for asked in every for number, (ids, start) in enumerate(asked.spans)]
        running: dict[Request, tuple[_Asked, int]] = {}
        for ids, start, asked, number in sorted(jobs, key=lambda job: job[0]):  # what begins alike side by side
            running[engine.submit(ids, told, best=1, echo=start)] = asked, number
        while not engine.is_idle:
            for request in engine.step():
                if request.error is not None:
                    raise request.error
                if request.ending is None:
                    continue
                asked, number = running.pop(request)
                asked.found[number] = _likelihood(request)
                if None not in asked.found:
                    found = tuple(each for each in asked.found if each is not None)
                    yield Answered(asked.item, found, is_cut=asked.is_cut)

    def _asked(self, item: Item, unconditional: bool) -> _Asked:
        """The requests of an item, of contexts that are too long only the end."""
        match item.ask:
            case Passage(text=text):
                spans = self._windows([*self._opener, *self.tokenizer.encode(text)])
            case Choice(requests=requests):
                spans = [self.encode(*pair) for pair in requests]
                if unconditional:
                    spans += [self.encode("", continuation) for _, continuation in requests]
        kept = [(ids[-self.context - 1 :], start - max(0, len(ids) - self.context - 1)) for ids, start in spans]
        for (ids, start), (_, first) in zip(spans, kept, strict=True):
            if start >= len(ids) or first < 1:
                raise SettingsError(
                    f"item {item.id}: {len(ids) - start} tokens are to be scored after {start}; it should be 1 to "
                    f"{self.context}, the context of this model"
                )
        return _Asked(item, kept, [None] * len(kept), any(len(ids) > self.context + 1 for ids, _ in spans))

    def encode(self, context: str, continuation: str) -> tuple[list[int], int]:
        """The ids of a context and what follows it, encoded together, and the number of the first that follows.

        Spaces between the two count as the continuation's, and an empty context is the token that opens a text, as in
        lm-evaluation-harness. Models that have never seen a text without that token always get it.
        """
        if self.chat is not None and context:
            before = self.chat.prompt([{"role": "user", "content": context}])
            return [*before, *self.tokenizer.encode(continuation.lstrip(" "))], len(before)
        stripped = context.rstrip()
        opener = self._opener if self.tokenizer.opens_texts or not stripped else []
        ids = self.tokenizer.encode(context + continuation)
        return [*opener, *ids], len(opener) + (len(self.tokenizer.encode(stripped)) if stripped else 0)

    def _windows(self, ids: Sequence[int]) -> list[tuple[list[int], int]]:
        """Windows over ids that each score what comes after the window before, with as much before it as there is room
        for."""
        windows, done, last = list[tuple[list[int], int]](), 0, len(ids) - 1
        while done < last:
            more = min(last - done, self.stride if done else self.context)
            begin = max(0, done + more - self.context)
            windows.append((list(ids[begin : done + more + 1]), done + 1 - begin))
            done += more
        return windows

    def _written(self, items: Sequence[Item], n: int, sampling: Sampling) -> Iterator[Answered]:
        """What the model writes after prompts; of those that leave no room for an answer only the end is read."""
        writer = self._writer
        answers: list[list[Answer]] = []
        number_of: dict[Answer, int] = {}
        cut: list[bool] = []
        for number, item in enumerate(items):
            assert isinstance(item.ask, Writing)
            ids = self._prompt(item.ask.prompt)
            room = max(self.context - item.ask.max_tokens, self.context // 2)
            stop = item.ask.stop if self.chat is None or item.ask.stop_in_chat is None else item.ask.stop_in_chat
            own = {"max_tokens": item.ask.max_tokens, "stop": (*sampling.stop, *stop)}
            seeds = [key("answer", sampling.seed, item.group or "", item.id, copy) % (1 << 63) for copy in range(n)]
            each = [sampling.model_copy(update={**own, "seed": seed}) for seed in seeds]
            answers.append([writer.submit(ids[-room:], one) for one in each])
            cut.append(len(ids) > room)
            number_of |= dict.fromkeys(answers[-1], number)
        while not writer.engine.is_idle:
            for answer in writer.step():
                if answer.request.error is not None:
                    raise answer.request.error
                number = number_of[answer]
                if answer.ending and all(one.ending for one in answers[number]):
                    yield Answered(items[number], texts=tuple(one.text for one in answers[number]), is_cut=cut[number])

    def _prompt(self, prompt: str) -> list[int]:
        if self.chat is not None:
            return self.chat.prompt([{"role": "user", "content": prompt}])
        opener = self._opener if self.tokenizer.opens_texts or not prompt else []
        return [*opener, *self.tokenizer.encode(prompt)]


def _likelihood(request: Request) -> Likelihood:
    """
    Raises:
        DivergedError: scores that are not finite.
    """
    logprob = sum(each.logprob for each in request.echoed)
    if not math.isfinite(logprob):
        raise not_finite()
    return Likelihood(logprob, all(each.best[0][0] == each.id for each in request.echoed))
