"""Byte-level BPE tokenizer: text or bytes ↔ ids, with nothing lost.

Ids 0 to 255 are the bytes in the order of GPT-2's table, then one id a merge, then the special tokens. The file
format is Hugging Face's `tokenizer.json`.
"""

import contextlib
import functools
import hashlib
import itertools
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import regex

from groundup.errors import SettingsError, UnsupportedError
from groundup.files import Progress, canonical_json, no_progress
from groundup.tokenizer import formats, split
from groundup.tokenizer.bpe import (
    EXPLAINED_BYTES,
    Pair,
    Piece,
    count_pieces,
    encode_piece,
    learn_merges,
    merges_of,
)
from groundup.tokenizer.declared import Roles, read_declared
from groundup.tokenizer.fast.columns import column_of, columns_of, text_of
from groundup.tokenizer.settings import MEMORY_BYTES, MULTIPLE, N_BYTES, N_SPECIAL, Learned, WholeWords
from groundup.tokenizer.vocabulary import (
    BYTE_CHARACTERS,
    NAMED_SPECIAL,
    byte_ids,
    to_bytes,
    to_characters,
    to_utf8,
    whole_characters,
    without_first_blank,
)

if TYPE_CHECKING:
    from groundup.tokenizer.fast.encode import Encoder

Places = npt.NDArray[np.int64]
Allowed = Collection[str] | Literal["all"]
"""Special tokens that may be recognised in a text."""
CACHED_PIECES = 1 << 18
WORTH_LOADING = 5_000_000
"""Characters from which on the compiled loops pay, although loading them takes a second, and compiling them the first
time many."""
LONG_PIECE = 1 << 16
"""Bytes of a single piece from which on they do."""
WORTH_CALLING = 256
"""Characters of one text from which on calling the compiled loops pays."""


class Tokenizer:
    """A vocabulary and the two directions through it.

    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> tokenizer.vocab_size, tokenizer.tokens[257], tokenizer.merges[1], tokenizer.is_plain
    (320, b'low', (b'lo', b'w'), True)
    >>> tokenizer.framed(tokenizer.encode("low")), tokenizer.opener, tokenizer.closer
    ([263, 257], 263, 263)
    >>> tokenizer.decode([257, 68]), tokenizer.decode_bytes([257, 68]), tokenizer.decode_batch([[257], [68]])
    ('lowe', b'lowe', ['low', 'e'])
    >>> tokenizer.spelled(258), tokenizer.digest[:8], tokenizer.to_hugging_face()["model"]["type"]
    ('Ġlow', '51b4d08e', 'BPE')
    """

    begins_with_blank: bool = False
    """Whether a text's first token has a blank of its own before it, which decoding takes away again."""
    compiled: bool | None = None
    """Whether text is encoded by the compiled loops: always, never, or, if None, once there is enough of it."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[Pair],
        special: Mapping[str, int],
        pattern: str,
        *,
        ranks: Sequence[int] | None = None,
        whole_pieces: bool = False,
        added: Mapping[str, int] | None = None,
        normalizer: str | None = None,
        normalized: Iterable[str] = (),
        roles: Roles | None = None,
    ) -> None:
        """
        Args:
            tokens: bytes of each id; for a special token, its text.
            merges: pairs of ids in the order they were learned; the joined bytes are a token.
            special: text of each special token → its id.
            pattern: name of the split pattern, such as `gpt2`, or a regular expression.
            ranks: of each merge; the lowest goes first, of equals the leftmost. Their order in `merges`, if not given.
            whole_pieces: a piece that is a token is that token, whatever the merges would make of it (tiktoken,
                Hugging Face's `ignore_merges`).
            added: text of each token that is recognised wherever it stands, though it is not special → its id.
            normalizer: Unicode form that text is brought to first: NFC, NFD, NFKC or NFKD. Decoding then gives back
                the text in that form.
            normalized: the special and added tokens that are looked for after the others, in the text so brought.
            roles: which tokens open a text, close it and end an answer; as the names of the special ones tell, if not
                given.
        """
        self.special = dict(special)
        self.roles = roles or Roles.of(self.special)
        self.added = dict(added or {})
        self.pattern = pattern
        self.normalizer = normalizer
        self.normalized = frozenset(normalized)
        self.whole_pieces = whole_pieces
        self._tokens = list(tokens)
        self._pairs = list(merges)
        outside = {*special.values(), *self.added.values()}
        self._ids = {token: i for i, token in enumerate(tokens) if i not in outside}
        if added:  # some of them may be made by merges too
            made = {tokens[left] + tokens[right] for left, right in merges} | {bytes([byte]) for byte in range(N_BYTES)}
            for i in self.added.values():
                if tokens[i] in made:
                    self._ids.setdefault(tokens[i], i)
        self._outside = self._tables_of_outside()
        try:
            self._byte_ids = [self._ids[bytes([byte])] for byte in range(N_BYTES)]
            self._merges = {
                (left, right): (rank, self._ids[tokens[left] + tokens[right]])
                for rank, (left, right) in zip(range(len(merges)) if ranks is None else ranks, merges, strict=True)
            }
        except KeyError as error:
            (missing,) = error.args
            needs = "every byte should be one" if len(missing) == 1 else "a merge makes it"
            raise SettingsError(f"{missing!r} is none of the {len(tokens):,} tokens, though {needs}") from None
        except IndexError:
            raise SettingsError(
                f"a merge joins an id that is not below {len(tokens):,}, the number of tokens"
            ) from None
        self._cache: dict[str, list[int]] = {}
        self._characters = 0

    @property
    def vocab_size(self) -> int:
        """All ids, special ones included."""
        return len(self._tokens)

    @property
    def is_plain(self) -> bool:
        """Whether text goes to splitting as it is: nothing is recognised in it or changed before."""
        return not (self.added or self.normalizer)

    @property
    def opener(self) -> int:
        """The id that opens a text.

        Raises:
            SettingsError: there is none.
        """
        return self._role(self.roles.opener)

    @property
    def closer(self) -> int:
        """The id that closes a text; where it is also the opener, the opener of the next text does.

        Raises:
            SettingsError: there is none.
        """
        return self._role(self.roles.closer)

    def _role(self, i: int | None) -> int:
        if i is None:
            raise SettingsError(
                "this tokenizer has no token that opens a text: neither its files nor the names of its special tokens "
                f"({', '.join(self.special) or 'it has none'}) say which. Name one in tokenizer_config.json beside it: "
                '{"bos_token": "…", "eos_token": "…"}'
            )
        return i

    def framed(self, ids: Sequence[int]) -> list[int]:
        """The ids of a text behind its opener and, where that is another token, before its closer."""
        closed = [] if self.closer == self.opener else [self.closer]
        return [self.opener, *ids, *closed]

    def refuse_without_row(self, ids: Iterable[int], rows: int, where: str = "the text") -> None:
        """Special tokens beyond a model's rows do no harm until one is read.

        Args:
            ids: those that will be read.
            rows: that the model has.
            where: the ids stand, for the message.

        Raises:
            SettingsError: naming the tokens among `ids` that a model with so many rows has no row for.

        >>> tokenizer = Tokenizer.learn(["low"], vocab_size=260, special=["<|sep|>"])
        >>> tokenizer.refuse_without_row(tokenizer.encode("low <|sep|>", "all"), rows=258)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        groundup.errors.SettingsError: the text holds '<|sep|>' (id 258), for which this model has no row: ...
        """
        if beyond := sorted({i for i in ids if i >= rows}):
            named = ", ".join(f"{self._tokens[i].decode('utf-8', 'replace')!r} (id {i:,})" for i in beyond[:3])
            raise SettingsError(
                f"{where} holds {named}, for which this model has no row: it has {rows:,}. Leave it out, or take a "
                "model with more rows"
            )

    @property
    def tokens(self) -> list[bytes]:
        """The bytes of each id."""
        return list(self._tokens)

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The two sides of each merge, in the order they were learned."""
        return [(self._tokens[left], self._tokens[right]) for left, right in self._pairs]

    @classmethod
    def learn(
        cls,
        texts: str | Iterable[str],
        *,
        vocab_size: int,
        special: Sequence[str] | None = None,
        pattern: str = "gpt2",
        memory_bytes: int = MEMORY_BYTES,
        progress: Progress = no_progress,
    ) -> Self:
        """Learn a vocabulary of `vocab_size` ids: 256 bytes, merges, special tokens.

        Args:
            texts: documents; a string is one.
            special: the special tokens, whose ids are the last. Where the texts hold them, they are learned neither
                whole nor in pieces. Any size will do then, and it is not reached where the texts run out of pairs. If
                not given: 16 of ours, a size that is a multiple of 64, filled with reserved tokens to the next where
                the texts run out of pairs.
            pattern: how text is split into pieces, which no token crosses: a name such as `gpt2`, or a regular
                expression.
            memory_bytes: that the process may take while learning.
            progress: is told how far it is.

        Raises:
            SettingsError: for a size that cannot be, naming the nearest that can, or an unknown pattern.

        >>> tokenizer = Tokenizer.learn("low lower<|sep|>lowest", vocab_size=260, special=["<|sep|>"])
        >>> tokenizer.vocab_size, tokenizer.special, tokenizer.merges[0]
        (260, {'<|sep|>': 259}, (b'l', b'o'))
        """
        documents = _documents(texts)
        if special is None:
            return cls.learn_columns(
                columns_of(documents), vocab_size=vocab_size, pattern=pattern, memory_bytes=memory_bytes,
                progress=progress,
            )[0]  # fmt: skip
        if isinstance(special, str) or not all(isinstance(text, str) for text in special):
            raise SettingsError(f"special is {special!r}; it should be a list of texts, such as ['<|sep|>']")
        wanted = vocab_size - N_BYTES - len(special)
        if wanted < 0 or len(set(special)) < len(special) or "" in special:
            raise SettingsError(
                f"vocab_size is {vocab_size}, special is {list(special)}: it should be at least {N_BYTES} bytes and "
                "each special token once, none of them empty"
            )
        named = {text: N_BYTES + number for number, text in enumerate(special)}
        between = (part for text in documents for part, i in cut_at(text, named) if i is None)
        merges, _ = cls._learn_merges(columns_of(between), wanted, pattern, memory_bytes, progress)
        learned = cls.of_merges(merges, pattern, special)
        written = {to_characters(token) for token in learned.tokens[: -len(special)]} if special else set()
        if taken := [text for text in special if text in written]:
            raise SettingsError(
                f"{taken[0]!r} cannot be a special token: a token of the vocabulary is written so in tokenizer.json. "
                "Write it otherwise, such as <|…|>"
            )
        return learned

    @classmethod
    def learn_columns(
        cls,
        columns: Iterable[pa.Array],
        *,
        vocab_size: int,
        pattern: str = "gpt2",
        memory_bytes: int = MEMORY_BYTES,
        progress: Progress = no_progress,
        n_documents: int = 0,
        directory: Path | None = None,
        of: str = "",
    ) -> tuple[Self, int]:
        """`learn` from columns of documents, Arrow `large_string` without nulls; `vocab_size`, `pattern`,
        `memory_bytes` and `progress` as there.

        Args:
            n_documents: how many there are, for the progress.
            directory: where what was counted is kept, so that the same call goes on after an interruption.
            of: what the documents are; what was counted of others is not used.

        Returns:
            The tokenizer, and how often a piece had to occur to be learned from: more than once where memory did not
            suffice for all.

        >>> column = pa.array(["low lower", "lowest"], pa.large_string())
        >>> tokenizer, least = Tokenizer.learn_columns([column], vocab_size=320)
        >>> tokenizer.merges[0], least
        ((b'l', b'o'), 1)
        """
        Learned.from_table({"vocab_size": vocab_size, "split": pattern, "memory_bytes": memory_bytes}, "tokenizer")
        merges, least = cls._learn_merges(
            columns, vocab_size - N_BYTES - N_SPECIAL, pattern, memory_bytes, progress, n_documents, directory, of
        )
        return cls.of_merges(merges, pattern), least

    @staticmethod
    def _learn_merges(
        columns: Iterable[pa.Array],
        wanted: int,
        pattern: str,
        memory_bytes: int,
        progress: Progress,
        n_documents: int = 0,
        directory: Path | None = None,
        of: str = "",
    ) -> tuple[list[Pair], int]:
        """`wanted` merges, or as many as there are; and how often a piece had to occur to be learned from."""
        rest = iter(columns)
        some: list[pa.Array] = []
        while sum(part.nbytes for part in some) <= WORTH_LOADING and (column := next(rest, None)) is not None:
            some.append(column)
        columns = itertools.chain(some, rest)
        learn_from = _compiled_learner() if sum(part.nbytes for part in some) > WORTH_LOADING else None
        if learn_from is None:
            pieces = count_pieces((text for column in columns for text in column.to_pylist()), pattern)
            return learn_merges(pieces, byte_ids(), wanted, progress), 1
        return learn_from(columns, pattern, byte_ids(), wanted, memory_bytes, progress, n_documents, directory, of)

    @classmethod
    def of_merges(cls, merges: Sequence[Pair], pattern: str, special: Sequence[str] | None = None) -> Self:
        """256 bytes, learned merges, and special tokens; ours, which fill up to a multiple of 64, if none are given.

        Args:
            merges: pairs of ids; merge i makes id 256 + i.
            pattern: as of `learn`.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> pairs = [tuple(map(tokenizer.tokens.index, pair)) for pair in tokenizer.merges]
        >>> Tokenizer.of_merges(pairs, "gpt2").digest == tokenizer.digest
        True
        """
        tokens = [bytes([byte]) for byte in BYTE_CHARACTERS]
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        named = _special_after(len(tokens))
        if special is not None:
            named = {name: len(tokens) + number for number, name in enumerate(special)}
        return cls([*tokens, *(name.encode() for name in named)], merges, named, pattern)

    @classmethod
    def of_pieces(cls, texts: str | Iterable[str], *, vocab_size: int, pattern: str = "characters") -> Self:
        """Learn a vocabulary of whole pieces: 256 bytes, the most frequent pieces, 16 special tokens; no merges.

        With the pattern `characters` its tokens are characters, with that of another, words. A piece that is no token
        becomes its bytes. Among equally frequent pieces the one whose bytes sort first goes first. If the texts run
        out of pieces, the vocabulary is filled with reserved tokens to a multiple of 64.

        Raises:
            SettingsError: for a size that cannot be, naming the nearest that can, or an unknown pattern.

        >>> tokenizer = Tokenizer.of_pieces(["né né nè"], vocab_size=320)
        >>> tokenizer.encode("nén"), tokenizer.tokens[256:258] == ["é".encode(), "è".encode()]
        ([77, 256, 77], True)
        """
        WholeWords.from_table({"vocab_size": vocab_size, "split": pattern}, "tokenizer")
        pieces = count_pieces(_documents(texts), pattern)
        longer = [piece for piece in sorted(pieces, key=lambda piece: (-pieces[piece], piece)) if len(piece) > 1]
        tokens = [bytes([byte]) for byte in BYTE_CHARACTERS] + longer[: vocab_size - N_BYTES - N_SPECIAL]
        special = _special_after(len(tokens))
        return cls([*tokens, *(name.encode() for name in special)], [], special, pattern, whole_pieces=True)

    def encode(self, text: str | bytes, allowed: Allowed = ()) -> list[int]:
        """Text or bytes → ids.

        Args:
            allowed: special tokens that may be recognised, or "all" of them; the text of any other is encoded as
                ordinary text.

        Bytes that are not UTF-8 are cut into pieces up to the first wrong byte; from the piece before it on, or from
        the blanks with which that begins, they are one piece, as in tiktoken.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> (
        ...     tokenizer.decode(tokenizer.encode("lower <|endoftext|>")),
        ...     tokenizer.encode("<|endoftext|>", {"<|endoftext|>"}),
        ... )
        ('lower <|endoftext|>', [263])
        """
        if not isinstance(text, str | bytes):
            raise SettingsError(f"the text to encode is {text!r:.60}; it should be a string or bytes")
        allowed = self._names_of(allowed)
        if self.is_plain and not allowed:
            return self._encode_bytes(text) if isinstance(text, bytes) else self._encode_ordinary(text)
        ids: list[int] = []
        for part, i in self._around_special(text, allowed):
            if i is not None:
                ids.append(i)
            else:
                ids += self._encode_bytes(part) if isinstance(part, bytes) else self._encode_ordinary(part)
        return ids

    def _around_special(self, text: str | bytes, allowed: frozenset[str]) -> Iterator[tuple[str | bytes, int | None]]:
        """The text, normalised, cut around the tokens that are recognised; each part with its id, if it is one."""
        as_text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
        refused = {i for special, i in self.special.items() if special not in allowed}
        for part, i in self._cut_at_outside(as_text, refused):
            yield (part.encode("utf-8", "surrogateescape") if isinstance(text, bytes) else part), i

    def _names_of(self, allowed: Allowed) -> frozenset[str]:
        """
        Raises:
            SettingsError: a name that is not one of a special token, or a string that is not "all".
        """
        if isinstance(allowed, str):
            if allowed == "all":
                return frozenset(self.special)
            raise SettingsError(f'allowed is {allowed!r}; it should be "all", or names such as {{"<|endoftext|>"}}')
        names = frozenset(allowed or ())
        if unknown := names - self.special.keys():
            raise SettingsError(f"not special tokens of this tokenizer: {', '.join(sorted(unknown))}")
        return names

    def _tables_of_outside(self) -> tuple[dict[str, int], dict[str, int]]:
        """Special and added tokens by their texts: those looked for in the text, and in the normalised text."""
        raw: dict[str, int] = {}
        normal: dict[str, int] = {}
        for text, i in (*self.special.items(), *self.added.items()):
            if text not in self.normalized:
                raw[text] = i
            elif text:
                normal.setdefault(_in_form(self.normalizer, text), i)
        return raw, normal

    def _cut_at_outside(self, text: str, refused: set[int]) -> Iterator[tuple[str, int | None]]:
        """Stretches of ordinary text, normalised, and between them special and added tokens with their ids."""
        raw, normal = self._outside
        for part, i in cut_at(text, raw, refused):
            if i is not None:
                yield part, i
            else:
                yield from cut_at(_in_form(self.normalizer, part), normal, refused)

    def encode_iterable(self, texts: Iterable[str], allowed: Allowed = ()) -> Iterator[int]:
        r"""The ids of the texts joined, as they come: those that `encode` gives for the whole.

        Memory is bounded by the longest stretch without a place where every split pattern cuts: behind a letter that a
        blank, a line end or an East Asian mark follows, and between lines. With a split pattern of one's own, or a
        library's tokenizer, all is read first.

        Args:
            allowed: as of `encode`.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> list(tokenizer.encode_iterable(["low", "er\n", "\nlow"])) == tokenizer.encode("lower\n\nlow")
        True
        """
        allowed = self._names_of(allowed)
        crossing = any(set(text) & {" ", "\n"} for text in (*allowed, *self.added))
        divisible = self.pattern in split.PATTERNS and not crossing
        waiting: list[str] = []
        characters = 0
        for text in texts:
            _refuse_no_text(text, "a text to encode")
            waiting.append(text)
            characters += len(text)
            if divisible and characters > CHARACTERS_AT_ONCE:
                whole = "".join(waiting)
                end = next((match.end() for match in _CUT_BY_ALL.finditer(whole)), 0)
                yield from self.encode(whole[:end], allowed)
                waiting = [whole[end:]]
                characters = len(waiting[0]) if end else -len(whole)  # twice as much before the next look
        yield from self.encode("".join(waiting), allowed)

    def encode_batch(self, texts: Sequence[str | bytes], allowed: Allowed = ()) -> list[list[int]]:
        """`encode` for each of `texts`, with the same `allowed`, on all cores when there is much of it.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> tokenizer.encode_batch(["low", b"lowest"])
        [[257], [257, 68, 260]]
        """
        allowed = self._names_of(allowed)
        strings = [text for text in texts if isinstance(text, str)]
        if allowed or len(strings) < len(texts):
            return [self.encode(text, allowed) for text in texts]
        ids, starts = self.encode_documents(column_of(strings))
        every = self._as_list(ids)
        return [every[first:last] for first, last in itertools.pairwise(starts.tolist())]

    def encode_documents(self, texts: pa.Array, *, framed: bool = False) -> tuple[npt.NDArray[np.int32], Places]:
        """A column of documents → their ids, on all cores, without a Python string a document.

        Args:
            texts: Arrow `large_string`, without nulls.
            framed: whether each is put between its opener and closer, as by `framed`.

        Returns:
            (N,) the ids of all, and (documents + 1,) where those of each document begin, then where the last one's end.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> ids, starts = tokenizer.encode_documents(pa.array(["low", "lowest"], pa.large_string()), framed=True)
        >>> ids.tolist(), starts.tolist()
        ([263, 257, 263, 257, 68, 260], [0, 2, 6])
        """
        if not self.is_plain or not self._worth_compiling(texts.nbytes):
            lists = [self.framed(ids) if framed else ids for ids in map(self.encode, texts.to_pylist())]
            starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
            return np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(starts[-1])), starts
        assert self._encoder is not None, "asked for above"
        text, offsets = text_of(texts)
        ids, starts = self._encoder(text, offsets, self.opener if framed else -1)
        if framed and self.closer != self.opener:
            ids = np.insert(ids, starts[1:], np.int32(self.closer))
            starts = starts + np.arange(len(starts))
        return ids, starts

    def explain(self, text: str | bytes, allowed: Allowed = ()) -> Iterator[Piece]:
        """How the ids of `encode(text, allowed)` come about, piece by piece. Plain and slow: for looking, not for
        encoding.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> [(piece.raw, piece.ids) for piece in tokenizer.explain("lowest low")]
        [(b'lowest', (257, 68, 260)), (b' low', (258,))]
        """
        explain_piece = functools.cache(self._explain_piece)  # words come again
        for part, i in self._around_special(text, self._names_of(allowed)):
            if i is not None:
                yield Piece(self._tokens[i], (i,), "added" if i in self.added.values() else "special", ())
                continue
            rest = b""
            if isinstance(part, bytes):
                ids, rest = self._up_to_wrong_byte(part)
                part = self.decode_bytes(ids).decode()
            for piece in split.pieces(part, self.pattern):
                yield explain_piece(to_utf8(piece))
            if rest:
                yield explain_piece(rest)

    def _explain_piece(self, raw: bytes) -> Piece:
        ids = [self._byte_ids[byte] for byte in raw]
        merges = tuple(merges_of(ids, self._merges)) if len(raw) <= EXPLAINED_BYTES else None
        if self.whole_pieces and len(raw) > 1 and raw in self._ids:
            return Piece(raw, (self._ids[raw],), "whole", merges)
        return Piece(raw, tuple(encode_piece(ids, self._merges)), "merged", merges)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Ids → the very bytes they were made from.

        Raises:
            ValueError: for an id outside the vocabulary.
        """
        try:
            return b"".join([self._tokens[i] for i in self._checked(ids)])
        except IndexError:
            raise ValueError(f"ids must lie in 0 to {self.vocab_size - 1}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: for an id outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        """`decode` for each list of ids in `batch`."""
        return [self.decode(ids) for ids in batch]

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids as they come, in whole characters.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> list(tokenizer.decode_stream(tokenizer.encode("é low")))
        ['é', ' low']
        """
        parts = (Tokenizer.decode_bytes(self, [i]) for i in ids)
        return whole_characters(without_first_blank(parts) if self.begins_with_blank else parts)

    def offsets(self, text: str | bytes, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """(ids, 2) where each id of `encode(text)` begins and ends: in characters of a string, in bytes of bytes.

        An id that is a part of a character spans that character.

        Raises:
            UnsupportedError: the ids are not all of this text, because the tokenizer changes text, or of another.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> tokenizer.offsets("low lower", tokenizer.encode("low lower")).tolist()
        [[0, 3], [3, 9]]
        """
        raw = text if isinstance(text, bytes) else to_utf8(text)
        if self.decode_bytes(ids) != raw:
            raise UnsupportedError("these ids do not decode to this very text: where each begins in it is not known")
        sizes = [len(self._tokens[i]) for i in ids]
        if self.begins_with_blank and sizes and self._tokens[ids[0]].startswith(b" "):
            sizes[0] -= 1
        ends = np.cumsum(sizes, dtype=np.int64)
        begins = np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)]
        if isinstance(text, str):
            character = np.cumsum((np.frombuffer(raw, np.uint8) & 0xC0) != 0x80) - 1  # that each byte belongs to
            begins, ends = character[begins], character[ends - 1] + 1
        return np.stack([begins, ends], axis=1)

    def _checked(self, ids: Iterable[int]) -> Iterable[int]:
        for i in ids:
            if i < 0:
                raise ValueError(f"id {i} is not in 0 to {self.vocab_size - 1}")
            yield i

    def warm_up(self) -> bool:
        """Load the compiled loops now, which takes seconds the first time, so that no later call waits for them.

        Returns:
            Whether they are there; without them encoding gives the same ids, many times slower.

        >>> Tokenizer.learn("low lower", vocab_size=320).warm_up()
        True
        """
        self.compiled = True
        return self._encoder is not None

    @functools.cached_property
    def _encoder(self) -> "Encoder | None":
        """The compiled loops: the same ids, many times faster once numba is there. None where it cannot be loaded."""
        try:
            from groundup.tokenizer.fast.encode import Encoder, Vocabulary

            whole_pieces = self._ids if self.whole_pieces else None
            encoder = Encoder(Vocabulary(self._byte_ids, self._merges, whole_pieces), self.pattern)
            encoder(np.frombuffer(b"a", np.uint8), np.array([0, 1]))
            return encoder
        except NOT_LOADED as error:
            _warn_not_loaded(error)
            return None

    def _as_list(self, ids: npt.NDArray[np.int32]) -> list[int]:
        found: list[int] = self._integers[ids].tolist()
        return found

    @functools.cached_property
    def _integers(self) -> npt.NDArray[Any]:
        """Every id as Python has it: looking one up is quicker than making one."""
        return np.array(range(self.vocab_size), object)

    def _worth_compiling(self, n_characters: int) -> bool:
        """Whether so much more text is better left to the compiled loops; a prompt does not wait for them to load."""
        self._characters += n_characters
        if self.compiled is None and "_encoder" not in vars(self) and self._characters <= WORTH_LOADING:
            return False
        return n_characters > WORTH_CALLING and self._has_encoder()

    def _has_encoder(self) -> bool:
        return self.compiled is not False and self._encoder is not None

    def _encode_ordinary(self, text: str) -> list[int]:
        if self._worth_compiling(len(text)):
            assert self._encoder is not None, "asked for above"
            raw = np.frombuffer(to_utf8(text), np.uint8)
            return self._as_list(self._encoder(raw, np.array([0, len(raw)]))[0])
        ids: list[int] = []
        for piece in split.pieces(text, self.pattern):
            known = self._cache.get(piece)
            if known is None:
                known = self._encode_piece(to_utf8(piece))
                if len(self._cache) >= CACHED_PIECES:
                    self._cache.clear()
                if len(piece) <= 64:
                    self._cache[piece] = known
            ids += known
        return ids

    def _encode_piece(self, piece: bytes) -> list[int]:
        if self.whole_pieces and piece in self._ids:
            return [self._ids[piece]]
        if (len(piece) > LONG_PIECE and self._has_encoder()) or self._worth_compiling(len(piece)):
            assert self._encoder is not None, "asked for above"
            raw, end = np.frombuffer(piece, np.uint8), np.array([len(piece)])
            return self._as_list(self._encoder.pieces(raw, end, np.array([0, len(piece)]))[0])
        return encode_piece([self._byte_ids[byte] for byte in piece], self._merges)

    def _encode_bytes(self, raw: bytes) -> list[int]:
        ids, rest = self._up_to_wrong_byte(raw)
        return ids + self._encode_piece(rest)

    def _up_to_wrong_byte(self, raw: bytes) -> tuple[list[int], bytes]:
        """The ids of what is cut into pieces as text, and the rest, which is one piece: empty where all is UTF-8."""
        try:
            return self._encode_ordinary(raw.decode()), b""
        except UnicodeDecodeError as error:
            valid = raw[: error.start].decode()
        pieces = split.pieces(valid, self.pattern)
        ids = self._encode_ordinary(valid)
        kept = len(ids) - (len(self._encode_piece(pieces[-1].encode())) if pieces else 0)
        if pieces and self._is_blank(ids[kept]):
            while kept and self._is_blank(ids[kept - 1]):
                kept -= 1
        return ids[:kept], self.decode_bytes(ids[kept:]) + raw[len(valid.encode()) :]

    def _is_blank(self, i: int) -> bool:
        return not self._tokens[i].strip(b" \n\t")

    def first_merges(self, number: int) -> Self:
        """A smaller vocabulary of the same kind: without the merges after the first `number` and the tokens that only
        they make. Of a learned one it has the merges that learning so many on the same texts would have given.

        Raises:
            SettingsError: for a number that is not between 0 and that of the merges.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> [tokenizer.first_merges(number).encode("low") for number in (0, 1, 2)]
        [[75, 78, 86], [256, 86], [257]]
        """
        if not 0 <= number <= len(self._pairs):
            raise SettingsError(f"the first {number:,} merges were asked for; this tokenizer has {len(self._pairs):,}")
        dropped = {self._ids[left + right] for left, right in self.merges[number:]}
        dropped -= {self._ids[left + right] for left, right in self.merges[:number]}
        kept = [i for i in range(self.vocab_size) if i not in dropped]
        place = {i: n for n, i in enumerate(kept)}
        return type(self)(
            [self._tokens[i] for i in kept],
            [(place[left], place[right]) for left, right in self._pairs[:number]],
            {text: place[i] for text, i in self.special.items()},
            self.pattern,
            ranks=[self._merges[pair][0] for pair in self._pairs[:number]],
            whole_pieces=self.whole_pieces,
            added={text: place[i] for text, i in self.added.items()},
            normalizer=self.normalizer,
            normalized=self.normalized,
            roles=self.roles.moved(place),
        )

    def extended(self, added: Sequence[str] = (), special: Sequence[str] = ()) -> Self:
        """This vocabulary with more tokens, their ids after the last. A text that holds none of them keeps its ids.

        A vocabulary of a multiple of 64 ids is filled with reserved tokens to the next.

        Args:
            added: recognised wherever they stand.
            special: recognised only if allowed.

        Raises:
            SettingsError: a text that is empty, is named twice, or is a token already, with its id.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> more = tokenizer.extended(["lowland"], special=["<|tool|>"])
        >>> more.encode("lowlands"), more.special["<|tool|>"], more.vocab_size
        ([320, 82], 321, 384)
        """
        new = [*added, *special]
        for text in new:
            self._refuse_as_token(text)
        if len(set(new)) < len(new):
            (twice, _), *_ = Counter(new).most_common(1)
            raise SettingsError(f"the token {twice!r} is named twice")
        taken = {*self.special, *self.added, *new}
        unused = (name for i in itertools.count() if (name := f"<|reserved_{i}|>") not in taken)
        n_spare = -len(new) % MULTIPLE if self.vocab_size % MULTIPLE == 0 else 0
        new += itertools.islice(unused, n_spare)
        ids = {text: self.vocab_size + number for number, text in enumerate(new)}
        return type(self)(
            [*self._tokens, *(text.encode() for text in new)],
            self._pairs,
            {**self.special, **{text: ids[text] for text in new[len(added) :]}},
            self.pattern,
            ranks=[self._merges[pair][0] for pair in self._pairs],
            whole_pieces=self.whole_pieces,
            added={**self.added, **{text: ids[text] for text in added}},
            normalizer=self.normalizer,
            normalized=self.normalized,
            roles=self.roles,
        )

    def _refuse_as_token(self, text: str) -> None:
        if not text:
            raise SettingsError("an empty text cannot be a token")
        if text in self.special or text in self.added:
            kind, ids = ("a special", self.special) if text in self.special else ("an added", self.added)
            raise SettingsError(f"{text!r} is {kind} token already: id {ids[text]}")
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise SettingsError(f"{text!r} cannot be a token: {error.reason}") from None
        if raw in self._ids:
            raise SettingsError(f"{text!r} is a token already: id {self._ids[raw]}")
        with contextlib.suppress(KeyError):
            if to_bytes(text) in self._ids:
                raise SettingsError(
                    f"{text!r} cannot be a token: tokenizer.json writes {to_bytes(text)!r}, id "
                    f"{self._ids[to_bytes(text)]}, with the same characters"
                )

    # Files

    @classmethod
    def load(cls, path: str | Path, *, pattern: str | None = None, special: Sequence[str] = ()) -> "Tokenizer":
        """Read a tokenizer.json, GPT-2's two files, a rank file or a SentencePiece model, or a directory of one.

        What the files beside it declare counts: which tokens open a text, close it and end an answer, and tokens that
        were added later.

        Args:
            path: the file, or a directory that has one.
            pattern, special: split pattern and special tokens of a rank file whose name is not known; the ids of the
                special tokens follow its ranks.

        Raises:
            DataError: missing, damaged, or of a kind that is not represented here.
            SettingsError: a rank file of unknown name without a pattern, or another file with one.

        >>> import tempfile
        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tokenizer.save(Path(folder))
        ...     Tokenizer.load(folder).digest == tokenizer.digest
        True
        """
        from groundup.tokenizer import library

        file = formats.find(Path(path))
        declared = read_declared(file.parent)
        if formats.is_sentencepiece(file):
            return library.read_sentencepiece(file, declared)
        try:
            return cls(**formats.read(file, pattern, special, declared))
        except UnsupportedError as error:
            beside = file.with_name("tokenizer.model")  # of which such a tokenizer.json is a copy
            if Path(path) != file and beside.is_file() and formats.is_sentencepiece(beside):
                return library.read_sentencepiece(beside, declared)
            if formats.is_pair(file):
                raise
            return library.read_hugging_face(file, declared, error)

    def save(self, path: Path) -> None:
        """Write the file that the name of `path` asks for: `*.json` is a tokenizer.json, which Hugging Face tokenizers
        reads to the same ids, `*.tiktoken` ranks, `vocab.bpe` GPT-2's two files. In a directory it is the tokenizer's
        own.

        Raises:
            SettingsError: a name that asks for none of these.
            UnsupportedError: what such a file cannot hold.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Tokenizer.learn("low lower", vocab_size=320).save(Path(folder, "low.tiktoken"))
        ...     Path(folder, "low.tiktoken").read_text().splitlines()[256]
        'bG8= 256'
        """
        formats.write(self, Path(path))

    @property
    def digest(self) -> str:
        """The sha256 of everything that decides the ids of a document."""
        return self._digest_with_roles(canonical_json(self.to_hugging_face()))

    def _digest_with_roles(self, content: bytes) -> str:
        if self.roles != Roles.of(self.special):
            content += canonical_json([self.roles.opener, self.roles.closer])
        return hashlib.sha256(content).hexdigest()

    def spelled(self, i: int) -> str:
        """The token of id `i` as its file spells it."""
        return self._tokens[i].decode() if i in self._outside_ids else to_characters(self._tokens[i])

    @functools.cached_property
    def _outside_ids(self) -> set[int]:
        """The ids that no merge makes."""
        return {*self.special.values(), *self.added.values()}

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""
        return formats.hugging_face(self)


NOT_LOADED = (ImportError, OSError, RuntimeError, MemoryError)
"""What loading the compiler ends in where it cannot be: no library, no memory, no place to keep what it made."""


def _warn_not_loaded(error: BaseException) -> None:
    warnings.warn(
        f"the tokenizer's compiled loops cannot be loaded ({error}): the plain ones go on, slower", stacklevel=4
    )


def _compiled_learner() -> "Callable[..., tuple[list[Pair], int]] | None":
    """`learn_from`, or None where the compiler cannot be loaded."""
    try:
        from groundup.tokenizer.fast.learn import learn_from

        return learn_from
    except NOT_LOADED as error:
        _warn_not_loaded(error)
        return None


def _documents(texts: str | Iterable[str]) -> Iterator[str]:
    """
    Raises:
        SettingsError: for what is no text.
    """
    if not isinstance(texts, Iterable):
        raise SettingsError(f"the documents to learn from are {texts!r:.60}; they should be strings")
    for text in [texts] if isinstance(texts, str) else texts:
        _refuse_no_text(text, "a document to learn from")
        yield text


def _refuse_no_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise SettingsError(f"{what} is {text!r:.60}; it should be a string")


CHARACTERS_AT_ONCE = 1 << 16
"""Of `encode_iterable`."""
_CUT_BY_ALL = regex.compile(r"(?r)(?<=\p{L})(?=[ \n，。、！？；：])|(?<=\S\n)(?=\p{L})")
"""Where each named pattern cuts whatever stands before and behind; a form of Unicode changes nothing across it."""


def _special_after(n_tokens: int) -> dict[str, int]:
    """The named special tokens and as many reserved ones as make the whole a multiple of 64, with their ids."""
    n_special = N_SPECIAL + -(n_tokens + N_SPECIAL) % MULTIPLE
    names = [*NAMED_SPECIAL, *(f"<|reserved_{i}|>" for i in range(n_special - len(NAMED_SPECIAL)))]
    return {name: n_tokens + i for i, name in enumerate(names)}


def _in_form(form: str | None, text: str) -> str:
    return unicodedata.normalize(form, text) if form else text  # type: ignore[arg-type]


def cut_at(text: str, table: Mapping[str, int], refused: Collection[int] = ()) -> Iterator[tuple[str, int | None]]:
    """Tokens of the table with their ids, and what lies between, with None; leftmost first, of several the longest.

    A refused one stays text, and hides what begins within it, as in Hugging Face's library.
    """
    present = tuple(token for token in table if token in text)
    end = 0
    for match in _any_of(present).finditer(text) if present else ():
        i = table[match[0]]
        if i not in refused:
            if match.start() > end:
                yield text[end : match.start()], None
            yield match[0], i
            end = match.end()
    if end < len(text):
        yield text[end:], None


@functools.lru_cache(maxsize=16)
def _any_of(texts: tuple[str, ...]) -> "regex.Pattern[str]":
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return regex.compile("|".join(regex.escape(text) for text in longest_first))
