"""The corpus stage: read, clean, filter, deduplicate, hold out; nothing dropped without a reason kept beside it."""

import re
import shutil
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from groundup.artifacts import Draft
from groundup.corpus.card import write_card
from groundup.corpus.contamination import RULE as CONTAMINATION
from groundup.corpus.contamination import contaminated, read_items
from groundup.corpus.document import DROPPED, SPLITS, DocumentWriter, Note, read_table
from groundup.corpus.duplicates import CLUSTERS, clusters
from groundup.corpus.executors import RUN_AGAIN, Executor, digest, one_machine
from groundup.corpus.filters import FILTER, digest_files, prepare
from groundup.corpus.parts import NOTE, Refiner, sizes
from groundup.corpus.settings import Contamination, CorpusSettings, Near, path_of
from groundup.corpus.sources import MARKS, Found, find
from groundup.corpus.whole import Part, Whole, look_at_whole, read_parts
from groundup.errors import DataError, MissingError
from groundup.files import Progress, canonical_json, explaining_write_errors, no_progress, write_text

HISTOGRAM_EDGES = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000]
"""Document lengths in bytes at which the report's histogram is cut."""
EDITS = pa.schema([("id", pa.string()), ("source", pa.string()), *NOTE])
EXAMPLE_CHARACTERS = 120
BUCKETS = [*(f"< {edge:,}" for edge in HISTOGRAM_EDGES), f"≥ {HISTOGRAM_EDGES[-1]:,}"]


@dataclass
class Tally:
    """How many documents were dropped, and why."""

    counts: Counter[str] = field(default_factory=Counter)
    """Reason, without details such as the line → documents."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first document of each reason that has details."""

    def add(self, source: str, reason: str) -> None:
        """`not utf-8: invalid start byte at byte 17` is counted as `not utf-8`; `dropped/` keeps the whole reason."""
        short = reason
        if reason.startswith("line of"):
            short = "line too long"
        elif reason.startswith(("not ", "incomplete", "refused", "no field", "field ", "word", "domain")):
            short = re.split("[:;]", reason)[0]
        self.counts[short] += 1
        if short != reason:
            self.examples.setdefault(short, f"{source}: {reason.removeprefix(f'{short}: ')}")

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
    ("incomplete", "refused"): "get these files again, whole",
    ("not read", "not a "): "convert them to a kind of file that is read",
    ("not ",): "corpus.encoding should be how they are encoded",
    ("no field",): "set corpus.text_field to one of these fields",
    ("field ",): "set corpus.text_field to the field that holds the text",
    ("shorter", "longer", "less than", "more than"): "loosen corpus.filters",
    ("exact duplicate",): "add other texts, since copies count once",
    ("empty",): "add texts",
}
"""Beginnings of a reason → what can be done; the first that fits."""


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
    work: Path | None = None,
    executor: Executor = one_machine,
) -> None:
    """Write `train`, `validation` and `test` documents and the dropped ones, and leave the statistics in `draft`.

    Args:
        beside: the folder of the recipe, in which files that the settings name are looked for first.
        digests: name of each source file → sha256 that its bytes must still have when they have been read.
        work: a folder for the parts, which an interrupted stage goes on with; one in `draft`, if not given.
        executor: what makes the parts.

    Raises:
        DataError: when too few documents are left, with the count for each reason; when a source changed meanwhile.
            What was dropped is written, and counted in `draft`, even so.
        ResourceError: out of memory, naming the file that was read.
    """
    digests = {name: each for name, each in digests.items() if not name.startswith(FILTER)} if digests else digests
    if digests is not None and (others := digests.keys() ^ {name for name, _ in found.files}):
        raise DataError(f"source {min(others)} came or went meanwhile: {RUN_AGAIN}")
    digests = digests or {name: digest(name, path) for name, path in found.files}
    folder = begin(work or draft.path / "parts", settings, beside)
    prepared, classifiers = prepare(settings, beside, folder)
    executor(found, Refiner(prepared, beside, folder), digests, progress)
    parts = read_parts(folder, found, settings, digests)
    counts, whole = Counts(), look_at_whole(parts, settings, folder)
    try:
        write(parts, whole, settings, draft.path, counts)
    finally:
        draft.statistics["dropped"] = dict(counts.tally.counts.most_common())
    kept, kept_bytes = (sum(each[what] for each in counts.splits.values()) for what in ("documents", "bytes"))
    refuse_too_few(kept, kept_bytes, counts.read["documents"], counts.tally)
    _fill_empty_splits(draft.path, counts)
    draft.statistics |= counts.statistics(found, whole, settings)
    write_clusters(whole, settings, draft.path / "dropped" / "clusters.parquet")
    write_contaminated(counts, settings, beside, draft.path / "contaminated.jsonl")
    if classifiers:
        draft.statistics["classifiers"] = classifiers
        for each in classifiers:
            shutil.copyfile(folder / each["file"], draft.path / each["file"])
    write_text(draft.path / "card.md", write_card(draft.statistics, settings))
    shutil.rmtree(folder)


def begin(folder: Path, settings: CorpusSettings, beside: Path) -> Path:
    """Make the folder of parts, without those that were made with other settings, lists or examples."""
    head = canonical_json([settings.table(), digest_files(settings.filters, beside, {})])
    path = folder / "settings.json"
    with explaining_write_errors(folder):
        if not path.is_file() or path.read_bytes() != head:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(head)
            partial.replace(path)
    return folder


def write(parts: Sequence[Part], whole: Whole, settings: CorpusSettings, directory: Path, counts: "Counts") -> None:
    """Write the documents of all parts, each where it belongs; training documents of several epochs one after another.

    Args:
        counts: is added to.
    """
    with ExitStack() as opened:
        writers = {
            split: opened.enter_context(closing(DocumentWriter(directory / f"{split}.parquet"))) for split in SPLITS
        }
        dropped = opened.enter_context(closing(DocumentWriter(directory / "dropped" / "documents.parquet", DROPPED)))
        edits = opened.enter_context(closing(DocumentWriter(directory / "dropped" / "edits.parquet", EDITS)))
        most = 1
        for part in parts:
            table = whole.settle(part, settings)
            counts.add(part, table)
            gone = pc.is_valid(table.column("rule"))
            dropped.write_table(table.filter(gone))
            edits.write_table(edits_of(table))
            kept = table.filter(pc.invert(gone))
            for split, writer in writers.items():
                own = kept.filter(pc.equal(kept.column("split"), split))
                writer.write_table(own)
                counts.add_written(split, own)
            most = max(most, pc.max(kept.column("copies")).as_py() or 1)
        for epoch in range(1, most):
            for part in parts:
                table = whole.settle(part, settings)
                again = table.filter(pc.greater(table.column("copies"), epoch))
                writers["train"].write_table(again)
                counts.add_written("train", again)


def write_clusters(whole: Whole, settings: CorpusSettings, path: Path) -> None:
    """Write which documents are near copies of each other, if that was looked for."""
    for kind in settings.duplicates:
        if isinstance(kind, Near):
            with pq.ParquetWriter(path, CLUSTERS, compression="zstd", write_page_checksum=True) as writer:
                for batch in clusters(whole.standing, whole.kept.id, whole.kept.text, kind.words):
                    writer.write_batch(batch)


def write_contaminated(counts: "Counts", settings: CorpusSettings, beside: Path, path: Path) -> None:
    """Write which evaluation items training documents hold, and how much of each, if that was looked for."""
    lines = list[bytes]()
    asked = [each for each in settings.filters if isinstance(each, Contamination)]
    for each in asked:
        found = (Note(CONTAMINATION, number, name) for name, number in counts.contamination.items())
        lines += [canonical_json(line) for line in contaminated(found, read_items(each, beside))]
    if asked:
        write_text(path, "".join(f"{line.decode()}\n" for line in lines))


def edits_of(table: pa.Table) -> pa.Table:
    """A row for each note of documents."""
    notes = table.column("notes").combine_chunks()
    rows = pc.list_parent_indices(notes)
    columns = [table.column(name).take(rows) for name in ("id", "source")]
    flat = notes.flatten()
    return pa.table([*columns, *(flat.field(name) for name in ("rule", "count", "example"))], names=EDITS.names)


@dataclass
class Counts:
    """What is counted while a corpus is written."""

    read: Counter[str] = field(default_factory=Counter)
    """Documents and bytes that were read."""
    splits: dict[str, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})
    """Split → documents, bytes, characters and words; each document as often as it is there."""
    tally: "Tally" = field(default_factory=lambda: Tally())
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rule → documents that it dropped, its reason, and an example."""
    edits: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rule → times that it changed something, or remarked on it, and an example."""
    licences: Counter[str] = field(default_factory=Counter)
    """Licence that a document's metadata name → documents that are kept."""
    languages: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Language → documents and bytes that are kept, each once."""
    sources: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Number of a source → documents that were read and kept, and bytes that are kept, each once."""
    histogram: Counter[int] = field(default_factory=Counter)
    contamination: Counter[str] = field(default_factory=Counter)
    """Evaluation item → the most runs of its words that one training document has."""
    odd_fields: Counter[str] = field(default_factory=Counter)
    marks: "Marks" = field(default_factory=lambda: Marks())

    def add(self, part: Part, table: pa.Table) -> None:
        """All documents of a part, kept or dropped."""
        told = part.told
        self.read.update(documents=len(table), bytes=told["read_bytes"])
        self.odd_fields.update(told["odd_fields"])
        for mark, number in told["marks"].items():
            self.marks.uses[mark][part.file] += number
        self.licences.update(told["licences"])
        gone = table.filter(pc.is_valid(table.column("rule")))
        columns = [gone.column(name).to_pylist() for name in ("rule", "reason", "source")]
        for number, (rule, reason, source) in enumerate(zip(*columns, strict=True)):
            self.tally.add(source, reason)
            if rule not in self.rules:
                text = gone.column("text")[number].as_py()[:EXAMPLE_CHARACTERS]
                self.rules[rule] = {"documents": 0, "reason": reason.partition(":")[0], "example": f"{source}: {text}"}
            self.rules[rule]["documents"] += 1
        for row in edits_of(table).to_pylist():
            example = f"{row['source']}: {row['example'][:EXAMPLE_CHARACTERS]}"
            self.edits.setdefault(row["rule"], {"times": 0, "example": example})["times"] += row["count"]
        kept = table.filter(pc.is_null(table.column("rule")))
        trained = pc.and_(pc.equal(table.column("split"), "train"), pc.is_null(table.column("rule")))
        for note in edits_of(table.filter(trained)).to_pylist():
            if note["rule"] == CONTAMINATION:
                self.contamination[note["example"]] = max(self.contamination[note["example"]], note["count"])
        self.sources[part.source].update(
            read=len(table), documents=len(kept), bytes=pc.sum(kept.column("bytes")).as_py() or 0
        )
        for language, n_bytes in zip(*(kept.column(name).to_pylist() for name in ("language", "bytes")), strict=True):
            self.languages[language].update(documents=1, bytes=n_bytes)
            self.histogram[bisect(HISTOGRAM_EDGES, n_bytes)] += 1

    def add_written(self, split: str, table: pa.Table) -> None:
        sums = {name: pc.sum(table.column(name)).as_py() or 0 for name in ("bytes", "characters", "words")}
        self.splits[split].update(documents=len(table), **sums)

    def statistics(self, found: Found, whole: Whole, settings: CorpusSettings) -> dict[str, Any]:
        return {
            "read": {**self.read, "files": len(found.files)},
            "left_out": dict(sorted(found.left_out.items())),
            "left_out_names": dict(sorted(found.left_out_names.items())),
            "marks": self.marks.table(),
            "metadata_left_out": dict(self.odd_fields.most_common(20)),
            "documents_by_bytes": {name: self.histogram[number] for number, name in enumerate(BUCKETS)},
            "rules": dict(sorted(self.rules.items(), key=lambda rule: -rule[1]["documents"])),
            "edits": dict(sorted(self.edits.items(), key=lambda rule: -rule[1]["times"])),
            "licences": {name: {"documents": number} for name, number in self.licences.most_common()},
            "languages": {name: dict(self.languages[name]) for name in sorted(self.languages) if name},
            "sources": {path_of(settings.sources[number]): dict(each) for number, each in sorted(self.sources.items())},
            **whole.statistics(settings),
            **{split: dict(counts) for split, counts in self.splits.items()},
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


def _fill_empty_splits(directory: Path, counts: Counts) -> None:
    """A corpus of a few documents may leave a split empty; it is then given the lowest id of the fullest split."""
    for split in SPLITS:
        if counts.splits[split]["documents"]:
            continue
        giver = max(SPLITS, key=lambda name: counts.splits[name]["documents"])
        table = read_table(directory / f"{giver}.parquet")
        lowest = pc.equal(table.column("id"), pc.min(table.column("id")))
        for name, rows in ((giver, pc.invert(lowest)), (split, lowest)):
            counts.splits[name] = Counter()
            with closing(DocumentWriter(directory / f"{name}.parquet")) as writer:
                writer.write_table(table.filter(rows))
            for text in table.filter(rows).column("text").to_pylist():
                counts.splits[name].update(documents=1, **sizes(text))


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
    for each in settings.sources:
        source = path_of(each)
        try:
            found = find(settings.model_copy(update={"sources": (each,)}), beside)
        except MissingError:
            if not recorded:
                raise
            gone.append(source)
            within = source.rstrip("/") + "/"
            digests |= {name: old for name, old in recorded.items() if name == source or name.startswith(within)}
        else:
            digests |= {name: digest(name, path) for name, path in found.files}
    return digests | digest_files(settings.filters, beside, recorded), gone
