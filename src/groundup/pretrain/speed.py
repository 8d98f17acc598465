"""The speed of a recipe on this machine: tokens a second, its share of the matmul peak, and where the time goes.

Everything here trains a throw-away model that is assembled as the stage assembles it, and steps it with `fit`.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from groundup.batch import Batch
from groundup.machine import allocator, peak_memory, processor
from groundup.model.execution import why_not_compiled
from groundup.model.settings import ModelConfig
from groundup.optim.precision import optimizer_matmul_dtype
from groundup.optim.settings import Bfloat16, Float16, Float32, Precision
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import batches, set_up, training_flops_per_token
from groundup.shards import open_split
from groundup.train.assemble import Assembled
from groundup.train.fit import Gradients, fit

WARMUP_STEPS = 2
"""The first steps allocate memory, compile, and choose kernels."""
FEWEST_STEPS = 3
STEPS_PER_WAIT_ON_ACCELERATOR = 10
"""The training stage, too, waits for the device only now and then; a wait in each step would slow it."""
TRACED_STEPS = 2
SHOWN_OPERATIONS = 10
SQUARE_ON_CPU, SQUARE = 2048, 8192
"""Edge of a square matmul that is timed beside the model's own shapes."""
WORTH_MEASURING_FLOPS, WORTH_COMPILING_SECONDS = 2e13, 60.0
"""FLOPs of a whole training from which on its speed is measured; seconds from which on compilation is tried."""
PARTS = ("data", "forward", "backward", "clip", "optimizer", "rest")
MOST_ROWS = 16_384
"""Rows of the matmuls of the model's shapes."""


@dataclass(frozen=True)
class Speed:
    """The speed of a training on this machine, and what belongs to it."""

    tokens_per_second: float
    """Median over the steps, or over groups of steps on an accelerator."""
    slowest: float
    fastest: float
    """Tokens a second of the slowest and the fastest of them."""
    steps: int
    batch_tokens: int
    """Tokens of each step that was measured."""
    flops_per_token: int
    """FLOPs of the model's matmuls, forward and backward; what is recomputed to save memory is counted once."""
    peak_flops: float
    """FLOPs a second of the fastest matmul in the run's type."""
    peak_bytes: int
    """Peak memory: of the process on a CPU, of torch's tensors on an accelerator."""
    parts: dict[str, float]
    """Seconds of a step by part, measured in steps of their own with a wait after each part."""
    machine: dict[str, str]
    operations: list[tuple[str, float, int]]
    """With a trace: the operations that took most time themselves, each with its seconds and calls per step."""

    @property
    def flops_per_second(self) -> float:
        return self.tokens_per_second * self.flops_per_token

    @property
    def share_of_peak(self) -> float:
        return self.flops_per_second / self.peak_flops

    def table(self) -> dict[str, Any]:
        """All of it as plain values."""
        derived = {"flops_per_second": self.flops_per_second, "share_of_peak": self.share_of_peak}
        return dataclasses.asdict(self) | derived


def measure_speed(
    config: ModelConfig,
    settings: PretrainSettings,
    drawn: Iterator[Batch],
    device: torch.device,
    *,
    seconds: float = 10.0,
    steps: int | None = None,
    trace: Path | None = None,
) -> Speed:
    """Train a throw-away model of `config` for a while.

    Args:
        config: with its vocabulary.
        settings: with the precision chosen.
        drawn: batches of the size that a step is to have; each micro-batch of `settings` goes through the model alone.
        seconds: about how long, after warming up; at least three steps.
        steps: exactly so many instead.
        trace: where a profiler's trace of two more steps is written, for chrome://tracing or Perfetto; `.gz` packs it.
    """
    assembled = set_up(config, settings, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken, batch_tokens = time_steps(assembled, settings, drawn, seconds=seconds, steps=steps)
    peak_bytes = peak_memory(device)  # before anything is held that only measures
    parts = _time_parts(assembled, settings, drawn, max(FEWEST_STEPS, min(10, len(taken) // 3)))
    operations = [] if trace is None else _trace(assembled, settings, drawn, trace)
    del assembled
    return Speed(
        tokens_per_second=batch_tokens / statistics.median(taken),
        slowest=batch_tokens / max(taken),
        fastest=batch_tokens / min(taken),
        steps=len(taken) * _steps_per_wait(device),
        batch_tokens=batch_tokens,
        flops_per_token=training_flops_per_token(config, settings.loss),
        peak_flops=matmul_peak(config, settings, device),
        peak_bytes=peak_bytes,
        parts=parts,
        machine=conditions(settings, device),
        operations=operations,
    )


def time_steps(
    assembled: Assembled,
    settings: PretrainSettings,
    drawn: Iterator[Batch],
    *,
    seconds: float,
    steps: int | None = None,
) -> tuple[list[float], int]:
    """Seconds of each step after the first few, and tokens of a step.

    On an accelerator, which is waited for only now and then, they are the means of groups of steps.
    """
    group = _steps_per_wait(assembled.device)
    most = 10**9 if steps is None else WARMUP_STEPS + -(-steps // group) * group
    taken: list[float] = []
    last = 0.0
    for step in _fit(assembled, settings, drawn, assembled.gradients(settings), most):
        done = step.number - WARMUP_STEPS
        if done > 0 and done % group:
            continue
        step.loss.item()  # waits for the device
        now = time.monotonic()
        if done > 0:
            taken.append((now - last) / group)
        last = now
        if steps is None and len(taken) >= FEWEST_STEPS and group * sum(taken) > seconds:
            break
    return taken, int(step.tokens.item())


def settle(
    model: ModelConfig, settings: PretrainSettings, shards: Path, device: torch.device, seconds: float = 1.0
) -> tuple[PretrainSettings, list[str]]:
    """Choose precision and compilation, where they are left open, by training throw-away models for `seconds` each.

    float32 and bfloat16 are tried. Compilation is tried where the whole training would take `WORTH_COMPILING_SECONDS`
    without, and taken where it is faster: it is paid for by then, since torch keeps on disk what it made.

    Returns:
        The settings with both set, and what was measured, in sentences.
    """

    def speed_of(trial: PretrainSettings) -> float:
        return tokens_per_second(model, trial, shards, device, seconds)

    messages: list[str] = []
    plain = settings.model_copy(update={"device": str(device), "compile": bool(settings.compile)})
    speed = 0.0
    if plain.precision is None:
        candidates: tuple[Precision, ...] = (Float32(), Bfloat16())
        uncompiled = plain.model_copy(update={"compile": False})
        speeds = {each: speed_of(uncompiled.model_copy(update={"precision": each})) for each in candidates}
        chosen = max(speeds, key=speeds.__getitem__)
        speed, plain = speeds[chosen], plain.model_copy(update={"precision": chosen})
        both = ", ".join(f"{each.kind} {measured:,.0f} tokens/s" for each, measured in speeds.items())
        messages.append(f"timed both precisions on {device}: {both}; using {chosen.kind}")
    tokens = plain.tokens(model.context_length)
    is_long = model.training_flops_per_token * tokens >= WORTH_MEASURING_FLOPS
    is_open = settings.compile is None and settings.batch_ramp is None
    if not is_long or not is_open or why_not_compiled(model, device) is not None:
        return plain, messages
    speed = speed or speed_of(plain)
    if tokens / speed < WORTH_COMPILING_SECONDS:
        return plain, messages
    compiled, began = plain.model_copy(update={"compile": True}), time.monotonic()
    try:
        compiled_speed = speed_of(compiled)
    except (RuntimeError, OSError) as error:  # such as a compiler without Python's header files
        why = str(error).strip().splitlines()[0]
        return plain, [*messages, f"the blocks cannot be compiled here and are run as they are: {why}"]
    took, faster = time.monotonic() - began, compiled_speed > speed
    messages.append(
        f"compiled, in {took:.0f} s, blocks train {compiled_speed:,.0f} tokens/s instead of {speed:,.0f}: "
        f"{'using compiled blocks' if faster else 'not compiling'}"
    )
    return compiled if faster else plain, messages


def tokens_per_second(
    model: ModelConfig, settings: PretrainSettings, shards: Path, device: torch.device, seconds: float
) -> float:
    """Median over the steps of a throw-away model that is trained for `seconds`, a micro-batch a step."""
    context = model.context_length
    rows = min(settings.micro_batch_rows, settings.batch_tokens // context)
    drawn = batches(open_split(shards, "train"), context, settings.seed, rows, 0)
    taken, tokens = time_steps(set_up(model, settings, device), settings, drawn, seconds=seconds)
    return tokens / statistics.median(taken)


def matmul_peak(config: ModelConfig, settings: PretrainSettings, device: torch.device, seconds: float = 0.3) -> float:
    """FLOPs a second of the fastest of a few matmuls in the run's type: those of the model's shapes and a large square
    one, each repeated for `seconds`."""
    assert settings.precision is not None, "chosen before anything is measured"
    dtype = peak_dtype(settings.precision)
    rows = min(MOST_ROWS, min(settings.micro_batch_rows * config.context_length, settings.batch_tokens))
    square = SQUARE_ON_CPU if device.type == "cpu" else SQUARE
    width, inner = config.d_model, config.feedforward_width
    shapes = [(rows, width, inner), (rows, inner, width), (rows, width, config.vocab_size or width), (square,) * 3]
    return max(_matmul_flops(*shape, dtype, device, seconds) for shape in shapes)


def peak_dtype(precision: Precision) -> torch.dtype:
    """The type whose matmul peak a run is compared with. For float8 it is that of the head, bfloat16, so that the share
    may exceed 1."""
    return torch.float16 if isinstance(precision, Float16) else optimizer_matmul_dtype(precision)


def _matmul_flops(rows: int, within: int, out: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    x, weight = (torch.randn(n, within, device=device, dtype=dtype) for n in (rows, out))
    best, end = float("inf"), time.monotonic() + seconds
    calls = 1 if device.type == "cpu" else 20  # several, or the wait for the device is measured as well
    with torch.no_grad():
        linear(x, weight)
        _wait(device)
        while time.monotonic() < end or best == float("inf"):
            began = time.perf_counter()
            for _ in range(calls):
                linear(x, weight)
            _wait(device)
            best = min(best, (time.perf_counter() - began) / calls)
    return 2 * rows * within * out / best


def _steps_per_wait(device: torch.device) -> int:
    return 1 if device.type == "cpu" else STEPS_PER_WAIT_ON_ACCELERATOR


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _fit(
    assembled: Assembled, settings: PretrainSettings, drawn: Iterator[Batch], gradients: Gradients[Batch], steps: int
) -> Iterator[Any]:
    """Steps as the stage takes them, at the top of the schedule, whatever the size of the batches."""
    return fit(assembled.optimizer, lambda _: 1.0, drawn, gradients, steps=steps, clip=settings.clip,
               clip_value=settings.clip_value, scaler=assembled.scaler)  # fmt: skip


def _time_parts(
    assembled: Assembled, settings: PretrainSettings, drawn: Iterator[Batch], steps: int
) -> dict[str, float]:
    """Seconds of a step by part. Wrapped around what `fit` is given: it has no switch for this."""
    seconds = dict.fromkeys(PARTS, 0.0)
    part, began = "rest", time.perf_counter()

    def begin(following: str) -> None:
        """Count the time until the device has finished as that of the present part, and begin the following one."""
        nonlocal part, began
        _wait(assembled.device)
        now = time.perf_counter()
        seconds[part] += now - began
        part, began = following, now

    def timed(function: Callable[..., Any], during: str, after: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            begin(during)
            result = function(*given)
            begin(after)
            return result

        return call

    timed_loss = timed(assembled.loss, "forward", "backward")
    gradients = dataclasses.replace(assembled, loss=timed_loss).gradients(settings)
    timed_gradients = timed(gradients, "data", "clip")  # it begins by bringing the batch to the device
    timed_batches = map(timed(next, "data", "rest"), itertools.repeat(drawn))
    before = assembled.optimizer.register_step_pre_hook(lambda *_: begin("optimizer"))
    after = assembled.optimizer.register_step_post_hook(lambda *_: begin("rest"))
    for step in _fit(assembled, settings, timed_batches, timed_gradients, WARMUP_STEPS + steps):
        begin("rest")
        if step.number == WARMUP_STEPS:
            seconds.update(dict.fromkeys(PARTS, 0.0))
    before.remove()
    after.remove()
    return {name: total / steps for name, total in seconds.items()}


def _trace(
    assembled: Assembled, settings: PretrainSettings, drawn: Iterator[Batch], target: Path
) -> list[tuple[str, float, int]]:
    from torch.profiler import ProfilerActivity, profile

    device = assembled.device
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    stepping = _fit(assembled, settings, drawn, assembled.gradients(settings), 1 + TRACED_STEPS)
    next(stepping)
    _wait(device)
    with profile(activities=activities) as profiler:
        for _ in stepping:
            pass
        _wait(device)
    profiler.export_chrome_trace(str(target))

    def own(event: Any) -> float:
        micros: float = event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
        return micros / 1e6 / TRACED_STEPS

    longest = sorted(profiler.key_averages(), key=own, reverse=True)[:SHOWN_OPERATIONS]
    return [(event.key, own(event), -(-event.count // TRACED_STEPS)) for event in longest]


def conditions(settings: PretrainSettings, device: torch.device) -> dict[str, str]:
    """The conditions that a speed depends on besides the recipe."""
    assert settings.precision is not None, "chosen before anything is measured"
    table = {
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "device": str(device),
        "precision": settings.precision.kind,
        "compile": "on" if settings.compile else "off",
        "recompute": settings.recompute,
        "torch": str(torch.__version__),
        "allocator": allocator(),
    }
    if device.type == "cuda":
        table["accelerator"] = torch.cuda.get_device_name(device)
    return table


def describe_conditions(settings: PretrainSettings, device: torch.device) -> str:
    """The conditions in a line, for the beginning of a training."""
    return "training with " + ", ".join(f"{name} {value}" for name, value in conditions(settings, device).items())
