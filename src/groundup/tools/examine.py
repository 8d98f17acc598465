"""Examine a model on benchmarks, and set two models' results side by side."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from groundup.errors import SettingsError
from groundup.evals.ask import Examinee
from groundup.evals.benchmarks import Files
from groundup.evals.examine import examine as ask
from groundup.evals.harness import harness_results
from groundup.evals.programs import Grader, check_answers
from groundup.evals.results import Result
from groundup.evals.sandbox import probe
from groundup.evals.settings import TaskSettings
from groundup.evals.tasks import find_tasks
from groundup.files import Progress
from groundup.generation.packed import Precision
from groundup.report.examined import write_page
from groundup.tools.examined import results_directory
from groundup.weights.files import chat_of, digest_of
from groundup.weights.load import load_with_tokenizer


def examine(
    target: Path,
    names: Sequence[str],
    data: Path,
    out: Path,
    settings: TaskSettings,
    *,
    together: int,
    device: str | None,
    precision: Precision | None,
    watch: Callable[[str], AbstractContextManager[Progress]],
    allow_unsandboxed: bool = False,
) -> list[Result]:
    """The model's result in each task, written into `out` as it is known.

    Args:
        names: of tasks and suites.
        data: the folder that has the benchmarks' files.
        together: requests that run at once.
        watch: a task's name → its progress.
        allow_unsandboxed: where isolation is missing, run what a model writes without.

    Raises:
        SettingsError: an unknown task, or a model that cannot be asked so.
        DataError: no model, or a file of a benchmark that is missing or altered.
        ResourceError: programs are to be run, and nothing here isolates them.
    """
    tasks = find_tasks(names)
    for task in tasks.values():  # before a model is loaded
        for file in task.files:
            Files(data).open(file)
    isolation = {}
    for name, task in tasks.items():
        if task.check is check_answers:
            sandbox = probe(allow_unsandboxed=allow_unsandboxed)
            tasks[name] = replace(task, check=Grader(sandbox).check)
            isolation[name] = {"isolation": ", ".join(sandbox.layers)}
    model, tokenizer = load_with_tokenizer(target, device)
    chat = chat_of(target) if settings.chat else None
    if settings.chat and chat is None:
        raise SettingsError(f"{target} is a base model, without a chat template: leave --chat out")
    examinee = Examinee(model, tokenizer, together=together, precision=precision, chat=chat, stride=settings.stride)
    inputs = {"model": digest_of(target), "precision": precision or str(next(model.parameters()).dtype)}
    contaminated = results_directory(target).parent / "corpus" / "contaminated.jsonl"
    results = []
    for name, task in tasks.items():
        with watch(name) as progress:
            of_task = inputs | isolation.get(name, {})
            results.append(ask(name, task, examinee, Files(data), settings, out, of_task, contaminated, progress))
    write_page(out, target.name if target.name != "model" else target.absolute().parent.name)
    return results


def examine_by_harness(
    target: Path, tasks: Sequence[str], settings: TaskSettings, *, together: int, device: str | None
) -> list[tuple[str, str, float, float | None]]:
    """What the model gets in tasks of lm-evaluation-harness: (task, metric, value, standard error) of each.

    Raises:
        SettingsError: the library or a task is not there, or a setting that it has in its tasks.
    """
    has = {"limit", "shots"}
    if others := [
        name for name, value in settings if name not in has and value != TaskSettings.model_fields[name].default
    ]:
        raise SettingsError(f"--{others[0]} does not go with --engine lm-eval, whose tasks say how they are asked")
    model, tokenizer = load_with_tokenizer(target, device)
    return harness_results(Examinee(model, tokenizer, together=together), tasks, settings.limit, settings.shots)
