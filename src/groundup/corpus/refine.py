"""The corpus stage: read, clean, filter, deduplicate, hold out; nothing dropped without a reason kept beside it."""

import re
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.artifacts import Draft
from groundup.corpus.document import DROPPED, SPLITS, Document, DocumentWriter, Drop, read_batches
from groundup.corpus.filters import FILTER, digest_files, judge, looks, prepare
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import MARKS, Found, find, read
from groundup.errors import DataError, MissingError, ResourceError
from groundup.files import Progress, no_progress, sha256_of_file

HISTOGRAM_EDGES = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000]
"""Document lengths in bytes at which the report's histogram is cut."""
BUCKETS = [*(f"< {edge:,}" for edge in HISTOGRAM_EDGES), f"≥ {HISTOGRAM_EDGES[-1]:,}"]


def split_of(document_id: str, validation_share: float, test_share: float) -> str:
    """Which split a document belongs to: a function of the sha256 of its text alone.

    >>> split_of("00" * 32, 0.05, 0.05), split_of("0f" * 32, 0.05, 0.05), split_of("ff" * 32, 0.05, 0.05)
    ('validation', 'test', 'train')
    """
    share = int(document_id[:16], 16) / 2**64
    if share < validation_share:
        return "validation"
    return "test" if share < validation_share + test_share else "train"


@dataclass
class Tally:
    """How many documents were dropped, and why."""

    counts: Counter[str] = field(default_factory=Counter)
    """Reason, without details such as the line → documents."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first document of each reason that has details."""

    def add(self, document: Document, reason: str) -> None:
        """`not utf-8: invalid start byte at byte 17` is counted as `not utf-8`; `dropped/` keeps the whole reason."""
        short = reason
        if reason.startswith("line of"):
            short = "line too long"
        elif reason.startswith(("not ", "no field", "field ")):
            short = re.split("[:;]", reason)[0]
        self.counts[short] += 1
        if short != reason:
            self.examples.setdefault(short, f"{document.source}: {reason.removeprefix(f'{short}: ')}")

    def summary(self, most: int | None = None) -> str:
        """The reasons in words, the most frequent first."""
        return "; ".join(
            f"{count:,} × {reason}" + (f" ({self.examples[reason]})" if reason in self.examples else "")
            for reason, count in self.counts.most_common(most)
        )


ADVICE: dict[tuple[str, ...], str] = {
    ("not utf-8",): "convert them to UTF-8 (iconv -f cp1252 -t utf-8, if they are cp1252), or set corpus.encoding",
    ("not JSON", "a JSON"): "each line of a .jsonl should be a whole JSON object",
    ("not text",): "unpack what is compressed, or set corpus.encoding to how they are encoded, if all are",
    ("not ",): "corpus.encoding should be how they are encoded",
    ("no field",): "set corpus.text_field to one of these fields",
    ("field ",): "set corpus.text_field to the field that holds the text",
    ("shorter", "longer", "less than", "more than"): "loosen corpus.filters",
    ("exact duplicate",): "add other texts, since copies count once",
    ("empty",): "add texts",
}
"""Beginnings of a reason → what can be done; the first that fits."""
RUN_AGAIN = "Nothing was made of it; run the same command again when no other program writes to the sources"


def refuse_too_few(kept: int, kept_bytes: int, read_documents: int, dropped: Tally) -> None:
    """Refuse a corpus that is too small for three splits.

    Raises:
        DataError: naming how many documents each reason dropped, and what may help.
    """
    if kept >= len(SPLITS):
        return
    each = [next((what for begins, what in ADVICE.items() if why.startswith(begins)), "") for why in dropped.counts]
    advice = list(dict.fromkeys(filter(None, each)))
    if kept_bytes >= 1000 * len(SPLITS):
        advice.append(f"cut them with corpus.max_document_bytes = {max(1000, kept_bytes // (2 * len(SPLITS)))}")
    raise DataError(
        f"the corpus has {kept} {'document' if kept == 1 else 'documents'} left of {read_documents:,} read, at least "
        f"{len(SPLITS)} different ones are needed to train, validate and test. Dropped: "
        f"{dropped.summary() or 'nothing'}. What may help: {'; '.join(advice or ['add texts'])}"
    )


def refine(
    found: Found,
    settings: CorpusSettings,
    draft: Draft,
    beside: Path,
    progress: Progress = no_progress,
    digests: Mapping[str, str] | None = None,
) -> None:
    """Write `train`, `validation` and `test` documents and the dropped ones, and leave the statistics in `draft`.

    Args:
        beside: the folder of the recipe, in which files that the settings name are looked for first.
        digests: name of each source file → sha256 that its bytes must still have when they have been read.

    Raises:
        DataError: when too few documents are left, with the count for each reason; when a source changed meanwhile.
            What was dropped is written, and counted in `draft`, even so.
        ResourceError: out of memory, naming the file that was read.
    """
    if digests is not None and (
        others := {name for name in digests if not name.startswith(FILTER)} ^ {name for name, _ in found.files}
    ):
        raise DataError(f"source {min(others)} came or went meanwhile: {RUN_AGAIN}")
    settings, classifiers = prepare(settings, beside, draft.path)
    filters, copies = looks(settings.filters, beside), Copies()
    tally, marks = Tally(), Marks()
    histogram: Counter[int] = Counter()
    odd_fields: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    read_documents = read_bytes = done_bytes = 0
    sizes = [path.stat().st_size if path.exists() else 0 for _, path in found.files]  # reading says which are gone
    with ExitStack() as opened:
        opened.callback(lambda: draft.statistics.update(dropped=dict(tally.counts.most_common())))  # after an error too
        writers = {
            split: opened.enter_context(closing(DocumentWriter(draft.path / f"{split}.parquet"))) for split in SPLITS
        }
        dropped = opened.enter_context(closing(DocumentWriter(draft.path / "dropped" / "documents.parquet", DROPPED)))
        for (name, path), size in zip(found.files, sizes, strict=True):
            progress(done_bytes, sum(sizes), name)
            try:
                for raw in read(name, path, settings):
                    read_documents += 1
                    read_bytes += len(raw.text.encode())
                    odd_fields.update(raw.left_out)
                    document, drop = judge(raw, settings, filters)
                    drop = drop or copies.look(document)
                    if drop:
                        dropped.write(document, drop)
                        tally.add(document, drop.reason)
                        continue
                    split = split_of(document.id, settings.validation_share, settings.test_share)
                    writers[split].write(document)
                    _count(counts[split], document)
                    histogram[bisect(HISTOGRAM_EDGES, len(document.text.encode()))] += 1
                    marks.count(document.text, name)
            except MemoryError:
                raise ResourceError(
                    f"out of memory while reading {name} ({size / 1e6:,.1f} MB), of which no more than some documents "
                    "or a line are held at a time: end other programs, or let this one have more memory"
                ) from None
            if digests is not None:
                _refuse_changed(name, digests[name], _digest(name, path))
            done_bytes += size
        progress(done_bytes, done_bytes, "")
    kept, kept_bytes = (sum(count[what] for count in counts.values()) for what in ("documents", "bytes"))
    refuse_too_few(kept, kept_bytes, read_documents, tally)
    _fill_empty_splits(draft.path, counts)
    draft.statistics |= {
        "read": {"documents": read_documents, "bytes": read_bytes, "files": len(found.files)},
        "left_out": dict(sorted(found.left_out.items())),
        "left_out_names": dict(sorted(found.left_out_names.items())),
        "marks": marks.table(),
        **({"classifiers": classifiers} if classifiers else {}),
        "metadata_left_out": dict(odd_fields.most_common(20)),
        "documents_by_bytes": {name: histogram[number] for number, name in enumerate(BUCKETS)},
        **{split: dict(counts[split]) for split in SPLITS},
    }


@dataclass
class Marks:
    """How often the texts hold what tools put between texts (`sources.MARKS`)."""

    uses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Mark → name of the file → times."""

    def count(self, text: str, name: str) -> None:
        for mark in MARKS:
            if number := text.count(mark):
                self.uses[mark][name] += number

    def table(self) -> dict[str, Any]:
        """For each mark that occurs more than once or twice: how often, in how many files, and the name of one: of a
        .txt or .md, in which documents can be cut, if there is one."""
        return {
            mark: {
                "times": files.total(),
                "files": len(files),
                "file": min(files, key=lambda name: (".jsonl" in name.lower(), name)),
            }
            for mark, files in sorted(self.uses.items(), key=lambda use: -use[1].total())
            if files.total() >= FEWEST_MARKS
        }


FEWEST_MARKS = 3
"""Fewer are taken for a text about such marks."""


def in_words(statistics: Mapping[str, Any], corpus: Path) -> Iterator[str]:
    """What a person should know of a corpus that was just made: documents and fields left out, marks in the texts."""
    if statistics["dropped"]:
        counts = ", ".join(f"{count:,} × {reason}" for reason, count in statistics["dropped"].items())
        yield f"dropped: {counts}; each with its reason in {corpus / 'dropped'}"
    if statistics["metadata_left_out"]:
        counts = ", ".join(f"{count:,} × {name}" for name, count in statistics["metadata_left_out"].items())
        yield f"fields left out of the metadata, as they are no JSON that can be written: {counts}"
    for each in statistics.get("classifiers", ()):
        yield (
            f"{each['file']}, on {each['positive']:,} good and {each['negative']:,} bad examples held out: precision "
            f"{each['precision']:.1%}, recall {each['recall']:.1%}"
        )
    for line in describe_marks(statistics["marks"]):
        yield ": ".join(line)


def describe_marks(marks: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """`Marks.table` in sentences, each with what to do."""
    for mark, use in marks.items():
        holds = f"{use['file']} holds" if use["files"] == 1 else f"{use['files']:,} files ({use['file']}, …) hold"
        yield (
            f"{holds} {mark} {use['times']:,} times; it is read as ordinary text",
            "each line of a .jsonl is one document: take it out of the lines"
            if ".jsonl" in use["file"].lower()
            else f"set corpus.separator = {mark!r}, if documents end there",
        )


class Copies:
    """Texts that were there before."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def look(self, document: Document) -> Drop | None:
        key = bytes.fromhex(document.id[:32])
        if key in self._seen:
            return Drop("exact.copy", "exact duplicate")
        self._seen.add(key)
        return None


def _count(count: Counter[str], document: Document) -> None:
    count["documents"] += 1
    count["bytes"] += len(document.text.encode())
    count["characters"] += len(document.text)
    count["words"] += len(document.text.split())


def _fill_empty_splits(directory: Path, counts: dict[str, Counter[str]]) -> None:
    """A corpus of a few documents may leave a split empty; it is then given the lowest id of the fullest split."""
    for split in SPLITS:
        if counts[split]["documents"]:
            continue
        giver = max(SPLITS, key=lambda name: counts[name]["documents"])
        rows = [row for batch in read_batches(directory / f"{giver}.parquet") for row in batch.to_pylist()]
        documents = [Document(row["text"], row["source"], row["metadata"]) for row in rows]
        moved = min(documents, key=lambda document: document.id)
        documents.remove(moved)
        counts[giver], counts[split] = Counter(), Counter()
        for name, members in ((giver, documents), (split, [moved])):
            with closing(DocumentWriter(directory / f"{name}.parquet")) as writer:
                for document in members:
                    writer.write(document)
                    _count(counts[name], document)


def digest_sources(
    settings: CorpusSettings, beside: Path, recorded: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Digest the source files of a corpus.

    Args:
        recorded: the digests of a finished corpus: sources that are gone altogether keep theirs.

    Returns:
        Name of each file, of what filters read also, → sha256 of its bytes; and the sources that are gone.
    """
    digests: dict[str, str] = {}
    gone = []
    for source in settings.sources:
        try:
            found = find(settings.model_copy(update={"sources": (source,)}), beside)
        except MissingError:
            if not recorded:
                raise
            gone.append(source)
            within = source.rstrip("/") + "/"
            digests |= {name: old for name, old in recorded.items() if name == source or name.startswith(within)}
        else:
            digests |= {name: _digest(name, path) for name, path in found.files}
    return digests | digest_files(settings.filters, beside, recorded), gone


def _digest(name: str, path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise DataError(f"cannot read source {name} ({path}): {error.strerror}. {RUN_AGAIN}") from None


def _refuse_changed(name: str, before: str, now: str) -> None:
    if now != before:
        raise DataError(
            f"source {name} changed while it was read: its sha256 was {before[:8]}…, and now it is {now[:8]}…. "
            f"{RUN_AGAIN}"
        )
