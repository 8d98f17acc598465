"""Settings: one frozen, checked tree read from TOML, changed by `dotted.key=value`, written back as TOML.

A setting is a field of a `Settings` class in the room that uses it and is declared nowhere else. Alternatives with
settings of their own are unions told apart by `kind`.
"""

import datetime
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from groundup.errors import SettingsError, escaped
from groundup.files import MAX_DEPTH, line_of, parse_toml, read_toml_text, shortened

Table = dict[str, Any]
MAX_COMPLAINTS = 20
SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Stand-ins for bytes that are not UTF-8, which no file, JSON or terminal can hold."""


@dataclass(frozen=True)
class Origin:
    """Where a table was written, so that a mistake in it can be pointed at."""

    name: str
    text: str = ""
    """The TOML file, or nothing."""
    overrides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    def place(self, path: tuple[str | int, ...]) -> str:
        """`line 12: `, or the override that set it; nothing if it stands nowhere."""
        if not path:
            return ""
        for override in reversed(self.overrides):
            given = tuple(override.partition("=")[0].strip().split("."))
            if given[: len(path)] == path or path[: len(given)] == given:
                return f"override {shortened(override)}: "
        line = line_of(self.text, path)
        return f"line {line}: " if line else ""


class Settings(BaseModel):
    """A frozen table of settings that refuses names it does not know.

    >>> class Room(Settings):
    ...     lights: int = 1
    ...     heated: bool = True
    >>> Room(lights=2).override(["heated=false"])
    Room(lights=2, heated=False)
    >>> Room(lamps=2)
    Traceback (most recent call last):
    ...
    groundup.errors.SettingsError: Room:
      unknown setting lamps; known here: heated, lights
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        """
        Raises:
            SettingsError: naming the field, the value and the nearest known name.
        """
        origin = Origin(type(self).__name__)
        _refuse_what_is_no_setting(values, origin)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explained(type(self), error, origin) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # else pydantic calls it for tables in tables

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """With the values of `update`, as pydantic's; a name that is no field is refused, values are not checked.

        Args:
            deep: copy what the fields hold, too.

        >>> class Room(Settings):
        ...     lights: int = 1
        >>> Room().model_copy(update={"lights": 3})
        Room(lights=3)
        """
        for name in update or ():
            if name not in (fields := type(self).model_fields):
                raise SettingsError(f"{type(self).__name__}: unknown setting {name}; {nearest(name, fields)}")
        return super().model_copy(update=update, deep=deep)

    @classmethod
    def from_table(cls, table: Table, origin: str | Origin = "settings") -> Self:
        """Build from a plain dict as TOML or JSON give it.

        Args:
            table: dotted names are tables in it; where a kind is chosen, a bare word is one.
            origin: what a message begins with.

        Raises:
            SettingsError: naming the dotted path, where it stands, the value and the nearest known name.

        >>> class Room(Settings):
        ...     lights: int = 1
        >>> Room.from_table({"lights": 2}).table()
        {'lights': 2}
        >>> print(Room(lights=2).to_toml())
        lights = 2
        <BLANKLINE>
        """
        origin = Origin(origin) if isinstance(origin, str) else origin
        _refuse_what_is_no_setting(table, origin)
        try:
            # Through JSON, because strict validation then still takes a TOML array for a tuple and a string for a Path.
            return cls.model_validate_json(json.dumps(_with_default_kinds(cls, table), default=str))
        except ValidationError as error:
            raise explained(cls, error, origin) from None

    @classmethod
    def load(cls, file: Path, overrides: Iterable[str] = ()) -> Self:
        """Build from a TOML file and overrides such as `["pretrain.optimizer.learning_rate=3e-4"]`.

        Raises:
            SettingsError: naming the dotted path, its line, the value and the nearest known name.
            DataError: when there is no such file.

        >>> import tempfile
        >>> class Room(Settings):
        ...     lights: int = 1
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "room.toml").write_text(Room(lights=2).to_toml())
        ...     Room.load(Path(folder, "room.toml")), Room.load(Path(folder, "room.toml"), ["lights=3"])
        (Room(lights=2), Room(lights=3))
        """
        text = read_toml_text(file)
        return cls._from_overridden(parse_toml(text, file), overrides, Origin(str(file), text))

    def override(self, overrides: Iterable[str]) -> Self:
        """The same settings with other values.

        Args:
            overrides: `dotted.key=value`, as on the command line.

        Raises:
            SettingsError: naming the override.
        """
        return self._from_overridden(self.table(), overrides, Origin(type(self).__name__))

    @classmethod
    def _from_overridden(cls, table: Table, overrides: Iterable[str], origin: Origin) -> Self:
        overrides = tuple(overrides)
        for override in overrides:
            table = _with_default_kinds(cls, table)  # so that naming the kind a table has anyway drops nothing
            _apply(table, override)
        return cls.from_table(table, Origin(origin.name, origin.text, overrides))

    def table(self) -> Table:
        """As plain TOML values; fields that are not set are left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """As a TOML document that `load` reads back to the same settings."""
        return tomli_w.dumps(self.table())


def toml_value(value: Any) -> str:
    """A value as one would write it in TOML; `not set` for None."""
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        value = [item.table() if isinstance(item, Settings) else item for item in value]
    return json.dumps(value, ensure_ascii=False)


def read_toml(file: Path) -> Table:
    """The tables of a TOML file.

    Raises:
        DataError: no such file.
        SettingsError: not TOML, naming the line; or far too large.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.toml").write_text("[pretrain]\\nsteps = 500")
    ...     read_toml(Path(folder, "a.toml"))
    {'pretrain': {'steps': 500}}
    """
    return parse_toml(read_toml_text(file), file)


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(map(str, path))


def flatten(table: Table, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def nested(flat: Table) -> Table:
    """{"a.b": 1} → {"a": {"b": 1}}."""
    table: Table = {}
    for path, value in flat.items():
        *outer, last = path.split(".")
        inner = table
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return table


def differences(old: Table, new: Table) -> dict[str, tuple[Any, Any]]:
    """Dotted names whose values differ, with both values, `old` and `new`; `None` where a name is not set.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})
    {'a.b': (1, 2), 'c': (None, 3)}
    """
    before, after = flatten(old), flatten(new)
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def _apply(table: Table, override: str) -> None:
    """Write one `dotted.key=value` into `table`; a new `kind` drops the other arm's fields."""
    path, equals, text = override.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise SettingsError(f"override {override!r} is not of the form dotted.key=value, such as pretrain.steps=500")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()  # a bare word is a string: no shell needs a second pair of quotes
    except RecursionError:
        raise SettingsError(f"override {shortened(override)!r} is nested deeper than {MAX_DEPTH}") from None
    for name in names[:-1]:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"override {override!r}: {name} is the value {inner!r}, not a table")
        table = inner
    if names[-1] == "kind" and table.get("kind") != value:
        table.clear()
    table[names[-1]] = value


def _refuse_what_is_no_setting(table: Table, origin: Origin) -> None:
    """Numbers that are not finite, dates, bytes that are no text, and nesting that no setting has."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), table)]  # a list, since recursion would be the harm
    while waiting:
        path, value = waiting.pop()
        if len(path) > MAX_DEPTH:
            at = path[:3]
            raise SettingsError(
                f"{origin}: {origin.place(at)}{_dotted(at)} holds tables or arrays nested deeper than {MAX_DEPTH}"
            )
        words = [path[-1]] if path and isinstance(path[-1], str) else []
        for word in [*words, str(value)] if isinstance(value, (str, Path)) else words:
            if SURROGATE.search(word):
                message = f"{origin}: {origin.place(path)}{_dotted(path)} is not UTF-8: {word} (a file: rename it)"
                raise SettingsError(escaped(message))
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{origin}: {origin.place(path)}{_dotted(path)} is {value}; it must be a finite number")
        if isinstance(value, (datetime.date, datetime.time)):
            raise SettingsError(
                f"{origin}: {origin.place(path)}{_dotted(path)} is a date or time, which no setting is; if it is meant "
                "as a word, put it in quotes"
            )
        if isinstance(value, (dict, list, tuple)):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*path, name), item) for name, item in inner]


def _with_default_kinds(cls: type[BaseModel], table: Table) -> Table:
    """A table without `kind` means the default one, or the first: `position.base=500.0` needs no `kind`. A bare word
    is the kind with its defaults: `position = "rotary"`."""
    filled = dict(table)
    for name, field in cls.model_fields.items():
        value = table.get(name)
        arms = settings_in(field.annotation)
        if isinstance(value, str) and len(arms) > 1 and get_origin(field.annotation) is not tuple:
            value = {"kind": value}
        if not isinstance(value, dict):
            continue
        if len(arms) > 1:
            value = {"kind": getattr(field.default, "kind", arms[0].model_fields["kind"].default), **value}
        chosen = [arm for arm in arms if len(arms) == 1 or arm.model_fields["kind"].default == value["kind"]]
        filled[name] = _with_default_kinds(chosen[0], value) if chosen else value
    return filled


def explained(cls: type[BaseModel], error: ValidationError, origin: Origin) -> SettingsError:
    """Turn pydantic's errors about a `cls` into sentences, each after its line in `origin`; at most 20."""
    details = error.errors()
    more = [f"and {len(details) - MAX_COMPLAINTS:,} more"] if len(details) > MAX_COMPLAINTS else []
    sentences = [_explain(cls, detail, origin) for detail in details[:MAX_COMPLAINTS]]
    return SettingsError("\n  ".join([f"{origin}:", *sentences, *more]))


def _explain(cls: type[BaseModel], detail: ErrorDetails, origin: Origin) -> str:
    path, known, classes = _locate(cls, detail["loc"])
    kinds = [arm.model_fields["kind"].default for arm in classes if "kind" in arm.model_fields]
    sentence = _sentence(path, known, kinds, detail)
    if sentence.endswith(f"table, such as [{_dotted(path)}]") and not (origin.text or origin.overrides):
        sentence += f" (in Python {' or '.join(f'{arm.__name__}()' for arm in classes)})"
    if detail["type"] == "extra_forbidden" and not difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5):
        elsewhere = [name for name in _names_in(cls) if name.rpartition(".")[2] == path[-1]]
        sentence = f"unknown setting {_dotted(path)}; did you mean {elsewhere[0]}?" if elsewhere else sentence
    if detail["type"] == "union_tag_invalid":
        path = (*path, "kind")
    places = [origin.place((*path, *name.split("."))) for name in detail.get("ctx", {}).get("names", ())]
    written = [place for place in places if place not in ("", origin.place(path))]
    overridden = [place for place in written if place.startswith("override")]
    return next(iter([*overridden, *written]), origin.place(path)) + sentence


def contradiction(message: str, *names: str) -> PydanticCustomError:
    """The error of a rule over several settings, to be raised by its validator.

    Args:
        names: the settings that it is about, dotted from the validator's table on; the message is said at the first
            of them that is written down.
    """
    return PydanticCustomError("contradiction", "{message}", {"message": message, "names": names})


def _names_in(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for inner in settings_in(field.annotation):
            yield from _names_in(inner, f"{prefix}{name}.")


def _sentence(path: tuple[str | int, ...], known: list[str], kinds: list[str], detail: ErrorDetails) -> str:
    """One pydantic complaint with the dotted path, the value and what it should be."""
    dotted = _dotted(path)
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown setting {dotted}; {nearest(str(path[-1]), known)}"
        case "missing":
            return f"{dotted} is not set and has no default"
        case "union_tag_invalid":
            return f"{dotted}.kind is {context['tag']!r}; {nearest(context['tag'], kinds)}"
        case "union_tag_not_found" if isinstance(detail["input"], dict):
            return f"{dotted}.kind is not set; known here: {', '.join(kinds)}"
        case "model_type" | "model_attributes_type" | "dict_type" | "union_tag_not_found":
            return f"{dotted} is {shortened(repr(detail['input']))}; it should be a table, such as [{dotted}]"
        case "value_error" | "contradiction":
            message = detail["msg"].removeprefix("Value error, ")
            return f"{dotted}: {message}" if dotted else message
        case _:
            message = detail["msg"].replace("Input should", "it should")
            return f"{dotted or 'the file'} is {shortened(repr(detail['input']))}; {message}"


def nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(sorted(known))}" if known else "nothing can be set here"


def _locate(
    cls: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[tuple[int | str, ...], list[str], list[type[BaseModel]]]:
    """The dotted path as a person writes it, the names known in its last table, and the classes that may stand there.

    pydantic names the chosen arm of a union inside the path (`position.rotary.base`); a person wrote `position.base`.
    """
    path: list[int | str] = []
    classes: list[type[BaseModel]] = [cls]
    known: list[str] = []
    for part in location:
        arm = [
            found for found in classes if "kind" in found.model_fields and found.model_fields["kind"].default == part
        ]
        if len(classes) > 1 and arm:
            classes = arm
            continue
        path.append(part)
        if isinstance(part, str):
            known = [name for found in classes for name in found.model_fields]
            fields = [found.model_fields[part] for found in classes if part in found.model_fields]
            classes = [inner for field in fields for inner in settings_in(field.annotation)]
    return tuple(path), known, classes


def settings_in(annotation: Any) -> list[type[BaseModel]]:
    """The Settings classes inside an annotation such as `tuple[A | B, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple, list):
        return [found for part in get_args(annotation) for found in settings_in(part)]
    return []
