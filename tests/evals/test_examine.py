"""An examination that is interrupted goes on item by item; only what was asked alike is compared."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from groundup.artifacts import read_manifest
from groundup.errors import DataError, SettingsError
from groundup.evals import examine as examining
from groundup.evals.ask import Examinee
from groundup.evals.benchmarks import Files
from groundup.evals.compare import compare
from groundup.evals.examine import examine, first_of_each, questions
from groundup.evals.items import Choice, Item, Task, Writing
from groundup.evals.results import Result, read_lines, read_result
from groundup.evals.settings import TaskSettings
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer

SENTENCE = "the lowest of the low were lower than the slow and slower were the slowest of the low"
WORDS = SENTENCE.split()


def choices(files: Files) -> Iterator[Item]:
    for number in range(30):
        ask = Choice((WORDS[number % 16],) * 2, (WORDS[(number + 1) % 16], WORDS[(number + 5) % 16]), (number % 2,))
        yield Item(str(number), ask, group="odd" if number % 2 else "even")


TASK = Task(choices, files=(), metrics=("accuracy", "accuracy_per_byte"), chance=0.5, licence="ours", examples=choices)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.learn(" ".join(WORDS), vocab_size=320)


def examinee(tokenizer: Tokenizer, seed: int = 0) -> Examinee:
    config = ModelConfig(vocab_size=tokenizer.vocab_size, context_length=64, d_model=32, n_layers=1)
    return Examinee(Transformer(config, seed=seed), tokenizer, together=4)


def run(directory: Path, who: Examinee, task: Task = TASK, model: str = "m", **settings: object) -> Result:
    asked = TaskSettings.from_table(settings, "eval")
    return examine("words", task, who, Files(directory), asked, directory, {"model": model})


def test_an_interrupted_examination_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", examinee(tokenizer))
    answered = []

    def stopping(task: Task, each: object) -> dict[str, object]:
        if len(answered) == 11:
            raise KeyboardInterrupt
        answered.append(each)
        return line(task, each)  # type: ignore[arg-type]

    line = examining._line
    monkeypatch.setattr(examining, "_line", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", examinee(tokenizer))
    record = tmp_path / "cut" / ".words.items.jsonl"
    kept = len(record.read_bytes().splitlines()) - 1
    assert 0 < kept <= 11 and not (tmp_path / "cut" / "words").exists()
    with record.open("ab") as stream:
        stream.write(b'{"half a li')
    again = []
    monkeypatch.setattr(examining, "_line", lambda task, each: again.append(each) or line(task, each))
    assert run(tmp_path / "cut", examinee(tokenizer)) == whole
    assert len(again) == 30 - kept, "only what was left is asked"
    assert (tmp_path / "cut" / "words" / "items.jsonl").read_bytes() == (
        tmp_path / "whole" / "words" / "items.jsonl"
    ).read_bytes()


def test_what_is_done_is_read_and_other_settings_are_asked_anew(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first = run(tmp_path, examinee(tokenizer))
    made = read_manifest(tmp_path / "words").made
    assert run(tmp_path, examinee(tokenizer)) == first == read_result(tmp_path / "words")
    assert read_manifest(tmp_path / "words").made == made
    limited = run(tmp_path, examinee(tokenizer), limit=7)
    assert (limited.items, limited.of) == (7, 30) and limited.hash == first.hash


def test_a_limit_takes_the_first_of_each_group(tmp_path: Path) -> None:
    items = [*choices(Files(tmp_path))]
    assert [item.id for item in first_of_each(items, 5)] == ["0", "1", "2", "3", "4"]
    uneven = [Item(str(n), items[0].ask, group="a" if n < 8 else "b") for n in range(10)]
    assert [item.id for item in first_of_each(uneven, 6)] == ["0", "1", "2", "3", "8", "9"]


def test_examples_are_of_the_same_group_and_never_the_question_itself(tmp_path: Path) -> None:
    items = {item.id: asked for item, asked in questions("words", TASK, Files(tmp_path), shots=2)}
    ask = items["0"].ask
    assert isinstance(ask, Choice)
    assert ask.contexts[0] == "of the\n\nlow were\n\nthe"
    with pytest.raises(SettingsError, match="shots = 15, but words has 14 examples even"):
        questions("words", TASK, Files(tmp_path), shots=15)


def test_groups_and_what_was_trained_on_are_measured_apart(tmp_path: Path, tokenizer: Tokenizer) -> None:
    contaminated = tmp_path / "contaminated.jsonl"
    lines = [{"task": "words", "id": "3", "overlap": 0.8}, {"task": "other", "id": "4", "overlap": 1.0}]
    contaminated.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = examine(
        "words", TASK, examinee(tokenizer), Files(tmp_path), TaskSettings(), tmp_path, {"model": "m"}, contaminated
    )
    assert {name: each.items for name, each in result.groups.items()} == {"even": 15, "odd": 15}
    assert {name: each.items for name, each in result.parts.items()} == {"contaminated": 1, "clean": 29}
    contaminated.write_text("not a table\n")
    with pytest.raises(DataError, match="line 1 should be a table of task, id and overlap"):
        examining.contaminated_items(contaminated, "words")


def test_a_check_that_fails_to_run_is_unknown_and_counts_nowhere(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def writings(files: Files) -> Iterator[Item]:
        for number in range(6):
            yield Item(str(number), Writing(WORDS[number], ("low",), max_tokens=3))

    task = Task(
        writings, (), ("accuracy",), 0.0, "ours", check=lambda item, texts: {} if item.id == "2" else {"accuracy": 1.0}
    )
    result = run(tmp_path, examinee(tokenizer), task)
    assert (result.unknown, result.metrics["accuracy"].items, result.metrics["accuracy"].value) == (1, 5, 1.0)


def test_models_are_compared_where_they_were_asked_alike(tmp_path: Path, tokenizer: Tokenizer) -> None:
    one, other = examinee(tokenizer, 0), examinee(tokenizer, 1)
    run(tmp_path / "a", one)
    run(tmp_path / "b", other, model="n", limit=20)
    [difference], notes = compare(tmp_path / "a", tmp_path / "b")
    lines = [
        {line["id"]: line["values"]["accuracy"] for line in read_lines(tmp_path / side / "words")} for side in "ab"
    ]
    gained = [lines[1][id] - lines[0][id] for id in lines[1]]
    assert not notes and difference.items == 20
    assert difference.difference == pytest.approx(sum(gained) / 20)
    run(tmp_path / "c", other, replace(TASK, metrics=("accuracy_per_byte",)))
    assert compare(tmp_path / "a", tmp_path / "c") == (
        [],
        ["words: not compared: the two were asked in different ways (prompts, items or settings)"],
    )
    assert compare(tmp_path / "a", tmp_path / "nowhere")[1] == [f"words: only {tmp_path / 'a'} has a result"]
