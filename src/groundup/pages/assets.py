"""The style sheets and scripts of pages, and several modules as one script, for a page that fetches nothing."""

import re
from importlib import resources


def asset(name: str) -> str:
    """The text of a file of this package, such as `style.css`."""
    return (resources.files("groundup.pages") / "files" / name).read_text(encoding="utf-8")


def bundle(*names: str) -> str:
    """ES modules as one, in this order: each may import from those before it. Their names must not collide."""
    return "\n".join(re.sub(r'^import [^;]* from "\./[^"]+";$', "", asset(name), flags=re.MULTILINE) for name in names)
