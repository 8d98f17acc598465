"""What goes wrong in a training, and how it is told: in events.jsonl, on the screen, in the error that ends the run."""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from groundup.errors import DivergedError
from groundup.files import write_text
from groundup.train.checkpoint import list_checkpoints
from groundup.train.fit import Step
from groundup.train.guard import Guard, Trouble
from groundup.train.log import RunLog, as_json
from groundup.train.settings import TrainingSettings

OVERFLOWS_IN_A_ROW = 32
"""Steps that overflow one after another before a float16 training has diverged: by then the scale is 2³² times smaller
than it was, and it is not the scale that makes the gradients infinite."""


@dataclass
class Incidents:
    """The incidents of one training; what the last of them were is remembered for the error that may end it."""

    settings: TrainingSettings
    guard: Guard | None
    directory: Path
    log: RunLog
    say: Callable[[str], None]
    advice_at_start: str
    """What to do about a first step that diverged."""

    def __post_init__(self) -> None:
        patience = self.guard.settings.patience if self.guard else 0
        self._bad_steps: deque[dict[str, Any]] = deque(maxlen=patience)
        self._overflows: list[int] = []
        """Steps that overflowed and about which no event was written yet."""
        self._overflows_in_a_row = 0

    def tell(self, kind: str, sentence: str = "", **details: Any) -> None:
        """Write an event, and a line on the screen if it is news to a person."""
        self.log.event(kind, **details)
        if sentence:
            self.say(sentence)

    def step_skipped(
        self, step: Step, trouble: Trouble, rows: list[int], fields: dict[str, Any], suspicion: str
    ) -> None:
        """
        Args:
            rows: [first, last) of the batch.
            fields: of the event, about what may be wrong with the batch.
            suspicion: the same for the end of a sentence.
        """
        event = {"step": step.number, **asdict(trouble), "learning_rate": step.learning_rate, "rows": rows, **fields}
        self._bad_steps.append(event)
        read = f"It read rows {rows[0]:,} to {rows[1] - 1:,}{suspicion}"
        self.tell("step skipped", f"step {step.number:,} left out: {trouble.seen}. {read}", **event)

    def rolled_back(self, number: int, to: int, rows: list[int], guard: Guard) -> None:
        """After several bad steps in a row up to step `number`, over these rows."""
        patience, most, seen = guard.settings.patience, guard.settings.rollbacks, self._bad_steps[-1]["seen"]
        sentence = (
            f"{patience} bad step{'s' * (patience > 1)} in a row up to step {number:,}: went back to step {to:,} and "
            f"jumped over rows {rows[0]:,} to {rows[1] - 1:,} ({guard.rollbacks} of at most {most} times)"
        )
        details = {"step": number, "to": to, "rows": rows, "rollbacks": guard.rollbacks, "of": most, "seen": seen}
        self.tell("rolled back", sentence, **details)

    def count_overflow(self, number: int, overflowed: bool) -> None:
        """Remember whether a float16 scaler left out the step because gradients overflowed.

        Raises:
            DivergedError: when too many in a row did.
        """
        self._overflows += [number] * overflowed
        self._overflows_in_a_row = self._overflows_in_a_row + 1 if overflowed else 0
        if self._overflows_in_a_row >= OVERFLOWS_IN_A_ROW:
            what = f"the gradients overflowed float16 in {OVERFLOWS_IN_A_ROW} steps in a row up to step {number:,}"
            raise self.diverged(what, number, number - OVERFLOWS_IN_A_ROW + 1)

    def tell_overflows(self, scale: float | None) -> None:
        """Write one event about all overflows since the last one."""
        if self._overflows:
            first, last = self._overflows[0], self._overflows[-1]
            self.tell("overflow", steps=len(self._overflows), first=first, last=last, scale=scale)
        self._overflows = []

    def diverged(self, what: str, number: int, first_bad: int, **known: Any) -> DivergedError:
        """The error that ends the run; what is known is written to `diverged.json` first."""
        if first_bad == 1:
            advice = f"No step was taken before it, so the learning rate has no part in it. {self.advice_at_start}"
        else:
            kept, table = list_checkpoints(self.directory / "checkpoints"), self.settings.TABLE
            where = f"the last checkpoint is {kept[-1].name}" if kept else "no checkpoint was written yet"
            advice = (
                f"Lower {table}.optimizer.learning_rate (now {self.settings.optimizer.learning_rate}) or lengthen "
                f"{table}.schedule.warmup_steps; {where}"
            )
        guard = self.guard.state() if self.guard else {}
        dump = {"step": number, "why": what, **known, "bad_steps": list(self._bad_steps), "guard": guard}
        path = self.directory / "diverged.json"
        if self.log.writes:
            write_text(path, json.dumps(as_json(dump), indent=1) + "\n")
        self.tell("diverged", step=number, why=what)
        return DivergedError(f"{what}: training diverged. {advice}. All that was seen is in {path}")
