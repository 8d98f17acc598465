"""The page of a text in tokens: nothing hostile runs, its ids and trees are true, and it looks right."""

import html
import itertools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.building import build
from groundup.errors import SettingsError
from groundup.report.tokens import (
    DRAWN_BYTES,
    TOKENS_ON_PAGE,
    TREES_OPEN,
    explain,
    shown_pieces,
    to_json,
    uses_in,
    visible,
    write_page,
)
from groundup.tokenizer.bpe import merge
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.explain import PreToken
from groundup.tokenizer.tokenizer import Tokenizer

HOSTILE = (
    "<script>document.title = 'owned'</script> **the king** and the \"golden\" apple & <img src=x onerror=alert(1)>\n"
    "\x00\x1b[31m\u202eשלום עולם\u2066 👩‍👩‍👧 漢字 naïve\r\n\n  the end"
).encode() + b"\xff\xfe\xe6\xbc <|endoftext|>"
BOX = re.compile(r'<rect class="(\w+)" x="([\d.]+)" y="(\d+)" width="(\d+)" height="(\d+)" rx="4"/>')
BRANCH = re.compile(r'd="M([\d.]+) (\d+)V(\d+)H([\d.]+)V(\d+)"')


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    target = tmp_path_factory.mktemp("pages") / "new" / "tokens.html"
    write_page(explain("<b>mine</b>", tokenizer, HOSTILE, special=True), target, np.arange(tokenizer.vocab_size))
    return target


@pytest.fixture
def pieces(tokenizer: Tokenizer) -> dict[str, PreToken]:
    """Those of that text which were merged, by their names."""
    explained = tokenizer.explain(HOSTILE, frozenset(tokenizer.special))
    return {visible(piece.raw): piece for piece in explained if piece.merges}


def trees(page: Path) -> dict[str, str]:
    """The name of each piece that is drawn → its drawing."""
    found = re.findall(r'<figure class="tree">.*?(<svg.*?</svg>).*?<b>(.*?)</b>', page.read_text(), re.S)
    return {html.unescape(name): drawing for drawing, name in found}


def words(drawing: str, which: str) -> list[str]:
    """What is written in a drawing: the names of its boxes, or their ranks."""
    return [html.unescape(word) for word in re.findall(rf'<text class="{which}"[^>]*>(.*?)</text>', drawing)]


def test_nothing_is_fetched_and_nothing_runs(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""<[a-z][^>]*\b(src|href)\s*=(?!"#)|url\(|@import|https?://|<script|<img|<b>mine""", text)
    assert "&lt;script&gt;document.title" in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_the_boxes_are_the_tokens_of_the_text_and_each_leads_to_its_row(page: Path, tokenizer: Tokenizer) -> None:
    text = page.read_text()
    ids = [int(i) for i in re.findall(r'<a class="token t\d" href="#token-(\d+)">', text)]
    assert ids == tokenizer.encode(HOSTILE, frozenset(tokenizer.special))
    rows = [int(i) for i in re.findall(r'<tr id="token-(\d+)">', text)]
    assert rows == list(dict.fromkeys(ids))
    assert len(re.findall("<span class=.piece.>", text)) == len(
        list(tokenizer.explain(HOSTILE, frozenset(tokenizer.special)))
    )


def test_a_token_tells_its_id_its_bytes_and_how_often_it_is_used(page: Path, tokenizer: Tokenizer) -> None:
    (i, n), *_ = Counter(tokenizer.encode(HOSTILE, frozenset(tokenizer.special))).most_common(1)
    told = f"id {i:,}, bytes {tokenizer.tokens[i].hex(' ')}, {n} times in this text, {i:,} times in the shards"
    assert page.read_text().count(told) == n


def test_a_tree_stands_on_the_bytes_and_ends_in_the_tokens(
    page: Path, tokenizer: Tokenizer, pieces: dict[str, PreToken]
) -> None:
    drawn = trees(page)
    assert set(drawn) == set(pieces)
    for name, drawing in drawn.items():
        raw, boxes, labels = pieces[name].raw, BOX.findall(drawing), words(drawing, "middle name")
        assert len(boxes) == len(labels)
        top, bottom = min(int(box[2]) for box in boxes), max(int(box[2]) for box in boxes)
        leaves = [label for box, label in zip(boxes, labels, strict=True) if int(box[2]) == top]
        last = sorted((float(box[1]), label) for box, label in zip(boxes, labels, strict=True) if int(box[2]) == bottom)
        assert len(leaves) == len(raw)
        assert all(label in (chr(byte), "␣", f"{byte:02x}") for label, byte in zip(leaves, raw, strict=True))
        assert [label for _, label in last if len(label) > 1 and label not in leaves] == [
            visible(tokenizer.tokens[i]) for i in tokenizer.encode(raw) if len(tokenizer.tokens[i]) > 1
        ]
        assert [box[0] != "grid" for box in boxes] == [int(box[2]) == bottom for box in boxes], "in colour: the tokens"


def test_the_ranks_in_a_tree_are_places_in_the_list_of_merges(
    page: Path, tokenizer: Tokenizer, pieces: dict[str, PreToken]
) -> None:
    """Joining by them from the top of the list on, as in learning, gives the ids of the piece."""
    for name, drawing in trees(page).items():
        raw = pieces[name].raw
        ids = [tokenizer.tokens.index(bytes([byte])) for byte in raw]
        for rank in sorted({int(rank.replace(",", "")) for rank in words(drawing, "middle")}):
            left, right = tokenizer.merges[rank]
            pair = tokenizer.tokens.index(left), tokenizer.tokens.index(right)
            ids = merge(ids, pair, tokenizer.tokens.index(left + right))
        assert ids == tokenizer.encode(raw)


@settings(max_examples=60)
@given(st.text(alphabet="the kingdoflw", min_size=2, max_size=DRAWN_BYTES - 4).map(lambda word: word.strip() or "the"))
def test_no_box_of_a_tree_covers_another_and_no_branch_crosses_one(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, word: str
) -> None:
    target = tmp_path_factory.getbasetemp() / "tree.html"
    write_page(explain("x", tokenizer, word.encode()), target)
    for drawing in trees(target).values():
        width, height = (float(size) for size in re.findall(r'viewBox="0 0 (\d+) (\d+)"', drawing)[0])
        boxes = [
            (float(x), float(y), float(x) + float(w), float(y) + float(h)) for _, x, y, w, h in BOX.findall(drawing)
        ]
        assert all(left >= 0 and top >= 0 and right <= width and bottom <= height for left, top, right, bottom in boxes)
        for one, other in itertools.combinations(boxes, 2):
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        for x1, y1, along, x2, y2 in (map(float, branch) for branch in BRANCH.findall(drawing)):
            for left, top, right, bottom in boxes:
                assert not (left < x1 < right and top < along and y1 < bottom), "down from the part"
                assert not (top < along < bottom and max(x1, x2) > left and min(x1, x2) < right), "along"
                assert not (left < x2 < right and top < y2 and along < bottom), "down to the box"


def test_how_often_a_token_is_used_is_counted_in_the_shards_of_the_run(recipe: Path) -> None:
    run = recipe.parent / "run"
    for stage in ("corpus", "tokenizer", "pack"):
        build(recipe, run=run, only=stage, say=lambda text: None)
    uses = uses_in(run, 320)
    assert uses is not None
    tokenizer = Tokenizer.load(run / "tokenizer")
    texts = [path.read_text().strip() for path in (recipe.parent / "tales").iterdir()]
    expected = np.bincount([i for ids in tokenizer.encode_batch(texts) for i in ids], minlength=320)
    expected[tokenizer.opener] += len(texts)
    assert uses.tolist() == expected.tolist()
    build(recipe, ["tokenizer.split=cl100k"], run=run, only="tokenizer", replace=True, say=lambda text: None)
    assert uses_in(run, 320) is None, "packed with another tokenizer"
    assert uses_in(recipe, 320) is None


def test_of_a_long_text_what_fits_is_shown_and_the_rest_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    raw = " ".join(map("".join, itertools.product("thekingo", repeat=4))).encode()
    explained = explain("mine", tokenizer, raw)
    write_page(explained, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    shown = text.count('<a class="token')
    assert TOKENS_ON_PAGE - 20 < shown <= TOKENS_ON_PAGE
    assert f"<b>{shown:,}</b> tokens of {len(explained.ids):,}" in text
    assert text.split("<details>")[0].count("<figure") == TREES_OPEN
    assert "more pieces</summary>" in text
    assert sum(map(len, shown_pieces(explained))) <= 410
    assert len(to_json(explained)["ids"]) == len(tokenizer.encode(raw))
    write_page(explain("mine", tokenizer, b"ab" * 9000), tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text()
    assert text.count('<a class="token') == TOKENS_ON_PAGE
    assert f"Not drawn: 1 piece of more than {DRAWN_BYTES} bytes, too wide to be drawn." in text


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "The text is empty."),
        (b"Q", "No piece of this text was merged"),
        (b"\xff\xff", "Not drawn: 1 piece of several bytes that no merge joins."),
    ],
)
def test_a_text_without_tokens_or_merges_has_a_page_too(
    tokenizer: Tokenizer, tmp_path: Path, raw: bytes, said: str
) -> None:
    write_page(explain("mine", tokenizer, raw), tmp_path / "page.html")
    assert said in (tmp_path / "page.html").read_text()


def test_a_token_that_is_taken_as_a_whole_is_told_apart(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = [*tokenizer.tokens[: -len(tokenizer.special)], b"the kings"]
    pairs = [(tokens.index(left), tokens.index(right)) for left, right in tokenizer.merges]
    whole = Tokenizer(ByteLevel(tokens, pairs, {}, r"[\s\S]+", whole_pre_tokens=True))
    write_page(explain("mine", whole, b"the kings"), tmp_path / "page.html")
    said = f"is a token as a whole, {len(tokens) - 1}, taken without a merge. Its bytes would be merged so: "
    assert said in (tmp_path / "page.html").read_text()


def test_a_page_does_not_replace_a_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is a folder; the page needs a file"):
        write_page(explain("mine", tokenizer, b"the"), tmp_path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_real_browser_it_fits_and_can_be_read(
    page: Path, look: Callable[[Path, int, str], None], width: int, scheme: str
) -> None:
    look(page, width, scheme)


def test_paper_shows_all_of_it(page: Path, print_out: Callable[[Path], None]) -> None:
    print_out(page)


SPILLED = """
() => [...document.querySelectorAll(".tree text")].filter(text => {
  let box = text.previousElementSibling;
  while (box.tagName !== "rect") box = box.previousElementSibling;
  const inner = text.getBoundingClientRect(), outer = box.getBoundingClientRect();
  return inner.left < outer.left || inner.right > outer.right || inner.bottom > outer.bottom + 2;
}).map(text => text.textContent)
"""
"""Words of a tree that do not fit their box."""


@pytest.mark.parametrize("width", [1280, 390])
def test_words_fit_their_boxes_and_pointing_or_tabbing_tells_of_a_token(page: Path, browser: Any, width: int) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(page.as_uri())
    assert tab.evaluate(SPILLED) == []
    assert tab.query_selector_all(".tip:visible") == []
    tokens = tab.query_selector_all(".token")
    tokens[2].hover()
    assert [tip.inner_text() for tip in tab.query_selector_all(".tip:visible")] == [
        tokens[2].query_selector(".tip").text_content()
    ]
    tab.mouse.move(0, 0)
    tokens[0].focus()
    tab.keyboard.press("Tab")
    (tip,) = tab.query_selector_all(".tip:visible")
    assert tip.inner_text() == tokens[1].query_selector(".tip").text_content()
    box = tip.bounding_box()
    assert box["x"] == 0
    assert box["x"] + box["width"] <= width
    assert box["y"] + box["height"] <= 900
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.querySelector('tr:target').id") == tokens[1].get_attribute("href")[1:]
    tab.close()
