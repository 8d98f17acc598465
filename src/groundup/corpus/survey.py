"""Survey: what a sample of the sources shows, before anything is built of them."""

import random
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from groundup.corpus.document import Document
from groundup.corpus.refine import count_reasons, judge
from groundup.corpus.settings import CorpusSettings, Length
from groundup.corpus.sources import Found, find, kind_of, read
from groundup.errors import DataError
from groundup.files import OPENERS, reading

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
LEAST_KANA = 0.05
"""Of Han characters and kana together: a text with more of them is Japanese, not Chinese."""
MOSTLY_SHORT = 0.2
"""Share of documents that may fall to `Length` before its minimum is taken away: poems, messages, headlines."""


@dataclass
class Survey:
    """What there is. `documents` and `bytes` are estimates where the sample is not the whole."""

    corpus: CorpusSettings
    """The settings that suit these sources."""
    files: Counter[str]
    """Suffix → number of files that are read."""
    left_out: Counter[str]
    """Suffix → number of files that nothing here reads."""
    texts: list[str] = field(default_factory=list)
    """The kept documents of the sample, cleaned."""
    read: int = 0
    """Documents in the sample, kept or not."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason → documents of the sample."""
    scale: float = 1.0
    """How many times more text there is than in the sample."""
    seconds_per_byte: float = 0.0
    """What reading and judging a byte took."""

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
                letters[_script(character)] += number
        total = sum(letters.values())
        return {script: number / total for script, number in letters.most_common() if number >= total / 1000}


def survey(sources: tuple[str, ...], beside: Path) -> Survey:
    """Look at a sample of the sources, spread over their files, and say what is there.

    A `.jsonl` without a field `text` is read by the field that holds the longest strings. Where many documents are
    short, `Length` drops none for that; where there are few, they are cut.

    Raises:
        DataError: a source that is missing or holds nothing readable; or when no document of the sample is kept.
    """
    corpus = CorpusSettings(sources=sources)
    found = find(corpus, beside)
    corpus = corpus.model_copy(update={"text_field": _text_field(found, corpus.text_field)})
    seen = _survey(found, corpus)
    short = sum(number for reason, number in seen.dropped.items() if reason.startswith("shorter than"))
    if short > MOSTLY_SHORT * seen.read:
        filters = tuple(Length(minimum=1) if isinstance(rule, Length) else rule for rule in corpus.filters)
        corpus = corpus.model_copy(update={"filters": filters})
        seen = _survey(found, corpus)
    if seen.texts and seen.documents < FEWEST_DOCUMENTS:
        limit = max(SHORTEST_CUT, seen.bytes // FEWEST_DOCUMENTS)
        seen = _survey(found, corpus.model_copy(update={"max_document_bytes": limit}))
    if not seen.texts:
        told = "; ".join(f"{number:,} × {reason}" for reason, number in seen.dropped.most_common()) or "nothing"
        raise DataError(f"{', '.join(sources)}: no document would be kept of {seen.read:,} read. Dropped: {told}")
    return seen


def _survey(found: Found, corpus: CorpusSettings) -> Survey:
    result = Survey(corpus, Counter(kind_of(path) for _, path in found.files), found.left_out)
    order = list(found.files)
    random.Random(0).shuffle(order)
    share = SAMPLE_BYTES // min(LEAST_FILES, len(order))
    seen: set[bytes] = set()
    began = time.perf_counter()
    text_share = _text_share(found, corpus.text_field)
    taken, there = 0, 0.0
    for name, path in order:
        if taken >= SAMPLE_BYTES:
            there += _share_of(path, text_share) * (COMPRESSED if path.suffix in OPENERS else 1.0)
            continue
        texts, size = [], 0
        for raw in read(name, path, corpus):
            texts.append(raw.text)
            size += len(raw.text.encode())
            _take(result, raw, seen)
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
    if path.suffix not in OPENERS:
        return 1.0
    sample = "".join(texts).encode()
    return len(sample) / len(zlib.compress(sample))


def _take(result: Survey, raw: Document, seen: set[bytes]) -> None:
    result.read += 1
    document, reason = judge(raw, result.corpus, seen)
    if reason:
        count_reasons(result.dropped, reason)
    else:
        result.texts.append(document.text)


def _text_field(found: Found, default: str) -> str:
    """The field of the first lines of .jsonl files that holds most text; the usual one where it is there."""
    lengths: Counter[str] = Counter()
    for row, _ in _first_rows(found):
        if isinstance(row.get(default), str):
            return default
        lengths.update({name: len(value) for name, value in row.items() if isinstance(value, str)})
    return lengths.most_common(1)[0][0] if lengths else default


def _text_share(found: Found, text_field: str) -> float:
    """What part of the bytes of a .jsonl is text: there are other fields, and characters written as `\\u3042`."""
    rows = list(_first_rows(found))
    text = sum(len(str(row.get(text_field, "")).encode("utf-8", "replace")) for row, _ in rows)
    return text / sum(size for _, size in rows) if rows else 1.0


def _first_rows(found: Found, rows: int = 20) -> Iterator[tuple[dict[str, Any], int]]:
    """The first objects of some .jsonl files, each with the bytes of its line."""
    for path in [path for _, path in found.files if kind_of(path) == ".jsonl"][:LEAST_FILES]:
        with reading(path) as stream:
            for _ in range(rows):
                line = stream.readline(SAMPLE_BYTES)
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(row, dict):
                    yield row, len(line)


def main_script(text: str) -> str:
    """The script of most of its letters; Japanese, where kana stand among the Han characters.

    >>> main_script("Größe: 漢"), main_script("漢字 is 仮名まじり"), main_script("漢字は"), main_script("1, 2")
    ('Latin', 'Japanese', 'Japanese', 'none')
    """
    letters: Counter[str] = Counter()
    for character, number in Counter(text).items():
        if character.isalpha():
            letters[_script(character)] += number
    kana = letters.pop("Hiragana", 0) + letters.pop("Katakana", 0)
    han = letters.pop("Cjk", 0)
    if kana or han:
        letters["Japanese" if kana > (kana + han) * LEAST_KANA else "Han"] = kana + han
    return letters.most_common(1)[0][0] if letters else "none"


@cache
def _script(character: str) -> str:
    """The first word of the character's name, such as Latin or Hiragana: near enough for a report.

    >>> _script("a"), _script("ş"), _script("か"), _script("語")
    ('Latin', 'Latin', 'Hiragana', 'Cjk')
    """
    return unicodedata.name(character, "unnamed").split()[0].split("-")[0].capitalize()
