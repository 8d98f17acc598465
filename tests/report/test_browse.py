"""Browsing a corpus in a real browser: what was dropped and why, copies side by side, and nothing hostile runs."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundup.artifacts import making
from groundup.corpus.refine import refine
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find
from groundup.errors import DataError
from groundup.pages.app import address, listen, server
from groundup.report.browse import make_browse_app, side_by_side

HOSTILE = "<script>document.title = 'owned'</script> <img src=x onerror=\"document.title='owned'\"> & \u202e gnorw " * 4
TALE = "The {0} geese of mill {0} went to market {0} on Sunday {0}, and none {0} came home {0} before winter {0}. " * 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browse")
    words = [f"word{number}" for number in range(400)]
    near = [*words[:200], "another", *words[201:]]
    texts = [TALE.format(number) for number in range(60)] + [" ".join(words), " ".join(near), "short", HOSTILE]
    rows = [{"text": text, "licence": "\"><script>document.title='owned'</script>"} for text in texts]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {
        "sources": ["a.jsonl"],
        "duplicates": [{"kind": "exact"}, {"kind": "near"}],
        "filters": [{"kind": "length"}],
    }
    settings = CorpusSettings.from_table(asked)
    with making(folder / "corpus", "corpus", settings.table(), {}) as draft:
        refine(find(settings, folder), settings, draft, folder)
    return folder / "corpus"


@pytest.fixture(scope="module")
def home(corpus: Path) -> Iterator[str]:
    listening = listen(0)
    serving = server(make_browse_app(corpus))
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
    thread.start()
    yield address(listening)
    serving.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    page, page.said = context.new_page(), []
    page.on("console", lambda message: page.said.append(message.text))
    yield page
    assert page.said == []
    context.close()


def test_a_person_finds_why_a_document_is_not_there(home: str, tab: Any) -> None:
    tab.goto(home)
    tab.click("text=length.minimum")
    assert tab.locator(".documents li").count() == 1
    tab.click("text=a.jsonl:63")
    assert "Dropped by length.minimum: shorter than 100 characters; it has 5, the threshold is 100." in tab.inner_text(
        "main"
    )
    assert tab.inner_text("pre.text") == "short"


def test_a_search_marks_what_it_found(home: str, tab: Any) -> None:
    tab.goto(home)
    tab.fill("input[name=wanted]", "THE 37 GEESE")
    tab.click("text=Search")
    assert tab.locator(".documents li").count() == 1
    assert tab.locator("mark.found").first.inner_text() == "The 37 geese"
    tab.fill("input[name=wanted]", "not there")
    tab.click("text=Search")
    assert "None found among" in tab.inner_text("main")


def test_near_copies_stand_side_by_side_with_what_differs_marked(home: str, tab: Any) -> None:
    tab.goto(home)
    tab.click("text=near copies")
    tab.click("text=side by side")
    assert sorted(tab.locator("mark.found").all_inner_texts()) == ["another", "word200"]


@pytest.mark.parametrize("path", ["documents?place=train&wanted=script", "documents?place=train&wanted=%3Cscript%3E"])
def test_a_hostile_document_is_shown_and_does_nothing(home: str, tab: Any, path: str) -> None:
    tab.goto(home + path)
    tab.click(".documents a")
    assert tab.inner_text("pre.text").startswith("<script>document.title = 'owned'</script> <img src=x")
    assert "owned" not in tab.title()
    assert tab.locator("main script, main img").count() == 0


@pytest.mark.parametrize("path", ["documents?place=..", "document?place=train&number=999", "pair?number=-1"])
def test_what_there_is_not_is_said_to_be_missing(home: str, tab: Any, path: str) -> None:
    assert tab.goto(home + path).status == 404
    tab.said.clear()  # the browser's own line about it


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        make_browse_app(tmp_path)


def test_the_sides_of_a_comparison_are_the_texts() -> None:
    left, right = "The old king went home.", "The king went  home, late."
    parts = list(side_by_side(left, right))
    assert ("".join(part for part, _, _ in parts), "".join(part for _, part, _ in parts)) == (left, right)
    assert all(one == other for one, other, is_same in parts if is_same)
