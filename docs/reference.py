"""The pages that are read off the code: every setting of a recipe, every command, every public name of Python.
`make.py` writes them.
"""

import ast
import functools
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_origin

import annotated_types
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import groundup
from groundup import errors
from groundup.cli.app import app
from groundup.cli.help import describe, text_of
from groundup.model.settings import ModelConfig
from groundup.recipe import Recipe
from groundup.settings import toml_value
from groundup.words import settings_in

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


API_HEAD = """# Python

Every public name, written by `make docs` from the code: its declaration, what its docstring says, and an example, which
the tests run. A program of your own may build upon these names; the changelog tells when one of them changes.
**What is not listed here is not promised**: other pages show more of the inside, which may change without a word.

`import groundup` offers {short}. Each is told below, where it is at home.

Settings such as `AdamW`, `Cosine` or `Sampling` are classes too; [Settings of a recipe](recipe.md) has them with all
their fields. What a recipe says as `optimizer = {{ kind = "adamw", learning_rate = 3e-4 }}` is in Python
`AdamW(learning_rate=3e-4)`, from `groundup.optim.settings`: each room keeps its own in its `settings.py`.

In the examples, `torch` and what the module itself imports are there already. B is the rows of a batch, T the tokens of
a row, D the width, V the vocabulary; `Float[Tensor, "B T"]` is a tensor of that shape.
"""

PUBLIC = {
    "building": ["build", "Built", "Row"],
    "recipe": ["Recipe"],
    "weights.load": ["load", "load_model"],
    "weights.write": ["save"],
    "generation.text": ["generate", "stream", "Writer", "Answer"],
    "generation.engine": ["Engine", "Request", "Chosen"],
    "evals.score": ["score", "Score"],
    "evals.run": ["score_files"],
    "tokenizer.tokenizer": ["Tokenizer"],
    "tokenizer.chat": ["Chat", "load"],
    "export.run": ["export"],
    "export.settings": ["ExportSettings"],
    "corpus.sources": ["find", "Found", "read"],
    "corpus.document": ["Document"],
    "corpus.clean": ["clean"],
    "shards": ["pack", "open_split", "stream_of", "Tokens"],
    "train.loader": ["rows"],
    "batch": ["Batch", "split", "to", "total_weight"],
    "model.settings": ["ModelConfig"],
    "model.transformer": ["Transformer", "make_block"],
    "model.attention": ["Attend", "Causal", "Packed", "dot_product_attention"],
    "model.feedforward": ["make_feedforward"],
    "model.count": ["count", "Count"],
    "train.losses": ["cross_entropy", "token_logprobs", "next_token"],
    "optim.optimizer": ["make_optimizer"],
    "optim.schedule": ["make_schedule"],
    "train.fit": ["fit", "accumulate", "clip_gradients", "Step"],
    "train.checkpoint": ["tensors_of", "save", "load_newest", "Loaded"],
    "settings": ["Settings", "read_toml", "differences"],
    "artifacts": ["making", "Draft", "verify", "read_manifest", "Manifest"],
    "errors": [
        "GroundupError",
        "SettingsError",
        "DataError",
        "DamagedError",
        "UnsupportedError",
        "ResourceError",
        "DivergedError",
        "SavedAndStopped",
        "Paused",
    ],
}
"""Module of groundup → the names in it that a program of one's own may build upon, in the order of the page."""


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
        given = [] if field.is_required() else [f"`{item.kind}`" for item in field.default]
        needed = "required" if field.is_required() else f"if not given: {', '.join(given) or 'none'}"
        yield f"A list of {'names or ' * ('str' in str(field.annotation))}tables; {needed}.\n"
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
    """In one line, without its example."""
    return " ".join(docstring.partition(">>>")[0].split())


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


def api() -> str:
    """docs/reference/api.md"""
    parts = [API_HEAD.format(short=", ".join(f"[`{name}`](#{name.lower()})" for name in groundup.__all__))]
    for module, names in PUBLIC.items():
        home = importlib.import_module(f"groundup.{module}")
        about = inspect.cleandoc(home.__doc__ or "").partition("\n\n")[0]
        parts += [f"## `groundup.{module}`\n", f"{about}\n"]
        for name in names:
            parts += _entry(name, getattr(home, name), 3)
    return "\n".join(parts)


def _entry(title: str, thing: Any, depth: int) -> Iterator[str]:
    """A public name, then the public members of a class."""
    yield f"{'#' * depth} `{title}`\n"
    yield f"```py\n{_declaration(thing)}\n```\n"
    parts = [*_readable(thing.__doc__)]
    if inspect.isclass(thing):
        made_and_called = (vars(thing).get(special) for special in ("__init__", "__call__"))
        for function in filter(inspect.isfunction, made_and_called):
            parts += _readable(function.__doc__ or "")
        if not issubclass(thing, BaseModel):
            parts += _fields_of(thing)
    yield from sorted(parts, key=lambda part: part.startswith("```pycon"))
    for name, member in public_members(thing) if inspect.isclass(thing) else ():
        yield from _entry(f"{title}.{name}", member, depth + 1)


def public_members(cls: type) -> list[tuple[str, Any]]:
    """Methods and properties that a class itself declares, in the order of the code."""
    kinds = (classmethod, staticmethod, property, functools.cached_property)
    return [
        (name, member)
        for name, member in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds))
    ]


def _declaration(thing: Any) -> str:
    """As the code has it: of a function the signature, of a class its fields too, and how it is made and called."""
    thing = getattr(thing, "fget", None) or getattr(thing, "func", None) or getattr(thing, "__func__", thing)
    source = textwrap.dedent(inspect.getsource(thing))
    lines, node = source.splitlines(), ast.parse(source).body[0]
    inside: list[str] = []
    for inner in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(inner, ast.FunctionDef) and inner.name in ("__init__", "__call__"):
            inside += _head(lines, inner)
        elif isinstance(inner, (ast.AnnAssign, ast.Assign)) and not ast.unparse(inner).startswith("_"):
            inside += lines[inner.lineno - 1 : inner.end_lineno]
    head = _head(lines, node)
    return "\n".join([*head[:-1], head[-1] + ":" * bool(inside), *inside])


def _head(lines: list[str], node: Any) -> list[str]:
    """From the first decorator to before the colon."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    body = node.body[0].lineno - 1
    head = lines[first - 1 : body if lines[body - 1].endswith(":") else body + 1]
    return [*head[:-1], re.sub(r":( \.\.\.)?$", "", head[-1])]


def _fields_of(cls: type) -> Iterator[str]:
    """What the code says under each field."""
    texts = [(name, text_of(cls, name)) for name in inspect.get_annotations(cls)]
    if said := [f"- `{name}`: {_plain(text)}" for name, text in texts if text]:
        yield "\n".join(["**Fields:**\n", *said, ""])


def _readable(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: its sections as lists, its examples as code."""
    for part in inspect.cleandoc(docstring).split("\n\n"):
        label, _, rest = part.partition("\n")
        if part.startswith(">>>"):
            yield f"```pycon\n{part}\n```\n"
        elif label in ("Args:", "Raises:"):
            entries = re.split(r"\n(?=\S)", textwrap.dedent(rest))
            told = [re.sub(r"^([\w, ]+): ", _as_code, _plain(entry)) for entry in entries]
            yield "\n".join([f"**{label.replace('Args', 'Arguments')}**\n", *(f"- {entry}" for entry in told), ""])
        elif label == "Returns:":
            yield f"**Returns:** {_plain(rest)}\n"
        elif part:
            yield f"{part}\n"


def _as_code(names: re.Match[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[1].split(", ")) + ": "


PAGES = {"recipe": recipe, "commands": commands, "api": api}
"""The name of each page of docs/reference/, and what it says."""


def json_schema(cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of `cls` with the texts of its settings, for editors."""
    schema = cls.model_json_schema()
    classes = {inner.__name__: inner for inner in [cls, *_all_inside(cls)]}
    for name, described in {cls.__name__: schema, **schema["$defs"]}.items():
        if "description" in described:
            described["description"] = described["description"].partition("\n\n>>>")[0]
        for field, entry in described.get("properties", {}).items():
            if text := text_of(classes[name], field):
                entry["description"] = text
    return schema


def _all_inside(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in cls.model_fields.values():
        for inner in settings_in(field.annotation):
            yield inner
            yield from _all_inside(inner)
