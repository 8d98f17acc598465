"""How well is the text of a page found? F1 on real news pages with gold text, by the benchmark's own measure.

    python bench/corpus_html.py ../shared/data/messy/html

The pages are those of scrapinghub's article-extraction-benchmark; the measure is that of its `evaluate.py`: of each
page, the 4-grams of words that were found, invented and missed, as shares of all of them; precision is the mean over
pages of found by found and invented, recall that of found by found and missed; F1 is their harmonic mean. Intervals
are over 1,000 resamples of the pages.
"""

import argparse
import gzip
import json
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import trafilatura

from groundup.corpus.filters import judge
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import read

WORD = re.compile(r"\w+")


def shingles(text: str) -> Counter[tuple[str, ...]]:
    words = WORD.findall(text)
    return Counter(filter(None, (tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3)))))


def shares(gold: str, found: str) -> tuple[float, float, float]:
    """Shingles found, invented, missed, as shares of all of them.

    >>> shares("a b c d e", "a b c d x")
    (0.3333333333333333, 0.3333333333333333, 0.3333333333333333)
    """
    wanted, got = shingles(gold), shingles(found)
    counts = ((wanted & got).total(), (got - wanted).total(), (wanted - got).total())
    whole = sum(counts)
    return tuple(count / whole for count in counts) if whole else (0.0, 0.0, 0.0)


def scores(pages: Iterable[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Precision, recall, F1."""
    pages = list(pages)
    precision = statistics.mean(_part(found, invented, missed) for found, invented, missed in pages if found + invented)
    recall = statistics.mean(_part(found, missed, invented) for found, invented, missed in pages if found + missed)
    return precision, recall, 2 * precision * recall / (precision + recall)


def _part(found: float, wrong: float, other: float) -> float:
    return 1.0 if not wrong and not other else found / (found + wrong)


def measure(extract: Callable[[bytes], str], pages: dict[str, bytes], gold: dict[str, str]) -> str:
    start = time.perf_counter()
    texts = {name: extract(page) for name, page in pages.items()}
    seconds = time.perf_counter() - start
    each = [shares(gold[name], texts[name]) for name in pages]
    chance = random.Random(0)
    f1 = [scores(chance.choices(each, k=len(each)))[2] for _ in range(1000)]
    precision, recall, middle = scores(each)
    size = sum(map(len, pages.values())) / 1e6
    return (
        f"precision {precision:.4f}  recall {recall:.4f}  F1 {middle:.4f} ± {1.96 * statistics.stdev(f1):.4f}  "
        f"{len(pages) / seconds:6.1f} pages/s  {size / seconds:5.1f} MB/s"
    )


def ours(page: bytes, mode: str, folder: Path) -> str:
    """All texts of a page, read from a file and cleaned as the corpus stage does."""
    file = folder / "page.html"
    file.write_bytes(page)
    settings = CorpusSettings.from_table({"sources": [str(file)], "html": mode, "encoding": "detect"})
    return "\n".join(judge(each, settings, ())[0].text for each in read(str(file), file, settings))


def theirs(page: bytes, **settings: bool) -> str:
    return trafilatura.extract(page, **settings) or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds *.html.gz and ground-truth.json.gz")
    folder = parser.parse_args().folder
    pages = {file.name.split(".")[0]: gzip.decompress(file.read_bytes()) for file in sorted(folder.glob("*.html.gz"))}
    truth = json.loads(gzip.decompress((folder / "ground-truth.json.gz").read_bytes()))
    gold = {name: truth[name]["articleBody"] for name in pages}
    print(f"{len(pages)} pages, {sum(map(len, pages.values())):,} bytes")
    with tempfile.TemporaryDirectory() as place:
        rows = {
            "trafilatura, as it comes": theirs,
            "trafilatura, favor_precision": partial(theirs, favor_precision=True),
            "trafilatura, no comments, favor_precision": partial(theirs, favor_precision=True, include_comments=False),
            "groundup, html = fast, cleaned": partial(ours, mode="fast", folder=Path(place)),
            "groundup, html = quality, cleaned": partial(ours, mode="quality", folder=Path(place)),
        }
        for name, extract in rows.items():
            extract(next(iter(pages.values())))  # loads what it needs
            print(f"{name:42} {measure(extract, pages, gold)}")


if __name__ == "__main__":
    main()
