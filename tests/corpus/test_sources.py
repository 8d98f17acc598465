"""Sources: what is there comes out, and what cannot be read says why."""

import gzip
import json
import lzma
import os
from pathlib import Path

import pytest
import zstandard

from groundup.corpus import sources
from groundup.corpus.document import Document
from groundup.corpus.settings import CorpusSettings
from groundup.errors import DataError


def settings(*names: str, **more: object) -> CorpusSettings:
    return CorpusSettings.from_table({"sources": list(names), **more})


def documents(folder: Path, name: str, **more: object) -> list[Document]:
    chosen = settings(name, **more)
    found = sources.find(chosen, folder)
    return [document for name, path in found.files for document in sources.read(name, path, chosen)]


def test_a_folder_is_read_in_order_and_the_rest_is_counted(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "b.md").write_text("bee")
    (tmp_path / "in" / "a.txt").write_text("ay")
    (tmp_path / "in" / "deep" / "c.jsonl").write_text('{"text": "sea", "year": 1900}\n')
    (tmp_path / "in" / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "in" / ".hidden.txt").write_text("no")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in" / "pipe.txt")
    found = sources.find(settings("in"), tmp_path)
    assert [name for name, _ in found.files] == ["in/a.txt", "in/b.md", "in/deep/c.jsonl"]
    assert found.left_out == {".png": 1}
    assert documents(tmp_path, "in")[2] == Document("sea", "in/deep/c.jsonl:1", '{"year":1900}')


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_compressed_files_are_read_by_their_suffix(tmp_path: Path, suffix: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(b"\xef\xbb\xbfonce"))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack(b'\xef\xbb\xbf{"text": "upon"}\r\n\r\n{"text": "a time"}'))
    texts = [d.text for name in (f"a.txt{suffix}", f"b.jsonl{suffix}") for d in documents(tmp_path, name)]
    assert texts == ["once", "upon", "a time"]


def test_packaged_storybook_has_its_784_tales() -> None:
    found = documents(Path(), "groundup:storybook")
    assert len(found) == 784
    assert sum(len(document.text.encode()) for document in found) == 4_855_179
    assert all(json.loads(document.metadata)["licence"] for document in found)


def test_sources_are_looked_for_beside_the_recipe_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.txt").write_text("beside")
    (tmp_path / "a.txt").write_text("here")
    (tmp_path / "b.txt").write_text("here too")
    monkeypatch.chdir(tmp_path)
    assert documents(Path("recipes"), "a.txt")[0].text == "beside"
    assert documents(Path("recipes"), "b.txt")[0].text == "here too"


def test_a_run_among_the_sources_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    (tmp_path / "runs" / "x").mkdir(parents=True)
    for name in ("lock", "recipe.toml", "metrics.jsonl"):
        (tmp_path / "runs" / "x" / name).write_text("")
    assert [name for name, _ in sources.find(settings("."), tmp_path).files] == ["./a.txt"]


def test_missing_empty_and_unreadable_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.zip").write_bytes(b"PK")
    for name, answer in {
        "missing": "source missing is missing: looked at",
        "empty": r"has no readable file; it reads \.txt, \.md, \.jsonl, also with \.gz",
        "x.zip": "nothing here reads '.zip' files",
        "groundup:nothing": "no packaged corpus groundup:nothing; there is groundup:storybook",
    }.items():
        with pytest.raises(DataError, match=answer):
            sources.find(settings(name), tmp_path)


def test_a_file_in_another_encoding_is_kept_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    (bad,) = documents(tmp_path, "latin.txt")
    assert bad.reason == "not utf-8: invalid start byte at byte 2"
    assert bad.text == "gr\\xfcn"  # no byte is lost
    assert documents(tmp_path, "latin.txt", encoding="latin-1")[0].text == "grün"
    (tmp_path / "windows.txt").write_bytes("grün".encode("utf-16"))
    assert documents(tmp_path, "windows.txt")[0].text == "grün"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'["text"]', "a JSON list, not an object"),
        (b'{"body": "x", "id": 3}', "no field 'text'; fields: body, id (set corpus.text_field)"),
        (b'{"text": 3}', "field 'text' is not a string"),
        (b'{"text": "\\ud800"}', "not JSON"),
        (b'{"text": NaN}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"text": ' + b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_rejected_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    before, bad, after = documents(tmp_path, "a.jsonl")
    assert (before.text, after.text) == ("before", "after")
    assert bad.reason is not None
    assert bad.reason.startswith(reason.split(" (")[0])
    assert bad.source == "a.jsonl:2"


def test_a_line_longer_than_the_limit_is_passed_over_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 5000}) + '\n{"text": "after"}\n')
    long, after = documents(tmp_path, "a.jsonl")
    assert long.reason == "line of 5,013 bytes; at most 1,000 are read"
    assert after.text == "after"


@pytest.mark.parametrize(
    "text", ["word " * 30_000, "x" * 150_000, "ü" * 80_000, "line\n\n" * 30_000, "漢字かな\n" * 9_000]
)
def test_a_long_document_is_cut_and_nothing_is_lost(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    parts = documents(tmp_path, "a.txt")
    assert "".join(part.text for part in parts) == text
    assert all(len(part.text.encode()) <= 100_000 for part in parts)
    assert [part.source for part in parts] == [f"a.txt#{i + 1}" for i in range(len(parts))]


def test_file_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/a\xff.txt")).write_text("strange")
    (document,) = documents(tmp_path, "in")
    document.source.encode()  # can be written to Arrow and JSON
    assert document.text == "strange"
