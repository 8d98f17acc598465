"""The page of what a model got in benchmarks: bars against chance, parts of tasks, and items to read. Without torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.evals.metrics import METRICS
from groundup.evals.results import Result, read_lines, results_in
from groundup.pages.render import write_page as write_template

ITEMS_SHOWN = 4
"""Of the best, and of the worst, of each task."""
FEW_PARTS = 6
"""So many parts of a task are bars; more are a map."""
END_SHOWN = 700
"""Characters of a prompt's end, and of an answer's beginning."""


@dataclass(frozen=True)
class Shown:
    """An item as a person reads it."""

    id: str
    prompt: str
    options: list[tuple[str, float, bool]]
    """Text, the model's share of probability, and whether it is right."""
    texts: list[str]
    """What the model wrote."""
    right: str
    """What would have been right."""
    outcome: str


def write_page(directory: Path, name: str) -> Path:
    """Write `report.html` into a directory of results; returns its path.

    Args:
        name: of the model.
    """
    results = results_in(directory)
    shares = [result for result in results.values() if result.metric not in METRICS and result.metrics]
    target = directory / "report.html"
    write_template(
        target,
        "examined.html",
        name=name,
        results=list(results.values()),
        shares=shares,
        parted=[result for result in shares if result.groups],
        few_parts=FEW_PARTS,
        items={task: _best_and_worst(result, read_lines(directory / task)) for task, result in results.items()},
    )
    return target


def _best_and_worst(result: Result, lines: Sequence[dict[str, Any]]) -> list[tuple[str, list[Shown]]]:
    options = lines[0]["asked"].get("options", ()) if lines else ()
    by = "right_share" if len(options) > 1 else "logprob" if options else result.metric
    known = sorted((line for line in lines if by in line["values"]), key=lambda line: -float(line["values"][by]))
    if not known:
        return []
    n = min(ITEMS_SHOWN, len(known) // 2)
    ends = (("best", known[:n]), ("worst", known[::-1][:n]))
    return [(title, [_shown(line, result) for line in each]) for title, each in ends if each]


def _shown(line: dict[str, Any], result: Result) -> Shown:
    asked, options = line["asked"], []
    if "options" in asked:
        logprobs = [logprob for logprob, _ in line["likelihoods"][: len(asked["options"])]]
        weights = [math.exp(logprob - max(logprobs)) for logprob in logprobs]
        total = sum(weights) if len(weights) > 1 else math.exp(-logprobs[0])
        options = [
            (text, weight / total, number in asked["right"])
            for number, (text, weight) in enumerate(zip(asked["options"], weights, strict=True))
        ]
    others = [name for name in line["values"] if name not in result.metrics and line["texts"] and "@" not in name]
    return Shown(
        id=line["id"],
        prompt=asked["prompt"][-END_SHOWN:],
        options=options,
        texts=[text[:END_SHOWN] for text in line["texts"]],
        right=(asked.get("answers") or [""])[0][:END_SHOWN],
        outcome=", ".join(others),
    )
