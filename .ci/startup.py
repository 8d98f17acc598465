"""Find what depends on how Python is started.  python .ci/startup.py FOLDER …

Work inside an `assert`, which `python -O` leaves out; text files opened in the locale's encoding.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

LOOKING = {"all", "any", "callable", "hasattr", "isinstance", "issubclass", "len", "max", "min", "set", "sorted", "sum"}
"""What may be called in an assert: it does nothing but look."""
ENCODING_PLACE = {"read_text": 0, "write_text": 1}
"""Where the encoding stands among the arguments of pathlib's methods."""


def hazards(file: Path) -> Iterator[str]:
    """`file:line: what stands there, and why it should not`."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Assert):
            for call in ast.walk(node):
                if isinstance(call, ast.Call | ast.NamedExpr) and _name(call) not in LOOKING:
                    yield f"{file}:{call.lineno}: {ast.unparse(call)} in an assert, which python -O leaves out"
        elif isinstance(node, ast.Call) and _opens_text(node):
            yield f"{file}:{node.lineno}: {ast.unparse(node)} without an encoding, which is then the locale's"


def _name(call: ast.expr) -> str:
    return call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""


def _opens_text(call: ast.Call) -> bool:
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if _name(call) == "open":
        mode = call.args[1] if len(call.args) > 1 else None
        return "b" not in (ast.unparse(mode) if mode else "r")
    place = ENCODING_PLACE.get(call.func.attr) if isinstance(call.func, ast.Attribute) else None
    return place is not None and len(call.args) <= place


if __name__ == "__main__":
    files = [file for folder in sys.argv[1:] for file in sorted(Path(folder).rglob("*.py"))]
    found = [hazard for file in files for hazard in hazards(file)]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(1 if found else 0)
