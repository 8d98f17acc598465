"""How fast are benchmark items scored, beside lm-evaluation-harness with Hugging Face transformers?

    python bench/evaluation_peers.py TOKENIZER DATA [--items 500] [--rounds 5] [--threads 2]

One random GPT-2 of 124 M parameters for all, with the tokenizer of a Hugging Face directory; the first items of
HellaSwag as the harness asks them, four endings each. Each program in a process of its own, with its model loaded; all
wait while one scores all the items, in turn, in every round, so what the machine does besides slows all of them. The
harness's `HFLM` runs with batches of 8, 16 and 32; groundup begins each round with an empty cache. Prints medians over
the rounds, how many times as fast groundup was in the same round and precision (least–most), and the largest difference
of a log-likelihood from groundup's in float32. Needs lm_eval, transformers and accelerate.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from groundup.evals.benchmarks import Files
from groundup.evals.tasks import TASKS

PEERS = [f"{program}, {precision}" for precision in ("float32", "bfloat16")
         for program in ("groundup", "harness 8", "harness 16", "harness 32")]  # fmt: skip


def scorer(name: str, model: Path, data: Path, items: int) -> Callable[[], Callable[[], list[float]]]:
    """What makes ready to score all items."""
    program, precision = name.split(", ")
    asked = list(TASKS["hellaswag"].items(Files(data)))[:items]
    if program == "groundup":
        from groundup.evals.ask import Examinee
        from groundup.weights.load import load_with_tokenizer

        loaded = load_with_tokenizer(model, "cpu")

        def ready() -> Callable[[], list[float]]:
            examinee = Examinee(*loaded, precision=None if precision == "float32" else precision)
            for _ in examinee.answers(asked[-1:]):  # packs the weights, and loads what is compiled
                pass

            def score() -> list[float]:
                found = {answered.item.id: answered.likelihoods for answered in examinee.answers(asked)}
                return [each.logprob for item in asked for each in found[item.id]]

            return score

        return ready
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(model), dtype=precision, device="cpu", batch_size=int(program.split()[1]))
    pairs = [pair for item in asked for pair in item.ask.requests]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return lambda: lambda: [logprob for logprob, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def serve(name: str, model: Path, data: Path, items: int, threads: int) -> None:
    """Whenever a line comes in, score all items; a line goes out with the seconds and the log-likelihoods."""
    import torch

    torch.set_num_threads(threads)
    ready = scorer(name, model, data, items)
    print(json.dumps("loaded"), flush=True)
    for _ in sys.stdin:
        score = ready()
        began = time.perf_counter()
        scores = score()
        print(json.dumps({"seconds": time.perf_counter() - began, "scores": scores}), flush=True)


def race(running: dict[str, subprocess.Popen[str]], rounds: int, items: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in running}
    scores: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, process in running.items():
            process.stdin.write("\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            seconds[name].append(answer["seconds"])
            scores[name] = answer["scores"]
    print(f"{'':<22} seconds   items/s  groundup is faster by  largest difference", flush=True)
    for name, taken in seconds.items():
        own = seconds[f"groundup, {name.split(', ')[1]}"]
        each = [theirs / ours for theirs, ours in zip(taken, own, strict=True)]
        apart = max(abs(a - b) for a, b in zip(scores[name], scores["groundup, float32"], strict=True))
        ratio, middle = f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})", statistics.median(taken)
        print(f"{name:<22} {middle:>7.1f} {items / middle:>9.2f}  {ratio:<21}  {apart:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="a Hugging Face directory with GPT-2's tokenizer")
    parser.add_argument("data", type=Path, help="the folder of benchmark files")
    for name, default in (("items", 500), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve[0], Path(given.serve[1]), given.data, given.items, given.threads)
        return
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as model:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(model)
        AutoTokenizer.from_pretrained(given.tokenizer).save_pretrained(model)
        running: dict[str, subprocess.Popen[str]] = {}
        for name in PEERS:
            command = [sys.executable, __file__, *sys.argv[1:], "--serve", name, model]
            running[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if not running[name].stdout.readline():
                raise SystemExit(f"{name}: failed, as told above")
        race(running, given.rounds, given.items)
        for process in running.values():
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    main()
