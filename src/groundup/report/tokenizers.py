"""Tokenizers side by side: what the comparison comes to, and its page, with every number by file and script."""

from pathlib import Path

from groundup.evals import tokenizers
from groundup.evals.tokenizers import Comparison, Group
from groundup.pages.charts import Bar
from groundup.pages.render import sentences
from groundup.pages.render import write_page as write_template

MOST_FIGURES = 24
"""Groups that get bars; the tables have all."""


def verdicts(comparison: Comparison) -> list[str]:
    """The result of the comparison, in sentences."""
    limits = {"least_strange": tokenizers.STRANGE, "most_bytes": tokenizers.MOST_BYTES}
    return sentences("tokenizers.txt", comparison=comparison, **limits)


def write_page(comparison: Comparison, target: Path) -> None:
    """Write the comparison as one HTML file.

    Raises:
        SettingsError: when `target` is a folder.
    """
    write_template(
        target,
        "tokenizers.html",
        comparison=comparison,
        verdicts=verdicts(comparison),
        figures=[(group, _bars(comparison, group)) for group in comparison.groups[:MOST_FIGURES]],
    )


def _bars(comparison: Comparison, group: Group) -> list[Bar]:
    values = [counted.bytes_per_token for counted in group.by]
    return [
        Bar(name, value, f"{value:.2f}", main=value == max(values))
        for name, value in zip(comparison.names, values, strict=True)
    ]
