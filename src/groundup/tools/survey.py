"""Survey: what a sample of the sources shows, before anything is built of them."""

import random
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from groundup.corpus.document import SPLITS, Document
from groundup.corpus.refine import FEWEST_MARKS, Marks, Tally, judge, refuse_too_few
from groundup.corpus.script import script_of
from groundup.corpus.settings import Characters, CorpusSettings, Length
from groundup.corpus.sources import (
    Found,
    count_separators,
    find,
    first_lines,
    is_compressed,
    kind_of,
    read,
    read_text,
    reader_of,
)

SAMPLE_BYTES = 8_000_000
"""Of text: read and judged in a few seconds."""
LEAST_FILES = 8
"""Among so many files, if there are as many, the sample is shared."""
COMPRESSED = 3.0
"""How many times smaller a compressed file is taken to be that was not looked into."""
FEWEST_DOCUMENTS = 40
"""Longer ones are cut until there are so many: each split then gets some."""
SHORTEST_CUT = 2_000
"""Bytes; shorter parts would teach little but how texts break off."""
RELAXED = (
    ("shorter than", 0.2, Length, {"minimum": 1}),
    ("less than", 0.5, Characters, {"letters": 0.0}),
    ("more than", 0.5, Characters, {"replacement": 1.0}),
)
"""Reason, the share of documents that may fall to it, its filter, and what that is then proposed with: poems, messages
and headlines are short; code, tables and emoji have few letters."""


@dataclass
class Survey:
    """What there is. `documents` and `bytes` are estimates where the sample is not the whole."""

    corpus: CorpusSettings
    """The settings that suit these sources."""
    files: Counter[str]
    """Suffix → number of files that are read."""
    left_out: Counter[str]
    """Suffix that nothing here reads, or another reason → number of files and folders."""
    left_out_names: dict[str, list[str]] = field(default_factory=dict)
    """The first few of each."""
    texts: list[str] = field(default_factory=list)
    """The kept documents of the sample, cleaned."""
    read: int = 0
    """Documents in the sample, kept or not."""
    tally: Tally = field(default_factory=Tally)
    """What was dropped of the sample, and why."""
    marks: Marks = field(default_factory=Marks)
    """In the kept documents of the sample."""
    separators: Counter[str] = field(default_factory=Counter)
    """How often what tools put between texts stands behind one in the .txt and .md files of the sample."""
    separated: int = 0
    """Documents of the sample from .txt and .md files, kept or not."""
    scale: float = 1.0
    """How many times more text there is than in the sample."""
    seconds_per_byte: float = 0.0
    """What reading and judging a byte took."""

    @property
    def dropped(self) -> Counter[str]:
        """Reason → documents of the sample."""
        return self.tally.counts

    @property
    def sample_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text that will be kept."""
        return round(self.sample_bytes * self.scale)

    @property
    def train_bytes(self) -> float:
        """Of them, those that will not be held out."""
        return self.bytes * (1 - self.corpus.validation_share - self.corpus.test_share)

    @property
    def documents(self) -> int:
        return round(len(self.texts) * self.scale)

    @property
    def is_whole(self) -> bool:
        """Whether everything was read."""
        return self.scale == 1.0

    @property
    def scripts(self) -> dict[str, float]:
        """Script → its share of the letters, most used first; those below one in a thousand are left out."""
        letters: Counter[str] = Counter()
        for character, number in Counter("".join(self.texts)).items():
            if character.isalpha():
                letters[script_of(character)] += number
        total = sum(letters.values())
        return {script: number / total for script, number in letters.most_common() if number >= total / 1000}


def survey(sources: tuple[str, ...], beside: Path) -> Survey:
    """Look at a sample of the sources, spread over their files, and say what is there.

    A `.jsonl` without a field `text` is read by the field that holds the longest strings. Files with marks between
    texts are cut there. A filter that would drop many documents is loosened. Where there are few, they are cut.

    Raises:
        DataError: a source that is missing or holds nothing readable; or when too few documents of the sample are kept.
    """
    corpus = CorpusSettings(sources=sources)
    found = find(corpus, beside)
    corpus = corpus.model_copy(update={"text_field": _text_field(found, corpus)})
    seen = _survey(found, corpus)
    if separator := _separator(seen.separators, seen.marks.times):
        seen = _survey(found, corpus.model_copy(update={"separator": separator}))
    for _ in RELAXED:  # behind one filter, another may drop as many
        filters = seen.corpus.filters
        for reason, share, kind, wider in RELAXED:
            number = sum(number for why, number in seen.dropped.items() if why.startswith(reason))
            if number > share * seen.read or (number and len(seen.texts) < len(SPLITS)):
                filters = tuple(rule.model_copy(update=wider) if isinstance(rule, kind) else rule for rule in filters)
        if filters == seen.corpus.filters:
            break
        seen = _survey(found, seen.corpus.model_copy(update={"filters": filters}))
    if seen.texts and seen.documents < FEWEST_DOCUMENTS:
        limit = max(SHORTEST_CUT, seen.bytes // FEWEST_DOCUMENTS)
        seen = _survey(found, seen.corpus.model_copy(update={"max_document_bytes": limit}))
    refuse_too_few(len(seen.texts), 0, seen.read, seen.tally)
    return seen


def _separator(ends: Counter[str], spoken_of: Counter[str]) -> str | None:
    """The mark that stands between the texts, if one does: behind a text a few times, and mostly there."""
    mark, number = max(ends.items(), key=lambda item: item[1], default=("", 0))
    return mark if number >= FEWEST_MARKS and 2 * number > spoken_of[mark] else None


def _survey(found: Found, corpus: CorpusSettings) -> Survey:
    result = Survey(corpus, Counter(kind_of(path) for _, path in found.files), found.left_out, found.left_out_names)
    order = list(found.files)
    random.Random(0).shuffle(order)
    share = SAMPLE_BYTES // min(LEAST_FILES, len(order))
    seen: set[bytes] = set()
    began = time.perf_counter()
    text_share = _text_share(found, corpus)
    taken, there = 0, 0.0
    for name, path in order:
        if taken >= SAMPLE_BYTES:
            there += _share_of(path, text_share) * (COMPRESSED if is_compressed(path) else 1.0)
            continue
        texts, size = [], 0
        for raw in read(name, path, corpus, ahead=SAMPLE_BYTES):
            texts.append(raw.text)
            size += len(raw.text.encode())
            if reader_of(path) is read_text:
                result.separated += 1
                result.separators += count_separators(raw.text)
            _take(result, raw, name, seen)
            if size >= share:
                break
        taken += size
        there += size if size < share else max(size, _share_of(path, text_share) * _packed(path, texts))
    result.seconds_per_byte = (time.perf_counter() - began) / max(taken, 1)
    result.scale = there / max(taken, 1)
    return result


def _share_of(path: Path, text_share: float) -> float:
    """How many bytes of a file are text: of a .jsonl a share, of others all."""
    return path.stat().st_size * (text_share if kind_of(path) == ".jsonl" else 1.0)


def _packed(path: Path, texts: list[str]) -> float:
    """How many times smaller such texts are in a file of this kind."""
    if not is_compressed(path):
        return 1.0
    sample = "".join(texts).encode()
    return len(sample) / len(zlib.compress(sample))


def _take(result: Survey, raw: Document, name: str, seen: set[bytes]) -> None:
    result.read += 1
    document, reason = judge(raw, result.corpus, seen)
    if reason:
        result.tally.add(document, reason)
    else:
        result.texts.append(document.text)
        result.marks.count(document.text, name)


def _text_field(found: Found, corpus: CorpusSettings) -> str:
    """The field of the first lines of .jsonl files that holds most text; the usual one where it is there."""
    lengths: Counter[str] = Counter()
    for row, _ in _first_rows(found, corpus):
        if isinstance(row.get(corpus.text_field), str):
            return corpus.text_field
        lengths.update({name: len(value) for name, value in row.items() if isinstance(value, str)})
    return lengths.most_common(1)[0][0] if lengths else corpus.text_field


def _text_share(found: Found, corpus: CorpusSettings) -> float:
    """What part of the bytes of a .jsonl is text: there are other fields, and characters written as `\\u3042`."""
    rows = list(_first_rows(found, corpus))
    text = sum(len(str(row.get(corpus.text_field, "")).encode("utf-8", "replace")) for row, _ in rows)
    return text / sum(size for _, size in rows) if rows else 1.0


def _first_rows(found: Found, corpus: CorpusSettings, rows: int = 20) -> Iterator[tuple[dict[str, Any], int]]:
    """The first objects of some .jsonl files, each with the bytes of its line."""
    for path in [path for _, path in found.files if kind_of(path) == ".jsonl"][:LEAST_FILES]:
        for line in islice(first_lines(path, corpus.encoding), rows):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row, len(line)
