"""lm-evaluation-harness's own task definitions over benchmark files at hand: what comparisons with it stand on.

Files in other forms are converted to the fields of the Hugging Face hub, which its definitions expect; both sides are
then asked of the same records. Imported by bench/evaluation_parity.py and by the tests.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest import mock

from groundup.evals.benchmarks import Benchmark, Files
from groundup.evals.items import Item
from groundup.evals.tasks import TASKS


class Given(Files):
    """Files of which records are given, each with its form."""

    def __init__(self, **found: tuple[str, list[Any]]) -> None:
        super().__init__(Path())
        self.__dict__["found"] = found

    def open(self, name: str) -> Benchmark:
        form, records = self.__dict__["found"][name]
        return Benchmark(form, Path(name), {name: records})


def docs(task: str, files: Files, n: int | None = 20) -> dict[str | None, list[dict[str, Any]]]:
    """The first records of a staged file, or of each of its parts, with the fields that the harness expects."""
    if task == "wikitext2":
        return {None: [{"page": item.ask.original} for item in TASKS[task].items(files)][:n]}
    if task == "blimp":
        return {paradigm: records[:n] for paradigm, records in files.open("blimp").parts.items()}
    if task == "mmlu":
        return mmlu_docs("mmlu", "_test", files, n)
    if task == "hellaswag":
        lines = files.open(task).records
        return {None: [hellaswag_doc(lines[start : start + 6]) for start in range(0, len(lines), 6)][:n]}
    if task == "piqa":
        labels = files.open("piqa_labels").records
        pairs = zip(files.open(task).records, labels, strict=True)
        return {None: [{**record, "label": int(label)} for record, label in pairs][:n]}
    name = "truthfulqa" if task.startswith("truthfulqa") else task
    return {None: [CONVERT[name](record) for record in files.open(name).records[:n]]}


def mmlu_docs(name: str, ending: str, files: Files, n: int | None) -> dict[str | None, list[dict[str, Any]]]:
    parts = {part.removesuffix(ending): rows for part, rows in files.open(name).parts.items()}
    return {subject: [mmlu_doc(row, subject) for row in rows[:n]] for subject, rows in parts.items()}


def mmlu_doc(row: Sequence[str], subject: str) -> dict[str, Any]:
    question, *options, right = row
    return {"question": question, "subject": subject, "choices": options, "answer": "ABCD".index(right)}


def hellaswag_doc(lines: Sequence[str]) -> dict[str, Any]:
    activity, _, context = lines[0].partition(": ")
    return {"activity_label": activity, "ctx_a": context, "ctx_b": "", "endings": lines[2:], "label": lines[1]}


def labelled(question: str, options: Sequence[str], right: int) -> dict[str, Any]:
    letters = list("ABCDEFGH"[: len(options)])
    return {"question": question, "choices": {"text": options, "label": letters}, "answerKey": letters[right]}


def arc_doc(record: dict[str, Any]) -> dict[str, Any]:
    return labelled(record["query"].removeprefix("Question: "), record["choices"], record["gold"])


def openbookqa_doc(record: dict[str, Any]) -> dict[str, Any]:
    doc = labelled(record["query"], record["choices"], record["gold"])
    return {"question_stem": doc.pop("question"), **doc}


def commonsense_doc(record: dict[str, Any]) -> dict[str, Any]:
    """With a fifth option, which the staged form lacks."""
    question, listed = record["query"].removeprefix("Question: ").split("\nChoices:\n")
    options = [line[3:] for line in listed.splitlines()[:4]]
    return labelled(question, [*options, "none"], record["gold"])


def social_doc(record: dict[str, Any]) -> dict[str, Any]:
    """With a third answer, which the staged form lacks."""
    context, question, _, first, second, _ = (line.partition(" ")[2] for line in record["query"].splitlines())
    asked = {"context": context, "question": question, "answerA": first, "answerB": second, "answerC": "none"}
    return {**asked, "label": str(record["gold"] + 1)}


def cloze(record: dict[str, Any]) -> tuple[str, list[str], str]:
    """The text before a blank, both options, and the rest."""
    contexts = record["context_options"]
    same = (first == second for first, second in zip(*contexts, strict=False))
    begin = contexts[0][: len(list(takewhile(bool, same)))]
    before = begin[: begin.rfind(" ") + 1]
    return before, [context[len(before) :] for context in contexts], record["continuation"]


def winogrande_doc(record: dict[str, Any]) -> dict[str, Any]:
    before, (first, second), rest = cloze(record)
    answer = str(record["gold"] + 1)
    return {"sentence": f"{before}_ {rest}", "option1": first, "option2": second, "answer": answer}


def winograd_doc(record: dict[str, Any]) -> dict[str, Any]:
    before, options, rest = cloze(record)
    pronoun = {"pronoun": "it", "pronoun_loc": len(before)}
    return {"text": f"{before}it {rest}", **pronoun, "options": options, "label": record["gold"]}


def boolq_doc(record: dict[str, Any]) -> dict[str, Any]:
    passage, _, question = record["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    return {"passage": passage, "question": question.removesuffix("?"), "label": int(record["gold"])}


def copa_doc(record: dict[str, Any]) -> dict[str, Any]:
    premise, _, connective = record["query"].rpartition(", ")
    first, second = (option.capitalize() for option in record["choices"])
    asked = {"because": "cause", "therefore": "effect"}[connective]
    return {"premise": f"{premise}.", "choice1": first, "choice2": second, "question": asked, "label": record["gold"]}


def truthfulqa_doc(record: dict[str, Any]) -> dict[str, Any]:
    targets = {
        name: {"choices": list(record[name]), "labels": list(record[name].values())}
        for name in ("mc1_targets", "mc2_targets")
    }
    return {"question": record["question"], **targets}


CONVERT: dict[str, Callable[[Any], dict[str, Any]]] = {
    "lambada": lambda record: {"text": f"{record['context']} {record['continuation']}"},
    "winogrande": winogrande_doc,
    "winograd": winograd_doc,
    "arc_easy": arc_doc,
    "arc_challenge": arc_doc,
    "openbookqa": openbookqa_doc,
    "boolq": boolq_doc,
    "copa": copa_doc,
    "truthfulqa": truthfulqa_doc,
    "cola": lambda row: {"sentence": row[3], "label": int(row[1])},
    "sst2": lambda row: {"sentence": row[0], "label": int(row[1])},
    "commonsense_qa": commonsense_doc,
    "social_iqa": social_doc,
    "gsm8k": dict,
    "triviaqa": lambda record: {
        "question": record["context"][10:-8],
        "answer": {"aliases": record["aliases"], "value": record["answer"]},
    },
}


def given(task: str, records: list[dict[str, Any]]) -> Files:
    """Files that have these records of the hub's."""
    if task == "social_iqa":
        return Given(
            social_iqa=("original", records), social_iqa_labels=("original", [each["label"] for each in records])
        )
    form = {"boolq": "SuperGLUE"}.get(task, "hub")
    return Given(**{task: (form, records)})


DEFINITIONS = {
    "wikitext2": "wikitext/wikitext.yaml", "lambada": "lambada/lambada_openai.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml", "piqa": "piqa/piqa.yaml", "winogrande": "winogrande/default.yaml",
    "winograd": "wsc273/default.yaml", "arc_easy": "arc/arc_easy.yaml", "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml", "boolq": "super_glue/boolq/default.yaml",
    "copa": "super_glue/copa/default.yaml", "mmlu": "mmlu/default/mmlu_{}.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml", "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "blimp": "blimp/{}.yaml", "cola": "glue/cola/default.yaml", "sst2": "glue/sst2/default.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml", "social_iqa": "siqa/siqa.yaml", "gsm8k": "gsm8k/gsm8k.yaml",
    "triviaqa": "triviaqa/default.yaml",
}  # fmt: skip
"""The harness's own definition of each task; {} is the part."""


def our_items(task: str, records: dict[str | None, list[dict[str, Any]]], files: Files) -> list[Item]:
    """What we make of those records: of the files as they are, where these are the harness's texts already."""
    every = [record for part in records.values() for record in part]
    as_staged = task in ("winograd", "wikitext2", "blimp", "piqa") or task.startswith("truthfulqa")
    made = list(TASKS[task].items(files if as_staged else given(task, every)))
    return [item for part, own in records.items() for item in [each for each in made if each.group == part][: len(own)]]


def their_tasks(
    task: str, records: dict[str | None, list[dict[str, Any]]], shots: int, files: Files, folder: Path
) -> dict[str | None, Any]:
    """The harness's task over the records of each part.

    Args:
        folder: where its definitions are written.
    """
    import datasets
    import lm_eval.tasks

    shown: dict[str | None, list[dict[str, Any]]] = records
    if shots:
        by_name = {
            "mmlu": lambda: mmlu_docs("mmlu_dev", "_dev", files, None),
            "gsm8k": lambda: {None: [dict(record) for record in files.open("gsm8k_train").records[:20]]},
        }
        shown = by_name[task]()
    sampler = "fewshot_config: {sampler: first_n}" if shots else ""
    found = {}
    for part, own in records.items():
        splits = {"test": own, "validation": own, "train": shown[part], "dev": shown[part]}
        lists = {name: datasets.Dataset.from_list([dict(doc) for doc in each]) for name, each in splits.items()}
        include = Path(lm_eval.tasks.__file__).parent / DEFINITIONS[task].format(part)
        definition = folder / f"{task}-{part}.yaml"
        definition.write_text(f"include: {include}\nnum_fewshot: {shots}\n{sampler}\n")
        with mock.patch.object(datasets, "load_dataset", lambda *_, local=lists, **__: datasets.DatasetDict(local)):
            loaded = lm_eval.tasks.TaskManager(include_defaults=False).load(str(definition))["tasks"]
        [found[part]] = loaded.values()
    return found
