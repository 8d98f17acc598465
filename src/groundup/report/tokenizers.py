"""The page of tokenizers side by side: verdicts, bars, and every number by file and script."""

from pathlib import Path

from groundup.evals.tokenizers import Comparison, fact_rows, group_rows, verdicts
from groundup.pages.charts import Bar
from groundup.pages.render import write_page as write_template
from groundup.words import plural

MOST_FIGURES = 24
"""Groups that get bars; the tables have all."""


def write_page(comparison: Comparison, target: Path) -> None:
    """Write the comparison as one HTML file.

    Raises:
        SettingsError: when `target` is a folder.
    """
    names = [tokenizer["name"] for tokenizer in comparison["tokenizers"]]
    figures = []
    for group in comparison["groups"][:MOST_FIGURES]:
        values = [fact["bytes_per_token"] for fact in group["by"]]
        bars = [
            Bar(name, value, f"{value:.2f}", main=value == max(values))
            for name, value in zip(names, values, strict=True)
        ]
        figures.append(
            (bars, f"{group['name']}: {plural(group['documents'], 'document')}, {group['bytes'] / 1e6:,.2f} MB")
        )
    write_template(
        target,
        "tokenizers.html",
        title=" and ".join(names),
        verdicts=verdicts(comparison),
        group_rows=group_rows(comparison),
        figures=figures,
        tables=[(group["name"], fact_rows(comparison, number)) for number, group in enumerate(comparison["groups"])],
    )
