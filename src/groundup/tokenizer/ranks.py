"""Rank files, such as tiktoken's and Llama 3's: a token in base64, a space and its rank a line.

Two tokens that make a token together are joined, the lowest rank first. How text is split and which tokens are special
the file does not say: for published files `rank_files.toml` does.
"""

import base64
import binascii
import functools
import hashlib
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundup.errors import SettingsError, UnsupportedError
from groundup.files import reading, write_text
from groundup.tokenizer import split
from groundup.tokenizer.bpe import Pair
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.hugging_face import made_by_merges, refuse_unlike, shorten
from groundup.tokenizer.vocabulary import END_OF_TEXT, to_characters


@dataclass(frozen=True)
class RankFile:
    """What a rank file does not say itself."""

    ranks: int
    """How many there are."""
    pattern: str
    special: Mapping[str, int]
    normalizer: str | None = None
    sha256: str | None = None
    """The digest of the content, where one is published."""
    ids: int = 0
    """All ids, where more follow the last special token."""
    others: str = "<|reserved_{id}|>"
    """Names the ids that neither ranks nor special tokens take, of which each has an `id` and a `number`."""


@functools.cache
def published_ranks() -> dict[str, RankFile]:
    """Name of a published rank file → what goes with it."""
    tables = tomllib.loads(Path(__file__).with_name("rank_files.toml").read_text("utf-8"))
    return {name: RankFile(**table) for name, table in tables.items()}


def read_ranks(path: Path, stem: str, pattern: str | None, special: Sequence[str]) -> ByteLevel:
    """The byte-level BPE of a rank file.

    Args:
        stem: the name of the file without suffixes, by which published ones are known.
        pattern, special: the split pattern and special tokens of any other file; the ids of the special tokens follow
            its ranks.

    Raises:
        SettingsError: a name that is not known, without a pattern.
        ValueError: a damaged file.
    """
    with reading(path) as stream:
        raw = stream.read()
    ids = _ids_of_ranks(raw)
    known = published_ranks().get(stem) if pattern is None else _following(ids, pattern, special)
    if known is None:
        raise SettingsError(
            f"{path} holds ranks, but not how text is split nor which tokens are special, and its name is none of "
            f'{", ".join(published_ranks())}: say so with split = "cl100k" (or another) and special = ["{END_OF_TEXT}"]'
        )
    split.compiled(known.pattern)
    rules = _rules_of(ids, known, stem)
    if known.sha256 is not None and hashlib.sha256(raw).hexdigest() != known.sha256:
        raise ValueError(f"its sha256 is not that of {stem} as it was published: fetch it again")
    return rules


def _following(ids: Mapping[bytes, int], pattern: str, special: Sequence[str]) -> RankFile:
    """A rank file of one's own, whose special tokens follow the ranks."""
    return RankFile(len(ids), pattern, {name: len(ids) + i for i, name in enumerate(special)})


def _rules_of(ids: Mapping[bytes, int], known: RankFile, stem: str) -> ByteLevel:
    """Ids that neither ranks nor special tokens take become reserved special tokens."""
    if len(ids) != known.ranks:
        raise ValueError(
            f"it has {len(ids):,} ranks, {stem} has {known.ranks:,}: it is cut short, or another file of that name. "
            "If so, say how text is split, and which tokens are special"
        )
    ranked = set(ids.values())
    for text, i in known.special.items():
        if i in ranked:
            raise ValueError(f"rank {i} is given to a token, but is the id of {text}")
    taken = {*ranked, *known.special.values()}
    lost = next((i for i in range(max(ranked)) if i not in taken), None)
    if lost is not None:
        raise ValueError(f"its ranks have gaps: they go up to {max(ranked):,}, but no line has rank {lost:,}")
    free = [i for i in range(max(known.ids, *taken)) if i not in taken]
    others = {known.others.format(id=i, number=number): i for number, i in enumerate(free)}
    special = dict(sorted({**others, **known.special}.items(), key=lambda item: item[1]))
    owners = {i: token for token, i in ids.items()} | {i: text.encode() for text, i in special.items()}
    merges, ranks = _all_pairs(ids)
    return ByteLevel(
        [owners[i] for i in range(len(owners))],
        merges,
        special,
        known.pattern,
        ranks=ranks,
        normalizer=known.normalizer,
        whole_pre_tokens=True,
    )


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
            raise ValueError(
                f"line {number}, {shorten(repr(line)[2:-1])}, should be a token in base64, a space, a rank"
            )
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


def write_ranks(rules: ByteLevel, path: Path) -> None:
    """
    Raises:
        UnsupportedError, ValueError: a vocabulary that would be read as another one.
    """
    ids = {token: i for i, token in enumerate(rules.tokens) if i not in rules.unmerged}
    known = published_ranks().get(path.stem)
    if known and known.ranks != len(ids):
        raise UnsupportedError(f"it would be read as the published {path.stem}, which this is not: rename it")
    following = _following(ids, rules.pattern, sorted(rules.special, key=rules.special.__getitem__))
    refuse_unlike(rules, _rules_of(ids, known or following, path.stem))
    for before, after in itertools.pairwise(rules.merges[pair][1] for pair in rules.pairs):
        if after < before:
            raise UnsupportedError(
                f"the merges make id {before} before id {after}, and in a rank file the lower id goes first"
            )
    # With all of this a rank file gives the same ids: before it first joins a pair that is no merge, the token made
    # would by our merges have come to that very pair, and stayed there.
    for token, made in made_by_merges(rules):
        if len(made) == 2 or (len(made) > 2 and not rules.whole_pre_tokens):
            raise UnsupportedError(f"no merge makes {shorten(to_characters(token))}, but ranks would")
    write_text(path, "".join(f"{base64.b64encode(token).decode()} {i}\n" for token, i in ids.items()))
