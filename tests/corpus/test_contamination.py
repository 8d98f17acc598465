"""Evaluation items in training documents: found as a plain search finds them, dropped or noted, never passed over."""

import json
from pathlib import Path

import pytest

from groundup.corpus.contamination import contaminated, contamination, read_items
from groundup.corpus.document import Document, Drop, Note
from groundup.corpus.filters import looks
from groundup.corpus.settings import Contamination
from groundup.errors import DataError, MissingError
from groundup.evals.examine import contaminated_items

QUESTION = "In what year did the old king of the little hill lose his golden apple to the fox by the well? Answer: 1842"
SHORT = "The fox that sat by the well of gold"
TINY = "Who? The fox."


@pytest.fixture
def items(tmp_path: Path) -> Path:
    folder = tmp_path / "items"
    folder.mkdir()
    lines = {
        "riddles": [QUESTION, SHORT, TINY],
        "math": ["What is two and two and two and two, and then two more of it?"],
    }
    for task, texts in lines.items():
        rows = [json.dumps({"id": f"{task[0]}/{number}", "text": text}) for number, text in enumerate(texts)]
        (folder / f"{task}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def settings_of(items: Path, **more: object) -> Contamination:
    return Contamination.model_validate({"items": (str(items),), **more})


def look(text: str, settings: Contamination) -> Document | Drop:
    [filter] = looks([settings], Path())
    return filter(Document(text, "a.txt"))


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@pytest.mark.parametrize("n", [8, 13])
def test_an_item_is_known_by_its_runs_of_words(items: Path, n: int) -> None:
    settings = settings_of(items, words=n, action="report")
    words = QUESTION.split()
    for begin in range(0, len(words), 3):
        text = "Some say: " + " ".join(words[begin : begin + 15]).upper() + "! And so on."
        looked = look(text, settings)
        assert isinstance(looked, Document)
        common = len(runs(text, n) & runs(QUESTION, n))
        assert looked.notes == ((Note("contamination.item", common, "riddles/r/0"),) if common else ())


def test_a_document_that_holds_an_item_is_dropped_and_says_which(items: Path) -> None:
    drop = look(f"Once. {QUESTION} The end.", settings_of(items))
    assert drop == Drop("contamination.item", "holds words of an evaluation item: riddles/r/0", 1.0, 0.0)
    part = " ".join(QUESTION.split()[:14])
    assert isinstance(look(part, settings_of(items)), Drop)
    kept = look(part, settings_of(items, share=0.5))
    assert isinstance(kept, Document)
    assert kept.notes == (Note("contamination.item", 2, "riddles/r/0"),)


def test_short_items_are_looked_for_as_a_whole_and_very_short_ones_not(items: Path) -> None:
    assert isinstance(look(f"Then, {SHORT}.", settings_of(items)), Drop)
    assert isinstance(look(f"Then, {SHORT.replace('gold', 'silver')}.", settings_of(items)), Document)
    assert isinstance(look(TINY, settings_of(items)), Document)
    assert read_items(settings_of(items), Path()).totals.tolist() == [3, 11, 1, 0]
    assert isinstance(look(TINY, settings_of(items, fewest_words=3)), Drop)


def test_items_that_are_missing_or_empty_are_refused_unless_waived(tmp_path: Path) -> None:
    """A21."""
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for settings, error, message in (
        (Contamination(), DataError, "no items of contamination in no file"),
        (settings_of(empty), DataError, "empty.jsonl: name files of lines"),
        (settings_of(tmp_path / "no.jsonl"), MissingError, "no.jsonl is missing"),
    ):
        with pytest.raises(error, match=message):
            looks([settings], tmp_path)
        [waived] = looks([settings.model_copy(update={"waived": True})], tmp_path)
        assert waived(Document(QUESTION, "a.txt")) == Document(QUESTION, "a.txt")
    empty.write_text('{"id": 1, "text": "a"}\n{"id": 2}\n')
    with pytest.raises(DataError, match=r"empty.jsonl, line 2: not of the form"):
        looks([settings_of(empty)], tmp_path)


def test_the_list_is_that_which_evaluation_reads(items: Path, tmp_path: Path) -> None:
    settings = settings_of(items, action="report")
    known = read_items(settings, Path())
    texts = [" ".join(QUESTION.split()[:14]), f"{QUESTION} {SHORT}", " ".join(QUESTION.split()[:15]), "Nothing of it."]
    notes = [Note("fix.other", 3, "math/m/0")]
    for text in texts:
        looked = contamination(Document(text, "a.txt"), settings, known)
        assert isinstance(looked, Document)
        notes += looked.notes
    lines = contaminated(notes, known)
    assert lines == [
        {"task": "riddles", "id": "r/0", "overlap": 1.0},
        {"task": "riddles", "id": "r/1", "overlap": 1.0},
    ]
    path = tmp_path / "contaminated.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert contaminated_items(path, "riddles") == {"r/0", "r/1"}
    assert contaminated_items(path, "math") == frozenset()
