"""The corpus: held out by hash, no duplicates, nothing dropped without its reason."""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from groundup.artifacts import making, read_manifest
from groundup.corpus.document import read_texts
from groundup.corpus.executors import one_machine
from groundup.corpus.formats import SPLIT, UNDERSTAND
from groundup.corpus.parts import Refiner
from groundup.corpus.refine import describe_marks, digest_sources, refine
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import Found, find
from groundup.corpus.whole import split_of
from groundup.errors import DataError, ResourceError, SettingsError

TALE = "Tale number {0} of the long winter by the fire, when the fox went over the hill to the old mill. " * 3


def refined(tmp_path: Path, **more: object) -> Path:
    settings = CorpusSettings.from_table({"sources": ["in"], **more})
    with making(tmp_path / "corpus", "corpus", settings.table(), {}) as draft:
        refine(find(settings, tmp_path), settings, draft, tmp_path)
    return tmp_path / "corpus"


def lines(tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_splits_are_decided_by_the_sha256_of_the_text_alone(tmp_path: Path) -> None:
    texts = [f"Tale number {number} of the long winter by the fire. " * 3 for number in range(2000)]
    lines(tmp_path, texts)
    corpus = refined(tmp_path)
    for split in ("train", "validation", "test"):
        for text in read_texts(corpus / f"{split}.parquet"):
            assert split_of(hashlib.sha256(text.encode()).hexdigest(), 0.05, 0.05) == split
    sizes = read_manifest(corpus).statistics
    assert 70 < sizes["validation"]["documents"] < 130  # 5 % of 2,000 within three standard deviations
    assert 70 < sizes["test"]["documents"] < 130
    before = (corpus / "test.parquet").read_bytes()
    lines(tmp_path, texts[::-1][:1500])  # other order, fewer documents: who is held out stays held out
    after = refined(tmp_path)
    assert set(read_texts(after / "test.parquet")) <= set(pq.read_table(corpus / "test.parquet")["text"].to_pylist())
    assert before != b""


def test_no_exact_duplicate_is_kept_anywhere(tmp_path: Path) -> None:
    texts = [f"The tale of the {number % 50} geese that went to market on a Sunday. " * 3 for number in range(500)]
    lines(tmp_path, [text + "  \r\n" * (number % 3) for number, text in enumerate(texts)])  # alike once cleaned
    corpus = refined(tmp_path)
    kept = [text for split in ("train", "validation", "test") for text in read_texts(corpus / f"{split}.parquet")]
    assert len(kept) == len(set(kept)) == 50
    assert read_manifest(corpus).statistics["dropped"] == {"exact duplicate": 450}


def test_everything_dropped_is_kept_with_its_reason(tmp_path: Path) -> None:
    good = [f"A good long tale about a king and his {number} daughters. " * 4 for number in range(20)]
    lines(tmp_path, [*good, "short", "1234567890 " * 30, good[0], ""])
    (tmp_path / "in" / "latin.txt").write_bytes("Grüße aus der Stadt".encode("latin-1"))
    corpus = refined(tmp_path)
    dropped = pq.read_table(corpus / "dropped" / "documents.parquet").to_pylist()
    assert Counter(row["reason"] for row in dropped) == {
        "shorter than 100 characters": 1,
        "less than 60% letters": 1,
        "exact duplicate": 1,
        "empty": 1,
        "not utf-8: invalid start byte at byte 2": 1,
    }
    assert [row["source"] for row in dropped] == [*(f"in/a.jsonl:{n}" for n in range(21, 25)), "in/latin.txt"]
    statistics = read_manifest(corpus).statistics
    kept = sum(statistics[split]["documents"] for split in ("train", "validation", "test"))
    assert kept + sum(statistics["dropped"].values()) == statistics["read"]["documents"] == 25


@pytest.mark.parametrize("number", [3, 4, 7])
def test_even_a_few_documents_give_three_splits(tmp_path: Path, number: int) -> None:
    lines(tmp_path, [f"Tale {n} of a hen that laid one golden egg every day until spring. " * 3 for n in range(number)])
    statistics = read_manifest(refined(tmp_path)).statistics
    sizes = [statistics[split]["documents"] for split in ("train", "validation", "test")]
    assert min(sizes) >= 1
    assert sum(sizes) == number


def test_too_little_left_is_an_error_with_the_counts(tmp_path: Path) -> None:
    lines(tmp_path, ["short", "also short", "12345 " * 100])
    with pytest.raises(DataError, match="0 documents left of 3 read.*2 × shorter than 100.*1 × less than 60%"):
        refined(tmp_path)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize(
    ("content", "seen", "advice"),
    [
        ("Grüße".encode("latin-1"), r"1 × not utf-8 \(in/a.txt: invalid start byte at byte 2\)", "corpus.encoding"),
        (TALE.format(1).encode(), "Dropped: nothing", "add texts"),
        (TALE.format(1).encode() * 20, "Dropped: nothing", r"cut them with corpus.max_document_bytes = 1000"),
        (b"", "1 × empty", "add texts"),
    ],
)
def test_advice_is_only_what_can_help(tmp_path: Path, content: bytes, seen: str, advice: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"{seen}.*What may help: .*{advice}") as caught:
        refined(tmp_path)
    assert "corpus.filters" not in str(caught.value)
    assert "text_field" not in str(caught.value)


def test_a_pretty_printed_json_says_what_was_seen_and_what_a_line_should_be(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps([{"text": TALE.format(n)} for n in range(9)], indent=1))
    with pytest.raises(DataError, match=r"× not JSON \(in/a.jsonl:1: .*the line begins '\['\).*a whole JSON object"):
        refined(tmp_path)


def test_a_source_that_changes_while_it_is_read_stops_the_stage(tmp_path: Path) -> None:
    lines(tmp_path, [TALE.format(number) for number in range(50)])
    path = tmp_path / "in" / "a.jsonl"
    settings = CorpusSettings(sources=("in",))
    found = find(settings, tmp_path)
    digests, _ = digest_sources(settings, tmp_path, {})
    assert digests == {"in/a.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}

    def meddle(done: int, total: int, name: str) -> None:
        if not done:
            with path.open("a") as stream:
                stream.write('{"text": "another program was here"}\n')

    with (
        pytest.raises(DataError, match="source in/a.jsonl changed while it was read.*run the same command again"),
        making(tmp_path / "corpus", "corpus", settings.table(), digests) as draft,
    ):
        refine(found, settings, draft, tmp_path, meddle, digests)
    with (
        pytest.raises(DataError, match=r"source in/b.txt came or went"),
        making(tmp_path / "corpus", "corpus", settings.table(), digests) as draft,
    ):
        refine(found, settings, draft, tmp_path, digests={**digests, "in/b.txt": "0" * 64})
    assert not (tmp_path / "corpus").exists()


def test_memory_that_runs_out_is_told_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(tmp_path, [TALE.format(number) for number in range(5)])

    def too_large(*arguments: object) -> str:
        raise MemoryError

    for table, name in ((SPLIT, ".jsonl"), (UNDERSTAND, "jsonl")):
        with monkeypatch.context() as patch:
            patch.setitem(table, name, too_large)  # type: ignore[arg-type]
            with pytest.raises(ResourceError, match=r"out of memory while reading in/a.jsonl, of which"):
                refined(tmp_path)


def test_marks_and_fields_left_out_are_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "stories.txt").write_text("\n<|endoftext|>\n".join(TALE.format(n) for n in range(40)))
    rows = [json.dumps({"text": TALE.format(n) + " </s>", "score": float("nan")}) for n in range(50, 53)]
    (tmp_path / "in" / "b.jsonl").write_text("\n".join(rows))
    statistics = read_manifest(refined(tmp_path)).statistics
    assert statistics["metadata_left_out"] == {"score": 3}
    assert statistics["marks"] == {
        "<|endoftext|>": {"times": 39, "files": 1, "file": "in/stories.txt"},
        "</s>": {"times": 3, "files": 1, "file": "in/b.jsonl"},
    }
    assert list(describe_marks(statistics["marks"])) == [
        (
            "in/stories.txt holds <|endoftext|> 39 times; it is read as ordinary text",
            "set corpus.separator = '<|endoftext|>', if documents end there",
        ),
        (
            "in/b.jsonl holds </s> 3 times; it is read as ordinary text",
            "each line of a .jsonl is one document: take it out of the lines",
        ),
    ]
    statistics = read_manifest(refined(tmp_path, separator="<|endoftext|>")).statistics
    assert sum(statistics[split]["documents"] for split in ("train", "validation", "test")) == 43
    assert list(statistics["marks"]) == ["</s>"]


@pytest.mark.parametrize(
    "encoding", ["unicode_escape", "raw_unicode_escape", "punycode", "utf-7", "U7", "idna", "rot13", "hex", "base64"]
)
def test_escapes_are_no_encoding_of_files(encoding: str) -> None:
    with pytest.raises(SettingsError, match=f"encoding: .{encoding}. is .* spells characters by other"):
        CorpusSettings.from_table({"sources": ["x"], "encoding": encoding}, "corpus")
    with pytest.raises(SettingsError, match="not an encoding that Python knows"):
        CorpusSettings.from_table({"sources": ["x"], "encoding": "klingon"})


@pytest.mark.slow
def test_a_100_mb_line_is_cut_into_documents_and_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    unit = "the king said to the fox that the road was long and the night was dark and cold; "
    text = "".join(f"{number} {unit}" for number in range(1_150_000))
    assert len(text) > 100_000_000
    (tmp_path / "in" / "one-line.txt").write_text(text)
    corpus = refined(tmp_path, unicode={"kind": "none"}, whitespace={"kind": "none"})
    statistics = read_manifest(corpus).statistics
    assert statistics["dropped"] == {}
    assert sum(statistics[split]["bytes"] for split in ("train", "validation", "test")) == len(text)


# --- many processes, and killed ones ---

STAGE = """
import os, signal, sys
from functools import partial
from pathlib import Path
from groundup.artifacts import making, read_manifest
from groundup.corpus import parts
from groundup.corpus.executors import one_machine
from groundup.corpus.refine import refine
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find

folder, processes, fatal = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
parts.BATCH_BYTES = 20_000
settings = CorpusSettings(sources=("in",))
calls = []

def watch(frame, event, argument):
    name = frame.f_code.co_name
    if event == "call" and "groundup/corpus" in frame.f_code.co_filename and name == fatal.split(":")[0]:
        calls.append(name)
        if len(calls) == int(fatal.split(":")[1]):
            os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(watch if fatal != "-" else None)
with making(folder / "corpus", "corpus", settings.table(), {}) as draft:
    refine(find(settings, folder), settings, draft, folder, work=folder / "parts",
           executor=partial(one_machine, processes=processes))
print(read_manifest(folder / "corpus").digest)
"""


def staged(folder: Path, processes: int = 0, fatal: str = "-", seed: int = 0) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-c", STAGE, folder, str(processes), fatal]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == (0 if fatal == "-" else -signal.SIGKILL), done.stderr
    return done.stdout


def some_files(folder: Path) -> None:
    lines(folder, [TALE.format(number // 2) for number in range(300)])
    (folder / "in" / "b.jsonl").write_text("".join(json.dumps({"text": TALE.format(n)}) + "\n" for n in range(90, 400)))
    (folder / "in" / "c.txt").write_bytes("Grüße aus der Stadt".encode("latin-1"))


def test_any_number_of_processes_and_any_hash_seed_give_the_same_bytes(tmp_path: Path) -> None:
    some_files(tmp_path)
    assert len({staged(tmp_path, processes, seed=seed) for processes, seed in ((0, 0), (1, 1), (2, 2), (7, 3))}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "fatal", ["begin:1", "write:1", "write:3", "all_there:5", "look_at_whole:1", "settle:2", "add_written:4", "close:2"]
)
def test_killed_at_any_stage_it_goes_on_to_the_same_bytes(tmp_path: Path, fatal: str) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    for each in ("whole", "killed"):
        some_files(tmp_path / each)
    staged(tmp_path / "killed", fatal=fatal)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "parts").glob("*.arrow")}
    assert staged(tmp_path / "killed", processes=2) == staged(tmp_path / "whole")
    assert not (tmp_path / "killed" / "parts").exists()
    assert made or fatal in ("begin:1", "write:1")  # it had something to go on with


def test_a_record_that_kills_its_process_is_dropped_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    fragile = importlib.import_module("killing").Fragile
    lines(tmp_path, [TALE.format(number) + ("poison" if number == 7 else "") for number in range(20)])
    settings = CorpusSettings(sources=("in",))
    found = find(settings, tmp_path)

    def executor(found: Found, refiner: Refiner, *rest: Any) -> None:
        one_machine(found, fragile(refiner.settings, refiner.beside, refiner.folder), *rest, processes=1)

    with making(tmp_path / "corpus", "corpus", settings.table(), {}) as draft:
        refine(found, settings, draft, tmp_path, executor=executor)
    [dropped] = pq.read_table(tmp_path / "corpus" / "dropped" / "documents.parquet").to_pylist()
    assert (dropped["source"], dropped["rule"]) == ("in/a.jsonl:8", "read.killed")
    assert draft.statistics["read"]["documents"] == 20


def test_a_file_that_changed_since_it_was_interrupted_is_read_again(tmp_path: Path) -> None:
    some_files(tmp_path)
    staged(tmp_path, fatal="look_at_whole:1")
    lines(tmp_path, [TALE.format(number) for number in range(1000, 1100)])
    staged(tmp_path)
    sources = [row["source"] for row in pq.read_table(tmp_path / "corpus" / "train.parquet").to_pylist()]
    assert sum(source.startswith("in/a.jsonl") for source in sources) <= 100


# --- mixtures ---


def mixed(tmp_path: Path, **more: Any) -> dict[str, Counter[str]]:
    """How often the training documents of each file are there."""
    for name, number in (("a", 100), ("b", 300)):
        texts = [
            f"Of {name} it was told in winter {n} that the geese came late to the mill. " * 3 for n in range(number)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = CorpusSettings.from_table({"validation_share": 0.01, "test_share": 0.01, **more})
    with making(tmp_path / "corpus", "corpus", settings.table(), {}) as draft:
        refine(find(settings, tmp_path), settings, draft, tmp_path)
    found: dict[str, Counter[str]] = {"a": Counter(), "b": Counter()}
    for row in pq.read_table(tmp_path / "corpus" / "train.parquet").to_pylist():
        found[row["source"][0]][row["id"]] += 1
    return found


def test_epochs_are_how_often_each_training_document_is_there(tmp_path: Path) -> None:
    found = mixed(tmp_path, sources=[{"path": "a.jsonl", "epochs": 2.5}, "b.jsonl"])
    assert set(found["a"].values()) == {2, 3}
    assert found["a"].total() == pytest.approx(2.5 * len(found["a"]), rel=0.15)
    assert set(found["b"].values()) == {1}


def test_weights_are_shares_of_the_text_and_what_is_left_over_is_dropped_with_its_reason(tmp_path: Path) -> None:
    weighted = [{"path": "a.jsonl", "weight": 1, "epochs": 2}, {"path": "b.jsonl", "weight": 1}]
    found = mixed(tmp_path, sources=weighted)
    assert found["a"].total() == pytest.approx(found["b"].total(), rel=0.15)
    assert set(found["a"].values()) == {2}
    rules = Counter(pq.read_table(tmp_path / "corpus" / "dropped" / "documents.parquet")["rule"].to_pylist())
    assert rules["mixture.share"] == pytest.approx(100, abs=25)
    assert rules.keys() == {"mixture.share"}


def test_some_weights_and_some_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="b.jsonl has no weight"):
        mixed(tmp_path, sources=[{"path": "a.jsonl", "weight": 1}, "b.jsonl"])


# --- copies, held-out passages, evaluation items ---


def asked(tmp_path: Path, texts: list[str], **more: Any) -> tuple[list[str], Counter[str], dict[str, Any]]:
    """The texts that are kept, the rules that dropped others, and the statistics."""
    lines(tmp_path, texts)
    corpus = refined(tmp_path, **more)
    kept = [text for split in ("train", "validation", "test") for text in read_texts(corpus / f"{split}.parquet")]
    rules = Counter(pq.read_table(corpus / "dropped" / "documents.parquet")["rule"].to_pylist())
    return kept, rules, dict(read_manifest(corpus).statistics)


def varied(number: int, words: int = 120) -> str:
    """A text of words that no other number has."""
    return " ".join(f"{number}x{word}".translate(str.maketrans("0123456789", "abcdefghij")) for word in range(words))


def test_near_copies_and_repeated_lines_go_with_what_was_cut_noted(tmp_path: Path) -> None:
    notice = "This notice stands on every page of the site and says nothing at all."
    texts = [f"{varied(number)}\n{notice}\nEnd of tale {number}." for number in range(30)]
    near = texts[4].replace("exga", "changed") + " And more."
    kept, rules, statistics = asked(tmp_path, [*texts, near], duplicates=[{"kind": "near"}, {"kind": "lines"}])
    assert rules == {"near.copy": 1}
    assert near in "\n".join(kept) or near.replace(notice + "\n", "") in kept  # the longer of the two stays
    assert sum(notice in text for text in kept) == 1
    assert statistics["edits"]["copies.cut"]["times"] == 29
    edits = pq.read_table(tmp_path / "corpus" / "dropped" / "edits.parquet").to_pylist()
    assert {edit["example"].strip() for edit in edits} == {notice}
    for text in kept:
        assert text == text.strip()
        assert "\n\n\n" not in text


def test_training_documents_that_hold_held_out_passages_are_dropped_unless_only_told_of(tmp_path: Path) -> None:
    texts = [varied(number) for number in range(200)]
    held_out = next(text for text in texts if split_of(hashlib.sha256(text.encode()).hexdigest(), 0.05, 0.05) == "test")
    leaky = next(
        text
        for text in (f"{held_out} and the {number} others" for number in range(100))
        if split_of(hashlib.sha256(text.encode()).hexdigest(), 0.05, 0.05) == "train"
    )
    kept, rules, statistics = asked(tmp_path, [*texts, leaky])
    assert rules == {"passages.held_out": 1}
    assert leaky not in kept
    assert held_out in kept
    assert statistics["held_out"]["copied"] == {"validation": 0, "test": 1}
    kept, rules, statistics = asked(tmp_path, [*texts, leaky], held_out={"kind": "passages", "action": "report"})
    assert not rules
    assert statistics["held_out"]["copies"] == 1


def test_items_that_training_documents_hold_are_listed_for_evaluation(tmp_path: Path) -> None:
    texts = [varied(number) for number in range(60)]
    trained = [text for text in texts if split_of(hashlib.sha256(text.encode()).hexdigest(), 0.05, 0.05) == "train"]
    items = [{"id": "seen", "text": trained[0][:200]}, {"id": "unseen", "text": varied(999)}]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    filters = [{"kind": "contamination", "items": ["quiz.jsonl"], "action": "report"}]
    _, rules, _ = asked(tmp_path, texts, filters=filters)
    assert not rules
    [line] = map(json.loads, (tmp_path / "corpus" / "contaminated.jsonl").read_text().splitlines())
    assert (line["task"], line["id"], line["overlap"]) == ("quiz", "seen", 1.0)
    kept, rules, _ = asked(tmp_path, texts, filters=[{**filters[0], "action": "drop"}])
    assert rules.total() == 1
    assert trained[0] not in kept
    assert (tmp_path / "corpus" / "contaminated.jsonl").read_text() == ""


def test_a_source_gives_no_more_than_its_cap_and_its_first_documents(tmp_path: Path) -> None:
    lines(tmp_path, [TALE.format(number) for number in range(40)])
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.jsonl").write_text(json.dumps({"text": TALE.format(100)}))
    size = len(TALE.format(10).encode())
    for caps, kept in (({"most_documents": 12}, 12), ({"most_bytes": 12 * size}, 12), ({"most_documents": 50}, 40)):
        settings = CorpusSettings.from_table({"sources": [{"path": "in", **caps}, "more"]})
        with making(tmp_path / "corpus", "corpus", settings.table(), {}) as draft:
            refine(find(settings, tmp_path), settings, draft, tmp_path)
        statistics = read_manifest(tmp_path / "corpus").statistics
        assert sum(statistics[split]["documents"] for split in ("train", "validation", "test")) == kept + 1
        assert statistics["dropped"] == ({"more than its source may have": 40 - kept} if kept < 40 else {})
        gone = pq.read_table(tmp_path / "corpus" / "dropped" / "documents.parquet").column("source").to_pylist()
        assert gone == [f"in/a.jsonl:{number}" for number in range(kept + 1, 41)]
