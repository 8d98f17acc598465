"""Sources: what is there comes out, and what cannot be read says why."""

import gzip
import json
import lzma
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from groundup.corpus import decoding, formats, sources
from groundup.corpus.document import Document
from groundup.corpus.settings import CorpusSettings
from groundup.errors import DataError, SettingsError
from groundup.files import zstd


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
    assert found.left_out == {
        ".png": 1,
        "hidden, its name begins with a dot": 1,
        "link to a folder that is read already, or in which it lies": 1,
        "pipe, socket or device": 1,
    }
    assert found.left_out_names["pipe, socket or device"] == ["in/pipe.txt"]
    assert documents(tmp_path, "in")[2] == Document("sea", "in/deep/c.jsonl:1", '{"year":1900}')


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_compressed_files_are_read_by_their_suffix(tmp_path: Path, suffix: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd.compress}[suffix]
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
    (tmp_path / "x.rar").write_bytes(b"Rar")
    for name, answer in {
        "missing": "source missing is missing: looked at",
        "empty": r"has no readable file; it reads \.txt, \.md, \.jsonl, .*\.zip, .*also with \.gz",
        "x.rar": "nothing here reads '.rar' files",
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
        (b"\xff\xfe", "not utf-8: invalid start byte at byte 0 of the line"),
        (b"{", "not JSON: unexpected end of data: line 1 column 2 (char 1); the line begins '{'"),
        (b'{"score": NaN, "text": "\\ud83d"}', "not JSON in field 'text': "),
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
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 1000)
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
    with pytest.raises(SettingsError, match=r"sources is not UTF-8: in/a\\xff.txt"):
        CorpusSettings(sources=("in/a\udcff.txt",))


def test_links_are_entered_once_and_what_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "more").mkdir(parents=True)
    (tmp_path / "elsewhere" / "a.txt").write_text("a")
    (tmp_path / "elsewhere" / "more" / "b.txt").write_text("b")
    (tmp_path / "in" / "own").mkdir(parents=True)
    (tmp_path / "in" / "own" / "c.txt").write_text("c")
    for name, target in {
        "books": tmp_path / "elsewhere",
        "again": tmp_path / "elsewhere" / "more",
        "above": tmp_path,
        "alias": tmp_path / "in" / "own",
        "one.txt": tmp_path / "elsewhere" / "a.txt",
        "torn.txt": Path("gone.txt"),
        "round": Path("round"),
    }.items():
        (tmp_path / "in" / name).symlink_to(target)
    found = sources.find(settings("in"), tmp_path)
    read = [name for name, _ in found.files]
    assert read == ["in/again/b.txt", "in/books/a.txt", "in/one.txt", "in/own/c.txt"]
    assert found.left_out_names == {
        "link that leads nowhere": ["in/round", "in/torn.txt"],
        "link to a folder that is read already, or in which it lies": ["in/above", "in/alias", "in/books/more"],
    }


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "closed").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("open")
    (tmp_path / "in" / "b.txt").write_text("closed")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "b.txt")
    monkeypatch.setattr(os, "scandir", refusing)
    found = sources.find(settings("in"), tmp_path)
    assert [name for name, _ in found.files] == ["in/a.txt"]
    assert found.left_out_names == {"not readable (Permission denied)": ["in/b.txt", "in/closed"]}
    assert sources.describe_left_out(found.left_out, found.left_out_names) == (
        "2 × not readable (Permission denied) (in/b.txt, in/closed)"
    )


def test_a_pipe_named_as_a_source_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a pipe, socket or device; it should be a file or a folder"):
        sources.find(settings("pipe"), tmp_path)


@pytest.mark.parametrize("name", ["A.TXT", "a.Txt.GZ", "a.md.Zst", "A.JSONL.Gz"])
def test_suffixes_are_read_in_any_case(tmp_path: Path, name: str) -> None:
    pack = {"gz": gzip.compress, "zst": zstd.compress}.get(name.lower().rsplit(".", 1)[1], bytes)
    (tmp_path / name).write_bytes(pack(b'{"text": "once"}' if "JSONL" in name else b"once"))
    assert [document.text for document in documents(tmp_path, name)] == ["once"]


@pytest.mark.parametrize(
    ("name", "raw", "seen"),
    [
        ("a.txt", gzip.compress(b"x", mtime=0), "the file begins as gzip does (1f 8b)"),
        ("a.jsonl", zstd.compress(b"x"), "the file begins as zstd does (28 b5)"),
        (
            "a.txt.gz",
            gzip.compress(gzip.compress(b"x", mtime=0), mtime=0),
            "the file is .gz within which lies gzip (1f 8b)",
        ),
        ("a.jsonl.GZ", gzip.compress(lzma.compress(b"x"), mtime=0), "the file is .GZ within which lies xz (fd 37)"),
        ("a.md", b"PK\x03\x04rest", "the file begins as zip does (50 4b)"),
    ],
)
def test_compressed_bytes_where_text_should_be_are_named(tmp_path: Path, name: str, raw: bytes, seen: str) -> None:
    (tmp_path / name).write_bytes(raw)
    (bad,) = documents(tmp_path, name, encoding="latin-1")
    assert bad.reason == f"not text: {seen}; unpack it, or name it by what it is"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "cp1252"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_txt_and_jsonl_follow_the_same_rules_of_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    text = "Grüße – über den Fluß"
    line = json.dumps({"text": text}, ensure_ascii=False) + "\r\n"
    raw = (line * 2 if name == "a.jsonl" else text).encode(encoding)
    expected = [text] * (2 if name == "a.jsonl" else 1)
    (tmp_path / name).write_bytes(raw)
    assert [document.text for document in documents(tmp_path, name, encoding=encoding)] == expected
    plain = documents(tmp_path, name)
    if encoding in ("utf-8-sig", "utf-16", "utf-32"):  # begin with a mark, which says it
        assert [document.text for document in plain] == expected
    elif encoding == "cp1252":
        assert all((bad.reason or "").startswith("not utf-8: invalid ") for bad in plain)
    else:
        (bad,) = plain
        assert "control characters, most of them 0x00, as in UTF-16 without a byte-order mark" in (bad.reason or "")


def test_a_bad_byte_drops_the_whole_file_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 1000)
    for place in (0, 999, 1000, 5003, 9999):
        raw = bytearray("über den Berg ".encode() * 800)[:10_000]
        raw[place] = 0xFF
        (tmp_path / "a.txt").write_bytes(raw)
        with pytest.raises(UnicodeDecodeError) as plain:
            bytes(raw).decode()
        (bad,) = documents(tmp_path, "a.txt", max_document_bytes=1000)
        assert bad.reason == f"not utf-8: {plain.value.reason} at byte {plain.value.start:,}"


@settings_of_hypothesis(max_examples=60, deadline=None)
@given(
    st.builds(str.__add__, st.sampled_from(["", "\ufeff"]), st.text(alphabet="aé漢🦊 \n\r", max_size=6000)),
    st.sampled_from(["utf-8", "utf-16", "utf-32-le", "cp1252"]),
    st.integers(1, 700),
)
def test_streamed_documents_are_those_of_the_whole_text(text: str, encoding: str, chunk: int) -> None:
    """Against decoding and cutting all at once, as it was done before files were read in parts."""
    raw = text.encode(encoding, "ignore")
    whole = raw.decode(encoding).removeprefix("\ufeff").encode()
    expected, start = [], 0
    while len(whole) - start > 1000:
        end = start + 1000
        marks = ((whole.rfind(mark, start + 500, end), mark) for mark in (b"\n\n", b"\r\n\r\n", b"\n", b" "))
        cut = next((place + len(mark) for place, mark in marks if place >= 0), end)
        while cut == end and whole[cut] & 0xC0 == 0x80:
            cut, end = cut - 1, end - 1
        expected.append(whole[start:cut].decode())
        start = cut
    expected.append(whole[start:].decode())
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK_BYTES", chunk)
        (Path(place) / "a.txt").write_bytes(raw)
        assert [d.text for d in documents(Path(place), "a.txt", encoding=encoding, max_document_bytes=1000)] == expected


def test_a_large_file_is_not_held(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the fox went over the hill and far away to the old mill\n" * 300_000)
    chosen = settings("a.txt")
    tracemalloc.start()
    size = sum(len(document.text) for document in sources.read("a.txt", tmp_path / "a.txt", chosen))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 300_000 * 56
    assert peak < 8_000_000  # some chunks, of 17 MB


@settings_of_hypothesis(max_examples=100, deadline=None)
@given(
    st.lists(st.text(alphabet="ab-<é\n", max_size=40), min_size=1, max_size=12),
    st.sampled_from(["--", "<|endoftext|>", "é", "\n\n", "aba"]),
    st.integers(1, 30),
)
def test_separators_are_no_part_of_documents(texts: list[str], separator: str, chunk: int) -> None:
    written = separator.join(texts)
    expected = [part for part in written.split(separator) if part.strip()] or [""]
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK_BYTES", chunk)
        (Path(place) / "a.txt").write_text(written, newline="")
        read = documents(Path(place), "a.txt", separator=separator)
    assert [document.text for document in read] == expected


def test_documents_between_separators_are_cut_further_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<|endoftext|>\n<|endoftext|>" + "word " * 300)
    read = documents(tmp_path, "a.txt", separator="<|endoftext|>", max_document_bytes=1000)
    assert [document.source for document in read] == ["a.txt#1", "a.txt#3#1", "a.txt#3#2"]
    (tmp_path / "a.jsonl").write_text('{"text": "one<|endoftext|>two"}')
    (whole,) = documents(tmp_path, "a.jsonl", separator="<|endoftext|>")
    assert whole.text == "one<|endoftext|>two"


@pytest.mark.parametrize(
    ("fields", "metadata", "left_out"),
    [
        ('"score": NaN', "{}", ("score",)),
        ('"a": -Infinity, "b": 1e999, "c": [1, NaN], "d": 2', '{"d":2}', ("a", "b", "c")),
        ('"name": "\\ud83d"', "{}", ("name",)),
        ('"id": ' + "1" * 400, "{}", ("id",)),
        ('"id": 1, "id": 2', '{"id":2}', ()),
        ('"deep": ' + "[" * 300 + "]" * 300, "{}", ("deep",)),
        ('"quoted": "a \\" } b", "x": NaN', '{"quoted":"a \\" } b"}', ("x",)),
    ],
)
def test_a_field_nobody_reads_costs_no_text(
    tmp_path: Path, fields: str, metadata: str, left_out: tuple[str, ...]
) -> None:
    for line in (f'{{"text": "sound", {fields}}}', f'{{{fields}, "text": "sound"}}'):
        (tmp_path / "a.jsonl").write_text(line)
        (document,) = documents(tmp_path, "a.jsonl")
        assert document.reason is None
        assert (document.text, document.metadata) == ("sound", metadata)
        assert document.left_out == left_out
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "sound", "name": "Gr\xfcn"}')
    assert documents(tmp_path, "a.jsonl")[0].left_out == ("name",)


def test_utf16_that_does_not_say_so_is_not_taken_for_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("the old man and the sea".encode("utf-16-le"))
    (bad,) = documents(tmp_path, "a.txt", encoding="utf-16")
    assert bad.reason == (
        "not utf-16: UTF-16 stream does not start with BOM; utf-16-le and utf-16-be need none at byte 0"
    )
    (tmp_path / "b.txt").write_bytes("Русский текст про старика и море. ".encode("utf-16-le") * 30)
    (bad,) = documents(tmp_path, "b.txt")
    assert (bad.reason or "").startswith("not text: ")
    assert "control characters, most of them 0x04" in (bad.reason or "")
    assert len(documents(tmp_path, "b.txt", encoding="utf-16-le")) == 1


def test_a_python_repr_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{'text': 'Once upon a time', 'id': 1}\n")
    (bad,) = documents(tmp_path, "a.jsonl")
    assert (bad.reason or "").startswith("not JSON: ")
    assert """the line begins "{'text': 'Once upon""" in (bad.reason or "")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("One tale.\n<|endoftext|>\nAnother.\n<|endoftext|>\n", 2),
        ("One tale.<|endoftext|>Another tale<|endoftext|>", 1),
        ("anna<|endoftext|>bob<|endoftext|>carl", 2),
        ("The token <eos> ends a text, <eos> is learned and `<eos>` is one id", 0),
        ("<p>price <s>10</s> <s>11</s> <s>12 13</s> new</p>", 0),
        ("<s>One tale.</s>\n<s>Another.</s>", 2),
    ],
)
def test_a_mark_counts_where_a_text_ends_and_not_where_it_is_spoken_of(text: str, number: int) -> None:
    assert sources.count_separators(text).total() == number
