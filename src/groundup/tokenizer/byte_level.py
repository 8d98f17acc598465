"""Byte-level BPE: the rules by which text or bytes become ids, and the tokenizer.json that holds them.

Ids 0 to 255 of a learned vocabulary are the bytes in the order of GPT-2's table, then one id a merge, then the special
tokens; a vocabulary that was read may have any order.
"""

import contextlib
import functools
import itertools
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from groundup.errors import SettingsError, UnsupportedError
from groundup.files import canonical_json, write_json
from groundup.tokenizer import split
from groundup.tokenizer.bpe import Pair, apply_merges
from groundup.tokenizer.columns import as_list
from groundup.tokenizer.declared import added_entry
from groundup.tokenizer.explain import EXPLAINED_BYTES, PreToken, merges_of
from groundup.tokenizer.settings import MULTIPLE, N_BYTES
from groundup.tokenizer.vocabulary import to_bytes, to_characters, to_utf8

if TYPE_CHECKING:
    from groundup.tokenizer.fast.encode import Encoder

CACHED = 1 << 18
"""Pre-tokens whose ids the plain loops remember."""
WORTH_LOADING = 5_000_000
"""Characters, in one call or in all so far, from which on the compiled loops pay, although loading them takes a second,
and compiling them the first time many."""
LONG = 1 << 16
"""Bytes of a single pre-token from which on they do."""
WORTH_CALLING = 256
"""Characters of one text from which on calling the loaded loops pays."""
NOT_LOADED = (ImportError, OSError, RuntimeError, MemoryError)
"""What loading the compiler fails with: no library, no memory, nowhere to keep what it made."""


class ByteLevel:
    """A vocabulary, its merges, and how text is cut before merging; its methods are those of `Rules`."""

    begins_with_space = repeats_space = False
    suffix = ".json"

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[Pair],
        special: Mapping[str, int],
        pattern: str,
        *,
        ranks: Sequence[int] | None = None,
        whole_pre_tokens: bool = False,
        added: Mapping[str, int] | None = None,
        normalizer: str | None = None,
        normalized: Iterable[str] = (),
    ) -> None:
        """
        Args:
            tokens: bytes of each id; for a special token, its text.
            merges: pairs of ids in the order they were learned; the joined bytes are a token.
            special: text of each special token → its id.
            pattern: name of the split pattern, such as `gpt2`, or a regular expression.
            ranks: of each merge; the lowest goes first, of equals the leftmost. Their order in `merges`, if not given.
            whole_pre_tokens: a pre-token that is a token is that token, whatever the merges would make of it (tiktoken,
                Hugging Face's `ignore_merges`).
            added: text of each token that is recognised wherever it stands, though it is not special → its id.
            normalizer: Unicode form that text is brought to first: NFC, NFD, NFKC or NFKD. Decoding then gives back
                the text in that form.
            normalized: the special and added tokens that are looked for after the others, in the normalised text.
        """
        self.tokens = list(tokens)
        self.pairs = list(merges)
        self.special = dict(special)
        self.added = dict(added or {})
        self.pattern = pattern
        self.normalizer = normalizer
        self.normalized = frozenset(normalized)
        self.whole_pre_tokens = whole_pre_tokens
        self.is_plain = not (self.added or self.normalizer)
        self.compiled: bool | None = None
        self.unmerged = {*special.values(), *self.added.values()}
        """The ids of special and added tokens."""
        self.ids = {token: i for i, token in enumerate(tokens) if i not in self.unmerged}
        if added:  # some of them may be made by merges too
            made = {tokens[left] + tokens[right] for left, right in merges} | {bytes([byte]) for byte in range(N_BYTES)}
            for i in self.added.values():
                if tokens[i] in made:
                    self.ids.setdefault(tokens[i], i)
        try:
            self.byte_ids = [self.ids[bytes([byte])] for byte in range(N_BYTES)]
            self.merges = {
                (left, right): (rank, self.ids[tokens[left] + tokens[right]])
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
        self._recognised: tuple[dict[str, int], dict[str, int]] = ({}, {})  # in the text, in the normalised text
        for text, i in (*self.special.items(), *self.added.items()):
            if text not in self.normalized:
                self._recognised[0][text] = i
            elif text:
                self._recognised[1].setdefault(_normalize(self.normalizer, text), i)
        self._cache: dict[str, list[int]] = {}
        self._characters = 0
        """Encoded so far."""

    def cut(self, text: str | bytes, allowed: Collection[str]) -> Iterator[tuple[str | bytes, int | None]]:
        as_text = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
        refused = {i for special, i in self.special.items() if special not in allowed}
        raw, normal = self._recognised
        for part, i in cut_at(as_text, raw, refused):
            within = [(part, i)] if i is not None else cut_at(_normalize(self.normalizer, part), normal, refused)
            for inner, j in within:
                yield (inner.encode("utf-8", "surrogateescape") if isinstance(text, bytes) else inner), j

    # Encoding what stands between recognised tokens

    def encode(self, part: str | bytes, encoder: "Encoder | None" = None) -> list[int]:
        if isinstance(part, bytes):
            ids, rest = self._up_to_wrong_byte(part, encoder)
            return ids + self._encode_pre_token(rest, encoder)
        if encoder is not None and len(part) > WORTH_CALLING:
            raw = np.frombuffer(to_utf8(part), np.uint8)
            return as_list(encoder(raw, np.array([0, len(raw)]))[0], len(self.tokens))
        ids = []
        for pre_token in split.pre_tokens(part, self.pattern):
            known = self._cache.get(pre_token)
            if known is None:
                known = self._encode_pre_token(to_utf8(pre_token), encoder)
                if len(self._cache) >= CACHED:
                    self._cache.clear()
                if len(pre_token) <= 64:
                    self._cache[pre_token] = known
            ids += known
        return ids

    def _encode_pre_token(self, raw: bytes, encoder: "Encoder | None" = None) -> list[int]:
        if self.whole_pre_tokens and raw in self.ids:
            return [self.ids[raw]]
        if len(raw) > WORTH_CALLING and (encoder := encoder or self.encoder(len(raw), LONG)):
            text, end = np.frombuffer(raw, np.uint8), np.array([len(raw)])
            return as_list(encoder.encode_pre_tokens(text, end, np.array([0, len(raw)]))[0], len(self.tokens))
        return apply_merges([self.byte_ids[byte] for byte in raw], self.merges)

    def _up_to_wrong_byte(self, raw: bytes, encoder: "Encoder | None" = None) -> tuple[list[int], bytes]:
        """The ids of what is split as text, and the rest, which is one pre-token: empty where all is UTF-8."""
        try:
            return self.encode(raw.decode(), encoder), b""
        except UnicodeDecodeError as error:
            valid = raw[: error.start].decode()
        pre_tokens = split.pre_tokens(valid, self.pattern)
        ids = self.encode(valid, encoder)
        kept = len(ids) - (len(self._encode_pre_token(pre_tokens[-1].encode())) if pre_tokens else 0)
        if pre_tokens and self._is_space(ids[kept]):
            while kept and self._is_space(ids[kept - 1]):
                kept -= 1
        return ids[:kept], b"".join(self.tokens[i] for i in ids[kept:]) + raw[len(valid.encode()) :]

    def _is_space(self, i: int) -> bool:
        return not self.tokens[i].strip(b" \n\t")

    def encoder(self, size: int, least: int = WORTH_LOADING) -> "Encoder | None":
        """The compiled loops, if a call that encodes `size` characters should use them. They are loaded where one call
        has more than `least`, or all so far had enough. None where they are declined or cannot be loaded."""
        if self.compiled is False:
            return None
        self._characters += size
        unloaded = "_encoder" not in vars(self) and not self.compiled
        if size <= WORTH_CALLING or (unloaded and size <= least and self._characters <= WORTH_LOADING):
            return None
        return self._encoder

    @functools.cached_property
    def _encoder(self) -> "Encoder | None":
        try:
            from groundup.tokenizer.fast.encode import Encoder

            whole = self.ids if self.whole_pre_tokens else None
            encoder = Encoder(self.byte_ids, self.merges, self.pattern, whole_pre_tokens=whole)
            encoder(np.frombuffer(b"a", np.uint8), np.array([0, 1]))
            return encoder
        except NOT_LOADED as error:
            warn_not_loaded(error)
            return None

    # Explaining

    def explain(self, text: str | bytes, allowed: Collection[str]) -> Iterator[PreToken]:
        explain_pre_token = functools.cache(self._explain_pre_token)  # words come again
        for part, i in self.cut(text, allowed):
            if i is not None:
                yield PreToken(self.tokens[i], (i,), "added" if i in self.added.values() else "special", ())
                continue
            rest = b""
            if isinstance(part, bytes):
                ids, rest = self._up_to_wrong_byte(part)
                part = b"".join(self.tokens[i] for i in ids).decode()
            for pre_token in split.pre_tokens(part, self.pattern):
                yield explain_pre_token(to_utf8(pre_token))
            if rest:
                yield explain_pre_token(rest)

    def _explain_pre_token(self, raw: bytes) -> PreToken:
        ids = [self.byte_ids[byte] for byte in raw]
        merges = tuple(merges_of(ids, self.merges)) if len(raw) <= EXPLAINED_BYTES else None
        if self.whole_pre_tokens and len(raw) > 1 and raw in self.ids:
            return PreToken(raw, (self.ids[raw],), "whole", merges)
        return PreToken(raw, tuple(apply_merges(ids, self.merges)), "merged", merges)

    # More tokens

    def extended(self, added: Sequence[str], special: Sequence[str]) -> "ByteLevel":
        new = [*added, *special]
        for text in new:
            self._refuse_as_token(text)
        if len(set(new)) < len(new):
            (twice, _), *_ = Counter(new).most_common(1)
            raise SettingsError(f"the token {twice!r} is named twice")
        taken = {*self.special, *self.added, *new}
        unused = (name for i in itertools.count() if (name := f"<|reserved_{i}|>") not in taken)
        n_tokens = len(self.tokens)
        new += itertools.islice(unused, -len(new) % MULTIPLE if n_tokens % MULTIPLE == 0 else 0)
        ids = {text: n_tokens + number for number, text in enumerate(new)}
        return ByteLevel(
            [*self.tokens, *(text.encode() for text in new)],
            self.pairs,
            {**self.special, **{text: ids[text] for text in new[len(added) :]}},
            self.pattern,
            ranks=[self.merges[pair][0] for pair in self.pairs],
            whole_pre_tokens=self.whole_pre_tokens,
            added={**self.added, **{text: ids[text] for text in added}},
            normalizer=self.normalizer,
            normalized=self.normalized,
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
        if raw in self.ids:
            raise SettingsError(f"{text!r} is a token already: id {self.ids[raw]}")
        with contextlib.suppress(KeyError):
            if to_bytes(text) in self.ids:
                raise SettingsError(
                    f"{text!r} cannot be a token: tokenizer.json writes {to_bytes(text)!r}, id "
                    f"{self.ids[to_bytes(text)]}, with the same characters"
                )

    # The file

    def spelled(self, i: int) -> str:
        return self.tokens[i].decode() if i in self.unmerged else to_characters(self.tokens[i])

    def content(self) -> bytes:
        return canonical_json(self.to_hugging_face())

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of `tokenizer.json`.

        Raises:
            UnsupportedError: a special token that is written as another token is.
        """
        last = max((i for i in range(len(self.tokens)) if i not in self.unmerged), default=0)
        # The library numbers added tokens itself, from the end of the vocabulary on: those before it stand in it too.
        strings = [self.spelled(i) for i in range(len(self.tokens)) if i not in self.unmerged or i < last]
        vocabulary = {text: i for i, text in enumerate(strings)}
        if len(vocabulary) < len(strings):
            twice, _ = Counter(strings).most_common(1)[0]
            raise UnsupportedError(f"tokenizer.json cannot hold both a token and a special token written {twice!r}")
        merges = [[to_characters(self.tokens[i]) for i in pair] for pair in self.pairs]
        added = [
            added_entry(text, i, normalized=text in self.normalized, special=text in self.special)
            for text, i in sorted({**self.special, **self.added}.items(), key=lambda token: token[1])
        ]
        return tokenizer_json(vocabulary, merges, added, self.pattern, self.normalizer, self.whole_pre_tokens)

    def write(self, path: Path) -> None:
        write_json(path, self.to_hugging_face())


def tokenizer_json(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str] | str],
    added: Sequence[Mapping[str, Any]],
    pattern: str,
    normalizer: str | None = None,
    whole_pre_tokens: bool = False,
) -> dict[str, Any]:
    """The content of a `tokenizer.json` of byte-level BPE.

    Args:
        vocabulary: each token as GPT-2's files write it → its id.
        added: entries of special and added tokens, in the order of their ids.
        pattern, normalizer, whole_pre_tokens: as of `ByteLevel`.
    """
    regular = {"Regex": split.PATTERNS.get(pattern, pattern)}
    cut = {"type": "Split", "pattern": regular, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": {"type": normalizer} if normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_pre_tokens,
            "vocab": dict(vocabulary),
            "merges": list(merges),
        },
    }


def warn_not_loaded(error: BaseException) -> None:
    """Say once that the plain loops do the work of the compiled ones."""
    warnings.warn(
        f"the tokenizer's compiled loops cannot be loaded ({error}): the plain ones go on, slower", stacklevel=4
    )


def _normalize(form: str | None, text: str) -> str:
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
