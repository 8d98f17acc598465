"""Byte-level BPE tokenizer: text or bytes ↔ ids, with nothing lost.

Ids 0 to 255 are the bytes in the order of GPT-2's table, then one id a merge, then the special tokens. The file
format is Hugging Face's `tokenizer.json`.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import regex

from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.files import Progress, check, is_made, no_progress, reading, write_json
from groundup.tokenizer import split
from groundup.tokenizer.bpe import Pair, encode_piece
from groundup.tokenizer.learn import count_pieces, learn_merges
from groundup.tokenizer.settings import MULTIPLE, N_BYTES, N_SPECIAL, Learned

END_OF_TEXT = "<|endoftext|>"
NAMED_SPECIAL = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
CACHED_PIECES = 1 << 18


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte (bytes_to_unicode in its encoder.py), in the order of its ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(N_BYTES + i) for i, byte in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()
CHARACTER_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def _to_characters(token: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in token)


def _to_bytes(characters: str) -> bytes:
    return bytes(CHARACTER_BYTES[character] for character in characters)


class Tokenizer:
    """A vocabulary and the two directions through it."""

    def __init__(
        self, tokens: Sequence[bytes], merges: Sequence[Pair], special: Mapping[str, int], pattern: str
    ) -> None:
        """
        Args:
            tokens: bytes of each id; for a special token, its text.
            merges: pairs of ids in the order they were learned; the joined bytes are a token.
            special: text of each special token → its id.
            pattern: name of the split pattern, `gpt2` or `cl100k`.
        """
        self.special = dict(special)
        self.pattern = pattern
        self._tokens = list(tokens)
        self._pairs = list(merges)
        special_ids = set(special.values())
        ids = {token: i for i, token in enumerate(tokens) if i not in special_ids}
        self._byte_ids = [ids[bytes([byte])] for byte in range(N_BYTES)]
        self._merges = {pair: (rank, ids[tokens[pair[0]] + tokens[pair[1]]]) for rank, pair in enumerate(self._pairs)}
        self._split = split.compiled(pattern)
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
        pieces = count_pieces(texts, split.compiled(pattern))
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
        for piece in self._split.findall(text):
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
        return encode_piece([self._byte_ids[byte] for byte in piece], self._merges)

    def _encode_bytes(self, raw: bytes) -> list[int]:
        try:
            return self._encode_ordinary(raw.decode())
        except UnicodeDecodeError as error:
            pieces = self._split.findall(raw[: error.start].decode())
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
        path = Path(path)
        files = _gpt2_files(path)
        if not files and path.is_dir():
            path = path / "tokenizer.json"
        if is_made(path.parent if path.is_file() else path):
            check(path.parent if path.is_file() else path)
        try:
            return cls._load_gpt2(*files) if files else cls._load_hugging_face(path)
        except SettingsError:
            raise
        except KeyError as error:
            raise DataError(f"{path} is not a tokenizer that can be read here: it has no {error}") from None
        except (TypeError, IndexError, AttributeError) as error:
            raise DataError(f"{path} is JSON, but not laid out as a tokenizer is: {error}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not a tokenizer that can be read here: {error}") from None

    @classmethod
    def _load_gpt2(cls, vocabulary: Path, merges: Path) -> Self:
        ids: dict[str, int] = _read_json(vocabulary)
        with reading(merges) as stream:
            lines = stream.read().decode().split("\n")
        pairs = {
            f"line {number} of {merges.name}": line.split(" ")
            for number, line in enumerate(lines, 1)
            if line and not line.startswith("#version")
        }
        if END_OF_TEXT not in ids:
            raise ValueError(f"{vocabulary.name} has no {END_OF_TEXT}; is it cut short, or not GPT-2's?")
        return cls._from_strings(ids, pairs, {END_OF_TEXT: ids[END_OF_TEXT]}, "gpt2")

    @classmethod
    def _load_hugging_face(cls, path: Path) -> Self:
        file = _read_json(path)
        model = file["model"]
        if model.get("type", "BPE") != "BPE":
            raise UnsupportedError(f"{path}: its model is {model.get('type')}; only byte-level BPE is read")
        for option in ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
            if model.get(option):
                raise UnsupportedError(f"{path}: its model has {option} = {model[option]!r}, which is not read")
        ordinary = [token["content"] for token in file.get("added_tokens", []) if not token.get("special", True)]
        if ordinary:
            raise UnsupportedError(f"{path}: it has added tokens that are not special, such as {ordinary[0]!r}")
        pattern = _pattern_in(file["pre_tokenizer"])
        if file.get("normalizer"):
            raise UnsupportedError(f"{path}: it has a normalizer ({file['normalizer'].get('type')}), which is not read")
        pairs = {
            f"merge {number}": pair.split(" ") if isinstance(pair, str) else pair
            for number, pair in enumerate(model["merges"], 1)
        }
        special = {token["content"]: token["id"] for token in file.get("added_tokens", [])}
        return cls._from_strings(model["vocab"], pairs, special, pattern)

    @classmethod
    def _from_strings(
        cls, ids: Mapping[str, int], pairs: Mapping[str, Sequence[str]], special: Mapping[str, int], pattern: str
    ) -> Self:
        """
        Args:
            pairs: where each merge stands → its two parts, in order.
        """
        tokens = _in_order(ids, special)
        merges: dict[tuple[str, str], str] = {}
        for place, pair in pairs.items():
            if len(pair) != 2:
                raise ValueError(f"{place}, {_shown(' '.join(pair))}, should be two parts with a blank between them")
            left, right = pair
            for part, what in ((left, "its part"), (right, "its part"), (left + right, "what it makes,")):
                if part not in ids:
                    raise ValueError(
                        f"{place} joins {_shown(left)} and {_shown(right)}, but {what} {_shown(part)} is not in the "
                        "vocabulary; the two do not belong together, or one of them is cut short or damaged"
                    )
            if (left, right) in merges:
                raise ValueError(
                    f"{place} joins {_shown(left)} and {_shown(right)} again, as {merges[left, right]} does"
                )
            merges[left, right] = place
        _refuse_missing_merges(ids, merges, special)
        return cls(tokens, [(ids[left], ids[right]) for left, right in merges], special, pattern)

    def save(self, path: Path) -> None:
        """Write the `tokenizer.json` that Hugging Face tokenizers reads to the same ids."""
        write_json(path, self.to_hugging_face())

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of `tokenizer.json`."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        special_ids = set(self.special.values())
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        cut = {
            "type": "Split",
            "pattern": {"Regex": split.PUBLISHED[self.pattern]},
            "behavior": "Isolated",
            "invert": False,
        }
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": text, **flags} for text, i in self.special.items()],
            "normalizer": None,
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
                "ignore_merges": False,
                "vocab": {_to_characters(token): i for i, token in enumerate(self._tokens) if i not in special_ids},
                "merges": [[_to_characters(left), _to_characters(right)] for left, right in self.merges],
            },
        }


def _read_json(path: Path) -> Any:
    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read = dict(pairs)
        if len(read) < len(pairs):
            (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{_shown(twice)} stands there twice")
        return read

    with reading(path) as stream:
        raw = stream.read()
    try:
        return json.loads(raw, object_pairs_hook=object_of)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path.name} is damaged or cut short: {error.msg} at character {error.pos:,} of {len(error.doc):,}"
        ) from None


def _in_order(ids: Mapping[str, int], special: Mapping[str, int]) -> list[bytes]:
    """The bytes of each id, which must be 0 to n − 1, each of one token."""
    owner: dict[int, str] = {}
    for text, i in (*ids.items(), *special.items()):
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise ValueError(f"the id of {_shown(text)} is {i!r}; it should be a whole number from 0")
        if owner.setdefault(i, text) != text:
            raise ValueError(f"id {i} is given to both {_shown(owner[i])} and {_shown(text)}; each should have its own")
        if ids.get(text, i) != i:
            raise ValueError(f"{_shown(text)} has id {ids[text]} in the vocabulary and id {i} as a special token")
    missing = next((i for i in range(len(owner)) if i not in owner), None)
    if missing is not None:
        raise ValueError(
            f"its ids have gaps: there are {len(owner):,} tokens with ids up to {max(owner):,}, but none has id "
            f"{missing:,}; is the file cut short?"
        )
    tokens = [b""] * len(owner)
    for i, text in owner.items():
        foreign = [character for character in text if character not in CHARACTER_BYTES]
        if text not in special and foreign:
            raise ValueError(f"{_shown(text)} (id {i}) has {foreign[0]!r}, which stands for no byte in GPT-2's table")
        tokens[i] = text.encode() if text in special else _to_bytes(text)
    byte = next((byte for byte, character in BYTE_CHARACTERS.items() if character not in ids), None)
    if byte is not None:
        raise ValueError(f"the byte {byte:#04x}, written {BYTE_CHARACTERS[byte]!r}, is not in the vocabulary")
    return tokens


def _refuse_missing_merges(
    ids: Mapping[str, int], merges: Iterable[tuple[str, str]], special: Mapping[str, int]
) -> None:
    """A token that two others could make, but no merge does, is a sign of a list that was cut at the end of a line."""
    made = {left + right for left, right in merges}
    for text in ids.keys() - made - special.keys():
        cuts = [(text[:i], text[i:]) for i in range(1, len(text))]
        if any(left in ids and right in ids for left, right in cuts):
            raise ValueError(
                f"no merge makes {_shown(text)} (id {ids[text]}), though two other tokens could: the list of merges is "
                "cut short"
            )


def _shown(token: str) -> str:
    return repr(token if len(token) <= 40 else f"{token[:40]}…")


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


def _gpt2_files(directory: Path) -> tuple[Path, Path] | None:
    """GPT-2's vocabulary and merges under either of their names, also gzipped, where there is no tokenizer.json."""
    if (directory / "tokenizer.json").is_file():
        return None
    for vocabulary, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        for suffix in ("", ".gz"):
            files = directory / (vocabulary + suffix), directory / (merges + suffix)
            if all(file.is_file() for file in files):
                return files
    return None


def _pattern_in(pre_tokenizer: dict[str, Any] | None) -> str:
    """The name of the split pattern that a Hugging Face pre-tokenizer stands for.

    Raises:
        UnsupportedError: for one that we do not know.
    """
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    cuts = [part["pattern"].get("Regex") for part in parts if part and part["type"] == "Split"]
    levels = [part for part in parts if part and part["type"] == "ByteLevel"]
    if len(levels) != 1 or len(cuts) + len(levels) != len(parts) or levels[0].get("add_prefix_space"):
        raise UnsupportedError(
            f"its pre-tokenizer is {json.dumps(pre_tokenizer)[:200]}; only splitting and byte level are read"
        )
    if levels[0].get("use_regex", True) and not cuts:
        return "gpt2"
    name = split.named(cuts[0]) if len(cuts) == 1 else None
    if name is None:
        raise UnsupportedError(f"its split pattern {cuts} is none of {', '.join(split.PUBLISHED)}")
    return name
