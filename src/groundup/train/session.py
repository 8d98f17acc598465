"""A session: what every training needs around `fit`, written once.

It logs, measures, guards, saves, resumes, goes back to a checkpoint after bad steps, and obeys signals and `until`.
What it trains, on which batches and with which loss, is passed in; see `pretrain/run.py` for the plainest use.
"""

import contextlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from groundup.batch import Rows
from groundup.errors import Paused, PeerLost, ResourceError, SavedAndStopped, SettingsError
from groundup.files import Progress, no_progress
from groundup.optim.schedule import make_schedule
from groundup.processes.watch import slow_ranks
from groundup.settings import Table
from groundup.train.assemble import Assembled
from groundup.train.checkpoint import Kept, Loaded, Saver, list_checkpoints, step_of
from groundup.train.fit import Step, fit
from groundup.train.guard import Guard, with_range
from groundup.train.health import Activations, Health
from groundup.train.incidents import Incidents
from groundup.train.log import RunLog
from groundup.train.loggers import Loggers
from groundup.train.peers import Peers
from groundup.train.pieces import read_whole, stored_pieces
from groundup.train.preemption import AskedToStop, Stop, noticing_signals
from groundup.train.settings import STEPS_PER_FLUSH, SkipAndRollBack, TrainingSettings


@dataclass(frozen=True)
class Periodic:
    """What is measured every so many steps and after the last one."""

    every: int
    name: str
    """The field of its line in metrics.jsonl by which a resumed run knows that it is done."""
    measure: Callable[[Progress], dict[str, Any]]
    """Fields of the line; calls the given function now and then, which raises when a signal came."""


@dataclass
class Session(Generic[Rows]):
    """One training, from its newest checkpoint to its last step."""

    settings: TrainingSettings
    assembled: Assembled
    """Before its first step."""
    directory: Path
    """Gets metrics.jsonl, events.jsonl, health.jsonl, checkpoints/."""
    recorded: Table
    """Settings by table; a checkpoint is used if only settings that may change differ."""
    inputs: Mapping[str, str]
    """Name of each input → its digest, recorded in checkpoints."""
    _: KW_ONLY
    batches: Callable[[int, int], Iterator[Rows]]
    """(finished steps, first row) → the batches from there on; rows are counted by their `weight`."""
    initial_weights: Callable[[], Mapping[str, Tensor]]
    """By name, for going back to before the first step."""
    activations: Callable[[Rows], Activations] | None = None
    """Measures what flows through the layers for a batch, for `health.jsonl`."""
    suspects: Callable[[Rows, int], tuple[dict[str, Any], str]] = lambda batch, first_row: ({}, "")
    """(bad batch, number of its first row) → what may be wrong with it: fields of an event, a sentence."""
    advice_at_start: str = "Look at the weights that it began with and at these rows"
    """What to do about a first step that diverged."""
    flops_per_token: int = 0
    peak_flops: float | None = None
    """FLOPs a second of this machine at best, where they were measured."""
    size_of: Callable[[int, Rows], tuple[int, int]] = lambda step, batch: (len(batch.weight), batch.weight.numel())
    """(finished steps, this rank's batch) → rows and positions of the global batch."""
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        settings, self.ranks = self.settings, self.assembled.ranks
        first = self.ranks.rank == 0
        loggers = Loggers(settings.loggers if first else (), self.directory, self.recorded)
        self.log = RunLog(self.directory, loggers, self.flops_per_token, self.peak_flops, writes=first)
        if not first:
            self.say = _nothing
        self.tokens = 0
        """Positions of all batches so far."""
        self._guard = Guard(settings.guard) if isinstance(settings.guard, SkipAndRollBack) else None
        self._health = Health(self.assembled.masters, settings.health_every, self.activations, self.ranks)
        self._incidents = Incidents(settings, self._guard, self.directory, self.log, self.say, self.advice_at_start)
        self._peers = Peers(self.ranks.rank, self.ranks.size, self.ranks.gather)
        """Not those of the saver, whose thread may be speaking to them."""
        checkpoints, most, tell = self.directory / "checkpoints", settings.failed_checkpoints, self._incidents.tell
        kept = Kept(settings.keep_checkpoints, settings.keep_every_steps, settings.keep_best)
        self._saver = Saver(
            checkpoints, kept, self.recorded, self.inputs, most_failures=most, tell=tell, peers=self.ranks.peers
        )
        self._batch: Rows
        """The one that the current step learns from."""
        self._size = (0, 0)
        """Rows and positions of the global batch."""
        self._next_row = 0
        self._skipped: list[list[int]] = []
        """Ranges [first, last) of rows from which nothing was learned, in order."""
        self._refused = False
        self._began = time.monotonic()
        """When the training would have begun, had it never been interrupted."""
        self._state = self._beginning = self._state_after(0)
        """What the newest checkpoint says besides tensors: where this process began, went back to, or saved last."""

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
        steps, ends = self.settings.steps, (self.settings.steps, until)
        if until is not None and self.step >= until:
            raise Paused(f"paused at step {self.step:,} of {steps:,} before")
        with noticing_signals() as stop, self.log, self.ranks.watching(self.directory), self._saver:
            try:
                # Up to the end of the first step, which may be long, as the model is compiled in it; not where other
                # ranks would wait for this one.
                stop.at_once = self.ranks.size == 1
                if self.step:
                    self._measure(measurements, self.step, self.step in ends, stop)
                for step in self._steps():
                    stop.at_once = False
                    self.ranks.mark(step.number, "between two steps")
                    self._after(step, measurements, step.number in ends, stop)
                    progress(step.number, steps, self.log.summary())
            except AskedToStop:
                raise self._stopped(self.step, stop) from None
            stop.at_once = False
            try:
                self._saver.wait()
            except ResourceError:  # the model itself is about to be written
                if self.ranks.cuts_weights:  # from this very checkpoint
                    raise
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
                assembled.gradients(settings, start=self.step),
                steps=settings.steps,
                start=self.step,
                clip=settings.clip,
                clip_value=settings.clip_value,
                scaler=assembled.scaler,
                accept=self._accept,
                ranks=self.ranks,
            ):
                if self._guard is not None and self._guard.out_of_patience:
                    self.log.step(step, self.tokens, self.seconds)
                    self._go_back(self._guard, step.number)
                    break
                yield step
            else:
                return

    def _reading(self) -> Iterator[Rows]:
        """The batches from the newest checkpoint on; the one that a step learns from is remembered."""
        self._next_row = self._state["next_row"]
        for step, batch in enumerate(self.batches(self.step, self._next_row), start=self.step):
            self._batch = batch
            self._size = self.size_of(step, batch)
            self._next_row += self._size[0]
            yield batch

    @property
    def _rows(self) -> list[int]:
        """Rows [first, last) of the current batch."""
        return [self._next_row - self._size[0], self._next_row]

    def _accept(self, step: Step) -> bool:
        """Whether to take a step. Without a guard no number is read, so that nothing waits for the device."""
        self._health.before(step, self._batch)
        self._refused = False
        if self._guard is None:
            return True
        scaled = self.assembled.scaler is not None
        trouble = self._guard.judge(step.loss.item(), step.grad_norm.item(), scaled, self.ranks.agree)
        if trouble is not None:
            self._refused = True
            self._skipped = with_range(self._skipped, *self._rows)
            self._incidents.step_skipped(step, trouble, self._rows, *self.suspects(self._batch, self._rows[0]))
        return trouble is None

    def _after(self, step: Step, measurements: Sequence[Periodic], last: bool, stop: Stop) -> None:
        """Count and log a step; measure and save what is due after it; obey a signal or the end of this run."""
        number, steps = step.number, self.settings.steps
        if not self.ranks.agree(not stop.asked):
            stop.asked = stop.asked or "signal to another rank"
        self._count(step)
        if number % STEPS_PER_FLUSH == 0:
            self._tell_times(number)
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

    def _tell_times(self, number: int) -> None:
        """Log what the ranks' time went into, and name one that is slow."""
        times = self.ranks.times()
        if times is None:
            return
        self.log.add(step=number, ranks=times)
        for rank in slow_ranks(times["computing"]):
            usual = statistics.median_low(times["computing"])
            sentence = (
                f"rank {rank} is slow: it computed for {times['computing'][rank]:.1f} s where others took {usual:.1f} s"
            )
            self._incidents.tell(
                "slow rank", sentence, step=number, rank=rank, seconds=times["computing"][rank], usual=usual
            )

    def _count(self, step: Step) -> None:
        """Count and log a step that was taken or skipped."""
        if self.assembled.average is not None:
            self.assembled.average.update(step.number)
        self.tokens += self._size[1]
        self.log.step(step, self.tokens, self.seconds)
        self._incidents.count_overflow(step.number, not step.accepted and not self._refused)
        if (line := self._health.after(step)) is not None:
            self.log.health(line)

    def _flush(self) -> None:
        broken = self.log.flush()
        if broken is not None:
            what = f"the loss at step {broken['step']:,} is {broken['loss']} (gradient norm {broken['grad_norm']})"
            raise self._incidents.diverged(what, broken["step"], broken["step"])

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
        check = stop.check if self.ranks.size == 1 else no_progress
        with self.assembled.with_final_weights():
            for measurement in due:
                self.log.add(step=number, **measurement.measure(check))
            self.ranks.after_measuring()
        self._flush()

    def final_weights(self) -> Mapping[str, Tensor]:
        """Every weight of the model as it is finished, by name. Of many ranks the first has them, from the last
        checkpoint, as it may hold only a part itself."""
        if not self.ranks.cuts_weights:
            return self.assembled.final_weights
        if self.ranks.rank:
            return {}
        stored = stored_pieces(list_checkpoints(self._saver.checkpoints)[-1])
        prefix, suffix = ("model.", "") if self.assembled.average is None else ("optimizer.", ".average")
        chosen = [name for name in stored if name.startswith(prefix) and name.endswith(suffix)]
        return {name.removeprefix(prefix).removesuffix(suffix): read_whole(stored[name]) for name in chosen}

    # Checkpoints

    def _save(self, number: int) -> None:
        self._flush()
        state = self._state_after(number)
        self._incidents.tell_overflows(state.get("scaler", {}).get("scale"))
        try:
            self._peers.all_do(self.log.check, ResourceError)  # what a checkpoint goes on from is in the log
        except PeerLost:
            raise
        except ResourceError as error:
            self._saver.fail(number, error)
            return
        self._state = state
        measured = {name: self.log.at(number, name) for name in ("step", "tokens", "loss", "validation_bits_per_byte")}
        self._saver.save(self.assembled.tensors(), state, measured)

    def _state_after(self, step: int) -> dict[str, Any]:
        """What a checkpoint of this step says besides tensors, as JSON values."""
        return {
            "step": step,
            "next_row": self._next_row,
            "tokens": self.tokens,
            "skipped": self._skipped,
            "seconds": round(self.seconds, 3),
            **({} if self._guard is None else {"guard": self._guard.state()}),
            **self.assembled.state(),
        }

    def _resume(self) -> None:
        """Load the newest checkpoint, if there is one, and say where this process goes on, with which new settings."""
        loaded = self._load()
        table, steps, done = self.settings.TABLE, self.settings.steps, self.step
        if done > steps:
            raise SettingsError(
                f"{table}.steps = {steps:,}, but this training is at step {done:,} already: with {table}.steps={done} "
                "it ends there, with --run it begins elsewhere"
            )
        kind, sentence = ("resumed", f"going on from step {done:,}") if done else ("started", "")
        self._incidents.tell(kind, sentence, step=done, process=os.getpid(), threads=torch.get_num_threads())
        if loaded.changed:
            self._incidents.tell("settings changed", step=done, changed=loaded.changed)
        for name, (old, new) in loaded.changed.items():
            self.say(f"from there on {name}: {json.dumps(old)} → {json.dumps(new)}")
        self._began = time.monotonic() - self._state["seconds"]

    def _load(self) -> Loaded:
        """Bring weights, optimizer, scaler, guard and log to the newest whole checkpoint, or the beginning."""
        found = self._saver.load(self.assembled.tensors(), self.settings.may_change)
        loaded = found or Loaded(dict(self._beginning), {})
        self._state = loaded.state
        self.assembled.load(self._state)
        self.tokens, self._skipped = self._state["tokens"], self._state["skipped"]
        if self._guard is not None:
            self._guard.load(self._state.get("guard", {}))
        self.log.cut_after(self.step)
        return loaded

    def _go_back(self, guard: Guard, number: int) -> None:
        """Bring everything to where it was some steps before the trouble, but for the rows: those are jumped over."""
        self._flush()
        self._saver.wait()
        saved = {step_of(path): path for path in list_checkpoints(self._saver.checkpoints)}
        goal, next_row, rollbacks = guard.goal(saved, number), self._next_row, guard.rollbacks + 1
        if not guard.may_go_back:
            what = f"{guard.bad_in_a_row} bad steps in a row up to step {number:,}, after {guard.rollbacks} times back"
            first = number - guard.bad_in_a_row + 1
            raise self._incidents.diverged(what, number, first, rows=[self._state["next_row"], next_row])
        for step, path in saved.items():
            if self.ranks.rank == 0 and (goal is None or step > goal):
                shutil.rmtree(path)
        self.ranks.gather(None)  # gone for all
        if goal is None:
            self.assembled.restart(self.initial_weights())
        self._load()
        guard.rollbacks = rollbacks
        rows = [self._state["next_row"], next_row]
        self._skipped = with_range(self._skipped, *rows)
        self._state["next_row"] = next_row
        self._incidents.rolled_back(number, self.step, rows, guard)

    def _stopped(self, number: int, stop: Stop) -> SavedAndStopped:
        self.log.event("stopped", step=number, signal=stop.asked)
        return SavedAndStopped(f"saved at step {number:,} of {self.settings.steps:,}")


def _nothing(sentence: str) -> None:
    """For ranks that leave speaking to the first."""
