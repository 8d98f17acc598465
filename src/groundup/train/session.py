"""A session: what every training needs around `fit`, written once.

It logs, measures, guards, saves, resumes, goes back to a checkpoint after bad steps, and obeys signals and `until`.
What it trains, on which batches and with which loss, is passed in; see `pretrain/run.py` for the plainest use.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from groundup.batch import Rows
from groundup.errors import DivergedError, Paused, ResourceError, SavedAndStopped, SettingsError
from groundup.files import Progress, no_progress, write_text
from groundup.optim.schedule import make_schedule
from groundup.settings import Table
from groundup.train import checkpoint
from groundup.train.assemble import Assembled
from groundup.train.checkpoint import Kept, Loaded, Saver
from groundup.train.fit import ONE_RANK, Ranks, Step, fit
from groundup.train.guard import OVERFLOWS_IN_A_ROW, Guard, Overflows, Trouble, with_range
from groundup.train.health import Activations, Health
from groundup.train.log import RunLog, as_json
from groundup.train.loggers import Loggers
from groundup.train.preemption import AskedToStop, Stop, noticing_signals
from groundup.train.settings import SkipAndRollBack, TrainingSettings

STEPS_PER_FLUSH = 10
"""Metrics are written this often: reading a loss waits for the device."""


@dataclass(frozen=True)
class Periodic:
    """What is measured every so many steps and after the last one."""

    every: int
    name: str
    """The field of its line in metrics.jsonl by which a resumed run knows that it is done."""
    measure: Callable[[Progress], dict[str, Any]]
    """Fields of the line; calls the given function now and then, which raises when a signal came."""


class Session(Generic[Rows]):
    """One training, from its newest checkpoint to its last step."""

    def __init__(
        self,
        settings: TrainingSettings,
        assembled: Assembled,
        directory: Path,
        recorded: Table,
        inputs: Mapping[str, str],
        *,
        batches: Callable[[int, int], Iterator[Rows]],
        initial_weights: Callable[[], Mapping[str, Tensor]],
        activations: Callable[[Rows], Activations] | None = None,
        suspects: Callable[[Rows, int], tuple[dict[str, Any], str]] = lambda batch, first_row: ({}, ""),
        advice_at_start: str = "Look at the weights that it began with and at these rows",
        flops_per_token: int = 0,
        peak_flops: float | None = None,
        ranks: Ranks = ONE_RANK,
        say: Callable[[str], None] = print,
    ) -> None:
        """
        Args:
            assembled: before its first step.
            directory: gets metrics.jsonl, events.jsonl, health.jsonl, checkpoints/.
            recorded: settings by table; a checkpoint is used if only settings that may change differ.
            inputs: name of each input → its digest, recorded in checkpoints.
            batches: (finished steps, first row) → the batches from there on; rows are counted by their `weight`.
            initial_weights: by name, for going back to before the first step.
            activations: measures what flows through the layers for a batch, for `health.jsonl`.
            suspects: (bad batch, number of its first row) → what may be wrong with it: fields of an event, a sentence.
            advice_at_start: what to do about a first step that diverged.
            peak_flops: FLOPs a second of this machine at best, where they were measured.
        """
        self.settings, self.assembled = settings, assembled
        self.log = RunLog(directory, Loggers(settings.loggers, directory, recorded), peak_flops)
        self.tokens = 0
        """Positions of all batches so far."""
        self.recorded, self.flops_per_token = recorded, flops_per_token
        self._directory, self._inputs, self._say = directory, inputs, say
        self._batches, self._initial_weights, self._suspects = batches, initial_weights, suspects
        self._advice_at_start, self._ranks = advice_at_start, ranks
        self._guard = Guard(settings.guard) if isinstance(settings.guard, SkipAndRollBack) else None
        self._health = Health(assembled.masters, settings.health_every, activations)
        self._overflows = Overflows()
        self._checkpoints = directory / "checkpoints"
        kept = Kept(settings.keep_checkpoints, settings.keep_every_steps, settings.keep_best)
        self._saver = Saver(
            self._checkpoints, kept, recorded, inputs, failures=settings.failed_checkpoints, tell=self._tell_save
        )
        self._state: dict[str, Any] = {"step": 0, "next_row": 0, "tokens": 0, "skipped": [], "seconds": 0.0}
        """What the newest checkpoint says besides tensors: where this process began, went back to, or saved last."""
        if assembled.scaler is not None:
            self._state["scaler"] = assembled.scaler.state_dict()
        self._beginning = dict(self._state)
        self._batch: Rows | None = None
        """The one that the current step learns from."""
        self._next_row = 0
        self._skipped: list[list[int]] = []
        """Ranges [first, last) of rows from which nothing was learned, in order."""
        self._refused = False
        self._bad_steps: list[dict[str, Any]] = []
        self._began = 0.0
        """When the training would have begun, had it never been interrupted."""

    @property
    def step(self) -> int:
        """The step of the newest checkpoint, or 0."""
        return int(self._state["step"])

    @property
    def seconds(self) -> float:
        """How long the training has taken, interruptions left out."""
        return time.monotonic() - self._began

    def run(
        self,
        measurements: Sequence[Periodic],
        finish: Callable[[], None],
        progress: Progress = no_progress,
        until: int | None = None,
    ) -> None:
        """Go on from the newest checkpoint, take the steps that are left, and finish.

        Args:
            finish: writes what the training is for, such as the model.
            until: the step to pause after, measured and saved; another call goes on from there.

        Raises:
            Paused: at that step.
            SavedAndStopped: after Ctrl-C or SIGTERM, with a checkpoint written.
            DivergedError: when the guard has gone back as often as it may, or without one at a loss that is no number.
        """
        self._resume()
        steps = self.settings.steps
        if until is not None and self.step >= until:
            raise Paused(f"paused at step {self.step:,} of {steps:,} before")
        with noticing_signals() as stop, self.log, self._saver:
            try:
                stop.at_once = True  # up to the end of the first step, which may be long: the model is compiled in it
                if self.step:
                    self._measure(measurements, self.step, self.step in (steps, until), stop)
                for step in self._steps():
                    stop.at_once = False
                    self._after(step, measurements, step.number in (steps, until), stop)
                    progress(step.number, steps, self.log.summary())
            except AskedToStop:
                raise self._stopped(self.step, stop) from None
            stop.at_once = False
            with contextlib.suppress(ResourceError):  # the model itself is about to be written
                self._saver.wait()
        self.log.check()
        finish()
        self.log.event("finished", step=steps)
        if stop.asked:
            raise SavedAndStopped("the model is finished and saved; what comes after it is not done yet")

    def _steps(self) -> Iterator[Step]:
        """The steps of `fit`, which is entered again where the guard goes back."""
        settings, assembled = self.settings, self.assembled
        while True:
            for step in fit(
                assembled.optimizer,
                make_schedule(settings.schedule, settings.steps),
                self._reading(),
                assembled.gradients(settings, start=self.step, ranks=self._ranks),
                steps=settings.steps,
                start=self.step,
                clip=settings.clip,
                clip_value=settings.clip_value,
                scaler=assembled.scaler,
                accept=self._accept,
                ranks=self._ranks,
            ):
                if self._guard is not None and self._guard.out_of_patience:
                    self._log_step(step)
                    self._go_back(self._guard, step.number)
                    break
                yield step
            else:
                return

    def _reading(self) -> Iterator[Rows]:
        """The batches from the newest checkpoint on; the one that a step learns from is remembered."""
        self._next_row = self._state["next_row"]
        for batch in self._batches(self.step, self._next_row):
            self._batch = batch
            self._next_row += len(batch.weight)
            yield batch

    @property
    def _rows(self) -> list[int]:
        """Rows [first, last) of the current batch."""
        assert self._batch is not None, "a step has read one"
        return [self._next_row - len(self._batch.weight), self._next_row]

    def _accept(self, step: Step) -> bool:
        """Whether to take a step. Without a guard no number is read, so that nothing waits for the device."""
        assert self._batch is not None, "a step has read one"
        self._health.before(step, self._batch)
        self._refused = False
        if self._guard is None:
            return True
        scaled = self.assembled.scaler is not None
        trouble = self._guard.judge(step.loss.item(), step.grad_norm.item(), scaled, self._ranks.agree)
        if trouble is not None:
            self._refused = True
            self._skipped = with_range(self._skipped, *self._rows)
            self._tell_skipped(self._guard, step, trouble)
        return trouble is None

    def _after(self, step: Step, measurements: Sequence[Periodic], last: bool, stop: Stop) -> None:
        """Count and log a step; measure and save what is due after it; obey a signal or the end of this run."""
        number, steps = step.number, self.settings.steps
        self._count(step)
        if number % STEPS_PER_FLUSH == 0:
            self._flush()
        with contextlib.suppress(AskedToStop):
            self._measure(measurements, number, last, stop)
        calm = self._guard is None or self._guard.bad_in_a_row == 0
        if (number % self.settings.checkpoint_every == 0 and calm) or last or stop.asked:
            self._save(number)
        if stop.asked or (last and number < steps):
            self._saver.wait(last=True)
            raise self._stopped(number, stop) if stop.asked else Paused(f"paused at step {number:,} of {steps:,}")
        self._saver.poll()

    def _count(self, step: Step) -> None:
        """Count and log a step that was taken or skipped."""
        assert self._batch is not None, "a step has read one"
        if self.assembled.average is not None:
            self.assembled.average.update(step.number)
        self.tokens += self._batch.weight.numel()
        self._log_step(step)
        self._overflows.count(step.number, overflowed=not step.accepted and not self._refused)
        if self._overflows.are_due(step.number):
            self._tell_overflows()
        if self._overflows.in_a_row >= OVERFLOWS_IN_A_ROW:
            in_a_row = f"{OVERFLOWS_IN_A_ROW} steps in a row up to step {step.number:,}"
            first = step.number - OVERFLOWS_IN_A_ROW + 1
            raise self._diverged(f"the gradients overflowed float16 in {in_a_row}", step.number, first)
        if (line := self._health.after(step)) is not None:
            self.log.health(line)

    def _log_step(self, step: Step) -> None:
        self.log.step(step, self.tokens, self.seconds, self.flops_per_token * self.tokens)

    def _flush(self) -> None:
        broken = self.log.flush()
        if broken is not None:
            what = f"the loss at step {broken['step']:,} is {broken['loss']} (gradient norm {broken['grad_norm']})"
            raise self._diverged(what, broken["step"], broken["step"])

    def _measure(self, measurements: Sequence[Periodic], number: int, last: bool, stop: Stop) -> None:
        """Measure and write what is due after this step and not in the log; what a signal cuts short is due again."""
        due = [
            each
            for each in measurements
            if (number % each.every == 0 or last) and self.log.at(number, each.name) is None
        ]
        if not due:
            return
        self._flush()  # before a model that diverged is asked for anything
        with self.assembled.with_final_weights():
            for measurement in due:
                self.log.add(step=number, **measurement.measure(stop.check))
        self._flush()

    # Checkpoints

    def _save(self, number: int) -> None:
        self._flush()
        self._tell_overflows()
        try:
            self.log.check()  # what a checkpoint goes on from is in the log
        except ResourceError as error:
            self._saver.fail(number, error)
            return
        self._state |= {
            "step": number, "next_row": self._next_row, "tokens": self.tokens, "seconds": round(self.seconds, 3),
            "skipped": self._skipped,
        }  # fmt: skip
        if self._guard is not None:
            self._state["guard"] = self._guard.state()
        if self.assembled.scaler is not None:
            self._state["scaler"] = self.assembled.scaler.state_dict()
        measured = {name: self.log.at(number, name) for name in ("step", "tokens", "loss", "validation_bits_per_byte")}
        self._saver.save(self.assembled.tensors(), self._state, measured)

    def _resume(self) -> None:
        """Load the newest checkpoint, if there is one, and say where this process goes on, with which new settings."""
        loaded = self._load()
        table, steps, done = self.settings.TABLE, self.settings.steps, self.step
        if done > steps:
            raise SettingsError(
                f"{table}.steps = {steps:,}, but this training is at step {done:,} already: with {table}.steps={done} "
                "it ends there, with --run it begins elsewhere"
            )
        self.log.event(
            "resumed" if done else "started", step=done, process=os.getpid(), threads=torch.get_num_threads()
        )
        if done:
            self._say(f"going on from step {done:,}")
        if loaded.changed:
            self.log.event("settings changed", step=done, changed=loaded.changed)
        for name, (old, new) in loaded.changed.items():
            self._say(f"from there on {name}: {json.dumps(old)} → {json.dumps(new)}")
        self._began = time.monotonic() - self._state["seconds"]

    def _load(self) -> Loaded:
        """Bring weights, optimizer, scaler, guard and log to the newest whole checkpoint, or the beginning."""

        def refused(directory: Path, why: str) -> None:
            self._say(f"passed over {directory.name}: {why}")
            self.log.event("checkpoint refused", checkpoint=directory.name, why=why)

        found = checkpoint.load_newest(
            self._checkpoints,
            self.assembled.tensors(),
            self.recorded,
            self._inputs,
            refused,
            self.settings.may_change,
        )
        self.assembled.masters.publish()
        loaded = found or Loaded(dict(self._beginning), {})
        self._state = loaded.state
        self.tokens = int(self._state["tokens"])
        self._skipped = [list(rows) for rows in self._state["skipped"]]
        if self._guard is not None:
            self._guard.load(self._state.get("guard", {}))
        if self.assembled.scaler is not None:
            self.assembled.scaler.load_state_dict(self._state["scaler"])
        self.log.cut_after(self.step)
        return loaded

    def _go_back(self, guard: Guard, number: int) -> None:
        """Bring everything to where it was some steps before the trouble, but for the rows: those are jumped over."""
        self._flush()
        self._saver.wait()
        saved = {checkpoint.step_of(path): path for path in checkpoint.list_checkpoints(self._checkpoints)}
        goal, next_row, rollbacks = guard.goal(saved, number), self._next_row, guard.rollbacks + 1
        if not guard.may_go_back:
            what = f"{guard.bad_in_a_row} bad steps in a row up to step {number:,}, after {guard.rollbacks} times back"
            first = number - guard.bad_in_a_row + 1
            raise self._diverged(what, number, first, rows=[self._state["next_row"], next_row])
        for step, path in saved.items():
            if goal is None or step > goal:
                shutil.rmtree(path)
        if goal is None:
            self.assembled.restart(self._initial_weights())
        self._load()
        guard.rollbacks = rollbacks
        rows = [self._state["next_row"], next_row]
        self._skipped = with_range(self._skipped, *rows)
        self._state["next_row"] = next_row
        most, patience = guard.settings.rollbacks, guard.settings.patience
        self.log.event(
            "rolled back", step=number, to=self.step, rows=rows, rollbacks=rollbacks, of=most,
            seen=self._bad_steps[-1]["seen"],
        )  # fmt: skip
        self._say(
            f"{patience} bad step{'s' * (patience > 1)} in a row up to step {number:,}: went back to step "
            f"{self.step:,} and jumped over rows {rows[0]:,} to {rows[1] - 1:,} ({rollbacks} of at most {most} times)"
        )

    # What is said

    def _tell_save(self, event: str, **details: Any) -> None:
        self.log.event(event, **details)
        if event == "save failed":
            self._say(f"step {details['step']:,} could not be saved, training goes on: {details['why']}")

    def _tell_skipped(self, guard: Guard, step: Step, trouble: Trouble) -> None:
        """Write an event and a line on the screen about a step that is left out."""
        assert self._batch is not None, "a step has read one"
        first, last = self._rows
        fields, sentence = self._suspects(self._batch, first)
        event = {
            "step": step.number,
            **asdict(trouble),
            "learning_rate": step.learning_rate,
            "rows": self._rows,
            **fields,
        }
        self._bad_steps = [*self._bad_steps, event][-guard.settings.patience :]
        self.log.event("step skipped", **event)
        self._say(f"step {step.number:,} left out: {trouble.seen}. It read rows {first:,} to {last - 1:,}{sentence}")

    def _tell_overflows(self) -> None:
        if self._overflows.waiting:
            assert self.assembled.scaler is not None, "nothing else overflows"
            self.log.event("overflow", **self._overflows.take(), scale=self.assembled.scaler.get_scale())

    def _stopped(self, number: int, stop: Stop) -> SavedAndStopped:
        self.log.event("stopped", step=number, signal=stop.asked)
        return SavedAndStopped(f"saved at step {number:,} of {self.settings.steps:,}")

    def _diverged(self, what: str, number: int, first_bad: int, **known: Any) -> DivergedError:
        """The error that ends the run; what is known is written to `diverged.json` first."""
        if first_bad == 1:
            advice = f"No step was taken before it, so the learning rate has no part in it. {self._advice_at_start}"
        else:
            kept, table = checkpoint.list_checkpoints(self._checkpoints), self.settings.TABLE
            where = f"the last checkpoint is {kept[-1].name}" if kept else "no checkpoint was written yet"
            advice = (
                f"Lower {table}.optimizer.learning_rate (now {self.settings.optimizer.learning_rate}) or lengthen "
                f"{table}.schedule.warmup_steps; {where}"
            )
        remembered = self._guard.state() if self._guard else {}
        dump = {"step": number, "why": what, **known, "bad_steps": self._bad_steps, "guard": remembered}
        path = self._directory / "diverged.json"
        write_text(path, json.dumps(as_json(dump), indent=1) + "\n")
        self.log.event("diverged", step=number, why=what)
        return DivergedError(f"{what}: training diverged. {advice}. All that was seen is in {path}")
