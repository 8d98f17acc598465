"""The page of tokenizers side by side: verdicts, bars, and every number by file and script."""

from pathlib import Path

from groundup.evals.tokenizers import Found, fact_rows, group_rows, verdicts
from groundup.report.charts import Bar, bars
from groundup.report.page import contents, figure, section, sentence, table, text, write
from groundup.words import plural

MOST_FIGURES = 24
"""Groups that get bars; the tables have all."""


def write_page(found: Found, target: Path) -> None:
    """Write the comparison as one HTML file.

    Raises:
        SettingsError: when `target` is a folder.
    """
    title = " and ".join(tokenizer["name"] for tokenizer in found["tokenizers"])
    head, *rows = group_rows(found)
    sections = {
        "Which is shorter?": [*map(sentence, verdicts(found)), table(head, rows)],
        "Bytes a token": _bars(found),
        "Everything that was counted": _tables(found),
        "What the numbers are": [sentence(words) for words in EXPLAINED],
    }
    top = f"<header><h1>{text(title)}</h1>{sentence('Tokenizers, side by side on the same texts.')}</header>"
    body = [top, contents(sections), *(section(name, *parts) for name, parts in sections.items())]
    write(target, f"{title} compared", "\n".join(body))


def _bars(found: Found) -> list[str]:
    names = [tokenizer["name"] for tokenizer in found["tokenizers"]]
    drawn = []
    for group in found["groups"][:MOST_FIGURES]:
        values = [fact["bytes_per_token"] for fact in group["by"]]
        rows = [
            Bar(name, value, f"{value:.2f}", own=value == max(values))
            for name, value in zip(names, values, strict=True)
        ]
        caption = f"{group['name']}: {plural(group['documents'], 'document')}, {group['bytes'] / 1e6:,.2f} MB"
        drawn.append(figure(bars(rows), caption))
    return [
        sentence("More is better: the same text is fewer tokens, and the model reads more of it in the same time."),
        f'<div class="side">{"".join(drawn)}</div>',
    ]


def _tables(found: Found) -> list[str]:
    parts = []
    for number, group in enumerate(found["groups"]):
        head, *rows = fact_rows(found, number)
        parts.append(f"<h3>{text(group['name'])}</h3>{table(head, rows)}")
    return parts


EXPLAINED = (
    "**The interval** is where 95 of 100 ratios lie if as many documents are drawn again from these: it tells what the "
    "choice of documents may do, not what other kinds of text would.",
    "**Words** stand between blanks; where a script has no blanks between words, nothing is said of them. A word that "
    "is one token is a run of letters with a blank before it, counted as often as it occurs.",
    "**Parts of characters** are tokens that are not UTF-8 by themselves. Where they are many, the vocabulary does not "
    "know the script, and spells it in bytes.",
    "**Bits by frequency alone** are what the tokens of these texts would need, each coded by how often it occurs "
    "there: what a model must beat. Fewer, longer tokens need fewer bits, as each holds more of a word.",
    "**Speed** was measured once, on the machine that wrote this page, the tokenizers taking turns.",
)
