"""Settings: one frozen, checked tree read from TOML, changed by `dotted.key=value`, written back as TOML.

A setting is a field of a `Settings` class in the room that uses it and is declared nowhere else. Alternatives with
settings of their own are unions told apart by `kind`.
"""

import difflib
import json
import reprlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from groundup.errors import SURROGATE, SettingsError, escaped
from groundup.files import line_of, parse_toml, read_toml_text, shortened
from groundup.files import read_toml as read_toml

Table = dict[str, Any]
MAX_COMPLAINTS = 20


class _Brief(reprlib.Repr):
    """Values in a message: not longer than a line, and dates and truth values as TOML writes them."""

    def repr_date(self, value: Any, level: int) -> str:
        return toml_value(value)

    repr_datetime = repr_time = repr_bool = repr_date


BRIEFLY = _Brief()
BRIEFLY.maxstring = BRIEFLY.maxother = 80


@dataclass(frozen=True)
class Origin:
    """Where a table was written, so that a mistake in it can be pointed at."""

    name: str
    text: str = ""
    """The TOML file, or nothing."""
    overrides: tuple[str, ...] = ()

    def place(self, path: tuple[str | int, ...], names: Iterable[str] = ()) -> str:
        """`line 12: `, or the override that set what stands at `path`; nothing if it is written nowhere.

        Args:
            names: settings in the table at `path`: the place of the first one that is written is given then.
        """
        paths = [(*path, *name.split(".")) for name in names] or [path]
        for override in reversed(self.overrides):
            given = tuple(override.partition("=")[0].strip().split("."))
            if any(each and given[: len(each)] == each[: len(given)] for each in paths):
                return f"override {shortened(override)}: "
        around = line_of(self.text, path)
        line = next((line for line in (line_of(self.text, each) for each in paths) if line != around), around)
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
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explained(type(self), error, Origin(type(self).__name__)) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # else pydantic calls it for tables in tables

    @model_validator(mode="after")
    def _is_utf8(self) -> Self:
        for name, value in self:
            for word in value if isinstance(value, tuple) else (value,):
                if isinstance(word, str) and SURROGATE.search(word):
                    raise contradiction(f"{name} is not UTF-8: {escaped(word)} (a file: rename it)", name)
        return self

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
        try:
            return cls.model_validate(_complete([cls], table))
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
            table = _complete([cls], table)  # so that naming the kind a table has anyway drops nothing
            _apply(table, override)
        return cls.from_table(table, Origin(origin.name, origin.text, overrides))

    def table(self) -> Table:
        """As plain TOML values; fields that are not set are left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """As a TOML document that `load` reads back to the same settings."""
        return tomli_w.dumps(self.table())


def toml_value(value: Any) -> str:
    """A value as one would write it in TOML, on one line; `not set` for None.

    >>> toml_value({"kind": "cosine", "final": 0.0, "since": [date(2020, 1, 1), True]})
    '{ kind = "cosine", final = 0.0, since = [2020-01-01, true] }'
    """
    match value:
        case None:
            return "not set"
        case Settings():
            return toml_value(value.table())
        case dict():
            return "{ " + ", ".join(f"{key} = {toml_value(inner)}" for key, inner in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(map(toml_value, value)) + "]"
        case date() | time():
            return value.isoformat()
        case str() | bool():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return repr(value)


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
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
    value = read_value(text)
    for name in names[:-1]:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"override {override!r}: {name} is the value {BRIEFLY.repr(inner)}, not a table")
        table = inner
    if names[-1] == "kind" and table.get("kind") != value:
        table.clear()
    table[names[-1]] = value


def read_value(text: str) -> Any:
    """The value in an override: TOML, or a bare word, which is a string: no shell needs a second pair of quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text.strip()
    except RecursionError:
        raise SettingsError(f"override {shortened(text)!r} is nested too deeply") from None


def _complete(classes: list[type[BaseModel]], value: Any, default_kind: str | None = None) -> Any:
    """The value of a field that holds tables of these `classes`, as validation wants it: arrays are tuples.

    A table without `kind` is of the default kind: `position.base=500.0` needs none. Where there is a default kind, a
    bare word is a kind with its defaults: `position = "rotary"`.
    """
    if isinstance(value, (list, tuple)):
        return tuple(_complete(classes, item) if isinstance(item, dict) else item for item in value)
    if default_kind and isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict):
        return value
    completed = {"kind": default_kind, **value} if default_kind else dict(value)
    for cls in classes:
        if len(classes) == 1 or kind_of(cls) == completed.get("kind"):
            for name in completed.keys() & cls.model_fields.keys():
                field = cls.model_fields[name]
                inner = settings_in(field.annotation)
                choice = len(inner) > 1 and get_origin(field.annotation) is not tuple
                default = getattr(field.default, "kind", kind_of(inner[0])) if choice else None
                completed[name] = _complete(inner, completed[name], default)
    return completed


def explained(cls: type[BaseModel], error: ValidationError, origin: Origin) -> SettingsError:
    """Turn pydantic's errors about a `cls` into sentences, each after its line in `origin`; at most 20."""
    details = error.errors(include_url=False)
    more = [f"and {len(details) - MAX_COMPLAINTS:,} more"] if len(details) > MAX_COMPLAINTS else []
    sentences = [_explain(cls, detail, origin) for detail in details[:MAX_COMPLAINTS]]
    message = "\n  ".join([f"{origin.name}:", *sentences, *more])
    return SettingsError(SURROGATE.sub(lambda match: escaped(match[0]), message))


def _explain(cls: type[BaseModel], detail: ErrorDetails, origin: Origin) -> str:
    """One complaint of pydantic's: where it is written, the dotted path, the value and what it should be."""
    path, known, classes = _locate(cls, detail["loc"])
    kinds = [kind for kind in map(kind_of, classes) if kind]
    given = BRIEFLY.repr(detail["input"])
    context = detail.get("ctx", {})
    dotted = ".".join(map(str, path))
    match detail["type"]:
        case "extra_forbidden":
            sentence = f"unknown setting {dotted}; {_nearest_in(cls, str(path[-1]), known)}"
        case "missing":
            sentence = f"{dotted} is not set and has no default"
        case "union_tag_invalid":
            sentence = f"{dotted}.kind is {context['tag']!r}; {nearest(context['tag'], kinds)}"
        case "union_tag_not_found" if isinstance(detail["input"], dict):
            sentence = f"{dotted}.kind is not set; known here: {', '.join(kinds)}"
        case "model_type" | "model_attributes_type" | "dict_type" | "union_tag_not_found":
            as_object = f" (in Python {' or '.join(f'{each.__name__}()' for each in classes)})"
            sentence = f"{dotted} is {given}; it should be a table, such as [{dotted}]"
            sentence += "" if origin.text or origin.overrides else as_object
        case "value_error" | "contradiction":
            sentence = f"{dotted}: ".removeprefix(": ") + detail["msg"].removeprefix("Value error, ")
        case _:
            sentence = f"{dotted or 'a name'} is {given}; {detail['msg'].replace('Input', 'it', 1)}"
    names = ["kind"] if detail["type"].startswith("union_tag") else context.get("names", ())
    return origin.place(path, names) + sentence


def contradiction(message: str, *names: str) -> PydanticCustomError:
    """The error of a rule over several settings, to be raised by its validator.

    Args:
        names: the settings that it is about, dotted from the validator's table on; the message is said at the first
            of them that is written down.
    """
    return PydanticCustomError("contradiction", "{message}", {"message": message, "names": names})


def _nearest_in(cls: type[BaseModel], name: str, known: list[str]) -> str:
    """What may have been meant: a name known here, else one of another table."""
    if not difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        for other in _names_in(cls):
            if other.rpartition(".")[2] == name:
                return f"did you mean {other}?"
    return nearest(name, known)


def _names_in(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for inner in settings_in(field.annotation):
            yield from _names_in(inner, f"{prefix}{name}.")


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
        arm = [found for found in classes if kind_of(found) == part]
        if len(classes) > 1 and arm:
            classes = arm
            continue
        path.append(part)
        if isinstance(part, str):
            known = [name for found in classes for name in found.model_fields]
            fields = [found.model_fields[part] for found in classes if part in found.model_fields]
            classes = [inner for field in fields for inner in settings_in(field.annotation)]
    return tuple(path), known, classes


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
