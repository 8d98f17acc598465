"""What stands on pages beside their text: cookie notices, menus, page numbers, repeated headers; leftover markup.

All expressions are of bounded length or stop at the sign that begins them, so the time is linear in the text.
"""

import html
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

from groundup.corpus.document import Document, Note
from groundup.corpus.settings import Boilerplate, Markup
from groundup.settings import Settings

_COOKIES = re.compile(
    r"\b(?:uses?|using|accept|allow|reject|manage|enable)\b.{0,40}\bcookies\b"
    r"|\bcookies?\b.{0,20}\b(?:policy|settings|preferences|consent|notice)\b"
    r"|\bby (?:continuing|using|browsing)\b.{0,60}\byou (?:agree|consent|accept)\b",
    re.IGNORECASE,
)
_PAGE = re.compile(
    r"\W{0,3}(?:page|pg\.?|p\.|seite|página)\W{0,3}\d{1,5}(?: ?(?:of|/|von|de) ?\d{1,5})?\W{0,3}"
    r"|[-–—\[] ?\d{1,5} ?[-–—\]]",
    re.IGNORECASE,
)
_MENU = re.compile(
    r"(?:skip to (?:main )?(?:content|navigation)|(?:back to )?top|home|menu|search|read more|click here"
    r"|(?:sign|log) (?:in|up|out)|register|subscribe(?: now)?|print(?: this page)?|tweet|email this"
    r"|share(?: this)?(?: on (?:facebook|twitter|x|whatsapp))?|leave a (?:comment|reply)|contact us|about us"
    r"|(?:next|previous)(?: page| post)?|all rights reserved|(?:©|copyright).{0,80}"
    r"|(?:terms|privacy)(?: of use| of service| policy)?)\W{0,4}",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r"[|›»·•>]")
_NUMBER = re.compile(r"\d+")
LONGEST_NOTICE, LONGEST_PART, LONGEST_HEADER = 300, 25, 80
"""Characters of a cookie notice, of an entry in a row of a menu, and of a header."""
FEWEST_HEADERS, LINES_BETWEEN = 4, 10
"""How often a header comes at least, and how many lines lie between at least, on the average: in a refrain fewer do."""

_COMMENT = re.compile(
    r"<!--(?:(?!<!--|-->)[\s\S])*-->|<(script|style|ref)\b[^<>]*(?:/>|>(?:(?!</?\1)[\s\S])*</\1>)", re.IGNORECASE
)
_BREAK = re.compile(
    r"</?(?:p|br|hr|div|tr|li|ul|ol|table|h[1-6]|blockquote|section|article)\b[^<>]{0,1000}>", re.IGNORECASE
)
_TAG = re.compile(
    r"</?(?:a|b|i|u|s|em|strong|span|font|td|th|tbody|thead|img|center|sup|sub|small|big|tt|code|pre|nowiki|ref|iframe|input"
    r"|button|form|label|svg|path|script|style)\b[^<>]{0,1000}>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8}[0-9]{0,2});")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_UNSEEN = ("file:", "image:", "category:", "datei:", "kategorie:")
_EMPHASIS = re.compile(r"'{2,5}")
_HEADING = re.compile(r"^={2,6}([^=\n]+)={2,6}$", re.MULTILINE)


def boilerplate(document: Document, settings: Boilerplate) -> Document:
    """The document without such lines, and a note of each kind."""
    lines = document.text.split("\n")
    going = dict(_lines_of(lines, settings))
    if not going:
        return document
    kept = "\n".join(line for number, line in enumerate(lines) if number not in going)
    counts, examples = Counter(going.values()), {rule: lines[number] for number, rule in reversed(going.items())}
    notes = (Note(f"boilerplate.{rule}", count, examples[rule][:80]) for rule, count in counts.items())
    return replace(document, text=re.sub(r"\n{3,}", "\n\n", kept).strip(), notes=(*document.notes, *notes))


def _lines_of(lines: list[str], settings: Boilerplate) -> Iterator[tuple[int, str]]:
    """The numbers of lines that go, and the rule."""
    where = defaultdict(list)
    for number, line in enumerate(lines):
        if not line or len(line) > LONGEST_NOTICE:
            continue
        if settings.cookies and ("ookie" in line or "OOKIE" in line or "ou agree" in line) and _COOKIES.search(line):
            yield number, "cookies"
        elif len(line) > LONGEST_HEADER and not _BETWEEN.search(line):
            continue
        elif settings.page_numbers and (_PAGE.fullmatch(line) or _is_inside(lines, number)):
            yield number, "page-numbers"
        elif settings.menus and (_MENU.fullmatch(line) or _is_row(line)):
            yield number, "menus"
        elif (
            settings.headers
            and len(line) <= LONGEST_HEADER
            and line[-1] not in ".?!:;,\"'”’»…-"
            and not line.isdecimal()
        ):
            where[_NUMBER.sub("0", line)].append(number)
    for numbers in where.values():
        if len(numbers) >= FEWEST_HEADERS and numbers[-1] - numbers[0] >= LINES_BETWEEN * (len(numbers) - 1):
            yield from ((number, "headers") for number in numbers)


def _is_inside(lines: list[str], number: int) -> bool:
    """Whether a number has text right before and behind: that of a chapter stands alone."""
    is_number = lines[number].isdecimal() and len(lines[number]) < 5
    return is_number and 0 < number < len(lines) - 1 and bool(lines[number - 1]) and bool(lines[number + 1])


def _is_row(line: str) -> bool:
    """Whether a line is a row of short entries: Home | News | About."""
    parts = _BETWEEN.split(line)
    return len(parts) > 2 and line[-1] not in ".?!" and all(len(part.strip()) <= LONGEST_PART for part in parts)


def markup(document: Document, settings: Markup) -> Document:
    """The document without HTML tags and entities, and without the marks of wikis."""
    text, notes = document.text, list[Note]()
    steps: list[tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]]] = []
    if settings.html and "<" in text:
        steps += [("comments", _COMMENT, ""), ("tags", _BREAK, "\n"), ("tags", _TAG, "")]
    if settings.html and "&" in text:
        steps += [("entities", _ENTITY, lambda found: html.unescape(found[0]))]
    if settings.wiki and ("[[" in text or "{{" in text):
        steps += [("templates", _TEMPLATE, "")] * 3 + [("links", _LINK, _shown)] * 2  # one within the other
        steps += [("emphasis", _EMPHASIS, ""), ("headings", _HEADING, r"\1")]
    for rule, expression, by in steps:
        first = expression.search(text)
        text, count = expression.subn(by, text) if first else (text, 0)
        if first and count:
            notes.append(Note(f"markup.{rule}", count, first[0][:80]))
    if not notes:
        return document
    return replace(document, text=re.sub(r"\n{3,}", "\n\n", text).strip(), notes=(*document.notes, *notes))


def _shown(link: re.Match[str]) -> str:
    """What a reader sees of [[target|text]]."""
    return "" if link[1].lower().startswith(_UNSEEN) else link[1].rpartition("|")[2]


EDITS: dict[type[Settings], Callable[..., Document]] = {Boilerplate: boilerplate, Markup: markup}
