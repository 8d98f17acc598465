"""The judge, against a server of this test: what is asked, what is counted, and what goes wrong."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from groundup.cli.app import app
from groundup.errors import DataError, ResourceError, SettingsError
from groundup.evals import judge as module
from groundup.evals.judge import Judge, Pair, judge_pairs, judgement
from groundup.tools.judge import read_pairs

KEY = "sk-0123456789"
Answer = Callable[[str], "str | tuple[int, str]"]


class Stub(ThreadingHTTPServer):
    """Answers requests by `answer`: a text, or (status, body)."""

    answer: Answer
    requests: list[dict[str, Any]]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
        said = self.server.answer(body["messages"][0]["content"])
        completion = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]})
        status, text = said if isinstance(said, tuple) else (200, completion)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", text)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    with Stub(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        server.answer = longer
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def shown(request: str) -> tuple[str, str]:
    first, second = request.split("[Answer A]\n")[1].split("\n[End of answer A]\n\n[Answer B]\n")
    return first, second.removesuffix("\n[End of answer B]")


def longer(request: str) -> str:
    """An honest judge: for the longer answer, wherever it stands. It mentions another verdict first."""
    first, second = map(len, shown(request))
    return f"At first sight [[C]], but: [[{'A' if first > second else 'B' if second > first else 'C'}]]"


PAIRS = [Pair("p {0}", ("long answer", "short")), Pair("q", ("short", "long answer")), Pair("r", ("same", "same"))]


def test_an_honest_judge_says_the_same_in_both_orders(stub: Stub) -> None:
    judged = judge_pairs(Judge(stub.address, "m"), PAIRS)
    assert [pair.verdicts for pair in judged] == [("A", "A"), ("B", "B"), ("tie", "tie")]
    counted = judgement(judged)
    assert (counted.wins, counted.ties, counted.unreadable, counted.agreement) == ((1, 1), 1, 0, 1.0)
    assert (counted.share, counted.first_preferred, counted.p) == (0.5, 0.5, 1.0)
    assert [shown(each["messages"][0]["content"]) for each in stub.requests if "p {0}" in str(each)] == [
        ("long answer", "short"), ("short", "long answer"),
    ]  # fmt: skip
    assert {(each["path"], each["model"], each["temperature"]) for each in stub.requests} == {
        ("/v1/chat/completions", "m", 0)
    }


def test_a_judge_that_prefers_a_place_agrees_with_itself_nowhere(stub: Stub) -> None:
    stub.answer = lambda request: "[[A]]"
    counted = judgement(judge_pairs(Judge(stub.address, "m"), PAIRS))
    assert (counted.wins, counted.ties, counted.agreement, counted.first_preferred) == ((0, 0), 3, 0.0, 1.0)


def test_verdicts_that_cannot_be_read_are_counted_apart(stub: Stub) -> None:
    stub.answer = lambda request: "Both have merits." if "q" in request.split("[Request]\n")[1][:1] else longer(request)
    counted = judgement(judge_pairs(Judge(stub.address, "m"), PAIRS))
    assert (counted.pairs, counted.unreadable, counted.wins, counted.ties) == (3, 1, (1, 0), 1)
    assert (counted.agreement, counted.share) == (1.0, 0.75)


def test_of_nothing_that_can_be_read_there_is_no_share() -> None:
    counted = judgement([Pair("p", ("a", "b"))])
    assert (counted.share, counted.agreement, counted.first_preferred, counted.interval) == (None,) * 4


def test_the_interval_and_p_tell_a_better_model_from_an_equal_one() -> None:
    better = judgement([Pair("p", ("a", "b"), ("A", "A"))] * 18 + [Pair("p", ("a", "b"), ("B", "B"))] * 2)
    equal = judgement([Pair("p", ("a", "b"), ("A", "A")), Pair("p", ("a", "b"), ("B", "B"))] * 10)
    assert better.interval is not None and equal.interval is not None
    assert better.interval[0] > 0.5 and better.p < 0.01
    assert equal.interval[0] < 0.5 < equal.interval[1] and equal.p == 1.0


def test_the_key_is_sent_and_never_shown(stub: Stub) -> None:
    judge = Judge(stub.address, "m", KEY)
    judge.ask("[Answer A]\na\n[End of answer A]\n\n[Answer B]\nb\n[End of answer B]")
    assert stub.requests[0]["key"] == f"Bearer {KEY}"
    assert KEY not in repr(judge)
    stub.answer = lambda request: (401, f"wrong key {KEY}")
    with pytest.raises(SettingsError, match="refuses the key.*--key-file") as caught:
        judge.ask("x")
    assert KEY not in str(caught.value)
    with pytest.raises(SettingsError, match="printable ASCII") as caught:
        Judge(stub.address, "m", KEY + "\nHost: elsewhere")
    assert KEY not in str(caught.value)


def test_a_key_is_not_sent_on_to_where_the_address_points(stub: Stub) -> None:
    stub.answer = lambda request: (302, f"{stub.address}/elsewhere")
    with pytest.raises(SettingsError, match="302"):
        Judge(stub.address, "m", KEY).ask("x")
    assert len(stub.requests) == 1


def test_a_busy_judge_is_asked_again(stub: Stub) -> None:
    stub.answer = lambda request: "yes" if len(stub.requests) == 3 else (429, "slow down")
    assert Judge(stub.address, "m").ask("x") == "yes"
    stub.requests.clear()
    stub.answer = lambda request: (503, "starting")
    with pytest.raises(ResourceError, match="stays busy.*503 starting"):
        Judge(stub.address, "m").ask("x")
    assert len(stub.requests) == 4


def test_what_goes_wrong_names_the_address(stub: Stub) -> None:
    stub.answer = lambda request: (404, '{"error": "no model m"}')
    with pytest.raises(SettingsError, match=rf"{stub.address} refuses to answer as m.*no model m"):
        Judge(stub.address, "m").ask("x")
    for body in ("<html>", "{}", "[]", '{"choices": []}', "3"):
        stub.answer = lambda request, body=body: (200, body)
        with pytest.raises(DataError, match="no chat completion"):
            Judge(stub.address, "m").ask("x")
    for address in ("localhost:8000", "judge", "ftp://host/v1", "", "http://[", "file:///etc/passwd"):
        with pytest.raises(SettingsError, match="no address of a judge"):
            Judge(address, "m").ask("x")


def test_a_judge_that_is_not_there_is_named(stub: Stub) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gone:
        address = f"http://127.0.0.1:{gone.server_port}/v1"
    with pytest.raises(ResourceError, match=f"{address} does not answer.*is it running"):
        judge_pairs(Judge(address, "m"), PAIRS)


# Files and the command


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_answers_of_two_files_are_paired_by_prompt_and_number(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", *({"prompt": p, "text": t, "seed": 0} for p, t in ("p1", "p2", "q3")))
    second = lines(tmp_path / "b.jsonl", *({"prompt": p, "text": t} for p, t in ("q4", "p5", "p6")))
    pairs = [(pair.prompt, pair.answers) for pair in read_pairs(first, second)]
    assert pairs == [("p", ("1", "5")), ("p", ("2", "6")), ("q", ("3", "4"))]


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", {"prompt": "p", "text": "x"}, {"prompt": "q", "text": "x"})
    with pytest.raises(DataError, match=r"b.jsonl has no answer number 1 to 'q'"):
        read_pairs(first, lines(tmp_path / "b.jsonl", {"prompt": "p", "text": "x"}))
    for row in ({"prompt": "p"}, 3, {"prompt": "p", "text": None}):
        with pytest.raises(DataError, match=r"b.jsonl, line 1: not of the form"):
            read_pairs(first, lines(tmp_path / "b.jsonl", row))
    with pytest.raises(DataError, match="is empty"):
        read_pairs(first, lines(tmp_path / "b.jsonl"))
    with pytest.raises(DataError, match=r"none.jsonl"):
        read_pairs(first, tmp_path / "none.jsonl")


def test_the_command_asks_prints_and_writes(stub: Stub, tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", {"prompt": "p", "text": "long answer"}, {"prompt": "q", "text": "longer yet"})
    second = lines(tmp_path / "b.jsonl", {"prompt": "p", "text": "short"}, {"prompt": "q", "text": "short"})
    key, out = tmp_path / "key.txt", tmp_path / "verdicts.jsonl"
    key.write_text(KEY + "\n")
    words = ["judge", first, second, "--by", stub.address, "--model", "m", "--key-file", key, "--out", out]
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["wins"] == [2, 0]
    assert {each["key"] for each in stub.requests} == {f"Bearer {KEY}"}
    assert [json.loads(line)["verdicts"] for line in out.read_text("utf-8").splitlines()] == [["A", "A"]] * 2
    plain = CliRunner().invoke(app, list(map(str, words)))
    assert "both orders agree" in plain.stdout and "100.0%" in plain.stdout
    assert KEY not in done.output + plain.output + out.read_text("utf-8")
