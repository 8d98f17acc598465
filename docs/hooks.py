"""What the site adds to the pages: beside the words, the code they speak of, cut from `src/` as the site is built.

A page says `<!-- code: train/fit.py fit accumulate -->`, which a code host does not show. A method is `Class.method`.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

SOURCE = Path(__file__).parents[1] / "src" / "groundup"
MARK = re.compile(r"^<!-- code: (?P<file>\S+)(?P<names>( \S+)+) -->$", re.M)
LINES_SHOWN_OPEN = 24


def on_page_markdown(markdown: str, **_: Any) -> str:
    return expand(markdown)


def expand(markdown: str) -> str:
    """The page with each mark replaced by the named code, folded away where it is long.

    Raises:
        PluginError: naming the file and the name that is not there.
    """
    return MARK.sub(lambda mark: "\n".join(_shown(mark["file"], name) for name in mark["names"].split()), markdown)


def lines_of_files_shown(markdown: str) -> int:
    """Lines of all files from which a page shows code."""
    files = {mark["file"] for mark in MARK.finditer(markdown)}
    return sum(len((SOURCE / file).read_text("utf-8").splitlines()) for file in files)


def _shown(file: str, name: str) -> str:
    first, lines = code_of(file, name)
    fence = [f'```python linenums="{first}"', *lines, "```"]
    folded = "???" if len(lines) > LINES_SHOWN_OPEN else "???+"
    title = f"`{name}` in `{file}`, {len(lines)} lines" if len(lines) > 1 else f"`{name}` in `{file}`"
    return "\n".join([f'{folded} code "{title}"', "", *(f"    {line}".rstrip() for line in fence), ""])


def code_of(file: str, name: str) -> tuple[int, list[str]]:
    """The number of the first line of a function, class, method or constant, decorators included, and its lines."""
    path = SOURCE / file
    if not path.is_file():
        raise PluginError(f"a page shows code of {file}, which is not in src/groundup")
    text = path.read_text("utf-8")
    body: list[ast.stmt] = ast.parse(text).body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            raise PluginError(f"a page shows {name} of {file}, which has no such name; correct the mark in the page")
        body = getattr(found, "body", [])
    assert found is not None
    first = min([found.lineno, *(decorator.lineno for decorator in getattr(found, "decorator_list", []))])
    return first, text.splitlines()[first - 1 : found.end_lineno]


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case _:
            return []
