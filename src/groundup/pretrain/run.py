"""The pretraining stage: shards in, a model out; interrupted at any moment, it goes on as if it had not been.

Every number of the run is a function of the recipe and the step: rows come from their number, dropout from (seed,
step, piece), samples from their own seed. So resuming needs only the weights, the optimizer's state and the step.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from groundup import checkpoint, pretrained
from groundup.checkpoint import Kept, Saver
from groundup.corpus.document import SPLITS
from groundup.errors import DivergedError, ResourceError, SavedAndStopped, SettingsError
from groundup.evals.score import score
from groundup.files import Progress, is_made, making, no_progress, read_manifest, write_json
from groundup.generation.settings import Sampling
from groundup.generation.text import stream
from groundup.model.count import count
from groundup.model.settings import ModelConfig
from groundup.optim.schedule import make_schedule
from groundup.pretrain.assemble import Assembled, assemble, batches, training_flops_per_token
from groundup.pretrain.log import RunLog
from groundup.pretrain.settings import PretrainSettings, may_change
from groundup.shards import open_split, refuse_another_tokenizer
from groundup.tokenizer import chat
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.fit import fit
from groundup.train.preemption import AskedToStop, noticing_signals

STEPS_PER_FLUSH = 10
"""Metrics are written this often: reading a loss waits for the device."""


@dataclass(frozen=True)
class Places:
    """Where a run keeps what pretraining reads and writes."""

    shards: Path
    tokenizer: Path
    work: Path
    """metrics.jsonl, events.jsonl, checkpoints/"""
    model: Path


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
) -> None:
    """Train, or go on training, and write `places.model`.

    Args:
        settings: with `device` and `precision` chosen.
        inputs: name of each input → its digest, recorded in checkpoints and model.

    Raises:
        SavedAndStopped: after Ctrl-C or SIGTERM, with a checkpoint written.
        DivergedError: when the loss is no longer a number.
    """
    assert settings.precision is not None and settings.device is not None, "chosen before the stage begins"
    tokenizer = Tokenizer.load(places.tokenizer)
    config = model_config.with_vocabulary(tokenizer.vocab_size)
    train, validation = open_split(places.shards, "train"), open_split(places.shards, "validation")
    trained = assemble(config, settings, pretrained.find_device(settings.device))
    model, masters, optimizer = trained.model, trained.masters, trained.optimizer
    log = RunLog(places.work)
    checkpoints = places.work / "checkpoints"
    described = {"model": model_config.table(), "pretrain": settings.table()}
    state = _restore(checkpoints, trained, settings, described, inputs, log, say)
    start, tokens, first_row = int(state["step"]), int(state["tokens"]), int(state["next_row"])
    began = time.monotonic() - state["seconds"]
    rows = settings.batch_tokens // config.context_length
    flops_per_token = training_flops_per_token(config, settings.loss)

    def flush() -> None:
        broken = log.flush()
        if broken is not None:
            log.event("diverged", **broken)
            raise DivergedError(_divergence(broken, settings, checkpoints))

    def save(step: int) -> None:
        flush()
        try:
            log.check()  # what a checkpoint goes on from is in the log
        except ResourceError as error:
            saver.fail(step, error)
            return
        next_row = first_row + (step - start) * rows
        state.update(step=step, next_row=next_row, tokens=tokens, seconds=round(time.monotonic() - began, 3))
        if trained.scaler is not None:
            state["scaler"] = trained.scaler.state_dict()
        measured = {name: log.at(step, name) for name in ("step", "tokens", "loss", "validation_bits_per_byte")}
        saver.save(trained.tensors(), state, measured)

    def tell(event: str, **details: Any) -> None:
        log.event(event, **details)
        if event == "save failed":
            say(f"step {details['step']:,} could not be saved, training goes on: {details['why']}")

    def look_up(number: int) -> None:
        """Measure and write what is due after this step and not in the log; what a signal cuts short is due again."""
        last = number == settings.steps
        if (number % settings.validate_every == 0 or last) and log.at(number, "validation_bits_per_byte") is None:
            measured = score(
                model,
                validation,
                max_tokens=settings.validation_tokens,
                batch_rows=settings.micro_batch_rows,
                progress=stop.check,
            )
            log.add(step=number, validation_bits_per_byte=measured.bits_per_byte, tokens=tokens)
        if (number % settings.sample_every == 0 or last) and log.at(number, "sample") is None:
            sampling = Sampling(max_tokens=settings.sample_tokens)
            parts = stream(model, tokenizer, settings.sample_prompt, sampling, look=lambda *_: stop.check())
            log.add(step=number, sample=settings.sample_prompt + "".join(parts))
        flush()

    def stopped(number: int) -> SavedAndStopped:
        log.event("stopped", step=number, signal=stop.asked)
        return SavedAndStopped(f"saved at step {number:,} of {settings.steps:,}")

    kept = Kept(settings.keep_checkpoints, settings.keep_every_steps, settings.keep_best)
    saver = Saver(checkpoints, kept, described, inputs, failures=settings.failed_checkpoints, tell=tell)
    with noticing_signals() as stop, saver:
        steps = fit(
            optimizer,
            make_schedule(settings.schedule, settings.steps),
            batches(train, config.context_length, settings.seed, rows, first_row),
            trained.gradients(settings, -(-rows // settings.micro_batch_rows), start),
            steps=settings.steps,
            start=start,
            clip=settings.clip,
            scaler=trained.scaler,
        )
        try:
            stop.at_once = True  # up to the end of the first step, which may be long: the model is compiled in it
            if start:
                look_up(start)
            for step in steps:
                stop.at_once = False
                number = step.number
                tokens += settings.batch_tokens
                log.step(step, tokens, time.monotonic() - began, flops_per_token * tokens)
                if number % STEPS_PER_FLUSH == 0:
                    flush()
                last = number == settings.steps
                if number % settings.validate_every == 0 or number % settings.sample_every == 0 or last:
                    flush()  # before a model that diverged is asked for anything
                    with contextlib.suppress(AskedToStop):
                        look_up(number)
                if number % settings.checkpoint_every == 0 or last or stop.asked:
                    save(number)
                if stop.asked:
                    saver.wait(last=True)
                    raise stopped(number)
                saver.poll()
                progress(number, settings.steps, log.summary())
        except AskedToStop:
            raise stopped(start) from None
        stop.at_once = False
        with contextlib.suppress(ResourceError):  # the model itself is about to be written
            saver.wait()
    log.check()
    with making(places.model, "model", described, inputs) as draft:
        finished = {name: copy for name, copy in masters.copies.items() if not name.startswith("multi_token.")}
        pretrained.save(draft.path, config, finished, tokenizer)
        write_json(draft.path / "generation.json", Sampling().table())
        write_json(draft.path / chat.FILE, chat.CONTINUES_TEXT)
        draft.seconds_before = time.monotonic() - began
        draft.statistics |= _statistics(config, settings, tokens, log)
    log.event("finished", step=settings.steps)
    if stop.asked:
        raise SavedAndStopped("the model is finished and saved; what comes after it is not done yet")


def _restore(
    checkpoints: Path,
    trained: Assembled,
    settings: PretrainSettings,
    described: dict[str, Any],
    inputs: dict[str, str],
    log: RunLog,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Bring weights, optimizer, scaler and log to the newest whole checkpoint, or the beginning; the state there."""

    def refused(directory: Path, why: str) -> None:
        say(f"passed over {directory.name}: {why}")
        log.event("checkpoint refused", checkpoint=directory.name, why=why)

    loaded = checkpoint.load_newest(checkpoints, trained.tensors(), described, inputs, refused, may_change)
    trained.masters.publish()
    beginning = {"step": 0, "next_row": 0, "tokens": 0, "skipped": [], "seconds": 0.0}
    state: dict[str, Any] = loaded.state if loaded else beginning
    if state["step"] > settings.steps:
        raise SettingsError(
            f"pretrain.steps = {settings.steps:,}, but this training is at step {state['step']:,} already: with "
            f"pretrain.steps={state['step']} it ends there, with --run it begins elsewhere"
        )
    if trained.scaler is not None and "scaler" in state:
        trained.scaler.load_state_dict(state["scaler"])
    log.cut_after(state["step"])
    log.event(
        "resumed" if loaded else "started", step=state["step"], process=os.getpid(), threads=torch.get_num_threads()
    )
    if loaded:
        say(f"going on from step {state['step']:,}")
    if loaded and loaded.changed:
        log.event("settings changed", step=state["step"], changed=loaded.changed)
        for name, (old, new) in loaded.changed.items():
            say(f"from there on {name}: {json.dumps(old)} → {json.dumps(new)}")
    return state


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


def _divergence(broken: dict[str, Any], settings: PretrainSettings, checkpoints: Path) -> str:
    kept = checkpoint.found(checkpoints)
    where = f"the last good checkpoint is {kept[-1].name}" if kept else "no checkpoint was written yet"
    return (
        f"the loss at step {broken['step']:,} is {broken['loss']} (gradient norm {broken['grad_norm']}): training "
        f"diverged. Lower pretrain.optimizer.learning_rate (now {settings.optimizer.learning_rate}) or lengthen "
        f"pretrain.schedule.warmup_steps; {where}"
    )
