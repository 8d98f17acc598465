"""The data card of a corpus, `card.md`: where its documents come from, what was dropped and changed, with examples."""

from collections.abc import Iterable, Mapping
from typing import Any

from groundup.corpus.document import SPLITS
from groundup.corpus.settings import CorpusSettings

INTRODUCTION = """# Data card

Made by groundup of the sources below. `dropped/documents.parquet` has every document that was dropped, with the rule,
what the rule found and its threshold; `dropped/edits.parquet` has every change of a document."""


def write_card(statistics: Mapping[str, Any], settings: CorpusSettings) -> str:
    """The card of a corpus with these statistics, in Markdown."""
    read, (rules, edits) = statistics["read"], (statistics[name] for name in ("rules", "edits"))
    by_bytes = ("documents", "bytes")
    sections = [
        INTRODUCTION,
        f"{read['documents']:,} documents of {read['bytes']:,} bytes were read from {read['files']:,} files.",
        _table("Splits", ("documents", "bytes", "words"), {split: statistics[split] for split in SPLITS}),
        _table("Sources", ("read", *by_bytes), statistics["sources"]),
        _table("Licences", ("documents",), statistics["licences"]),
        _table("Languages", by_bytes, statistics["languages"]),
        _table("Mixture", ("language", "bytes", "epochs"), {each["source"]: each for each in statistics["mixture"]}),
        _table("Dropped", ("documents", "reason", "example"), rules),
        _table("Changed", ("times", "example"), edits),
        f"## Settings\n\n```toml\n{settings.to_toml().strip()}\n```",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _table(title: str, columns: Iterable[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A section; none, where there are no rows."""
    if not rows:
        return ""
    head = ["", *columns]
    body = [[name or "none named", *(_cell(row[column]) for column in columns)] for name, row in rows.items()]
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *body)]
    return f"## {title}\n\n" + "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return " ".join(value.split()).replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
