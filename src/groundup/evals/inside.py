"""What runs inside the sandbox, and nowhere else: a candidate that answers calls by value, and tests that call it.

Its source is sent in as text, so it needs nothing but the standard library. A line of JSON is a message. Only plain
values pass, each with its type; what is a subclass passes as the plain value that it holds, so no object of a candidate
reaches a test.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SEQUENCES: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> Any:
    """A plain value as one of JSON: itself, or [type, parts].

    >>> encode([("a", 26), {None}])
    ['list', [['tuple', ['a', ['int', '0x1a']]], ['set', [None]]]]

    Raises:
        TypeError: it is none.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return ["int", hex(value)]  # a decimal has a limit of digits
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", [encode(value.real), encode(value.imag)]]
    if isinstance(value, bytes):
        return ["bytes", bytes.hex(value)]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(each)] for key, each in dict.items(value)]]
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):  # type: ignore[arg-type]
            return [name, [encode(each) for each in kind.__iter__(value)]]  # type: ignore[attr-defined]
    raise TypeError(f"{type(value).__name__} is no plain value")


def decode(coded: Any) -> Any:
    """The value that `encode` was given. Raises any error for what `encode` does not write."""
    if not isinstance(coded, list):
        return coded
    name, parts = coded
    if name in SEQUENCES:
        return SEQUENCES[name](map(decode, parts))
    if name == "dict":
        return {decode(key): decode(each) for key, each in parts}
    if name == "complex":
        return complex(*map(decode, parts))
    return {"int": lambda digits: int(digits, 16), "float": float.fromhex, "bytes": bytes.fromhex}[name](parts)


def _speak() -> tuple[Callable[[Any], None], Callable[[], Any]]:
    """(say, hear): messages through what standard output and input were; both lead nowhere from then on."""
    into, outof = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdin = os.fdopen(nowhere)

    def say(message: Any) -> None:
        into.write(json.dumps(message).encode() + b"\n")
        into.flush()

    return say, lambda: json.loads(outof.readline())


def _words(error: BaseException) -> dict[str, Any]:
    return {"raised": type(error).__name__, "words": str(error)[:300], "errno": getattr(error, "errno", None)}


def answer_calls(program: str, name: str) -> None:
    """The candidate's side: run a program, then answer calls of the function that it defines."""
    say, hear = _speak()
    say("ready")
    module = sys.modules["candidate"] = types.ModuleType("candidate")
    failed = None
    try:
        exec(compile(program, "<candidate>", "exec"), module.__dict__)
        function = getattr(module, name)
    except BaseException as error:
        failed = _words(error)  # which is the answer to every call
    while True:
        arguments, named = map(decode, hear()["call"])
        try:
            answer = failed or {"value": encode(function(*arguments, **named))}
        except BaseException as error:
            answer = _words(error)
        say(answer)


def run_tests(prompt: str, solution: str, tests: str, name: str) -> None:
    """The tests' side: `check` of HumanEval, with what the prompt defines, of a stub that asks the candidate. Where it
    fails, the problem's own solution is checked too."""
    say, hear = _speak()
    answers: dict[BaseException, Any] = {}

    def candidate(*arguments: Any, **named: Any) -> Any:
        say({"call": [encode(arguments), encode(named)]})
        answer = hear()
        if "raised" not in answer:
            return decode(answer["value"])
        kind = getattr(builtins, answer["raised"], None)
        error = (kind if isinstance(kind, type) and issubclass(kind, Exception) else Exception)(answer["words"])
        answers[error] = answer
        raise error

    def check(function: Callable[..., Any] | None = None) -> None:
        space: dict[str, Any] = {"__name__": "tests"}
        exec(compile(prompt if function else prompt + solution, "<prompt>", "exec"), space)
        function = space[name] = function or space[name]
        exec(compile(tests, "<tests>", "exec"), space)
        space["check"](function)

    say("ready")
    try:
        check(candidate)
        say({"verdict": "passed"})
    except BaseException as error:
        failed = {"by_candidate": answers.get(error), **_words(error)}
        try:
            check()
            say({"verdict": "failed", **failed})
        except BaseException as error:
            say({"verdict": "broken", **_words(error)})
