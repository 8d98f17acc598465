"""How fast is generation on a CPU, beside the others? Each in a process of its own; all wait while one continues its
prompts, in turn, in every round. So what the machine does besides slows all of them.

    python bench/generation_peers.py [--rounds 5] [--batch 1 16] [--threads N] [--only NAME ...]

One random GPT-2 of 124 M parameters for all, read from the same files; prompts of 32 tokens, 128 new ones, greedy. The
others are GPT2LMHeadModel.generate of Hugging Face transformers and Generator.generate_batch of CTranslate2, as their
pages show them, in the precisions that they offer on a CPU. groundup is `Engine`, of the model as it is and packed.
Prints medians over the rounds: tokens a second, and how many times as fast groundup in bfloat16 and in int8 was in the
same round (least–most); and which share of the ids are those of transformers in float32: with random weights many
scores lie close together, so this shows that the same model is run, not how good the others' answers are.

What is not there is said and left out: pip install transformers ctranslate2, in an environment of their own.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PEERS = {
    "groundup, bfloat16": "groundup",
    "groundup, int8": "groundup",
    "groundup, int4": "groundup",
    "groundup, float32": "groundup",
    "transformers, bfloat16": "transformers",
    "transformers, float32": "transformers",
    "ctranslate2, float32": "ctranslate2",
    "ctranslate2, int8": "ctranslate2",
}
OURS = ("groundup, bfloat16", "groundup, int8")
PROMPT, NEW, VOCABULARY = 32, 128, 50_257
Generate = Callable[[list[list[int]]], list[list[int]]]


def make_model(directory: Path) -> None:
    """A random GPT-2 and a vocabulary of as many words, as transformers saves them; and as CTranslate2 reads it."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(directory / "model")
    words = Tokenizer(models.WordLevel({f"t{number}": number for number in range(VOCABULARY)}, unk_token="t0"))
    last = f"t{VOCABULARY - 1}"
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token=last, eos_token=last, unk_token=last).save_pretrained(
        directory / "model"
    )
    if importlib.util.find_spec("ctranslate2") is not None:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(directory / "model")).convert(str(directory / "ctranslate2"))


def groundup_generate(directory: Path, precision: str) -> Generate:
    from groundup import Engine, load

    model, _ = load(directory / "model", device="cpu")
    engine = Engine(model, precision=None if precision == "float32" else precision)
    return lambda prompts: engine.generate(prompts, max_tokens=NEW, temperature=0.0)


def transformers_generate(directory: Path, precision: str) -> Generate:
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(directory / "model", dtype=getattr(torch, precision)).eval()
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        return model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)[:, PROMPT:].tolist()

    return generate


def ctranslate2_generate(directory: Path, precision: str, threads: int) -> Generate:
    import ctranslate2

    generator = ctranslate2.Generator(str(directory / "ctranslate2"), compute_type=precision, intra_threads=threads)
    options = {"max_length": NEW, "min_length": NEW, "sampling_topk": 1, "include_prompt_in_result": False}

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        words = [[f"t{number}" for number in prompt] for prompt in prompts]
        return [answer.sequences_ids[0] for answer in generator.generate_batch(words, **options)]

    return generate


def serve(name: str, directory: Path, threads: int) -> None:
    """Whenever a number of prompts comes in, continue so many; a line goes out with the seconds and the ids."""
    kind, precision = name.split(", ")
    if kind != "ctranslate2":
        import torch

        torch.set_num_threads(threads)
    if kind == "groundup":
        generate = groundup_generate(directory, precision)
    elif kind == "transformers":
        generate = transformers_generate(directory, precision)
    else:
        generate = ctranslate2_generate(directory, precision, threads)
    generate([prompt_of(0)])
    print(json.dumps("warm"), flush=True)
    for line in sys.stdin:
        prompts = [prompt_of(number) for number in range(int(line))]
        began = time.perf_counter()
        ids = generate(prompts)
        print(json.dumps({"seconds": time.perf_counter() - began, "ids": ids}), flush=True)


def prompt_of(number: int) -> list[int]:
    return [(7919 * number + 104_729 * at) % (VOCABULARY - 1) for at in range(PROMPT)]


def race(running: dict[str, subprocess.Popen[str]], batch: int, rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in running}
    ids: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        for name, process in running.items():
            process.stdin.write(f"{batch}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            seconds[name].append(answer["seconds"])
            ids[name] = answer["ids"]
            assert [len(one) for one in ids[name]] == [NEW] * batch, f"{name} ended early"
    print(f"\nbatch {batch:<32} tokens/s  bfloat16 is faster by  int8 is faster by  ids as transformers", flush=True)
    for name, taken in seconds.items():
        ratios = ""
        for own in OURS:
            each = [theirs / ours for theirs, ours in zip(taken, seconds.get(own, []), strict=False)]
            told = f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})" if each else "-"
            ratios += f"  {told:<20}"
        same = "-"
        if plain := ids.get("transformers, float32"):
            pairs = [pair for rows in zip(ids[name], plain, strict=True) for pair in zip(*rows, strict=True)]
            same = f"{sum(a == b for a, b in pairs) / len(pairs):.0%}"
        print(f"{name:<36} {batch * NEW / statistics.median(taken):>9,.1f}{ratios}  {same}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], Path(arguments.serve[1]), arguments.threads)
        return
    running: dict[str, subprocess.Popen[str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        make_model(Path(directory))
        for name in arguments.only:
            if importlib.util.find_spec(PEERS[name]) is None:
                print(f"{name}: {PEERS[name]} is not installed", flush=True)
                continue
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--serve", name, directory]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if process.stdout.readline():
                running[name] = process
            else:
                print(f"{name}: failed, as told above", flush=True)
        for batch in arguments.batch:
            race(running, batch, arguments.rounds)
        for process in running.values():
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    main()
