"""`groundup browse`: a corpus as local pages: its documents, what was dropped and why, copies side by side, redactions.

Every page is made here, escaped, and needs no script: whatever a document holds is shown as text.
"""

import difflib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from groundup.artifacts import is_made, verify
from groundup.corpus.document import DOCUMENTS, SPLITS, read_batches, read_row
from groundup.errors import DataError
from groundup.pages.render import render

if TYPE_CHECKING:
    from fastapi import FastAPI

ASSETS = ("style.css", "browse.css", "icon.svg")
ROWS = 25
"""Documents of a page."""
SECONDS = 3.0
"""That a search takes before it shows what it found, and a link to go on."""
COMPARED = 20_000
"""Characters of two copies that are set side by side."""
EXCERPT = 240
"""Characters of a document in a list."""
PLACEHOLDER = re.compile(r"<(?:email|phone|ip|card|iban|ssn|key|private-key)>")
"""What stands where personal data were taken out."""
CLUSTERS = "dropped/clusters.parquet"
FILES = {**{split: f"{split}.parquet" for split in SPLITS}, "dropped": "dropped/documents.parquet"}


@dataclass(frozen=True)
class Row:
    """A document in a list."""

    place: str
    """A split, or "dropped"."""
    number: int
    """Its number in the file of that place."""
    source: str
    excerpt: list[tuple[str, str]]
    """Parts of its text, each with how it is marked."""
    size: int
    reason: str


@dataclass(frozen=True)
class Listing:
    """Documents that were asked for, in their order."""

    rows: list[Row]
    following: int | None
    """Where to go on; None at the end."""
    looked_at: int
    """Documents that were read for it, from where it began."""


@dataclass(frozen=True)
class Corpus:
    """A corpus directory, as it is looked into."""

    directory: Path

    @cached_property
    def manifest(self) -> Any:
        return verify(self.directory, "corpus", digest_up_to=1 << 20)

    def count(self, place: str) -> int:
        statistics = self.manifest.statistics
        return sum(statistics["dropped"].values()) if place == "dropped" else statistics[place]["documents"]

    def listing(self, place: str, wanted: str, rule: str, first: int) -> Listing:
        """Documents of a place whose text or source contains `wanted`, in small or capital letters, from one on.

        Args:
            rule: that dropped them; any, if empty.
        """
        rows, until, number = list[Row](), time.monotonic() + SECONDS, 0
        columns = [
            each for each in ("text", "source", "reason", "rule") if place == "dropped" or each in DOCUMENTS.names
        ]
        for batch in read_batches(self.directory / FILES[place], columns):
            if number + len(batch) <= first:
                number += len(batch)
                continue
            for at in self._matches(batch, wanted, rule):
                if number + at < first:
                    continue
                if len(rows) == ROWS:
                    return Listing(rows, number + at, number + at - first)
                rows.append(self._row(place, batch, at, number + at, wanted))
            number += len(batch)
            if time.monotonic() > until:
                return Listing(rows, number, number - first)
        return Listing(rows, None, max(0, number - first))

    @staticmethod
    def _matches(batch: pa.RecordBatch, wanted: str, rule: str) -> Sequence[int]:
        found = pa.array([True] * len(batch))
        if wanted:
            found = pc.or_(
                *(pc.match_substring(batch.column(name), wanted, ignore_case=True) for name in ("text", "source"))
            )
        if rule:
            found = pc.and_(found, pc.equal(batch.column("rule"), rule))
        return pc.indices_nonzero(found).to_pylist()  # type: ignore[no-any-return]

    @staticmethod
    def _row(place: str, batch: pa.RecordBatch, at: int, number: int, wanted: str) -> Row:
        text, source = (batch.column(name)[at].as_py() for name in ("text", "source"))
        found = max(0, text.lower().find(wanted.lower()) - EXCERPT // 3) if wanted else 0
        reason = batch.column("reason")[at].as_py() if place == "dropped" else ""
        return Row(place, number, source, marked(text[found : found + EXCERPT], wanted), len(text.encode()), reason)

    def document(self, place: str, number: int) -> dict[str, Any]:
        """All columns of a document.

        Raises:
            DataError: there is none of this number.
        """
        return read_row(self.directory / FILES[place], number)

    def pairs(self) -> list[dict[str, Any]]:
        """Documents that were dropped as near copies of another, each with that other's id and how alike they are."""
        path = self.directory / CLUSTERS
        batches = read_batches(path, ["id", "kept", "similarity"]) if path.is_file() else []
        return [row for batch in batches for row in batch.to_pylist() if row["id"] != row["kept"]]

    def find(self, document_id: str) -> dict[str, Any]:
        """The document with this id, kept or dropped.

        Raises:
            DataError: there is none.
        """
        for path in FILES.values():
            for batch in read_batches(self.directory / path, ["id", "text", "source"]):
                found = batch.filter(pc.equal(batch.column("id"), document_id)).to_pylist()
                if found:
                    return found[0]  # type: ignore[no-any-return]
        raise DataError(f"{self.directory} has no document {document_id}")

    def edits(self, document_id: str) -> list[dict[str, Any]]:
        """What was changed in a document, or remarked on it."""
        batches = read_batches(self.directory / "dropped" / "edits.parquet", ["id", "rule", "count", "example"])
        return [row for batch in batches for row in batch.filter(pc.equal(batch["id"], document_id)).to_pylist()]


def marked(text: str, wanted: str = "") -> list[tuple[str, str]]:
    """A text in parts, with how each is marked: "found", "redacted", or not at all.

    >>> marked("Write to <email>, King.", "king")
    [('Write to ', ''), ('<email>', 'redacted'), (', ', ''), ('King', 'found'), ('.', '')]
    """
    pattern = re.compile("|".join(filter(None, [PLACEHOLDER.pattern, re.escape(wanted)])), re.IGNORECASE)
    parts, at = list[tuple[str, str]](), 0
    for match in pattern.finditer(text):
        parts += [
            (text[at : match.start()], ""),
            (match[0], "redacted" if PLACEHOLDER.fullmatch(match[0]) else "found"),
        ]
        at = match.end()
    return [part for part in [*parts, (text[at:], "")] if part[0]]


def side_by_side(left: str, right: str) -> Iterator[tuple[str, str, bool]]:
    """Two texts by their words, part beside part, and whether the parts are the same."""
    words = [re.findall(r"\s+|\w+|[^\w\s]", text) for text in (left, right)]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        yield "".join(words[0][a:b]), "".join(words[1][c:d]), kind == "equal"


def make_browse_app(directory: Path) -> "FastAPI":
    """The pages of a corpus.

    Raises:
        DataError: not a corpus, or a damaged one.
    """
    from fastapi import HTTPException
    from fastapi.responses import HTMLResponse

    from groundup.pages.app import make_app

    corpus = Corpus(directory)
    name = str(directory)
    overview = render("browse.html", name=name, corpus=corpus, statistics=corpus.manifest.statistics, page="overview")
    app = make_app(overview, ASSETS)

    def answer(page: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(render("browse.html", name=name, corpus=corpus, page=page, **values))

    @app.get("/documents")
    def documents(place: str = "train", wanted: str = "", rule: str = "", first: int = 0) -> HTMLResponse:
        if place not in FILES:
            raise HTTPException(404, f"there is no place {place[:40]!r}")
        listing = corpus.listing(place, wanted, rule, first)
        return answer("documents", place=place, wanted=wanted, rule=rule, first=first, listing=listing)

    @app.get("/document")
    def document(place: str, number: int) -> HTMLResponse:
        try:
            row = corpus.document(place, number)
        except (DataError, KeyError):
            raise HTTPException(404, "there is no such document") from None
        metadata = orjson.loads(row["metadata"])
        edits, shown = corpus.edits(row["id"]), marked(row["text"])
        return answer("document", place=place, number=number, row=row, metadata=metadata, shown=shown, edits=edits)

    @app.get("/copies")
    def copies(first: int = 0) -> HTMLResponse:
        pairs, first = corpus.pairs(), max(0, first)
        return answer("copies", pairs=pairs[first : first + ROWS], first=first, number=len(pairs), rows=ROWS)

    @app.get("/pair")
    def pair(number: int) -> HTMLResponse:
        pairs = corpus.pairs()
        if not 0 <= number < len(pairs):
            raise HTTPException(404, "there is no such pair")
        one, other = corpus.find(pairs[number]["kept"]), corpus.find(pairs[number]["id"])
        parts = side_by_side(one["text"][:COMPARED], other["text"][:COMPARED])
        return answer("pair", pair=pairs[number], kept=one, dropped=other, parts=list(parts))

    return app


def browse(directory: Path, port: int, open_page: bool) -> None:
    """Serve the pages of a corpus, or of a run's, until interrupted."""
    import webbrowser

    from groundup.pages.app import address, listen, serve

    there = directory / "corpus" if is_made(directory / "corpus") else directory
    app, listening = make_browse_app(there), listen(port)
    print(f"{there} is at {address(listening)}  (Ctrl-C ends this)", flush=True)
    if open_page:
        webbrowser.open(address(listening))
    serve(app, listening)
