"""Pages and sentences from the templates of this package. In pages, everything that comes in as text is escaped."""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from groundup.errors import SettingsError
from groundup.files import explaining_write_errors, write_text
from groundup.pages.assets import asset, bundle
from groundup.words import byte_size, duration, plural


def render(template: str, *, scripts: Sequence[str] = (), **values: Any) -> str:
    """A whole document that needs nothing else.

    Args:
        scripts: modules of this package, in the order of their imports. The browser is told to run nothing else.
    """
    script = bundle(*scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() if script else ""
    style = asset("style.css") + (asset("board.css") if script else "")
    inside = {"style": Markup(style), "script": Markup(script), "script_digest": digest}
    return _environment().get_template(template).render(**inside, **values)


def write_page(target: Path, template: str, **values: Any) -> None:
    """Render a template into the file that a person named.

    Raises:
        SettingsError: when `target` is a folder.
    """
    if target.is_dir():
        raise SettingsError(f"{target} is a folder; the page needs a file, such as {target / 'page.html'}")
    with explaining_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, render(template, **values))


def sentences(template: str, **values: Any) -> list[str]:
    """What a template of plain text says: its lines, without the empty ones."""
    lines = _environment().get_template(template).render(**values).splitlines()
    return [line for line in lines if line.strip()]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("groundup.pages", "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (anchor, byte_size, data, duration, number, plural, scientific)
    environment.filters |= {function.__name__: function for function in filters}
    return environment


def anchor(title: str) -> str:
    """
    >>> anchor("What did it cost?")
    'what-did-it-cost'
    """
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def data(value: object) -> Markup:
    """JSON for a script of the page to read, which cannot be taken for markup."""
    return Markup(orjson.dumps(value).decode().replace("<", "\\u003c"))


def number(value: float | None, form: str = ",") -> str:
    """
    >>> number(1234), number(1.5, ".2f"), number(None)
    ('1,234', '1.50', '–')
    """
    return "–" if value is None else format(value, form)


def scientific(value: float) -> str:
    """
    >>> scientific(118863219916800), scientific(0.00062), scientific(0.001)
    ('1.2 × 10¹⁴', '6.2 × 10⁻⁴', '0.001')
    """
    if value == 0 or 0.001 <= abs(value) < 1e6:
        return f"{value:g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} × 10{str(int(exponent)).translate(RAISED)}"


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
