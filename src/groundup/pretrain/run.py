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

from groundup import checkpoint, pretrained
from groundup.checkpoint import Kept, Loaded, Saver
from groundup.corpus.document import SPLITS
from groundup.errors import Paused, ResourceError, SavedAndStopped, SettingsError
from groundup.evals.score import score
from groundup.evals.tasks import FIRST_NUMBER, TASKS
from groundup.files import Progress, is_made, making, no_progress, read_manifest, write_json
from groundup.generation.settings import Sampling
from groundup.generation.text import stream
from groundup.model.count import count
from groundup.model.settings import ModelConfig
from groundup.optim.schedule import make_schedule
from groundup.pretrain.assemble import Assembled, assemble, batches, training_flops_per_token
from groundup.pretrain.health import Health
from groundup.pretrain.judgement import Judgement
from groundup.pretrain.log import RunLog
from groundup.pretrain.settings import PretrainSettings, may_change
from groundup.pretrain.sinks import Sinks
from groundup.pretrain.speed import WORTH_MEASURING_FLOPS, matmul_peak
from groundup.pretrain.start import take_weights, with_vocabulary_of
from groundup.shards import open_split, refuse_another_tokenizer
from groundup.tokenizer import chat
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.fit import Step, fit
from groundup.train.guard import OVERFLOWS_IN_A_ROW
from groundup.train.preemption import AskedToStop, noticing_signals

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
    assert settings.precision is not None and settings.device is not None, "chosen before the stage begins"
    tokenizer = Tokenizer.load(places.tokenizer)
    config = model_config.with_vocabulary(tokenizer.vocab_size)
    if places.start is not None:
        config = with_vocabulary_of(places.start, model_config)
    train, validation = (  # every id was compared with the vocabulary by `check_fits`
        replace(open_split(places.shards, split), vocab_size=tokenizer.vocab_size) for split in ("train", "validation")
    )
    trained = assemble(config, settings, pretrained.find_device(settings.device))
    model = trained.model
    log = RunLog(places.work)
    checkpoints = places.work / "checkpoints"
    described = {"model": model_config.table(), "pretrain": settings.table()}
    judgement = Judgement(
        settings.guard,
        model,
        trained.scaler,
        settings.micro_batch_rows,
        places.corpus / "train.parquet",
        places.work,
        log,
        say,
    )
    health = Health(model, trained.masters, settings.health_every)
    sinks = Sinks(settings.sinks, places.work, described, log.event)
    log.send = sinks.send

    def load() -> Loaded:
        return _load(checkpoints, trained, described, inputs, judgement, log, say)

    state = _restore(load(), settings, log, say)
    if places.start is not None and state["step"] == 0:
        take_weights(places.start, trained.masters)
    if until is not None and state["step"] >= until:
        raise Paused(f"paused at step {state['step']:,} of {settings.steps:,} before")
    began = time.monotonic() - state["seconds"]
    tokens, context = int(state["tokens"]), config.context_length
    flops_per_token = training_flops_per_token(config, settings.loss)
    if flops_per_token * settings.rows_before(settings.steps, context) * context >= WORTH_MEASURING_FLOPS:
        log.peak_flops = matmul_peak(config, settings, trained.device)

    def flush() -> None:
        broken = log.flush()
        if broken is not None:
            what = f"the loss at step {broken['step']:,} is {broken['loss']} (gradient norm {broken['grad_norm']})"
            raise judgement.diverged(what, broken["step"], _advice(settings, checkpoints))

    def save(step: int) -> None:
        flush()
        judgement.tell_overflows()
        try:
            log.check()  # what a checkpoint goes on from is in the log
        except ResourceError as error:
            saver.fail(step, error)
            return
        state.update(step=step, next_row=judgement.next_row, tokens=tokens, seconds=round(time.monotonic() - began, 3))
        state.update(_remembered(trained, judgement))
        measured = {name: log.at(step, name) for name in ("step", "tokens", "loss", "validation_bits_per_byte")}
        saver.save(trained.tensors(), state, measured)

    def tell(event: str, **details: Any) -> None:
        log.event(event, **details)
        if event == "save failed":
            say(f"step {details['step']:,} could not be saved, training goes on: {details['why']}")

    def go_back(number: int) -> None:
        """Bring everything to where it was some steps before the trouble, but for the rows: those are jumped over."""
        nonlocal state, tokens
        guard = judgement.guard
        assert guard is not None, "nothing else goes back"
        flush()
        saver.wait()
        saved = {checkpoint.step_of(path): path for path in checkpoint.found(checkpoints)}
        goal, next_row, rollbacks = judgement.goal(saved, number), judgement.next_row, guard.rollbacks + 1
        if not guard.may_go_back:
            what = f"{guard.bad_in_a_row} bad steps in a row up to step {number:,}, after {guard.rollbacks} times back"
            raise judgement.diverged(what, number, _advice(settings, checkpoints), rows=[state["next_row"], next_row])
        for step, path in saved.items():
            if goal is None or step > goal:
                shutil.rmtree(path)
        if goal is None:
            _draw_again(trained, config, settings)
            if places.start is not None:
                take_weights(places.start, trained.masters)
        state = load().state
        guard.rollbacks = rollbacks
        judgement.jump_over(state["next_row"], next_row)
        judgement.went_back(number, state["step"], state["next_row"], next_row)
        state["next_row"], tokens = next_row, int(state["tokens"])

    def accept(step: Step) -> bool:
        assert judgement.batch is not None, "a step has read one"
        health.before(step, judgement.batch)
        return judgement.accept(step)

    def stepping() -> Iterator[Step]:
        """The steps of `fit`, which is entered again where the guard goes back."""
        while True:
            start = int(state["step"])
            rows = (settings.batch_rows(step, context) for step in itertools.count(start))
            for step in fit(
                trained.optimizer,
                make_schedule(settings.schedule, settings.steps),
                judgement.reading(batches(train, context, settings.seed, rows, state["next_row"]), state["next_row"]),
                trained.gradients(settings, lambda batch: -(-len(batch.weight) // settings.micro_batch_rows), start),
                steps=settings.steps,
                start=start,
                clip=settings.clip,
                clip_value=settings.clip_value,
                scaler=trained.scaler,
                accept=accept,
            ):
                if judgement.goes_back:
                    log.step(step, tokens, time.monotonic() - began, flops_per_token * tokens)
                    go_back(step.number)
                    break
                yield step
            else:
                return

    def look_up(number: int) -> None:
        """Measure and write what is due after this step and not in the log; what a signal cuts short is due again."""
        last, rows = number in (settings.steps, until), settings.micro_batch_rows

        def due(every: int, name: str) -> bool:
            return (number % every == 0 or last) and log.at(number, name) is None

        flush()  # before a model that diverged is asked for anything
        with trained.as_finished():
            if due(settings.validate_every, "validation_bits_per_byte"):
                most = settings.validation_tokens
                measured = score(model, validation, max_tokens=most, batch_rows=rows, progress=stop.check)
                log.add(step=number, validation_bits_per_byte=measured.bits_per_byte, tokens=tokens)
            for asked in settings.evaluations:
                if due(asked.every, FIRST_NUMBER.get(asked.task, asked.task)):
                    task, most = TASKS[asked.task], asked.max_tokens
                    log.add(step=number, **task(model, tokenizer, validation, most, rows, stop.check), tokens=tokens)
            if due(settings.sample_every, "sample"):
                sampling = Sampling(max_tokens=settings.sample_tokens)
                parts = stream(model, tokenizer, settings.sample_prompt, sampling, look=lambda *_: stop.check())
                log.add(step=number, sample=settings.sample_prompt + "".join(parts))
        flush()

    def stopped(number: int) -> SavedAndStopped:
        log.event("stopped", step=number, signal=stop.asked)
        return SavedAndStopped(f"saved at step {number:,} of {settings.steps:,}")

    intervals = [settings.validate_every, settings.sample_every, *(asked.every for asked in settings.evaluations)]
    kept = Kept(settings.keep_checkpoints, settings.keep_every_steps, settings.keep_best)
    saver = Saver(checkpoints, kept, described, inputs, failures=settings.failed_checkpoints, tell=tell)
    with noticing_signals() as stop, sinks, saver:
        try:
            stop.at_once = True  # up to the end of the first step, which may be long: the model is compiled in it
            if state["step"]:
                look_up(state["step"])
            for step in stepping():
                stop.at_once = False
                number = step.number
                if trained.average is not None:
                    trained.average.update(number)
                tokens += settings.batch_rows(number - 1, context) * context
                log.step(step, tokens, time.monotonic() - began, flops_per_token * tokens)
                if judgement.count_overflow(step):
                    in_a_row = f"{OVERFLOWS_IN_A_ROW} steps in a row up to step {number:,}"
                    what = f"the gradients overflowed float16 in {in_a_row}"
                    raise judgement.diverged(what, number, _advice(settings, checkpoints))
                if (line := health.after(step)) is not None:
                    log.health(line)
                last = number in (settings.steps, until)
                if number % STEPS_PER_FLUSH == 0:
                    flush()
                if last or any(number % every == 0 for every in intervals):
                    with contextlib.suppress(AskedToStop):
                        look_up(number)
                if (number % settings.checkpoint_every == 0 and judgement.calm) or last or stop.asked:
                    save(number)
                if stop.asked or (number == until and number < settings.steps):
                    saver.wait(last=True)
                    raise stopped(number) if stop.asked else Paused(f"paused at step {number:,} of {settings.steps:,}")
                saver.poll()
                progress(number, settings.steps, log.summary())
        except AskedToStop:
            raise stopped(state["step"]) from None
        stop.at_once = False
        with contextlib.suppress(ResourceError):  # the model itself is about to be written
            saver.wait()
    log.check()
    with making(places.model, "model", described, inputs) as draft:
        finished = {
            name: weight for name, weight in trained.finished_weights.items() if not name.startswith("multi_token.")
        }
        pretrained.save(draft.path, config, finished, tokenizer)
        write_json(draft.path / "generation.json", Sampling().table())
        write_json(draft.path / chat.FILE, chat.CONTINUES_TEXT)
        draft.seconds_before = time.monotonic() - began
        draft.statistics |= _statistics(config, settings, tokens, log)
    log.event("finished", step=settings.steps)
    if stop.asked:
        raise SavedAndStopped("the model is finished and saved; what comes after it is not done yet")


def _restore(loaded: Loaded, settings: PretrainSettings, log: RunLog, say: Callable[[str], None]) -> dict[str, Any]:
    """Tell, at the beginning of a process, where it goes on and with which changed settings; the state there."""
    state = loaded.state
    if state["step"] > settings.steps:
        raise SettingsError(
            f"pretrain.steps = {settings.steps:,}, but this training is at step {state['step']:,} already: with "
            f"pretrain.steps={state['step']} it ends there, with --run it begins elsewhere"
        )
    found = state["step"] > 0
    log.event(
        "resumed" if found else "started", step=state["step"], process=os.getpid(), threads=torch.get_num_threads()
    )
    if found:
        say(f"going on from step {state['step']:,}")
    if loaded.changed:
        log.event("settings changed", step=state["step"], changed=loaded.changed)
        for name, (old, new) in loaded.changed.items():
            say(f"from there on {name}: {json.dumps(old)} → {json.dumps(new)}")
    return state


def _load(
    checkpoints: Path,
    trained: Assembled,
    described: dict[str, Any],
    inputs: dict[str, str],
    judgement: Judgement,
    log: RunLog,
    say: Callable[[str], None],
) -> Loaded:
    """Bring weights, optimizer, scaler, guard and log to the newest whole checkpoint, or the beginning."""

    def refused(directory: Path, why: str) -> None:
        say(f"passed over {directory.name}: {why}")
        log.event("checkpoint refused", checkpoint=directory.name, why=why)

    found = checkpoint.load_newest(checkpoints, trained.tensors(), described, inputs, refused, may_change)
    trained.masters.publish()
    loaded = found or Loaded({"step": 0, "next_row": 0, "tokens": 0, "skipped": [], "seconds": 0.0}, {})
    judgement.skipped = [list(rows) for rows in loaded.state["skipped"]]
    if judgement.guard is not None:
        judgement.guard.load(loaded.state.get("guard", {}))
    if trained.scaler is not None and "scaler" in loaded.state:
        trained.scaler.load_state_dict(loaded.state["scaler"])
    log.cut_after(loaded.state["step"])
    return loaded


def _remembered(trained: Assembled, judgement: Judgement) -> dict[str, Any]:
    """What a checkpoint's state has of the guard and the scaler."""
    remembered: dict[str, Any] = {"skipped": judgement.skipped}
    if judgement.guard is not None:
        remembered["guard"] = judgement.guard.state()
    if trained.scaler is not None:
        remembered["scaler"] = trained.scaler.state_dict()
    return remembered


@torch.no_grad()
def _draw_again(trained: Assembled, config: ModelConfig, settings: PretrainSettings) -> None:
    """Weights and optimizer as before the first step."""
    fresh = assemble(config, settings, torch.device("cpu"))
    for name, copy in trained.masters.copies.items():
        first = fresh.masters.copies[name]
        copy.copy_(first)
        state = fresh.optimizer.state[first].items()
        trained.optimizer.state[copy] = {key: value.to(copy.device, copy=True) for key, value in state}
    if trained.scaler is not None and fresh.scaler is not None:
        trained.scaler.load_state_dict(fresh.scaler.state_dict())


def _statistics(config: ModelConfig, settings: PretrainSettings, tokens: int, log: RunLog) -> dict[str, Any]:
    counted = count(config)
    return {
        "steps": settings.steps,
        "tokens": tokens,
        "training_flops": training_flops_per_token(config, settings.loss) * tokens,
        "parameters": dict(counted.parameters),
        "forward_flops_per_token": dict(counted.forward_flops_per_token),
        "validation_bits_per_byte": log.last("validation_bits_per_byte"),
    }


def _advice(settings: PretrainSettings, checkpoints: Path) -> str:
    kept = checkpoint.found(checkpoints)
    where = f"the last checkpoint is {kept[-1].name}" if kept else "no checkpoint was written yet"
    return (
        f"Lower pretrain.optimizer.learning_rate (now {settings.optimizer.learning_rate}) or lengthen "
        f"pretrain.schedule.warmup_steps; {where}"
    )
