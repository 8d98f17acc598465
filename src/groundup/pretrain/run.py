"""The pretraining stage: shards in, a model out; interrupted at any moment, it goes on as if it had not been.

Every number of the run is a function of the recipe and the step: rows come from their number, dropout from (seed,
step, piece), samples from their own seed. So resuming needs only the weights, the optimizer's state and the step.
"""

import contextlib
import ctypes
import json
import math
import os
import platform
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from groundup import checkpoint, loader, losses, pretrained
from groundup.batch import Batch
from groundup.corpus.document import SPLITS
from groundup.errors import DivergedError, SavedAndStopped, SettingsError
from groundup.evals.score import score
from groundup.files import (
    Progress,
    is_made,
    making,
    naming_the_place,
    no_progress,
    read_lines,
    read_manifest,
    write_json,
    write_text,
)
from groundup.generation.settings import Sampling
from groundup.generation.text import generate
from groundup.model.count import DTYPES, Precision, count
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.adamw import Masters, make_adamw
from groundup.optim.schedule import make_schedule
from groundup.pretrain.settings import MultiToken, NextToken, PretrainSettings
from groundup.shards import Tokens, open_split, refuse_another_tokenizer
from groundup.tokenizer import chat
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.fit import Step, accumulate, fit

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


def prepare_process() -> None:
    """Let freed memory stay with the process, where the C library is glibc.

    Each step frees and takes hundreds of megabytes; handing them back to the system and faulting them in again costs
    a part of every step, the larger the more there is (docs/numbers.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


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


def faster_precision(
    model: ModelConfig, settings: PretrainSettings, shards: Path, device: torch.device, seconds: float = 1.0
) -> tuple[Precision, dict[Precision, float]]:
    """Train a throw-away model in each precision for `seconds`; the faster one, and tokens per second of each."""
    train = open_split(shards, "train")
    rows = min(settings.micro_batch_rows, settings.batch_tokens // model.context_length)
    speeds: dict[Precision, float] = {}
    for precision, dtype in DTYPES.items():
        throw_away = _new_model(model, settings, device)
        masters = Masters(throw_away, dtype)
        optimizer = make_adamw(masters, settings.optimizer)
        masters.follow(optimizer)
        batches = _batches(train, model.context_length, settings.seed, rows, 0)
        gradients = accumulate(throw_away, _loss(settings), 1)
        taken: list[float] = []
        last = started = time.monotonic()
        for step in fit(optimizer, lambda _: 1.0, batches, gradients, steps=1000):
            step.loss.item()  # waits for the device
            now = time.monotonic()
            taken.append(now - last)
            last = now
            if now - started > seconds and len(taken) > 2:
                break
        speeds[precision] = rows * model.context_length / statistics.median(taken[1:])  # the first one warms up
    return max(speeds, key=lambda name: speeds[name]), speeds


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
    model = _new_model(config, settings, pretrained.find_device(settings.device))
    masters = Masters(model, DTYPES[settings.precision])
    optimizer = make_adamw(masters, settings.optimizer)
    masters.follow(optimizer)
    log = RunLog(places.work)
    checkpoints = places.work / "checkpoints"
    described = {"model": model_config.table(), "pretrain": settings.table()}
    state = _restore(checkpoints, masters, optimizer, described, inputs, log, say)
    start, tokens = int(state["step"]), int(state["tokens"])
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
        state.update(step=step, next_row=step * rows, tokens=tokens, seconds=round(time.monotonic() - began, 3))
        keep = settings.keep_checkpoints
        checkpoint.save(checkpoints, masters.copies, optimizer, state, described, inputs, keep)
        log.event("saved", step=step)

    with noticing_signals() as stop:
        steps = fit(
            optimizer,
            make_schedule(settings.schedule, settings.steps),
            _batches(train, config.context_length, settings.seed, rows, state["next_row"]),
            accumulate(model, _loss(settings), -(-rows // settings.micro_batch_rows), seed=settings.seed, start=start),
            steps=settings.steps,
            start=start,
            clip=settings.clip,
        )
        for step in steps:
            number = step.number
            tokens += settings.batch_tokens
            log.step(step, tokens, time.monotonic() - began, flops_per_token * tokens)
            last = number == settings.steps
            looks_up = number % settings.validate_every == 0 or number % settings.sample_every == 0 or last
            if looks_up or number % STEPS_PER_FLUSH == 0:
                flush()  # before a model that diverged is asked for anything
            if number % settings.validate_every == 0 or last:
                measured = score(
                    model, validation, max_tokens=settings.validation_tokens, batch_rows=settings.micro_batch_rows
                )
                log.add(step=number, validation_bits_per_byte=measured.bits_per_byte, tokens=tokens)
            if number % settings.sample_every == 0 or last:
                text = generate(model, tokenizer, settings.sample_prompt, max_tokens=settings.sample_tokens)
                log.add(step=number, sample=settings.sample_prompt + text)
            if number % settings.checkpoint_every == 0 or last or stop.asked:
                save(number)
            if stop.asked and not last:
                log.event("stopped", step=number, signal=stop.asked)
                raise SavedAndStopped(f"saved at step {number:,} of {settings.steps:,}")
            progress(number, settings.steps, log.summary())
    if log.last("validation_bits_per_byte") is None:  # the metrics of an earlier process are gone
        measured = score(model, validation, max_tokens=settings.validation_tokens)
        log.add(step=settings.steps, validation_bits_per_byte=measured.bits_per_byte, tokens=tokens)
        flush()
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
    masters: Masters,
    optimizer: torch.optim.Optimizer,
    described: dict[str, Any],
    inputs: dict[str, str],
    log: "RunLog",
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


def _statistics(config: ModelConfig, settings: PretrainSettings, tokens: int, log: "RunLog") -> dict[str, Any]:
    counted = count(config)
    return {
        "steps": settings.steps,
        "tokens": tokens,
        "training_flops": training_flops_per_token(config, settings.loss) * tokens,
        "parameters": dict(counted.parameters),
        "forward_flops_per_token": dict(counted.forward_flops_per_token),
        "validation_bits_per_byte": log.last("validation_bits_per_byte"),
    }


def training_flops_per_token(config: ModelConfig, loss: NextToken | MultiToken) -> int:
    """Forward and backward, with what the loss adds: for each token further ahead, a block and the head again."""
    counted = count(config)
    match loss:
        case NextToken():
            return counted.training_flops_per_token
        case MultiToken(extra_tokens=extra):
            deeper = count(config.model_copy(update={"n_layers": config.n_layers + 1})).training_flops_per_token
            block = deeper - counted.training_flops_per_token
            head = 3 * sum(counted.forward_flops_per_token.get(part, 0) for part in ("project_out", "head"))
            return counted.training_flops_per_token + extra * (block + head)


def _divergence(broken: dict[str, Any], settings: PretrainSettings, checkpoints: Path) -> str:
    kept = checkpoint.found(checkpoints)
    where = f"the last good checkpoint is {kept[-1].name}" if kept else "no checkpoint was written yet"
    return (
        f"the loss at step {broken['step']:,} is {broken['loss']} (gradient norm {broken['grad_norm']}): training "
        f"diverged. Lower pretrain.optimizer.learning_rate (now {settings.optimizer.learning_rate}) or lengthen "
        f"pretrain.schedule.warmup_steps; {where}"
    )


def _new_model(config: ModelConfig, settings: PretrainSettings, device: torch.device) -> Transformer:
    torch.manual_seed(settings.seed)
    model = Transformer(config)
    if isinstance(settings.loss, MultiToken):
        model.add_multi_token(settings.loss.extra_tokens)
    return model.to(device)  # drawn on the CPU: the same weights on every device


def _loss(settings: PretrainSettings) -> losses.Loss:
    match settings.loss:
        case NextToken():
            return losses.next_token
        case MultiToken(weight=weight):
            return partial(losses.multi_token, weight=weight)


def _batches(shards: Tokens, context_length: int, seed: int, rows: int, first: int) -> Iterator[Batch]:
    while True:
        yield loader.rows(shards, context_length, seed, first, rows)
        first += rows


class RunLog:
    """metrics.jsonl: what each step did, cut back to the checkpoint on resume. events.jsonl: what happened."""

    def __init__(self, directory: Path) -> None:
        with naming_the_place(directory):
            directory.mkdir(parents=True, exist_ok=True)
        self._metrics = directory / "metrics.jsonl"
        self._events = directory / "events.jsonl"
        self._waiting: list[Callable[[], dict[str, Any]]] = []
        self._last: dict[str, Any] = {}

    def cut_after(self, step: int) -> None:
        """Forget lines of later steps, and a line that a killed process left half-written."""
        lines = [line for line in read_lines(self._metrics) if isinstance(line.get("step"), int)]
        kept = [line for line in lines if line["step"] <= step]
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))
        for line in kept:
            self._last |= line

    def step(self, step: Step, tokens: int, seconds: float, flops: int) -> None:
        self._waiting.append(
            lambda: {
                "step": step.number,
                "loss": step.loss.item(),
                **{name: part.item() for name, part in step.parts.items()},
                "grad_norm": step.grad_norm.item(),
                "learning_rate": step.learning_rate,
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "flops": flops,
            }
        )

    def add(self, **line: Any) -> None:
        self._waiting.append(lambda: line)

    def flush(self) -> dict[str, Any] | None:
        """Write what waits. A step whose loss or gradient is not a finite number is not written but returned."""
        lines = [make() for make in self._waiting]
        self._waiting = []
        for number, line in enumerate(lines):
            if "loss" in line and not (math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])):
                _append(self._metrics, lines[:number])
                return {"step": line["step"], "loss": str(line["loss"]), "grad_norm": str(line["grad_norm"])}
            self._last |= line
        _append(self._metrics, lines)
        return None

    def event(self, kind: str, **details: Any) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _append(self._events, [{"at": at, "event": kind, **details}])

    def last(self, name: str) -> Any:
        return self._last.get(name)

    def summary(self) -> str:
        """A few words for the progress bar."""
        shown = {"loss": ("loss", ".3f"), "validation_bits_per_byte": ("validation bits/byte", ".3f")}
        return ", ".join(
            f"{label} {self._last[name]:{form}}" for name, (label, form) in shown.items() if name in self._last
        )


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    with naming_the_place(path), open(path, "a+b") as stream:
        if stream.tell() and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n":
            stream.write(b"\n")  # a killed process left half a line; it must not swallow the next
        stream.write("".join(json.dumps(line) + "\n" for line in lines).encode())


@dataclass
class Stop:
    """Whether a signal asked this process to stop, and which."""

    asked: str | None = None


@contextlib.contextmanager
def noticing_signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM are remembered, to be obeyed between two steps; a second one ends the process at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers; its owner decides
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            os._exit(128 + number)
        stop.asked = signal.Signals(number).name

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
