"""The pages that are read off the code: every setting of a recipe, every command. `make.py` writes them."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import get_origin

import annotated_types
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from groundup import errors
from groundup.cli import app
from groundup.model.settings import ModelConfig
from groundup.recipe import Recipe
from groundup.settings import describe, settings_in, text_of, toml_value

RECIPE_HEAD = """# Settings of a recipe

Every setting there is, with its default, written by `make docs` from the fields of the code. [Recipe](../recipe.md)
explains what a recipe is, and how settings are changed on the command line.

Where a place has several kinds, the default comes first, and the settings of a kind stand under it. Here and on the
command line the path to a setting is dotted: `pretrain.optimizer.learning_rate=3e-4`. In a recipe the same is
`optimizer = { learning_rate = 3e-4 }` under `[pretrain]`. [All at once](#all-at-once) is a whole recipe to copy from.
"""

COMMANDS_HEAD = """# Commands

Every command, written by `make docs` from the code of the command line. `groundup COMMAND --help` says the same.

`KEY=VALUE` changes a [setting of the recipe](recipe.md) for this build; the value is TOML, and a bare word is a string.
"""


def recipe() -> str:
    """docs/reference/recipe.md"""
    parts = [RECIPE_HEAD]
    for name, field in Recipe.model_fields.items():
        if settings_in(field.annotation):
            parts += _table(name, Recipe, name, 2)
        else:
            parts += ["## `name`\n", _setting(Recipe, name) + "\n"]
    return "\n".join([*parts, *_whole()])


def _table(path: str, owner: type[BaseModel], name: str, depth: int, condition: str = "") -> Iterator[str]:
    """The section of one table, a field of its owner, then those of the tables in it."""
    field = owner.model_fields[name]
    arms = settings_in(field.annotation)
    yield f"{'#' * depth} {f'`[{path}]`' if depth == 2 else f'`{path}`'}\n"
    for text in (condition, text_of(owner, name)):
        if text:
            yield f"{_plain(text)}\n"
    if get_origin(field.annotation) in (tuple, list):
        yield f"A list of tables; if not given: {', '.join(f'`{item.kind}`' for item in field.default) or 'none'}.\n"
    chosen = None
    if len(arms) > 1 and field.default is not None:
        chosen = getattr(field.default, "kind", arms[0].model_fields["kind"].default)
    for arm in sorted(arms, key=lambda arm: len(arms) > 1 and arm.model_fields["kind"].default != chosen):
        if len(arms) > 1:
            kind = arm.model_fields["kind"].default
            yield f"**`kind = {json.dumps(kind)}`**{', the default' if kind == chosen else ''}\n"
        yield f"{_plain(arm.__doc__ or '')}\n"
        lines = [_setting(arm, name) for name, field in _fields(arm) if not settings_in(field.annotation)]
        if lines:
            yield "\n".join(lines) + "\n"
    for arm in arms:
        condition = f"With `{path}.kind = {json.dumps(arm.model_fields['kind'].default)}`." if len(arms) > 1 else ""
        for name, inner in _fields(arm):
            if settings_in(inner.annotation):
                yield from _table(f"{path}.{name}", arm, name, depth + 1, condition)


def _fields(cls: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """All but the name of the kind, and what is filled in from the tokenizer and cannot be set."""
    left_out = ("kind", "vocab_size") if cls is ModelConfig else ("kind",)
    return [(name, field) for name, field in cls.model_fields.items() if name not in left_out]


def _setting(owner: type[BaseModel], name: str) -> str:
    field = owner.model_fields[name]
    if field.is_required():
        value = f"`{name}` (required)"
    elif field.default is None:
        value = f"`{name}` (not set)"
    else:
        value = f"`{name} = {toml_value(field.default)}`"
    limits = _limits(field)
    return f"- {value}{f', {limits}' if limits else ''}<br>\n  {_plain(text_of(owner, name))}"


def _limits(field: FieldInfo) -> str:
    """What a value may be, as far as the field itself says it."""
    values = re.findall(r"'([^']+)'", str(field.annotation)) if "Literal" in str(field.annotation) else []
    if values:
        return " or ".join(json.dumps(value) for value in values)
    said = []
    for limit in field.metadata:
        match limit:
            case annotated_types.Ge():
                said.append(f"at least {limit.ge}")
            case annotated_types.Gt():
                said.append(f"more than {limit.gt}")
            case annotated_types.Le():
                said.append(f"at most {limit.le}")
            case annotated_types.Lt():
                said.append(f"less than {limit.lt}")
    return ", ".join(said)


def _whole() -> Iterator[str]:
    """A recipe with every default written out, each with the first sentence of its text above it."""
    said: dict[str, list[str]] = {}
    for name, _, text in describe(Recipe):
        said.setdefault(name, []).append(text)
    yield "## All at once\n"
    yield "Every default written out. Only `name`, `sources` and `vocab_size` had to be chosen.\n"
    yield "```toml"
    table = kind = ""
    mine = {"name": "mine", "corpus": {"sources": ["my-texts"]}, "tokenizer": {"vocab_size": 4096}}
    for line in Recipe.from_table(mine).to_toml().splitlines():
        if header := re.fullmatch(r"\[(.+)\]", line):
            table, kind = header[1] + ".", ""
        if setting := re.match(r"(\w+) = (.*)", line):
            kind = json.loads(setting[2]) if setting[1] == "kind" else kind
            texts = said.get(table + setting[1], [])
            text = next((text for text in texts if f"({kind}) " in text), "".join(texts[:1]))
            if text:
                text = re.sub(r"^(\(\w+\) )+", "", text)
                yield from textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ")
        yield line
    yield "```\n"


def _plain(docstring: str) -> str:
    return " ".join(docstring.split())


def commands() -> str:
    """docs/reference/commands.md"""
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="groundup")
    return "\n".join([COMMANDS_HEAD, *_command(root, context, "groundup"), *_inside(root, context), *_exit_codes()])


def _inside(group: typer.core.TyperGroup, context: typer.Context, title: str = "") -> Iterator[str]:
    """The commands of a group, and those of the groups among them."""
    for name, command in group.commands.items():
        inner = typer.Context(command, info_name=name, parent=context)
        yield from _command(command, inner, f"{title}{name}")
        if isinstance(command, typer.core.TyperGroup):
            yield from _inside(command, inner, f"{title}{name} ")


def _command(command: typer.core.TyperCommand, context: typer.Context, title: str) -> Iterator[str]:
    yield f"## `{title}`\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    example = (command.epilog or "").partition("Example:\n")[2]
    yield f"`{command.get_usage(context).removeprefix('Usage: ')}`\n"
    shown = [record for parameter in command.params if (record := parameter.get_help_record(context))]
    if shown:
        yield "\n".join(f"- `{names}`<br>\n  {_plain(text)}" for names, text in shown) + "\n"
    if tables := getattr(command, "settings_of", ()):
        yield f"Settings: {', '.join(f'[`[{table}]`](recipe.md#{table})' for table in tables)}.\n"
    if example:
        yield "\n".join(["```", *(line.strip() for line in example.splitlines()), "```\n"])


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | meaning |"
    yield "|---|---|"
    yield "| 0 | Done. |"
    yield "| 1 | A bug of ours; the traceback says where. |"
    found = {error.exit_code: error for error in errors.GroundupError.__subclasses__()}
    for code, error in sorted(found.items()):
        yield f"| {code} | {_plain(error.__doc__ or '')} |"
    yield "| 130, 143 | Stopped by Ctrl-C or SIGTERM where there was nothing to save. |\n"


PAGES = {"recipe": recipe, "commands": commands}
"""The name of each page of docs/reference/, and what it says."""
