"""How fast is a training step on a CPU, beside the others? Each in a process of its own; all wait while one takes a few
steps, in turn, in every round. So what the machine does besides slows all of them.

    python bench/training_peers.py [--size small|gpt2] [--rounds 30] [--only NAME ...]

The same GPT for all: 6 layers, 384 wide, 6 heads, rows of 256 tokens, 16 of them, vocabulary 8,192 (`small`, 13.9 M
parameters); or GPT-2's 124 M, rows of 512, 4 of them (`gpt2`). A step is forward, backward, clipping at 1 and AdamW.
`plain` is the step of nanoGPT's train.py on a CPU: its model's operations, eager, float32. The others are
GPT2LMHeadModel of Hugging Face transformers, GPT of LitGPT, TransformerWrapper of x-transformers, each under bfloat16
autocast, as it is and compiled. The last two keep an untied head. groundup's rows hold two documents each, which do not
see each other; the others' rows are one text. Prints medians over the rounds: tokens a second, how many times as fast
groundup was in the same round (least–most), a bfloat16 product beside the steps, for the plain step a float32 one, and
the share of it that the steps reach.

What is not there is said and left out: pip install transformers litgpt x-transformers.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

SIZES = {
    "small": {"vocab_size": 8192, "context_length": 256, "d_model": 384, "n_layers": 6, "n_heads": 6, "rows": 16},
    "gpt2": {"vocab_size": 50304, "context_length": 512, "d_model": 768, "n_layers": 12, "n_heads": 12, "rows": 4},
}
PEERS = {
    "groundup": "groundup",
    "groundup, not compiled": "groundup",
    "plain, float32": "groundup",
    "plain, bfloat16 autocast, compiled": "groundup",
    "transformers, autocast": "transformers",
    "transformers, autocast, compiled": "transformers",
    "litgpt, autocast": "litgpt",
    "litgpt, autocast, compiled": "litgpt",
    "litgpt, bfloat16 weights, compiled": "litgpt",
    "x-transformers, autocast": "x_transformers",
    "x-transformers, autocast, compiled": "x_transformers",
}
STEPS = {"small": 2, "gpt2": 1}
WARM = 3


def flops_per_token(size: dict[str, int]) -> int:
    """6 (12 L d² + V d) + 12 L d T: forward and backward, scores in the full square."""
    layers, width = size["n_layers"], size["d_model"]
    products = 12 * layers * width * width + size["vocab_size"] * width
    return 6 * products + 12 * layers * width * size["context_length"]


def matmul_peak(width: int, dtype: str) -> float:
    """GFLOP/s of the fastest of a few products of the model's kind: medians of a tenth of a second or more."""
    import torch

    best = 0.0
    for rows, wide, out in ((2048, width, 4 * width), (4096, width, 4 * width), (2048, 4 * width, width)):
        x, w = (torch.randn(shape, dtype=getattr(torch, dtype)) for shape in ((rows, wide), (out, wide)))
        taken, until = [], time.monotonic() + 0.1
        while len(taken) < 8 or time.monotonic() < until:
            began = time.perf_counter()
            torch.nn.functional.linear(x, w)
            taken.append(time.perf_counter() - began)
        best = max(best, 2 * rows * wide * out / statistics.median(taken[3:]) / 1e9)
    return best


def time_steps(step: Callable[[], object], number: int) -> list[float]:
    taken = []
    for _ in range(number):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return taken


def groundup_step(size: dict[str, int], compiled: bool) -> Callable[[], object]:
    import torch

    from groundup.batch import Batch
    from groundup.model.settings import ModelConfig
    from groundup.pretrain.settings import PretrainSettings
    from groundup.pretrain.setup import set_up
    from groundup.train.assemble import prepare_process
    from groundup.train.fit import fit

    prepare_process()
    sizes = {name: size[name] for name in ("vocab_size", "context_length", "d_model", "n_layers", "n_heads")}
    blocks = {"position": "learned", "norm": "layernorm", "attention": {"bias": "all"}, "feedforward": "gelu"}
    config = ModelConfig.from_table({**sizes, **blocks})
    rows, length = size["rows"], size["context_length"]
    table = {"precision": "bfloat16", "compile": compiled, "batch_tokens": rows * length, "micro_batch_rows": rows}
    settings = PretrainSettings.from_table(table)
    assembled = set_up(config, settings, torch.device("cpu"))
    ids = torch.randint(size["vocab_size"], (rows, length + 1), generator=torch.Generator().manual_seed(0))
    document = (torch.arange(length) >= length // 3).long().expand(rows, length)
    position = torch.where(document == 0, torch.arange(length), torch.arange(length) - length // 3)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(rows, length), position, document)
    steps = fit(
        assembled.optimizer,
        lambda _: 1.0,
        iter(lambda: batch, None),
        assembled.gradients(settings),
        steps=1000,
    )
    return lambda: next(steps).loss.item()


def peer_step(name: str, size: dict[str, int]) -> Callable[[], object]:
    import torch
    import torch.nn.functional as F

    rows, length, vocab = size["rows"], size["context_length"], size["vocab_size"]
    torch.manual_seed(0)
    model, logits_of = build(name, size)
    if "bfloat16 weights" in name:
        model.to(torch.bfloat16)
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    ids = torch.randint(vocab, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def loss_of() -> torch.Tensor:
        return F.cross_entropy(logits_of(tokens).view(-1, vocab), targets.view(-1))

    if "compiled" in name:
        loss_of = torch.compile(loss_of)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in name):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def build(name: str, size: dict[str, int]):  # type: ignore[no-untyped-def]
    width, layers, heads = size["d_model"], size["n_layers"], size["n_heads"]
    vocab, length = size["vocab_size"], size["context_length"]
    match name.split(",")[0]:
        case "plain":
            model = plain_gpt(size)
            return model, model
        case "transformers":
            from transformers import GPT2Config, GPT2LMHeadModel

            config = GPT2Config(
                vocab_size=vocab, n_positions=length, n_embd=width, n_layer=layers, n_head=heads,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            )  # fmt: skip
            model = GPT2LMHeadModel(config).train()
            return model, lambda tokens: model(tokens).logits
        case "litgpt":
            from litgpt.config import Config
            from litgpt.model import GPT

            config = Config(
                block_size=length, vocab_size=vocab, padded_vocab_size=vocab, n_layer=layers, n_head=heads,
                n_embd=width, rotary_percentage=1.0, parallel_residual=False, bias=True,
            )  # fmt: skip
            model = GPT(config).train()
            return model, model
        case "x-transformers":
            from x_transformers import Decoder, TransformerWrapper

            blocks = Decoder(dim=width, depth=layers, heads=heads, attn_flash=True)
            model = TransformerWrapper(num_tokens=vocab, max_seq_len=length, attn_layers=blocks).train()
            return model, model


def plain_gpt(size: dict[str, int]):  # type: ignore[no-untyped-def]
    """GPT-2 written with the operations of nanoGPT's model.py: one product for query, key and value, torch's own
    causal attention, exact GELU, a tied head."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    width, heads = size["d_model"], size["n_heads"]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
            self.read, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            rows, length, _ = x.shape
            parts = self.read(self.before(x)).split(width, dim=2)
            q, k, v = (part.view(rows, length, heads, width // heads).transpose(1, 2) for part in parts)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).contiguous().view(rows, length, width))
            return x + self.down(F.gelu(self.up(self.between(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = (
                nn.Embedding(size["vocab_size"], width),
                nn.Embedding(size["context_length"], width),
            )
            self.blocks = nn.ModuleList(Block() for _ in range(size["n_layers"]))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, size["vocab_size"], bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    model = GPT()
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, 0.0, 0.02)
    return model


def serve(name: str, which: str) -> None:
    """Take the first steps; then, whenever a line comes in, some more, and some products beside them: both slow down
    when the processor or its neighbours are hot. A line goes out for each that came in."""
    size = SIZES[which]
    own = name.startswith("groundup")
    step = groundup_step(size, compiled="not compiled" not in name) if own else peer_step(name, size)
    answer = {"warm_up_seconds": sum(time_steps(step, WARM))}
    while True:
        print(json.dumps(answer), flush=True)
        if not sys.stdin.readline():
            return
        taken = time_steps(step, STEPS[which])
        answer = {
            "tokens_per_second": size["rows"] * size["context_length"] / statistics.median(taken),
            "peak": matmul_peak(size["d_model"], "float32" if "float32" in name else "bfloat16"),
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.size)
        return
    running: dict[str, subprocess.Popen[str]] = {}
    warm: dict[str, float] = {}
    for name in dict.fromkeys(("groundup", *arguments.only)):  # what all are compared with
        if importlib.util.find_spec(PEERS[name]) is None:
            print(f"{name}: {PEERS[name]} is not installed", flush=True)
            continue
        command = [sys.executable, __file__, "--size", arguments.size, "--serve", name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if told := process.stdout.readline():
            running[name], warm[name] = process, json.loads(told)["warm_up_seconds"]
        else:
            print(f"{name}: failed, as told above", flush=True)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    for number in range(arguments.rounds):
        for name, process in running.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            found[name].append(json.loads(process.stdout.readline()))
        speeds = (f"{name} {ones[-1]['tokens_per_second']:,.0f}" for name, ones in found.items())
        print(f"round {number + 1}: {'; '.join(speeds)}", flush=True)
    for process in running.values():
        process.stdin.close()
        process.wait()
    flops = flops_per_token(SIZES[arguments.size])
    print(f"\n{'':<36} tokens/s  ours / its        GFLOP/s  product  share  GiB  warm-up, s")
    for name, ones in found.items():
        speed, memory = (statistics.median(one[key] for one in ones) for key in ("tokens_per_second", "memory"))
        ratios = [
            own["tokens_per_second"] / one["tokens_per_second"]
            for own, one in zip(found["groundup"], ones, strict=True)
        ]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        share = statistics.median(one["tokens_per_second"] * flops / 1e9 / one["peak"] for one in ones)
        peak = statistics.median(one["peak"] for one in ones)
        print(
            f"{name:<36} {speed:>8,.0f}  {ratio:<16}  {speed * flops / 1e9:>7,.0f}  {peak:>7,.0f}  {share:>5.2f}  "
            f"{memory:>3.1f}  {warm[name]:>6.0f}"
        )


if __name__ == "__main__":
    main()
