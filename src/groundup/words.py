"""Words: numbers, values, and mistakes in settings as a person reads them, for messages, tables and pages."""

import difflib
import re
import reprlib
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from groundup.errors import SURROGATE, SettingsError, escaped


def plural(number: int, noun: str) -> str:
    """
    >>> plural(1, "document"), plural(1200, "document")
    ('1 document', '1,200 documents')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def byte_size(n_bytes: float) -> str:
    """
    >>> byte_size(812), byte_size(56_700_000), byte_size(1_234_000_000)
    ('812 bytes', '56.7 MB', '1.23 GB')
    """
    for unit, name, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)):
        if n_bytes >= unit:
            return f"{n_bytes / unit:,.{digits}f} {name}"
    return f"{n_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """
    >>> duration(8.25), duration(113.7), duration(500), duration(50_000), duration(5e6)
    ('8.2 seconds', '114 seconds', '8.3 minutes', '13.9 hours', '57.9 days')
    """
    for unit, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.{0 if seconds >= 10 else 1}f} seconds"


def short_value(value: object) -> str:
    """A setting's value as a person writes it, numbers to six digits.

    >>> short_value(0.0001), short_value(64), short_value("muon"), short_value(True)
    ('0.0001', '64', 'muon', 'true')
    """
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


# Mistakes in settings: pydantic's errors, each with the line of the TOML file or the override that it is about

Location = tuple[str | int, ...]
MAX_COMPLAINTS = 20


class _Brief(reprlib.Repr):
    """Values in a message: not longer than a line, and dates and truth values as TOML writes them."""

    def repr_date(self, value: object, level: int) -> str:
        return str(value).lower()

    repr_datetime = repr_time = repr_bool = repr_date


BRIEFLY = _Brief()
BRIEFLY.maxstring = BRIEFLY.maxother = 80
NAME = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
DOTTED = rf"{NAME}(?:\s*\.\s*{NAME})*"
HEADER_OR_KEY = re.compile(rf"\s*(?:(?P<bracket>\[\[?)\s*(?P<header>{DOTTED})\s*\]|(?P<key>{DOTTED})\s*=)")


def explained(
    cls: type[BaseModel], error: ValidationError, origin: str | Path, overrides: tuple[str, ...] = ()
) -> SettingsError:
    """Turn pydantic's errors about a `cls` into sentences, each after its line or override; at most 20."""
    details = error.errors(include_url=False)
    toml = origin.read_text("utf-8") if isinstance(origin, Path) else ""
    lines = [f"{origin}:"]
    for detail in details[:MAX_COMPLAINTS]:
        path, sentence = _explain(cls, detail)
        names = ["kind"] if detail["type"].startswith("union_tag") else detail.get("ctx", {}).get("names", ())
        lines.append(_place(path, names, toml, overrides) + sentence)
    if len(details) > MAX_COMPLAINTS:
        lines.append(f"and {len(details) - MAX_COMPLAINTS:,} more")
    return SettingsError(SURROGATE.sub(lambda match: escaped(match[0]), "\n  ".join(lines)))


def _place(path: Location, names: Iterable[str], toml: str, overrides: tuple[str, ...]) -> str:
    """`line 12: `, or the override that set what stands at `path`; nothing if it is written nowhere.

    Args:
        names: settings in the table at `path`: the place of the first one that is written is given then.
    """
    paths = [(*path, *name.split(".")) for name in names] or [path]
    for override in reversed(overrides):
        given = tuple(override.partition("=")[0].strip().split("."))
        if any(each and given[: len(each)] == each[: len(given)] for each in paths):
            return f"override {shortened(override)}: "
    around = line_of(toml, path)
    line = next((line for line in (line_of(toml, each) for each in paths) if line != around), around)
    return f"line {line}: " if line else ""


def _explain(cls: type[BaseModel], detail: ErrorDetails) -> tuple[Location, str]:
    """One complaint of pydantic's: the path as a person writes it, then that path, the value and what it should be."""
    path, classes = _locate(cls, detail["loc"])
    kinds = [kind for kind in map(kind_of, classes) if kind]
    dotted, given = ".".join(map(str, path)), BRIEFLY.repr(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            name, (_, tables) = str(path[-1]), _locate(cls, detail["loc"][:-1])
            elsewhere = [other for other in _names_in(cls) if f".{other}".endswith(f".{name}")]
            known = [known for table in tables for known in table.model_fields]
            sentence = f"unknown setting {dotted}; {nearest(name, known, elsewhere)}"
        case "missing":
            sentence = f"{dotted} is not set and has no default"
        case "union_tag_invalid":
            tag = detail["ctx"]["tag"]
            sentence = f"{dotted}.kind is {tag!r}; {nearest(tag, kinds)}"
        case "union_tag_not_found" if isinstance(detail["input"], dict):
            sentence = f"{dotted}.kind is not set; known here: {', '.join(kinds)}"
        case "model_type" | "model_attributes_type" | "dict_type" | "union_tag_not_found":
            objects = " or ".join(f"{each.__name__}()" for each in classes)
            sentence = f"{dotted} is {given}; it should be a table, such as [{dotted}] (in Python {objects})"
        case "value_error" | "contradiction":
            sentence = f"{dotted}: ".removeprefix(": ") + detail["msg"].removeprefix("Value error, ")
        case _:
            sentence = f"{dotted or 'a name'} is {given}; {detail['msg'].replace('Input', 'it', 1)}"
    return path, sentence


def contradiction(message: str, *names: str) -> PydanticCustomError:
    """The error of a rule over several settings, to be raised by its validator.

    Args:
        names: the settings that it is about, dotted from the validator's table on; the message is said at the first
            of them that is written down.
    """
    return PydanticCustomError("contradiction", "{message}", {"message": message, "names": names})


def _names_in(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings in a table."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        for inner in settings_in(field.annotation):
            yield from _names_in(inner, f"{prefix}{name}.")


def nearest(name: str, known: Iterable[str], elsewhere: Iterable[str] = ()) -> str:
    """What may have been meant: a name known here, else one of another table."""
    for near in (*difflib.get_close_matches(name, known, n=1, cutoff=0.5), *elsewhere):
        return f"did you mean {near}?"
    return f"known here: {', '.join(sorted(known))}" if known else "nothing can be set here"


def _locate(cls: type[BaseModel], location: Location) -> tuple[Location, list[type[BaseModel]]]:
    """The path as a person writes it, and the classes that may stand there.

    pydantic names the chosen arm of a union inside the path (`position.rotary.base`); a person wrote `position.base`.
    """
    path: Location = ()
    classes = [cls]
    for part in location:
        arm = [each for each in classes if kind_of(each) == part]
        if len(classes) > 1 and arm:
            classes = arm
            continue
        path = (*path, part)
        if isinstance(part, str):
            fields = [each.model_fields[part] for each in classes if part in each.model_fields]
            classes = [inner for field in fields for inner in settings_in(field.annotation)]
    return path, classes


def kind_of(cls: type[BaseModel]) -> str | None:
    """The `kind` that chooses this class among others."""
    return cls.model_fields["kind"].default if "kind" in cls.model_fields else None


def settings_in(annotation: Any) -> list[type[BaseModel]]:
    """The Settings classes inside an annotation such as `tuple[A | B, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple, list):
        return [found for part in get_args(annotation) for found in settings_in(part)]
    return []


def line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """The line of a TOML file on which `path` stands, or the first key inside it; if it is written nowhere, or inside
    the value of a key, the line of its table or of that key.

    tomllib, which reads the values, gives no positions. This looks for keys under their headers line by line, and so
    takes a line of a long string that looks like a key for one.

    >>> line_of("a = 1\\n[b]\\nc.d = [\\n  {e = 2},\\n]", ("b", "c", "d", 0, "e"))
    3
    """
    lines = list(_lines_of_keys(text))
    while path:
        inside = [(key, line) for key, line in lines if key[: len(path)] == path]
        if inside:
            return next((line for key, line in inside if key == path), inside[0][1])
        path = path[:-1]
    return None


def _lines_of_keys(text: str) -> Iterator[tuple[tuple[str | int, ...], int]]:
    tables: Counter[tuple[str | int, ...]] = Counter()  # array of tables → its tables so far
    table: tuple[str | int, ...] = ()
    for number, line in enumerate(text.split("\n"), start=1):
        match = HEADER_OR_KEY.match(line)
        names = re.findall(NAME, match["header"] or match["key"]) if match else []
        names = [str(tomllib.loads(f"name = {name}")["name"]) if name[0] in "\"'" else name for name in names]
        if match and match["key"]:
            yield (*table, *names), number
        elif match:
            table = ()
            for name in names[:-1]:  # under an array of tables, its last table is meant
                table = (*table, name)
                table = (*table, tables[table] - 1) if table in tables else table
            table = (*table, names[-1])
            if match["bracket"] == "[[":
                tables[table] += 1
                table = (*table, tables[table] - 1)
            yield table, number
