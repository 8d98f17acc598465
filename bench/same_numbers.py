"""Do two source trees compute the same numbers?

    python bench/same_numbers.py OLD NEW                        # every part
    python bench/same_numbers.py OLD NEW storybook mixture      # some of them
    python bench/same_numbers.py OLD NEW --keep FOLDER          # OLD's runs are made once and reused

OLD and NEW are checkouts. Both run the same commands through `python -m groundup`, each with its own `src`, and what
they wrote is read here without the package: documents, tokenizers, shards, losses, checkpoints, weights, scores and
texts. Contents are compared, not manifests, and every number to the last bit unless the part states a tolerance. Clocks
and memory are left out. A tensor that one tree stacks over experts and the other keeps apart counts as the same.
Exits with 1 and a line for each difference.
"""

import argparse
import functools
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from safetensors.torch import load_file

CLASSICS = Path(__file__).parents[2] / "shared" / "data" / "corpora" / "classics.jsonl.xz"
NOT_COMPARED = re.compile(r"seconds|memory|_per_second$|^at$|^process$")
"""Numbers of a clock or of the machine."""
RENAMED = {"yardsticks": "baselines"}
"""Keys of JSON files that changed their name between the trees."""


@dataclass(frozen=True)
class Part:
    """One run to compare."""

    recipe: str
    """A file in `recipes`, or "toy": a model of a few thousand parameters on a hundred tales."""
    settings: tuple[str, ...] = ()
    """Overrides on the command line."""
    commands: tuple[str, ...] = ("build",)
    """Stages to run, one after the other."""
    interrupted: bool = False
    """Stop the training once by SIGTERM, and go on."""
    evaluation: float = 0.0
    """Relative difference allowed in what is computed without gradients; training is always exact."""
    health: float = 0.0
    """Relative difference allowed in the norms of layers, whose sums over stacked experts run in another order."""


FLOAT32 = ("pretrain.device=cpu", "pretrain.precision=float32", "pretrain.compile=false")
BFLOAT16 = ("pretrain.device=cpu", "pretrain.precision=bfloat16", "pretrain.compile=false")
SIXTY = ("pretrain.steps=60", "pretrain.checkpoint_every=20", "pretrain.validate_every=30", "pretrain.sample_every=30")
STORYBOOK = (
    *SIXTY,
    "pretrain.batch_tokens=1024",
    "pretrain.validation_tokens=20000",
    "pretrain.schedule.warmup_steps=5",
    "pretrain.health_every=20",
)
GPT2 = (
    "model.position.kind=learned",
    "model.norm.kind=layernorm",
    "model.attention.bias=all",
    "model.feedforward.kind=gelu",
)
GEMMA = (
    "model.block.norm=around",
    "model.n_kv_heads=1",
    "model.attention.window=8",
    "model.attention.windowed_layers=[true,false]",
    "model.attention.soft_cap=30",
    "model.attention.qk_norm=head",
    "model.head.soft_cap=20",
)
EXPERTS = (
    "model.feedforward.kind=experts",
    "model.feedforward.n_experts=4",
    "model.feedforward.n_active=2",
    "model.feedforward.n_shared=1",
)
RAMP = (
    "pretrain.device=cpu",
    "pretrain.precision=autocast",
    "pretrain.batch_ramp.start_tokens=64",
    "pretrain.batch_ramp.steps=20",
)
PARTS = {
    # the real recipe at its real width, with 4 rows a step instead of 16
    "storybook": Part("storybook", (*FLOAT32, *STORYBOOK), interrupted=True),
    "storybook-compiled": Part("storybook", (*BFLOAT16[:2], "pretrain.compile=true", *STORYBOOK)),
    "classics": Part("classics", commands=("corpus", "tokenizer", "pack")),
    "llama": Part("toy", FLOAT32, interrupted=True),
    "bfloat16": Part("toy", BFLOAT16, interrupted=True),
    "mixture": Part("toy", (*FLOAT32, *EXPERTS), interrupted=True, health=1e-6),
    "mixture-bfloat16": Part("toy", (*BFLOAT16, *EXPERTS, "model.feedforward.expert.kind=gelu"), health=1e-6),
    "latent": Part("toy", (*FLOAT32, "model.attention.kind=latent", "model.attention.d_latent=16"), evaluation=1e-5),
    "gpt2": Part("toy", (*FLOAT32, *GPT2, "pretrain.optimizer.kind=muon", "pretrain.average.kind=ema")),
    "gemma": Part("toy", (*FLOAT32, *GEMMA, "pretrain.loss.z_loss=0.0001", "pretrain.optimizer.kind=lion")),
    "alibi": Part("toy", (*FLOAT32, "model.position.kind=alibi", "pretrain.recompute=selective")),
    "parallel": Part(
        "toy",
        (*FLOAT32, "model.block.kind=parallel", "model.head.tied=false", "pretrain.optimizer.kind=adafactor"),
    ),
    "multi_token": Part(
        "toy",
        (*BFLOAT16, "pretrain.loss.kind=multi_token", "pretrain.base_width=16", "pretrain.recompute=full"),
    ),
    "ramp": Part(
        "toy",
        (*RAMP, "tokenizer.kind=words", "tokenizer.vocab_size=512", "pretrain.schedule.kind=warmup_stable_decay"),
    ),
}
TOY = """
name = "toy"
[corpus]
sources = ["tales"]
[tokenizer]
vocab_size = 512
[model]
context_length = 32
d_model = 32
n_layers = 2
n_heads = 2
d_ff = 48
dropout = 0.1
[pretrain]
steps = 60
batch_tokens = 256
micro_batch_rows = 3
validate_every = 30
sample_every = 30
sample_tokens = 8
health_every = 20
checkpoint_every = 20
[evals]
prompts = ["Once", ""]
sampling = { max_tokens = 8 }
"""
LETTER = "Dear king,\nonce upon a time a fox went over the hill.\n" * 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder, and reuse those of OLD")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        home = (arguments.keep or Path(temporary)).absolute()
        write_texts(home, arguments.old.absolute())
        different = [name for name in arguments.parts or PARTS if not same(name, arguments, home)]
    if different:
        sys.exit(f"different: {', '.join(different)}")
    print("all numbers are the same")


def same(name: str, arguments: argparse.Namespace, home: Path) -> bool:
    """Run one part in both trees, print what differs, and say whether nothing does."""
    started = time.monotonic()
    old, new = home / "old" / name, home / "new" / name
    if not (old / "finished").exists():
        run_part(PARTS[name], arguments.old.absolute(), old, home)
    run_part(PARTS[name], arguments.new.absolute(), new, home)
    differences = list(compare(old, new, PARTS[name]))
    print(f"{name:20} {'DIFFERENT' if differences else 'same':10} {time.monotonic() - started:4.0f} s", flush=True)
    for difference in differences:
        print(f"  {difference}", flush=True)
    return not differences


# --- running ---


def write_texts(home: Path, tree: Path) -> None:
    """A hundred tales of the storybook, a text to score, and the toy recipe."""
    (home / "tales").mkdir(parents=True, exist_ok=True)
    with gzip.open(tree / "src" / "groundup" / "data" / "storybook.jsonl.gz", "rt", encoding="utf-8") as lines:
        for number, line in zip(range(100), lines, strict=False):
            (home / "tales" / f"{number:02}.txt").write_text(json.loads(line)["text"][:2000], encoding="utf-8")
    (home / "letter.txt").write_text(LETTER, encoding="utf-8")
    (home / "toy.toml").write_text(TOY, encoding="utf-8")


def run_part(part: Part, tree: Path, folder: Path, home: Path) -> None:
    """Make the run `folder/run`, and beside it the answers of `eval` and `generate`."""
    subprocess.run(["rm", "-rf", folder], check=True)
    folder.mkdir(parents=True)
    recipe = home / "toy.toml" if part.recipe == "toy" else tree / "recipes" / f"{part.recipe}.toml"
    settings = [*part.settings]
    if part.recipe == "classics":
        settings += [f'corpus.sources=["{CLASSICS if CLASSICS.exists() else home / "tales"}"]']
    for command in part.commands:
        words = [command, str(recipe), *settings, "--run", "run"]
        if part.interrupted:
            interrupt(tree, folder, words)
        groundup(tree, folder, *words)
    if "build" in part.commands:
        score = groundup(tree, folder, "eval", "run", str(home / "letter.txt"), "--device", "cpu", "--json")
        (folder / "score.json").write_text(score, encoding="utf-8")
        (folder / "texts.json").write_text(json.dumps(generate(tree, folder)), encoding="utf-8")
    (folder / "finished").touch()


def generate(tree: Path, folder: Path) -> list[dict[str, Any]]:
    """Three seeded samples and a greedy one, with sampling options as this tree spells them."""
    sampled = {"max_tokens": 30, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 5}
    greedy = {"max_tokens": 30, "temperature": 0}
    return _generate(tree, folder, sampled, "--samples", "3") + _generate(tree, folder, greedy)


def _generate(tree: Path, folder: Path, sampling: dict[str, float], *options: str) -> list[dict[str, Any]]:
    command = ["generate", "run", "Once upon a time", "--device", "cpu", "--json", *options]
    as_options = [word for key, value in sampling.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    as_words = [f"{key}={value}" for key, value in sampling.items()]
    printed = groundup(tree, folder, *command, *(as_options if sampling_is_options(tree) else as_words))
    return [json.loads(line) for line in printed.splitlines()]


@functools.cache
def sampling_is_options(tree: Path) -> bool:
    return "--temperature" in groundup(tree, tree, "generate", "--help")


def interrupt(tree: Path, folder: Path, command: list[str]) -> None:
    """Send SIGTERM after some 25 steps of 60."""
    metrics = folder / "run" / "pretrain" / "metrics.jsonl"
    with (folder / "interrupted.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "groundup", *command], cwd=folder, env=environment(tree), stdout=log, stderr=log
        )
        while process.poll() is None:
            if metrics.is_file() and metrics.read_bytes().count(b'"loss"') >= 25:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.002)
    if process.wait() != 75:
        sys.exit(
            f"{tree}: was to be saved and stopped by SIGTERM, but exited with {process.returncode}; see {log.name}"
        )


def groundup(tree: Path, folder: Path, *arguments: str) -> str:
    """Standard output of one command of that tree."""
    done = subprocess.run(
        [sys.executable, "-m", "groundup", *arguments],
        cwd=folder,
        env=environment(tree),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{tree}: groundup {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree / "src"), "COLUMNS": "200"}


# --- comparing ---


def compare(old: Path, new: Path, part: Part) -> Iterator[str]:
    """A line for each thing that two folders of `run_part` do not have in common."""
    tolerances = {"exact": 0.0, "evaluation": part.evaluation, "health": max(part.evaluation, part.health)}
    for pattern, read, computed in READERS:
        names = sorted({path.relative_to(folder).as_posix() for folder in (old, new) for path in folder.glob(pattern)})
        for name in names:
            if not (old / name).exists() or not (new / name).exists():
                yield f"{name}: only in {'OLD' if (old / name).exists() else 'NEW'}"
            else:
                difference = differs(read(old / name), read(new / name), tolerances[computed])
                yield from (f"{name}: {line}" for line in difference)


def differs(old: Any, new: Any, tolerance: float, where: str = "") -> Iterator[str]:
    """Where two values that came out of files differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in old or key not in new:
                yield f"{where}{key}: only in {'OLD' if key in old else 'NEW'}"
            else:
                yield from differs(old[key], new[key], tolerance, f"{where}{key} ")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from differs(*pair, tolerance, f"{where}{number} ")
    elif isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        if old.dtype != new.dtype or old.shape != new.shape:
            yield f"{where}: {old.dtype} {tuple(old.shape)} → {new.dtype} {tuple(new.shape)}"
        elif not torch.equal(old.reshape(-1).view(torch.uint8), new.reshape(-1).view(torch.uint8)):
            apart = (old.double() - new.double()).abs().max()
            yield f"{where}: {(old != new).sum()} of {old.numel()} entries, by up to {apart:.3g}"
    elif isinstance(old, float) and isinstance(new, float) and tolerance:
        if abs(old - new) > tolerance * max(abs(old), abs(new)):
            yield f"{where}: {old!r} → {new!r}, more than {tolerance:g} of it"
    elif old != new:
        yield f"{where}: {str(old)[:200]} → {str(new)[:200]}"


def read_json(path: Path) -> Any:
    return stripped(json.loads(path.read_bytes()))


def read_lines(path: Path) -> Any:
    return [stripped(json.loads(line)) for line in path.read_bytes().splitlines()]


def stripped(value: Any) -> Any:
    """Without what a clock or the machine decides, keys under their newer names."""
    if isinstance(value, dict):
        return {RENAMED.get(k, k): stripped(v) for k, v in value.items() if not NOT_COMPARED.search(k)}
    return [stripped(each) for each in value] if isinstance(value, list) else value


def read_array(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(path))


def read_table(path: Path) -> Any:
    return pyarrow.parquet.read_table(path).to_pydict()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, or of all files of a checkpoint; those of single experts stacked."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name in [*tensors]:
        single = re.fullmatch(r"(.*\bexperts)\.(\d+)\.(.*)", name)
        if single:
            experts.setdefault(f"{single[1]}.{single[3]}", {})[int(single[2])] = tensors.pop(name)
    stacked = {name: stack([each[number] for number in range(len(each))]) for name, each in experts.items()}
    named = {re.sub(r"(\bexperts\.\w+)\.weight\b", r"\1", name): tensor for name, tensor in (tensors | stacked).items()}
    return dict(sorted(named.items()))


def stack(single: list[torch.Tensor]) -> torch.Tensor:
    """The tensors of all experts in one; an optimizer's count of steps, which all share, once."""
    return single[0] if single[0].ndim == 0 else torch.stack([torch.atleast_2d(each) for each in single])


Read = Callable[[Path], Any]
READERS: tuple[tuple[str, Read, str], ...] = (  # files, how they are read, which tolerance of a part is for them
    ("run/corpus/**/*.parquet", read_table, "exact"),
    ("run/tokenizer/tokenizer.json", read_json, "exact"),
    ("run/shards/*.npy", read_array, "exact"),
    ("run/pretrain/metrics.jsonl", read_lines, "evaluation"),
    ("run/pretrain/health.jsonl", read_lines, "health"),
    ("run/pretrain/checkpoints/step-*", read_tensors, "exact"),
    ("run/pretrain/checkpoints/step-*/state.json", read_json, "exact"),
    ("run/model/model.safetensors", read_tensors, "exact"),
    ("run/evals/test.json", read_json, "evaluation"),
    ("run/evals/documents.jsonl", read_lines, "evaluation"),
    ("run/evals/samples.json", read_json, "exact"),
    ("score.json", read_json, "evaluation"),
    ("texts.json", read_json, "exact"),
)

if __name__ == "__main__":
    main()
