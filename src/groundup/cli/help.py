"""What `--help` and the reference say of settings: name, default and text of each, read off the code."""

import ast
import functools
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from groundup.settings import toml_value
from groundup.words import settings_in


def describe(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting under `cls`: dotted name, default as TOML (empty where there is none), first sentence of its text.

    Of a union, `kind` comes first with its alternatives, then the fields of each.
    """
    for name, field in cls.model_fields.items():
        is_list = get_origin(field.annotation) in (tuple, list)
        if settings_in(field.annotation) and not is_list:
            yield from describe_table(prefix + name, field.annotation, field.default)
        else:
            default = "" if field.is_required() or field.default is None else toml_value(field.default)
            yield prefix + name, default, _first_sentence(text_of(cls, name))


def describe_table(path: str, annotation: Any, default: Any = PydanticUndefined) -> Iterator[tuple[str, str, str]]:
    """`describe` for one table: a class of settings or a union of such."""
    arms = settings_in(annotation)
    if len(arms) > 1:
        kinds = [arm.model_fields["kind"].default for arm in arms]
        chosen = "" if default is None else json.dumps(getattr(default, "kind", kinds[0]))
        yield f"{path}.kind", chosen, f"One of {', '.join(kinds)}."
    for arm in arms:
        whose = f"({arm.model_fields['kind'].default}) " if len(arms) > 1 else ""
        for inner, value, text in describe(arm, f"{path}."):
            if inner != f"{path}.kind":
                yield inner, value, whose + text


def text_of(cls: type[BaseModel], name: str) -> str:
    """The string under a field in the code.

    Pydantic could read these texts too, as each class is made; that was a fifth of the time of `--help`.
    """
    texts = (_texts(base.__module__).get(base.__qualname__, {}).get(name) for base in cls.__mro__)
    return next((text for text in texts if text), "")


@functools.cache
def _texts(module: str) -> dict[str, dict[str, str]]:
    """Class → field → its text, of a module that is imported."""
    file = getattr(sys.modules[module], "__file__", None)
    tree = ast.parse(Path(file).read_bytes() if file else b"")
    return {
        node.name: {
            field.target.id: inspect.cleandoc(text.value.value)
            for field, text in itertools.pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", text.strip())[0].replace("\n", " ")
