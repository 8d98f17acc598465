"""Survey the sources: read a sample of them before anything is built, and choose how they are best read."""

import random
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from groundup.corpus.document import SPLITS, Drop
from groundup.corpus.filters import judge, looks
from groundup.corpus.formats import text_field_of
from groundup.corpus.refine import FEWEST_MARKS, Marks, Tally, refuse_too_few
from groundup.corpus.script import script_of
from groundup.corpus.settings import Characters, CorpusSettings, Filter, Length
from groundup.corpus.sources import Found, count_separators, find, is_compressed, kind_of, read, records
from groundup.plan.vocabulary import Curve, measure
from groundup.tokenizer.settings import Learned

SAMPLE_BYTES = 8_000_000
"""Bytes of text in the sample, which are read and judged in a few seconds."""
LEAST_FILES = 8
"""Among so many files, if there are as many, the sample is shared."""
COMPRESSED = 3.0
"""How many times smaller than its text a compressed file is taken to be that was not opened."""
FEWEST_DOCUMENTS = 40
"""Longer ones are cut until there are so many: each split then gets some."""
SHORTEST_CUT = 2_000
"""Bytes; shorter parts would teach little but how texts break off."""
RELAXED = (
    ("shorter than", 0.2, Length, {"minimum": 1}),
    ("less than", 0.5, Characters, {"letters": 0.0}),
    ("more than", 0.5, Characters, {"replacement": 1.0}),
)
"""Reason, the share of documents that it may drop, its filter, and the filter's settings above that share: poems,
messages and headlines are short; code, tables and emoji have few letters."""
TRIAL_BYTES = 1_000_000
"""Text on which vocabularies are learned to see how much they shorten; a quarter as much is then encoded."""
LARGEST_VOCABULARY = 16_384
"""Ids that can be learned on so little text. Up to here four times as much gives the same advice (docs/log.md)."""
LEARNING_BYTES_PER_SECOND, ENCODING_BYTES_PER_SECOND, LOADING_SECONDS = 10e6, 30e6, 5.0
"""The tokenizer on two cores of a busy machine (docs/numbers.md), and what its compiled loops take to load."""
WITHOUT_SPACES = ("Cjk", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
"""Scripts without spaces between words; a fifth of the letters asks for the split pattern that knows them."""


@dataclass
class Survey:
    """Facts about the sources. `documents` and `bytes` are estimates where the sample is not the whole."""

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
    """Documents of the sample that were dropped, and why."""
    marks: Marks = field(default_factory=Marks)
    """Marks in the kept documents of the sample."""
    separators: Counter[str] = field(default_factory=Counter)
    """How often a mark that tools put between texts stands behind one in the .txt and .md files of the sample."""
    separated: int = 0
    """Documents of the sample from .txt and .md files, kept or not."""
    scale: float = 1.0
    """How many times more text there is than in the sample."""
    seconds_per_byte: float = 0.0
    """Time that reading and judging a byte took."""

    @property
    def dropped(self) -> Counter[str]:
        """Reason → documents of the sample."""
        return self.tally.counts

    @cached_property
    def sample_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)

    @cached_property
    def median_bytes(self) -> int:
        lengths = sorted(len(text.encode()) for text in self.texts)
        return lengths[len(lengths) // 2]

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text that will be kept."""
        return round(self.sample_bytes * self.scale)

    @property
    def train_bytes(self) -> float:
        """Bytes of text that will not be held out."""
        return self.bytes * (1 - self.corpus.validation_share - self.corpus.test_share)

    @property
    def documents(self) -> int:
        return round(len(self.texts) * self.scale)

    @property
    def is_whole(self) -> bool:
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

    @cached_property
    def split(self) -> str:
        """The split pattern that suits the scripts."""
        without = sum(self.scripts.get(script, 0.0) for script in WITHOUT_SPACES)
        return "unspaced" if without > 0.2 else str(Learned.model_fields["split"].default)

    @cached_property
    def curve(self) -> Curve:
        """Bytes a token of vocabularies of all sizes on these texts."""
        return measure(self.texts, largest=LARGEST_VOCABULARY, pattern=self.split, learn_bytes=TRIAL_BYTES)

    @property
    def preparing_seconds(self) -> float:
        """From the sources to the shards."""
        tokenizing = LOADING_SECONDS + self.train_bytes / LEARNING_BYTES_PER_SECOND
        return self.bytes * self.seconds_per_byte + tokenizing + self.bytes / ENCODING_BYTES_PER_SECOND


def survey(sources: tuple[str, ...], beside: Path) -> Survey:
    """Read a sample of the sources, spread over their files.

    A `.jsonl` without a field `text` is read by the field that holds the longest strings. Files with marks between
    texts are cut there. A filter that would drop many documents is loosened. Where there are few, they are cut.

    Raises:
        DataError: a source that is missing or holds nothing readable; or when too few documents of the sample are kept.
    """
    corpus = CorpusSettings(sources=sources)
    files = find(corpus, beside)
    sample = _read_sample(files, corpus.model_copy(update={"text_field": _text_field(files, corpus)}))
    if separator := _separator(sample.separators, sample.marks):
        sample = _read_sample(files, sample.corpus.model_copy(update={"separator": separator}))
    for _ in RELAXED:  # behind one filter, another may drop as many
        filters = _relaxed_filters(sample)
        if filters == sample.corpus.filters:
            break
        sample = _read_sample(files, sample.corpus.model_copy(update={"filters": filters}))
    if sample.texts and sample.documents < FEWEST_DOCUMENTS:
        limit = max(SHORTEST_CUT, sample.bytes // FEWEST_DOCUMENTS)
        sample = _read_sample(files, sample.corpus.model_copy(update={"max_document_bytes": limit}))
    refuse_too_few(len(sample.texts), 0, sample.read, sample.tally)
    return sample


def relaxed_in(filters: tuple[Filter, ...]) -> list[str]:
    """The reasons in `RELAXED` for which these filters are looser than the default ones."""
    rules = {type(rule): rule.table() for rule in filters}
    return [reason for reason, _, kind, wider in RELAXED if wider.items() <= rules.get(kind, {}).items()]


def _relaxed_filters(sample: Survey) -> tuple[Filter, ...]:
    filters = sample.corpus.filters
    for reason, share, kind, wider in RELAXED:
        dropped = sum(number for why, number in sample.dropped.items() if why.startswith(reason))
        if dropped > share * sample.read or (dropped and len(sample.texts) < len(SPLITS)):
            filters = tuple(rule.model_copy(update=wider) if isinstance(rule, kind) else rule for rule in filters)
    return filters


def _separator(ends: Counter[str], marks: Marks) -> str | None:
    """The mark that stands between the texts, if one does: behind a text a few times, and mostly there."""
    mark, number = max(ends.items(), key=lambda item: item[1], default=("", 0))
    return mark if number >= FEWEST_MARKS and 2 * number > marks.uses[mark].total() else None


def _read_sample(files: Found, corpus: CorpusSettings) -> Survey:
    result = Survey(corpus, Counter(kind_of(path) for _, path in files.files), files.left_out, files.left_out_names)
    order = list(files.files)
    random.Random(0).shuffle(order)
    share = SAMPLE_BYTES // min(LEAST_FILES, len(order))
    text_share = _text_share(files, corpus)
    filters, seen = looks(corpus.filters, Path()), set[str]()
    began = time.perf_counter()
    taken, there = 0, 0.0
    for name, path in order:
        text_bytes = path.stat().st_size * (text_share if kind_of(path) == ".jsonl" else 1.0)
        if taken >= SAMPLE_BYTES:
            there += text_bytes * (COMPRESSED if is_compressed(path) else 1.0)
            continue
        texts, size = [], 0
        for document in read(name, path, corpus, ahead=SAMPLE_BYTES):
            texts.append(document.text)
            size += len(document.text.encode())
            if kind_of(path) in (".txt", ".md"):
                result.separated += 1
                result.separators += count_separators(document.text)
            result.read += 1
            document, drop = judge(document, corpus, filters)
            if drop is None and document.id in seen:
                drop = Drop("exact.copy", "exact duplicate")
            seen.add(document.id)
            if drop:
                result.tally.add(document.source, drop.reason)
            else:
                result.texts.append(document.text)
                result.marks.count(document.text, name)
            if size >= share:
                break
        taken += size
        if is_compressed(path):
            sample = "".join(texts).encode()
            text_bytes *= len(sample) / len(zlib.compress(sample))
        there += size if size < share else max(size, text_bytes)
    result.seconds_per_byte = (time.perf_counter() - began) / max(taken, 1)
    result.scale = there / max(taken, 1)
    return result


def _text_field(files: Found, corpus: CorpusSettings) -> str | None:
    """The field of the first lines of .jsonl files that holds most text, where it is not the usual one."""
    found = text_field_of(row for row, _ in _first_rows(files, corpus))
    return corpus.text_field if found == "text" else found


def _text_share(files: Found, corpus: CorpusSettings) -> float:
    """The share of the bytes of a .jsonl that are text: there are other fields, and characters written as `\\u3042`."""
    rows = list(_first_rows(files, corpus))
    text = sum(len(str(row.get(corpus.text_field or "text", "")).encode("utf-8", "replace")) for row, _ in rows)
    return text / sum(size for _, size in rows) if rows else 1.0


def _first_rows(files: Found, corpus: CorpusSettings, rows: int = 20) -> Iterator[tuple[dict[str, Any], int]]:
    """The first objects of some .jsonl files, each with the bytes of its line."""
    for name, path in [file for file in files.files if kind_of(file[1]) == ".jsonl"][:LEAST_FILES]:
        read = (record for record in records(name, path, corpus, ahead=SAMPLE_BYTES) if record.reason is None)
        for line in islice((line for record in read for line in record.payload.split(b"\n")), rows):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row, len(line)
