"""Does the guard save a training from a bad batch, a poisoned shard and a learning-rate spike? Five clean seeds against
each fault, by bits per byte on the validation documents at the end.

    OMP_NUM_THREADS=1 python bench/guard.py [--steps 200]
"""

import argparse
import math
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from groundup.batch import Batch
from groundup.building import build
from groundup.errors import DivergedError
from groundup.files import read_lines
from groundup.model.settings import ModelConfig
from groundup.pretrain import run as stage
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import batches
from groundup.recipe import Recipe
from groundup.train import session

MODEL = ModelConfig.from_table({"context_length": 64, "d_model": 48, "n_layers": 2, "n_heads": 4, "d_ff": 128})
ROWS = 16
POISONED_DOCUMENTS = 3
SEEDS = range(5)


def settings(steps: int, **changed: Any) -> PretrainSettings:
    table = {
        "steps": steps,
        "batch_tokens": 64 * ROWS,
        "device": "cpu",
        "precision": "float32",
        "optimizer": {"learning_rate": 3e-3},
        "validate_every": 10 * steps,
        "sample_every": 10 * steps,
        "sample_tokens": 1,
        "checkpoint_every": 50,
    }
    return PretrainSettings.from_table({**table, **changed})


def broken_batches(first_bad: int, last_bad: int) -> Callable[..., Iterator[Batch]]:
    """Rows `first_bad` to `last_bad − 1` make a loss that is no number."""

    def spoiled(shards: Any, context: int, seed: int, rows: Iterable[int], first: int) -> Iterator[Batch]:
        for batch in batches(shards, context, seed, rows, first):
            inside = torch.arange(first, first + len(batch.weight))
            bad = (inside >= first_bad) & (inside < last_bad)
            yield replace(batch, weight=batch.weight.masked_fill(bad[:, None], math.nan))
            first += len(batch.weight)

    return spoiled


def spiking(make: Callable[..., Callable[[int], float]], at: int) -> Callable[..., Callable[[int], float]]:
    """A hundred times the learning rate for five steps, the first time that they are taken."""
    seen: Counter[int] = Counter()

    def spiked(*given: Any) -> Callable[[int], float]:
        plain = make(*given)

        def factor(step: int) -> float:
            seen[step] += 1
            return plain(step) * (100.0 if at <= step < at + 5 and seen[step] == 1 else 1.0)

        return factor

    return spiked


def poisoned(shards: Path, to: Path) -> Path:
    """A copy in which some documents are random ids."""
    shutil.copytree(shards, to)
    ids, offsets = np.load(to / "train.npy"), np.load(to / "train.offsets.npy")
    draw = np.random.default_rng(0)
    for document in draw.choice(len(offsets) - 1, POISONED_DOCUMENTS, replace=False):
        inside = slice(offsets[document] + 1, offsets[document + 1])
        ids[inside] = draw.integers(0, ids.max() + 1, len(ids[inside]))
    np.save(to / "train.npy", ids)
    return to


def measure(name: str, run: Path, shards: Path, chosen: PretrainSettings, patches: dict[str, Any]) -> float | None:
    """Bits per byte at the end; None when it diverged. Prints what the guard did."""
    work = run / name
    shutil.rmtree(work, ignore_errors=True)
    (work / "pretrain").mkdir(parents=True)
    for made in (shards, run / "tokenizer", run / "corpus"):
        (work / made.name).symlink_to(made)
    with ExitStack() as stack:
        for target, value in patches.items():
            stack.enter_context(patch.object(session if target == "make_schedule" else stage, target, value))
        try:
            stage.pretrain(MODEL, chosen, work, {}, say=lambda said: None)
        except DivergedError:
            return None
        finally:
            happened = Counter(event["event"] for event in read_lines(work / "pretrain" / "events.jsonl"))
            print(f"{name}: {happened['step skipped']} left out, {happened['rolled back']} times back", flush=True)
    lines = read_lines(work / "pretrain" / "metrics.jsonl")
    return next(line["validation_bits_per_byte"] for line in reversed(lines) if "validation_bits_per_byte" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    steps: int = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as home:
        run = Path(home) / "run"
        table = {"name": "guard", "corpus": {"sources": ["groundup:storybook"]}, "tokenizer": {"vocab_size": 512}}
        for command in ("corpus", "tokenizer", "pack"):
            build(Recipe.from_table(table), run=run, only=command, say=lambda said: None)
        shards = run / "shards"
        clean = [measure(f"clean-{seed}", run, shards, settings(steps, seed=seed), {}) for seed in SEEDS]
        at = steps // 2
        one, several = ({"batches": broken_batches(at * ROWS, (at + n) * ROWS)} for n in (1, 5))
        spike = {"make_schedule": spiking(session.make_schedule, at)}
        noise = poisoned(shards, Path(home) / "poisoned" / "shards")
        faults: dict[str, tuple[Path, dict[str, Any]]] = {
            "one batch that is no number": (shards, one),
            "five of them in a row": (shards, several),
            f"{POISONED_DOCUMENTS} documents of random ids": (noise, {}),
            "learning rate × 100 for five steps": (shards, spike),
        }
        rows = []
        for name, (read, patches) in faults.items():
            guarded = measure(f"guarded {name}", run, read, settings(steps), patches)
            if "make_schedule" in patches:
                patches = {"make_schedule": spiking(session.make_schedule, at)}
            alone = measure(f"unguarded {name}", run, read, settings(steps, guard="none"), patches)
            rows.append((name, guarded, alone))
        numbers = [value for value in clean if value is not None]
        mean, deviation = statistics.mean(numbers), statistics.stdev(numbers)
        print("\n| | validation bits per byte | deviations from the clean mean | without a guard |\n|---|---|---|---|")
        print(f"| {len(numbers)} clean seeds | {mean:.4f} ± {deviation:.4f} | | |")
        for name, guarded, alone in rows:
            assert guarded is not None, f"{name} should not end a guarded run"
            without = "diverged (exit 5)" if alone is None else f"{alone:.4f}, {(alone - mean) / deviation:+.1f}"
            print(f"| {name} | {guarded:.4f} | {(guarded - mean) / deviation:+.1f} | {without} |")


if __name__ == "__main__":
    main()
