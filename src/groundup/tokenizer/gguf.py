"""Tokenizers in the metadata of GGUF files, as llama.cpp keeps them, and in the files beside llama2.c's models.

Two kinds: `gpt2` is byte-level BPE, with its merges; `llama` is SentencePiece, with a score for each token.
"""

import json
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.files import reading
from groundup.tokenizer.byte_level import ByteLevel, tokenizer_json
from groundup.tokenizer.declared import NOTHING, Roles, added_entry
from groundup.tokenizer.hugging_face import pattern_in, read_byte_level, steps_of, with_added
from groundup.tokenizer.library import SPACE, Library, hugging_face_rules, sentencepiece_model, sentencepiece_rules
from groundup.tokenizer.rules import Rules
from groundup.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""What a token is: SentencePiece's numbers, in both kinds."""
SPLITS: dict[str, tuple[str, bool]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "gigachat", "exaone4", "trillion"), ("gpt2", False)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), ("smollm", False)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), ("llama3", True)),
    **dict.fromkeys(("smaug-bpe", "dbrx"), ("llama3", False)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), ("qwen2", False)),
    **dict.fromkeys(("gpt-4o", "llama4"), ("o200k", False)),
}
"""`tokenizer.ggml.pre` → our split pattern, and whether a pre-token that is a token is taken whole. Of those that mean
the same, the first is written."""
NEAREST = {"unspaced": "smaug-bpe"}
"""Of our patterns that llama.cpp does not know, the most like one that it does, where that is not GPT-2's."""
NORMALIZERS = {"qwen2": "NFC"}
"""What these split patterns come with, which GGUF does not say."""
PREFIX = "tokenizer.ggml."
FULL = "tokenizer.huggingface.json"


def read(metadata: Mapping[str, Any], origin: str) -> Tokenizer | None:
    """The tokenizer of a GGUF file; None where it has none.

    Raises:
        DataError: damaged; naming `origin`.
        UnsupportedError: a kind, or a split of text, that is not known here.
    """
    kind = metadata.get(f"{PREFIX}model")
    if kind is None or f"{PREFIX}tokens" not in metadata:
        return None
    readers = {"gpt2": _read_byte_level, "llama": _read_sentencepiece}
    if kind not in readers:
        raise UnsupportedError(f"{origin} has {PREFIX}model = {kind!r:.60}; known are {', '.join(readers)}")
    try:
        tokens = list(metadata[f"{PREFIX}tokens"])
        types = [int(each) for each in metadata.get(f"{PREFIX}token_type", [NORMAL] * len(tokens))]
        while types and types[-1] == UNUSED:  # rows of the model that no token has
            del types[-1], tokens[-1]
        if len(types) != len(tokens):
            raise ValueError(f"{len(tokens):,} tokens have {len(types):,} types")
        return readers[kind](metadata, tokens, types, origin)
    except UnsupportedError as error:
        raise UnsupportedError(f"{origin}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(f"{origin} holds no tokenizer that can be read here: {error}") from None


def _read_byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int], origin: str) -> Tokenizer:
    if full := metadata.get(FULL):
        rules = _rules_of(json.loads("".join(full)), origin)
        if [rules.spelled(i) for i in range(len(rules.tokens))] != tokens:
            raise ValueError(f"{FULL} has other tokens than {PREFIX}tokens")
        return Tokenizer(rules, _roles(metadata, rules))
    name = metadata.get(f"{PREFIX}pre", "default")
    if name not in SPLITS:
        raise UnsupportedError(
            f"{PREFIX}pre = {name!r:.60}, a way to split text that is not known here ({', '.join(SPLITS)}): take the "
            "tokenizer.json of the model"
        )
    pattern, whole = SPLITS[name]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ValueError("a token is there twice")
    added = [
        added_entry(token, i, special=types[i] != USER_DEFINED)
        for token, i in vocabulary.items()
        if types[i] in (UNKNOWN, CONTROL, USER_DEFINED, UNUSED)
    ]
    merges, normalizer = list(metadata[f"{PREFIX}merges"]), NORMALIZERS.get(pattern)
    rules = _rules_of(tokenizer_json(vocabulary, merges, added, pattern, normalizer, whole), origin)
    return Tokenizer(rules, _roles(metadata, rules))


def _rules_of(file: dict[str, Any], origin: str) -> Rules:
    file = with_added(file, NOTHING)
    try:
        return read_byte_level(file, NOTHING)[0]
    except UnsupportedError as error:
        return hugging_face_rules(file, NOTHING, origin, error)[0]


def _read_sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int], origin: str) -> Tokenizer:
    model = sentencepiece_model(
        list(zip(tokens, map(float, metadata[f"{PREFIX}scores"]), types, strict=False)),
        space_first=bool(metadata.get(f"{PREFIX}add_space_prefix", True)),
        no_double_spaces=bool(metadata.get(f"{PREFIX}remove_extra_whitespaces", False)),
    )
    rules, _ = sentencepiece_rules(model, origin, NOTHING)
    return Tokenizer(rules, _roles(metadata, rules))


def _roles(metadata: Mapping[str, Any], rules: Rules) -> Roles:
    if (given := metadata.get("groundup.roles")) is not None:
        opener, closer, *stops = (None if i < 0 else int(i) for i in given)
        roles = Roles(opener, closer, frozenset(i for i in stops if i is not None))
    else:
        opener, closer, turn = (metadata.get(f"{PREFIX}{role}_token_id") for role in ("bos", "eos", "eot"))
        roles = Roles.of(rules.special, opener, closer, [i for i in (closer, turn) if i is not None])
    for i in (roles.opener, roles.closer, *roles.stops):
        if i is not None and (type(i) is not int or not 0 <= i < len(rules.tokens)):
            raise ValueError(f"a role is given to the id {i!r:.60}, of {len(rules.tokens):,}")
    return roles


def write(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """The metadata of a GGUF file for a model of so many `rows` in its vocabulary.

    A split of text that llama.cpp does not know is written with a warning: it then cuts some texts otherwise.

    Raises:
        SettingsError: more ids than rows.
        UnsupportedError: a tokenizer that GGUF cannot hold.
    """
    rules, roles = tokenizer.rules, tokenizer.roles
    if tokenizer.vocab_size > rows:
        raise SettingsError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, the model rows for {rows:,}, and llama.cpp wants one for "
            "each: take the special tokens without a row out of the tokenizer"
        )
    table: dict[str, Any] = {f"{PREFIX}add_bos_token": roles.opener is not None, f"{PREFIX}add_eos_token": False}
    ids = {"bos": roles.opener, "eos": roles.closer, "eot": min(roles.stops - {roles.closer}, default=None)}
    table |= {f"{PREFIX}{role}_token_id": i for role, i in ids.items() if i is not None}
    by_score = isinstance(rules, Library) and rules.suffix == ".model"
    table |= _write_sentencepiece(rules, rows) if by_score else _write_byte_level(rules, rows)
    again = read(table, "what is written")
    assert again is not None
    if not by_score and again.rules.content() != rules.content():
        table[FULL] = json.dumps(rules.to_hugging_face(), ensure_ascii=False)
    if again.roles != roles:
        table["groundup.roles"] = [-1 if i is None else i for i in (roles.opener, roles.closer, *sorted(roles.stops))]
    return table


def _write_byte_level(rules: Rules, rows: int) -> dict[str, Any]:
    file = rules.to_hugging_face()
    model, decoders = file["model"], steps_of(file.get("decoder"), "decoders")
    if model["type"] != "BPE" or not any(step["type"] == "ByteLevel" for step in decoders):
        raise UnsupportedError(
            "a tokenizer.json that is not byte-level BPE cannot be written into a GGUF file: take the tokenizer.model "
            "of the same model, if there is one"
        )
    pattern = rules.pattern if isinstance(rules, ByteLevel) else pattern_in(file["pre_tokenizer"])
    whole = bool(model.get("ignore_merges"))
    names = [name for name, split in SPLITS.items() if split == (pattern, whole)] or (["dbrx"] * (pattern == "cl100k"))
    if not names:
        taken = ", where pre-tokens that are tokens are taken whole" if whole else ""
        warnings.warn(
            f"llama.cpp does not know the split pattern {pattern!r}{taken}: it will cut some texts otherwise. It knows "
            f"{', '.join(sorted({pattern for pattern, _ in SPLITS.values()}))}",
            stacklevel=5,
        )
    kinds = {**dict.fromkeys(rules.special.values(), CONTROL), **dict.fromkeys(rules.added.values(), USER_DEFINED)}
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": names[0] if names else NEAREST.get(pattern, "gpt-2"),
        **_vocabulary([(rules.spelled(i), kinds.get(i, NORMAL)) for i in range(len(rules.tokens))], rows),
        f"{PREFIX}merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
    }


def _write_sentencepiece(rules: Any, rows: int) -> dict[str, Any]:
    pieces = rules.sentencepieces()
    return {
        f"{PREFIX}model": "llama",
        f"{PREFIX}pre": "default",
        **_vocabulary([(piece, kind) for piece, _, kind in pieces], rows),
        f"{PREFIX}scores": [score for _, score, _ in pieces] + [0.0] * (rows - len(pieces)),
        f"{PREFIX}add_space_prefix": rules.begins_with_space,
    }


def _vocabulary(tokens: Sequence[tuple[str, int]], rows: int) -> dict[str, Any]:
    """Tokens and what each is, with one for each row."""
    spare = [(f"[PAD{i}]", UNUSED) for i in range(len(tokens), rows)]
    texts, kinds = zip(*tokens, *spare, strict=True)
    return {f"{PREFIX}tokens": list(texts), f"{PREFIX}token_type": list(kinds)}


# --- llama2.c ---


def read_llama2c(path: Path) -> Tokenizer:
    """The tokenizer of a model of llama2.c: of each token a score, the length and the bytes, with spaces for ▁.

    Raises:
        DataError: damaged.
    """
    with reading(path) as stream:
        raw = stream.read()
    tokens, at = [], 4
    try:
        while at < len(raw):
            score, size = struct.unpack_from("<fi", raw, at)
            at += 8 + size
            tokens.append((raw[at - size : at].decode(), score))
        if at != len(raw):
            raise ValueError("it is cut short")
        rules, _ = sentencepiece_rules(sentencepiece_model(list(_kinds(tokens))), str(path), NOTHING)
    except (struct.error, ValueError) as error:
        raise DataError(f"{path} is not a tokenizer of llama2.c: {error}") from None
    return Tokenizer(rules, Roles.of(rules.special))


def _kinds(tokens: Iterable[tuple[str, float]]) -> Iterable[tuple[str, float, int]]:
    """The first three are for what is unknown, and open and close a text; the next 256 are single bytes."""
    for i, (text, score) in enumerate(tokens):
        kind = UNKNOWN if i == 0 else CONTROL if i < 3 else BYTE if i < 259 else NORMAL
        yield (text.strip() if i < 3 else text.replace(" ", SPACE)), score, kind
