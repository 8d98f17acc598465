"""The line of a key, against what tomllib reads."""

import itertools
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from groundup.toml_lines import Path, given_twice, line_of

KEYS = st.one_of(st.sampled_from(["a", "b", "a.b", "x y", "", '"', "#", "[", "=", "\n", "ü"]), st.text(max_size=4))
TREES = st.recursive(
    st.none(),
    lambda inner: st.one_of(st.dictionaries(KEYS, inner, max_size=4), st.lists(inner, max_size=4)),
    max_leaves=20,
)


def numbered(tree: Any, count: Iterator[int]) -> Any:
    """Every leaf another number, so that each can be told by its digits."""
    if isinstance(tree, dict):
        return {name: numbered(value, count) for name, value in tree.items()}
    return [numbered(value, count) for value in tree] if isinstance(tree, list) else next(count)


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    if isinstance(tree, int):
        yield path, tree
        return
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from leaves(value, (*path, name))


@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_every_value_is_found_on_the_line_that_holds_it(tree: dict[str, Any]) -> None:
    text = tomli_w.dumps(numbered(tree, itertools.count(10**9)))
    lines = text.split("\n")
    for path, number in leaves(tomllib.loads(text)):
        line = line_of(text, path)
        assert line is not None
        assert str(number) in lines[line - 1], path


WRITTEN = """
top = 1 # a comment with = and [
"quoted.key" = 'x = 1'
[a."b c".d]
'lit' = \"\"\"
e = 1
[no]
\"\"\"
dotted . inside = { x = 1, y.z = [ { w = 2 }, 3 ] }
list = [
  # one = 1
  { one = "]" },

  { two = 2 },
]
when = 1979-05-27 07:32:00
[[many]]
n = 1
[many.sub]
m = 1
[[many]]
n = 2
[[many.sub2]]
k = 1
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("quoted.key",), 3),
        (("a", "b c", "d", "lit"), 5),
        (("a", "b c", "d", "dotted", "inside", "y", "z", 0, "w"), 9),
        (("a", "b c", "d", "list", 1, "two"), 14),
        (("a", "b c", "d", "when"), 16),
        (("many", 0, "sub", "m"), 20),
        (("many", 1, "n"), 22),
        (("many", 1, "sub2", 0, "k"), 24),
        (("a",), 4),  # never written alone: where something inside it is
        (("many", 1, "missing"), 21),  # not there: its table
        (("nowhere",), None),
    ],
)
def test_every_way_to_write_a_key_is_found(path: Path, line: int | None) -> None:
    assert tomllib.loads(WRITTEN)
    assert line_of(WRITTEN, path) == line
    assert line_of(WRITTEN.replace("\n", "\r\n"), path) == line


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a = 1\nb = 2\na = 3", (1, 3)),
        ("a = 1\n[a]\nb = 2", (1, 2)),
        ("[a]\nb = 1\n[a]\nc = 2", (1, 3)),
        ("a.b = 1\n[a.b]\nc = 1", (1, 2)),
        ("a = 1\na.b = 2", (1, 2)),
        ("x = {a = 1, a = 2}", (1, 1)),
    ],
)
def test_a_key_given_twice_is_found_with_the_first(text: str, lines: tuple[int, int]) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(text)
    twice = given_twice(text)
    assert twice is not None
    assert (twice[0].line, twice[1].line) == lines


@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_what_tomllib_reads_gives_nothing_twice(tree: dict[str, Any]) -> None:
    assert given_twice(tomli_w.dumps(numbered(tree, itertools.count()))) is None
    assert given_twice(WRITTEN) is None


@given(st.text(alphabet="ab.= \n[]{},\"'#1", max_size=60))
def test_what_is_no_toml_is_scanned_without_harm(text: str) -> None:
    line_of(text, ("a", "b"))
    given_twice(text)
