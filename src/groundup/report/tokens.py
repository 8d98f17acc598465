"""How a tokenizer cuts a text: the pieces, their ids, and the merges that made them. In rows, and for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from groundup.tokenizer.bpe import EXPLAINED_BYTES, Piece
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.vocabulary import readable, to_characters

TOKENS_SHOWN, ROWS_SHOWN = 400, 60
"""In the terminal: tokens of the text, and rows of each table."""


@dataclass(frozen=True)
class Explained:
    """A text, and how its ids came about."""

    name: str
    """What the tokenizer is called."""
    tokenizer: Tokenizer
    pieces: Sequence[Piece]

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
    def distinct(self) -> list[Piece]:
        """Each piece once, in the order of the text."""
        return list({(piece.raw, piece.kind): piece for piece in self.pieces}.values())

    @property
    def summary(self) -> str:
        tokens, pieces = _count(len(self.ids), "token"), _count(len(self.pieces), "piece")
        share = f", {self.n_bytes / len(self.ids):.2f} bytes a token" if self.ids else ""
        return f"{tokens} for {_count(self.n_bytes, 'byte')}{share}, in {pieces}"

    def spelled(self, i: int) -> str:
        """A token as its file spells it."""
        outside = {*self.tokenizer.special.values(), *self.tokenizer.added.values()}
        return self.tokens[i].decode() if i in outside else to_characters(self.tokens[i])


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
        tokens = [{"id": i, "token": explained.spelled(i), **_both(explained.tokens[i])} for i in piece.ids]
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


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# In the terminal


def shown_pieces(explained: Explained) -> list[list[str]]:
    """The tokens of each piece, readable, as far as they are shown; a line ends where the text's does."""
    shown: list[list[str]] = []
    left = TOKENS_SHOWN
    for piece in explained.pieces:
        if left <= 0:
            break
        tokens = (explained.tokens[i].split(b"\n") for i in piece.ids[:left])
        shown.append(["\\n\n".join(map(readable, lines)) for lines in tokens])
        left -= len(piece.ids)
    return shown


def token_rows(explained: Explained) -> list[list[str]]:
    """A row a token, below a header; the last tells how many are left out."""
    rows = [
        [
            f"{place:>5,}",
            f"{i:>7,}",
            explained.spelled(i),
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
            rows.append(["…", "", f"and of {_count(len(distinct) - number, 'more piece')}"])
            break
        rows += _merges(explained, piece)
    return [["piece", "   rank", "merge"], *rows]


def _merges(explained: Explained, piece: Piece) -> Iterator[list[str]]:
    name, tokens = visible(piece.raw), explained.tokens
    match piece:
        case Piece(kind="special" | "added"):
            yield [name, "", "a special token" if piece.kind == "special" else "an added token"]
            return
        case Piece(merges=None):
            yield [
                visible(piece.raw[:24]) + "…",
                "",
                f"{len(piece.raw):,} bytes; up to {EXPLAINED_BYTES} are explained",
            ]
            return
        case Piece(kind="whole"):
            yield [name, "", "a token as a whole, without a merge; its bytes would be merged so:"]
            name = ""
    for merge in piece.merges or ():
        left, right, joined = (visible(tokens[i]) for i in (merge.left, merge.right, merge.joined))
        yield [name, f"{merge.rank:>7,}", f"{left} + {right} = {joined}"]
        name = ""


def visible(token: bytes) -> str:
    """`readable`, with a sign for each blank."""
    return readable(token).replace(" ", "␣")
