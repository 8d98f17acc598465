"""Extraction: the text of a page, a PDF, a book, a letter, a wiki's article. Hostile ones may take for ever: `apart`
runs this in a process with a limit."""

import io
import posixpath
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from groundup.corpus.decoding import page_text

MOST_FILE_BYTES = 100_000_000
"""Of one file in a book or letter, unpacked."""
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
DROPPED_TAGS = re.compile(r"<(ref|gallery|math|timeline|score)\b[^>]*?(?:/>|>.*?</\1>)", re.DOTALL | re.IGNORECASE)
LINKED_FILES = re.compile(r"^\[\[[^\[\]:|]+:[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\][ \t]*$", re.MULTILINE)
"""Pictures and categories that stand alone on a line: `[[File:a.png|thumb|A [[fox]].]]`."""


@dataclass(frozen=True)
class Extracted:
    """The text that was found, or why there is none."""

    text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    note: str = ""
    """How the bytes were decoded, where they do not say it themselves."""


def html(raw: bytes, mode: str, declared: str | None, encoding: str) -> Extracted:
    """The main text of a page: by resiliparse (fast), or trafilatura (quality)."""
    page, note = page_text(raw, declared or _declared(raw), encoding)
    if page is None:
        return Extracted(reason=note)
    if mode == "quality":
        import trafilatura

        found = trafilatura.extract(page, favor_precision=True, include_comments=False, fast=False)
        return Extracted(found or "", note=note)
    from resiliparse.extract.html2text import extract_plain_text

    text = extract_plain_text(page, main_content=True, alt_texts=False, comments=False, post_meta=False)
    return Extracted(text, note=note)


def _declared(raw: bytes) -> str | None:
    """What a page's own `<meta>` or XML declaration says of its encoding, in its first 1,024 bytes as browsers do."""
    found = re.search(
        rb"""<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", raw[:1024], re.IGNORECASE
    )
    return found[1].decode("ascii", "replace") if found else None


def pdf(raw: bytes, **settings: Any) -> Extracted:
    """The text of all pages, an empty line between two; a scan without text has none."""
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            return Extracted(reason="not read: a PDF with a password")
        pages = [page.extract_text() for page in reader.pages]
    except pypdf.errors.PyPdfError as error:
        return Extracted(reason=f"not a PDF: {error}")
    text = "\n\n".join(pages)
    return Extracted(text) if text.strip() else Extracted(reason=f"no text: {len(pages):,} pages of pictures")


def epub(raw: bytes, **settings: Any) -> Extracted:
    """The text of a book's files, in the order in which they are to be read."""
    from resiliparse.extract.html2text import extract_plain_text

    with zipfile.ZipFile(io.BytesIO(raw)) as book:
        container = ElementTree.fromstring(_file(book, "META-INF/container.xml"))
        root = next(element.attrib["full-path"] for element in container.iter() if element.tag.endswith("}rootfile"))
        package = ElementTree.fromstring(_file(book, root))
        files = {each.get("id"): each.get("href", "") for each in package.iter() if each.tag.endswith("}item")}
        order = [files[each.attrib["idref"]] for each in package.iter() if each.tag.endswith("}itemref")]
        titles = [each.text for each in package.iter() if each.tag.endswith("}title") and each.text]
        folder, texts = posixpath.dirname(root), []
        for name in order:
            page, _ = page_text(_file(book, posixpath.normpath(posixpath.join(folder, unquote(name)))), None, "utf-8")
            texts.append(extract_plain_text(page or "", main_content=False, alt_texts=False).strip())
    return Extracted("\n\n".join(filter(None, texts)), {"title": titles[0]} if titles else {})


def docx(raw: bytes, **settings: Any) -> Extracted:
    """The paragraphs of a letter, those of its tables in their order, an empty line between two."""
    with zipfile.ZipFile(io.BytesIO(raw)) as letter:
        body = ElementTree.fromstring(_file(letter, "word/document.xml"))
    signs = {f"{WORD}tab": "\t", f"{WORD}br": "\n", f"{WORD}cr": "\n", f"{WORD}noBreakHyphen": "-"}
    paragraphs = [
        "".join((each.text or "") if each.tag == f"{WORD}t" else signs.get(each.tag, "") for each in paragraph.iter())
        for paragraph in body.iter(f"{WORD}p")
    ]
    return Extracted("\n\n".join(filter(str.strip, paragraphs)))


def _file(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as stream:
        data = stream.read(MOST_FILE_BYTES + 1)
    if len(data) > MOST_FILE_BYTES:
        raise zipfile.BadZipFile(f"more than {MOST_FILE_BYTES:,} bytes in {name}")
    return data


def wiki(raw: bytes, **settings: Any) -> Extracted:
    """The article of a `<page>` of a MediaWiki dump, without markup, tables, references and templates."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Tag

    page = ElementTree.fromstring(raw)
    found = {name: page.findtext(name) or "" for name in ("title", "ns", "id")}
    if found["ns"] not in ("", "0"):
        return Extracted(found["title"], reason=f"not an article: of namespace {found['ns']}")
    if page.find("redirect") is not None:
        return Extracted(found["title"], reason="not an article: leads to another")
    revisions = page.findall("revision")
    source = (revisions[-1].findtext("text") or "") if revisions else ""
    code = mwparserfromhell.parse(LINKED_FILES.sub("", DROPPED_TAGS.sub("", source)))
    for tag in code.filter_tags(recursive=False, matches=lambda node: isinstance(node, Tag) and node.tag == "table"):
        code.remove(tag)
    for heading in code.filter_headings():
        heading.title = heading.title.strip()
    return Extracted(code.strip_code(), {"title": found["title"], "id": found["id"]})


EXTRACT: dict[str, Callable[..., Extracted]] = {"html": html, "pdf": pdf, "epub": epub, "docx": docx, "wiki": wiki}


def extract(kind: str, raw: bytes, settings: dict[str, Any]) -> dict[str, Any]:
    """`Extracted` as a dict; a file that is not what it should be is a reason, and so is any error of a library."""
    try:
        found = EXTRACT[kind](raw, **settings)
        return asdict(replace(found, text=found.text.encode("utf-8", "replace").decode()))
    except MemoryError:
        return asdict(Extracted(reason=f"not read: a {kind} that takes too much memory"))
    except Exception as error:  # whatever a hostile file makes of a library, it is this file's alone
        return asdict(Extracted(reason=f"not a whole {kind}: {type(error).__name__}: {str(error)[:200]}"))
