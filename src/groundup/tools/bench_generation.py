"""Measure how fast a model writes: tokens a second, the first one, and how near that is to the machine's limit."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from groundup.errors import SettingsError
from groundup.files import Progress, no_progress
from groundup.generation.engine import Engine
from groundup.generation.packed import Precision
from groundup.generation.settings import Sampling
from groundup.machine import processor
from groundup.model.count import SCORES, count
from groundup.weights.load import load_model
from groundup.words import byte_size

PROMPT, NEW = 32, 128
"""Tokens of each prompt, and of each answer."""
BATCHES = (1, 16)
"""Requests at once."""
ROUNDS = 3
READ_BYTES = 1 << 28
"""What is read to measure the memory."""
BYTES: dict[Precision, float] = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.625}
"""Of a packed weight, with its share of what a group has in common."""


@dataclass(frozen=True)
class WritingSpeed:
    """How fast a model writes."""

    model: str
    precision: str
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: dict[int, float]
    """By requests at once, prompts included; the median of the rounds."""
    first_token_seconds: float
    """From a prompt to the first token of its answer, of one request."""
    weight_bytes: int
    """Read for each token of a single request."""
    bytes_per_second: float
    """At which this machine reads memory."""
    machine: dict[str, str]

    @property
    def limit(self) -> float:
        """Tokens a second of a single request, if nothing took time but reading the weights."""
        return self.bytes_per_second / self.weight_bytes

    def table(self) -> dict[str, Any]:
        return {**asdict(self), "limit_tokens_per_second": self.limit}


def bench_generation(
    path: Path, precision: Precision | None = None, device: str | None = None, progress: Progress = no_progress
) -> WritingSpeed:
    """Measure a trained model with random prompts; every answer has all its tokens.

    Args:
        path: what `load` reads.
        precision: that the weights are packed in; as they are if not given.

    Raises:
        SettingsError: a context too short to measure in.
    """
    model = load_model(path, device=device)
    context = model.config.context_length
    prompt, new = min(PROMPT, context // 4), min(NEW, context // 2)
    if prompt < 1:
        raise SettingsError(f"{path} has a context of {context} tokens: too short to measure in")
    speeds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    firsts: list[float] = []
    engine = Engine(model, precision=precision, most_requests=max(BATCHES))
    draws = torch.Generator().manual_seed(0)
    for done in range(ROUNDS + 1):
        for batch in BATCHES:
            progress(done * len(BATCHES) + BATCHES.index(batch), (ROUNDS + 1) * len(BATCHES), "rounds")
            ids = torch.randint(model.config.vocab_size or 0, (batch, prompt), generator=draws).tolist()
            first, whole = _write(engine, ids, new)
            if done:  # the first round warms up
                speeds[batch].append(batch * new / whole)
                firsts += [first] if batch == 1 else []
    weight = next(model.parameters())
    read = sum(flops for part, flops in count(model.config).forward_flops_per_token.items() if part != SCORES) // 2
    return WritingSpeed(
        model=str(path),
        precision=precision or str(weight.dtype).removeprefix("torch."),
        prompt_tokens=prompt,
        new_tokens=new,
        tokens_per_second={batch: statistics.median(each) for batch, each in speeds.items()},
        first_token_seconds=statistics.median(firsts),
        weight_bytes=int(read * (weight.element_size() if precision is None else BYTES[precision])),
        bytes_per_second=_reading_speed(weight.device),
        machine={
            "processor": processor(),
            "threads": str(torch.get_num_threads()),
            "device": str(weight.device),
            "torch": str(torch.__version__),
        },
    )


def _write(engine: Engine, prompts: Sequence[Sequence[int]], new: int) -> tuple[float, float]:
    """Seconds to the first token, and to the last of all."""
    begun = time.perf_counter()
    requests = [engine.submit(ids, Sampling(max_tokens=new, temperature=0.0)) for ids in prompts]
    first = 0.0
    while any(request.ending is None for request in requests):
        engine.step()
        first = first or (time.perf_counter() - begun if requests[0].answer else 0.0)
    return first, time.perf_counter() - begun


def _reading_speed(device: torch.device) -> float:
    """Bytes of memory that are read in a second, the best of some passes."""
    held = torch.ones(READ_BYTES // 4, device=device)
    seconds = []
    for _ in range(8):
        begun = time.perf_counter()
        held.sum().item()
        seconds.append(time.perf_counter() - begun)
    return READ_BYTES / min(seconds)


def rows(speed: WritingSpeed) -> list[tuple[str, str]]:
    """A fact a row."""
    one = speed.tokens_per_second[1]
    return [
        *(
            (f"{batch} at once" if batch > 1 else "one request", f"{each:,.1f} tokens/s")
            for batch, each in speed.tokens_per_second.items()
        ),
        ("first token", f"{speed.first_token_seconds * 1e3:,.0f} ms after a prompt of {speed.prompt_tokens} tokens"),
        ("limit", f"{speed.limit:,.1f} tokens/s for one request: {byte_size(speed.weight_bytes)} of weights a token, "
         f"read at {speed.bytes_per_second / 1e9:,.1f} GB/s"),
        ("share of limit", f"{one / speed.limit:.0%}"),
        ("conditions", f"{speed.precision}, answers of {speed.new_tokens} tokens, "
         + ", ".join(f"{name} {value}" for name, value in speed.machine.items())),
    ]  # fmt: skip
