"""What does each block bring? From GPT-2 to Llama one change at a time, each trained for the same time on one text.

    python bench/gpt2_to_llama.py runs/storybook [--seconds 60] [--seeds 3] [--beyond]

Reads the shards of a finished run of recipes/storybook.toml. Every variant is as wide and deep as the storybook model,
with the same batch, learning rate and optimizer; its number of steps is what fits into the time, found by timing some.
All variants take turns, seed by seed, one process each. `--beyond` changes one block at a time of the last step instead
of going there. Prints bits per byte on the validation documents, mean and range over the seeds, tokens/s, parameters.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GPT2: dict[str, Any] = {
    "context_length": 256,
    "d_model": 192,
    "n_layers": 6,
    "n_heads": 3,
    "position": {"kind": "learned"},
    "norm": {"kind": "layernorm"},
    "attention": {"bias": "all"},
    "feedforward": {"kind": "gelu"},
}
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("GPT-2", {}),
    ("RMSNorm for LayerNorm", {"norm": {"kind": "rmsnorm"}}),
    ("no biases", {"attention": {"bias": "none"}, "feedforward": {"kind": "gelu", "bias": False}}),
    ("rotary for learned positions", {"position": {"kind": "rotary"}}),
    ("SwiGLU for GELU, as many parameters", {"feedforward": {"kind": "swiglu"}, "d_ff": 512}),
    ("three query heads share one key/value head", {"n_kv_heads": 1}),
    ("head not tied to the embedding: Llama", {"head": {"tied": False}}),
]
BEYOND: list[tuple[str, dict[str, Any]]] = [
    ("Llama, tied, each head its own keys", {"n_kv_heads": 3, "head": {"tied": True}}),
    ("no position", {"position": {"kind": "none"}}),
    ("sinusoidal positions", {"position": {"kind": "sinusoidal"}}),
    # the paper's token vectors are as large as its waves; here they begin at 0.02
    ("sinusoidal, token vectors × 50", {"position": {"kind": "sinusoidal"}, "embedding_scale": 50.0}),
    ("ALiBi", {"position": {"kind": "alibi"}}),
    ("a quarter of each head turned", {"position": {"kind": "rotary", "fraction": 0.25}}),
    ("QK-norm on each head", {"attention": {"qk_norm": "head"}}),
    ("norms on the outputs", {"block": {"norm": "output"}}),
    ("norms on the outputs, token vectors × 50", {"block": {"norm": "output"}, "embedding_scale": 50.0}),
    ("norms around", {"block": {"norm": "around"}}),
    ("norms after the sums", {"block": {"norm": "after"}}),
    ("parallel blocks", {"block": {"kind": "parallel"}}),
    ("GeGLU", {"feedforward": {"kind": "geglu"}}),
    ("ReLU², as many parameters", {"feedforward": {"kind": "relu_squared"}, "d_ff": 768}),
    ("8 experts, 2 picked, half as wide", {"feedforward": {"kind": "experts"}, "d_ff": 256}),
    ("a window of 64 in two layers of three", {"attention": {"window": 64, "windowed_layers": [True, True, False]}}),
    ("latent attention, 64 wide, 16 rotary", {"attention": {"kind": "latent", "d_latent": 64, "d_rotary": 16}}),
]


def variants(beyond: bool) -> list[tuple[str, dict[str, Any]]]:
    """Each name with its whole table of settings."""
    tables, table = [], dict(GPT2)
    for name, change in STEPS:
        table = {**table, **change}
        tables.append((name, table))
    if not beyond:
        return tables
    llama = {**table, **BEYOND[0][1]}
    return [(name, {**llama, **change}) for name, change in BEYOND]


def train(run: Path, table: dict[str, Any], seconds: float, seed: int) -> dict[str, float]:
    import torch

    from groundup.evals.score import score
    from groundup.model.settings import ModelConfig
    from groundup.model.transformer import Transformer
    from groundup.optim.masters import Masters
    from groundup.optim.optimizer import make_optimizer
    from groundup.optim.schedule import make_schedule
    from groundup.optim.settings import AdamW, Cosine
    from groundup.pretrain.setup import batches
    from groundup.shards import open_split
    from groundup.train.assemble import prepare_process
    from groundup.train.fit import accumulate, fit
    from groundup.train.losses import next_token

    prepare_process()
    shards = open_split(run / "shards", "train")
    vocab_size = json.loads((run / "shards" / "manifest.json").read_text())["statistics"]["vocab_size"]
    config = ModelConfig.from_table({**table, "vocab_size": vocab_size})
    rows = 16

    def steps_of(number: int) -> tuple[Transformer, Any]:
        torch.manual_seed(seed)
        model = Transformer(config)
        masters = Masters(model, torch.bfloat16)
        optimizer = make_optimizer(masters.copies.items(), AdamW(learning_rate=2.5e-3))
        masters.follow(optimizer)
        drawn = batches(shards, config.context_length, seed, rows, 0)
        schedule = make_schedule(Cosine(warmup_steps=min(50, number // 4), final=0.0), number)
        return model, fit(optimizer, schedule, drawn, accumulate(model, next_token, 1, seed=seed), steps=number)

    taken, last = [], time.monotonic()
    for _ in steps_of(24)[1]:
        now = time.monotonic()
        taken.append(now - last)
        last = now
    steps = int(seconds / statistics.median(taken[4:]))
    model, loop = steps_of(steps)
    began = time.monotonic()
    for _ in loop:
        pass
    took = time.monotonic() - began
    measured = score(model, open_split(run / "shards", "validation"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = rows * config.context_length
    return {"bits": measured.bits_per_byte, "speed": steps * tokens / took, "steps": steps, "parameters": parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--beyond", action="store_true")
    parser.add_argument("--one", nargs=2, type=int, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tables = variants(arguments.beyond)
    if arguments.one:
        number, seed = arguments.one
        print(json.dumps(train(arguments.run, tables[number][1], arguments.seconds, seed)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name, _ in tables}
    for seed in range(arguments.seeds):
        for number, (name, _) in enumerate(tables):
            again = [sys.executable, __file__, *sys.argv[1:], "--one", str(number), str(seed)]
            results[name].append(json.loads(subprocess.run(again, check=True, capture_output=True).stdout))
            print(f"seed {seed}  {results[name][-1]['bits']:.4f}  {name}", file=sys.stderr, flush=True)
    before = math.nan
    for name, each in results.items():
        bits = [one["bits"] for one in each]
        mean, speed = statistics.mean(bits), statistics.median(one["speed"] for one in each)
        millions = each[0]["parameters"] / 1e6
        print(
            f"| {name} | {millions:.2f} M | {speed:,.0f} | {mean:.3f} ({min(bits):.3f}–{max(bits):.3f}) "
            f"| {'' if math.isnan(before) else f'{mean - before:+.3f}'} |"
        )
        if not arguments.beyond or math.isnan(before):  # beyond, all are compared with the first
            before = mean


if __name__ == "__main__":
    main()
