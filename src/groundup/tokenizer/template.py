"""Chat templates of others, run as programs of others are: in jinja2's immutable sandbox, with bounded loops.

What they write is what Hugging Face's library (`chat_template_utils.py` of transformers 5) writes with them.
"""

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from groundup.errors import DataError, GroundupError, SettingsError

MOST_ROUNDS = 200_000
"""Of all loops and calls of a template together, for one conversation."""
MOST_CHARACTERS = 10_000_000
"""Of a conversation, and of any text that its template makes on the way."""
ROUNDS = "rounds of loops"
"""The name, which no template can spell, of what counts them."""


class _Refused(jinja2.TemplateError):
    """A template refuses the messages, in its author's words."""


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's part in some templates, and writes what it holds."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounding(NodeTransformer):
    """Puts a call into each loop, and around each `~`, where the sandbox counts and measures."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja2's name for it)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call([])))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call([node])


def _call(arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute("first"), arguments, [], None, None)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Runs templates as Hugging Face's library does (`chat_template_utils.py` of transformers 5), within bounds."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters["tojson"] = _to_json
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}

    def _parse(self, *arguments: Any) -> nodes.Template:
        tree: nodes.Template = _Bounding().visit(super()._parse(*arguments))
        return tree.set_environment(self)  # type: ignore[return-value]

    @staticmethod
    def first(value: Any = "") -> Any:
        return value

    def call(__self, __context: Any, __function: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805 (as there)
        if next(__context.parent[ROUNDS]) > MOST_ROUNDS:
            raise jinja2.TemplateRuntimeError(f"it goes round more than {MOST_ROUNDS:,} times")
        _refuse_large(getattr(__function, "__self__", None), *arguments, *named.values())
        value = super().call(__context, __function, *arguments, **named)
        _refuse_large(value)
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(each) if isinstance(each, str | list | tuple) else each for each in (left, right)]
        _refuse_large(*sizes)
        if operator == "%" and isinstance(left, str):
            _refuse_wide(left, *(right if isinstance(right, tuple) else ()))
        if operator == "*" and sizes != [left, right]:
            _refuse_large(sizes[0] * sizes[1])
        value = super().call_binop(context, operator, left, right)
        _refuse_large(value)
        return value

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if isinstance(getattr(value, "__self__", None), str):
            _refuse_wide(value.__self__)
        return super().wrap_str_format(value)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses what would make it write too much."""

    @functools.wraps(function)  # which keeps what jinja2 wrote on it
    def call(*arguments: Any, **named: Any) -> Any:
        _refuse_large(*arguments, *named.values())
        if function.__name__ == "do_format":
            _refuse_wide(*arguments, *named.values())
        return function(*arguments, **named)

    return call


def _refuse_large(*values: Any) -> None:
    """Refuse what is too large, or could put texts into each other that are too large together."""
    sizes = [abs(value) if isinstance(value, int) else len(value) if isinstance(value, str) else 0 for value in values]
    longest = [max(1, len(value)) for value in values if isinstance(value, str)]
    if max(sizes, default=0) > MOST_CHARACTERS or math.prod(longest) > 100 * MOST_CHARACTERS:
        raise jinja2.TemplateRuntimeError(f"it makes texts of more than {MOST_CHARACTERS:,} characters")


def _refuse_wide(*values: Any) -> None:
    """Refuse a pattern that pads numbers to more than a text can have."""
    _refuse_large(*(int(size) for value in values if isinstance(value, str) for size in re.findall(r"\d+", value)))
    _refuse_large(*values)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


@functools.lru_cache(maxsize=16)
def compiled(template: str) -> jinja2.Template:
    """
    Raises:
        DataError: what is no template.
    """
    try:
        return _Sandbox().from_string(template)
    except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError, ValueError) as error:
        raise DataError(f"the chat template is damaged: {error}") from None


def write(template: str, variables: Mapping[str, Any]) -> str:
    """
    Raises:
        SettingsError: messages that the template refuses.
        DataError: a template that fails, or does not end.
    """
    parts, size = [], 0
    try:
        for part in compiled(template).generate({**variables, ROUNDS: itertools.count()}):
            parts.append(part)
            size += len(part)
            _refuse_large(size)
    except _Refused as error:
        raise SettingsError(f"the chat template refuses this conversation: {error}") from None
    except GroundupError:
        raise
    except Exception as error:  # a template is a program of another's, and may fail in any way
        raise DataError(f"the chat template cannot write this conversation: {error or type(error).__name__}") from None
    return "".join(parts)
