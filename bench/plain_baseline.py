"""How good is a plain GPT-2-shaped model after the same minutes? (Hugging Face, AdamW, float32, as nanoGPT on a CPU)

    python bench/plain_baseline.py runs/storybook [--minutes 5.3]

Reads the shards of a finished run, so text, tokenizer and documents held out are the same, and trains
`GPT2LMHeadModel` of the same width and depth on random crops, as nanoGPT's train.py does: eager, float32, AdamW with
betas 0.9 and 0.95, weight decay 0.1, clipping at 1, warm-up and cosine. The number of steps is what fits into the
minutes. Prints bits per byte on the validation documents against minutes, and on the test documents at the end.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from groundup.recipe import Recipe
from groundup.shards import Tokens, open_split
from groundup.train.loader import cut


def bits_per_byte(model: GPT2LMHeadModel, shards: Tokens, context: int) -> float:
    """The same definition as groundup's: windows that begin with the document and do not overlap."""
    nats = 0.0
    starts = [s for d in range(shards.n_documents) for s in range(shards.offsets[d], shards.offsets[d + 1], context)]
    owner = np.searchsorted(shards.offsets, starts, side="right") - 1
    with torch.no_grad():
        for first in range(0, len(starts), 16):
            batch = cut(shards, np.array(starts[first : first + 16]), context)
            logprobs = model(batch.tokens).logits.log_softmax(-1).gather(-1, batch.targets[..., None]).squeeze(-1)
            own = batch.document == torch.from_numpy(owner[first : first + 16])[:, None]
            nats -= float((logprobs * own).double().sum())
    return nats / math.log(2) / float(shards.n_bytes.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    recipe = Recipe.load(arguments.run / "recipe.toml")
    lines = [json.loads(line) for line in (arguments.run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    ours = max(line["seconds"] for line in lines if "seconds" in line)
    seconds = arguments.minutes * 60 if arguments.minutes else ours
    train, validation, test = (open_split(arguments.run / "shards", split) for split in ("train", "validation", "test"))
    tokenizer_size = json.loads((arguments.run / "shards" / "manifest.json").read_text())["statistics"]["vocab_size"]
    context, rows = recipe.model.context_length, recipe.pretrain.batch_tokens // recipe.model.context_length
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokenizer_size,
            n_positions=context,
            n_embd=recipe.model.d_model,
            n_layer=recipe.model.n_layers,
            n_head=recipe.model.n_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95))
    ids = torch.from_numpy(train.ids.astype(np.int64))

    def step(factor: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * factor
        starts = torch.randint(len(ids) - context - 1, (rows,))
        tokens = torch.stack([ids[s : s + context] for s in starts])
        targets = torch.stack([ids[s + 1 : s + 1 + context] for s in starts])
        logits = model(tokens).logits
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    for number in range(20):  # the first few warm up; the learning rate is next to nothing
        if number == 5:
            began = time.monotonic()
        step(1e-6)
    steps = int(seconds / ((time.monotonic() - began) / 15))
    print(f"{sum(p.numel() for p in parameters):,} parameters, {steps} steps of {rows * context} tokens")
    began, evaluating = time.monotonic(), 0.0
    for number in range(steps):
        warm = min(1.0, (number + 1) / 50)
        step(warm * 0.5 * (1 + math.cos(math.pi * number / steps)))
        if (number + 1) % max(1, steps // 6) == 0 or number == steps - 1:
            paused = time.monotonic()
            minutes = (paused - began - evaluating) / 60
            print(
                f"{minutes:.2f} min  step {number + 1}  validation {bits_per_byte(model, validation, context):.4f}",
                flush=True,
            )
            evaluating += time.monotonic() - paused
    print(f"test {bits_per_byte(model, test, context):.4f} bits per byte")


if __name__ == "__main__":
    main()
