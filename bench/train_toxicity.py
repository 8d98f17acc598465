"""How well does the toxicity classifier of the package do? Trains it.

    python bench/train_toxicity.py labeled_data.csv.gz --clean c4.jsonl.xz --out src/groundup/data/toxicity.safetensors

The tweets are those of Davidson et al. 2017 (arXiv:1703.04009; t-davidson/hate-speech-and-offensive-language, MIT):
hateful and offensive ones are toxic. As harmless tweets are few, and none is prose, lines of the packaged storybook are
added to them. What is held out is not trained on. Of the files of `--clean`, the lines taken for toxic are counted.
"""

import argparse
import csv
import gzip
import html
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np

from groundup.corpus.classifier import Classifier, is_held_out, train
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find, read

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)
LINES_OF_PROSE = 20_000
NOT_TEXT = re.compile(r"(?:\bRT\b|https?://\S+|@\w+|&#?\w+;)")
"""By which a tweet is known, and not what it says."""


def tweets(path: Path) -> dict[str, int]:
    """Text → 0 hateful, 1 offensive, 2 neither."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
        rows = [(html.unescape(row["tweet"]), int(row["class"])) for row in csv.DictReader(stream)]
    return {" ".join(NOT_TEXT.sub(" ", text).split()): label for text, label in rows}


def lines(source: str) -> list[str]:
    """The lines of a source that say something, each once."""
    settings = CorpusSettings(sources=(source,))
    documents = (document for name, path in find(settings, Path()).files for document in read(name, path, settings))
    return list(dict.fromkeys(line for document in documents for line in document.text.split("\n") if len(line) > 20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tweets", type=Path)
    parser.add_argument("--clean", action="append", default=[])
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    labels = tweets(arguments.tweets)
    prose = lines("groundup:storybook")
    prose = prose[:: max(1, len(prose) // LINES_OF_PROSE)]
    toxic = [text for text, label in labels.items() if label < 2]
    harmless = [text for text, label in labels.items() if label == 2]
    classifier, measures = train(toxic, harmless + prose, arguments.strength)
    print(measures)
    held_out = [text for text in labels if is_held_out(text)]
    label = np.array([labels[text] for text in held_out])
    scores = classifier.scores(held_out)
    clean = {source: classifier.scores(lines(source)) for source in arguments.clean}
    print(
        "| threshold | precision | recall | recall of hateful | of offensive |", *(f" {Path(s).name} |" for s in clean)
    )
    for threshold in THRESHOLDS:
        taken = scores > threshold
        told = [
            taken[label < 2].sum() / max(1, taken.sum()),
            *(taken[part].mean() for part in (label < 2, label == 0, label == 1)),
        ]
        told += [(each > threshold).mean() for each in clean.values()]
        print(f"| {threshold} |", *(f" {value:.4f} |" for value in told))
    for source in clean:
        each = lines(source)
        worst = np.argsort(-clean[source])[:8]
        print(source, *(f"\n  {clean[source][i]:.3f} {each[i][:150]}" for i in worst))
    if arguments.out:
        classifier.save(arguments.out, held_out=asdict(measures), trained_on="Davidson et al. 2017; storybook")
        print(
            arguments.out.stat().st_size, "bytes;", int((Classifier.load(arguments.out).weights != 0).sum()), "weights"
        )


if __name__ == "__main__":
    main()
