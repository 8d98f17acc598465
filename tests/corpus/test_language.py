"""The language filter keeps what it should, through any fastText model; perplexity keeps a band."""

import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundup.corpus.document import Document, Drop
from groundup.corpus.filters import looks
from groundup.corpus.settings import Language, Perplexity
from groundup.errors import DataError, MissingError

SENTENCES = Path(__file__).parents[3] / "shared/data/messy/multilingual/leipzig_sentences"
ENGLISH = "The king of the hills went home with his men, and nobody ever saw them in the town again."
GERMAN = "Der König der Berge ging mit seinen Leuten nach Hause, und niemand sah sie je wieder in der Stadt."


def test_language_is_found_and_kept_by_the_list() -> None:
    pytest.importorskip("fasttext", reason="fasttext-predict is not installed")
    (look,) = looks([Language(keep=("en",))], Path())
    kept = look(Document(ENGLISH, "a"))
    assert isinstance(kept, Document) and kept.language == "en"
    dropped = look(Document(GERMAN, "a"))
    assert isinstance(dropped, Drop) and (dropped.rule, dropped.value) == ("language.keep", "de")
    assert look(Document("Kurz.", "a")) == Document("Kurz.", "a")
    unsure = looks([Language(keep=("en",), threshold=1.0)], Path())[0](Document(ENGLISH, "a"))
    assert isinstance(unsure, Drop) and unsure.rule == "language.threshold"
    every = looks([Language()], Path())[0](Document(GERMAN, "a"))
    assert isinstance(every, Document) and every.language == "de"


def test_a_model_of_ones_own_must_be_one(tmp_path: Path) -> None:
    pytest.importorskip("fasttext", reason="fasttext-predict is not installed")
    (tmp_path / "lid.bin").write_bytes(b"no model")
    with pytest.raises(DataError, match="lid.bin is no fastText model"):
        looks([Language(model="lid.bin")], tmp_path)
    with pytest.raises(MissingError, match="language model"):
        looks([Language(model="other.bin")], tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fasttext", None)
    with pytest.raises(MissingError, match=r"pip install 'groundup\[language\]'"):
        looks([Language()], Path())


def documents(path: Path, least: int = 200) -> Iterator[str]:
    """Sentences one after another, in documents of at least so many characters."""
    text = ""
    for line in lzma.decompress(path.read_bytes()).decode().splitlines():
        text = f"{text}\n{line.strip()}".strip()
        if len(text) >= least:
            yield text
            text = ""


def test_english_is_kept_and_29_other_languages_are_not() -> None:
    pytest.importorskip("fasttext", reason="fasttext-predict is not installed")
    if not SENTENCES.exists():
        pytest.skip("the staged sentences are not beside the project")
    (look,) = looks([Language(keep=("en",))], Path())
    kept = {
        path.name[:2]: [isinstance(look(Document(text, "a")), Document) for text in documents(path)]
        for path in SENTENCES.glob("*.xz")
    }
    english = kept.pop("en")
    others = [each for some in kept.values() for each in some]
    assert sum(english) >= 0.99 * len(english) and sum(others) <= 0.005 * len(others)


@pytest.mark.parametrize(
    ("metadata", "rule"),
    [
        ('{"perplexity": 50}', None),
        ('{"perplexity": 9.5}', "perplexity.lowest"),
        ('{"perplexity": 101}', "perplexity.highest"),
        ("{}", "perplexity.missing"),
        ('{"perplexity": "50"}', "perplexity.missing"),
    ],
)
def test_perplexity_is_kept_within_its_band(metadata: str, rule: str | None) -> None:
    document = Document("text", "a", metadata)
    (look,) = looks([Perplexity(lowest=10, highest=100, missing="drop")], Path())
    looked = look(document)
    assert (looked.rule if isinstance(looked, Drop) else None) == rule
    if rule == "perplexity.missing":
        assert looks([Perplexity(lowest=10)], Path())[0](document) == document
