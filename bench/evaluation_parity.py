"""Do our benchmark tasks and lm-evaluation-harness agree, item by item?

    python bench/evaluation_parity.py MODEL DATA [--limit 100] [--tasks NAME ...] [--precision float32] [--out PLACE]

MODEL is a Hugging Face directory, DATA the folder of benchmark files. The harness runs its own task definitions over
the same records (`harness_tasks.py`) on its `HFLM` of transformers; ours are asked through `examine`. The first items,
of tasks with parts as many of each (MMLU and BLiMP: 2 of each for 100). In float32 log-likelihoods may differ by 1e-3;
what an item scores, or the text that is written, may not differ. Near-ties are items whose best two options lie within
1e-3: there the decision is rounding's. In bfloat16 both round, each in its own way, and the scores are what can be
compared. What is done is kept in --out, and not done again.

Of HumanEval, whose checker the harness fetches from the network, its `HFLM` writes the answers, which our sandbox runs.

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
from typing import Any, Literal

from harness_tasks import DEFINITIONS, docs, our_items, their_tasks

from groundup.evals.ask import Examinee
from groundup.evals.benchmarks import Files
from groundup.evals.examine import examine
from groundup.evals.items import Item, Writing
from groundup.evals.metrics import measure
from groundup.evals.programs import STOP
from groundup.evals.results import read_lines
from groundup.evals.settings import TaskSettings
from groundup.evals.tasks import TASKS
from groundup.weights.files import digest_of
from groundup.weights.load import load_with_tokenizer

TOLERANCE = 1e-3
MOST_TOKENS = 64
"""Written of an answer in float32, on both sides: enough to differ in, and quick. Programs are written to their end."""


@dataclass(frozen=True)
class Found:
    """What a side made of an item."""

    logprobs: Sequence[float]
    texts: Sequence[str]
    scores: dict[str, float]


@dataclass(frozen=True)
class Run:
    """A task, and how both sides are asked."""

    model: Path
    precision: Literal["float32", "bfloat16"]
    task: str
    shots: int
    files: Files

    @property
    def most_tokens(self) -> int | None:
        return None if self.task == "humaneval" or self.precision == "bfloat16" else MOST_TOKENS


def theirs(run: Run, records: dict[str | None, Any]) -> list[Found]:
    from lm_eval.evaluator import evaluate

    task = run.task

    with tempfile.TemporaryDirectory() as folder:
        parts = their_tasks(task, records, run.shots, run.files, Path(folder))
    for each in parts.values():
        if each.get_config("output_type") == "generate_until" and run.most_tokens:
            each.set_config("generation_kwargs", {"max_gen_toks": run.most_tokens}, update=True)
    by_name = {str(part): each for part, each in parts.items()}
    lm = harness_lm(run.model, run.precision, task == "wikitext2")
    samples = evaluate(lm, {"tasks": by_name, "groups": {}}, bootstrap_iters=0)["samples"]
    return [item for name in by_name for item in _of_items(task, samples[name])]


def their_programs(run: Run, items: Sequence[Item]) -> list[Found]:
    """What the harness's model writes for our prompts, and what becomes of it in our sandbox."""
    from lm_eval.api.instance import Instance

    how = {"until": list(STOP), "max_gen_toks": items[0].ask.max_tokens, "do_sample": False}
    requests = [Instance("generate_until", {}, (item.ask.prompt, dict(how)), n) for n, item in enumerate(items)]
    texts = harness_lm(run.model, run.precision, False).generate_until(requests)
    check = TASKS["humaneval"].check
    return [Found([], [text], check(item, [text])) for item, text in zip(items, texts, strict=True)]


@cache
def harness_lm(model: Path, precision: str, reads_passages: bool) -> Any:
    """For passages with a softmax in float64: in float32, its sum over the vocabulary is 1e-5 off for every token."""
    from lm_eval.models.huggingface import HFLM

    how = {"batch_size": 1, "softmax_dtype": "float64"} if reads_passages else {"batch_size": 8}
    return HFLM(pretrained=str(model), dtype=precision, device="cpu", **how)


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


def ours(run: Run, items: Sequence[Item], out: Path) -> list[Found]:
    task, asked = run.task, list(items)
    if run.most_tokens and isinstance(asked[0].ask, Writing):
        asked = [replace(item, ask=replace(item.ask, max_tokens=run.most_tokens)) for item in items]
    given = replace(TASKS[task], items=lambda _: iter(asked))
    settings, inputs = TaskSettings(shots=run.shots), {"model": digest_of(run.model)}
    examine(task, given, examinee(run.model, run.precision), run.files, settings, out, inputs)
    lines = [(line, [logprob for logprob, _ in line["likelihoods"]]) for line in read_lines(out / task)]
    return [
        Found([sum(each)] if task == "wikitext2" else each, line["texts"], line["values"])  # a passage has windows
        for line, each in lines
    ]


@cache
def examinee(model: Path, precision: Literal["float32", "bfloat16"]) -> Examinee:
    return Examinee(*load_with_tokenizer(model, "cpu"), precision=None if precision == "float32" else precision)


def compare(run: Run, left: Sequence[Found], right: Sequence[Found]) -> str:
    """A row of the table."""
    task, shots = run.task, run.shots
    pairs = list(zip(left, right, strict=True))
    apart = [abs(a - b) for one, other in pairs for a, b in zip(one.logprobs, other.logprobs, strict=True)]
    texts = sum(list(one.texts) != list(other.texts) for one, other in pairs)
    outcomes = left[0].scores.keys() & right[0].scores.keys()  # those of a program have names for each way to fail
    both = ["pass@1"] if task == "humaneval" else sorted(outcomes)
    otherwise = [max(abs(one.scores[name] - other.scores[name]) for name in both) for one, other in pairs]
    best = [sorted(one.logprobs)[-2:] for one in left if len(set(one.logprobs)) > 1]
    ties = sum(high - low < TOLERANCE for low, high in best)
    told = [f"{task}, {shots} examples" if shots else task, len(pairs), f"{max(apart):.1e}" if apart else "-"]
    told += [sum(each > TOLERANCE for each in otherwise), ties, texts if left[0].texts else "-"]
    scores = [", ".join(score([each.scores for each in side], name) for name in both) for side in (right, left)]
    return "| " + " | ".join(map(str, [*told, ", ".join(both), *scores])) + " |"


def score(values: Sequence[dict[str, float]], metric: str) -> str:
    found = measure(metric, values)
    if found is None or found.interval is None:
        return "-"
    return f"{found.value:.4g} ({found.interval[0]:.4g}–{found.interval[1]:.4g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--tasks", nargs="*", default=[*DEFINITIONS], choices=[*DEFINITIONS, "humaneval"])
    parser.add_argument("--shots", type=int, help="if not given, 0; with gsm8k 5, with mmlu both")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path("parity"))
    arguments = parser.parse_args()
    files, limit = Files(arguments.data), arguments.limit
    print("| task | items | largest difference | otherwise | near-ties | other texts | scores | ours | harness |")
    print("|---|---|---|---|---|---|---|---|---|")
    usual = {"gsm8k": (5,), "mmlu": (0, 5)}
    asked = None if arguments.shots is None else (arguments.shots,)
    runs = [(task, shots) for task in arguments.tasks for shots in asked or usual.get(task, (0,))]
    for task, shots in runs:
        run = Run(arguments.model, arguments.precision, task, shots, files)
        place = arguments.out / f"{arguments.model.name}-{arguments.precision}-{limit}-{shots}"
        kept = place / f"{task}-harness.json"
        if task == "humaneval":
            items = list(TASKS[task].items(files))[:limit]
        else:
            records = docs(task, files, limit)
            records = {part: each[: -(-limit // len(records))] for part, each in records.items()}
            items = our_items(task, records, files)
        right = ours(run, items, place)
        if not kept.is_file():
            found = their_programs(run, items) if task == "humaneval" else theirs(run, records)
            kept.write_text(json.dumps([vars(each) for each in found]))
        left = [Found(**each) for each in json.loads(kept.read_text())]
        print(compare(run, left, right), flush=True)


if __name__ == "__main__":
    main()
