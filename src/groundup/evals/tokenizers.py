"""Tokenizers side by side: how short each makes the same texts, by file and by script. Without torch.

All is counted document by document on the same documents, so that a difference can be tested against chance.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

from groundup.corpus.script import main_script
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find, read
from groundup.errors import DataError, SettingsError
from groundup.evals.statistics import interval
from groundup.files import Progress, no_progress
from groundup.tokenizer.columns import column_of
from groundup.tokenizer.tokenizer import Tokenizer

MOST_BYTES = 32_000_000
"""Bytes read of each source: enough for every number here. The rest is left out, and the comparison says so."""
BATCH_BYTES = 2_000_000
"""Bytes encoded by one tokenizer after the other, so that a busy moment of the machine slows all of them."""
UNSPACED = frozenset({"Han", "Japanese", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"})
"""Scripts without spaces between words, where tokens per word say nothing."""
STRANGE = 0.2
"""Share of tokens that are parts of characters, from which on a vocabulary is said not to know a script."""
Kind = Literal["all", "source", "script"]
_WORD = regex.compile(r"[\p{L}\p{M}]+")


@dataclass(frozen=True)
class Counted:
    """What one tokenizer makes of a group of documents."""

    tokens: int
    bytes_per_token: float
    characters_per_token: float
    tokens_per_word: float | None
    whole_words: float | None
    """Share of the words, as often as they occur, that are one token behind a space. None, as above, for scripts
    without spaces."""
    ids_used: float
    """Share of the ordinary ids that occur."""
    parts_of_characters: float
    """Share of the tokens that are not whole characters, as where a script is spelled byte by byte."""
    entropy_bits_per_byte: float
    """Bits where each token is coded by its own frequency."""
    ratio: float
    """Tokens for one of the first tokenizer's."""
    ratio_interval: tuple[float, float] | None
    """Ends of its 95% interval; None for the first tokenizer, and for few documents."""

    @property
    def ratio_cell(self) -> str:
        ends = self.ratio_interval
        return f"{self.ratio:.3f}" + ("" if ends is None else f" ({ends[0]:.3f} to {ends[1]:.3f})")


LABELS = {
    "tokens": ("tokens", ",d"),
    "bytes_per_token": ("bytes a token", ".3f"),
    "characters_per_token": ("characters a token", ".3f"),
    "tokens_per_word": ("tokens a word", ".3f"),
    "whole_words": ("words that are one token", ".1%"),
    "ids_used": ("ids that occur", ".1%"),
    "parts_of_characters": ("tokens that are parts of characters", ".1%"),
    "entropy_bits_per_byte": ("bits a byte by frequency alone", ".3f"),
}
"""Field of `Counted` → its label in tables, and the format of its values."""


@dataclass(frozen=True)
class Group:
    """Documents that were counted together."""

    name: str
    kind: Kind
    documents: int
    bytes: int
    characters: int
    words: int
    """What is between whitespace."""
    scripts: dict[str, float]
    """Share of the bytes by script."""
    by: list[Counted]


@dataclass(frozen=True)
class Compared:
    """One of the tokenizers."""

    name: str
    vocab_size: int
    split: str


@dataclass(frozen=True)
class Comparison:
    """What was counted. Lists have an entry for each tokenizer, in their order."""

    tokenizers: list[Compared]
    groups: list[Group]
    """All texts, then each source and each script, where there are several."""
    megabytes_per_second: list[float]
    same_vocabulary: list[bool]
    same_ids: list[float]
    """Share of the documents on which the ids are the first tokenizer's."""
    never_used: list[list[int]]
    left_out: dict[str, int]
    """Source and reason → documents that could not be read."""
    cut: list[str]
    """Sources that were read in part."""

    @property
    def names(self) -> list[str]:
        return [tokenizer.name for tokenizer in self.tokenizers]

    @property
    def group_rows(self) -> list[list[str]]:
        """Bytes per token by group, and the ratio of tokens to those of the first tokenizer, below a header."""
        head = ["", "documents", "MB", *(f"{name}: bytes a token" for name in self.names)]
        head += [f"tokens of {name} for 1 of {self.names[0]}" for name in self.names[1:]]
        return [head] + [
            [
                group.name,
                f"{group.documents:,}",
                f"{group.bytes / 1e6:,.2f}",
                *(f"{counted.bytes_per_token:.2f}" for counted in group.by),
                *(counted.ratio_cell for counted in group.by[1:]),
            ]
            for group in self.groups
        ]

    def fact_rows(self, group: Group) -> list[list[str]]:
        """Everything that was counted of one group, a line a number; of all texts also the speed."""
        rows = [["", *self.names], ["ids", *(f"{tokenizer.vocab_size:,}" for tokenizer in self.tokenizers)]]
        for name, (label, form) in LABELS.items():
            values = [getattr(counted, name) for counted in group.by]
            rows.append([label, *("–" if value is None else format(value, form) for value in values)])
        if group.kind == "all":
            speeds = self.megabytes_per_second
            shown = [f"{speed:,.1f} ({speed / speeds[0]:.2f})" for speed in speeds]
            rows.append(["speed here, MB/s (of the first's)", *shown])
        return rows


def labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each tokenizer: the last telling part of its path, or whole paths where two would be the same.

    Raises:
        SettingsError: fewer than two, or one twice.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise SettingsError(
            f"there is nothing to compare {paths[0]} with: name two or more different tokenizers before --text, such "
            "as `groundup tokens compare runs/a runs/b --text FILE`"
        )
    plain = {"tokenizer", "model", "tokenizer.json"}
    names = [next((part for part in reversed(path.parts) if part not in plain), str(path)) for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def compare(
    tokenizers: Mapping[str, Tokenizer], sources: Sequence[str], progress: Progress = no_progress
) -> Comparison:
    """Count the tokens that each tokenizer makes of the same texts.

    Args:
        sources: files, folders and packaged corpora, as in a recipe; each is a group. Where the documents are of
            several scripts, each script is a group too.

    Raises:
        SettingsError: no source.
        DataError: one that is missing, or holds nothing that can be read.
    """
    if not sources:
        raise SettingsError("name texts to compare them on: --text FILE, a folder, or groundup:storybook")
    each = list(tokenizers.values())
    tallies: dict[tuple[Kind, str], _Tally] = {}
    seconds, same = np.zeros(len(each)), np.zeros(len(each), np.int64)
    left_out, cut = Counter[str](), list[str]()
    for batch in _batches(sources, left_out, cut, progress):
        encoded, texts = [], column_of([text for _, text in batch])
        if not tallies and texts.nbytes > BATCH_BYTES:
            for tokenizer in each:
                tokenizer.warm_up()  # loading is not timed
        for number, tokenizer in enumerate(each):
            began = time.perf_counter()
            encoded.append(tokenizer.encode_documents(texts))
            seconds[number] += time.perf_counter() - began
        for place, (source, text) in enumerate(batch):
            ids = [every[starts[place] : starts[place + 1]] for every, starts in encoded]
            same += [np.array_equal(theirs, ids[0]) for theirs in ids]
            script = main_script(text)
            keys: list[tuple[Kind, str]] = [("all", "all texts"), ("source", source), ("script", script)]
            for key in keys:
                tallies.setdefault(key, _Tally(*key, each)).add(text, script, ids)
    whole = tallies["all", "all texts"]
    of_kind = ([tally for tally in tallies.values() if tally.kind == kind] for kind in ("source", "script"))
    several = [sorted(some, key=lambda tally: -tally.n_bytes) for some in of_kind if len(some) > 1]
    return Comparison(
        tokenizers=[Compared(name, tokenizer.vocab_size, tokenizer.pattern) for name, tokenizer in tokenizers.items()],
        groups=[tally.group() for tally in (whole, *(tally for some in several for tally in some))],
        megabytes_per_second=(whole.n_bytes / 1e6 / seconds).tolist(),
        same_vocabulary=[tokenizer.tokens == each[0].tokens for tokenizer in each],
        same_ids=(same / len(whole.sizes)).tolist(),
        never_used=[
            np.flatnonzero(counts[: len(tokenizer.tokens)] == 0).tolist()
            for counts, tokenizer in zip(whole.ids, each, strict=True)
        ],
        left_out=dict(left_out),
        cut=cut,
    )


def _batches(
    sources: Sequence[str], left_out: Counter[str], cut: list[str], progress: Progress
) -> Iterator[list[tuple[str, str]]]:
    """(source, text) of about `BATCH_BYTES` at a time, the texts as they are in the files; what cannot be read is
    counted in `left_out`, and the sources that are too long are named in `cut`."""
    batch: list[tuple[str, str]] = []
    waiting = 0
    for number, source in enumerate(dict.fromkeys(sources)):
        settings, taken = CorpusSettings(sources=(source,)), 0
        for document in (found for name, path in find(settings, Path()).files for found in read(name, path, settings)):
            if document.reason:
                left_out[f"{source}: {re.split('[:;]', document.reason)[0]}"] += 1
            if document.reason or not document.text.strip():
                continue
            if taken >= MOST_BYTES:
                cut.append(source)
                break
            batch.append((source, document.text))
            size = _size(document.text)
            taken, waiting = taken + size, waiting + size
            if waiting >= BATCH_BYTES:
                progress(number, len(sources), source)
                yield batch
                batch, waiting = [], 0
        if not taken:
            why = "; ".join(f"{count:,} × {reason.removeprefix(f'{source}: ')}" for reason, count in left_out.items())
            raise DataError(f"{source} has no text to compare on. Left out: {why or 'nothing'}")
    if batch:
        yield batch
    progress(len(sources), len(sources), "")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


class _Tally:
    """What is counted of a group, document by document."""

    def __init__(self, kind: Kind, name: str, tokenizers: Sequence[Tokenizer]) -> None:
        self.kind, self.name, self.tokenizers = kind, name, tokenizers
        self.sizes: list[tuple[int, int, int]] = []
        """Bytes, characters and words of each document."""
        self.scripts = Counter[str]()
        """Bytes by script."""
        self.words = Counter[str]()
        """Runs of letters."""
        self.tokens: list[list[int]] = []
        """Tokens of each document by each tokenizer."""
        self.ids = [np.zeros(tokenizer.vocab_size, np.int64) for tokenizer in tokenizers]
        """For each tokenizer, how often each id occurs."""

    def add(self, text: str, script: str, ids: Sequence[npt.NDArray[np.int32]]) -> None:
        self.sizes.append((_size(text), len(text), len(text.split())))
        self.scripts[script] += self.sizes[-1][0]
        self.words.update(_WORD.findall(text))
        self.tokens.append(list(map(len, ids)))
        for counts, found in zip(self.ids, ids, strict=True):
            np.add.at(counts, found, 1)

    @property
    def n_bytes(self) -> int:
        return self.scripts.total()

    def group(self) -> Group:
        n_bytes, n_characters, n_words = map(sum, zip(*self.sizes, strict=True))
        spaced = sum(size for script, size in self.scripts.items() if script in UNSPACED) < n_bytes / 2
        tokens = np.array(self.tokens)  # (documents, tokenizers)
        totals: list[int] = tokens.sum(axis=0).tolist()
        by = [
            Counted(
                tokens=total,
                bytes_per_token=n_bytes / total,
                characters_per_token=n_characters / total,
                tokens_per_word=total / n_words if spaced and n_words else None,
                whole_words=_whole_words(self.words, tokenizer) if spaced and self.words else None,
                ids_used=int((counts > 0).sum()) / (len(counts) - len(tokenizer.special)),
                parts_of_characters=_parts_of_characters(counts, tokenizer) / total,
                entropy_bits_per_byte=_entropy_bits(counts) / n_bytes,
                ratio=total / totals[0],
                ratio_interval=interval(tokens[:, number], tokens[:, 0]) if number else None,
            )
            for number, (tokenizer, counts, total) in enumerate(zip(self.tokenizers, self.ids, totals, strict=True))
        ]
        scripts = {script: size / n_bytes for script, size in self.scripts.most_common()}
        return Group(self.name, self.kind, len(self.sizes), n_bytes, n_characters, n_words, scripts, by)


def _whole_words(words: Counter[str], tokenizer: Tokenizer) -> float:
    space = "" if tokenizer.begins_with_space else " "
    encoded = tokenizer.encode_batch([f"{space}{word}" for word in words])
    whole = sum(number for ids, number in zip(encoded, words.values(), strict=True) if len(ids) == 1)
    return whole / words.total()


def _parts_of_characters(counts: npt.NDArray[np.int64], tokenizer: Tokenizer) -> int:
    tokens = tokenizer.tokens
    used = ((tokens[i], int(counts[i])) for i in np.flatnonzero(counts))
    return sum(number for token, number in used if not token or token.decode("utf-8", "ignore").encode() != token)


def _entropy_bits(counts: npt.NDArray[np.int64]) -> float:
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum())
