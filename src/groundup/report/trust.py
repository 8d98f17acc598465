"""Can a run be trusted? The findings that are not numbers of the run already; trust.html has the words.

The page tells what was checked and holds (ok), what asks for a second look (warning), what nobody looked at (open).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from groundup.report.facts import Run

FLAT = 0.005
"""A rise of validation by less than this share does not count as one."""
FEW_DOCUMENTS = 30
"""From fewer test documents, the standard error is rough itself."""


def broken_links(run: Run) -> list[tuple[str, str]]:
    """Each stage that was made from another input than is here, and that input."""
    return [
        (name, given)
        for name, manifest in run.manifests.items()
        for given, digest in manifest.inputs.items()
        if given in run.manifests and run.manifests[given].digest != digest
    ]


@dataclass(frozen=True)
class Course:
    """The course of validation, in bits per byte."""

    first: float
    lowest: float
    lowest_step: int
    last: float
    is_falling: bool
    """Whether it was still falling at the end."""

    @property
    def is_overfitting(self) -> bool:
        """Whether it says that the model began to memorise the training text."""
        return self.last > self.lowest * (1 + FLAT)


def validation_course(run: Run) -> Course | None:
    """None if validation was measured less than twice."""
    measured = [(line["validation_bits_per_byte"], line["step"]) for line in run.validations]
    if len(measured) < 2:
        return None
    lowest, lowest_step = min(measured)
    bits = [value for value, _ in measured]
    return Course(bits[0], lowest, lowest_step, bits[-1], is_falling=bits[-2] > bits[-1] * (1 + FLAT))


def changed_settings(events: Iterable[dict[str, Any]]) -> list[tuple[int, str, str, str]]:
    """Step, name, value before and value after of what was changed during the run and not undone by a later resume."""
    changes: list[tuple[int, str, str, str]] = []
    for event in events:
        step = event.get("step", 0)
        if event.get("event") in ("started", "resumed"):
            changes = [change for change in changes if change[0] < step]
        elif event.get("event") == "settings changed":
            changed = event.get("changed", {}).items()
            changes += [(step, name, json.dumps(old), json.dumps(new)) for name, (old, new) in changed]
    return changes
