"""Benchmark files are found wherever they are, and refused when they are not what they should be."""

import bz2
import gzip
import lzma
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from groundup.errors import DataError, MissingError, SettingsError
from groundup.evals import benchmarks
from groundup.evals.benchmarks import Files, Form, fetch, forms
from groundup.evals.tasks import TASKS

COLOURS = b'{"colour": "red"}\n{"colour": "blue"}\n'


@pytest.fixture(autouse=True)
def two_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two benchmark files: one has an original and a reworked form, one three parts."""
    if "shared" in request.fixturenames:
        return
    known = {
        "colours": (
            Form("original", ("colours/test.jsonl",), 2, sha256=digest(COLOURS), get="https://example.org/colours"),
            Form("reworked: short", ("short.txt",), 2, get="https://example.org/short"),
        ),
        "numbers": (
            Form("original", ("numbers/*.csv",), 6, parts=3, get="https://example.org/numbers", hub="some/numbers"),
        ),
    }
    monkeypatch.setattr(benchmarks, "forms", lambda: known)


def digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("ending", "pack"), {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.items()
)
def test_a_file_is_found_below_whatever_it_is_compressed_with(ending: str, pack: object, tmp_path: Path) -> None:
    assert callable(pack)
    write(tmp_path / f"some/Colours/test.jsonl{ending}", pack(COLOURS))
    files = Files(tmp_path)
    assert [record["colour"] for record in files.open("colours").records] == ["red", "blue"]
    assert files.read == {"colours": "original"}


def test_the_directory_itself_may_be_the_folder_that_a_name_asks_for(tmp_path: Path) -> None:
    write(tmp_path / "colours/test.jsonl", COLOURS)
    assert Files(tmp_path / "colours").open("colours").form == "original"


def test_parts_are_read_from_a_folder_and_from_an_archive_alike(tmp_path: Path) -> None:
    parts = {f"numbers/{name}.csv": b"1,2\n3,4\n" for name in "abc"}
    for name, content in parts.items():
        write(tmp_path / "folder" / name, content)
    (tmp_path / "archive").mkdir()
    write_zip(tmp_path / "archive/all.zip", parts)
    opened = [Files(tmp_path / each).open("numbers").parts for each in ("folder", "archive")]
    assert opened[0] == opened[1] == {name: [["1", "2"], ["3", "4"]] for name in "abc"}


def test_a_missing_file_is_answered_with_what_to_get_from_where(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="has no colours/test.jsonl: get it from https://example.org/colours"):
        Files(tmp_path).open("colours")
    with pytest.raises(MissingError, match="nowhere is not a directory"):
        Files(tmp_path / "nowhere").open("colours")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (COLOURS[:18], "has 1 records, and should have 2: get it from https://example.org/colours"),
        (COLOURS + b'{"colour": "green"}\n', "has 3 records, and should have 2"),
        (COLOURS[:25], "cannot be read"),
        (COLOURS.replace(b"red", b"tan"), "was altered: its SHA-256 is"),
        (b"\xff\xfe\n", "cannot be read"),
        (b"", "has 0 records"),
    ],
)
def test_a_cut_or_altered_file_is_refused(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path / "colours/test.jsonl", content)
    with pytest.raises(DataError, match=complaint) as refused:
        Files(tmp_path).open("colours")
    assert str(path) in str(refused.value) and "https://example.org/colours" in str(refused.value)


def test_a_compressed_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "colours/test.jsonl.gz", gzip.compress(COLOURS)[:-9])
    with pytest.raises(DataError, match="cannot be read .*: get it from https://example.org/colours"):
        Files(tmp_path).open("colours")


def test_a_part_too_many_and_a_part_too_few_are_refused(tmp_path: Path) -> None:
    for count in (2, 4):
        for name in "abcd"[:count]:
            write(tmp_path / f"{count}/numbers/{name}.csv", b"1\n2\n")
        with pytest.raises(DataError, match=f"has {count} files such as a.csv, and should have 3"):
            Files(tmp_path / str(count)).open("numbers")


def test_an_archive_that_cannot_be_opened_is_named_where_something_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "numbers.zip", b"PK no more")
    with pytest.raises(MissingError, match="numbers.zip could not be opened: get it again"):
        Files(tmp_path).open("numbers")


def test_a_whole_form_is_read_beside_a_damaged_one_and_told(tmp_path: Path) -> None:
    write(tmp_path / "colours/test.jsonl", COLOURS[:18])
    write(tmp_path / "short.txt", b"red\nblue\n")
    files = Files(tmp_path)
    assert files.open("colours").records == ["red", "blue"]
    assert files.read == {"colours": "reworked: short"}


def test_a_record_without_a_field_is_answered_and_no_traceback(tmp_path: Path) -> None:
    write(tmp_path / "colours/test.jsonl", COLOURS)
    record = Files(tmp_path).open("colours").records[0]
    with pytest.raises(DataError, match="a record of .*test.jsonl has no 'shade': it has colour"):
        record["shade"]


def test_a_file_comes_from_the_hub_where_there_is_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repository: str, repo_type: str, allow_patterns: list[str], local_dir: Path) -> None:
        assert (repository, repo_type, allow_patterns) == ("some/numbers", "dataset", ["*numbers/*.csv"])
        for name in "abc":
            write(local_dir / f"{name}.csv", b"1\n2\n")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    fetch("numbers", tmp_path)
    assert Files(tmp_path).open("numbers").form == "original"
    with pytest.raises(SettingsError, match="colours is not on the Hugging Face hub: get it from"):
        fetch("colours", tmp_path)


def test_what_stands_in_the_way_of_fetching_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SettingsError, match=r"pip install 'groundup\[hub\]'"):
        fetch("numbers", tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=refuse))
    with pytest.raises(DataError, match="some/numbers could not be fetched .*: no route to host"):
        fetch("numbers", tmp_path)


def test_each_file_that_a_task_reads_is_known_and_no_other(shared: Path) -> None:
    read = {name for task in TASKS.values() for name in task.files} | {"social_iqa_labels", "humaneval"}
    assert read == set(forms())
    assert all(form.get or form.hub for each in forms().values() for form in each)


def test_the_staged_file_of_each_kind_is_refused_when_one_byte_differs(shared: Path, tmp_path: Path) -> None:
    for path in ("piqa/valid.jsonl.gz", "hellaswag/hellaswag_val_full.txt.bz2", "truthfulqa/mc_task.v1-817.json.gz"):
        source = shared / "data" / "evals" / path
        content = {".gz": gzip.decompress, ".bz2": bz2.decompress}[source.suffix](source.read_bytes())
        changed = content.replace(b"the ", b"The ", 1)
        write(tmp_path / path.removesuffix(source.suffix), changed)
    for name in ("piqa", "hellaswag", "truthfulqa"):
        with pytest.raises(DataError, match="was altered"):
            Files(tmp_path).open(name)
