"""Byte-level BPE tokenizer: text or bytes ↔ ids, with nothing lost.

Ids 0 to 255 are the bytes in the order of GPT-2's table, then one id a merge, then the special tokens. The file
format is Hugging Face's `tokenizer.json`.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import regex

from groundup.errors import SettingsError
from groundup.files import Progress, no_progress, write_json
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
from groundup.tokenizer.columns import column_of, columns_of, text_of
from groundup.tokenizer.settings import MEMORY_BYTES, MULTIPLE, N_BYTES, N_SPECIAL, Learned
from groundup.tokenizer.vocabulary import BYTE_CHARACTERS, END_OF_TEXT, NAMED_SPECIAL, byte_ids, to_utf8

if TYPE_CHECKING:
    from groundup.tokenizer.encode import Encoder

Places = npt.NDArray[np.int64]
CACHED_PIECES = 1 << 18
WORTH_LOADING = 1 << 20
"""Characters that are encoded without the compiled loops in about the time that loading these takes."""
WORTH_CALLING = 256
"""Characters of one text from which on calling the compiled loops pays."""


class Tokenizer:
    """A vocabulary and the two directions through it."""

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
    ) -> None:
        """
        Args:
            tokens: bytes of each id; for a special token, its text.
            merges: pairs of ids in the order they were learned; the joined bytes are a token.
            special: text of each special token → its id.
            pattern: name of the split pattern, `gpt2` or `cl100k`, or a regular expression.
            ranks: of each merge; the lowest goes first, of equals the leftmost. Their order in `merges`, if not given.
            whole_pieces: a piece that is a token is that token, whatever the merges would make of it (tiktoken,
                Hugging Face's `ignore_merges`).
            added: text of each token that is recognised wherever it stands, though it is not special → its id.
            normalizer: Unicode form that text is brought to first: NFC, NFD, NFKC or NFKD.
        """
        self.special = dict(special)
        self.added = dict(added or {})
        self.pattern = pattern
        self.normalizer = normalizer
        self.whole_pieces = whole_pieces
        self._tokens = list(tokens)
        self._pairs = list(merges)
        outside = {*special.values(), *self.added.values()}
        self._ids = {token: i for i, token in enumerate(tokens) if i not in outside}
        self._byte_ids = [self._ids[bytes([byte])] for byte in range(N_BYTES)]
        self._merges = {
            (left, right): (rank, self._ids[tokens[left] + tokens[right]])
            for rank, (left, right) in zip(range(len(merges)) if ranks is None else ranks, merges, strict=True)
        }
        self._cache: dict[str, list[int]] = {}
        self._characters = 0

    @property
    def vocab_size(self) -> int:
        """All ids, special ones included."""
        return len(self._tokens)

    @property
    def end_of_text(self) -> int:
        """The id that opens each document."""
        if END_OF_TEXT not in self.special:
            raise SettingsError(
                f"this tokenizer has no {END_OF_TEXT}; its special tokens: {', '.join(self.special) or 'none'}"
            )
        return self.special[END_OF_TEXT]

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
        texts: Iterable[str],
        *,
        vocab_size: int,
        pattern: str = "gpt2",
        memory_bytes: int = MEMORY_BYTES,
        progress: Progress = no_progress,
    ) -> Self:
        """Learn a vocabulary of `vocab_size` ids: 256 bytes, merges, 16 special tokens.

        If the texts run out of pairs, the vocabulary is what was reached, filled with reserved tokens to a multiple
        of 64.

        Args:
            memory_bytes: that the process may take while learning.

        Raises:
            SettingsError: for a size that cannot be, naming the nearest that can, or an unknown pattern.
        """
        return cls.learn_columns(
            columns_of(texts), vocab_size=vocab_size, pattern=pattern, memory_bytes=memory_bytes, progress=progress
        )[0]

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
        """`learn` from columns of documents, Arrow `large_string` without nulls.

        Args:
            n_documents: how many there are, for the progress.
            directory: where what was counted is kept, so that the same call goes on after an interruption.
            of: what the documents are; what was counted of others is not used.

        Returns:
            The tokenizer, and how often a piece had to occur to be learned from: more than once where memory did not
            suffice for all.
        """
        Learned.from_table({"vocab_size": vocab_size, "split": pattern, "memory_bytes": memory_bytes}, "tokenizer")
        wanted = vocab_size - N_BYTES - N_SPECIAL
        rest = iter(columns)
        some: list[pa.Array] = []
        for column in rest:
            some.append(column)
            if sum(part.nbytes for part in some) > WORTH_LOADING:
                break
        else:
            texts = (text for column in some for text in column.to_pylist())
            return cls.of_merges(learn_merges(count_pieces(texts, pattern), byte_ids(), wanted, progress), pattern), 1
        from groundup.tokenizer.learn import learn_from

        merges, least = learn_from(
            itertools.chain(some, rest),
            pattern,
            byte_ids(),
            wanted,
            memory_bytes,
            progress,
            n_documents,
            directory,
            of,
        )
        return cls.of_merges(merges, pattern), least

    @classmethod
    def of_merges(cls, merges: Sequence[Pair], pattern: str) -> Self:
        """256 bytes, learned merges, and special tokens that fill up to a multiple of 64.

        Args:
            merges: pairs of ids; merge i makes id 256 + i.
        """
        tokens = [bytes([byte]) for byte in BYTE_CHARACTERS]
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        n_special = N_SPECIAL + -(len(tokens) + N_SPECIAL) % MULTIPLE
        names = [*NAMED_SPECIAL, *(f"<|reserved_{i}|>" for i in range(n_special - len(NAMED_SPECIAL)))]
        special = {name: len(tokens) + i for i, name in enumerate(names)}
        return cls([*tokens, *(name.encode() for name in names)], merges, special, pattern)

    def encode(self, text: str | bytes, allowed: frozenset[str] = frozenset()) -> list[int]:
        """Text or bytes → ids.

        Args:
            allowed: special tokens that may be recognised; the text of any other is encoded as ordinary text.

        Bytes that are not UTF-8 are cut into pieces up to the first wrong byte; from the piece before it on they are
        one piece, as in tiktoken.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> (
        ...     tokenizer.decode(tokenizer.encode("lower <|endoftext|>")),
        ...     tokenizer.encode("<|endoftext|>", frozenset({"<|endoftext|>"})),
        ... )
        ('lower <|endoftext|>', [263])
        """
        if not allowed:
            return self._encode_bytes(text) if isinstance(text, bytes) else self._encode_ordinary(text)
        ids: list[int] = []
        for part, special in self._around_special(text, allowed):
            ids += self.encode(part) if special is None else [special]
        return ids

    def _around_special(self, text: str | bytes, allowed: frozenset[str]) -> Iterator[tuple[str | bytes, int | None]]:
        """The text cut around the special tokens that are allowed; each part with its id, if it is one."""
        unknown = allowed - self.special.keys()
        if unknown:
            raise SettingsError(f"not special tokens of this tokenizer: {', '.join(sorted(unknown))}")
        as_text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
        for part in _special_pattern(allowed).split(as_text) if allowed else [as_text]:
            special = self.special[part] if part in allowed else None
            yield (part.encode("utf-8", "surrogateescape") if isinstance(text, bytes) else part), special

    def encode_batch(self, texts: Sequence[str | bytes], allowed: frozenset[str] = frozenset()) -> list[list[int]]:
        """`encode` for each text, on all cores when there is much of it."""
        strings = [text for text in texts if isinstance(text, str)]
        if allowed or len(strings) < len(texts):
            return [self.encode(text, allowed) for text in texts]
        ids, starts = self.encode_documents(column_of(strings))
        every = ids.tolist()
        return [every[first:last] for first, last in itertools.pairwise(starts.tolist())]

    def encode_documents(self, texts: pa.Array, opener: int | None = None) -> tuple[npt.NDArray[np.int32], Places]:
        """A column of documents → their ids, on all cores, without a Python string a document.

        Args:
            texts: Arrow `large_string`, without nulls.
            opener: id put before each document.

        Returns:
            (N,) the ids of all, and (documents + 1,) where those of each document begin, then where the last one's end.
        """
        if not self._plain_text_only or not self._worth_compiling(texts.nbytes):
            lists = [self.encode(text) for text in texts.to_pylist()]
            opened = lists if opener is None else [[opener, *ids] for ids in lists]
            starts = np.cumsum([0, *map(len, opened)], dtype=np.int64)
            return np.fromiter(itertools.chain.from_iterable(opened), np.int32, int(starts[-1])), starts
        text, offsets = text_of(texts)
        return self._encoder(text, offsets, -1 if opener is None else opener)

    def explain(self, text: str | bytes, allowed: frozenset[str] = frozenset()) -> Iterator[Piece]:
        """How the ids of `encode` come about, piece by piece. Plain and slow: for looking, not for encoding.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> [(piece.raw, piece.ids) for piece in tokenizer.explain("lowest low")]
        [(b'lowest', (257, 68, 260)), (b' low', (258,))]
        """
        explain_piece = functools.cache(self._explain_piece)  # words come again
        for part, special in self._around_special(text, allowed):
            if special is not None:
                yield Piece(self._tokens[special], (special,), "special", ())
                continue
            ordinary, rest = self._up_to_wrong_byte(part) if isinstance(part, bytes) else (part, b"")
            for piece in split.pieces(ordinary, self.pattern):
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
        """Ids → text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def _checked(self, ids: Iterable[int]) -> Iterable[int]:
        for i in ids:
            if i < 0:
                raise ValueError(f"id {i} is not in 0 to {self.vocab_size - 1}")
            yield i

    @property
    def _plain_text_only(self) -> bool:
        """Whether encoding is cutting and merging alone."""
        return not self.added and self.normalizer is None

    @functools.cached_property
    def _encoder(self) -> "Encoder":
        """The compiled loops: the same ids, many times faster once numba is there."""
        from groundup.tokenizer.encode import Encoder, Vocabulary

        whole_pieces = self._ids if self.whole_pieces else None
        return Encoder(Vocabulary(self._byte_ids, self._merges, whole_pieces), self.pattern)

    def _worth_compiling(self, n_characters: int) -> bool:
        """Whether so much more text is better encoded by the compiled loops.

        Loading them takes as long as encoding `WORTH_LOADING` characters without: a prompt does not wait for them.
        """
        self._characters += n_characters
        return self._characters > WORTH_LOADING and n_characters > WORTH_CALLING

    def _encode_ordinary(self, text: str) -> list[int]:
        if self._worth_compiling(len(text)):
            raw = np.frombuffer(to_utf8(text), np.uint8)
            return list(self._encoder(raw, np.array([0, len(raw)]))[0].tolist())
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
        if self._worth_compiling(len(piece)):
            raw, end = np.frombuffer(piece, np.uint8), np.array([len(piece)])
            return list(self._encoder.pieces(raw, end, np.array([0, len(piece)]))[0].tolist())
        return encode_piece([self._byte_ids[byte] for byte in piece], self._merges)

    def _encode_bytes(self, raw: bytes) -> list[int]:
        ordinary, rest = self._up_to_wrong_byte(raw)
        return self._encode_ordinary(ordinary) + self._encode_piece(rest)

    def _up_to_wrong_byte(self, raw: bytes) -> tuple[str, bytes]:
        """What is cut into pieces as text, and the rest, which is one piece: empty where all is UTF-8."""
        try:
            return raw.decode(), b""
        except UnicodeDecodeError as error:
            pieces = split.pieces(raw[: error.start].decode(), self.pattern)
        last = len(pieces) - 1
        while last > 0 and pieces[last].isspace() and pieces[last - 1].isspace():
            last -= 1
        ordinary = "".join(pieces[: max(last, 0)])
        return ordinary, raw[len(ordinary.encode()) :]

    def first_merges(self, number: int) -> Self:
        """A smaller vocabulary of the same kind: without the merges after the first `number` and the tokens that only
        they make. Of a learned one it has the merges that learning so many on the same texts would have given.

        Raises:
            SettingsError: for a number that is not between 0 and that of the merges.
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
        )

    # Files

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a tokenizer.json, or a directory that holds one or GPT-2's two files.

        Raises:
            DataError: missing, damaged, or of a kind that is not byte-level BPE.
        """
        return cls(**formats.read(Path(path)))

    def save(self, path: Path) -> None:
        """Write the `tokenizer.json` that Hugging Face tokenizers reads to the same ids."""
        write_json(path, self.to_hugging_face())

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""
        return formats.hugging_face(self)


@functools.lru_cache(maxsize=16)
def _special_pattern(allowed: frozenset[str]) -> "regex.Pattern[str]":
    longest_first = sorted(allowed, key=lambda text: (-len(text), text))
    return regex.compile("(" + "|".join(regex.escape(text) for text in longest_first) + ")")
