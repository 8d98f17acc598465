"""The files that hold a tokenizer: which kind a file is, reading it, and writing one.

The content tells the kind: Hugging Face's tokenizer.json, GPT-2's encoder.json with vocab.bpe, a rank file, or a
SentencePiece model.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from groundup.artifacts import SMALL, is_made, verify
from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.files import OPENERS, explaining_write_errors, reading, write_json, write_text
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.declared import NOTHING, Declared, Roles, read_declared, write_declared
from groundup.tokenizer.hugging_face import (
    from_strings,
    made_by_merges,
    read_byte_level,
    read_json,
    refuse_unlike,
    shorten,
    with_added,
)
from groundup.tokenizer.library import read_hugging_face, read_sentencepiece
from groundup.tokenizer.ranks import published_ranks, read_ranks, write_ranks
from groundup.tokenizer.rules import Rules
from groundup.tokenizer.vocabulary import BYTE_CHARACTERS, to_characters

GPT2_FILES = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
"""Names of GPT-2's vocabulary → of the merges beside it."""
_VOCABULARIES = {merges: vocabulary for vocabulary, merges in GPT2_FILES.items()}
SPLIT_BY_CLASS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(
        ("", "GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizer", "TokenizersBackend"),
        ("gpt2", None),
    ),
    "Qwen2Tokenizer": ("qwen2", "NFC"),
}
"""Class in Hugging Face's library that reads GPT-2's two files, if one is named → split pattern and normalizer."""
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
        whole = (file for file in found if file not in vocabularies or _beside(file, GPT2_FILES).is_file())
        path = next((file for file in whole if file.is_file()), path / "tokenizer.json")
    elif _plain_name(path) in _VOCABULARIES:
        path = _beside(path, _VOCABULARIES)
    if is_made(path.parent):
        verify(path.parent, digest_up_to=SMALL)
    return path


def _is_sentencepiece(path: Path) -> bool:
    """Whether a file begins as SentencePiece's protobuf does: with its first token."""
    with reading(path) as stream:
        return stream.read(1) == b"\n"


def load(path: Path, pattern: str | None = None, special: Sequence[str] = ()) -> tuple[Rules, Roles]:
    """The tokenizer of a file or directory, and the roles of its tokens; see `Tokenizer.load`."""
    file = find(path)
    declared = read_declared(file.parent)
    if _is_sentencepiece(file):
        return read_sentencepiece(file, declared)
    try:
        return read(file, pattern, special, declared)
    except UnsupportedError as error:
        beside = file.with_name("tokenizer.model")  # of which such a tokenizer.json is a copy
        if path != file and beside.is_file() and _is_sentencepiece(beside):
            return read_sentencepiece(beside, declared)
        if _plain_name(file) in GPT2_FILES:
            raise
        return read_hugging_face(file, declared, error)


def read(
    path: Path, pattern: str | None = None, special: Sequence[str] = (), declared: Declared = NOTHING
) -> tuple[ByteLevel, Roles]:
    """The byte-level BPE of a file that `find` found, and the roles of its tokens.

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
            rules = read_ranks(path, _plain_name(path).partition(".")[0], pattern, special)
            return rules, declared.roles(rules.special)
        if pattern is not None or special:
            raise SettingsError(f"{path} says itself how text is split, and which tokens are special: leave them out")
        if _plain_name(path) in GPT2_FILES:
            return _read_gpt2(path, _beside(path, GPT2_FILES), declared)
        return read_byte_level(with_added(read_json(path), declared), declared)
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}") from None
    except SettingsError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is not a tokenizer that can be read here: {reason}") from None


def write(rules: Rules, roles: Roles, path: Path) -> None:
    """Write the file that its name asks for, and the roles beside it; into a directory, the tokenizer's own file.

    Raises:
        SettingsError: a name that asks for none of them.
        UnsupportedError: what such a file cannot hold, by name.
    """
    path = path / f"tokenizer{rules.suffix}" if path.is_dir() else path
    with explaining_write_errors(path):
        if path.suffix == rules.suffix:
            rules.write(path)
        elif not isinstance(rules, ByteLevel):
            raise UnsupportedError(
                f"{path} cannot be written: a tokenizer of {rules.pattern} stays one, in a file *{rules.suffix}"
            )
        elif path.suffix in WRITERS:
            try:
                WRITERS[path.suffix](rules, path)
            except SettingsError:
                raise
            except (UnsupportedError, ValueError) as error:
                raise UnsupportedError(f"{path} cannot be written: {error}. A tokenizer.json holds it") from None
        else:
            raise SettingsError(
                f"{path}: the name should say what to write: *.json for tokenizer.json, *.tiktoken for ranks, "
                "vocab.bpe for GPT-2's two files"
            )
        write_declared(path.parent, roles, rules.special)


def convert(rules: Rules, roles: Roles, target: Path) -> None:
    """`write` a tokenizer, read it again and compare."""
    write(rules, roles, target)
    is_own = target.suffix == ".tiktoken" and target.stem not in published_ranks()
    pattern, special = (rules.pattern, sorted(rules.special, key=rules.special.__getitem__)) if is_own else (None, [])
    again, _ = load(target, pattern, special)
    assert (again.tokens, again.special) == (rules.tokens, rules.special), "what was written reads otherwise"


def _plain_name(path: Path) -> str:
    """The name without the suffix of a compression."""
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in OPENERS else path.name


def _beside(path: Path, names: Mapping[str, str]) -> Path:
    """The other one of GPT-2's two files, by what it is called; compressed as this one is."""
    name = _plain_name(path)
    return path.with_name(names[name] + path.name.removeprefix(name))


# GPT-2's two files


def _read_gpt2(vocabulary: Path, merges: Path, declared: Declared) -> tuple[ByteLevel, Roles]:
    if declared.begins_with_space or declared.kind not in SPLIT_BY_CLASS:
        space, split = "it has add_prefix_space = true, which", f"its class is {declared.kind}, whose split"
        raise UnsupportedError(
            f"tokenizer_config.json says that {space if declared.begins_with_space else split} is not read beside "
            "these two files; a tokenizer.json of it holds it"
        )
    pattern, normalizer = SPLIT_BY_CLASS[declared.kind]
    ids: dict[str, int] = read_json(vocabulary)
    for token in declared.added:
        ids.setdefault(token["content"], token["id"])
    with reading(merges) as stream:
        lines = stream.read().decode().split("\n")
    pairs = {
        f"line {number} of {merges.name}": line.split(" ")
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#version")
    }
    texts = (token["content"] for token in declared.added)
    added = {text: ids[text] for text in texts if text not in declared.special}
    special = _special_in(ids, pairs.values(), declared.special, added)
    rules = from_strings(ids, pairs, special, pattern, added=added, normalizer=normalizer)
    return rules, declared.roles(special)


def _special_in(
    ids: Mapping[str, int], pairs: Iterable[Sequence[str]], declared: Collection[str] = (), added: Collection[str] = ()
) -> dict[str, int]:
    """The special tokens of GPT-2's two files, which say of none that it is: those that are declared, and those that
    look like one, unless merges make them."""
    made = {"".join(pair) for pair in pairs} | {*BYTE_CHARACTERS.values(), *added}
    return {text: i for text, i in ids.items() if text in declared or (_SPECIAL.fullmatch(text) and text not in made)}


def _write_gpt2(rules: ByteLevel, path: Path) -> None:
    """Write `path` and the vocabulary beside it."""
    if path.name not in _VOCABULARIES:
        raise SettingsError(f"{path}: GPT-2's merges are called vocab.bpe, with encoder.json beside it")
    for token, made in made_by_merges(rules):
        if len(made) != 1 and rules.whole_pre_tokens:
            raise UnsupportedError(
                f"no merge makes {shorten(to_characters(token))}, which is taken whole where it is a pre-token: GPT-2's"
                " two files hold no such rule"
            )
    vocabulary = {rules.spelled(i): i for i in range(len(rules.tokens))}
    pairs = {f"merge {number}": [rules.spelled(i) for i in pair] for number, pair in enumerate(rules.pairs, 1)}
    special = _special_in(vocabulary, pairs.values())
    refuse_unlike(rules, from_strings(vocabulary, pairs, special, "gpt2", added={}, normalizer=None))
    write_json(_beside(path, _VOCABULARIES), vocabulary)
    write_text(path, "".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in pairs.values())]))


WRITERS: dict[str, Callable[[ByteLevel, Path], None]] = {".tiktoken": write_ranks, ".bpe": _write_gpt2}
"""Suffix → how byte-level BPE is written as another kind of file than its own."""
