"""The local app: it answers this machine's own pages, about nothing but what it was made for."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundup.errors import ResourceError
from groundup.pages.app import HEADERS, address, listen
from groundup.pages.assets import asset, bundle

Ask = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture(scope="module")
def port(watching: Any, tmp_path_factory: pytest.TempPathFactory) -> int:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "a" / "pretrain").mkdir(parents=True)
    return int(watching(folder)[0].rstrip("/").rpartition(":")[2])


@pytest.fixture
def ask(port: int) -> Ask:
    """Sends just this request, and reads status, headers and body of the answer."""

    def send(
        path: str = "/", method: str = "GET", body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        lines = {"host": f"localhost:{port}", "connection": "close"}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
            answer = b""
            while read := connection.recv(1 << 16):
                answer += read
        head, _, text = answer.decode("utf-8", "replace").partition("\r\n\r\n")
        first, *rest = head.split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in rest), text

    return send


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "localhost.evil.example", "localhost@evil.example", "127.0.0.1.nip.io", "",
     "127.0.0.2", "0.0.0.0", "localhost:x", "[::1", "localhost/x"],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered_to(ask: Ask, host: str) -> None:
    status, _, text = ask(host=host)
    assert status in (400, 403)
    assert "<html" not in text


@pytest.mark.parametrize("host", ["localhost:9000", "LOCALHOST", "127.0.0.1:1", "[::1]:8470"])
def test_a_tunnel_may_come_from_any_port(ask: Ask, host: str) -> None:
    assert ask(host=host)[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost", "http://localhost:1", ""])
def test_pages_of_other_origins_are_refused(ask: Ask, origin: str) -> None:
    assert ask("/api/runs", origin=origin)[0] == 403


def test_the_page_itself_may_ask(ask: Ask, port: int) -> None:
    status, _, text = ask("/api/runs", origin=f"http://localhost:{port}", sec_fetch_site="same-origin")
    assert status == 200
    assert [run["name"] for run in json.loads(text)["runs"]] == ["a"]


def test_other_sites_may_link_here_but_not_load_from_here(ask: Ask) -> None:
    assert ask(sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200
    assert ask("/assets/watch.js", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    assert ask("/api/runs", sec_fetch_site="same-site", sec_fetch_mode="cors")[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_there_is_nothing_but_to_read(ask: Ask, method: str) -> None:
    status, headers, _ = ask("/api/runs", method, access_control_request_method="POST")
    assert status == 405
    assert not any(name.startswith("access-control") for name in headers)


def test_what_is_too_large_is_refused(ask: Ask) -> None:
    assert ask("/?" + "x" * 5000)[0] == 414
    assert ask(x="y" * 100_000)[0] in (400, 431)
    assert ask(x="y" * 20_000)[0] == 431
    assert ask(body=b"{}", content_length="2", content_type="text/plain")[0] == 413
    assert ask(transfer_encoding="chunked", body=b"0\r\n\r\n")[0] == 413


@pytest.mark.parametrize(
    "path",
    ["/assets/../app.py", "/assets/..%2f..%2fapp.py", "/assets/%2e%2e/app.py", "/etc/passwd", "//etc/passwd",
     "/assets/..%5capp.py", "/assets/watch.js%00", "/assets/", "/docs", "/openapi.json", "/api/curves/..%2f..%2fetc",
     "/api/curves/" + "0" * 12, "/api/more/x"],
)  # fmt: skip
def test_no_path_of_a_url_reaches_the_file_system(ask: Ask, path: str) -> None:
    status, headers, text = ask(path)
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert set(json.loads(text)) == {"detail"}


@pytest.mark.parametrize(
    "path", ["/", "/assets/watch.js", "/assets/style.css", "/api/runs", "/nothing", "/api/curves/x?width=no"]
)
def test_every_answer_makes_the_browser_to_trust_nothing_else(ask: Ask, path: str) -> None:
    for host in ("localhost", "evil.example"):
        _, headers, _ = ask(path, host=host)
        assert {name: headers[name] for name in HEADERS} == {name: value.lower() for name, value in HEADERS.items()}
        assert "server" not in headers


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere(ask: Ask) -> None:
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert re.findall(r"https?:|\*|data:", policy) == []
    page = ask()[2]
    assert not re.search(r"<script>|<style|style=|\son\w+=|https?://", page)
    for name in re.findall(r'/assets/([^"]+)', page):
        assert ask(f"/assets/{name}")[0] == 200


@pytest.mark.parametrize(
    "query", ["width=0", "width=1e9", "width=4001", "axis=loss", "low=nan", "high=inf", "low=x", "since=" + "1" * 61]
)
def test_questions_that_make_no_sense_are_named(ask: Ask, query: str) -> None:
    status, _, text = ask(f"/api/curves/{'0' * 12}?{query}")
    assert status == 422
    assert query.split("=")[0] in text


def test_nobody_else_can_reach_it() -> None:
    with listen(0) as listening:
        assert listening.getsockname()[0] in ("127.0.0.1", "::1")


def test_a_port_in_use_is_named_with_the_next_free_one(tmp_path: Path) -> None:
    with listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ResourceError, match=rf"port {port} is in use by another program: use --port \d+"
        ) as refused:
            listen(port)
        free = int(str(refused.value).rsplit(" ", 1)[1])
        with listen(free) as other:
            assert address(other).endswith(f":{free}/")
        command = [sys.executable, "-m", "groundup", "watch", str(tmp_path), "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 4
    assert ended.stderr.startswith(f"groundup: port {port} is in use")


def test_a_machine_without_ipv4_is_served_over_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    if not socket.has_ipv6:
        pytest.skip("needs IPv6")
    monkeypatch.setattr("groundup.pages.app.LOOPBACK", ("192.0.2.1", "::1"))  # an address that nobody has (RFC 5737)
    with listen(0) as listening:
        assert address(listening).startswith("http://[::1]:")


def test_modules_are_one_script_without_imports() -> None:
    script = bundle("chart.js", "heat.js", "board.js")
    assert not re.search(r"^import ", script, re.MULTILINE)
    assert "export class Board" in script
    assert "</script" not in script
    assert all(name in asset("board.js") for name in ("./chart.js", "./heat.js"))
