"""Tokenizer: text or bytes ↔ ids, with nothing lost.

A learned tokenizer is byte-level BPE, `byte_level.py`; which others can be read, `formats.py` says.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import regex

from groundup.errors import SettingsError, UnsupportedError
from groundup.files import Progress, canonical_json, no_progress
from groundup.tokenizer import formats, split
from groundup.tokenizer.bpe import Pair, count_pre_tokens, learn_merges
from groundup.tokenizer.byte_level import NOT_LOADED, WORTH_LOADING, ByteLevel, cut_at, warn_not_loaded
from groundup.tokenizer.columns import as_list, column_of, columns_of, text_of
from groundup.tokenizer.declared import Roles
from groundup.tokenizer.explain import PreToken
from groundup.tokenizer.rules import Rules
from groundup.tokenizer.settings import MEMORY_BYTES, N_BYTES, N_SPECIAL, Learned, WholeWords
from groundup.tokenizer.vocabulary import (
    BYTE_CHARACTERS,
    byte_ids,
    special_after,
    to_characters,
    to_utf8,
    whole_characters,
    without_first_space,
)

Allowed = Collection[str] | Literal["all"]
"""Special tokens that may be recognised in a text."""
CHARACTERS_AT_ONCE = 1 << 16
"""How much text `encode_iterable` collects before it encodes."""
_CUT_BY_ALL = regex.compile(r"(?r)(?<=\p{L})(?=[ \n，。、！？；：])|(?<=\S\n)(?=\p{L})")
"""Where every named pattern cuts whatever stands before and behind; a form of Unicode changes nothing across it."""


class Tokenizer:
    """A vocabulary and the two directions through it. `learn` and `load` make one.

    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> tokenizer.vocab_size, tokenizer.tokens[257], tokenizer.merges[1], tokenizer.is_plain
    (320, b'low', (b'lo', b'w'), True)
    >>> tokenizer.is_ours, tokenizer.opens_texts
    (True, True)
    >>> tokenizer.framed(tokenizer.encode("low")), tokenizer.opener, tokenizer.closer
    ([263, 257], 263, 263)
    >>> tokenizer.decode([257, 68]), tokenizer.decode_bytes([257, 68]), tokenizer.decode_batch([[257], [68]])
    ('lowe', b'lowe', ['low', 'e'])
    >>> tokenizer.spelled(258), tokenizer.digest[:8], tokenizer.to_hugging_face()["model"]["type"]
    ('Ġlow', '51b4d08e', 'BPE')
    """

    def __init__(self, rules: Rules, roles: Roles | None = None) -> None:
        """
        Args:
            rules: the vocabulary, and how text is encoded with it.
            roles: which tokens open a text, close it and end an answer; those that the names of the special tokens
                stand for, if not given.
        """
        self.rules = rules
        self.roles = roles or Roles.of(rules.special)
        self.special, self.added = rules.special, rules.added
        self.pattern, self.normalizer = rules.pattern, rules.normalizer
        self.is_plain, self.begins_with_space = rules.is_plain, rules.begins_with_space
        self._tokens = rules.tokens

    @property
    def vocab_size(self) -> int:
        """All ids, special ones included."""
        return len(self._tokens)

    @property
    def tokens(self) -> list[bytes]:
        """The bytes of each id; for a special token, its text."""
        return list(self._tokens)

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The two sides of each merge, in the order they were learned."""
        return [(self._tokens[left], self._tokens[right]) for left, right in self.rules.pairs]

    @property
    def is_ours(self) -> bool:
        """Whether it has the special tokens of a vocabulary learned here."""
        return "<|reserved_0|>" in self.special

    @property
    def opens_texts(self) -> bool:
        """Whether its models have read every text behind its opener: those made here, and those of SentencePiece
        vocabularies and of Llama 3's; not those of GPT-2's kind, whose texts may begin anywhere."""
        return self.is_ours or self.begins_with_space or "<|begin_of_text|>" in self.special

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

    # Learning

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
            special: the special tokens, whose ids are the last. Nothing is learned from where they stand in the texts.
                `vocab_size` may then be any number, and is not reached where the texts run out of pairs. If not given:
                16 of ours; `vocab_size` must be a multiple of 64, and where the texts run out of pairs, reserved tokens
                fill the vocabulary up to one.
            pattern: how text is split into pre-tokens, which no token crosses: a name such as `gpt2`, or a regular
                expression.
            memory_bytes: that the process may take while learning.
            progress: is called with how far it is.

        Raises:
            SettingsError: an impossible size, with the nearest possible one; an unknown pattern.

        >>> tokenizer = Tokenizer.learn("low lower<|sep|>lowest", vocab_size=260, special=["<|sep|>"])
        >>> tokenizer.vocab_size, tokenizer.special, tokenizer.merges[0]
        (260, {'<|sep|>': 259}, (b'l', b'o'))
        """
        documents = _documents(texts)
        if special is not None:
            if isinstance(special, str) or not all(isinstance(text, str) for text in special):
                raise SettingsError(f"special is {special!r}; it should be a list of texts, such as ['<|sep|>']")
            if vocab_size < N_BYTES + len(special) or len(set(special)) < len(special) or "" in special:
                raise SettingsError(
                    f"vocab_size is {vocab_size}, special is {list(special)}: it should be at least {N_BYTES} bytes "
                    "and each special token once, none of them empty"
                )
            named = {text: N_BYTES + number for number, text in enumerate(special)}
            documents = (part for text in documents for part, i in cut_at(text, named) if i is None)
        learned, _ = cls.learn_columns(
            columns_of(documents),
            vocab_size=vocab_size,
            special=special,
            pattern=pattern,
            memory_bytes=memory_bytes,
            progress=progress,
        )
        written = {to_characters(token) for token in learned.tokens[: -len(special or ())]}
        if taken := [text for text in special or () if text in written]:
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
        special: Sequence[str] | None = None,
        pattern: str = "gpt2",
        memory_bytes: int = MEMORY_BYTES,
        progress: Progress = no_progress,
        n_documents: int = 0,
        directory: Path | None = None,
        of: str = "",
    ) -> tuple[Self, int]:
        """`learn` from columns of documents, Arrow `large_string` without nulls.

        Args:
            vocab_size, pattern, memory_bytes, progress: as in `learn`.
            special: as in `learn`, which keeps them out of the documents.
            n_documents: how many there are, for the progress.
            directory: where counts are kept, so that the same call resumes after an interruption.
            of: names the documents; counts of others in `directory` are not used.

        Returns:
            The tokenizer, and how often a pre-token had to occur to be learned from: more than once where memory did
            not suffice for all.

        >>> column = pa.array(["low lower", "lowest"], pa.large_string())
        >>> tokenizer, least = Tokenizer.learn_columns([column], vocab_size=320)
        >>> tokenizer.merges[0], least
        ((b'l', b'o'), 1)
        """
        if special is None:
            Learned.from_table({"vocab_size": vocab_size, "split": pattern, "memory_bytes": memory_bytes}, "tokenizer")
        wanted = vocab_size - N_BYTES - (N_SPECIAL if special is None else len(special))
        rest = iter(columns)
        some: list[pa.Array] = []
        while sum(part.nbytes for part in some) <= WORTH_LOADING and (column := next(rest, None)) is not None:
            some.append(column)
        columns = itertools.chain(some, rest)
        if sum(part.nbytes for part in some) > WORTH_LOADING:
            try:
                from groundup.tokenizer.fast.learn import learn_from
            except NOT_LOADED as error:
                warn_not_loaded(error)
            else:
                merges, least = learn_from(
                    columns, pattern, byte_ids(), wanted, memory_bytes, progress, n_documents, directory, of
                )
                return cls.of_merges(merges, pattern, special), least
        counts = count_pre_tokens((text for column in columns for text in column.to_pylist()), pattern)
        return cls.of_merges(learn_merges(counts, byte_ids(), wanted, progress), pattern, special), 1

    @classmethod
    def of_merges(cls, merges: Sequence[Pair], pattern: str, special: Sequence[str] | None = None) -> Self:
        """256 bytes, learned merges, and special tokens; ours, which fill up to a multiple of 64, if none are given.

        Args:
            merges: pairs of ids; merge i makes id 256 + i.
            pattern: how text is split, as in `learn`.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> pairs = [tuple(map(tokenizer.tokens.index, pair)) for pair in tokenizer.merges]
        >>> Tokenizer.of_merges(pairs, "gpt2").digest == tokenizer.digest
        True
        """
        tokens = [bytes([byte]) for byte in BYTE_CHARACTERS]
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        named = special_after(len(tokens))
        if special is not None:
            named = {name: len(tokens) + number for number, name in enumerate(special)}
        return cls(ByteLevel([*tokens, *(name.encode() for name in named)], merges, named, pattern))

    @classmethod
    def of_pieces(cls, texts: str | Iterable[str], *, vocab_size: int, pattern: str = "characters") -> Self:
        """Learn a vocabulary without merges: 256 bytes, the most frequent pre-tokens, 16 special tokens.

        With the pattern `characters` its tokens are characters, with that of another, words. A pre-token that is no
        token becomes its bytes. Of equally frequent ones, that whose bytes sort first is taken. If the texts run out,
        the vocabulary is filled with reserved tokens to a multiple of 64.

        Raises:
            SettingsError: an impossible size, with the nearest possible one; an unknown pattern.

        >>> tokenizer = Tokenizer.of_pieces(["né né nè"], vocab_size=320)
        >>> tokenizer.encode("nén"), tokenizer.tokens[256:258] == ["é".encode(), "è".encode()]
        ([77, 256, 77], True)
        """
        WholeWords.from_table({"vocab_size": vocab_size, "split": pattern}, "tokenizer")
        counts = count_pre_tokens(_documents(texts), pattern)
        longer = sorted((token for token in counts if len(token) > 1), key=lambda token: (-counts[token], token))
        tokens = [bytes([byte]) for byte in BYTE_CHARACTERS] + longer[: vocab_size - N_BYTES - N_SPECIAL]
        special = special_after(len(tokens))
        tokens += [name.encode() for name in special]
        return cls(ByteLevel(tokens, [], special, pattern, whole_pre_tokens=True))

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
        return type(self)(self.rules.extended(added, special), self.roles)

    # Encoding

    def encode(self, text: str | bytes, allowed: Allowed = ()) -> list[int]:
        """Text or bytes → ids.

        Args:
            allowed: special tokens that may be recognised, or "all" of them; the text of any other is encoded as
                ordinary text.

        Bytes that are not UTF-8 are split up to the first wrong byte; from the pre-token before it on, or from the
        spaces with which that begins, they are one pre-token, as in tiktoken.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> (
        ...     tokenizer.decode(tokenizer.encode("lower <|endoftext|>")),
        ...     tokenizer.encode("<|endoftext|>", {"<|endoftext|>"}),
        ... )
        ('lower <|endoftext|>', [263])
        """
        if not isinstance(text, str | bytes):
            raise SettingsError(f"the text to encode is {text!r:.60}; it should be a string or bytes")
        return self._encode(text, self._names_of(allowed), len(text))

    def _encode(self, text: str | bytes, allowed: frozenset[str], size: int) -> list[int]:
        """`encode` as a part of a call that encodes `size` characters, which decide whether the compiled loops pay."""
        encoder = self.rules.encoder(size)
        if self.is_plain and not allowed:
            return self.rules.encode(text, encoder)
        ids: list[int] = []
        for part, i in self.rules.cut(text, allowed):
            ids += self.rules.encode(part, encoder) if i is None else [i]
        return ids

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

    def encode_iterable(self, texts: Iterable[str], allowed: Allowed = ()) -> Iterator[int]:
        r"""The ids of the texts joined, as they come: those that `encode` gives for the whole.

        Memory is bounded by the longest stretch in which no split pattern cuts for certain: they all do behind a letter
        that a space, a line end or an East Asian mark follows, and between lines. With a split pattern of one's own, or
        a library's tokenizer, all is read first.

        Args:
            allowed: as in `encode`.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> list(tokenizer.encode_iterable(["low", "er\n", "\nlow"])) == tokenizer.encode("lower\n\nlow")
        True
        """
        allowed = self._names_of(allowed)
        crossing = any(set(text) & {" ", "\n"} for text in (*allowed, *self.added))
        divisible = self.pattern in split.PATTERNS and not crossing
        waiting: list[str] = []
        n_waiting = size = 0
        for text in texts:
            _refuse_no_text(text, "a text to encode")
            waiting.append(text)
            n_waiting += len(text)
            size += len(text)
            if divisible and n_waiting > CHARACTERS_AT_ONCE:
                whole = "".join(waiting)
                end = next((match.end() for match in _CUT_BY_ALL.finditer(whole)), 0)
                yield from self._encode(whole[:end], allowed, size)
                waiting = [whole[end:]]
                n_waiting = len(waiting[0]) if end else -len(whole)  # twice as much before the next look
        yield from self._encode("".join(waiting), allowed, size)

    def encode_batch(self, texts: Sequence[str | bytes], allowed: Allowed = ()) -> list[list[int]]:
        """`encode` for each of `texts`, with the same `allowed`, on all cores when there is much of it.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> tokenizer.encode_batch(["low", b"lowest"])
        [[257], [257, 68, 260]]
        """
        names = self._names_of(allowed)
        strings = [text for text in texts if isinstance(text, str)]
        if names or len(strings) < len(texts):
            size = sum(map(len, texts))
            return [self._encode(text, names, size) for text in texts]
        ids, starts = self.encode_documents(column_of(strings))
        every = as_list(ids, self.vocab_size)
        return [every[first:last] for first, last in itertools.pairwise(starts.tolist())]

    def encode_documents(
        self, texts: pa.Array, *, framed: bool = False
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
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
        encoder = self.rules.encoder(texts.nbytes)
        if not self.is_plain or encoder is None:
            encoded = (self._encode(text, frozenset(), texts.nbytes) for text in texts.to_pylist())
            lists = [self.framed(ids) if framed else ids for ids in encoded]
            starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
            return np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(starts[-1])), starts
        text, offsets = text_of(texts)
        ids, starts = encoder(text, offsets, self.opener if framed else -1)
        if framed and self.closer != self.opener:
            ids = np.insert(ids, starts[1:], np.int32(self.closer))
            starts = starts + np.arange(len(starts))
        return ids, starts

    def warm_up(self) -> bool:
        """Load the compiled loops now, which takes seconds the first time, so that no later call waits for them.

        Returns:
            Whether they are there; without them encoding gives the same ids, many times slower.

        >>> Tokenizer.learn("low lower", vocab_size=320).warm_up()
        True
        """
        self.rules.compiled = True
        return self.rules.encoder(WORTH_LOADING) is not None

    def prepare(self, size: int) -> None:
        """Load the compiled loops if `size` characters, in however many calls, are worth it and they are not declined.

        >>> tokenizer = Tokenizer.learn("low lower", vocab_size=320)
        >>> tokenizer.prepare(1000)
        >>> tokenizer.compiled
        """
        if self.compiled is None and size > WORTH_LOADING:
            self.warm_up()

    @property
    def compiled(self) -> bool | None:
        """Whether the compiled loops encode: always, never, or, if None, once there was enough text."""
        return self.rules.compiled

    @compiled.setter
    def compiled(self, compiled: bool | None) -> None:
        self.rules.compiled = compiled

    def explain(self, text: str | bytes, allowed: Allowed = ()) -> Iterator[PreToken]:
        """How the ids of `encode(text, allowed)` come about, pre-token by pre-token. Slow: for looking, not for
        encoding.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> [(pre_token.raw, pre_token.ids) for pre_token in tokenizer.explain("lowest low")]
        [(b'lowest', (257, 68, 260)), (b' low', (258,))]
        """
        return self.rules.explain(text, self._names_of(allowed))

    # Decoding

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Ids → the very bytes they were made from; without the space that a library put before the text.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        raw = b"".join(self._bytes_of(ids))
        return raw.removeprefix(b" ") if self.begins_with_space else raw

    def _bytes_of(self, ids: Iterable[int]) -> Iterator[bytes]:
        for i in ids:
            if not 0 <= i < len(self._tokens):
                raise ValueError(f"id {i} is not in 0 to {self.vocab_size - 1}")
            yield self._tokens[i]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an id outside the vocabulary.
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
        parts = self._bytes_of(ids)
        return whole_characters(without_first_space(parts) if self.begins_with_space else parts)

    def offsets(self, text: str | bytes, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """(ids, 2) where each id of `encode(text)` begins and ends: in characters of a string, in bytes of bytes.

        An id that is a part of a character spans that character.

        Raises:
            UnsupportedError: the ids do not decode to the text: the tokenizer changes it, or they are another's.

        >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
        >>> tokenizer.offsets("low lower", tokenizer.encode("low lower")).tolist()
        [[0, 3], [3, 9]]
        """
        raw = text if isinstance(text, bytes) else to_utf8(text)
        if self.decode_bytes(ids) != raw:
            raise UnsupportedError("these ids do not decode to this very text: where each begins in it is not known")
        sizes = [len(self._tokens[i]) for i in ids]
        if self.begins_with_space and sizes and self._tokens[ids[0]].startswith(b" "):
            sizes[0] -= 1
        ends = np.cumsum(sizes, dtype=np.int64)
        begins = np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)]
        if isinstance(text, str):
            character = np.cumsum((np.frombuffer(raw, np.uint8) & 0xC0) != 0x80) - 1  # that each byte belongs to
            begins, ends = character[begins], character[ends - 1] + 1
        return np.stack([begins, ends], axis=1)

    # Files

    @classmethod
    def load(cls, path: str | Path, *, pattern: str | None = None, special: Sequence[str] = ()) -> Self:
        """Read a tokenizer.json, GPT-2's two files, a rank file or a SentencePiece model, or a directory of one.

        The files beside it may name the tokens that open a text, close it or end an answer, and add further tokens.

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
        return cls(*formats.load(Path(path), pattern, special))

    def save(self, path: Path) -> None:
        """Write the file that the name of `path` asks for: `*.json` is a tokenizer.json, which Hugging Face tokenizers
        reads to the same ids, `*.tiktoken` ranks, `vocab.bpe` GPT-2's two files. In a directory it is the tokenizer's
        own. A library's tokenizer keeps its kind of file.

        Raises:
            SettingsError: a name that asks for none of these.
            UnsupportedError: what such a file cannot hold.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Tokenizer.learn("low lower", vocab_size=320).save(Path(folder, "low.tiktoken"))
        ...     Path(folder, "low.tiktoken").read_text().splitlines()[256]
        'bG8= 256'
        """
        formats.write(self.rules, self.roles, Path(path))

    @property
    def digest(self) -> str:
        """The sha256 of everything that decides the ids of a document."""
        content, named = self.rules.content(), Roles.of(self.special)
        framing = [self.roles.opener, self.roles.closer]  # what ends an answer decides no id
        if framing != [named.opener, named.closer]:
            content += canonical_json(framing)
        return hashlib.sha256(content).hexdigest()

    def spelled(self, i: int) -> str:
        """The token of id `i` as its file spells it."""
        return self.rules.spelled(i)

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of `tokenizer.json`.

        Raises:
            UnsupportedError: a SentencePiece model; two tokens that would be written alike.
        """
        return self.rules.to_hugging_face()


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
