"""The pretraining stage: shards in, a model out; interrupted at any moment, it goes on as if it had not been.

Every number of the run is a function of the recipe and the step: rows come from their number, dropout from (seed,
step, piece), samples from their own seed. So resuming needs only the weights, the optimizer's state and the step.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from groundup import checkpoint, pretrained
from groundup.corpus.document import SPLITS
from groundup.errors import DivergedError, SavedAndStopped, SettingsError
from groundup.evals.score import score
from groundup.files import Progress, is_made, making, no_progress, read_manifest, write_json
from groundup.generation.settings import Sampling
from groundup.generation.text import generate
from groundup.model.count import count
from groundup.model.settings import ModelConfig
from groundup.optim.precision import Masters
from groundup.optim.schedule import make_schedule
from groundup.pretrain.assemble import assemble, batches, training_flops_per_token
from groundup.pretrain.log import RunLog
from groundup.pretrain.settings import PretrainSettings
from groundup.shards import open_split, refuse_another_tokenizer
from groundup.tokenizer import chat
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.fit import fit
from groundup.train.preemption import noticing_signals

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
    state = _restore(checkpoints, masters, optimizer, described, inputs, log, say)
    start, tokens = int(state["step"]), int(state["tokens"])
    began = time.monotonic() - state["seconds"]
    context = config.context_length
    flops_per_token = training_flops_per_token(config, settings.loss)

    def flush() -> None:
        broken = log.flush()
        if broken is not None:
            log.event("diverged", **broken)
            raise DivergedError(_divergence(broken, settings, checkpoints))

    def save(step: int) -> None:
        flush()
        state.update(
            step=step,
            next_row=settings.rows_before(step, context),
            tokens=tokens,
            seconds=round(time.monotonic() - began, 3),
        )
        keep = settings.keep_checkpoints
        checkpoint.save(checkpoints, masters.copies, optimizer, state, described, inputs, keep)
        log.event("saved", step=step)

    rows = (settings.batch_rows(step, context) for step in itertools.count(start))
    with noticing_signals() as stop:
        steps = fit(
            optimizer,
            make_schedule(settings.schedule, settings.steps),
            batches(train, context, settings.seed, rows, state["next_row"]),
            trained.gradients(settings, lambda batch: -(-len(batch.weight) // settings.micro_batch_rows), start),
            steps=settings.steps,
            start=start,
            clip=settings.clip,
            clip_value=settings.clip_value,
            scaler=trained.scaler,
        )
        for step in steps:
            number = step.number
            if trained.average is not None:
                trained.average.update(number)
            tokens += settings.batch_rows(number - 1, context) * context
            log.step(step, tokens, time.monotonic() - began, flops_per_token * tokens)
            last = number == settings.steps
            looks_up = number % settings.validate_every == 0 or number % settings.sample_every == 0 or last
            if looks_up or number % STEPS_PER_FLUSH == 0:
                flush()  # before a model that diverged is asked for anything
            if number % settings.validate_every == 0 or last:
                with trained.as_finished():
                    measured = score(
                        model, validation, max_tokens=settings.validation_tokens, batch_rows=settings.micro_batch_rows
                    )
                log.add(step=number, validation_bits_per_byte=measured.bits_per_byte, tokens=tokens)
            if number % settings.sample_every == 0 or last:
                with trained.as_finished():
                    text = generate(model, tokenizer, settings.sample_prompt, max_tokens=settings.sample_tokens)
                log.add(step=number, sample=settings.sample_prompt + text)
            if number % settings.checkpoint_every == 0 or last or stop.asked:
                save(number)
            if stop.asked and not last:
                log.event("stopped", step=number, signal=stop.asked)
                raise SavedAndStopped(f"saved at step {number:,} of {settings.steps:,}")
            progress(number, settings.steps, log.summary())
    if log.last("validation_bits_per_byte") is None:  # the metrics of an earlier process are gone
        with trained.as_finished():
            measured = score(model, validation, max_tokens=settings.validation_tokens)
        log.add(step=settings.steps, validation_bits_per_byte=measured.bits_per_byte, tokens=tokens)
        flush()
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


def _restore(
    checkpoints: Path,
    masters: Masters,
    optimizer: torch.optim.Optimizer,
    described: dict[str, Any],
    inputs: dict[str, str],
    log: RunLog,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Bring weights, optimizer and log to the newest whole checkpoint, or the beginning; the state of the run there."""

    def refused(directory: Path, why: str) -> None:
        say(f"passed over {directory.name}: {why}")
        log.event("checkpoint refused", checkpoint=directory.name, why=why)

    found = checkpoint.load_newest(checkpoints, masters.copies, optimizer, described, inputs, refused)
    masters.publish()
    state = found or {"step": 0, "next_row": 0, "tokens": 0, "skipped": [], "seconds": 0.0}
    log.cut_after(state["step"])
    log.event(
        "resumed" if found else "started", step=state["step"], process=os.getpid(), threads=torch.get_num_threads()
    )
    if found:
        say(f"going on from step {state['step']:,}")
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
