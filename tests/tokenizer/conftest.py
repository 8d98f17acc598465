"""Real text in the world's scripts."""

import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def universal(shared: Path) -> list[str]:
    """The Universal Declaration of Human Rights, 388 times: of each the beginning, the end, and every line between
    with a character that was in none before. A twelfth of the whole, with all of its 3,661 characters."""
    with zipfile.ZipFile(shared / "data" / "messy" / "multilingual" / "udhr2.zip") as archive:
        whole = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".txt")]
    assert len(whole) == 388
    texts, seen = [], set("")
    for text in whole:
        parts = [text[:600]]
        for line in text[600:].splitlines(keepends=True):
            seen |= set(parts[-1])
            if not seen.issuperset(line):
                parts.append(line)
        seen |= set(parts[-1])
        texts.append("".join(parts) + text[-200:])
    assert set("".join(texts)) == set("".join(whole))
    return texts
