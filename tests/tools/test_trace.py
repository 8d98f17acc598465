"""Trace: the documents that a plain search finds, longest passage first."""

import json
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from groundup.artifacts import making
from groundup.cli.app import app
from groundup.compiled.words import longest_common
from groundup.corpus.document import Document, DocumentWriter
from groundup.errors import DataError, SettingsError
from groundup.tools.trace import rows, trace

TEXTS = [
    "The king went over the hill, and the old FOX\nsat by the well; nobody saw him.",
    "Nothing of the kind.",
    "“And the old fox sat,” she said, “by the well.”",
    "And the old fox sat by the well. And the old fox sat by the well of gold!",
    "漢字 and numbers 1 2 3",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    with making(tmp_path / "run" / "corpus", "corpus", {}, {}) as draft:
        writer = DocumentWriter(draft.path / "train.parquet")
        for number, text in enumerate(TEXTS):
            writer.write(Document(text, f"{number}.txt"))
        writer.close()
        draft.statistics["train"] = {"documents": len(TEXTS)}
    return tmp_path / "run"


def test_documents_come_with_their_longest_passage_longest_first(corpus: Path) -> None:
    traced = trace(corpus, "Then and the old fox sat by the well of it")
    assert [(each.words, each.source) for each in traced] == [
        (9, "3.txt"), (8, "0.txt"), (5, "2.txt"), (1, "1.txt"), (1, "4.txt"),
    ]  # fmt: skip
    assert traced[0].passage == "And the old fox sat by the well of"
    assert (traced[0].before[-6:], traced[0].after) == ("well. ", " gold!")
    assert (traced[1].before, traced[1].passage) == (TEXTS[0][:29], "and the old FOX\nsat by the well")
    assert traced[1].id == Document(TEXTS[0], "").id
    assert trace(corpus / "corpus", "sat by the well", most=2) == trace(corpus, "sat by the well")[:2]
    assert rows(traced)[2] == [
        "8",
        "0.txt",
        "The king went over the hill, [and the old FOX sat by the well]; nobody saw him.",
    ]
    assert [each.source for each in trace(corpus, "字")] == ["4.txt"]


@given(st.lists(st.integers(0, 3), max_size=25), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_the_longest_common_run_is_difflibs(words: list[int], query: list[int]) -> None:
    at, length = longest_common(np.array(words, np.uint64), np.array(query, np.uint64))
    match = SequenceMatcher(None, words, query, autojunk=False).find_longest_match()
    assert length == match.size
    assert not length or at == match.a


def test_what_cannot_be_traced_is_refused(corpus: Path) -> None:
    with pytest.raises(SettingsError, match="has no words to look for"):
        trace(corpus, " .,- ")
    with pytest.raises(DataError, match=r"has no train.parquet: name a corpus"):
        trace(corpus.parent, "fox")
    with pytest.raises(DataError, match="no corpus or run at"):
        trace(corpus / "nowhere", "fox")
    assert trace(corpus, "xylophone") == []


def test_the_command_prints_a_table_or_json(corpus: Path) -> None:
    said = CliRunner().invoke(app, ["trace", str(corpus), "-", "--most", "1"], input="the OLD fox sat\n")
    assert said.output.splitlines()[0].split() == ["words", "document", "passage"]
    assert "[the old FOX sat]" in said.output
    said = CliRunner().invoke(app, ["trace", str(corpus), "the old fox sat", "--json"])
    assert [row["source"] for row in json.loads(said.output)] == ["0.txt", "2.txt", "3.txt", "1.txt"]
    said = CliRunner().invoke(app, ["trace", str(corpus), "xylophone"])
    assert said.output.strip() == "No training document has one of its words."
