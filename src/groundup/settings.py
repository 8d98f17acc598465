"""Settings: one frozen, checked tree read from TOML, changed by `dotted.key=value`, written back as TOML.

A setting is a field of a `Settings` class in the room that uses it and is declared nowhere else. Alternatives with
settings of their own are unions told apart by `kind`.
"""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from groundup.errors import DataError, SettingsError

Table = dict[str, Any]


class Settings(BaseModel):
    """A frozen table of settings that refuses names it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def from_table(cls, table: Table, origin: str = "settings") -> Self:
        """Build from a plain dict as TOML or JSON give it.

        Raises:
            SettingsError: naming the dotted path, the value and the nearest known name.
        """
        _refuse_non_finite(table)
        try:
            # Through JSON, because strict validation then still takes a TOML array for a tuple and a string for a Path.
            return cls.model_validate_json(json.dumps(_with_default_kinds(cls, table), default=str))
        except ValidationError as error:
            raise SettingsError(f"{origin}:\n" + "\n".join(f"  {line}" for line in explain(cls, error))) from None

    @classmethod
    def load(cls, file: Path, overrides: Iterable[str] = ()) -> Self:
        """Build from a TOML file and overrides such as `["pretrain.optimizer.learning_rate=3e-4"]`.

        Raises:
            SettingsError: naming the dotted path, the value and the nearest known name.
            DataError: when there is no such file.
        """
        return cls._from_overridden(read_toml(file), overrides, str(file))

    def override(self, overrides: Iterable[str]) -> Self:
        """The same settings with `dotted.key=value` changes."""
        return self._from_overridden(self.table(), overrides, type(self).__name__)

    @classmethod
    def _from_overridden(cls, table: Table, overrides: Iterable[str], origin: str) -> Self:
        for override in overrides:
            table = _with_default_kinds(cls, table)  # so that naming the kind a table has anyway drops nothing
            _apply(table, override)
        return cls.from_table(table, origin)

    def table(self) -> Table:
        """As plain TOML values; fields that are not set are left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """As a TOML document that `load` reads back to the same settings."""
        return tomli_w.dumps(self.table())


def describe(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting under `cls`: dotted name, default as TOML (empty where there is none), first sentence of its text.

    Of a union, `kind` comes first with its alternatives, then the fields of each.
    """
    for name, field in cls.model_fields.items():
        arms = _settings_in(field.annotation)
        is_list = get_origin(field.annotation) in (tuple, list)
        if not arms or is_list:
            default = "" if field.is_required() or field.default is None else _toml_value(field.default)
            yield prefix + name, default, _first_sentence(field.description or "")
            continue
        if len(arms) > 1:
            kinds = [arm.model_fields["kind"].default for arm in arms]
            chosen = getattr(field.default, "kind", kinds[0])
            yield f"{prefix}{name}.kind", json.dumps(chosen), f"One of {', '.join(kinds)}."
        for arm in arms:
            whose = f"({arm.model_fields['kind'].default}) " if len(arms) > 1 else ""
            for inner, default, text in describe(arm, f"{prefix}{name}."):
                if inner != f"{prefix}{name}.kind":
                    yield inner, default, whose + text


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", text.strip())[0].replace("\n", " ")


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        value = [item.table() if isinstance(item, Settings) else item for item in value]
    return json.dumps(value, ensure_ascii=False)


def read_toml(file: Path) -> Table:
    """The tables of a TOML file."""
    try:
        with open(file, "rb") as stream:
            return tomllib.load(stream)
    except PermissionError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        beside = sorted(str(path) for path in file.parent.glob("*.toml")) if file.parent.is_dir() else []
        hint = f"; recipes there: {', '.join(beside)}" if beside else ""
        raise DataError(f"no recipe file {file}{hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid TOML: {error}") from None


def flatten(table: Table, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(old: Table, new: Table) -> dict[str, tuple[Any, Any]]:
    """Dotted names whose values differ, with both values; `None` where a name is not set."""
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
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string: no shell needs a second pair of quotes
    for name in names[:-1]:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"override {override!r}: {name} is the value {inner!r}, not a table")
        table = inner
    if names[-1] == "kind" and table.get("kind") != value:
        table.clear()
    table[names[-1]] = value


def _refuse_non_finite(table: Table) -> None:
    for name, value in flatten(table).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{name} is {value}; it must be a finite number")


def _with_default_kinds(cls: type[BaseModel], table: Table) -> Table:
    """A table without `kind` means the default one, or the first: `position.base=500.0` needs no `kind`."""
    filled = dict(table)
    for name, field in cls.model_fields.items():
        value = table.get(name)
        if not isinstance(value, dict):
            continue
        arms = _settings_in(field.annotation)
        if len(arms) > 1:
            value = {"kind": getattr(field.default, "kind", arms[0].model_fields["kind"].default), **value}
        chosen = [arm for arm in arms if len(arms) == 1 or arm.model_fields["kind"].default == value["kind"]]
        filled[name] = _with_default_kinds(chosen[0], value) if chosen else value
    return filled


def explain(cls: type[BaseModel], error: ValidationError) -> list[str]:
    """Pydantic's complaints about a `cls` as sentences."""
    return [_explain(cls, detail) for detail in error.errors()]


def _explain(cls: type[BaseModel], detail: ErrorDetails) -> str:
    """One pydantic complaint as a sentence with the dotted path, the value and what it should be."""
    path, known = _locate(cls, detail["loc"])
    dotted = ".".join(path)
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown setting {dotted}; {nearest(path[-1], known)}"
        case "missing":
            return f"{dotted} is not set and has no default"
        case "union_tag_invalid":
            kinds = [kind.strip("' ") for kind in context["expected_tags"].split(",")]
            return f"{dotted}.kind is {context['tag']!r}; {nearest(context['tag'], kinds)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{dotted} is {detail['input']!r}; it should be a table, such as {dotted}.kind=..."
        case "value_error":
            message = detail["msg"].removeprefix("Value error, ")
            return f"{dotted}: {message}" if dotted else message
        case _:
            message = detail["msg"].replace("Input should", "it should")
            return f"{dotted or 'the file'} is {detail['input']!r}; {message}"


def nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(sorted(known))}" if known else "nothing can be set here"


def _locate(cls: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The dotted path as a person writes it, and the names known in its last table.

    pydantic names the chosen arm of a union inside the path (`position.rotary.base`); a person wrote `position.base`.
    """
    path: list[str] = []
    classes: list[type[BaseModel]] = [cls]
    known: list[str] = []
    for part in location:
        arm = [
            found for found in classes if "kind" in found.model_fields and found.model_fields["kind"].default == part
        ]
        if len(classes) > 1 and arm:
            classes = arm
            continue
        path.append(str(part))
        if isinstance(part, str):
            known = [name for found in classes for name in found.model_fields]
            fields = [found.model_fields[part] for found in classes if part in found.model_fields]
            classes = [inner for field in fields for inner in _settings_in(field.annotation)]
    return path, known


def _settings_in(annotation: Any) -> list[type[BaseModel]]:
    """The Settings classes inside an annotation such as `tuple[A | B, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple, list):
        return [found for part in get_args(annotation) for found in _settings_in(part)]
    return []
