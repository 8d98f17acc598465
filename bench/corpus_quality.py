"""Do the quality rules decide as datatrove's, and how much faster are they?

    python bench/corpus_quality.py PAGES.jsonl[.xz|.gz] … [--page-bytes 6000] [--limit 3000] [--rounds 3] [--show 5]

The documents (field `text`) are cleaned, and cut into pages after a line where they are longer. Each rule set of
groundup and of datatrove, with the same thresholds, sees the same pages in the same process, one after the other in
every round. Prints agreement, what drops the others, and the ratio of the times (least–most over the rounds). Needs
datatrove, spacy and nltk.
"""

import argparse
import gzip
import json
import lzma
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from groundup.corpus.clean import clean
from groundup.corpus.document import Document, Drop
from groundup.corpus.quality import RULES
from groundup.corpus.scan import words_of
from groundup.corpus.settings import C4, CorpusSettings, FineWeb, Gopher, GopherRepetition

ALIKE = {
    "gopher": Gopher(),
    "gopher-repetition": GopherRepetition(),
    "fineweb": FineWeb(copied=0.1),
    "c4": C4(sentences=5, line_words=3, ends=".?!\"'"),
}
OURS = {
    "gopher_short_doc": "gopher.words", "gopher_long_doc": "gopher.words",
    "gopher_below_avg_threshold": "gopher.word-length", "gopher_above_avg_threshold": "gopher.word-length",
    "gopher_too_many_hashes": "gopher.symbols", "gopher_too_many_ellipsis": "gopher.symbols",
    "gopher_too_many_bullets": "gopher.bullets", "gopher_too_many_end_ellipsis": "gopher.ellipses",
    "gopher_below_alpha_threshold": "gopher.letters", "gopher_enough_stop_words": "gopher.stop-words",
    "dup_para_frac": "gopher-repetition.paragraphs", "dup_para_char_frac": "gopher-repetition.in-paragraphs",
    "dup_line_frac": "gopher-repetition.lines", "dup_line_char_frac": "gopher-repetition.in-lines",
    **{f"top_{n}_gram": f"gopher-repetition.top-{n}" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"gopher-repetition.{n}-grams" for n in range(5, 11)},
    "line_punct_ratio": "fineweb.ended", "short_line_ratio": "fineweb.short",
    "char_dup_ratio": "fineweb.copied", "list_ratio": "fineweb.breaks",
    "too_few_sentences": "c4.sentences", "lorem_ipsum": "c4.lorem-ipsum", "curly_bracket": "c4.curly-bracket",
}  # fmt: skip
"""datatrove's name of a reason → ours."""


def peers() -> dict[str, Callable[[str], tuple[str, str]]]:
    """For each rule set: a text → the rule that drops it, or nothing, and the text that it leaves."""
    from datatrove.data import Document as Theirs
    from datatrove.pipeline import filters

    made = {
        "gopher": filters.GopherQualityFilter(),
        "gopher-repetition": filters.GopherRepetitionFilter(),
        "fineweb": filters.FineWebQualityFilter(char_duplicates_ratio=0.1),
        "c4": filters.C4QualityFilter(),
    }

    def decide(name: str, text: str) -> tuple[str, str]:
        document = Theirs(text=text, id="")
        verdict = made[name].filter(document)
        return ("", document.text) if verdict is True else (OURS.get(verdict[1], verdict[1]), "")

    return {name: lambda text, name=name: decide(name, text) for name in made}  # type: ignore[misc]


def ours(name: str) -> Callable[[str], tuple[str, str]]:
    see = RULES[type(ALIKE[name])]

    def decide(text: str) -> tuple[str, str]:
        words_of.cache_clear()  # each rule set pays for its own
        looked = see(Document(text, ""), ALIKE[name])
        return (looked.rule, "") if isinstance(looked, Drop) else ("", looked.text)

    return decide


def pages(path: Path, size: int) -> Iterator[str]:
    """Cleaned documents, cut after a line end."""
    with {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        for line in file:
            text, at = clean(json.loads(line)["text"], CorpusSettings(sources=("x",))), 0
            while at < len(text):
                end = text.rfind("\n", at + size // 2, at + size) if at + size < len(text) else len(text)
                end = end if end > at else at + size
                if page := text[at:end].strip():
                    yield page
                at = end


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    for name, default in (("page-bytes", 6000), ("limit", 3000), ("rounds", 3), ("show", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    for path in args.files:
        texts = list(pages(path, args.page_bytes))
        texts = texts[:: max(1, len(texts) // args.limit)]
        size = sum(len(text.encode()) for text in texts)
        print(f"\n{path.name}: {len(texts):,} pages, {size / len(texts):,.0f} bytes each")
        for name, theirs in peers().items():
            times: list[tuple[float, float]] = []
            for decide in (ours(name), theirs):
                decide(texts[0])  # compiles, and loads
            for _ in range(args.rounds):
                decisions, clocks = [], [time.perf_counter()]
                for decide in (ours(name), theirs):
                    decisions.append([decide(text) for text in texts])
                    clocks.append(time.perf_counter())
                times.append((clocks[1] - clocks[0], clocks[2] - clocks[1]))
            report(name, texts, decisions, times, args.show)


def report(name: str, texts: list[str], decisions: list[list[tuple[str, str]]], times: list, show: int) -> None:
    ratios = sorted(theirs / own for own, theirs in times)
    own, theirs = (len(texts) / min(each) for each in zip(*times, strict=True))
    same = sum(bool(a[0]) == bool(b[0]) for a, b in zip(*decisions, strict=True))
    rules = sum(a[0] == b[0] for a, b in zip(*decisions, strict=True))
    dropped = sum(bool(a[0]) for a in decisions[0])
    as_left = sum(a[1].split() == b[1].split() for a, b in zip(*decisions, strict=True) if not a[0] and not b[0])
    print(
        f"{name:18} {same}/{len(texts)} decided alike, {rules} by the same rule, {as_left} left the same words; "
        f"{dropped} dropped; {own:,.0f} and {theirs:,.0f} pages/s, {ratios[0]:.0f}–{ratios[-1]:.0f} times as fast"
    )
    pairs = Counter((a[0] or "kept", b[0] or "kept") for a, b in zip(*decisions, strict=True) if a[0] != b[0])
    for (mine, other), number in pairs.most_common():
        print(f"    {number} × {mine}, datatrove: {other}")
    different = [i for i, (a, b) in enumerate(zip(*decisions, strict=True)) if bool(a[0]) != bool(b[0])]
    for number in different[:show]:
        print("   ", decisions[0][number][0], decisions[1][number][0], repr(texts[number][:300]))


if __name__ == "__main__":
    main()
