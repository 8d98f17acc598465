"""Two models' answers to the same prompts, set side by side for a judge, and what it said of them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from groundup.errors import DataError
from groundup.evals.judge import Judgement, Pair
from groundup.files import reading, write_text


def read_key(path: Path | None) -> str | None:
    """What a file holds, without the space around it."""
    if path is None:
        return None
    with reading(path) as stream:
        return stream.read().decode("utf-8", "replace").strip()


def read_pairs(first: Path, second: Path) -> list[Pair]:
    """Answers of two models to the same prompts: lines such as `groundup generate --json` writes.

    Raises:
        DataError: a line without prompt and text, or a prompt that only one file answers.
    """
    ours, theirs = _answers(first), _answers(second)
    for here, there, path in ((ours, theirs, second), (theirs, ours, first)):
        for (prompt, number), _ in here.items():
            if (prompt, number) not in there:
                raise DataError(f"{path} has no answer number {number + 1} to {prompt[:80]!r}, as the other file has")
    return [Pair(prompt, (text, theirs[prompt, number])) for (prompt, number), text in ours.items()]


def _answers(path: Path) -> dict[tuple[str, int], str]:
    """Texts by prompt, and by their number where there are several."""
    answers, counts = dict[tuple[str, int], str](), Counter[str]()
    with reading(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
                prompt, text = row["prompt"], row["text"]
                if not (isinstance(prompt, str) and isinstance(text, str)):
                    raise TypeError
            except (ValueError, LookupError, TypeError):
                raise DataError(f'{path}, line {number}: not of the form {{"prompt": "…", "text": "…"}}') from None
            answers[prompt, counts[prompt]] = text
            counts[prompt] += 1
    if not answers:
        raise DataError(f'{path} is empty; a line should be like {{"prompt": "…", "text": "…"}}')
    return answers


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """A line of JSON for each pair."""
    write_text(path, "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))


def rows(judgement: Judgement, names: tuple[str, str]) -> list[tuple[str, str]]:
    """What a judge said, a fact a row."""
    share = "-"
    if judgement.share is not None:
        low, high = judgement.interval or (0.0, 1.0)
        share = f"{judgement.share:.3f} ({low:.3f} to {high:.3f}), p = {judgement.p:.2g}"
    shares = {"both orders agree": judgement.agreement, "the first is preferred": judgement.first_preferred}
    return [
        *(("won by " + name, str(wins)) for name, wins in zip(names, judgement.wins, strict=True)),
        ("ties", str(judgement.ties)),
        ("unreadable", f"{judgement.unreadable} of {judgement.pairs}"),
        *((name, "-" if value is None else f"{value:.1%}") for name, value in shares.items()),
        ("share of " + names[0], share),
    ]
