"""The survey: what a sample says is what the corpus stage then finds."""

import gzip
import json
import random
from pathlib import Path

import pytest

from groundup.artifacts import Draft
from groundup.corpus.refine import refine
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find
from groundup.errors import DataError
from groundup.tools.survey import SAMPLE_BYTES, survey

TALE = "The king went over the hill to find number {0} of the golden apples for the old queen who sat by the well. " * 3


@pytest.fixture
def junk(tmp_path: Path) -> Path:
    """What people keep in a folder."""
    folder = tmp_path / "junk"
    (folder / "deep").mkdir(parents=True)
    for number in range(20):
        (folder / "deep" / f"{number}.txt").write_text(TALE.format(number))
    (folder / "copy.md").write_text(TALE.format(3))
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("too short")
    (folder / "latin.txt").write_bytes("Größe ".encode("latin-1") * 50)
    (folder / "table.txt").write_text("1 2 3 4 5 6 7 8 9 | " * 20)
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n")
    (folder / "archive.rar").write_bytes(b"Rar!")
    (folder / "README").write_text(TALE)
    return folder


def test_it_says_of_a_small_folder_what_the_corpus_stage_will_say(junk: Path, tmp_path: Path) -> None:
    seen = survey((str(junk),), Path())
    draft = Draft(tmp_path / "corpus")
    draft.path.mkdir()
    refine(find(seen.corpus, Path()), seen.corpus, draft, Path())
    kept = [draft.statistics[split] for split in ("train", "validation", "test")]
    assert seen.is_whole
    assert seen.documents == sum(split["documents"] for split in kept) == 20
    assert seen.bytes == sum(split["bytes"] for split in kept)
    assert dict(seen.dropped) == draft.statistics["dropped"]
    assert dict(seen.left_out) == draft.statistics["left_out"] == {".png": 1, ".rar": 1, "(no suffix)": 1}
    assert seen.read == draft.statistics["read"]["documents"]
    assert dict(seen.files) == {".txt": 24, ".md": 1}


def test_a_large_source_is_sampled_and_scaled(tmp_path: Path) -> None:
    words, draw = sorted(set(TALE.split())), random.Random(0)
    texts = (" ".join(draw.choices(words, k=2000)) for _ in range(SAMPLE_BYTES // 4000))
    rows = [json.dumps({"text": text}) for text in texts]
    plain, zipped = tmp_path / "tales.jsonl", tmp_path / "tales.jsonl.gz"
    plain.write_text("\n".join(rows))
    zipped.write_bytes(gzip.compress(plain.read_bytes(), compresslevel=6))
    seen = survey((str(plain),), Path())
    assert not seen.is_whole
    assert seen.documents == pytest.approx(len(rows), rel=0.1)
    assert seen.sample_bytes < 1.1 * SAMPLE_BYTES
    assert survey((str(zipped),), Path()).documents == pytest.approx(len(rows), rel=0.1)


def test_the_field_with_the_most_text_is_taken_where_there_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"{n}", "story": TALE.format(n), "tags": ["x"]}) for n in range(9)))
    seen = survey((str(path),), Path())
    assert seen.corpus.text_field == "story"
    assert seen.documents == 9


def test_other_fields_and_escapes_of_a_jsonl_are_no_text(tmp_path: Path) -> None:
    """Of a file in Japanese, written with escapes, the text alone is counted and estimated."""
    path = tmp_path / "mukashi.jsonl"
    text = "むかしむかし、あるところに、おじいさんとおばあさんが住んでいました。" * 20
    rows = [
        json.dumps({"text": f"{n}{text}", "tags": "x" * 2000}) for n in range(2 * SAMPLE_BYTES // len(text.encode()))
    ]
    path.write_text("\n".join(rows))
    assert survey((str(path),), Path()).documents == pytest.approx(len(rows), rel=0.05)


def test_one_long_text_is_cut_so_that_some_can_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(TALE.format(number) for number in range(450)))
    seen = survey((str(tmp_path / "book.txt"),), Path())
    assert 40 <= seen.documents <= 50
    draft = Draft(tmp_path / "corpus")
    draft.path.mkdir()
    refine(find(seen.corpus, Path()), seen.corpus, draft, Path())
    assert all(draft.statistics[split]["documents"] for split in ("train", "validation", "test"))


def test_where_most_documents_are_short_they_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "messages.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"A message about the number {n} of them"}) for n in range(50)))
    seen = survey((str(path),), Path())
    assert seen.documents == 50
    assert not seen.dropped


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("Bir varmış bir yokmuş, evvel zaman içinde kalbur saman içinde. " * 4, ["Latin"]),
        ("むかしむかし、あるところに、おじいさんとおばあさんが住んでいました。" * 9, ["Hiragana", "Cjk"]),
        ("Жили-были старик со старухой у самого синего моря. " * 4, ["Cyrillic"]),
    ],
)
def test_scripts_are_told(tmp_path: Path, text: str, scripts: list[str]) -> None:
    for number in range(3):
        (tmp_path / f"{number}.md").write_text(f"{number} {text}")
    seen = survey((str(tmp_path),), Path())
    assert list(seen.scripts) == scripts
    assert sum(seen.scripts.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({"a.txt": b"", "b.txt": b"\xffoo" * 50}, r"0 documents left of 2 read.*1 × empty; 1 × not utf-8 \(.*byte 0\)"),
        ({f"{n}.txt": TALE.encode() for n in range(50)}, "1 document left of 50 read.*Dropped: 49 × exact duplicate"),
        ({"a.txt": b"a" * 300_000}, "left of .* read.* × exact duplicate.*add other texts"),
    ],
)
def test_it_asks_what_the_corpus_stage_will(tmp_path: Path, files: dict[str, bytes], answer: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=answer):
        survey((str(tmp_path),), Path())


def test_marks_between_texts_are_found_and_cut_at(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(TALE.format(number) for number in range(60)))
    (tmp_path / "more.md").write_text("\n</s>\n".join(TALE.format(number) for number in range(60, 65)))
    seen = survey((str(tmp_path),), Path())
    assert seen.corpus.separator == "<|endoftext|>"
    assert (seen.separated, seen.documents) == (61, 61)
    assert list(seen.marks.table()) == ["</s>"]  # is told, since there can be one separator


def test_struck_out_words_are_no_separators(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.md").write_text(TALE.format(number) + "It was <s>wrong</s> right.")
    assert survey((str(tmp_path),), Path()).corpus.separator is None


@pytest.mark.parametrize(
    ("text", "filters"),
    [
        ("def f{0}(x, y={0}):\n    return [x[{0}] ** {0} for _ in range({0})]\n\n" * 9, {"letters": 0.0}),
        ("1{0} 22 333, " * 60, {"letters": 0.0}),
        ("🦊🐻 {0} 🏔️" * 40, {"letters": 0.0}),
        ("= {0} =", {"minimum": 1, "letters": 0.0}),
        (
            "The \ufffd king went over the \ufffd hill number {0} to the well by the old mill. " * 4,
            {"replacement": 1.0},
        ),
    ],
)
def test_a_filter_that_would_drop_most_is_loosened(tmp_path: Path, text: str, filters: dict[str, float]) -> None:
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(text.replace("{0}", str(number)))
    seen = survey((str(tmp_path),), Path())
    assert len(seen.texts) == 40
    assert not seen.dropped
    loosened = {
        name: value
        for rule, usual in zip(seen.corpus.filters, CorpusSettings(sources=("x",)).filters, strict=True)
        for name, value in rule.model_dump().items()
        if value != usual.model_dump()[name]
    }
    assert loosened == filters
