"""Files: whole or absent, checked before use."""

import gzip
import hashlib
import itertools
import lzma
import os
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from groundup.artifacts import Draft, Manifest, is_made, lock, lock_note, making, read_manifest, share, verify
from groundup.errors import DataError, ResourceError
from groundup.files import canonical_json, locate, reading, zstd
from groundup.words import line_of


def make(directory: Path, text: str = "hello") -> Manifest:
    with making(directory, "note", {"size": 1}, {"source": "abc"}) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "text").write_text(text)
        draft.statistics["letters"] = len(text)
    return read_manifest(directory, "note")


def test_a_made_directory_has_the_digest_of_what_is_in_it(tmp_path: Path) -> None:
    one, two, other = make(tmp_path / "one"), make(tmp_path / "two"), make(tmp_path / "other", "hallo")
    assert one.digest == two.digest != other.digest
    assert verify(tmp_path / "one").statistics == {"letters": 5}
    assert one.made["seconds"] >= 0


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_of_an_artifact_has_the_mode_that_open_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with making(tmp_path / "a", "note", {}, {}) as draft:
            (draft.path / "sub").mkdir()
            for place in ("private", "sub/private"):
                os.close(os.open(draft.path / place, os.O_CREAT | os.O_WRONLY, 0o600))
            save_file({"weight": np.zeros(3, np.float32)}, draft.path / "model.safetensors")
            pq.write_table(pa.table({"text": ["a"]}), draft.path / "train.parquet")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 5  # manifest.json too
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_a_shared_artifact_keeps_the_modes_that_its_owner_gave_it(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a" / "sub" / "text").chmod(0o640)
    share(tmp_path / "a", tmp_path / "b")
    assert stat.S_IMODE((tmp_path / "b" / "sub" / "text").stat().st_mode) == 0o640


def test_digest_is_the_sha256_of_the_canonical_manifest_without_made(tmp_path: Path) -> None:
    import json

    manifest = make(tmp_path / "one")
    raw = json.loads((tmp_path / "one" / "manifest.json").read_text())
    raw.pop("made")
    assert hashlib.sha256(canonical_json(raw)).hexdigest() == manifest.digest


def test_an_interruption_at_the_very_start_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> Draft:
        raise KeyboardInterrupt

    monkeypatch.setattr("groundup.artifacts.Draft", interrupted)
    with pytest.raises(KeyboardInterrupt), making(tmp_path / "a", "note", {}, {}):
        pass
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    before = make(tmp_path / "a").digest
    with pytest.raises(RuntimeError), making(tmp_path / "a", "note", {}, {}) as draft:
        (draft.path / "half").write_text("x")
        raise RuntimeError
    assert verify(tmp_path / "a").digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_killed_process_leaves_no_artifact_and_the_next_attempt_cleans_up(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom groundup.artifacts import making\n"
        "with making(Path(sys.argv[1]), 'note', {}, {}) as draft:\n"
        "    (draft.path / 'half').write_text('x')\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=False).returncode == -9
    assert not is_made(tmp_path / "a")
    make(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("place", range(5))
def test_a_flipped_bit_is_noticed(tmp_path: Path, place: int) -> None:
    make(tmp_path / "a")
    path = tmp_path / "a" / "sub" / "text"
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << place
    path.write_bytes(raw)
    with pytest.raises(DataError, match="the sha256 of sub/text"):
        verify(tmp_path / "a")


def test_missing_cut_and_foreign_directories_are_named(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(DataError, match="'other' is wanted"):
        read_manifest(tmp_path / "a", "other")
    (tmp_path / "a" / "sub" / "text").write_text("hell")
    with pytest.raises(DataError, match="has 4 bytes, 5 were written"):
        verify(tmp_path / "a", digest_up_to=4)
    (tmp_path / "a" / "sub" / "text").unlink()
    with pytest.raises(DataError, match="sub/text is missing"):
        verify(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        read_manifest(tmp_path / "a")
    with pytest.raises(DataError, match="no manifest"):
        read_manifest(tmp_path)


def test_a_shared_artifact_is_the_same_artifact(tmp_path: Path) -> None:
    manifest = make(tmp_path / "a")
    share(tmp_path / "a", tmp_path / "b")
    assert verify(tmp_path / "b").digest == manifest.digest


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    with lock(tmp_path):
        code = (
            "import sys\nfrom pathlib import Path\nfrom groundup.artifacts import lock\n"
            "with lock(Path(sys.argv[1])): pass"
        )
        second = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
        assert lock_note(tmp_path)[1]
    assert f"in use by process {os.getpid()} on {socket.gethostname()}, since 20" in second.stderr
    assert lock_note(tmp_path) == ("", False)
    with lock(tmp_path):
        pass  # free again


def test_a_lock_left_by_a_killed_process_names_it_and_does_not_block(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom groundup.artifacts import lock\n"
        "with lock(Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, tmp_path])
    assert killed.wait() == -9
    note, held = lock_note(tmp_path)
    assert f"process {killed.pid} on {socket.gethostname()}, since 20" in note
    assert not held
    with lock(tmp_path):
        assert lock_note(tmp_path)[0].startswith(f"process {os.getpid()} on")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("${HOME}/texts", r"\. Nothing in \$\{HOME\}/texts is filled in from the environment: write the path out"),
        ("~nobody-here/x", "is missing: there is no user of that name"),
        ("a\0b", "is missing: looked at"),
        ("x" * 5000, "is missing: looked at"),
    ],
)
def test_a_path_that_leads_nowhere_is_answered(tmp_path: Path, name: str, answer: str) -> None:
    with pytest.raises(DataError, match=answer):
        locate(name, tmp_path, "source")


def test_disk_full_names_the_place_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(ResourceError, match="no room to write .*big"), making(small_disk / "big", "x", {}, {}) as draft:
        (draft.path / "data").write_bytes(bytes(2_000_000))
    assert list(small_disk.iterdir()) == []


@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4))
def test_compressed_files_read_as_their_content(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("compressed")
    content = b"".join(parts)
    (folder / "a.gz").write_bytes(gzip.compress(content))
    (folder / "a.xz").write_bytes(lzma.compress(content))
    (folder / "a.zst").write_bytes(b"".join(zstd.compress(part) for part in parts))  # several frames in a row
    (folder / "a.txt").write_bytes(content)
    for path in folder.iterdir():
        with reading(path) as stream:
            assert stream.read() == content


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_file_cut_in_half_is_an_error_not_a_short_file(tmp_path: Path, suffix: str) -> None:
    content = os.urandom(200_000)
    packed = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd.compress}[suffix](content)
    path = tmp_path / f"a{suffix}"
    for damaged in (packed[: len(packed) // 2], b"this is no archive"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged or cut short"), reading(path) as stream:
            stream.read()


def test_a_zstd_frame_with_a_window_of_two_gigabytes_is_read(tmp_path: Path) -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 31})  # of a stream: size unknown
    (tmp_path / "a.zst").write_bytes(compressor.compress(b"once upon a time") + compressor.flush())
    with pytest.raises(zstd.ZstdError, match="too much memory"):
        zstd.decompress((tmp_path / "a.zst").read_bytes())
    with reading(tmp_path / "a.zst") as stream:
        assert stream.read() == b"once upon a time"


# TOML

Location = tuple[str | int, ...]
KEYS = st.one_of(st.sampled_from(["a", "b", "a.b", "x y", "", '"', "#", "[", "=", "\n", "ü"]), st.text(max_size=4))
TREES = st.recursive(
    st.none(),
    lambda inner: st.one_of(st.dictionaries(KEYS, inner, max_size=4), st.lists(inner, max_size=4)),
    max_leaves=20,
)


def numbered(tree: Any, count: Iterator[int]) -> Any:
    """Every leaf another number, so that each can be told by its digits."""
    if isinstance(tree, dict):
        return {name: numbered(value, count) for name, value in tree.items()}
    return [numbered(value, count) for value in tree] if isinstance(tree, list) else next(count)


def leaves(tree: Any, path: Location = ()) -> Iterator[tuple[Location, int]]:
    if isinstance(tree, int):
        yield path, tree
        return
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from leaves(value, (*path, name))


@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_a_key_is_found_on_the_line_where_its_value_begins(tree: dict[str, Any]) -> None:
    text = tomli_w.dumps(numbered(tree, itertools.count(10**9)))
    lines = text.split("\n")
    for path, number in leaves(tomllib.loads(text)):
        line = line_of(text, path)
        assert line is not None
        held = next(place for place, written in enumerate(lines, start=1) if str(number) in written)
        if any(isinstance(part, int) for part in path):  # within an array over several lines: the line of its key
            assert line <= held, path
        else:
            assert line == held, path


WRITTEN = """
top = 1 # a comment with = and [
"quoted.key" = 'x = 1'
[a."b c".d]
'lit' = \"\"\"
not a key
[no
\"\"\"
dotted . inside = { x = 1, y.z = [ { w = 2 }, 3 ] }
list = [
  # one = 1
  { one = "]" },

  { two = 2 },
]
when = 1979-05-27 07:32:00
[[many]]
n = 1
[many.sub]
m = 1
[[many]]
n = 2
[[many.sub2]]
k = 1
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("quoted.key",), 3),
        (("a", "b c", "d", "lit"), 5),
        (("a", "b c", "d", "dotted", "inside", "y", "z", 0, "w"), 9),
        (("a", "b c", "d", "list", 1, "two"), 10),
        (("a", "b c", "d", "when"), 16),
        (("many", 0, "sub", "m"), 20),
        (("many", 1, "n"), 22),
        (("many", 1, "sub2", 0, "k"), 24),
        (("a",), 4),  # never written alone: where something inside it is
        (("many", 1, "missing"), 21),  # not there: its table
        (("nowhere",), None),
    ],
)
def test_every_way_to_write_a_key_is_found(path: Location, line: int | None) -> None:
    assert tomllib.loads(WRITTEN)
    assert line_of(WRITTEN, path) == line
    assert line_of(WRITTEN.replace("\n", "\r\n"), path) == line


@given(st.text(alphabet="ab.= \n[]{},\"'#1", max_size=60))
def test_what_is_no_toml_is_scanned_without_harm(text: str) -> None:
    line_of(text, ("a", "b"))
