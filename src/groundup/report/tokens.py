"""How a tokenizer cuts a text: its pre-tokens, their ids, and the merges that made them.

As values for programs, as rows for the terminal, and as a page with the tree of merges of each pre-token.
"""

import itertools
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
from groundup.pages.render import write_page as write_template
from groundup.shards import count_ids, open_split
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
    """The tokenizer's name."""
    tokenizer: Tokenizer
    pre_tokens: Sequence[PreToken]

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of each id of the vocabulary."""
        return self.tokenizer.tokens

    @cached_property
    def ids(self) -> list[int]:
        return [i for pre_token in self.pre_tokens for i in pre_token.ids]

    @cached_property
    def n_bytes(self) -> int:
        return sum(len(pre_token.raw) for pre_token in self.pre_tokens)

    @property
    def is_of_a_library(self) -> bool:
        """Whether another library cut the text, so that the merges are not known here."""
        return any(pre_token.kind == "library" for pre_token in self.pre_tokens)

    @property
    def summary(self) -> str:
        share = f", {self.n_bytes / len(self.ids):.2f} bytes a token" if self.ids else ""
        return (
            f"{plural(len(self.ids), 'token')} for {plural(self.n_bytes, 'byte')}{share}, in "
            f"{plural(len(self.pre_tokens), 'pre-token')}"
        )


def explain(name: str, tokenizer: Tokenizer, text: bytes, *, special: bool = False) -> Explained:
    """
    Args:
        special: recognise the texts of special tokens.
    """
    allowed = frozenset(tokenizer.special) if special else frozenset()
    return Explained(name, tokenizer, list(tokenizer.explain(text, allowed)))


def table(explained: Explained) -> dict[str, Any]:
    """All of it as JSON values; bytes are hexadecimal, and the text of what is not UTF-8 is None."""
    pre_tokens, begin = [], 0
    for pre_token in explained.pre_tokens:
        pre_tokens.append(
            {
                "begin": begin,
                "kind": pre_token.kind,
                **_text_and_bytes(pre_token.raw),
                "tokens": [
                    {"id": i, "token": explained.tokenizer.spelled(i), **_text_and_bytes(explained.tokens[i])}
                    for i in pre_token.ids
                ],
                "merges": None if pre_token.merges is None else [vars(merge) for merge in pre_token.merges],
            }
        )
        begin += len(pre_token.raw)
    return {
        "tokenizer": explained.name,
        "vocab_size": explained.tokenizer.vocab_size,
        "split": explained.tokenizer.pattern,
        "bytes": explained.n_bytes,
        "tokens": len(explained.ids),
        "bytes_per_token": explained.n_bytes / len(explained.ids) if explained.ids else None,
        "ids": explained.ids,
        "pieces": pre_tokens,
    }


def _text_and_bytes(raw: bytes) -> dict[str, str | None]:
    try:
        return {"text": raw.decode(), "bytes": raw.hex()}
    except UnicodeDecodeError:
        return {"text": None, "bytes": raw.hex()}


def _distinct(pre_tokens: Sequence[PreToken]) -> list[PreToken]:
    """Each pre-token once, in the order of the text."""
    return list({(pre_token.raw, pre_token.kind): pre_token for pre_token in pre_tokens}.values())


def visible(token: bytes) -> str:
    """`readable`, with a sign for each space."""
    return readable(token).replace(" ", "␣")


# In the terminal


def token_lines(explained: Explained) -> list[list[str]]:
    """The readable tokens of each pre-token, `TOKENS_SHOWN` at most; a line ends where the text's does."""
    lines: list[list[str]] = []
    left = TOKENS_SHOWN
    for pre_token in explained.pre_tokens:
        if left <= 0:
            break
        ids = pre_token.ids[:left]
        tokens = [pre_token.raw] if len(pre_token.ids) == 1 else [explained.tokens[i] for i in ids]
        lines.append(["\\n\n".join(map(readable, token.split(b"\n"))) for token in tokens])
        left -= len(pre_token.ids)
    return lines


def token_rows(explained: Explained) -> list[list[str]]:
    """A row a token, below a header."""

    def row(position: int, i: int) -> list[str]:
        token = explained.tokens[i]
        return [f"{position:>8,}", f"{i:>7,}", explained.tokenizer.spelled(i), repr(token)[2:-1], visible(token)]

    return [
        ["position", "     id", "token", "bytes", "text"],
        *_first(itertools.starmap(row, enumerate(explained.ids))),
    ]


def merge_rows(explained: Explained) -> list[list[str]]:
    """The merges of each distinct pre-token, a row each, below a header."""
    return [["pre-token", "   rank", "merge"], *_first(_merges(explained))]


def _first(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """The first `ROWS_SHOWN`, and one that says so if there are more."""
    yield from itertools.islice(rows, ROWS_SHOWN)
    for row in itertools.islice(rows, 1):
        yield ["…", *[""] * (len(row) - 2), "--json has all"]


def _merges(explained: Explained) -> Iterator[list[str]]:
    tokens = explained.tokens
    for pre_token in _distinct(explained.pre_tokens):
        name = visible(pre_token.raw)
        if pre_token.merges is None and pre_token.kind in ("merged", "whole"):
            length = f"{len(pre_token.raw):,} bytes; up to {EXPLAINED_BYTES} are explained"
            yield [visible(pre_token.raw[:24]) + "…", "", length]
        elif pre_token.kind in NOTES:
            yield [name, "", NOTES[pre_token.kind]]
            name = ""
        for merge in pre_token.merges or ():
            left, right, joined = (visible(tokens[i]) for i in (merge.left, merge.right, merge.joined))
            yield [name, f"{merge.rank:>7,}", f"{left} + {right} = {joined}"]
            name = ""


NOTES = {
    "special": "a special token",
    "added": "an added token",
    "whole": "a token as a whole, without a merge; its bytes would be merged so:",
}
"""What is said of pre-tokens that are not made by merges."""


# The page

TOKENS_ON_PAGE = 2000
TREES_OPEN, TREES_ON_PAGE = 24, 200
"""Pre-tokens whose trees are drawn, and how many of them are not folded away."""
DRAWN_BYTES = 64
"""The longest pre-token that is drawn."""
Uses = npt.NDArray[np.int64]
"""How often each id is in the shards."""


def uses_in(run: Path, vocab_size: int) -> Uses | None:
    """How often each id is in the shards of a run; None if it has none, or they are of another tokenizer.

    Raises:
        DamagedError: shards that are damaged.
    """
    shards, tokenizer = run / "shards", run / "tokenizer"
    if not is_made(shards) or not is_made(tokenizer):
        return None
    if read_manifest(shards).inputs.get("tokenizer") != read_manifest(tokenizer).digest:
        return None
    splits = (open_split(shards, split, vocab_size).ids[:-1] for split in SPLITS)  # the last only closes the stream
    return count_ids(splits, vocab_size)


def write_page(explained: Explained, target: Path, uses: Uses | None = None) -> None:
    """Write the text with its tokens, the tree of merges of each pre-token and a table as one HTML file.

    Args:
        uses: how often each id is in the shards, if that is known.

    Raises:
        SettingsError: when `target` is a folder.
    """
    n_tokens = np.cumsum([len(pre_token.ids) for pre_token in explained.pre_tokens])
    fitting = explained.pre_tokens[: max(1, int((n_tokens <= TOKENS_ON_PAGE).sum()))]
    pieces = [(pre_token.ids[:TOKENS_ON_PAGE], pre_token.raw.count(b"\n")) for pre_token in fitting]
    distinct = _distinct(fitting)
    merged = [pre_token for pre_token in distinct if pre_token.merges and len(pre_token.raw) <= DRAWN_BYTES]
    trees = [(pre_token, _tree(explained, pre_token)) for pre_token in merged[:TREES_ON_PAGE]]
    begin = readable(b" ".join(b"".join(pre_token.raw for pre_token in fitting).split()))
    write_template(
        target,
        "tokens.html",
        title=f"“{begin[:60]}{'…' if len(begin) > 60 else ''}”",
        explained=explained,
        readable=readable,
        visible=visible,
        pieces=pieces,
        ids=dict.fromkeys(i for ids, _ in pieces for i in ids),
        uses={"in this text": Counter(explained.ids)} | ({} if uses is None else {"in the shards": uses}),
        trees=trees[:TREES_OPEN],
        folded_trees=trees[TREES_OPEN:],
        not_drawn={
            "more": len(merged) - len(trees),
            f"of more than {DRAWN_BYTES} bytes, too wide to be drawn": sum(
                len(pre_token.raw) > DRAWN_BYTES and pre_token.kind != "special" for pre_token in distinct
            ),
            "of several bytes that no merge joins": sum(
                pre_token.merges == () and pre_token.kind == "merged" and len(pre_token.raw) > 1
                for pre_token in distinct
            ),
        },
    )


@dataclass(frozen=True)
class Node:
    """A byte, or a token joined from two others by the merge of a rank."""

    label: str
    rank: int | None = None
    parts: tuple["Node", ...] = ()


def _tree(explained: Explained, pre_token: PreToken) -> list[Node]:
    """The tokens that the merges of a pre-token make of its bytes: each byte is its character, ␣ for a space, or two
    hexadecimal digits where it cannot be printed."""
    letters = ("␣" if byte == 0x20 else chr(byte) if 0x20 < byte < 0x7F else f"{byte:02x}" for byte in pre_token.raw)
    nodes = {i: Node(letter) for i, letter in enumerate(letters)}  # by where they begin
    for merge in pre_token.merges or ():
        right = nodes.pop(merge.position + len(explained.tokens[merge.left]))
        joined = visible(explained.tokens[merge.joined])
        nodes[merge.position] = Node(joined, merge.rank, (nodes[merge.position], right))
    return list(nodes.values())
