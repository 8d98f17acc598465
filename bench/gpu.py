"""What needs a GPU to be measured: training speed beside Hugging Face, the stall of a save, memory against the count.

    python bench/gpu.py 124m        # each part takes at most 8 minutes, all together about 20
    python bench/gpu.py 350m
    python bench/gpu.py 1.5b
    python bench/gpu.py saves
    python bench/gpu.py memory

GPT-2's shapes with rows of 1,024 tokens, random ids, AdamW and clipping. Ours keeps two documents a row apart and
trains in bfloat16 with float32 master weights, compiled, and in float8 where the GPU has it; Hugging Face's
GPT2LMHeadModel trains one text a row under bfloat16 autocast with torch's fused AdamW, compiled whole (1.5B: block by
block, or compiling would take the time). Shares are of the fastest matmul measured on this GPU, FLOPs as `count` has
them. Every measurement is a process of its own with a time limit, and a row of the table that is appended to
gpu-numbers.md for docs/numbers.md. Without a GPU it says so and measures nothing.
"""

import argparse
import datetime
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from groundup.batch import Batch
from groundup.model.presets import PRESETS
from groundup.model.settings import ModelConfig
from groundup.optim.settings import Bfloat16, Float8, Precision
from groundup.plan.memory import MemoryNeeds
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import training_flops_per_token
from groundup.pretrain.speed import matmul_peak, measure_speed

TABLE = Path("gpu-numbers.md")
HEADER = """
| part | what | rows | tokens/s | TFLOP/s | share of the measured peak | memory, GB | counted, GB | stall, ms | where |
|---|---|---|---|---|---|---|---|---|---|
"""
SECONDS = 20.0
"""For timing steps, after compilation."""
PART_SECONDS, SHORTEST_SECONDS = 470.0, 60.0
"""Of a part in all, and what is left for each of its measurements whatever the ones before it take."""
Row = dict[str, str]
"""Cells of the table under their column; a column without one stays empty."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args().part
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here that torch can use: nothing was measured")
    properties = torch.cuda.get_device_properties(0)
    where = f"{properties.name}, torch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}"
    measurements = PARTS[part](torch.device("cuda"), properties.total_memory)
    until = time.monotonic() + PART_SECONDS
    for number, (what, measurement) in enumerate(measurements.items(), 1):
        reserved = SHORTEST_SECONDS * (len(measurements) - number)
        made = within(until - time.monotonic() - reserved, measurement)
        append(TABLE, {"part": part, "what": what, "where": where} | made)


def within(seconds: float, measurement: Callable[[], Row]) -> Row:
    """The row of a measurement that is made in a process of its own, or why there is none."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(measurement).get(timeout=seconds)
        except multiprocessing.TimeoutError:
            return {"tokens/s": f"not done in {seconds:.0f} s"}
        except Exception as error:  # such as memory that ran out: the other rows are still of use
            return {"tokens/s": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}".replace("|", "/")}


def append(table: Path, row: Row) -> None:
    columns = [name.strip() for name in HEADER.strip().splitlines()[0].strip("|").split("|")]
    line = "| " + " | ".join(row.get(column, "") for column in columns) + " |"
    print(line, flush=True)
    text = table.read_text(encoding="utf-8") if table.exists() else HEADER
    table.write_text(f"{text}{line}\n", encoding="utf-8")


# --- what the parts are made of ---


def gpt2(preset: str, context_length: int = 1024) -> ModelConfig:
    """A published shape; its vocabulary a multiple of 64, as everybody pads it to train."""
    return PRESETS[preset].model.model_copy(update={"vocab_size": 50_304, "context_length": context_length})


def rows_that_fit(config: ModelConfig, memory_bytes: int, most: int = 32) -> int:
    """A power of two of rows whose counted memory is under half: Hugging Face, with as many, needs more."""
    rows = most
    while rows > 1 and MemoryNeeds(config, Bfloat16(), PretrainSettings().optimizer, rows).bytes() > memory_bytes / 2:
        rows //= 2
    return rows


def batch(config: ModelConfig, rows: int, device: torch.device) -> Batch:
    """Random ids in two documents a row."""
    length, first = config.context_length, config.context_length // 3
    ids = torch.randint(config.vocab_size or 0, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    document = (torch.arange(length) >= first).long().expand(rows, length).contiguous()
    position = torch.where(document == 0, torch.arange(length), torch.arange(length) - first)
    tensors = ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(rows, length), position, document
    return Batch(*(tensor.to(device) for tensor in tensors))


def settings_of(config: ModelConfig, rows: int, precision: Precision, compiled: bool = True) -> PretrainSettings:
    return PretrainSettings(
        batch_tokens=rows * config.context_length, micro_batch_rows=rows, precision=precision, compile=compiled
    )


def train_ours(config: ModelConfig, rows: int, precision: Precision, device: torch.device, seconds: float) -> Row:
    settings = settings_of(config, rows, precision)
    batches = itertools.repeat(batch(config, rows, device))
    speed = measure_speed(config, settings, batches, device, seconds=seconds)
    counted = MemoryNeeds(config, precision, settings.optimizer, rows).bytes()
    return speeds(rows, speed.tokens_per_second, speed.flops_per_token, speed.peak_flops) | {
        "memory, GB": f"{speed.peak_bytes / 1e9:.1f}",
        "counted, GB": f"{counted / 1e9:.1f}",
    }


def train_hugging_face(config: ModelConfig, rows: int, device: torch.device, seconds: float, whole: bool) -> Row:
    """
    Args:
        whole: compile the whole model, not each of its blocks.
    """
    import transformers

    torch.manual_seed(0)
    shape = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.d_model,
        n_layer=config.n_layers, n_head=config.n_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(shape).to(device).train()
    for module in [model] if whole else model.transformer.h:
        module.compile()
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    drawn = batch(config, rows, device)

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(drawn.tokens).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), drawn.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    for _ in range(3):
        step()
    taken, until = [], time.monotonic() + seconds
    while len(taken) < 3 or time.monotonic() < until:
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    settings = settings_of(config, rows, Bfloat16())
    peak = matmul_peak(config, settings, device)
    per_second = rows * config.context_length / statistics.median(taken)
    flops = training_flops_per_token(config, settings.loss)
    return speeds(rows, per_second, flops, peak) | {"memory, GB": f"{memory / 1e9:.1f}"}


def speeds(rows: int, tokens_per_second: float, flops_per_token: int, peak_flops: float) -> Row:
    flops_per_second = tokens_per_second * flops_per_token
    return {
        "rows": str(rows),
        "tokens/s": f"{tokens_per_second:,.0f}",
        "TFLOP/s": f"{flops_per_second / 1e12:.3g}",
        "share of the measured peak": f"{flops_per_second / peak_flops:.3f}",
    }


def save(config: ModelConfig, rows: int, device: torch.device, every: int, saves: int) -> Row:
    from checkpoint_stall import measure_stalls  # beside this file

    stalls = measure_stalls(config, settings_of(config, rows, Bfloat16(), False), device, every, saves, None)
    return {
        "rows": str(rows),
        "memory, GB": f"checkpoint {stalls.checkpoint_bytes / 1e9:.2f}",
        "stall, ms": f"{1000 * stalls.written_behind:.1f} of a step's {1000 * stalls.step:.0f}; "
        f"{1000 * stalls.written_at_once:.0f} if written at once",
    }


def hold(config: ModelConfig, rows: int, recompute: str, device: torch.device) -> Row:
    """The most memory of three steps that are not compiled, which is what `count` counts."""
    settings = settings_of(config, rows, Bfloat16(), False).model_copy(update={"recompute": recompute})
    speed = measure_speed(config, settings, itertools.repeat(batch(config, rows, device)), device, steps=3)
    counted = MemoryNeeds(config, Bfloat16(), settings.optimizer, rows, recompute).bytes()
    return {
        "rows": str(rows),
        "memory, GB": f"{speed.peak_bytes / 1e9:.2f}",
        "counted, GB": f"{counted / 1e9:.2f}",
    }


# --- the parts ---

Part = Callable[[torch.device, int], dict[str, Callable[[], Row]]]
"""Device and its bytes of memory → measurements by what the table calls them."""


def training(preset: str, whole: bool, device: torch.device, memory_bytes: int) -> dict[str, Callable[[], Row]]:
    config = gpt2(preset)
    rows = rows_that_fit(config, memory_bytes)
    compiled = "compiled" if whole else "blocks compiled"
    return {
        "ours, bfloat16, compiled": partial(train_ours, config, rows, Bfloat16(), device, SECONDS),
        f"Hugging Face, {compiled}": partial(train_hugging_face, config, rows, device, SECONDS, whole),
        "ours, float8, compiled": partial(train_ours, config, rows, Float8(), device, SECONDS),
    }


def saving(device: torch.device, memory_bytes: int) -> dict[str, Callable[[], Row]]:
    names = {"124m": "gpt2", "1.5b": "gpt2-xl"}
    return {name: partial(save, gpt2(preset), 4, device, 10, 4) for name, preset in names.items()}


def memory(device: torch.device, memory_bytes: int) -> dict[str, Callable[[], Row]]:
    config = gpt2("gpt2-medium")
    return {
        f"350m, recompute={recompute}": partial(hold, config, rows, recompute, device)
        for rows, recompute in ((8, "none"), (16, "none"), (16, "full"))
    }


PARTS: dict[str, Part] = {
    "124m": partial(training, "gpt2", True),
    "350m": partial(training, "gpt2-medium", True),
    "1.5b": partial(training, "gpt2-xl", False),
    "saves": saving,
    "memory": memory,
}

if __name__ == "__main__":
    main()
