"""How fast are documents cleaned and judged with the default settings, that need no repair?

    python bench/corpus_plain.py BOOKS.jsonl[.xz|.gz] [--rounds 5]

The texts are cut as the corpus stage cuts them. Cleaning, the filters and the sha256 of each document run in one
process, on one core, with ftfy asked only where it is needed, and in the same round with ftfy asked for every line.
"""

import argparse
import gzip
import json
import lzma
import time
from pathlib import Path

from groundup.corpus import clean as cleaning
from groundup.corpus.document import Document
from groundup.corpus.filters import judge, looks
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import _cut


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    settings = CorpusSettings(sources=("x",))
    filters = looks(settings.filters, Path())
    documents: list[Document] = []
    with {".xz": lzma.open, ".gz": gzip.open}.get(args.file.suffix, open)(args.file, "rb") as file:
        for line in file:
            documents += _cut([json.loads(line)["text"].encode()], "x", settings.max_document_bytes)
    size = sum(len(document.text.encode()) for document in documents)
    judge(documents[0], settings, filters)  # compiles
    asked, slow = cleaning.is_sound, lambda text: False
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(args.rounds):
        for is_fast in (True, False):
            cleaning.is_sound = asked if is_fast else slow  # type: ignore[assignment]
            some = documents if is_fast else documents[::20]
            begin = time.perf_counter()
            for document in some:
                _ = judge(document, settings, filters)[0].id
            seconds = time.perf_counter() - begin
            speeds[is_fast].append(sum(len(document.text.encode()) for document in some) / seconds / 1e6)
    print(f"{len(documents):,} documents, {size / 1e6:.1f} MB")
    for is_fast, name in ((True, "ftfy where it is needed"), (False, "ftfy for every line")):
        print(f"{name}: {max(speeds[is_fast]):.1f} MB/s at best, {min(speeds[is_fast]):.1f} at worst")


if __name__ == "__main__":
    main()
