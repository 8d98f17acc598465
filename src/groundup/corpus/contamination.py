"""Decontamination: evaluation items in training documents, known by words in a row (Brown et al. 2020, appendix C)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import orjson

from groundup.compiled.words import Hashes, Offsets, among, runs_of, table_of, words_of
from groundup.corpus.document import Document, Drop, Note
from groundup.corpus.settings import Contamination
from groundup.errors import DataError, MissingError
from groundup.files import locate, reading

RULE = "contamination.item"


@dataclass(frozen=True)
class Items:
    """Evaluation items, by the runs of words in them."""

    names: list[str]
    """`TASK/ID` of each."""
    totals: Offsets
    """(items,) how many different runs each has; 0 if it has too few words to be looked for."""
    keys: dict[int, tuple[Hashes, Offsets]]
    """Words of a run → the hashes of such runs, sorted, and the item that each is of."""
    tables: dict[int, Hashes]
    """Words of a run → the hashes, to be looked up."""

    def overlap(self, text: str) -> dict[int, int]:
        """Number of an item → how many of its runs of words stand in a text."""
        words, found = words_of(text)[0], list[Offsets]()
        for n, (keys, items) in self.keys.items():
            runs = runs_of(words, n)
            runs = np.unique(runs[among(runs, self.tables[n])])
            borders = np.searchsorted(keys, runs), np.searchsorted(keys, runs, "right")
            found += [items[slice(*span)] for span in np.transpose(borders)]
        numbers, counts = np.unique(np.concatenate([np.empty(0, np.int64), *found]), return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def read_items(settings: Contamination, beside: Path) -> Items:
    """Read the items that the settings name.

    Raises:
        MissingError: a file is not there, and that is not waived.
        DataError: a line that is no item; or no items at all, and that is not waived.
    """
    names, runs = list[str](), dict[int, list[tuple[Hashes, int]]]()
    totals = list[int]()
    for task, id, text in _lines(settings, beside):
        words = words_of(text)[0]
        n = min(settings.words, len(words))
        own = (
            np.unique(runs_of(words, n)) if n >= min(settings.fewest_words, settings.words) else np.empty(0, np.uint64)
        )
        if len(own):
            runs.setdefault(n, []).append((own, len(names)))
        names.append(f"{task}/{id}")
        totals.append(len(own))
    if not names and not settings.waived:
        raise DataError(
            f"corpus.filters: no items of contamination in {', '.join(settings.items) or 'no file'}: name files of "
            'lines {"id": "…", "text": "…"}, such as `groundup tasks --dump` writes, or set waived = true'
        )
    keys = {}
    for n, each in sorted(runs.items()):
        hashes = np.concatenate([own for own, _ in each])
        items = np.concatenate([np.full(len(own), item) for own, item in each])
        order = np.argsort(hashes, kind="stable")
        keys[n] = hashes[order], items[order]
    tables = {n: table_of(hashes) for n, (hashes, _) in keys.items()}
    return Items(names, np.array(totals, np.int64), keys, tables)


def _lines(settings: Contamination, beside: Path) -> Iterable[tuple[str, str, str]]:
    """Task, id and text of each item."""
    for name in settings.items:
        try:
            path = locate(name, beside, "corpus.filters: items")
        except MissingError:
            if settings.waived:
                continue
            raise
        for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
            with reading(file) as stream:
                for number, line in enumerate(stream, 1):
                    try:
                        item = orjson.loads(line)
                        yield file.name.removesuffix(".jsonl"), str(item["id"]), item["text"]
                    except (ValueError, LookupError, TypeError):
                        raise DataError(f'{file}, line {number}: not of the form {{"id": "…", "text": "…"}}') from None


def contamination(document: Document, settings: Contamination, items: Items) -> Document | Drop:
    """Drop a document that holds enough of an item; note what it holds of each, if it stays."""
    counts = items.overlap(document.text)
    if not counts:
        return document
    shares = {number: count / int(items.totals[number]) for number, count in counts.items()}
    worst = max(shares, key=lambda number: (shares[number], -number))
    if settings.action == "drop" and shares[worst] > settings.share:
        reason = f"holds words of an evaluation item: {items.names[worst]}"
        return Drop(RULE, reason, shares[worst], settings.share)
    notes = (Note(RULE, count, items.names[number]) for number, count in counts.items())
    return replace(document, notes=(*document.notes, *notes))


def contaminated(notes: Iterable[Note], items: Items) -> Sequence[dict[str, str | float]]:
    """Lines {task, id, overlap} of `contaminated.jsonl`, which evaluation reads: items that training documents hold.

    Args:
        notes: of the training documents; those of other rules are passed over.

    Returns:
        For each item the largest share that one document has of its runs of words, in the order of the items.
    """
    most = dict[str, int]()
    for note in notes:
        if note.rule == RULE:
            most[note.example] = max(note.count, most.get(note.example, 0))
    lines = list[dict[str, str | float]]()
    for name, total in zip(items.names, items.totals.tolist(), strict=True):
        if name in most:
            task, _, id = name.partition("/")
            lines.append({"task": task, "id": id, "overlap": most[name] / total})
    return lines
