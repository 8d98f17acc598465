"""The pretraining stage: shards in, a model out; interrupted at any moment, it goes on as if it had not been.

Every number of the run is a function of the recipe and the step: rows come from their number, dropout from (seed,
step, piece), samples from their own seed. So resuming needs only the weights, the optimizer's state and the step.
"""

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from groundup.artifacts import is_made, making, read_manifest
from groundup.corpus.document import SPLITS
from groundup.errors import DivergedError, Paused, ResourceError, SavedAndStopped, SettingsError
from groundup.evals.heldout import MEASUREMENTS
from groundup.evals.score import HeldOut, score
from groundup.files import Progress, no_progress
from groundup.generation.settings import Sampling
from groundup.generation.text import stream
from groundup.model.settings import ModelConfig
from groundup.optim.schedule import make_schedule
from groundup.pretrain.settings import PretrainSettings, may_change
from groundup.pretrain.speed import WORTH_MEASURING_FLOPS, matmul_peak
from groundup.pretrain.start import take_weights, with_vocabulary
from groundup.shards import open_split, refuse_another_tokenizer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train import checkpoint
from groundup.train.assemble import assemble, batches, training_flops_per_token
from groundup.train.checkpoint import Kept, Loaded, Saver
from groundup.train.fit import Step, fit
from groundup.train.guard import OVERFLOWS_IN_A_ROW
from groundup.train.health import Health
from groundup.train.judgement import Judgement
from groundup.train.log import RunLog
from groundup.train.loggers import Sinks
from groundup.train.preemption import AskedToStop, Stop, noticing_signals
from groundup.weights.load import find_device
from groundup.weights.write import write_model

STEPS_PER_FLUSH = 10
"""Metrics are written this often: reading a loss waits for the device."""


@dataclass(frozen=True)
class Places:
    """Where a run keeps what pretraining reads and writes."""

    shards: Path
    tokenizer: Path
    work: Path
    """metrics.jsonl, events.jsonl, health.jsonl, checkpoints/"""
    model: Path
    corpus: Path
    """Tells from which files the documents came; training does not need it."""
    start: Path | None = None
    """The model that the training begins with, if it is not to draw its weights."""


def check_fits(model: ModelConfig, places: Places, prompts: Iterable[str]) -> None:
    """Refuse, before the first step, settings that contradict the data.

    Args:
        prompts: texts that the model will be asked to continue, in the run or after it.

    Raises:
        SettingsError: context longer than the corpus, a prompt longer than the context, or shards of another tokenizer.
        DamagedError: shards that are damaged, or hold ids that are not in the vocabulary.
    """
    context = model.context_length
    tokenizer = Tokenizer.load(places.tokenizer)
    if is_made(places.tokenizer):
        refuse_another_tokenizer(places.shards, read_manifest(places.tokenizer).digest, str(places.tokenizer))
    for split in SPLITS:
        open_split(places.shards, split, tokenizer.vocab_size)
    tokens = len(open_split(places.shards, "train").ids)
    if tokens <= context:
        raise SettingsError(
            f"model.context_length = {context:,}, but the training documents have only {tokens:,} tokens together: "
            "shorten the context or add text"
        )
    for prompt in prompts:
        length = 1 + len(tokenizer.encode(prompt))
        if length > context:
            raise SettingsError(f"the prompt {prompt!r} has {length} tokens; model.context_length is {context}")


def pretrain(
    model_config: ModelConfig,
    settings: PretrainSettings,
    places: Places,
    inputs: dict[str, str],
    progress: Progress = no_progress,
    say: Callable[[str], None] = print,
    until: int | None = None,
) -> None:
    """Train, or go on training, and write `places.model`.

    Args:
        settings: with `device` and `precision` chosen.
        inputs: name of each input → its digest, recorded in checkpoints and model.
        until: the step to pause after, measured and saved; another call goes on from there.

    Raises:
        Paused: at that step.
        SavedAndStopped: after Ctrl-C or SIGTERM, with a checkpoint written.
        DivergedError: when the guard has gone back as often as it may, or without one at a loss that is no number.
    """
    training = Training(model_config, settings, places, inputs, say)
    if until is not None and training.step >= until:
        raise Paused(f"paused at step {training.step:,} of {settings.steps:,} before")
    with noticing_signals() as stop, training.sinks, training.saver:
        training.run(stop, until, progress)
    training.finish()
    if stop.asked:
        raise SavedAndStopped("the model is finished and saved; what comes after it is not done yet")


class Training:
    """A training at some step: the steps of `fit`, and what is judged, measured, written and saved around them."""

    def __init__(
        self,
        model_config: ModelConfig,
        settings: PretrainSettings,
        places: Places,
        inputs: dict[str, str],
        say: Callable[[str], None],
    ) -> None:
        """Bring everything to the newest whole checkpoint, or to the beginning."""
        assert settings.precision is not None and settings.device is not None, "chosen before the stage begins"
        self.settings, self.places, self.inputs, self.say = settings, places, inputs, say
        self.described = {"model": model_config.table(), "pretrain": settings.table()}
        self.tokenizer = Tokenizer.load(places.tokenizer)
        self.config = with_vocabulary(model_config, self.tokenizer, places.start)
        ids = min(self.tokenizer.vocab_size, self.config.vocab_size or 0)
        self.train, self.validation = (  # every id was compared with the vocabulary by `check_fits`
            replace(open_split(places.shards, split), vocab_size=ids) for split in ("train", "validation")
        )
        self.trained = assemble(self.config, settings, find_device(settings.device))
        self.log = RunLog(places.work)
        self.judgement = Judgement(
            settings.guard,
            self.trained.model,
            self.trained.scaler,
            settings.micro_batch_rows,
            places.corpus / "train.parquet",
            places.work,
            self.log,
            say,
        )
        self.health = Health(self.trained.model, self.trained.masters, settings.health_every)
        self.sinks = Sinks(settings.sinks, places.work, self.described, self.log.event)
        self.log.send = self.sinks.send
        self.checkpoints = places.work / "checkpoints"
        kept = Kept(settings.keep_checkpoints, settings.keep_every_steps, settings.keep_best)
        self.saver = Saver(
            self.checkpoints, kept, self.described, inputs, failures=settings.failed_checkpoints, tell=self._tell
        )
        self.state: dict[str, Any] = {}
        """What the newest checkpoint says besides tensors: where this process began, went back to, or saved last."""
        loaded = self._load()
        self._tell_beginning(loaded)
        if places.start is not None and self.step == 0:
            take_weights(places.start, self.trained.masters)
        self.began = time.monotonic() - self.state["seconds"]
        """When the training would have begun, had it never been interrupted."""
        self.flops_per_token = training_flops_per_token(self.config, settings.loss)
        context = self.config.context_length
        if self.flops_per_token * settings.rows_before(settings.steps, context) * context >= WORTH_MEASURING_FLOPS:
            self.log.peak_flops = matmul_peak(self.config, settings, self.trained.device)

    @property
    def step(self) -> int:
        """The step of `state`."""
        return int(self.state["step"])

    def run(self, stop: Stop, until: int | None, progress: Progress) -> None:
        """Take the steps that are left, up to `until`; raises what `pretrain` raises."""
        settings = self.settings
        intervals = [settings.validate_every, settings.sample_every, *(asked.every for asked in settings.evaluations)]
        try:
            stop.at_once = True  # up to the end of the first step, which may be long: the model is compiled in it
            if self.step:
                self._look_up(self.step, self.step in (settings.steps, until), stop)
            for step in self._steps():
                stop.at_once = False
                number = step.number
                last = number in (settings.steps, until)
                self._note(step)
                if number % STEPS_PER_FLUSH == 0:
                    self._flush()
                if last or any(number % every == 0 for every in intervals):
                    with contextlib.suppress(AskedToStop):
                        self._look_up(number, last, stop)
                if (number % settings.checkpoint_every == 0 and self.judgement.calm) or last or stop.asked:
                    self._save(number)
                if stop.asked or (number == until and number < settings.steps):
                    self.saver.wait(last=True)
                    if stop.asked:
                        raise self._stopped(number, stop)
                    raise Paused(f"paused at step {number:,} of {settings.steps:,}")
                self.saver.poll()
                progress(number, settings.steps, self.log.summary())
        except AskedToStop:
            raise self._stopped(self.step, stop) from None
        stop.at_once = False
        with contextlib.suppress(ResourceError):  # the model itself is about to be written
            self.saver.wait()

    def _steps(self) -> Iterator[Step]:
        """The steps of `fit`, which is entered again where the guard goes back."""
        settings, judgement, context = self.settings, self.judgement, self.config.context_length
        while True:
            start, first_row = self.step, self.state["next_row"]
            n_rows = (settings.batch_rows(step, context) for step in itertools.count(start))
            for step in fit(
                self.trained.optimizer,
                make_schedule(settings.schedule, settings.steps),
                judgement.reading(batches(self.train, context, settings.seed, n_rows, first_row), first_row),
                self.trained.gradients(
                    settings, lambda batch: -(-len(batch.weight) // settings.micro_batch_rows), start
                ),
                steps=settings.steps,
                start=start,
                clip=settings.clip,
                clip_value=settings.clip_value,
                scaler=self.trained.scaler,
                accept=self._accept,
            ):
                if judgement.goes_back:
                    self._log_step(step)
                    self._go_back(step.number)
                    break
                yield step
            else:
                return

    def _accept(self, step: Step) -> bool:
        assert self.judgement.batch is not None, "a step has read one"
        self.health.before(step, self.judgement.batch)
        return self.judgement.accept(step)

    def _note(self, step: Step) -> None:
        """Count and log a step that was taken or skipped."""
        if self.trained.average is not None:
            self.trained.average.update(step.number)
        context = self.config.context_length
        self.tokens += self.settings.batch_rows(step.number - 1, context) * context
        self._log_step(step)
        if self.judgement.count_overflow(step):
            in_a_row = f"{OVERFLOWS_IN_A_ROW} steps in a row up to step {step.number:,}"
            first = step.number - OVERFLOWS_IN_A_ROW + 1
            raise self._diverged(f"the gradients overflowed float16 in {in_a_row}", step.number, first)
        if (line := self.health.after(step)) is not None:
            self.log.health(line)

    def _log_step(self, step: Step) -> None:
        self.log.step(step, self.tokens, time.monotonic() - self.began, self.flops_per_token * self.tokens)

    def _flush(self) -> None:
        broken = self.log.flush()
        if broken is not None:
            what = f"the loss at step {broken['step']:,} is {broken['loss']} (gradient norm {broken['grad_norm']})"
            raise self._diverged(what, broken["step"], broken["step"])

    def _look_up(self, number: int, last: bool, stop: Stop) -> None:
        """Measure and write what is due after this step and not in the log; what a signal cuts short is due again."""
        settings, log, model = self.settings, self.log, self.trained.model

        def due(every: int, name: str) -> bool:
            return (number % every == 0 or last) and log.at(number, name) is None

        self._flush()  # before a model that diverged is asked for anything
        data, rows = self.validation, settings.micro_batch_rows
        with self.trained.as_finished():
            if due(settings.validate_every, "validation_bits_per_byte"):
                most = settings.validation_tokens
                measured = score(model, data, max_tokens=most, batch_rows=rows, progress=stop.check)
                log.add(step=number, validation_bits_per_byte=measured.bits_per_byte, tokens=self.tokens)
            for asked in settings.evaluations:
                measurement = MEASUREMENTS[asked.task]
                if due(asked.every, measurement.first_number):
                    held_out = HeldOut(model, self.tokenizer, data, asked.max_tokens, rows, stop.check)
                    log.add(step=number, **measurement.measure(held_out), tokens=self.tokens)
            if due(settings.sample_every, "sample"):
                sampling = Sampling(max_tokens=settings.sample_tokens)
                prompt = settings.sample_prompt
                parts = stream(model, self.tokenizer, prompt, sampling, look=lambda *_: stop.check())
                log.add(step=number, sample=prompt + "".join(parts))
        self._flush()

    def _save(self, number: int) -> None:
        self._flush()
        self.judgement.tell_overflows()
        try:
            self.log.check()  # what a checkpoint goes on from is in the log
        except ResourceError as error:
            self.saver.fail(number, error)
            return
        seconds = round(time.monotonic() - self.began, 3)
        self.state.update(step=number, next_row=self.judgement.next_row, tokens=self.tokens, seconds=seconds)
        self.state["skipped"] = self.judgement.skipped
        if self.judgement.guard is not None:
            self.state["guard"] = self.judgement.guard.state()
        if self.trained.scaler is not None:
            self.state["scaler"] = self.trained.scaler.state_dict()
        measured = {name: self.log.at(number, name) for name in ("step", "tokens", "loss", "validation_bits_per_byte")}
        self.saver.save(self.trained.tensors(), self.state, measured)

    def _tell(self, event: str, **details: Any) -> None:
        self.log.event(event, **details)
        if event == "save failed":
            self.say(f"step {details['step']:,} could not be saved, training goes on: {details['why']}")

    def _load(self) -> Loaded:
        """Bring weights, optimizer, scaler, guard and log to the newest whole checkpoint, or the beginning."""

        def refused(directory: Path, why: str) -> None:
            self.say(f"passed over {directory.name}: {why}")
            self.log.event("checkpoint refused", checkpoint=directory.name, why=why)

        found = checkpoint.load_newest(
            self.checkpoints, self.trained.tensors(), self.described, self.inputs, refused, may_change
        )
        self.trained.masters.publish()
        loaded = found or Loaded({"step": 0, "next_row": 0, "tokens": 0, "skipped": [], "seconds": 0.0}, {})
        self.state = loaded.state
        self.tokens = int(self.state["tokens"])
        self.judgement.skipped = [list(rows) for rows in self.state["skipped"]]
        if self.judgement.guard is not None:
            self.judgement.guard.load(self.state.get("guard", {}))
        if self.trained.scaler is not None and "scaler" in self.state:
            self.trained.scaler.load_state_dict(self.state["scaler"])
        self.log.cut_after(self.step)
        return loaded

    def _tell_beginning(self, loaded: Loaded) -> None:
        """Where this process goes on, and with which changed settings."""
        if self.step > self.settings.steps:
            raise SettingsError(
                f"pretrain.steps = {self.settings.steps:,}, but this training is at step {self.step:,} already: with "
                f"pretrain.steps={self.step} it ends there, with --run it begins elsewhere"
            )
        event = "resumed" if self.step else "started"
        self.log.event(event, step=self.step, process=os.getpid(), threads=torch.get_num_threads())
        if self.step:
            self.say(f"going on from step {self.step:,}")
        if loaded.changed:
            self.log.event("settings changed", step=self.step, changed=loaded.changed)
            for name, (old, new) in loaded.changed.items():
                self.say(f"from there on {name}: {json.dumps(old)} → {json.dumps(new)}")

    def _go_back(self, number: int) -> None:
        """Bring everything to where it was some steps before the trouble, but for the rows: those are jumped over."""
        judgement, guard = self.judgement, self.judgement.guard
        assert guard is not None, "nothing else goes back"
        self._flush()
        self.saver.wait()
        saved = {checkpoint.step_of(path): path for path in checkpoint.found(self.checkpoints)}
        goal, next_row, rollbacks = judgement.goal(saved, number), judgement.next_row, guard.rollbacks + 1
        if not guard.may_go_back:
            what = f"{guard.bad_in_a_row} bad steps in a row up to step {number:,}, after {guard.rollbacks} times back"
            first = number - guard.bad_in_a_row + 1
            raise self._diverged(what, number, first, rows=[self.state["next_row"], next_row])
        for step, path in saved.items():
            if goal is None or step > goal:
                shutil.rmtree(path)
        if goal is None:
            self._draw_again()
        self._load()
        guard.rollbacks = rollbacks
        judgement.jump_over(self.state["next_row"], next_row)
        judgement.went_back(number, self.step, self.state["next_row"], next_row)
        self.state["next_row"] = next_row

    @torch.no_grad()
    def _draw_again(self) -> None:
        """Weights and optimizer as before the first step."""
        trained = self.trained
        fresh = assemble(self.config, self.settings, torch.device("cpu"), self.places.start)
        for name, copy in trained.masters.copies.items():
            first = fresh.masters.copies[name]
            copy.copy_(first)
            state = fresh.optimizer.state[first].items()
            trained.optimizer.state[copy] = {key: value.to(copy.device, copy=True) for key, value in state}
        if trained.scaler is not None and fresh.scaler is not None:
            trained.scaler.load_state_dict(fresh.scaler.state_dict())

    def _stopped(self, number: int, stop: Stop) -> SavedAndStopped:
        self.log.event("stopped", step=number, signal=stop.asked)
        return SavedAndStopped(f"saved at step {number:,} of {self.settings.steps:,}")

    def _diverged(self, what: str, number: int, first: int, **found: Any) -> DivergedError:
        """
        Args:
            what: was seen up to step
            number: and from step
            first: on.
        """
        if first == 1:
            whose = f"the weights of {self.places.start}" if self.places.start is not None else "the drawn weights"
            advice = (
                f"No step was taken before it, so the learning rate has no part in it. `groundup doctor RECIPE` looks "
                f"at {whose} and at these rows"
            )
            return self.judgement.diverged(what, number, advice, **found)
        kept = checkpoint.found(self.checkpoints)
        where = f"the last checkpoint is {kept[-1].name}" if kept else "no checkpoint was written yet"
        advice = (
            f"Lower pretrain.optimizer.learning_rate (now {self.settings.optimizer.learning_rate}) or lengthen "
            f"pretrain.schedule.warmup_steps; {where}"
        )
        return self.judgement.diverged(what, number, advice, **found)

    def finish(self) -> None:
        """Write the model."""
        self.log.check()
        with making(self.places.model, "model", self.described, self.inputs) as draft:
            write_model(draft, self.config, self.trained.finished_weights, self.tokenizer, Sampling().table())
            draft.seconds_before = time.monotonic() - self.began
            draft.statistics |= {
                "steps": self.settings.steps,
                "tokens": self.tokens,
                "training_flops": self.flops_per_token * self.tokens,
                "validation_bits_per_byte": self.log.last("validation_bits_per_byte"),
            }
        self.log.event("finished", step=self.settings.steps)
