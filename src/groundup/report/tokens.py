"""How a tokenizer cuts a text: the pieces, their ids, and the merges that made them.

As values for programs, as rows for the terminal, and as a page with the tree of merges of each piece.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundup.artifacts import is_made, read_manifest
from groundup.corpus.document import SPLITS
from groundup.report.page import contents, section, sentence, table, text, write
from groundup.shards import IDS_AT_ONCE, open_split
from groundup.tokenizer.explain import EXPLAINED_BYTES, PreToken
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.vocabulary import readable
from groundup.words import plural

TOKENS_SHOWN, ROWS_SHOWN = 400, 60
"""In the terminal: tokens of the text, and rows of each table."""


@dataclass(frozen=True)
class Explained:
    """A text, and how its ids came about."""

    name: str
    """What the tokenizer is called."""
    tokenizer: Tokenizer
    pieces: Sequence[PreToken]

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of each id of the vocabulary."""
        return self.tokenizer.tokens

    @cached_property
    def ids(self) -> list[int]:
        return [i for piece in self.pieces for i in piece.ids]

    @cached_property
    def n_bytes(self) -> int:
        return sum(len(piece.raw) for piece in self.pieces)

    @property
    def is_of_a_library(self) -> bool:
        """Whether how the pieces came about is not known here."""
        return any(piece.kind == "library" for piece in self.pieces)

    @property
    def distinct(self) -> list[PreToken]:
        """Each piece once, in the order of the text."""
        return list({(piece.raw, piece.kind): piece for piece in self.pieces}.values())

    @property
    def summary(self) -> str:
        tokens, pieces = plural(len(self.ids), "token"), plural(len(self.pieces), "piece")
        share = f", {self.n_bytes / len(self.ids):.2f} bytes a token" if self.ids else ""
        return f"{tokens} for {plural(self.n_bytes, 'byte')}{share}, in {pieces}"


def explain(name: str, tokenizer: Tokenizer, text: bytes, *, special: bool = False) -> Explained:
    """
    Args:
        special: recognise the texts of special tokens.
    """
    allowed = frozenset(tokenizer.special) if special else frozenset()
    return Explained(name, tokenizer, list(tokenizer.explain(text, allowed)))


def to_json(explained: Explained) -> dict[str, Any]:
    """All of it as JSON values; bytes are hexadecimal, and the text of what is not UTF-8 is None."""
    pieces, begin = [], 0
    for piece in explained.pieces:
        tokens = [{"id": i, "token": explained.tokenizer.spelled(i), **_both(explained.tokens[i])} for i in piece.ids]
        merges = None if piece.merges is None else [vars(merge) for merge in piece.merges]
        pieces.append({"begin": begin, "kind": piece.kind, **_both(piece.raw), "tokens": tokens, "merges": merges})
        begin += len(piece.raw)
    return {
        "tokenizer": explained.name,
        "vocab_size": explained.tokenizer.vocab_size,
        "split": explained.tokenizer.pattern,
        "bytes": explained.n_bytes,
        "tokens": len(explained.ids),
        "bytes_per_token": explained.n_bytes / len(explained.ids) if explained.ids else None,
        "ids": explained.ids,
        "pieces": pieces,
    }


def _both(raw: bytes) -> dict[str, str | None]:
    try:
        return {"text": raw.decode(), "bytes": raw.hex()}
    except UnicodeDecodeError:
        return {"text": None, "bytes": raw.hex()}


# In the terminal


def shown_pieces(explained: Explained) -> list[list[str]]:
    """The tokens of each piece, readable, as far as they are shown; a line ends where the text's does."""
    shown: list[list[str]] = []
    left = TOKENS_SHOWN
    for piece in explained.pieces:
        if left <= 0:
            break
        whole = [piece.raw] if len(piece.ids) == 1 else [explained.tokens[i] for i in piece.ids[:left]]
        tokens = (token.split(b"\n") for token in whole)
        shown.append(["\\n\n".join(map(readable, lines)) for lines in tokens])
        left -= len(piece.ids)
    return shown


def token_rows(explained: Explained) -> list[list[str]]:
    """A row a token, below a header; the last tells how many are left out."""
    rows = [
        [
            f"{place:>5,}",
            f"{i:>7,}",
            explained.tokenizer.spelled(i),
            repr(explained.tokens[i])[2:-1],
            visible(explained.tokens[i]),
        ]
        for place, i in enumerate(explained.ids[:ROWS_SHOWN])
    ]
    more = len(explained.ids) - ROWS_SHOWN
    return [
        ["place", "     id", "token", "bytes", "text"],
        *rows,
        *([["    …", f"{more:,} more", "", "", ""]] if more > 0 else []),
    ]


def merge_rows(explained: Explained) -> list[list[str]]:
    """For each distinct piece the merges that made it, a row each, below a header; the last tells what is left out."""
    rows: list[list[str]] = []
    distinct = explained.distinct
    for number, piece in enumerate(distinct):
        if len(rows) >= ROWS_SHOWN:
            rows.append(["…", "", f"and of {plural(len(distinct) - number, 'more piece')}"])
            break
        rows += _merges(explained, piece)
    return [["piece", "   rank", "merge"], *rows]


def _merges(explained: Explained, piece: PreToken) -> Iterator[list[str]]:
    name, tokens = visible(piece.raw), explained.tokens
    match piece:
        case PreToken(kind="special" | "added"):
            yield [name, "", "a special token" if piece.kind == "special" else "an added token"]
            return
        case PreToken(kind="library"):
            return
        case PreToken(merges=None):
            yield [
                visible(piece.raw[:24]) + "…",
                "",
                f"{len(piece.raw):,} bytes; up to {EXPLAINED_BYTES} are explained",
            ]
            return
        case PreToken(kind="whole"):
            yield [name, "", "a token as a whole, without a merge; its bytes would be merged so:"]
            name = ""
    for merge in piece.merges or ():
        left, right, joined = (visible(tokens[i]) for i in (merge.left, merge.right, merge.joined))
        yield [name, f"{merge.rank:>7,}", f"{left} + {right} = {joined}"]
        name = ""


def visible(token: bytes) -> str:
    """`readable`, with a sign for each blank."""
    return readable(token).replace(" ", "␣")


# The page

TOKENS_ON_PAGE = 2000
TREES_OPEN, TREES_ON_PAGE = 24, 200
"""Pieces whose trees are drawn, and how many of them are not folded away."""
DRAWN_BYTES = 64
"""The longest piece that is drawn."""
COLOURS = 4
"""Of tokens, in turn; style.css has as many."""
LEAF, EDGE = 34, 4
LEAF_HEIGHT, BOX_HEIGHT, GAP = 24, 38, 18
"""Of a tree, in pixels: the width of a byte, the margin around all; the heights of boxes, and between rows."""


def uses_in(run: Path, vocab_size: int) -> npt.NDArray[np.int64] | None:
    """How often each id stands in the shards of a run; None if it has none, or they are of another tokenizer.

    Raises:
        DamagedError: shards that are damaged.
    """
    shards, tokenizer = run / "shards", run / "tokenizer"
    if not is_made(shards) or not is_made(tokenizer):
        return None
    if read_manifest(shards).inputs.get("tokenizer") != read_manifest(tokenizer).digest:
        return None
    uses = np.zeros(vocab_size, np.int64)
    for split in SPLITS:
        ids = open_split(shards, split, vocab_size).ids[:-1]  # the last only closes the stream
        for first in range(0, len(ids), IDS_AT_ONCE):
            uses += np.bincount(ids[first : first + IDS_AT_ONCE], minlength=vocab_size)
    return uses


def write_page(explained: Explained, target: Path, uses: npt.NDArray[np.int64] | None = None) -> None:
    """Write the text with its tokens, the tree of merges of each piece and a table as one HTML file.

    Args:
        uses: how often each id stands in the shards, if that is known.

    Raises:
        SettingsError: when `target` is a folder.
    """
    shown = _as_far_as_shown(explained)
    parts = {
        "The text": _text(explained, shown, uses),
        "How each piece was made": _trees(explained, shown),
        "Its tokens": _table(explained, shown, uses),
    }
    begin = readable(b" ".join(b"".join(piece.raw for piece in shown).split()))
    title = f"“{begin[:60]}{'…' if len(begin) > 60 else ''}”"
    known = explained.tokenizer
    body = [
        f"<header><h1>{text(title)}</h1>"
        + sentence(
            f"**{explained.summary}**, as {explained.name} cuts it: a tokenizer of {known.vocab_size:,} ids that cuts "
            f"text into pieces by the pattern {known.pattern}."
        )
        + "</header>",
        contents(parts),
        *(section(name, *inside) for name, inside in parts.items()),
    ]
    write(target, f"{title} in tokens", "\n".join(body))


def _as_far_as_shown(explained: Explained) -> list[PreToken]:
    """Whole pieces only, of at most so many tokens, but at least the first."""
    shown, n_tokens = list(explained.pieces[:1]), 0
    for piece in explained.pieces:
        n_tokens += len(piece.ids)
        if n_tokens > TOKENS_ON_PAGE:
            break
        shown.append(piece)
    return shown[1:] or shown


def _text(explained: Explained, shown: Sequence[PreToken], uses: npt.NDArray[np.int64] | None) -> list[str]:
    if not shown:
        return [sentence("The text is empty.")]
    number, drawn = 0, []
    here = Counter(explained.ids)
    for piece in shown:
        tokens = []
        for i in piece.ids[:TOKENS_ON_PAGE]:
            tokens.append(_token(explained, i, number, here[i], uses))
            number += 1
        line_ends = "<br>" * piece.raw.count(b"\n")
        drawn.append(f'<span class="piece">{"".join(tokens)}</span>{line_ends}')
    parts = [
        sentence(
            "A box is a token. Boxes that touch are one piece, which no merge crosses; the colours only take turns. "
            "Pointing at a token, or reaching it with the tab key, tells its id, its bytes and how often it is used; "
            "it leads to its row in the table below. Control characters, and bytes that are not a whole character, "
            "stand as escapes, such as \\n and \\xe2. Tokens go from left to right in every script."
        ),
        f'<p class="tokens" dir="ltr">{"".join(drawn)}</p>',
    ]
    if number < len(explained.ids):
        parts.append(sentence(f"These are the first **{number:,}** tokens of {len(explained.ids):,}."))
    return parts


def _token(explained: Explained, i: int, number: int, here: int, uses: npt.NDArray[np.int64] | None) -> str:
    token = explained.tokens[i]
    told = [f"id {i:,}", f"bytes {token.hex(' ')}", f"{_times(here)} in this text"]
    if uses is not None:
        told.append(f"{_times(int(uses[i]))} in the shards")
    shown = visible(token) if not token.strip() else readable(token)
    return (
        f'<a class="token t{number % COLOURS}" href="#token-{i}">{text(shown)}'
        f'<span class="tip" role="tooltip"><b>{text(visible(token))}</b> {text(", ".join(told))}</span></a>'
    )


def _times(number: int) -> str:
    return plural(number, "time")


def _table(explained: Explained, shown: Sequence[PreToken], uses: npt.NDArray[np.int64] | None) -> list[str]:
    if not shown:
        return [sentence("It has none.")]
    here = Counter(explained.ids)
    ids = list(dict.fromkeys(i for piece in shown for i in piece.ids[:TOKENS_ON_PAGE]))
    known = uses is not None
    rows = [
        [visible(explained.tokens[i]), f"{i:,}", explained.tokens[i].hex(" "), f"{here[i]:,}"]
        + ([f"{int(uses[i]):,}"] if uses is not None else [])
        for i in ids
    ]
    return [
        sentence(
            f"**{plural(len(ids), 'different token')}**, in the order of the text; ␣ is a blank. Ids below 256 are "
            "single bytes where the vocabulary was learned here; a higher id was learned later."
        ),
        table(
            ["token", "id", "bytes", "in this text", *(["in the shards"] if known else [])],
            rows,
            [f"token-{i}" for i in ids],
        ),
    ]


def _trees(explained: Explained, shown: Sequence[PreToken]) -> list[str]:
    distinct = list({(piece.raw, piece.kind): piece for piece in shown}.values())
    made = [piece for piece in distinct if piece.merges and len(piece.raw) <= DRAWN_BYTES]
    drawn = [_tree(explained, piece) for piece in made[:TREES_ON_PAGE]]
    parts = []
    if drawn:
        parts += [
            sentence(
                "A piece begins as bytes, in the top row: letters, ␣ for a blank, two hexadecimal digits for what is "
                "no letter. Again and again two neighbours are joined, always the pair that was learned first; the "
                "number under a token is the rank of its merge, 0 being the first that was learned. What is left are "
                "the tokens, in colour in the bottom row. A wide tree is scrolled sideways."
            ),
            f'<div class="trees">{"".join(drawn[:TREES_OPEN])}</div>',
        ]
    if len(drawn) > TREES_OPEN:
        more = plural(len(drawn) - TREES_OPEN, "more piece")
        folded = f'<div class="trees">{"".join(drawn[TREES_OPEN:])}</div>'
        parts.append(f"<details><summary>{more}</summary>{folded}</details>")
    told = {
        "more": len(made) - len(drawn),
        f"of more than {DRAWN_BYTES} bytes, too wide to be drawn": sum(
            len(piece.raw) > DRAWN_BYTES for piece in distinct if piece.kind != "special"
        ),
        "of several bytes that no merge joins": sum(
            piece.merges == () and len(piece.raw) > 1 for piece in distinct if piece.kind == "merged"
        ),
    }
    left_out = ", ".join(f"{plural(number, 'piece')} {what}" for what, number in told.items() if number)
    if left_out:
        parts.append(sentence(f"Not drawn: {left_out}."))
    if explained.is_of_a_library and not parts:
        return [sentence("How this text was cut is decided by the tokenizer's own library, and not known here.")]
    return parts or [sentence("No piece of this text was merged from its bytes.")]


def _tree(explained: Explained, piece: PreToken) -> str:
    tokens, merges = explained.tokens, piece.merges or ()
    ids = ", ".join(f"{i:,}" for i in piece.ids)
    steps = ", ".join(f"{visible(tokens[m.left])} + {visible(tokens[m.right])} ({m.rank:,})" for m in merges)
    if piece.kind == "whole":
        told = f"is a token as a whole, {ids}, taken without a merge. Its bytes would be merged so: {steps}."
    else:
        told = f"is {plural(len(piece.ids), 'token')}: {ids}. Merges in their order, with their ranks: {steps}."
    name = text(visible(piece.raw))
    return (
        f'<figure class="tree"><div class="wide">{_drawing(explained, piece)}</div>'
        f"<figcaption><b>{name}</b> {text(told)}</figcaption></figure>"
    )


@dataclass
class Node:
    """A token on the way: over which bytes of the piece it stands, in which row, and what it was joined from."""

    begin: int
    end: int
    row: int
    label: str
    rank: str = ""
    parts: tuple["Node", ...] = ()

    @property
    def middle(self) -> float:
        return EDGE + (self.begin + self.end) / 2 * LEAF

    @property
    def top(self) -> int:
        return EDGE + (LEAF_HEIGHT + GAP + (self.row - 1) * (BOX_HEIGHT + GAP) if self.row else 0)

    @property
    def bottom(self) -> int:
        return self.top + (BOX_HEIGHT if self.row else LEAF_HEIGHT)


def _drawing(explained: Explained, piece: PreToken) -> str:
    """Bytes in the top row, what is joined in the row below its parts, the last tokens all in the bottom row."""
    standing = {i: Node(i, i + 1, 0, _letter(byte)) for i, byte in enumerate(piece.raw)}
    nodes = list(standing.values())
    for merge in piece.merges or ():
        left = standing[merge.position]
        right = standing.pop(left.end)
        label, row = visible(explained.tokens[merge.joined]), 1 + max(left.row, right.row)
        joined = Node(left.begin, right.end, row, label, f"{merge.rank:,}", (left, right))
        standing[left.begin] = joined
        nodes.append(joined)
    bottom = max(node.row for node in nodes)
    tokens = []
    for node in standing.values():
        if node.row:
            node.row = bottom
        else:  # a byte that no merge took
            node = Node(node.begin, node.end, bottom, node.label, "", (node,))
            nodes.append(node)
        tokens.append(node)
    colour = {id(node): f"t{number % COLOURS}" for number, node in enumerate(tokens)}
    width, height = 2 * EDGE + len(piece.raw) * LEAF, tokens[0].bottom + EDGE
    drawn = "".join(_branches(node) for node in nodes) + "".join(_box(node, colour.get(id(node), "")) for node in nodes)
    label = text(f"tree of the merges of {visible(piece.raw)}")
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{label}">'
        f"{drawn}</svg>"
    )


def _branches(node: Node) -> str:
    """Down from each part, then along above the box: in no other token's place."""
    along = node.top - GAP // 2
    return "".join(
        f'<path class="grid" d="M{part.middle:g} {part.bottom}V{along}H{node.middle:g}V{node.top}"/>'
        for part in node.parts
    )


def _box(node: Node, colour: str) -> str:
    """As wide as its words need, which is never more than its bytes have."""
    width = min((node.end - node.begin) * LEAF - 4, max(LEAF - 4, 9 * len(node.label) + 10, 8 * len(node.rank) + 10))
    box = (
        f'<rect class="{colour or "grid"}" x="{node.middle - width / 2:g}" y="{node.top}" width="{width}" '
        f'height="{node.bottom - node.top}" rx="4"/>'
    )
    first = node.top + (16 if node.rank or not node.row else 24)
    words = f'<text class="middle name" x="{node.middle:g}" y="{first}">{text(node.label)}</text>'
    if node.rank:
        words += f'<text class="middle" x="{node.middle:g}" y="{node.top + 31}">{node.rank}</text>'
    return box + words


def _letter(byte: int) -> str:
    """A byte as its letter; ␣ for a blank, two hexadecimal digits for what is no letter."""
    return "␣" if byte == 0x20 else chr(byte) if chr(byte).isascii() and chr(byte).isprintable() else f"{byte:02x}"
