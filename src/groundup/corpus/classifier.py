"""A classifier of texts: words, pairs of words and character n-grams, hashed into a table of weights.

The logit of *positive* is the sum of the weights of a text's features, over the root of their number, and an intercept:
logistic regression, whose loss is that of scikit-learn's.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import safetensors
from safetensors.numpy import save_file

from groundup.corpus.clean import clean
from groundup.corpus.document import Document, Drop, Look
from groundup.corpus.loops import BUCKET_BITS, add_gradient, features_of, margins_of
from groundup.corpus.settings import ByExample, CorpusSettings
from groundup.corpus.sources import find, read
from groundup.errors import DamagedError, DataError
from groundup.files import locate

BUCKETS = 1 << BUCKET_BITS
FORMAT = "groundup classifier 1"
"""How features are made; a file of another one is refused."""
HELD_OUT = 0.2
"""Share of the examples that is not trained on, chosen by the sha256 of their text."""
FEWEST = 20
"""Examples of each side to train on."""
FIRST_CHARACTERS = 5_000
"""Of a document, by which it is judged beside the examples."""

Floats = npt.NDArray[np.float64]
Features = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""Those of all texts, one text after the other, and where each begins and the last one ends."""


def features(texts: Iterable[str]) -> Features:
    """
    >>> indices, starts = features(["the cat", "The cat!", "dog", ""])
    >>> starts.tolist(), bool((indices[:17] == indices[17:34]).all())
    ([0, 17, 34, 43, 44], True)
    """
    last_seen, rows = np.zeros(BUCKETS, np.int32), []
    for number, text in enumerate(texts, 1):
        points = np.frombuffer(text.casefold().encode("utf-32-le", "surrogatepass"), np.uint32)
        rows.append(features_of(points, last_seen, number))
    return np.concatenate([np.zeros(0, np.int32), *rows]), np.cumsum([0, *map(len, rows)], dtype=np.int64)


def fit(rows: Features, is_positive: npt.NDArray[np.bool_], strength: float, tolerance: float = 1e-4) -> Floats:
    """(BUCKETS + 1,) the weights, and behind them the intercept, that minimise |w|²/2 + `strength` · Σ log-loss, where
    both classes count alike, however many examples they have: by L-BFGS (Liu and Nocedal 1989, algorithm 2.1), m = 10.

    Args:
        tolerance: the largest part of the gradient at which it ends.
    """
    signs = np.where(is_positive, 1.0, -1.0)
    cost = strength * np.where(is_positive, 0.5 / is_positive.mean(), 0.5 / (1 - is_positive.mean()))

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = signs * (margins_of(*rows, weights) + weights[-1])
        errors = -signs * cost * np.exp(-np.logaddexp(0, margins))
        gradient = np.append(weights[:-1], errors.sum())
        add_gradient(*rows, errors, gradient)
        return float(weights[:-1] @ weights[:-1] / 2 + cost @ np.logaddexp(0, -margins)), gradient

    weights, steps = np.zeros(BUCKETS + 1), list[tuple[Floats, Floats]]()
    value, gradient = loss(weights)
    while abs(gradient).max() > tolerance:
        direction = _direction(gradient, steps)
        while (moved := loss(weights + direction))[0] > value + 1e-4 * (direction @ gradient):
            direction = direction / 2
            if abs(direction).max() < 1e-12:  # as near as float64 comes
                return weights
        weights = weights + direction
        steps = [*steps[-9:], (direction, moved[1] - gradient)]
        value, gradient = moved
    return weights


def _direction(gradient: Floats, steps: Sequence[tuple[Floats, Floats]]) -> Floats:
    """L-BFGS' two loops over the last steps, each with the change of the gradient; at first, down by a length of 1."""
    direction, shares = -gradient, []
    for step, change in reversed(steps):
        shares.append(step @ direction / (step @ change))
        direction = direction - shares[-1] * change
    step, change = steps[-1] if steps else (gradient / max(1.0, float(np.linalg.norm(gradient))), gradient)
    direction = direction * (step @ change / (change @ change))
    for (step, change), share in zip(steps, reversed(shares), strict=True):
        direction = direction + (share - change @ direction / (step @ change)) * step
    return direction


@dataclass(frozen=True)
class Measures:
    """How well a classifier does on examples that it was not trained on."""

    precision: float
    """Share of positive ones among those that it takes for positive."""
    recall: float
    """Share of those that it takes for positive among the positive ones."""
    positive: int
    negative: int


@dataclass(frozen=True, eq=False)
class Classifier:
    """Weights of a byte each, as a multiple of `scale`."""

    weights: npt.NDArray[np.int8]
    scale: float
    intercept: float

    @classmethod
    def of(cls, fitted: Floats) -> "Classifier":
        scale = float(abs(fitted[:-1]).max()) / 127 or 1.0
        return cls(np.rint(fitted[:-1] / scale).astype(np.int8), scale, float(fitted[-1]))

    def scores(self, texts: Iterable[str]) -> Floats:
        """The probability of *positive* of each text."""
        margins: Floats = self.scale * margins_of(*features(texts), self.weights) + self.intercept
        return 0.5 * (1 + np.tanh(margins / 2))

    def measure(self, texts: Sequence[str], is_positive: npt.NDArray[np.bool_], threshold: float) -> Measures:
        taken = self.scores(texts) >= threshold
        right, positive = int((taken & is_positive).sum()), int(is_positive.sum())
        return Measures(right / max(1, int(taken.sum())), right / max(1, positive), positive, len(texts) - positive)

    def save(self, path: Path, **about: Any) -> None:
        """Write as safetensors: no pickle, nothing that runs. `about` its training is kept as JSON."""
        told = {"format": FORMAT, "scale": self.scale, "intercept": self.intercept, **about}
        partial = path.with_suffix(f".{os.getpid()}")  # other jobs may write the same bytes
        save_file(
            {"weights": self.weights}, partial, {"about": orjson.dumps(told).decode()}
        )  # more have no fixed order
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        """
        Raises:
            DamagedError: no classifier of this format.
        """
        try:
            with safetensors.safe_open(path, "np") as file:
                told, weights = orjson.loads(file.metadata()["about"]), file.get_tensor("weights")
            if (told["format"], weights.shape, weights.dtype) == (FORMAT, (BUCKETS,), np.int8):
                return cls(weights, float(told["scale"]), float(told["intercept"]))
            raise ValueError(f"it should be of the format {FORMAT!r}")
        except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DamagedError(f"{path} is no classifier: {error}. Train it again") from None


def is_held_out(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) < HELD_OUT * 2**32


def train(
    positive: Iterable[str], negative: Iterable[str], strength: float, threshold: float = 0.5
) -> tuple[Classifier, Measures]:
    """A classifier, and how it does on the examples held out. The order and copies of examples do not matter.

    Raises:
        DataError: too few examples of a side.
    """
    sides = {**dict.fromkeys(negative, False), **dict.fromkeys(positive, True)}
    texts: tuple[list[str], list[str]] = [], []
    for text in sorted(sides):
        texts[is_held_out(text)].append(text)
    (learned, labels), (held_out, right) = ((part, np.array([sides[t] for t in part], np.bool_)) for part in texts)
    fewest, fewest_held_out = (min(int(each.sum()), int((~each).sum())) for each in (labels, right))
    if fewest < FEWEST or fewest_held_out < 1:
        n = sum(sides.values())
        raise DataError(
            f"a classifier needs at least {2 * FEWEST} different examples of each side, and has {n:,} and "
            f"{len(sides) - n:,}: name more of them"
        )
    classifier = Classifier.of(fit(features(learned), labels, strength))
    return classifier, classifier.measure(held_out, right, threshold)


def train_all(settings: CorpusSettings, beside: Path, directory: Path) -> tuple[CorpusSettings, list[dict[str, Any]]]:
    """What `filters.prepare` says."""
    filters, reports = list(settings.filters), list[dict[str, Any]]()
    for number, asked in enumerate(filters):
        if isinstance(asked, ByExample) and asked.file is None:
            good, bad = (_examples(names, settings, beside, asked.examples) for names in (asked.good, asked.bad))
            classifier, measures = train(good, bad, asked.strength, asked.threshold)
            path = directory / f"classifier-{len(reports) + 1}.safetensors"
            reports.append({"file": path.name, **asdict(measures)})
            classifier.save(path, held_out=asdict(measures))
            filters[number] = asked.model_copy(update={"file": str(path.absolute())})
    return settings.model_copy(update={"filters": tuple(filters)}), reports


def _examples(names: tuple[str, ...], settings: CorpusSettings, beside: Path, most: int) -> Iterator[str]:
    """The beginnings of documents, read and cleaned as the sources are, of each file as many."""
    files = find(settings.model_copy(update={"sources": names}), beside).files
    for name, path in files:
        for document in islice(read(name, path, settings), -(-most // len(files))):
            if document.reason is None and (text := clean(document.text, settings)):
                yield text[:FIRST_CHARACTERS]


def look(settings: ByExample, beside: Path) -> Look:
    """The filter `classifier`, its weights read.

    Raises:
        MissingError, DamagedError: no such file, or no classifier.
    """
    assert settings.file is not None, "filters.prepare has trained it"
    return partial(
        by_example, settings=settings, classifier=Classifier.load(locate(settings.file, beside, "classifier"))
    )


def by_example(document: Document, settings: ByExample, classifier: Classifier) -> Document | Drop:
    [score] = classifier.scores([document.text[:FIRST_CHARACTERS]]).tolist()
    if score < settings.threshold:
        return Drop("classifier.score", "less like the good examples than it should be", score, settings.threshold)
    return document
