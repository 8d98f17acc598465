"""Hugging Face's tokenizer.json, and what vocabularies written as strings have in common."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.errors import SettingsError, UnsupportedError
from groundup.files import reading
from groundup.tokenizer import split
from groundup.tokenizer.bpe import apply_merges
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.declared import Declared, Roles, added_entry
from groundup.tokenizer.vocabulary import BYTE_CHARACTERS, CHARACTER_BYTES, to_bytes


def with_added(file: dict[str, Any], declared: Declared) -> dict[str, Any]:
    """A tokenizer.json with the tokens that only the files beside it name, as Hugging Face's library reads them."""
    there = {token["content"]: token for token in file.get("added_tokens") or []}
    entries = {token["content"]: token for token in declared.added} | there
    vocabulary = file["model"]["vocab"]
    ids = vocabulary if isinstance(vocabulary, dict) else {text: i for i, (text, _) in enumerate(vocabulary)}
    for text in declared.special & ids.keys() - entries.keys():  # in the vocabulary, and made special by its role
        entries[text] = added_entry(text, ids[text], special=True)
    added = [{**token, "special": token.get("special", True) or text in declared.special}
             for text, token in entries.items()]  # fmt: skip
    return {**file, "added_tokens": sorted(added, key=lambda token: token["id"])}


def special_and_added(file: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """The ids of the special tokens of a tokenizer.json `with_added`, by their texts; and of its other added tokens."""
    ids: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for token in file["added_tokens"]:
        ids[bool(token["special"])][token["content"]] = token["id"]
    return ids[True], ids[False]


def framing(file: Mapping[str, Any], special: Mapping[str, int]) -> tuple[int | None, int | None]:
    """The ids that the post-processor of a tokenizer.json puts before and behind a text."""
    for step in steps_of(file.get("post_processor"), "processors"):
        match step:
            case {"type": "TemplateProcessing", "single": [*parts]}:
                names = [part.get("SpecialToken", {}).get("id") for part in parts]
                text = names.index(None) if None in names else len(names)
                before, behind = [*names[:text], None], [*names[text + 1 :], None]
                return special.get(before[0] or ""), special.get(behind[0] or "")
            case {"type": "RobertaProcessing" | "BertProcessing", "cls": [_, int(first)], "sep": [_, int(last)]}:
                return first, last
    return None, None


def read_byte_level(file: dict[str, Any], declared: Declared) -> tuple[ByteLevel, Roles]:
    """The byte-level BPE of a tokenizer.json, and its roles.

    Raises:
        UnsupportedError: a tokenizer of another kind.
        ValueError, KeyError, TypeError: a damaged file.
    """
    model = file["model"]
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(f"its model is {model.get('type')}; only byte-level BPE is read")
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(option):
            raise UnsupportedError(f"its model has {option} = {model[option]!r}, which is not read")
    for token in file["added_tokens"]:
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise UnsupportedError(f"its added token {token['content']!r} has {flag} = true, which is not read")
    special, added = special_and_added(file)
    rules = from_strings(
        model["vocab"],
        {
            f"merge {number}": pair.split(" ") if isinstance(pair, str) else pair
            for number, pair in enumerate(model["merges"], 1)
        },
        special,
        pattern_in(file["pre_tokenizer"]),
        added=added,
        normalizer=_normalizer_in(file.get("normalizer")),
        normalized=[token["content"] for token in file["added_tokens"] if token.get("normalized", False)],
        whole_pre_tokens=bool(model.get("ignore_merges")),
    )
    return rules, declared.roles(special, *framing(file, special))


def _normalizer_in(normalizer: dict[str, Any] | None) -> str | None:
    """One Unicode form. Of several in a row, the last composes or not, and any with a K has replaced for good."""
    forms = [step["type"] for step in steps_of(normalizer, "normalizers")]
    foreign = [form for form in forms if form not in ("NFC", "NFD", "NFKC", "NFKD")]
    if foreign:
        raise UnsupportedError(f"it has a normalizer ({foreign[0]}), which is not read; Unicode's four forms are")
    if not forms:
        return None
    return f"NF{'K' if any('K' in form for form in forms) else ''}{forms[-1][-1]}"


def pattern_in(pre_tokenizer: dict[str, Any] | None) -> str:
    """The split pattern that a Hugging Face pre-tokenizer stands for: a name, or a regular expression of its own.

    Raises:
        UnsupportedError: for one that is not represented here.
    """
    *before, level = steps_of(pre_tokenizer, "pretokenizers") or [{}]
    refused = UnsupportedError(
        f"its pre-tokenizer is {json.dumps(pre_tokenizer)[:200]}; only splitting once and byte level are read"
    )
    if level.get("type") != "ByteLevel" or level.get("add_prefix_space", True):
        raise refused
    use_regex = level.get("use_regex", True)
    match before:
        case []:
            return "gpt2" if use_regex else r"[\s\S]+"
        case [{"type": "Digits", "individual_digits": True}] if use_regex:
            return "smollm"
        case [{"type": "Split", "pattern": {"Regex": str(source)}, "behavior": behavior}]:
            pass
        case [{"type": "Split", "pattern": {"String": str(text)}, "behavior": behavior}]:
            source = re.escape(text)
        case _:
            raise refused
    name = split.named(source)
    if use_regex and name != "gpt2":  # two steps, which are one only where they are the same
        raise refused
    inverted = before[0].get("invert", False)
    if behavior != "Isolated" and not (name and (behavior, inverted) == ("Removed", True)):
        raise UnsupportedError(f"it splits with behavior {behavior}, inverted: {inverted}, which is not read")
    try:
        split.compiled(name or source)
    except SettingsError as error:
        raise UnsupportedError(str(error)) from None
    return name or source


def steps_of(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """A step of a tokenizer.json, or, of a sequence, the steps in its field `inner`."""
    if not step:
        return []
    return [each for part in step[inner] for each in steps_of(part, inner)] if inner in step else [step]


# What is common


def from_strings(
    ids: Mapping[str, int],
    pairs: Mapping[str, Sequence[str]],
    special: Mapping[str, int],
    pattern: str,
    *,
    added: Mapping[str, int],
    normalizer: str | None,
    normalized: Iterable[str] = (),
    whole_pre_tokens: bool = False,
) -> ByteLevel:
    """Byte-level BPE from tokens as files spell them.

    Args:
        pairs: where each merge stands in its file → its two parts, in order.

    Raises:
        ValueError: ids with gaps, given twice or of what is no byte; merges that do not belong to these tokens.
        UnsupportedError: a special token that merges could make of ordinary text; a byte that is no token.
    """
    outside = {**special, **added}
    tokens = _in_order(ids, outside)
    merges: dict[tuple[str, str], str] = {}
    for where, pair in pairs.items():
        if len(pair) != 2:
            raise ValueError(f"{where}, {shorten(' '.join(pair))}, should be two parts with a space between them")
        left, right = pair
        for part, what in ((left, "its part"), (right, "its part"), (left + right, "what it makes,")):
            if part not in ids:
                raise ValueError(
                    f"{where} joins {shorten(left)} and {shorten(right)}, but {what} {shorten(part)} is not in the "
                    "vocabulary; the two do not belong together, or one of them is cut short or damaged"
                )
        if (left, right) in merges:
            again = merges[left, right]
            raise ValueError(f"{where} joins {shorten(left)} and {shorten(right)} again, as {again} does")
        merges[left, right] = where
    _refuse_smuggled(outside, special, merges)
    if not whole_pre_tokens:
        _refuse_missing_merges(ids, merges, outside)
    return ByteLevel(
        tokens,
        [(ids[left], ids[right]) for left, right in merges],
        special,
        pattern,
        whole_pre_tokens=whole_pre_tokens,
        added=added,
        normalizer=normalizer,
        normalized=normalized,
    )


def read_json(path: Path) -> Any:
    """JSON in which no name of an object is given twice; ValueError if it is damaged."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read = dict(pairs)
        if len(read) < len(pairs):
            (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{shorten(twice)} stands there twice")
        return read

    with reading(path) as stream:
        raw = stream.read()
    try:
        return json.loads(raw, object_pairs_hook=object_of)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path.name} is damaged or cut short: {error.msg} at character {error.pos:,} of {len(error.doc):,}"
        ) from None


def _in_order(ids: Mapping[str, int], outside: Mapping[str, int]) -> list[bytes]:
    """The bytes of each id, which must be 0 to n − 1, each of one token; `outside` are special and added tokens."""
    owner: dict[int, str] = {}
    for text, i in (*ids.items(), *outside.items()):
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise ValueError(f"the id of {shorten(text)} is {i!r}; it should be a whole number from 0")
        if owner.setdefault(i, text) != text:
            raise ValueError(
                f"id {i} is given to both {shorten(owner[i])} and {shorten(text)}; each should have its own"
            )
        if ids.get(text, i) != i:
            raise ValueError(f"{shorten(text)} has id {ids[text]} in the vocabulary and id {i} as a special token")
    missing = next((i for i in range(len(owner)) if i not in owner), None)
    if missing is not None:
        raise ValueError(
            f"its ids have gaps: there are {len(owner):,} tokens with ids up to {max(owner):,}, but none has id "
            f"{missing:,}; is the file cut short?"
        )
    tokens = [b""] * len(owner)
    for i, text in owner.items():
        foreign = [character for character in text if character not in CHARACTER_BYTES]
        if text not in outside and foreign:
            raise ValueError(f"{shorten(text)} (id {i}) has {foreign[0]!r}, which stands for no byte in GPT-2's table")
        tokens[i] = text.encode() if text in outside else to_bytes(text)
    byte = next((byte for byte, character in BYTE_CHARACTERS.items() if character not in ids), None)
    if byte is not None:  # as in SmolLM2's, which leaves texts with it incomplete
        raise UnsupportedError(f"the byte {byte:#04x}, written {BYTE_CHARACTERS[byte]!r}, is not in the vocabulary")
    return tokens


def _refuse_smuggled(
    outside: Mapping[str, int], special: Mapping[str, int], merges: Mapping[tuple[str, str], str]
) -> None:
    """An added token may also be what merges make of ordinary text, if its bytes are the same; a special one not."""
    made = {left + right: where for (left, right), where in merges.items() if left + right in outside}
    made |= {character: "a byte" for character in BYTE_CHARACTERS.values() if character in outside}
    for text, maker in made.items():
        if text in special:
            raise UnsupportedError(
                f"{shorten(text)} is a special token, but {maker} makes it of ordinary text: it could be smuggled in"
            )
        if to_bytes(text) != text.encode():
            raise UnsupportedError(
                f"{shorten(text)} is an added token, but in the vocabulary its id is that of {to_bytes(text)!r}"
            )


def _refuse_missing_merges(
    ids: Mapping[str, int], merges: Iterable[tuple[str, str]], outside: Mapping[str, int]
) -> None:
    """A token that two others could make, but no merge does, is a sign of a list that was cut at the end of a line."""
    made = {left + right for left, right in merges}
    for text in ids.keys() - made - outside.keys():
        cuts = [(text[:i], text[i:]) for i in range(1, len(text))]
        if any(left in ids and right in ids for left, right in cuts):
            raise ValueError(
                f"no merge makes {shorten(text)} (id {ids[text]}), though two other tokens could: the list of merges "
                "is cut short"
            )


def shorten(token: str) -> str:
    """A token for an error message."""
    return repr(token if len(token) <= 40 else f"{token[:40]}…")


def refuse_unlike(rules: ByteLevel, again: ByteLevel) -> None:
    """Refuse to write a file of which `again` would be read.

    Raises:
        UnsupportedError: naming what would be another.
    """
    if rules.added:
        raise UnsupportedError(
            f"it would not hold the added tokens that are not special, such as {shorten(next(iter(rules.added)))}"
        )
    if differing := rules.special.items() ^ again.special.items():
        texts = ", ".join(sorted({shorten(text) for text, _ in differing})[:3])
        raise UnsupportedError(f"it would be read with other special tokens: {texts}")
    for what in ("normalizer", "pattern"):
        ours, theirs = getattr(rules, what), getattr(again, what)
        if ours != theirs:
            raise UnsupportedError(f"{what} is {ours}, and of it {theirs} would be read")


def made_by_merges(rules: ByteLevel) -> Iterable[tuple[bytes, list[int]]]:
    """Each ordinary token of two bytes or more, and what the merges alone make of its bytes."""
    merges = {pair: (order, rules.merges[pair][1]) for order, pair in enumerate(rules.pairs)}
    for i, token in enumerate(rules.tokens):
        if i not in rules.unmerged and len(token) > 1:
            yield token, apply_merges([rules.byte_ids[byte] for byte in token], merges)
