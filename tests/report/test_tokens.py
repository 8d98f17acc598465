"""The page of a text in tokens: nothing hostile runs, its ids and trees are true, and it looks right."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundup.building import build
from groundup.errors import SettingsError
from groundup.report.tokens import (
    DRAWN_BYTES,
    TOKENS_ON_PAGE,
    TREES_OPEN,
    explain,
    table,
    token_lines,
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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    target = tmp_path_factory.mktemp("pages") / "new" / "tokens.html"
    write_page(explain("<b>mine</b>", tokenizer, HOSTILE, special=True), target, np.arange(tokenizer.vocab_size))
    return target


@pytest.fixture
def pre_tokens(tokenizer: Tokenizer) -> dict[str, PreToken]:
    """Those of that text which were merged, by their names."""
    explained = tokenizer.explain(HOSTILE, frozenset(tokenizer.special))
    return {visible(pre_token.raw): pre_token for pre_token in explained if pre_token.merges}


def drawn(tab: Any) -> dict[str, list[Any]]:
    """The name of each pre-token that is drawn → its tokens, each as [label, rank, parts]."""
    trees = tab.evaluate(
        """() => {
          const text = (node, tag) => node.querySelector(`:scope > ${tag}`)?.textContent ?? "";
          const read = parts => [...parts?.children ?? []].map(node =>
            [text(node, "b"), text(node, "small"), read(node.querySelector(":scope > .parts"))]);
          return [...document.querySelectorAll(".tree")].map(tree =>
            [tree.querySelector("figcaption b").textContent, read(tree.querySelector(".wide > .parts"))]);
        }"""
    )
    return dict(trees)


def leaves(nodes: list[Any]) -> list[str]:
    return [leaf for label, _, parts in nodes for leaf in (leaves(parts) or [label])]


def ranks(nodes: list[Any]) -> list[int]:
    return [
        rank for _, text, parts in nodes for rank in [*ranks(parts), *([int(text.replace(",", ""))] if text else [])]
    ]


@pytest.fixture(scope="module")
def tab(page: Path, browser: Any) -> Iterator[Any]:
    tab = browser.new_page()
    tab.goto(page.as_uri())
    yield tab
    tab.close()


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
    assert len(re.findall("<span class=.pre-token.>", text)) == len(
        list(tokenizer.explain(HOSTILE, frozenset(tokenizer.special)))
    )


def test_a_token_has_a_tip_with_its_id_its_bytes_and_how_often_it_is_used(page: Path, tokenizer: Tokenizer) -> None:
    (i, n), *_ = Counter(tokenizer.encode(HOSTILE, frozenset(tokenizer.special))).most_common(1)
    tip = f"id {i:,}, bytes {tokenizer.tokens[i].hex(' ')}, {n} times in this text, {i:,} times in the shards"
    assert page.read_text().count(tip) == n


def test_a_tree_stands_on_the_bytes_and_ends_in_the_tokens(
    tab: Any, tokenizer: Tokenizer, pre_tokens: dict[str, PreToken]
) -> None:
    trees = drawn(tab)
    assert set(trees) == set(pre_tokens)
    for name, nodes in trees.items():
        raw = pre_tokens[name].raw
        assert len(leaves(nodes)) == len(raw)
        assert all(leaf in (chr(byte), "␣", f"{byte:02x}") for leaf, byte in zip(leaves(nodes), raw, strict=True))
        labels = [label for label, _, parts in nodes if parts]
        ids = tokenizer.encode(raw)
        assert labels == [visible(tokenizer.tokens[i]) for i in ids if len(tokenizer.tokens[i]) > 1]
        assert len(nodes) == len(ids)


def test_the_ranks_in_a_tree_are_positions_in_the_list_of_merges(
    tab: Any, tokenizer: Tokenizer, pre_tokens: dict[str, PreToken]
) -> None:
    """Joining by them from the top of the list on, as in learning, gives the ids of the pre-token."""
    for name, nodes in drawn(tab).items():
        raw = pre_tokens[name].raw
        ids = [tokenizer.tokens.index(bytes([byte])) for byte in raw]
        for rank in sorted(set(ranks(nodes))):
            left, right = tokenizer.merges[rank]
            pair = tokenizer.tokens.index(left), tokenizer.tokens.index(right)
            ids = merge(ids, pair, tokenizer.tokens.index(left + right))
        assert ids == tokenizer.encode(raw)


def test_bytes_are_in_the_top_row_of_a_tree_and_tokens_in_the_bottom_row(tab: Any) -> None:
    tops, bottoms = tab.evaluate(
        """() => {
          const boxes = [...document.querySelectorAll(".tree")].map(tree => [...tree.querySelectorAll(".node")]);
          const top = node => node.querySelector(":scope > b").getBoundingClientRect().top;
          const apart = values => Math.max(...values) - Math.min(...values);
          return [boxes.map(all => apart(all.filter(node => !node.querySelector(".node")).map(top))),
            boxes.map(all => apart(all.filter(node => !node.parentElement.closest(".node"))
              .map(node => node.getBoundingClientRect().bottom)))];
        }"""
    )
    assert max(bottoms) <= 1
    assert max(tops) <= 20  # each level of nesting has a border and a padding


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


def test_a_long_text_is_cut_and_the_page_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    raw = " ".join(map("".join, itertools.product("thekingo", repeat=4))).encode()
    explained = explain("mine", tokenizer, raw)
    write_page(explained, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    n_boxes = text.count('<a class="token')
    assert TOKENS_ON_PAGE - 20 < n_boxes <= TOKENS_ON_PAGE
    assert f"<b>{n_boxes:,}</b> tokens of {len(explained.ids):,}" in text
    assert text.split("<details>")[0].count("<figure") == TREES_OPEN
    assert "more pre-tokens</summary>" in text
    assert sum(map(len, token_lines(explained))) <= 410
    assert len(table(explained)["ids"]) == len(tokenizer.encode(raw))
    write_page(explain("mine", tokenizer, b"ab" * 9000), tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text()
    assert text.count('<a class="token') == TOKENS_ON_PAGE
    assert f"Not drawn: 1 pre-token of more than {DRAWN_BYTES} bytes, too wide to be drawn." in text


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "The text is empty."),
        (b"Q", "No pre-token of this text was merged"),
        (b"\xff\xff", "Not drawn: 1 pre-token of several bytes that no merge joins."),
    ],
)
def test_a_text_without_tokens_or_merges_has_a_page_too(
    tokenizer: Tokenizer, tmp_path: Path, raw: bytes, said: str
) -> None:
    write_page(explain("mine", tokenizer, raw), tmp_path / "page.html")
    assert said in (tmp_path / "page.html").read_text()


def test_a_token_that_is_taken_as_a_whole_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
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
() => [...document.querySelectorAll(".node > b, .node > small")].filter(words => {
  const inner = words.getBoundingClientRect(), outer = words.parentElement.getBoundingClientRect();
  return inner.left < outer.left || inner.right > outer.right || inner.bottom > outer.bottom;
}).map(words => words.textContent)
"""
"""Words of a tree that do not fit their box."""


@pytest.mark.parametrize("width", [1280, 390])
def test_words_fit_their_boxes_and_pointing_or_tabbing_opens_a_tip(page: Path, browser: Any, width: int) -> None:
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
