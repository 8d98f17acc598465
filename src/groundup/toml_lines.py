"""On which line of a TOML file each key stands: tomllib, which reads the values, does not tell."""

import functools
import re
import tomllib
from collections import Counter
from contextlib import suppress
from typing import NamedTuple

Path = tuple[str | int, ...]
"""Names from the root down; a number is a place in an array."""

BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'", re.DOTALL
)  # up to two of the quotes that close a long string belong to it
OTHER_VALUE = re.compile(r"[^,\]}\n#]+")


class Mark(NamedTuple):
    """A key, a table's header or an element of an array, where it begins."""

    path: Path
    line: int
    what: str
    """`table`, `key`, or `inside` the value of a key."""


def line_of(text: str, path: Path) -> int | None:
    """The line where `path` stands, or the first key inside it; of a key that is not there, the line of its table.

    >>> line_of("a = 1\\n[b]\\nc.d = [\\n  {e = 2},\\n]", ("b", "c", "d", 0, "e"))
    4
    """
    marks = scan(text)
    while path:
        inside = [mark for mark in marks if mark.path[: len(path)] == path]
        if inside:
            return next((mark.line for mark in inside if mark.path == path), inside[0].line)
        path = path[:-1]
    return None


def given_twice(text: str) -> tuple[Mark, Mark] | None:
    """The first key that stands where there is a value already, after the one that gave that value."""
    before: dict[Path, Mark] = {}
    for mark in scan(text):
        if mark.path in before:
            return before[mark.path], mark
        for length in range(1, len(mark.path) if mark.what != "inside" else 0):
            outer = before.get(mark.path[:length])
            if outer and outer.what != "table":
                return outer, mark
        before[mark.path] = mark
    return None


@functools.lru_cache(maxsize=1)  # asked for once a mistake
def scan(text: str) -> list[Mark]:
    """Every key, table and array element in the order they stand, as far as this is TOML."""
    scanner = _Scanner(text)
    with suppress(ValueError, RecursionError):
        scanner.document()
    return scanner.marks


class _Scanner:
    """Walks over TOML and notes where each key begins; raises ValueError where it is none."""

    def __init__(self, text: str) -> None:
        self.marks: list[Mark] = []
        self._text, self._place = text, 0
        self._counted, self._line = 0, 1
        self._arrays: Counter[Path] = Counter()
        """Arrays of tables → tables so far."""

    def _mark(self, path: Path, place: int, what: str) -> None:
        self._line += self._text.count("\n", self._counted, place)
        self._counted = place
        self.marks.append(Mark(path, self._line, what))

    def document(self) -> None:
        table: Path = ()
        while not self._at_end():
            began = self._place
            if self._takes("[["):
                array = self._within_arrays(self._key())
                self._must_take("]]")
                table = (*array, self._arrays[array])
                self._arrays[array] += 1
                self._mark(table, began, "table")
            elif self._takes("["):
                table = self._within_arrays(self._key())
                self._must_take("]")
                self._mark(table, began, "table")
            else:
                self._pair(table, "key")

    def _at_end(self) -> bool:
        self._skip()
        return self._place == len(self._text)

    def _within_arrays(self, names: Path) -> Path:
        """A header under an array of tables means its last table."""
        path: Path = ()
        for name in names[:-1]:
            path = (*path, name)
            if path in self._arrays:
                path = (*path, self._arrays[path] - 1)
        return (*path, names[-1])

    def _pair(self, table: Path, what: str) -> None:
        self._skip()
        began = self._place
        path = table + self._key()
        self._mark(path, began, what)
        self._must_take("=")
        self._value(path)

    def _key(self) -> Path:
        names: list[str] = []
        while not names or self._takes("."):
            self._skip()
            if bare := BARE_KEY.match(self._text, self._place):
                names.append(bare[0])
                self._place = bare.end()
            else:
                names.append(str(tomllib.loads(f"name = {self._match(STRING)}")["name"]))
        return tuple(names)

    def _value(self, path: Path) -> None:
        if self._takes("["):
            number = 0
            while not self._takes("]"):
                self._skip()
                self._mark((*path, number), self._place, "inside")
                self._value((*path, number))
                number += 1
                self._takes(",")
        elif self._takes("{"):
            while not self._takes("}"):
                self._pair(path, "inside")
                self._takes(",")
        elif self._text[self._place : self._place + 1] in ('"', "'"):
            self._match(STRING)
        else:
            self._match(OTHER_VALUE)

    def _skip(self) -> None:
        blank = BLANK.match(self._text, self._place)
        assert blank is not None, "it matches nothing, too"
        self._place = blank.end()

    def _takes(self, mark: str) -> bool:
        self._skip()
        there = self._text.startswith(mark, self._place)
        self._place += len(mark) if there else 0
        return there

    def _must_take(self, mark: str) -> None:
        if not self._takes(mark):
            raise ValueError(f"no {mark} here")

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._place)
        if not found:
            raise ValueError("not TOML")
        self._place = found.end()
        return found[0]
