"""Remote sources: fetched whole and once, resumed, and only from where it is allowed."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundup.corpus import remote
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find, read
from groundup.errors import DataError

LINES = "".join(
    json.dumps({"text": f"{number} The old fox went over the hill."}) + "\n" for number in range(5000)
).encode()


class Server(http.server.BaseHTTPRequestHandler):
    """Sends LINES, or the rest of them; `asked` keeps the ranges, `breaks` is after how many bytes it goes away."""

    asked: list[str | None] = []
    breaks: int | None = None
    version = '"1"'

    def do_GET(self) -> None:
        if self.path == "/away.jsonl":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.2:1/x.jsonl")
            self.end_headers()
            return
        if self.path == "/file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        kind = type(self)
        asked = self.headers["Range"]
        kind.asked.append(asked)
        first = int(asked[6:-1]) if asked and self.headers["If-Range"] == kind.version else 0
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(LINES) - 1}/{len(LINES)}")
        self.send_header("ETag", kind.version)
        self.send_header("Content-Length", str(len(LINES) - first))
        self.end_headers()
        self.wfile.write(LINES[first : kind.breaks])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as served:
        Server.asked, Server.breaks, Server.version = [], None, '"1"'
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def settings(*sources: Any, **more: object) -> CorpusSettings:
    return CorpusSettings.from_table({"sources": list(sources), "remote": {"private_addresses": True, **more}})


def test_a_file_is_fetched_once_with_its_digest(server: str, tmp_path: Path) -> None:
    chosen = settings(f"{server}/a.jsonl")
    [(name, path)] = find(chosen, tmp_path).files
    assert name == f"{server}/a.jsonl"
    assert path.read_bytes() == LINES
    assert next(iter(read(name, path, chosen))).source == f"{server}/a.jsonl:1"
    [about] = (tmp_path / "fetched").glob("*.json")
    [file] = json.loads(about.read_text())["files"].values()
    assert file == {"bytes": len(LINES), "sha256": hashlib.sha256(LINES).hexdigest()}
    find(chosen, tmp_path)
    assert Server.asked == [None]


@pytest.mark.parametrize("changes", [False, True])
def test_a_broken_connection_is_taken_up_where_it_broke(server: str, tmp_path: Path, changes: bool) -> None:
    chosen = settings(f"{server}/a.jsonl")
    Server.breaks = 100_000
    with pytest.raises(DataError, match="cannot fetch a.jsonl: .*Run it again: what came is kept"):
        find(chosen, tmp_path)
    Server.breaks, Server.version = None, '"2"' if changes else '"1"'  # another file is fetched from its beginning
    [(_, path)] = find(chosen, tmp_path).files
    assert path.read_bytes() == LINES
    assert Server.asked == [None, "bytes=100000-"]
    assert not list(tmp_path.rglob("*.partial"))


def test_private_addresses_redirects_to_them_and_other_schemes_are_refused(server: str, tmp_path: Path) -> None:
    for address, more, why in (
        (f"{server}/a.jsonl", {"private_addresses": False}, "127.0.0.1 is no public address"),
        (f"{server}/file", {}, "file:///etc/passwd.* is not allowed"),
        ("file:///etc/passwd", {}, "file:// is none of corpus.remote.schemes"),
        (f"{server}/a.jsonl", {"schemes": ["https"]}, "http:// is none of corpus.remote.schemes"),
        ("http://[::ffff:127.0.0.1]:1/x.txt", {}, "cannot fetch x.txt"),
    ):
        with pytest.raises(DataError, match=why.replace("[", r"\[")):
            find(settings(address, **more), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".jsonl" and path.is_file()]


def test_an_address_that_is_public_may_not_lead_to_one_that_is_not(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first connection is taken for a public one; the one that it leads to is looked at again."""
    looked = []
    plain = remote.ipaddress.ip_address

    def look(address: str) -> Any:
        looked.append(address)
        return plain("8.8.8.8" if len(looked) == 1 else address)

    monkeypatch.setattr(remote.ipaddress, "ip_address", look)
    monkeypatch.setattr(Server, "do_GET", lambda self: (
        self.send_response(302), self.send_header("Location", f"{server}/b.jsonl"), self.end_headers()
    ))  # fmt: skip
    with pytest.raises(DataError, match=r"127\.0\.0\.1 is no public address"):
        find(settings(f"{server}/a.jsonl", private_addresses=False), tmp_path)
    assert len(looked) == 2


def test_folders_of_other_file_systems_are_fetched_with_their_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/set/a.jsonl": LINES, "/set/deep/b.txt": b"deep", "/set/c.png": b"x"})
    monkeypatch.setattr(remote, "_card_licence", lambda source: "cc-by-4.0")
    chosen = settings("memory://set", schemes=["memory"])
    found = find(chosen, tmp_path)
    assert [name for name, _ in found.files] == ["memory://set/a.jsonl", "memory://set/deep/b.txt"]
    assert found.left_out == {".png": 1}
    [about] = (tmp_path / "fetched").glob("*.json")
    told = json.loads(about.read_text())
    about.write_text(json.dumps({**told, "licence": "cc-by-4.0"}))  # as of a data set of the hub
    remote.licence_of.cache_clear()
    assert json.loads(next(iter(read(*found.files[1], chosen))).metadata) == {"licence": "cc-by-4.0"}
    memory.rm("/set", recursive=True)
    assert find(chosen, tmp_path).files == found.files  # no network


def test_a_list_of_paths_of_common_crawl_is_fetched(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "COMMON_CRAWL", f"{server}/")
    (tmp_path / "crawl.paths").write_text("crawl-data/x/a.jsonl\ncrawl-data/y/b.jsonl\n")
    names = [name for name, _ in find(settings("crawl.paths"), tmp_path).files]
    assert names == ["crawl.paths/crawl-data/x/a.jsonl", "crawl.paths/crawl-data/y/b.jsonl"]
    [(name, path)] = find(settings("cc://crawl-data/x/a.jsonl"), tmp_path).files
    assert (name, path.read_bytes()) == ("cc://crawl-data/x/a.jsonl", LINES)
    (tmp_path / "bad.paths").write_text("../../etc/passwd\n")
    with pytest.raises(DataError, match="its path should lead to a file within its folder"):
        find(settings("bad.paths"), tmp_path)
