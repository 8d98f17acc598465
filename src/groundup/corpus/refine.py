"""The corpus stage: read, clean, filter, deduplicate, hold out; nothing dropped without a reason kept beside it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from groundup.corpus.clean import clean
from groundup.corpus.document import DROPPED, SPLITS, Document, DocumentWriter, read_batches
from groundup.corpus.filters import refuse
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import Found, read
from groundup.errors import DataError
from groundup.files import Draft, Progress, no_progress, sha256_of_file

HISTOGRAM_EDGES = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000]
"""Document lengths in bytes at which the report's histogram is cut."""


def split_of(document_id: str, validation_share: float, test_share: float) -> str:
    """Which split a document belongs to: a function of the sha256 of its text alone.

    >>> split_of("00" * 32, 0.05, 0.05), split_of("0f" * 32, 0.05, 0.05), split_of("ff" * 32, 0.05, 0.05)
    ('validation', 'test', 'train')
    """
    place = int(document_id[:16], 16) / 2**64
    if place < validation_share:
        return "validation"
    return "test" if place < validation_share + test_share else "train"


def refine(found: Found, settings: CorpusSettings, draft: Draft, progress: Progress = no_progress) -> None:
    """Write `train`, `validation` and `test` documents and the dropped ones, and leave the statistics in `draft`.

    Raises:
        DataError: when too few documents are left, with the count for each reason.
    """
    seen: set[bytes] = set()
    reasons: Counter[str] = Counter()
    histogram: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    read_documents = read_bytes = 0
    writers = {split: DocumentWriter(draft.path / f"{split}.parquet") for split in SPLITS}
    dropped = DocumentWriter(draft.path / "dropped" / "documents.parquet", DROPPED)
    try:
        for raw in _with_progress(found, settings, progress):
            read_documents += 1
            read_bytes += len(raw.text.encode())
            document, reason = judge(raw, settings, seen)
            if reason:
                dropped.write(document, reason)
                count_reasons(reasons, reason)
                continue
            split = split_of(document.id, settings.validation_share, settings.test_share)
            writers[split].write(document)
            _count(counts[split], document)
            histogram[_bucket(len(document.text.encode()))] += 1
    finally:
        for writer in [*writers.values(), dropped]:
            writer.close()
    kept = sum(count["documents"] for count in counts.values())
    if kept < len(SPLITS):
        field = "corpus.text_field, " if any(reason.startswith("no field") for reason in reasons) else ""
        told = "; ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common()) or "nothing"
        raise DataError(
            f"the corpus has {kept} documents left of {read_documents:,} read, at least {len(SPLITS)} are needed to "
            f"train, validate and test. Dropped: {told}. Look at {field}corpus.filters, add sources, or cut them with "
            "a smaller corpus.max_document_bytes"
        )
    _fill_empty_splits(draft.path, counts)
    draft.statistics |= {
        "read": {"documents": read_documents, "bytes": read_bytes, "files": len(found.files)},
        "left_out": dict(sorted(found.left_out.items())),
        "dropped": dict(reasons.most_common()),
        "documents_by_bytes": {name: histogram[name] for name in _buckets()},
        **{split: dict(counts[split]) for split in SPLITS},
    }


def _with_progress(found: Found, settings: CorpusSettings, progress: Progress) -> Iterator[Document]:
    sizes = [path.stat().st_size for _, path in found.files]
    done, total = 0, sum(sizes)
    for (name, path), size in zip(found.files, sizes, strict=True):
        progress(done, total, name)
        yield from read(name, path, settings)
        done += size
    progress(done, total, "")


def judge(raw: Document, settings: CorpusSettings, seen: set[bytes]) -> tuple[Document, str | None]:
    """The cleaned document and the reason to drop it, if any."""
    if raw.reason:
        return raw, raw.reason
    document = Document(clean(raw.text, settings), raw.source, raw.metadata)
    if not document.text:
        return raw, "empty"
    if reason := refuse(document.text, settings.filters):
        return document, reason
    key = bytes.fromhex(document.id[:32])
    if key in seen:
        return document, "exact duplicate"
    seen.add(key)
    return document, None


def count_reasons(reasons: Counter[str], reason: str) -> None:
    """`not utf-8: invalid start byte at byte 17` is counted as `not utf-8`; `dropped/` keeps the whole reason."""
    if reason.startswith("line of"):
        reason = "line too long"
    elif reason.startswith(("not ", "no field", "field ")):
        reason = reason.split(":")[0].split(";")[0]
    reasons[reason] += 1


def _count(count: Counter[str], document: Document) -> None:
    count["documents"] += 1
    count["bytes"] += len(document.text.encode())
    count["characters"] += len(document.text)
    count["words"] += len(document.text.split())


def _buckets() -> list[str]:
    return [*(f"< {edge:,}" for edge in HISTOGRAM_EDGES), f"≥ {HISTOGRAM_EDGES[-1]:,}"]


def _bucket(size: int) -> str:
    return _buckets()[sum(size >= edge for edge in HISTOGRAM_EDGES)]


def _fill_empty_splits(directory: Path, counts: dict[str, Counter[str]]) -> None:
    """A corpus of a few documents may leave a split empty; it is then given the lowest id of the fullest split."""
    for split in SPLITS:
        if counts[split]["documents"]:
            continue
        giver = max(SPLITS, key=lambda name: counts[name]["documents"])
        documents = list(_documents(directory / f"{giver}.parquet"))
        moved = min(documents, key=lambda document: document.id)
        documents.remove(moved)
        counts[giver], counts[split] = Counter(), Counter()
        for name, members in ((giver, documents), (split, [moved])):
            writer = DocumentWriter(directory / f"{name}.parquet")
            for document in members:
                writer.write(document)
                _count(counts[name], document)
            writer.close()


def _documents(path: Path) -> Iterator[Document]:
    for batch in read_batches(path):
        for row in batch.to_pylist():
            yield Document(row["text"], row["source"], row["metadata"])


def source_digests(found: Found) -> dict[str, str]:
    """Name of each source file → sha256 of its bytes."""
    digests = {}
    for name, path in found.files:
        try:
            digests[name] = sha256_of_file(path)
        except OSError as error:
            raise DataError(f"cannot read source {name} ({path}): {error.strerror}") from None
    return digests
