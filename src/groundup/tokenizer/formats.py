"""The files that hold a tokenizer: reading and writing them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.files import check, is_made, reading
from groundup.tokenizer import split
from groundup.tokenizer.vocabulary import BYTE_CHARACTERS, CHARACTER_BYTES, END_OF_TEXT, to_bytes, to_characters

if TYPE_CHECKING:
    from groundup.tokenizer.tokenizer import Tokenizer


def read(path: Path) -> dict[str, Any]:
    """What `Tokenizer` is made of, from a tokenizer.json, or a directory that holds one or GPT-2's two files."""
    files = _gpt2_files(path)
    if not files and path.is_dir():
        path = path / "tokenizer.json"
    if is_made(path.parent if path.is_file() else path):
        check(path.parent if path.is_file() else path)
    try:
        return _gpt2(*files) if files else _hugging_face(path)
    except SettingsError:
        raise
    except KeyError as error:
        raise DataError(f"{path} is not a tokenizer that can be read here: it has no {error}") from None
    except (TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{path} is JSON, but not laid out as a tokenizer is: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a tokenizer that can be read here: {error}") from None


def _gpt2(vocabulary: Path, merges: Path) -> dict[str, Any]:
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
    return _from_strings(ids, pairs, {END_OF_TEXT: ids[END_OF_TEXT]}, "gpt2")


def _hugging_face(path: Path) -> dict[str, Any]:
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
    return _from_strings(model["vocab"], pairs, special, pattern)


def _from_strings(
    ids: Mapping[str, int], pairs: Mapping[str, Sequence[str]], special: Mapping[str, int], pattern: str
) -> dict[str, Any]:
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
            raise ValueError(f"{place} joins {_shown(left)} and {_shown(right)} again, as {merges[left, right]} does")
        merges[left, right] = place
    _refuse_missing_merges(ids, merges, special)
    return {
        "tokens": tokens,
        "merges": [(ids[left], ids[right]) for left, right in merges],
        "special": special,
        "pattern": pattern,
    }


def hugging_face(tokenizer: "Tokenizer") -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special_ids = set(tokenizer.special.values())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut = {
        "type": "Split",
        "pattern": {"Regex": split.PATTERNS.get(tokenizer.pattern, tokenizer.pattern)},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in tokenizer.special.items()],
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
            "vocab": {to_characters(token): i for i, token in enumerate(tokenizer.tokens) if i not in special_ids},
            "merges": [[to_characters(left), to_characters(right)] for left, right in tokenizer.merges],
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
        tokens[i] = text.encode() if text in special else to_bytes(text)
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
        raise UnsupportedError(f"its split pattern {cuts} is none of {', '.join(split.PATTERNS)}")
    return name
