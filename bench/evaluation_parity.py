"""Do our benchmark tasks and lm-evaluation-harness agree, item by item?

    python bench/evaluation_parity.py MODEL DATA [--limit 100] [--tasks NAME ...] [--out DIRECTORY]

MODEL is a Hugging Face directory, DATA the folder of benchmark files. The harness runs its own task definitions over
the same records (`harness_tasks.py`) on its `HFLM` of transformers in float32; ours are asked through `examine`. The
first items, of tasks with parts as many of each (MMLU and BLiMP: 2 of each for 100). Log-likelihoods may differ by
1e-3; what an item scores, or the text that is written, may not differ. Near-ties are items whose best two options lie
within 1e-3: there the decision is rounding's. What is done is kept in --out, and not done again.

It needs lm_eval with its needs for transformers: pip install 'groundup[lm-eval]' transformers accelerate
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from harness_tasks import DEFINITIONS, docs, our_items, their_tasks

from groundup.evals.ask import Examinee
from groundup.evals.benchmarks import Files
from groundup.evals.examine import examine
from groundup.evals.items import Item, Writing
from groundup.evals.results import read_lines
from groundup.evals.settings import TaskSettings
from groundup.evals.tasks import TASKS
from groundup.weights.files import digest_of
from groundup.weights.load import load_with_tokenizer

TOLERANCE = 1e-3
MOST_TOKENS = 64
"""Written of an answer, on both sides: enough to differ in, and quick."""
DIFFERENT = {
    "svamp": "the harness has no such task",
    "humaneval": "the harness fetches its checker from the network, and runs programs without isolation",
}


@dataclass(frozen=True)
class Found:
    """What a side made of an item."""

    logprobs: Sequence[float]
    texts: Sequence[str]
    scores: dict[str, float]


def theirs(model: Path, task: str, shots: int, records: dict[str | None, Any], files: Files) -> list[Found]:
    from lm_eval.evaluator import evaluate

    with tempfile.TemporaryDirectory() as folder:
        parts = their_tasks(task, records, shots, files, Path(folder))
    for each in parts.values():
        if each.get_config("output_type") == "generate_until":
            each.set_config("generation_kwargs", {"max_gen_toks": MOST_TOKENS}, update=True)
    by_name = {str(part): each for part, each in parts.items()}
    lm = harness_lm(model, task == "wikitext2")
    samples = evaluate(lm, {"tasks": by_name, "groups": {}}, bootstrap_iters=0)["samples"]
    return [item for name in by_name for item in _of_items(task, samples[name])]


@cache
def harness_lm(model: Path, reads_passages: bool) -> Any:
    """For passages with a softmax in float64: in float32, its sum over the vocabulary is 1e-5 off for every token."""
    from lm_eval.models.huggingface import HFLM

    how = {"batch_size": 1, "softmax_dtype": "float64"} if reads_passages else {"batch_size": 4}
    return HFLM(pretrained=str(model), dtype="float32", device="cpu", **how)


def _of_items(task: str, samples: Sequence[dict[str, Any]]) -> list[Found]:
    """The harness's samples of a part, in order; where answers are read by several filters there is one for each."""
    ours = {"acc": {"lambada": "greedy", "truthfulqa_mc2": "right_share"}.get(task, "accuracy"), "mcc": "predicted",
            "acc_norm": "accuracy_per_character", "word_perplexity": "words", "byte_perplexity": "bytes"}  # fmt: skip
    scores: dict[int, dict[str, float]] = defaultdict(dict)
    found = dict[int, Found]()
    for sample in samples:
        of_item, written = sample["doc_id"], "exact_match" + "_flexible" * (sample["filter"] == "flexible-extract")
        for metric, value in sample.items():
            if name := {**ours, "exact_match": written}.get(metric):
                scores[of_item][name] = float(value[1] if isinstance(value, Sequence) else value)
        answers = [answer[0] for answer in sample["resps"]]
        texts = [answer for answer in answers if isinstance(answer, str)]
        logprobs = [] if texts else [answer if isinstance(answer, float) else answer[0] for answer in answers]
        found[of_item] = Found(logprobs, texts, scores[of_item])
    return [found[number] for number in sorted(found)]


def ours(model: Path, task: str, shots: int, items: Sequence[Item], files: Files, out: Path) -> list[Found]:
    short = [
        replace(item, ask=replace(item.ask, max_tokens=MOST_TOKENS)) if isinstance(item.ask, Writing) else item
        for item in items
    ]
    asked = replace(TASKS[task], items=lambda _: iter(short))
    examine(task, asked, examinee(model), files, TaskSettings(shots=shots), out, {"model": digest_of(model)})
    lines = [(line, [logprob for logprob, _ in line["likelihoods"]]) for line in read_lines(out / task)]
    return [
        Found([sum(each)] if task == "wikitext2" else each, line["texts"], line["values"])  # a passage has windows
        for line, each in lines
    ]


@cache
def examinee(model: Path) -> Examinee:
    return Examinee(*load_with_tokenizer(model, "cpu"))


def compare(task: str, shots: int, left: Sequence[Found], right: Sequence[Found]) -> str:
    """A row of the table."""
    pairs = list(zip(left, right, strict=True))
    apart = [abs(a - b) for one, other in pairs for a, b in zip(one.logprobs, other.logprobs, strict=True)]
    texts = sum(list(one.texts) != list(other.texts) for one, other in pairs)
    otherwise = [max(abs(one.scores[name] - other.scores[name]) for name in one.scores) for one, other in pairs]
    best = [sorted(one.logprobs)[-2:] for one in left if len(set(one.logprobs)) > 1]
    ties = sum(high - low < TOLERANCE for low, high in best)
    told = [f"{task}, {shots} examples" if shots else task, len(pairs), f"{max(apart):.1e}" if apart else "-"]
    told += [sum(each > TOLERANCE for each in otherwise), ties, texts if left[0].texts else "-"]
    return "| " + " | ".join(map(str, [*told, ", ".join(left[0].scores)])) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--tasks", nargs="*", default=list(DEFINITIONS), choices=DEFINITIONS)
    parser.add_argument("--out", type=Path, default=Path("parity"))
    arguments = parser.parse_args()
    files = Files(arguments.data)
    print("| task | items | largest difference | otherwise | near-ties | other texts | scores |")
    print("|---|---|---|---|---|---|---|")
    runs = [(task, 5 if task == "gsm8k" else 0) for task in arguments.tasks]
    for task, shots in runs + [("mmlu", 5)] * ("mmlu" in arguments.tasks):
        records = docs(task, files, arguments.limit)
        records = {part: each[: -(-arguments.limit // len(records))] for part, each in records.items()}
        place = arguments.out / f"{arguments.model.name}-{arguments.limit}-{shots}"
        kept = place / f"{task}-harness.json"
        right = ours(arguments.model, task, shots, our_items(task, records, files), files, place)
        if not kept.is_file():
            kept.write_text(json.dumps([vars(each) for each in theirs(arguments.model, task, shots, records, files)]))
        left = [Found(**each) for each in json.loads(kept.read_text())]
        print(compare(task, shots, left, right), flush=True)
    for task, reason in DIFFERENT.items():
        print(f"| {task} | - | - | - | - | - | {reason} |")


if __name__ == "__main__":
    main()
