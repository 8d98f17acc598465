"""Byte-level BPE tokenizer: text or bytes ↔ ids, with nothing lost.

Ids 0 to 255 are the bytes in the order of GPT-2's table, then one id a merge, then the special tokens. The file
format is Hugging Face's `tokenizer.json`.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import regex

from groundup.errors import SettingsError
from groundup.files import Progress, no_progress, write_json
from groundup.tokenizer import formats, split
from groundup.tokenizer.bpe import Pair, encode_piece
from groundup.tokenizer.learn import count_pieces, learn_merges
from groundup.tokenizer.settings import MULTIPLE, N_BYTES, N_SPECIAL, Learned
from groundup.tokenizer.vocabulary import BYTE_CHARACTERS, END_OF_TEXT, NAMED_SPECIAL

CACHED_PIECES = 1 << 18


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
        cls, texts: Iterable[str], *, vocab_size: int, pattern: str = "gpt2", progress: Progress = no_progress
    ) -> Self:
        """Learn a vocabulary of `vocab_size` ids: 256 bytes, merges, 16 special tokens.

        If the texts run out of pairs, the vocabulary is what was reached, filled with reserved tokens to a multiple
        of 64.

        Raises:
            SettingsError: for a size that cannot be, naming the nearest that can, or an unknown pattern.
        """
        Learned.from_table({"vocab_size": vocab_size, "split": pattern}, "tokenizer")
        byte_ids = {byte: i for i, byte in enumerate(BYTE_CHARACTERS)}
        pieces = count_pieces(texts, pattern)
        wanted = vocab_size - N_BYTES - N_SPECIAL
        merges = learn_merges(pieces, [byte_ids[byte] for byte in range(N_BYTES)], wanted, progress)
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
        unknown = allowed - self.special.keys()
        if unknown:
            raise SettingsError(f"not special tokens of this tokenizer: {', '.join(sorted(unknown))}")
        if not allowed:
            return self._encode_bytes(text) if isinstance(text, bytes) else self._encode_ordinary(text)
        as_text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
        ids: list[int] = []
        for part in _special_pattern(allowed).split(as_text):
            if part in allowed:
                ids.append(self.special[part])
            else:
                ids += self.encode(part.encode("utf-8", "surrogateescape") if isinstance(text, bytes) else part)
        return ids

    def encode_batch(self, texts: Iterable[str | bytes], allowed: frozenset[str] = frozenset()) -> list[list[int]]:
        """`encode` for each text."""
        return [self.encode(text, allowed) for text in texts]

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

    def _encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in split.pieces(text, self.pattern):
            known = self._cache.get(piece)
            if known is None:
                known = self._encode_piece(_utf8(piece))
                if len(self._cache) >= CACHED_PIECES:
                    self._cache.clear()
                if len(piece) <= 64:
                    self._cache[piece] = known
            ids += known
        return ids

    def _encode_piece(self, piece: bytes) -> list[int]:
        if self.whole_pieces and piece in self._ids:
            return [self._ids[piece]]
        return encode_piece([self._byte_ids[byte] for byte in piece], self._merges)

    def _encode_bytes(self, raw: bytes) -> list[int]:
        try:
            return self._encode_ordinary(raw.decode())
        except UnicodeDecodeError as error:
            pieces = split.pieces(raw[: error.start].decode(), self.pattern)
        last = len(pieces) - 1
        while last > 0 and pieces[last].isspace() and pieces[last - 1].isspace():
            last -= 1
        whole = "".join(pieces[: max(last, 0)])
        return self._encode_ordinary(whole) + self._encode_piece(raw[len(whole.encode()) :])

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


def _utf8(text: str) -> bytes:
    """UTF-8; a lone surrogate, which no UTF-8 can hold, becomes U+FFFD as in tiktoken."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


@functools.lru_cache(maxsize=16)
def _special_pattern(allowed: frozenset[str]) -> "regex.Pattern[str]":
    longest_first = sorted(allowed, key=lambda text: (-len(text), text))
    return regex.compile("(" + "|".join(regex.escape(text) for text in longest_first) + ")")
