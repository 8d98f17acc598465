"""Items: what a task asks of a model, and what the model's answer to one is worth. Without torch.

There are three ways to ask: how likely a text is, which of some options is the likeliest, and what the model writes.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from groundup.evals.benchmarks import Files


@dataclass(frozen=True)
class Passage:
    """A text whose every token is predicted."""

    text: str
    original: str
    """The text as its authors count its words and bytes: the same, but for marks of its tokenisation."""


@dataclass(frozen=True)
class Choice:
    """Options of which the likeliest, each after its context, is the model's answer."""

    contexts: tuple[str, ...]
    """One for each option; equal ones are read once."""
    options: tuple[str, ...]
    right: tuple[int, ...]
    """Numbers of the right options."""
    delimiter: str = " "
    """Between context and option; lengths of options are counted without it."""

    @property
    def requests(self) -> list[tuple[str, str]]:
        """(context, continuation) of each option."""
        continuations = (self.delimiter + option for option in self.options)
        return list(zip(self.contexts, continuations, strict=True))


@dataclass(frozen=True)
class Writing:
    """A prompt that the model continues; what it writes is checked."""

    prompt: str
    answers: tuple[str, ...]
    """Those that are accepted."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""
    stop_in_chat: tuple[str, ...] | None = None
    """The same where the model answers in its chat template, if other than `stop`."""
    max_tokens: int = 256
    solution: str = ""
    """The answer as an example shows it, where it differs from the first of `answers`."""
    data: Mapping[str, str] = field(default_factory=dict)
    """What else the task's check needs."""


@dataclass(frozen=True)
class Item:
    """One question of a task."""

    id: str
    """Its name in the task: that of its authors, or its number, from 0."""
    ask: Passage | Choice | Writing
    group: str | None = None
    """The part of the task that it belongs to, such as a subject of MMLU."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a model found a continuation."""

    logprob: float
    """Natural logarithm of its probability after its context."""
    is_greedy: bool
    """Whether each of its tokens was the likeliest."""


@dataclass(frozen=True)
class Task:
    """A benchmark: its items, and how they are scored."""

    items: Callable[["Files"], Iterator[Item]]
    files: tuple[str, ...]
    """Names in `benchmarks.toml` of the files that it reads."""
    metrics: tuple[str, ...]
    """What is measured of each item; the first is what the task is known by."""
    chance: float | None
    """What guessing gets of the first metric, of the authors' own files; None where there is no such number."""
    licence: str
    shots: int = 0
    """Examples before each question, unless others are asked for."""
    examples: Callable[["Files"], Iterator[Item]] | None = None
    """Items that examples are taken from: the first ones, of the same group where there are groups."""
    description: Callable[[Item], str] | None = None
    """What goes before the examples."""
    check: Callable[[Item, Sequence[str]], dict[str, float]] | None = None
    """Values of the metrics, of an item and the answers that the model wrote."""
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Broader parts, and the groups in each."""
    harness: str | None = None
    """The task of lm-evaluation-harness that asks the same."""


def chance_of(task: Task, items: Sequence[Item]) -> float | None:
    """What guessing gets of a task's first metric on these items: reworked forms may have fewer options."""
    shares = [len(item.ask.right) / len(item.ask.options) for item in items if isinstance(item.ask, Choice)]
    is_share = task.metrics[0].startswith(("accuracy", "right_share"))
    return sum(shares) / len(shares) if shares and is_share else task.chance


def grade_choice(
    ask: Choice, found: Sequence[Likelihood], unconditional: Sequence[Likelihood] = ()
) -> dict[str, float]:
    """What each metric makes of one item.

    Args:
        found: one for each option.
        unconditional: of the options after nothing, for `accuracy_over_prior`.

    `accuracy` takes the likeliest option, `…_per_character` and `…_per_byte` the likeliest for its length (Brown et al.
    2020, section 2.4), `…_over_prior` the one whose context makes it more likely than it is by itself. `right_share` is
    the probability of the right options among all (TruthfulQA's MC2). Equal scores count for the first option.
    """
    logprobs = [each.logprob for each in found]
    lengths = [[len(option) or 1 for option in ask.options], [len(option.encode()) or 1 for option in ask.options]]
    per_character, per_byte = ([p / n for p, n in zip(logprobs, each, strict=True)] for each in lengths)
    shares = [math.exp(logprob - max(logprobs)) for logprob in logprobs]
    values = {
        "accuracy": _is_right(ask, logprobs),
        "accuracy_per_character": _is_right(ask, per_character),
        "accuracy_per_byte": _is_right(ask, per_byte),
        "right_share": sum(shares[number] for number in ask.right) / sum(shares),
        "logprob": logprobs[ask.right[0]],
        "greedy": float(found[ask.right[0]].is_greedy),
        "predicted": float(_likeliest(logprobs)),
        "right": float(ask.right[0]),
    }
    if unconditional:
        gained = [p - each.logprob for p, each in zip(logprobs, unconditional, strict=True)]
        values["accuracy_over_prior"] = _is_right(ask, gained)
    return values


def _is_right(ask: Choice, scores: Sequence[float]) -> float:
    return float(_likeliest(scores) in ask.right)


def _likeliest(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda number: scores[number])


def grade_passage(ask: Passage, found: Sequence[Likelihood]) -> dict[str, float]:
    """The bits that a passage took, and what they are counted by.

    Args:
        found: of its windows.
    """
    bits = -sum(each.logprob for each in found) / math.log(2)
    return {"bits": bits, "bytes": len(ask.original.encode()), "words": len(re.split(r"\s+", ask.original))}


def with_examples(item: Item, task: Task, examples: Sequence[Item]) -> Item:
    """An item behind its task's description and examples, between which there are empty lines."""
    described = "" if task.description is None else task.description(item)
    before = described + "".join(f"{shown(example)}\n\n" for example in examples)
    match item.ask:
        case Choice(contexts=contexts):
            return replace(item, ask=replace(item.ask, contexts=tuple(before + context for context in contexts)))
        case Writing(prompt=prompt):
            return replace(item, ask=replace(item.ask, prompt=before + prompt))
        case Passage():
            return item


def shown(item: Item) -> str:
    """An item with its answer, as an example before a question."""
    match item.ask:
        case Choice(contexts=contexts, options=options, right=right, delimiter=delimiter):
            return contexts[right[0]] + delimiter + options[right[0]]
        case Writing(prompt=prompt, answers=answers, solution=solution):
            return prompt + (solution or answers[0])
        case Passage():
            raise AssertionError("a passage is no example")
