"""The files that hold a tokenizer: reading and writing them.

Hugging Face's tokenizer.json, GPT-2's encoder.json with vocab.bpe, and rank files (tiktoken's, Llama 3's). Which one
it is, its content tells. SentencePiece models, and a tokenizer.json of another kind than byte-level BPE, are read by
`library.py`, each through its library.
"""

import base64
import binascii
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.artifacts import check, is_made
from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.files import OPENERS, naming_the_place, reading, write_json, write_text
from groundup.tokenizer import split
from groundup.tokenizer.bpe import Pair, encode_piece
from groundup.tokenizer.declared import NOTHING, Declared, write_declared
from groundup.tokenizer.vocabulary import BYTE_CHARACTERS, CHARACTER_BYTES, END_OF_TEXT, to_bytes, to_characters

if TYPE_CHECKING:
    from groundup.tokenizer.tokenizer import Tokenizer

GPT2_FILES = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
"""Names of GPT-2's vocabulary → of the merges beside it."""
SPLIT_BY_CLASS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(
        ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizer", "TokenizersBackend"),
        ("gpt2", None),
    ),
    "Qwen2Tokenizer": ("qwen2", "NFC"),
}
"""Class in Hugging Face's library that reads GPT-2's two files → split pattern and normalizer."""
_SPECIAL = re.compile(r"<[^<>\s]+>")
"""How special tokens are written, such as <|endoftext|> or </s>; GPT-2's two files do not say which they are."""


def find(path: Path) -> Path:
    """The file that holds the tokenizer: itself, or the first of its kinds in a directory.

    Raises:
        DataError: nothing there, or it is not what the manifest above it names.
    """
    if path.is_dir():
        vocabularies = [path / (name + suffix) for name in GPT2_FILES for suffix in ("", ".gz")]
        found = (path / "tokenizer.json", *vocabularies, *sorted(path.glob("*.tiktoken")), path / "tokenizer.model")
        there = [file for file in found if file.is_file() and (file not in vocabularies or _merges_of(file).is_file())]
        path = next(iter(there), path / "tokenizer.json")
    elif _plain_name(path) in GPT2_FILES.values():
        (vocabulary,) = (name for name, merges in GPT2_FILES.items() if merges == _plain_name(path))
        path = path.with_name(vocabulary + path.name.removeprefix(_plain_name(path)))
    if is_made(path.parent):
        check(path.parent)
    return path


def is_pair(path: Path) -> bool:
    """Whether it is the vocabulary of GPT-2's two files."""
    return _plain_name(path) in GPT2_FILES


def is_sentencepiece(path: Path) -> bool:
    """Whether a file begins as SentencePiece's protobuf does: with its first piece."""
    with reading(path) as stream:
        return stream.read(1) == b"\n"


def read(
    path: Path, pattern: str | None = None, special: Sequence[str] = (), declared: Declared = NOTHING
) -> dict[str, Any]:
    """What `Tokenizer` is made of, from a file that `find` found.

    Args:
        pattern, special: of a rank file, which does not hold them; the ids of the special tokens follow its ranks.
        declared: what the files beside it say.

    Raises:
        DataError: damaged, or of a kind that is not byte-level BPE.
        SettingsError: a rank file of unknown name without a pattern; any other file with one.
    """
    try:
        with reading(path) as stream:
            is_json = _plain_name(path).endswith(".json") or stream.read(64).lstrip().startswith(b"{")
        if not is_json:
            ranks = _ranks(path, pattern, special)
            return ranks | {"roles": declared.roles(ranks["special"])}
        if pattern is not None or special:
            raise SettingsError(f"{path} says itself how text is split, and which tokens are special: leave them out")
        if is_pair(path):
            return _gpt2(path, _merges_of(path), declared)
        return _hugging_face(with_added(_read_json(path), declared), declared)
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}") from None
    except SettingsError:
        raise
    except KeyError as error:
        raise DataError(f"{path} is not a tokenizer that can be read here: it has no {error}") from None
    except (TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{path} is JSON, but not laid out as a tokenizer is: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a tokenizer that can be read here: {error}") from None


def write(tokenizer: "Tokenizer", path: Path) -> None:
    """Write the file that its name asks for; into a directory that is there, `tokenizer.json`.

    Raises:
        SettingsError: a name that asks for none of them.
        UnsupportedError: what such a file cannot hold, by name.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    if path.suffix not in WRITERS:
        raise SettingsError(
            f"{path}: the name should say what to write: *.json for tokenizer.json, *.tiktoken for ranks, vocab.bpe "
            "for GPT-2's two files"
        )
    with naming_the_place(path):
        WRITERS[path.suffix](tokenizer, path)
        write_declared(path.parent, tokenizer.roles, tokenizer.special)


def convert(tokenizer: "Tokenizer", target: Path) -> None:
    """Write a tokenizer to a file, its kind chosen by its name; what was written is read again and compared."""
    from groundup.tokenizer.tokenizer import Tokenizer

    tokenizer.save(target)
    is_own = target.suffix == ".tiktoken" and target.stem not in RANK_FILES
    given = {"pattern": tokenizer.pattern, "special": sorted(tokenizer.special, key=lambda t: tokenizer.special[t])}
    again = Tokenizer.load(target, **given if is_own else {})  # type: ignore[arg-type]
    assert again.tokens == tokenizer.tokens and again.special == tokenizer.special, "what was written reads otherwise"


def _plain_name(path: Path) -> str:
    """The name without the suffix of a compression."""
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in OPENERS else path.name


def _merges_of(vocabulary: Path) -> Path:
    name = _plain_name(vocabulary)
    return vocabulary.with_name(GPT2_FILES[name] + vocabulary.name.removeprefix(name))


# GPT-2's two files


def _gpt2(vocabulary: Path, merges: Path, declared: Declared) -> dict[str, Any]:
    if declared.kind not in ("", *SPLIT_BY_CLASS):
        raise UnsupportedError(
            f"tokenizer_config.json says that its class is {declared.kind}, whose split is not read beside these two "
            "files; a tokenizer.json of it holds it"
        )
    if declared.begins_with_blank:
        raise UnsupportedError(
            "tokenizer_config.json says add_prefix_space = true, which is not read beside these two files; a "
            "tokenizer.json of it holds it"
        )
    pattern, normalizer = SPLIT_BY_CLASS.get(declared.kind, ("gpt2", None))
    ids: dict[str, int] = _read_json(vocabulary)
    for token in declared.added:
        ids.setdefault(token.text, token.id)
    with reading(merges) as stream:
        lines = stream.read().decode().split("\n")
    pairs = {
        f"line {number} of {merges.name}": line.split(" ")
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#version")
    }
    made = {"".join(pair) for pair in pairs.values()} | {*BYTE_CHARACTERS.values()}
    added = {token.text: ids[token.text] for token in declared.added if token.text not in declared.special}
    special = {
        text: i
        for text, i in ids.items()
        if text in declared.special or (_SPECIAL.fullmatch(text) and text not in made and text not in added)
    }
    return _from_strings(ids, pairs, special, added, whole_pieces=False) | {
        "pattern": pattern,
        "normalizer": normalizer,
        "roles": declared.roles(special),
    }


def _write_gpt2(tokenizer: "Tokenizer", path: Path) -> None:
    """`path` and the vocabulary beside it."""
    names = {merges: vocabulary for vocabulary, merges in GPT2_FILES.items()} | {".bpe": "encoder.json"}
    if path.name not in names:
        raise SettingsError(f"{path}: GPT-2's merges are called vocab.bpe, with encoder.json beside it")
    _refuse_to_write(tokenizer, path)
    if tokenizer.pattern != "gpt2":
        raise UnsupportedError(f"{path} would be read with GPT-2's split pattern; this one has {tokenizer.pattern}")
    foreign = [text for text in tokenizer.special if not _SPECIAL.fullmatch(text)]
    if foreign:
        raise UnsupportedError(
            f"{path} cannot be written: in GPT-2's two files special tokens are told by their form, <…>; this one has "
            f"{', '.join(foreign[:3])}"
        )
    for token, made in _made_by_merges(tokenizer):
        if len(made) != 1 and _SPECIAL.fullmatch(to_characters(token)):
            raise UnsupportedError(
                f"{path} cannot be written: {_shown(to_characters(token))} is an ordinary token, and would be read as "
                "a special one by its form"
            )
        if len(made) != 1 and tokenizer.whole_pieces:
            raise UnsupportedError(
                f"{path} cannot be written: no merge makes {_shown(to_characters(token))}, which is taken whole where "
                "it is a piece; GPT-2's two files hold no such rule"
            )
    special = {i: text for text, i in tokenizer.special.items()}
    vocabulary = {special.get(i) or to_characters(token): i for i, token in enumerate(tokenizer.tokens)}
    pairs = [f"{to_characters(left)} {to_characters(right)}\n" for left, right in tokenizer.merges]
    write_json(path.with_name(names[path.name]), vocabulary)
    write_text(path, "".join(["#version: 0.2\n", *pairs]))


# Hugging Face's tokenizer.json


def with_added(file: dict[str, Any], declared: Declared) -> dict[str, Any]:
    """A tokenizer.json with the tokens that only the files beside it name, as Hugging Face's library reads them."""
    there = {token["content"]: token for token in file.get("added_tokens") or []}
    entries = {token.text: token.entry for token in declared.added} | there
    vocabulary = file["model"]["vocab"]
    ids = vocabulary if isinstance(vocabulary, dict) else {text: i for i, (text, _) in enumerate(vocabulary)}
    for text in declared.special & ids.keys() - entries.keys():  # in the vocabulary, and made special by its role
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        entries[text] = {"id": ids[text], "content": text, **flags, "special": True}
    added = [{**token, "special": token.get("special", True) or text in declared.special}
             for text, token in entries.items()]  # fmt: skip
    return {**file, "added_tokens": sorted(added, key=lambda token: token["id"])}


def framing(file: Mapping[str, Any], special: Mapping[str, int]) -> tuple[int | None, int | None]:
    """The ids that the post-processor of a tokenizer.json puts before and behind a text."""
    processor = file.get("post_processor") or {}
    steps = processor.get("processors") or [processor]
    for step in steps:
        match step:
            case {"type": "TemplateProcessing", "single": [*parts]}:
                names = [part.get("SpecialToken", {}).get("id") for part in parts]
                text = names.index(None) if None in names else len(names)
                before, behind = [*names[:text], None], [*names[text + 1 :], None]
                return special.get(before[0] or ""), special.get(behind[0] or "")
            case {"type": "RobertaProcessing" | "BertProcessing", "cls": [_, int(first)], "sep": [_, int(last)]}:
                return first, last
    return None, None


def _hugging_face(file: dict[str, Any], declared: Declared) -> dict[str, Any]:
    model = file["model"]
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(f"its model is {model.get('type')}; only byte-level BPE is read")
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(option):
            raise UnsupportedError(f"its model has {option} = {model[option]!r}, which is not read")
    outside = file.get("added_tokens") or []
    for token in outside:
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                raise UnsupportedError(f"its added token {token['content']!r} has {flag} = true, which is not read")
    pattern = _pattern_in(file["pre_tokenizer"])
    normalizer = _normalizer_in(file.get("normalizer"))
    pairs = {
        f"merge {number}": pair.split(" ") if isinstance(pair, str) else pair
        for number, pair in enumerate(model["merges"], 1)
    }
    special = {token["content"]: token["id"] for token in outside if token.get("special", True)}
    added = {token["content"]: token["id"] for token in outside if not token.get("special", True)}
    whole_pieces = bool(model.get("ignore_merges"))
    return _from_strings(model["vocab"], pairs, special, added, whole_pieces) | {
        "pattern": pattern,
        "normalizer": normalizer,
        "normalized": [token["content"] for token in outside if token.get("normalized", False)],
        "roles": declared.roles(special, *framing(file, special)),
    }


def hugging_face(tokenizer: "Tokenizer") -> dict[str, Any]:
    """The content of `tokenizer.json`.

    Raises:
        UnsupportedError: a special token that is written as another token is.
    """
    outside = {i: text for text, i in (*tokenizer.special.items(), *tokenizer.added.items())}
    last = max((i for i in range(tokenizer.vocab_size) if i not in outside), default=0)
    # The library numbers added tokens itself, from the end of the vocabulary on: those before it stand in it too.
    strings = [
        outside[i] if i in outside else to_characters(token)
        for i, token in enumerate(tokenizer.tokens)
        if i not in outside or i < last
    ]
    vocabulary = {text: i for i, text in enumerate(strings)}
    if len(vocabulary) < len(strings):
        twice, _ = Counter(strings).most_common(1)[0]
        raise UnsupportedError(f"tokenizer.json cannot hold both a token and a special token written {_shown(twice)}")
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
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
        "added_tokens": [
            {
                "id": i,
                "content": text,
                **flags,
                "normalized": text in tokenizer.normalized,
                "special": text in tokenizer.special,
            }
            for i, text in sorted(outside.items())
        ],
        "normalizer": {"type": tokenizer.normalizer} if tokenizer.normalizer else None,
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
            "ignore_merges": tokenizer.whole_pieces,
            "vocab": vocabulary,
            "merges": [[to_characters(left), to_characters(right)] for left, right in tokenizer.merges],
        },
    }


def _write_hugging_face(tokenizer: "Tokenizer", path: Path) -> None:
    write_json(path, hugging_face(tokenizer))


def _normalizer_in(normalizer: dict[str, Any] | None) -> str | None:
    """One Unicode form. Of several in a row, the last composes or not, and any with a K has replaced for good."""
    if normalizer is None:
        return None
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    forms = [step["type"] for step in steps]
    foreign = [form for form in forms if form not in ("NFC", "NFD", "NFKC", "NFKD")]
    if foreign:
        raise UnsupportedError(f"it has a normalizer ({foreign[0]}), which is not read; Unicode's four forms are")
    if not forms:
        return None
    return f"NF{'K' if any('K' in form for form in forms) else ''}{forms[-1][-1]}"


def _pattern_in(pre_tokenizer: dict[str, Any] | None) -> str:
    """The split pattern that a Hugging Face pre-tokenizer stands for: a name, or a regular expression of its own.

    Raises:
        UnsupportedError: for one that is not represented here.
    """
    steps = list(_steps(pre_tokenizer)) if pre_tokenizer else []
    kinds = [step["type"] for step in steps]
    refused = UnsupportedError(
        f"its pre-tokenizer is {json.dumps(pre_tokenizer)[:200]}; only splitting once and byte level are read"
    )
    if kinds[-1:] != ["ByteLevel"] or steps[-1].get("add_prefix_space", True):
        raise refused
    use_regex = steps[-1].get("use_regex", True)
    if kinds == ["ByteLevel"]:
        return "gpt2" if use_regex else r"[\s\S]+"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and use_regex:
        return "smollm"
    if kinds != ["Split", "ByteLevel"]:
        raise refused
    source = steps[0]["pattern"].get("Regex")
    if source is None:
        source = re.escape(steps[0]["pattern"]["String"])
    name = split.named(source)
    if use_regex and name != "gpt2":  # two steps, which are one only where they are the same
        raise refused
    behavior = steps[0]["behavior"], steps[0].get("invert", False)
    if behavior[0] != "Isolated" and not (behavior == ("Removed", True) and name):
        raise UnsupportedError(f"it splits with behavior {behavior[0]}, inverted: {behavior[1]}, which is not read")
    try:
        split.compiled(name or source)
    except SettingsError as error:
        raise UnsupportedError(str(error)) from None
    return name or source


def _steps(pre_tokenizer: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if pre_tokenizer["type"] != "Sequence":
        return [pre_tokenizer]
    return itertools.chain.from_iterable(_steps(step) for step in pre_tokenizer["pretokenizers"])


# Ranks


@dataclass(frozen=True)
class RankFile:
    """What a rank file does not say itself."""

    ranks: int
    """How many there are."""
    pattern: str
    special: Mapping[str, int]
    normalizer: str | None = None
    sha256: str | None = None
    """Of the content, where one is published."""


def _ranks(path: Path, pattern: str | None, special: Sequence[str]) -> dict[str, Any]:
    """A token in base64, a blank and its rank a line; two tokens that make a token together are joined, by rank.

    Ids that neither ranks nor special tokens take are reserved.
    """
    with reading(path) as stream:
        raw = stream.read()
    ids = _ids_of_ranks(raw)
    stem = _plain_name(path).partition(".")[0]
    known = RANK_FILES.get(stem) if pattern is None else None
    if known is None and pattern is None:
        raise SettingsError(
            f"{path} holds ranks, but not how text is split nor which tokens are special, and its name is none of "
            f'{", ".join(RANK_FILES)}: say so with split = "cl100k" (or another) and special = ["{END_OF_TEXT}"]'
        )
    if known is None:
        assert pattern is not None
        split.compiled(pattern)
        known = RankFile(len(ids), pattern, {name: len(ids) + i for i, name in enumerate(special)})
    if len(ids) != known.ranks:
        raise ValueError(
            f"it has {len(ids):,} ranks, {stem} has {known.ranks:,}: it is cut short, or another file of that name. "
            "If so, say how text is split, and which tokens are special"
        )
    taken = {*ids.values(), *known.special.values()}
    if len(taken) < len(ids) + len(known.special):
        given = set(ids.values())
        text, i = next((text, i) for text, i in known.special.items() if i in given)
        raise ValueError(f"rank {i} is given to a token, but is the id of {text}")
    lost = next((i for i in range(max(ids.values())) if i not in taken), None)
    if lost is not None:
        raise ValueError(f"its ranks have gaps: they go up to {max(ids.values()):,}, but no line has rank {lost:,}")
    if known.sha256 is not None and hashlib.sha256(raw).hexdigest() != known.sha256:
        raise ValueError(f"its sha256 is not that of {stem} as it was published: fetch it again")
    reserved = {f"<|reserved_{i}|>": i for i in range(max(taken)) if i not in taken}
    outside = dict(sorted((reserved | dict(known.special)).items(), key=lambda item: item[1]))
    tokens = [b""] * (len(ids) + len(outside))
    for token, i in (*ids.items(), *((text.encode(), i) for text, i in outside.items())):
        tokens[i] = token
    merges, ranks = _all_pairs(ids)
    return {
        "tokens": tokens,
        "merges": merges,
        "ranks": ranks,
        "special": outside,
        "pattern": known.pattern,
        "normalizer": known.normalizer,
        "whole_pieces": True,
    }


def _ids_of_ranks(raw: bytes) -> dict[bytes, int]:
    """The rank of each token, in the order of the ranks."""
    ids: dict[bytes, int] = {}
    lines: dict[int, int] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line:
            continue
        text, _, digits = line.rstrip(b"\r").partition(b" ")
        try:
            token = binascii.a2b_base64(text, strict_mode=True)
        except binascii.Error:
            token = b""
        if not token or not digits.isdigit() or len(digits) > 9:
            raise ValueError(f"line {number}, {_shown(repr(line)[2:-1])}, should be a token in base64, a blank, a rank")
        rank = int(digits)
        if token in ids:
            raise ValueError(f"line {number} gives a rank to {token[:40]!r} again, as line {lines[ids[token]]} does")
        if rank in lines:
            raise ValueError(f"rank {rank} is given twice, in lines {lines[rank]} and {number}")
        ids[token], lines[rank] = rank, number
    missing = next((byte for byte in range(256) if bytes([byte]) not in ids), None)
    if missing is not None:
        raise ValueError(f"it has no rank for the byte {missing:#04x}: every byte should have one")
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _all_pairs(ids: Mapping[bytes, int]) -> tuple[list[Pair], list[int]]:
    """Each pair of tokens that make a token together, and its rank, in the order of the ranks."""
    merges: list[Pair] = []
    ranks: list[int] = []
    known = ids.get
    for token, rank in ids.items():
        for cut in range(1, len(token)):
            left = known(token[:cut])
            if left is not None:
                right = known(token[cut:])
                if right is not None:
                    merges.append((left, right))
                    ranks.append(rank)
    return merges, ranks


def _write_ranks(tokenizer: "Tokenizer", path: Path) -> None:
    known = RANK_FILES.get(path.stem)
    _refuse_to_write(tokenizer, path, known.normalizer if known else None)
    outside = set(tokenizer.special.values())
    ordinary = [i for i in range(tokenizer.vocab_size) if i not in outside]
    if known is None and ordinary[-1] >= len(ordinary):
        text = next(text for text, i in tokenizer.special.items() if i < ordinary[-1])
        raise UnsupportedError(
            f"{path} cannot be written: {text} has id {tokenizer.special[text]} among the ordinary tokens, and the ids "
            "of a rank file are its ranks, without a gap"
        )
    if known is not None and (
        (known.ranks, known.pattern) != (len(ordinary), tokenizer.pattern)
        or not known.special.items() <= tokenizer.special.items()
    ):
        raise UnsupportedError(f"{path} would be read as the published {path.stem}, which this is not: rename it")
    ids = {token: i for i, token in enumerate(tokenizer.tokens) if i not in outside}
    results = [ids[left + right] for left, right in tokenizer.merges]
    for before, after in itertools.pairwise(results):
        if after < before:
            raise UnsupportedError(
                f"{path} cannot be written: the merges make id {before} before id {after}, and in a rank file the "
                "lower id goes first"
            )
    # With all of this a rank file gives the same ids: before it first joins a pair that is no merge, the token made
    # would by our merges have come to that very pair, and stayed there.
    for token, made in _made_by_merges(tokenizer):
        if len(made) == 2 or (len(made) > 2 and not tokenizer.whole_pieces):
            raise UnsupportedError(
                f"{path} cannot be written: no merge makes {_shown(to_characters(token))}, but ranks would"
            )
    write_text(path, "".join(f"{base64.b64encode(token).decode()} {i}\n" for token, i in ids.items()))


def _refuse_to_write(tokenizer: "Tokenizer", path: Path, normalizer: str | None = None) -> None:
    """What neither ranks nor GPT-2's two files hold; `normalizer` is the one that readers of that name know."""
    if tokenizer.added:
        raise UnsupportedError(
            f"{path} cannot be written: it would not hold the added tokens that are not special, such as "
            f"{_shown(next(iter(tokenizer.added)))}. A tokenizer.json does"
        )
    if tokenizer.normalizer != normalizer:
        raise UnsupportedError(
            f"{path} cannot be written: it would not hold that text is brought to {tokenizer.normalizer} first. "
            "A tokenizer.json does"
        )


def _made_by_merges(tokenizer: "Tokenizer") -> Iterable[tuple[bytes, list[int]]]:
    """Each ordinary token of two bytes or more, and what the merges alone make of its bytes."""
    outside = set(tokenizer.special.values())
    tokens = tokenizer.tokens
    ids = {token: i for i, token in enumerate(tokens) if i not in outside}
    merges = {(ids[left], ids[right]): (rank, ids[left + right]) for rank, (left, right) in enumerate(tokenizer.merges)}
    for token in ids:
        if len(token) > 1:
            yield token, encode_piece([ids[bytes([byte])] for byte in token], merges)


# What is common


def _from_strings(
    ids: Mapping[str, int],
    pairs: Mapping[str, Sequence[str]],
    special: Mapping[str, int],
    added: Mapping[str, int],
    whole_pieces: bool,
) -> dict[str, Any]:
    """
    Args:
        pairs: where each merge stands → its two parts, in order.
    """
    outside = {**special, **added}
    tokens = _in_order(ids, outside)
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
    _refuse_smuggled(outside, special, merges)
    if not whole_pieces:
        _refuse_missing_merges(ids, merges, outside)
    return {
        "tokens": tokens,
        "merges": [(ids[left], ids[right]) for left, right in merges],
        "special": dict(special),
        "added": dict(added),
        "whole_pieces": whole_pieces,
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


def _in_order(ids: Mapping[str, int], outside: Mapping[str, int]) -> list[bytes]:
    """The bytes of each id, which must be 0 to n − 1, each of one token; `outside` are special and added tokens."""
    owner: dict[int, str] = {}
    for text, i in (*ids.items(), *outside.items()):
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
        if text not in outside and foreign:
            raise ValueError(f"{_shown(text)} (id {i}) has {foreign[0]!r}, which stands for no byte in GPT-2's table")
        tokens[i] = text.encode() if text in outside else to_bytes(text)
    byte = next((byte for byte, character in BYTE_CHARACTERS.items() if character not in ids), None)
    if byte is not None:
        raise ValueError(f"the byte {byte:#04x}, written {BYTE_CHARACTERS[byte]!r}, is not in the vocabulary")
    return tokens


def _refuse_smuggled(
    outside: Mapping[str, int], special: Mapping[str, int], merges: Mapping[tuple[str, str], str]
) -> None:
    """An added token may also be what merges make of ordinary text, if its bytes are the same; a special one not."""
    made = {left + right: place for (left, right), place in merges.items() if left + right in outside}
    made |= {character: "a byte" for character in BYTE_CHARACTERS.values() if character in outside}
    for text, place in made.items():
        if text in special:
            raise UnsupportedError(
                f"{_shown(text)} is a special token, but {place} makes it of ordinary text: it could be smuggled in"
            )
        if to_bytes(text) != text.encode():
            raise UnsupportedError(
                f"{_shown(text)} is an added token, but in the vocabulary its id is that of {to_bytes(text)!r}"
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
                f"no merge makes {_shown(text)} (id {ids[text]}), though two other tokens could: the list of merges is "
                "cut short"
            )


def _shown(token: str) -> str:
    return repr(token if len(token) <= 40 else f"{token[:40]}…")


WRITERS: dict[str, Callable[["Tokenizer", Path], None]] = {
    ".json": _write_hugging_face,
    ".tiktoken": _write_ranks,
    ".bpe": _write_gpt2,
}

_LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
]
_QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
_O200K = {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
_HARMONY = {
    "<|startoftext|>": 199998,
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
    "<|reserved_201087|>": 201087,
}
_R50K = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
_O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

RANK_FILES = {
    "gpt2": RankFile(50256, "gpt2", {END_OF_TEXT: 50256}, sha256=_R50K),
    "r50k_base": RankFile(50256, "gpt2", {END_OF_TEXT: 50256}, sha256=_R50K),
    "p50k_base": RankFile(
        50280,
        "gpt2",
        {END_OF_TEXT: 50256},
        sha256="94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    ),
    "cl100k_base": RankFile(
        100256,
        "cl100k",
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": RankFile(199998, "o200k", _O200K, sha256=_O200K_SHA256),
    "o200k_harmony": RankFile(199998, "o200k", {**_O200K, **_HARMONY}, sha256=_O200K_SHA256),
    "qwen": RankFile(151643, "qwen2", {name: 151643 + i for i, name in enumerate(_QWEN)}, normalizer="NFC"),
    "tokenizer": RankFile(128000, "llama3", {name: 128000 + i for i, name in enumerate(_LLAMA3)}),
}
"""Name of a rank file → what goes with it. The first six as in tiktoken's openai_public.py, `qwen` as in Qwen 1's
tokenization_qwen.py, `tokenizer` (a tokenizer.model of ranks) as in Llama 3's tokenizer.py."""
