"""Our models under lm-evaluation-harness get what our own tasks say of the same records, where the library is there."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from harness_tasks import Given, given, their_tasks

from groundup.errors import SettingsError
from groundup.evals.ask import Examinee
from groundup.evals.benchmarks import Files
from groundup.evals.examine import examine
from groundup.evals.harness import harness_model, harness_results
from groundup.evals.results import Result, read_lines
from groundup.evals.settings import TaskSettings
from groundup.evals.tasks import TASKS
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer

COPA = [
    {"premise": f"The {who}.", "choice1": f"He {one}.", "choice2": f"He {other}.", "question": "cause", "label": right}
    for who, one, other, right in (
        ("king slept", "was tired", "was rich", 0),
        ("fox ran", "fell over", "won", 1),
        ("queen hid", "sang on", "did not", 0),
        ("cook ate", "came late", "stayed in", 1),
    )
]
TRIVIA = [
    {"question": f"Who is the {who}", "answer": {"aliases": [who, f"the {who}"], "value": who}}
    for who in ("king", "fox", "queen")
]
PAGES = [" = A king = \n", " The king went over the hill , and the fox ran . \n" * 6, " = A fox = \n", " It slept . \n"]


@pytest.fixture(scope="module")
def examinee() -> Examinee:
    tokenizer = Tokenizer.learn(" ".join(map(str, (COPA, TRIVIA, PAGES))), vocab_size=384)
    sizes = {"context_length": 48, "d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": tokenizer.vocab_size}
    return Examinee(Transformer(ModelConfig.from_table(sizes), seed=3).eval(), tokenizer)


def own(task: str, files: Files, examinee: Examinee, place: Path) -> tuple[Result, list[dict[str, Any]]]:
    result = examine(task, TASKS[task], examinee, files, TaskSettings(), place, {})
    return result, read_lines(place / task)


def under_the_harness(
    task: str, records: Sequence[dict[str, Any]], examinee: Examinee, place: Path
) -> tuple[dict[str, float], list[Any]]:
    """Its values by metric, and what was answered to each item."""
    evaluator = pytest.importorskip("lm_eval.evaluator", reason="needs lm-evaluation-harness: groundup[lm-eval]")
    from lm_eval.tasks import TaskManager

    [theirs] = their_tasks(task, {None: list(records)}, 0, Files(place), place).values()
    found = evaluator.simple_evaluate(
        harness_model(examinee), tasks=[theirs], bootstrap_iters=0, task_manager=TaskManager(include_defaults=False)
    )
    [values], [samples] = found["results"].values(), found["samples"].values()
    answers = [[answer[0] for answer in sample["resps"]] for sample in samples]
    return {name.partition(",")[0]: value for name, value in values.items()}, answers


def test_a_choice_under_the_harness_is_as_likely_and_as_right(examinee: Examinee, tmp_path: Path) -> None:
    values, answers = under_the_harness("copa", COPA, examinee, tmp_path)
    result, lines = own("copa", given("copa", COPA), examinee, tmp_path)
    assert [[list(answer) for answer in each] for each in answers] == [line["likelihoods"] for line in lines]
    assert values["acc"] == result.metrics["accuracy"].value


def test_what_is_written_under_the_harness_is_the_same_text(examinee: Examinee, tmp_path: Path) -> None:
    values, answers = under_the_harness("triviaqa", TRIVIA, examinee, tmp_path)
    result, lines = own("triviaqa", given("triviaqa", TRIVIA), examinee, tmp_path)
    assert answers == [line["texts"] for line in lines]
    assert values["exact_match"] == result.metrics["exact_match"].value


def test_a_text_longer_than_the_context_has_the_same_bits_under_the_harness(examinee: Examinee, tmp_path: Path) -> None:
    files = Given(wikitext2=("hub", [{"text": line} for line in PAGES]))
    pages = [{"page": "".join(PAGES[:2]).removesuffix("\n")}, {"page": "".join(PAGES[2:])}]
    values, answers = under_the_harness("wikitext2", pages, examinee, tmp_path)
    result, lines = own("wikitext2", files, examinee, tmp_path)
    assert len(lines[0]["likelihoods"]) > 1, "several windows"
    assert answers == [[sum(logprob for logprob, _ in line["likelihoods"])] for line in lines]
    assert values["bits_per_byte"] == pytest.approx(result.metrics["bits_per_byte"].value, rel=1e-12)
    assert values["word_perplexity"] == pytest.approx(result.metrics["word_perplexity"].value, rel=1e-9)


@pytest.mark.slow
def test_a_task_is_asked_by_its_name_there_and_an_unknown_one_is_refused(examinee: Examinee, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs lm-evaluation-harness: groundup[lm-eval]")
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: groundup[lm-eval]")
    records = datasets.Dataset.from_list(COPA)
    local = datasets.DatasetDict({"train": records, "validation": records})
    with mock.patch.object(datasets, "load_dataset", return_value=local):
        [(task, metric, value, _)] = harness_results(examinee, ["copa"], 3, None)
    three = given("copa", COPA[:3])
    assert (task, metric, value) == ("copa", "acc", own("copa", three, examinee, tmp_path)[0].metrics["accuracy"].value)
    with pytest.raises(SettingsError, match="lm-evaluation-harness has no task cop; `lm_eval ls tasks` lists them"):
        harness_results(examinee, ["cop"], None, None)


def test_without_the_library_the_extra_is_named(examinee: Examinee, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    for ask in (harness_model, lambda examinee: harness_results(examinee, ["copa"], None, None)):
        with pytest.raises(SettingsError, match=r"--engine lm-eval needs .*: pip install 'groundup\[lm-eval\]'"):
            ask(examinee)
