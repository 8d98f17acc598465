"""Settings: one frozen, checked tree read from TOML, changed by `dotted.key=value`, written back as TOML.

A setting is a field of a `Settings` class in the room that uses it and is declared nowhere else. Alternatives with
settings of their own are unions told apart by `kind`.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from groundup.errors import SURROGATE, SettingsError, escaped
from groundup.files import read_toml as read_toml
from groundup.words import BRIEFLY, contradiction, explained, kind_of, nearest, settings_in, shortened

Table = dict[str, Any]


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
            raise explained(type(self), error, type(self).__name__) from None

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
    def from_table(cls, table: Table, origin: str | Path = "settings", overrides: Iterable[str] = ()) -> Self:
        """Build from a plain dict as TOML or JSON give it.

        Args:
            table: dotted names are tables in it; where a kind is chosen, a bare word is one.
            origin: what a message begins with; if it is the TOML file, lines in it are named.
            overrides: `dotted.key=value`, as on the command line.

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
        overrides = tuple(overrides)
        for override in overrides:
            table = _complete([cls], table)  # so that naming the kind a table has anyway drops nothing
            _apply(table, override)
        try:
            return cls.model_validate(_complete([cls], table))
        except ValidationError as error:
            raise explained(cls, error, origin, overrides) from None

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
        return cls.from_table(read_toml(file), file, overrides)

    def override(self, overrides: Iterable[str]) -> Self:
        """The same settings with other values.

        Args:
            overrides: `dotted.key=value`, as on the command line.

        Raises:
            SettingsError: naming the override.
        """
        return self.from_table(self.table(), type(self).__name__, overrides)

    def table(self) -> Table:
        """As plain TOML values; fields that are not set are left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """As a TOML document that `load` reads back to the same settings."""
        return tomli_w.dumps(self.table())


def toml_value(value: Any) -> str:
    """A value as one would write it in TOML, on one line; `not set` for None.

    >>> toml_value({"kind": "cosine", "final": 0.0, "of": ["a", True]})
    '{ kind = "cosine", final = 0.0, of = ["a", true] }'
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
        case str():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value).lower()


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
