"""Word lists hold at the bounds of words in any script; lines or documents go; addresses have parts."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.document import Document, Drop
from groundup.corpus.filters import digest_files, looks
from groundup.corpus.safety import PACKAGED, Phrases, read_list
from groundup.corpus.settings import Filter, Toxicity, Urls, Words
from groundup.errors import MissingError


def look_at(text: str, settings: Filter, beside: Path = Path(), **told: str) -> Document | Drop:
    [look] = looks([settings], beside)
    return look(Document(text, "a", **told))


@given(st.lists(st.sampled_from(["ass", "as", "class", "ball", "gag", "Gag", " ", "\n ", "-", "é", "."]), max_size=12))
def test_phrases_are_those_of_a_plain_search(parts: list[str]) -> None:
    text = "".join(parts).casefold()
    plain = [match.start() for match in re.finditer(r"(?<!\w)(?:ass|ball\s+gag|gag\s+ball)(?!\w)", text)]
    found = Phrases(["ass", "ball gag", "gag ball"]).find(text)
    assert {start for start, _ in found} >= set(plain)  # of two that overlap, the plain search has one
    assert all(re.fullmatch(r"ass|ball gag|gag ball", phrase) for _, phrase in found) and bool(found) == bool(plain)


def test_words_of_spaced_scripts_have_bounds_and_those_of_unspaced_ones_have_not() -> None:
    found = Phrases(["хуй", "乳房", "स्तन"]).find("хуйня хуй; 双乳房炎; स्तनपान स्तन")
    assert [phrase for _, phrase in found] == ["хуй", "乳房", "स्तन"]


def test_every_packaged_list_finds_its_own_words() -> None:
    lists = sorted(path.stem for path in (PACKAGED / "words").iterdir())
    assert len(lists) == 28
    for name in lists:
        phrases = read_list(name, Path())[::4]
        found = {phrase for _, phrase in Phrases(phrases).find(" \n".join(phrases))}
        assert len(found) >= 0.98 * len(set(phrases)), name  # a phrase within a longer one is found as that


def test_the_packaged_lists_are_the_published_ones(shared: Path) -> None:
    for path in (shared / "data/safety/ldnoobw").iterdir():
        assert (PACKAGED / "words" / path.name).read_bytes() == path.read_bytes()


def test_a_document_goes_above_a_count_and_a_share(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("# mine\nBad  word\n", "utf-8")
    lists = ("own.txt",)
    dropped = look_at("a bad\nword here", Words(lists=lists), tmp_path)
    assert isinstance(dropped, Drop) and (dropped.rule, dropped.value) == ("words.listed", 1)
    assert isinstance(look_at("a bad word", Words(lists=lists, count=1), tmp_path), Document)
    assert isinstance(look_at("a bad word", Words(lists=lists, share=0.4), tmp_path), Document)
    assert isinstance(look_at("a bad word", Words(lists=lists, share=0.3), tmp_path), Drop)


def test_a_line_goes_with_a_note() -> None:
    looked = look_at("one\nan ass\nthree", Words(action="line"))
    assert isinstance(looked, Document) and looked.text == "one\nthree"
    assert [(note.rule, note.count, note.example) for note in looked.notes] == [("words.line", 1, "an ass")]


@pytest.mark.parametrize("part", ["ass\n", "blow your ", "a", "2 girls\n", "乳 "])
def test_the_time_of_a_list_is_linear(part: str) -> None:
    [look] = looks([Words(lists=("en", "ja"), action="line")], Path())

    def fastest(n: int) -> float:
        times = []
        for _ in range(3):
            began = time.process_time()
            look(Document((part * n)[:n], "a"))
            times.append(time.process_time() - began)
        return min(times)

    assert fastest(80_000) < 3 * fastest(40_000) + 0.005


def test_a_known_language_has_its_own_list() -> None:
    words = Words(lists=("en", "de"))
    assert isinstance(look_at("er ist dick", words, language="de"), Document)  # which is German for fat
    assert isinstance(look_at("er ist dick", words), Drop)


def test_a_changed_list_is_another_input(tmp_path: Path) -> None:
    digests = set()
    for text in ("bad", "worse"):
        (tmp_path / "own").write_text(text, "utf-8")
        [(name, digest)] = digest_files([Words(lists=("en", "own"))], tmp_path, {}).items()
        digests.add(digest)
    assert name == "filter: own" and len(digests) == 2
    (tmp_path / "own").unlink()
    assert digest_files([Words(lists=("own",))], tmp_path, {name: "0"}) == {name: "0"}


def test_a_list_that_is_nowhere_is_named() -> None:
    with pytest.raises(MissingError, match="list klingon is missing"):
        looks([Words(lists=("klingon",))], Path())


def test_toxic_lines_are_found_and_harmless_ones_left() -> None:
    toxic, kind = (
        "you are a stupid fucking bitch",
        "It was a bright morning, and the miller's daughter went to the well.",
    )
    assert isinstance(dropped := look_at(f"{toxic}\n{kind}", Toxicity()), Drop) and dropped.rule == "toxicity.share"
    looked = look_at(f"{toxic}\n{kind}", Toxicity(action="line"))
    assert isinstance(looked, Document) and looked.text == kind


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("https://A.Bad.example:80/x", "urls.domain"),
        ("bad.example/x", "urls.domain"),
        ("https://notbad.example/x", None),
        ("https://good.example/free-CASINO/1", "urls.word"),
        ("https://good.example/casinos", None),
        ("https://hosts.example/", "urls.domain"),
        ("http://[broken", None),
    ],
)
def test_addresses(url: str, rule: str | None, tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_text("# a hosts file\n0.0.0.0 hosts.example # comment\n", "utf-8")
    settings = Urls(domains=("bad.example", "hosts.txt"), words=("casino",))
    looked = look_at("text", settings, tmp_path, metadata=json.dumps({"url": url}))
    assert (looked.rule if isinstance(looked, Drop) else None) == rule
