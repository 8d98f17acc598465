"""Helpers of `groundup tokens`: the tokenizer that a path stands for, and the table of an extension."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.errors import DataError, SettingsError
from groundup.files import require_path
from groundup.settings import toml_value
from groundup.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:  # it imports torch
    from groundup.weights.extend import Extended


def load_tokenizer(path: Path, split: str | None = None, special: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer that a path stands for; for a run its own.

    Args:
        split: the pattern of ranks whose name is not known here, and
        special: their special tokens.
    """
    if path.suffix == ".toml" and path.is_file():
        raise SettingsError(
            f"{path} is a recipe; name what `groundup tokenizer {path}` makes, such as runs/{path.stem}"
        )
    require_path(path, "tokenizer")
    if not (path / "recipe.toml").is_file() or (path / "tokenizer.json").is_file():
        return Tokenizer.load(path, pattern=split, special=special)
    if not (path / "tokenizer").is_dir():
        raise DataError(f"the run {path} has no tokenizer yet: go on with the command that began it")
    return Tokenizer.load(path / "tokenizer")


def extension_table(done: "Extended") -> dict[str, Any]:
    """The tokens that were added to a model, and the rows of its vocabulary before and after."""
    tokens = {text: {"id": i, "before": done.pieces[text]} for text, i in done.ids.items()}
    return {"tokens": tokens, "rows": done.rows}


def extension_rows(done: "Extended") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("token", "id", "begins as the mean of")]
    for text, pieces in done.pieces.items():
        rows.append((toml_value(text), f"{done.ids[text]:,}", " ".join(map(toml_value, pieces))))
    return rows
