"""What runs inside the sandbox: a candidate that answers calls by value, and tests that call it.

The source is sent in as text, so it needs nothing but Python; json and typing would take longer to import than all the
rest. A message is a line, its kind and a plain value. What is a subclass passes as the plain value that it holds, so no
object of a candidate reaches a test.
"""

from __future__ import annotations

import builtins
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

CONSTANTS = {"None": None, "True": True, "False": False}
SEQUENCES: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> str:
    """A plain value as words: its type, then itself or how many parts, and these.

    >>> encode([("a", 26), {None}])
    'list 2 tuple 2 str 61 int 0x1a set 1 None'

    Raises:
        TypeError: it is none.
    """
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"int {hex(value)}"  # a decimal has a limit of digits
    if isinstance(value, float):
        return f"float {float.hex(value)}"
    if isinstance(value, complex):
        return f"complex {float.hex(value.real)} {float.hex(value.imag)}"
    if isinstance(value, str):
        return f"str {str.encode(value, 'utf-8', 'surrogatepass').hex()}"
    if isinstance(value, bytes):
        return f"bytes {bytes.hex(value)}"
    if isinstance(value, dict):
        parts = [part for pair in dict.items(value) for part in pair]
        return " ".join([f"dict {len(parts) // 2}", *map(encode, parts)])
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):  # type: ignore[arg-type]
            parts = list(kind.__iter__(value))  # type: ignore[attr-defined]
            return " ".join([f"{name} {len(parts)}", *map(encode, parts)])
    raise TypeError(f"{type(value).__name__} is no plain value")


def decode(text: str) -> Any:
    """The value that `encode` was given. Raises any error for what `encode` does not write."""
    return _value(iter(text.split(" ")))


def _value(words: Iterator[str]) -> Any:
    name = next(words)
    if name in CONSTANTS:
        return CONSTANTS[name]
    word = next(words)
    if name in SEQUENCES:
        return SEQUENCES[name]([_value(words) for _ in range(int(word))])
    if name == "dict":
        return {_value(words): _value(words) for _ in range(int(word))}
    if name == "complex":
        return complex(float.fromhex(word), float.fromhex(next(words)))
    if name == "str":
        return bytes.fromhex(word).decode("utf-8", "surrogatepass")
    return {"int": lambda digits: int(digits, 16), "float": float.fromhex, "bytes": bytes.fromhex}[name](word)


def _speak() -> tuple[Callable[[str, Any], None], Callable[[], tuple[str, Any]]]:
    """(say, hear): messages through what standard output and input were; both lead nowhere from then on."""
    into, outof = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdin = os.fdopen(nowhere)

    def say(kind: str, value: Any) -> None:
        into.write(f"{kind} {encode(value)}\n".encode("ascii"))
        into.flush()

    def hear() -> tuple[str, Any]:
        kind, _, text = outof.readline().decode("ascii").rstrip("\n").partition(" ")
        return kind, decode(text)

    return say, hear


def _facts(error: BaseException) -> tuple[str, str, int | None]:
    """Its name, its words, its number."""
    number = getattr(error, "errno", None)
    return type(error).__name__, str(error)[:300], number if isinstance(number, int) else None


def answer_calls(program: str, name: str) -> None:
    """The candidate's side: run a program, then answer calls of the function that it defines."""
    say, hear = _speak()
    say("ready", None)
    module = sys.modules["candidate"] = type(sys)("candidate")
    failed = None
    try:
        exec(compile(program, "<candidate>", "exec"), module.__dict__)
        function = getattr(module, name)
    except BaseException as error:
        failed = _facts(error)  # which is the answer to every call
    while True:
        _, (arguments, named) = hear()
        try:
            if failed:
                say("raised", failed)
            else:
                say("value", function(*arguments, **named))
        except BaseException as error:
            say("raised", _facts(error))


def run_tests(prompt: str, solution: str, tests: str, name: str) -> None:
    """The tests' side: `check` of HumanEval, with what the prompt defines, of a stub that asks the candidate. Where it
    fails, the problem's own solution is checked too."""
    say, hear = _speak()
    raised: dict[BaseException, Any] = {}

    def candidate(*arguments: Any, **named: Any) -> Any:
        say("call", (arguments, named))
        kind, value = hear()
        if kind == "value":
            return value
        known = getattr(builtins, value[0], None)
        error = (known if isinstance(known, type) and issubclass(known, Exception) else Exception)(value[1])
        raised[error] = value
        raise error

    def check(function: Callable[..., Any] | None = None) -> None:
        space: dict[str, Any] = {"__name__": "tests"}
        exec(compile(prompt if function else prompt + solution, "<prompt>", "exec"), space)
        function = space[name] = function or space[name]
        exec(compile(tests, "<tests>", "exec"), space)
        space["check"](function)

    say("ready", None)
    try:
        check(candidate)
        say("passed", None)
    except BaseException as error:
        answer, facts = raised.get(error), _facts(error)
        try:
            check()
            say("raised" if answer else "failed", answer or facts)
        except BaseException as error:
            say("broken", _facts(error))
