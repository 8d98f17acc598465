"""Examine a model on tasks: item by item, so that an interrupted examination goes on where it was.

DIRECTORY/TASK/{result.json, items.jsonl, manifest.json}
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from groundup.artifacts import is_made, making, read_manifest
from groundup.errors import DamagedError, DataError, SettingsError
from groundup.evals.ask import Answered, Examinee
from groundup.evals.benchmarks import Files
from groundup.evals.heldout import Measurement
from groundup.evals.items import (
    Choice,
    Item,
    Passage,
    Task,
    Writing,
    chance_of,
    grade_choice,
    grade_passage,
    with_examples,
)
from groundup.evals.metrics import Measured, measure
from groundup.evals.results import Result, read_result
from groundup.evals.score import HeldOut
from groundup.evals.settings import Benchmark, TaskSettings
from groundup.evals.tasks import find_tasks
from groundup.files import Progress, canonical_json, explaining_write_errors, no_progress, write_json, write_text
from groundup.generation.settings import Sampling

PASSAGE_SHOWN = 400
"""Characters of a passage that are kept beside what it got."""


def questions(name: str, task: Task, files: Files, shots: int) -> list[tuple[Item, Item]]:
    """All items of a task, each as it is and behind its examples.

    Raises:
        SettingsError: more examples than there are.
    """
    examples: dict[str | None, list[Item]] = defaultdict(list)
    if shots:
        if task.examples is None:
            raise SettingsError(f"{name} has no examples to show: leave shots out")
        for example in task.examples(files):
            examples[example.group].append(example)
    asked = []
    for item in task.items(files):
        others = [each for each in examples[item.group] if each != item][:shots]
        if len(others) < shots:
            raise SettingsError(f"shots = {shots}, but {name} has {len(others)} examples {item.group or ''}".rstrip())
        asked.append((item, with_examples(item, task, others)))
    return asked


def first_of_each(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The first items, of each group as many, up to `limit` in all."""
    if limit is None or limit >= len(items):
        return list(items)
    by_group: dict[str | None, list[Item]] = defaultdict(list)
    for item in items:
        by_group[item.group].append(item)
    longest = max(map(len, by_group.values()))
    in_turn = [group[rank] for rank in range(longest) for group in by_group.values() if rank < len(group)]
    kept = {(item.group, item.id) for item in in_turn[:limit]}
    return [item for item in items if (item.group, item.id) in kept]


def task_hash(task: Task, items: Sequence[Item]) -> str:
    """16 hex digits of the sha256 of everything that is asked, and of the metrics' names."""
    asked = [canonical_json([item.id, item.group, asdict(item.ask)]) for item in items]
    return hashlib.sha256(b"\n".join([*asked, canonical_json(task.metrics)])).hexdigest()[:16]


def examine(
    name: str,
    task: Task,
    examinee: Examinee,
    files: Files,
    settings: TaskSettings,
    directory: Path,
    inputs: Mapping[str, str],
    contaminated: Path | None = None,
    progress: Progress = no_progress,
) -> Result:
    """Ask a model the items of a task, and write what it got; what is there already is read.

    Args:
        name: of the task, and of the directory under `directory`.
        settings: how many items and examples, and how answers are written.
        inputs: name of what is examined → its digest.
        contaminated: a file for `contaminated_items`.

    Raises:
        DataError: a file of the benchmark that is missing or altered.
        SettingsError: more examples than there are.
    """
    shots = task.shots if settings.shots is None else settings.shots
    pairs = questions(name, task, files, shots)
    every = [asked for _, asked in pairs]
    items = first_of_each(every, settings.limit)
    known = {"hash": task_hash(task, every), **settings.model_dump(), "shots": shots}
    target = directory / name
    if is_made(target):
        manifest = read_manifest(target, "task")
        if (dict(manifest.settings), dict(manifest.inputs)) == (json.loads(canonical_json(known)), dict(inputs)):
            return read_result(target)
    record = _Record(directory / f".{name}.items.jsonl", canonical_json([known, dict(inputs)]).decode())
    with making(target, "task", known, inputs) as draft:
        lines = _answer(task, examinee, items, settings, record, progress)
        plain = {(item.group, item.id): item for item, _ in pairs}
        lines = [line | {"asked": _asked(plain[line["group"], line["id"]])} for line in lines]
        result = _result(name, task, lines, every, files, known, contaminated_items(contaminated, name))
        result = replace(result, isolation=inputs.get("isolation"))
        write_json(draft.path / "result.json", asdict(result))
        write_text(draft.path / "items.jsonl", "".join(canonical_json(line).decode() + "\n" for line in lines))
        draft.statistics["metrics"] = {metric: each.value for metric, each in result.metrics.items()}
    record.path.unlink(missing_ok=True)
    return result


def benchmark(asked: Benchmark) -> Measurement:
    """What measures a model by some items of a task: its metrics, as TASK_METRIC. The items are read now.

    Raises:
        SettingsError: no such task.
        DataError: a file of it that is missing or altered.
    """
    [(name, task)] = find_tasks([asked.task]).items()
    every = [item for _, item in questions(name, task, Files(Path(asked.data)), task.shots)]
    items = first_of_each(every, asked.limit)

    def measure_now(held_out: HeldOut) -> dict[str, float]:
        answers = Examinee(held_out.model, held_out.tokenizer).answers(items)
        values = []
        for done, answered in enumerate(answers, 1):
            values.append(_line(task, answered)["values"])
            held_out.progress(done, len(items), name)
        measured = {metric: measure(metric, values) for metric in task.metrics}
        return {f"{name}_{metric}": each.value for metric, each in measured.items() if each}

    return Measurement(measure_now, f"{name}_{task.metrics[0]}")


class _Record:
    """Items that were answered before, and those that are now: a line each, on the disk at once.

    Args:
        head: the first line; what is there under another one is of another examination, and begun again.
    """

    def __init__(self, path: Path, head: str) -> None:
        self.path, self.head = path, head

    def read(self) -> dict[tuple[str | None, str], dict[str, Any]]:
        """The whole lines by group and id."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []
        if not lines or lines[0].decode() != self.head:
            with explaining_write_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(self.head + "\n", "utf-8")
            return {}
        self.path.write_bytes(b"\n".join(lines) + b"\n")  # without half a line
        try:
            return {(line["group"], line["id"]): line for line in map(json.loads, lines[1:])}
        except (ValueError, KeyError, TypeError):
            raise DamagedError(f"{self.path} is damaged: remove it, and its items are asked again") from None

    def add(self, line: Mapping[str, Any]) -> None:
        with explaining_write_errors(self.path), open(self.path, "ab", buffering=0) as stream:
            stream.write(canonical_json(line) + b"\n")


def _answer(
    task: Task, examinee: Examinee, items: Sequence[Item], settings: TaskSettings, record: _Record, progress: Progress
) -> list[dict[str, Any]]:
    """A line for each item, in their order."""
    done = record.read()
    left = [item for item in items if (item.group, item.id) not in done]
    sampling = Sampling(temperature=settings.temperature, seed=settings.seed)
    stream = examinee.answers(
        left, n=settings.samples, sampling=sampling, unconditional="accuracy_over_prior" in task.metrics
    )

    def keep(checked: Future[dict[str, Any]]) -> None:
        line = checked.result()
        record.add(line)
        done[line["group"], line["id"]] = line
        progress(len(done), len(items), "items")

    progress(len(done), len(items), "items")
    with ThreadPoolExecutor() as pool:  # checks may run programs
        running = set[Future[dict[str, Any]]]()
        for answered in stream:
            running.add(pool.submit(_line, task, answered))
            for checked in [each for each in running if each.done()]:
                running.remove(checked)
                keep(checked)
        for checked in as_completed(running):
            keep(checked)
    return [done[item.group, item.id] for item in items]


def _line(task: Task, answered: Answered) -> dict[str, Any]:
    """What is kept of an item: the values of its metrics, and what they were made of."""
    item, found = answered.item, answered.likelihoods
    match item.ask:
        case Choice(options=options):
            values = grade_choice(item.ask, found[: len(options)], found[len(options) :])
        case Passage():
            values = grade_passage(item.ask, found)
        case _:
            assert task.check is not None, "a task whose answers are written has a check"
            values = task.check(item, answered.texts)
    likelihoods = [[each.logprob, each.is_greedy] for each in found]
    told = {"likelihoods": likelihoods, "texts": answered.texts, "cut": answered.is_cut}
    return {"group": item.group, "id": item.id, "values": values, **told}


def _asked(item: Item) -> dict[str, Any]:
    """An item without its examples, for a person to read."""
    match item.ask:
        case Choice(contexts=contexts, options=options, right=right):
            different = len(set(contexts)) > 1
            shown = [f"{c} … {o}" for c, o in zip(contexts, options, strict=True)] if different else options
            return {"prompt": "" if different else contexts[0], "options": shown, "right": right}
        case Writing(prompt=prompt, answers=answers):
            return {"prompt": prompt, "answers": answers}
        case Passage(text=text):
            return {"prompt": text[:PASSAGE_SHOWN]}


def _result(
    name: str,
    task: Task,
    lines: Sequence[dict[str, Any]],
    every: Sequence[Item],
    files: Files,
    known: Mapping[str, Any],
    contaminated: frozenset[str],
) -> Result:
    first = task.metrics[0]

    def of(kept: Callable[[dict[str, Any]], object]) -> list[dict[str, float]]:
        return [line["values"] for line in lines if kept(line)]

    names = list(dict.fromkeys(line["group"] for line in lines))
    members = {} if names == [None] else {group: (group,) for group in names} | dict(task.categories)
    groups = {group: [line["values"] for line in lines if line["group"] in inside] for group, inside in members.items()}
    parts = {}
    if contaminated:
        parts["contaminated"] = of(lambda line: line["id"] in contaminated)
        parts["clean"] = of(lambda line: line["id"] not in contaminated)
    measured = {metric: measure(metric, of(lambda line: True)) for metric in task.metrics}
    return Result(
        task=name,
        metric=first,
        hash=known["hash"],
        settings={key: value for key, value in known.items() if key != "hash"},
        items=len(lines),
        of=len(every),
        chance=chance_of(task, every),
        metrics={metric: each for metric, each in measured.items() if each},
        groups=_measured(first, groups),
        parts=_measured(first, parts),
        cut=sum(line["cut"] for line in lines),
        unknown=sum(not line["values"] for line in lines),
        files=files.read,
    )


def _measured(metric: str, parts: Mapping[str, list[dict[str, float]]]) -> dict[str, Measured]:
    found = {name: measure(metric, values) for name, values in parts.items()}
    return {name: each for name, each in found.items() if each}


def contaminated_items(path: Path | None, task: str) -> frozenset[str]:
    """Ids of a task's items of which the training documents hold a part, by a file of lines {task, id, overlap}; none
    where there is no such file.

    Raises:
        DataError: a line that is none.
    """
    if path is None or not path.is_file():
        return frozenset()
    found = set()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            told = json.loads(line)
            if told["overlap"] > 0 and told["task"] == task:
                found.add(str(told["id"]))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}, line {number} should be a table of task, id and overlap") from None
    return frozenset(found)
