"""On what text is the tokenizer measured? Puts together 160 MB of real text, none of it twice.

    apt-get install --no-install-recommends anarchism dict-devil dict-foldoc dict-gcide dict-jargon linux-doc-6.1 \
        manpages manpages-dev perl-doc postgresql-doc-15 python3.11-doc
    python bench/tokenizer_text.py FOLDER [--corpora ../shared/data/corpora] [--bytes 160000000]

Takes the staged corpora first, then documentation that Debian 12 installs, source by source as listed below, up to the
last whole document that fits. A document is a book, a section or story, a file of documentation, or a few kB of
neighbouring entries of a dictionary. Texts, Markdown, reStructuredText and pod stay as they are; HTML loses its tags,
man pages their macros. Documents shorter than 200 bytes and exact duplicates (sha256) are left out; nothing else is.
The documents are put in the order of their sha256, so that any first part of the text is a sample of the whole.

Writes the documents three times into FOLDER: documents.parquet (as in a corpus), text.txt (a line feed between
them), separated.txt (a NUL between them, which none of them holds). Prints what the text is made of and its sha256,
that of separated.txt. The same versions of the packages give the same text.
"""

import argparse
import gzip
import hashlib
import html
import json
import lzma
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from glob import glob
from pathlib import Path

from groundup.corpus.document import Document, DocumentWriter

SHORTEST_BYTES = 200
DICTIONARY_PAGE_BYTES = 4_000


def as_it_is(text: str) -> Iterator[str]:
    yield text


def json_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield json.loads(line)["text"]


def stories(text: str) -> Iterator[str]:
    """One document for each: a story begins on the line below the end of another; its own paragraphs have a blank
    line between them."""
    yield from re.split(r"(?<=\S)\n(?=\S)", text)


def dictionary(text: str) -> Iterator[str]:
    """Neighbouring entries; an entry begins with a line that is not indented, below a blank one."""
    page: list[str] = []
    page_bytes = 0
    for entry in re.split(r"\n(?=\n\S)", text):
        page.append(entry)
        page_bytes += len(entry.encode())
        if page_bytes >= DICTIONARY_PAGE_BYTES:
            yield "\n".join(page).strip("\n")
            page, page_bytes = [], 0
    yield "\n".join(page).strip("\n")


def web_page(text: str) -> Iterator[str]:
    text = re.sub(r"(?is)<!--.*?-->|<(script|style|head)\b.*?</\1\s*>", "", text)
    text = re.sub(r"(?i)</?(p|div|br|li|tr|h[1-6]|dt|dd|dl|ul|ol|pre|table|hr|section|blockquote)\b[^>]*>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    yield re.sub(r"\s*\n\s*\n\s*", "\n\n", text).strip()


ROFF_WITH_WORDS = {"B", "I", "R", "BI", "BR", "IB", "IR", "RB", "RI", "SB", "SM", "SH", "SS", "IP", "TP"}
ROFF_CHARACTERS = {
    "&": "", "e": "\\", "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "co": "©", "em": "—",
    "en": "–", "bu": "•", "ha": "^", "ti": "~", "rs": "\\", "mc": "µ", "+-": "±", "mu": "×", "<=": "≤", ">=": "≥",
}  # fmt: skip


def roff_character(found: re.Match[str]) -> str:
    name = found[1] or found[2] or found[3]
    return ROFF_CHARACTERS.get(name, name)


def man_page(text: str) -> Iterator[str]:
    """Without comments, requests and escapes; the words that a macro sets in a face of its own stay."""
    lines = []
    for line in text.splitlines():
        if line.startswith((".\\", "'\\", '."')):
            continue
        if line.startswith((".", "'")):
            request, _, words = line[1:].strip().partition(" ")
            if request not in ROFF_WITH_WORDS:
                lines.append("")
                continue
            quoted = re.findall(r'"([^"]*)"|(\S+)', words)
            line = ("" if request in {"BI", "BR", "IB", "IR", "RB", "RI"} else " ").join(a or b for a, b in quoted)
        line = re.sub(r"\\(?:f(?:\(..|\[[^\]]*\]|.)|s[+-]?\d+|\*(?:\(..|\[[^\]]*\]|.)|[|^%:/,]|\".*)", "", line)
        lines.append(re.sub(r"\\(?:\((..)|\[([^\]]*)\]|(.))", roff_character, line))
    yield re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


CORPORA: tuple[tuple[str, Callable[[str], Iterator[str]]], ...] = (
    ("classics.jsonl.xz", json_lines),
    ("storybook.jsonl.gz", json_lines),
    ("tinystories_sample.txt.gz", stories),
    ("tinyshakespeare.txt.gz", as_it_is),
    ("the-verdict.txt.gz", as_it_is),
)
DOCUMENTATION: tuple[tuple[str, str, Callable[[str], Iterator[str]]], ...] = (
    ("anarchism", "/usr/share/doc/anarchism/markdown/*.md*", as_it_is),
    ("dict-devil", "/usr/share/dictd/devil.dict.dz", dictionary),
    ("dict-foldoc", "/usr/share/dictd/foldoc.dict.dz", dictionary),
    ("dict-jargon", "/usr/share/dictd/jargon.dict.dz", dictionary),
    ("perl-doc", "/usr/share/perl/*/pod/*.pod*", as_it_is),
    ("postgresql-doc-15", "/usr/share/doc/postgresql-doc-15/html/*.html", web_page),
    ("python3.11-doc", "/usr/share/doc/python3.11/html/_sources/**/*.txt", as_it_is),
    ("manpages", "/usr/share/man/man[4-9]/*.gz", man_page),
    ("manpages-dev", "/usr/share/man/man[23]/*.gz", man_page),
    ("linux-doc-6.1", "/usr/share/doc/linux-doc-6.1/html/_sources/**/*.txt", as_it_is),
    ("dict-gcide", "/usr/share/dictd/gcide.dict.dz", dictionary),
)
"""Package, its files, and what cuts one of them into documents. The last one is the one that is cut short."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpora", type=Path, default=Path("../shared/data/corpora"))
    parser.add_argument("--bytes", type=int, default=160_000_000)
    arguments = parser.parse_args()
    versions = refuse_missing(arguments.corpora)
    texts: dict[bytes, str] = {}
    rows = []
    room = arguments.bytes
    for source, documents in sources(arguments.corpora, versions):
        taken = taken_bytes = short = duplicates = 0
        for text in documents:
            size = len(text.encode())
            digest = hashlib.sha256(text.encode()).digest()
            if size < SHORTEST_BYTES:
                short += 1
            elif digest in texts:
                duplicates += 1
            elif size > room:
                room = 0  # the text ends here, even if a shorter document would still fit
                break
            else:
                texts[digest] = text
                room -= size
                taken += 1
                taken_bytes += size
        rows.append((source, taken, taken_bytes, short, duplicates))
        if not room:
            break
    else:
        found = sum(row[2] for row in rows)
        sys.exit(f"there are only {found:,} bytes of {arguments.bytes:,}: add a source to DOCUMENTATION in {__file__}")
    ordered = [text for _, text in sorted(texts.items())]
    whole_digest = write(arguments.folder, ordered)
    print("| source | documents | bytes | shorter than 200 bytes | duplicates |\n|---|---|---|---|---|")
    rows.append(("**all**", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    for source, *numbers in rows:
        print(f"| {source} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    print(f"\nsha256 of separated.txt: {whole_digest}")


def refuse_missing(corpora: Path) -> dict[str, str]:
    """The version of each package, once all that is needed is there."""
    absent = [str(corpora / name) for name, _ in CORPORA if not (corpora / name).is_file()]
    if absent:
        sys.exit(f"missing: {', '.join(absent)}; give the folder that holds the staged corpora as --corpora")
    packages = [package for package, _, _ in DOCUMENTATION]
    versions = {}
    try:
        asked = ["dpkg-query", "-W", "-f=${Package} ${db:Status-Status} ${Version}\n", *packages]
        for line in subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines():
            package, status, version = line.split(" ")
            if status == "installed":
                versions[package] = version
    except FileNotFoundError:
        sys.exit("there is no dpkg-query here: the documentation is that of Debian 12's packages")
    absent = [package for package in packages if package not in versions]
    if absent:
        sys.exit(f"missing: apt-get install --no-install-recommends {' '.join(absent)}")
    return versions


def sources(corpora: Path, versions: dict[str, str]) -> Iterator[tuple[str, Iterable[str]]]:
    for name, cut in CORPORA:
        yield name, cut(read(corpora / name))
    for package, pattern, cut in DOCUMENTATION:
        listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=True).stdout
        owned = set(listed.splitlines())
        files = [Path(file) for file in sorted(glob(pattern, recursive=True)) if file in owned]
        files = [file for file in files if file.is_file() and not file.is_symlink()]
        if not files:
            sys.exit(f"{package} is installed, but without {pattern}: was it installed with documentation left out?")
        yield f"{package} {versions[package]}", (text for file in files for text in cut(read(file)))


def read(path: Path) -> str:
    """Bytes that are not UTF-8 become U+FFFD; line ends become line feeds."""
    raw = path.read_bytes()
    if path.suffix in {".gz", ".dz"}:
        raw = gzip.decompress(raw)
    elif path.suffix == ".xz":
        raw = lzma.decompress(raw)
    return raw.decode("utf-8", "replace").replace("\r\n", "\n")


def write(folder: Path, texts: list[str]) -> str:
    """The three files; returns the sha256 of separated.txt."""
    writer = DocumentWriter(folder / "documents.parquet")
    for number, text in enumerate(texts):
        writer.write(Document(text, str(number)))
    writer.close()
    assert not any("\0" in text for text in texts), "the NUL must separate"
    (folder / "text.txt").write_bytes("\n".join(texts).encode())
    separated = "\0".join(texts).encode()
    (folder / "separated.txt").write_bytes(separated)
    return hashlib.sha256(separated).hexdigest()


if __name__ == "__main__":
    main()
