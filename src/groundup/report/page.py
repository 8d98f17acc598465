"""The pieces of a page: one HTML file that needs nothing else. Everything that comes in as text is escaped."""

import base64
import hashlib
import html
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import orjson

from groundup.errors import SettingsError
from groundup.files import naming_the_place, write_text
from groundup.pages.assets import asset


def page(title: str, body: str, mark: str = "", script: str = "") -> str:
    """A whole document with its style sheet inside; `mark` goes into a comment in its second line.

    Nothing is fetched, and nothing runs but `script`: the browser is told so, whatever else is in `body`.
    """
    style = asset("style.css") + (asset("board.css") if script else "")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = "default-src 'none'; style-src 'unsafe-inline'" + (f"; script-src 'sha256-{digest}'" if script else "")
    assert "</script" not in script
    comment = f"<!-- {mark} -->\n" if mark else ""
    return (
        f'<!doctype html>\n{comment}<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}: groundup</title>"
        f"<style>{style}</style></head>\n<body><main>\n{body}\n</main>"
        + (f'<script type="module">{script}</script>' if script else "")
        + "</body></html>\n"
    )


def write(target: Path, title: str, body: str) -> None:
    """Write a page where a person wants it.

    Raises:
        SettingsError: when `target` is a folder.
    """
    if target.is_dir():
        raise SettingsError(f"{target} is a folder; the page needs a file, such as {target / 'page.html'}")
    with naming_the_place(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page(title, body))


def text(value: object) -> str:
    return html.escape(str(value))


def sentence(words: str) -> str:
    """A paragraph; what stands between two pairs of asterisks is set off.

    >>> sentence("**3 < 4** holds")
    '<p><b>3 &lt; 4</b> holds</p>'
    """
    return f"<p>{emphasised(words)}</p>"


def emphasised(words: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text(words))


def section(title: str, *parts: str) -> str:
    return f'<section id="{anchor(title)}"><h2>{text(title)}</h2>{"".join(parts)}</section>'


def contents(titles: Iterable[str]) -> str:
    """Links to the sections with these titles."""
    items = "".join(f'<li><a href="#{anchor(title)}">{text(title)}</a></li>' for title in titles)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def anchor(title: str) -> str:
    """
    >>> anchor("What did it cost?")
    'what-did-it-cost'
    """
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def table(header: Iterable[str], rows: Iterable[Iterable[object]], anchors: Sequence[str] = ()) -> str:
    """
    Args:
        anchors: of each row, for links to it.
    """
    names = list(header)
    head = f"<thead><tr>{''.join(f'<th>{text(name)}</th>' for name in names)}</tr></thead>" if any(names) else ""
    marks = [f' id="{text(name)}"' for name in anchors] or itertools.repeat("")
    body = "".join(
        f"<tr{mark}>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>"
        for mark, row in zip(marks, rows, strict=False)
    )
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def data(anchor: str, value: object) -> str:
    """A value for a script of the page to read, where it cannot be taken for markup."""
    written = orjson.dumps(value).decode().replace("<", "\\u003c")
    return f'<script type="application/json" id="{anchor}">{written}</script>'


def figure(chart: str, caption: str, metric: str = "") -> str:
    """
    Args:
        metric: of which a script may draw the curve here in place of `chart`.
    """
    named = f' data-metric="{text(metric)}"' if metric else ""
    return f"<figure{named}>{chart}<figcaption>{emphasised(caption)}</figcaption></figure>"


def sample(prompt: str, continuation: str, note: str) -> str:
    return f"<blockquote><b>{text(prompt)}</b>{text(continuation)} <small>{text(note)}</small></blockquote>"


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def scientific(value: float) -> str:
    """
    >>> scientific(118863219916800)
    '1.2 × 10¹⁴'
    """
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} × 10{str(int(exponent)).translate(RAISED)}"


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
