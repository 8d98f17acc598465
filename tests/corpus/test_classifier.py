"""The learner finds scikit-learn's weights; it learns the same every time, and it holds on what it was not shown."""

import random
from pathlib import Path

import numpy as np
import pytest

from groundup.artifacts import making, verify
from groundup.corpus.classifier import BUCKETS, Classifier, features, fit, train
from groundup.corpus.refine import refine
from groundup.corpus.settings import ByExample, CorpusSettings
from groundup.corpus.sources import find
from groundup.errors import DamagedError, DataError, SettingsError

GOOD, BAD = (
    ["the", "king", "rode", "over", "hill", "and", "dale", "to", "his", "castle", "by", "night"],
    ["buy", "cheap", "click", "now", "offer", "sale", "price"],
)


def texts(words: list[str], n: int, seed: int, mixed: float = 0.2) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(GOOD + BAD if rng.random() < mixed else words) for _ in range(12)) for _ in range(n)]


def test_the_weights_are_those_of_scikit_learn() -> None:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    indices, starts = rows = features(texts(GOOD, 120, 1, 0.7) + texts(BAD, 60, 2, 0.7))
    labels = np.arange(180) < 120
    values = np.repeat(1 / np.sqrt(np.diff(starts)), np.diff(starts))
    theirs = LogisticRegression(C=3.0, class_weight="balanced", tol=1e-8, max_iter=10_000)
    theirs.fit(csr_matrix((values, indices, starts), (180, BUCKETS)), labels)
    ours = fit(rows, labels, 3.0, tolerance=1e-6)
    assert abs(ours[:-1] - theirs.coef_[0]).max() < 1e-4 * abs(ours[:-1]).max()
    assert abs(ours[-1] - theirs.intercept_[0]) < 1e-4


def test_features_are_those_of_the_plain_definition() -> None:
    """Two texts share as many features as they share words, pairs of words, and 3- to 5-grams of ` word `."""

    def plain(text: str) -> set[object]:
        words = text.casefold().split()
        grams = {f" {w} "[i : i + n] for w in words for n in (3, 4, 5) for i in range(len(w) + 3 - n)}
        return {"", *grams, *((w,) for w in words), *zip(["", *words], words, strict=False)}

    for pair in (["Once upon a time", "once upon"], ["größe 漢字かな x", "x größe"], ["", "a"], ["ab ab ab", "ab"]):
        indices, starts = features(pair)
        sets = [set(row.tolist()) for row in np.split(indices, starts[1:-1])]
        assert [len(each) for each in sets] == [len(plain(text)) for text in pair] == np.diff(starts).tolist()
        assert len(sets[0] & sets[1]) == len(plain(pair[0]) & plain(pair[1]))


def test_order_and_copies_do_not_matter_and_the_file_gives_the_same_scores(tmp_path: Path) -> None:
    good, bad = texts(GOOD, 100, 1), texts(BAD, 100, 2)
    one, measures = train(good, bad, 1.0)
    other, _ = train([*reversed(good), *good[:9]], bad, 1.0)
    for name, each in (("one", one), ("other", other)):
        each.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert measures.precision > 0.9 and measures.recall > 0.9
    assert Classifier.load(tmp_path / "one").scores(good).tolist() == one.scores(good).tolist()


def test_a_file_that_is_no_classifier_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for name in ("other", "missing"):
        with pytest.raises(DamagedError, match="is no classifier"):
            Classifier.load(tmp_path / name)


def test_too_few_examples_and_no_file_are_refused() -> None:
    with pytest.raises(DataError, match="at least 40 different examples"):
        train(["a"], ["b"], 1.0)
    with pytest.raises(SettingsError, match="good and bad examples, or a file"):
        ByExample(good=("a",))


def test_a_corpus_learns_from_examples_and_keeps_what_it_learned(tmp_path: Path) -> None:
    for name, lines in (
        ("good", texts(GOOD, 100, 1)),
        ("bad", texts(BAD, 100, 2)),
        ("all", texts(GOOD, 20, 3, 0) + texts(BAD, 20, 4, 0)),
    ):
        (tmp_path / f"{name}.txt").write_text("\0".join(lines), "utf-8")
    learn = ByExample(good=("good.txt",), bad=("bad.txt",))
    settings = CorpusSettings(sources=("all.txt",), separator="\0", filters=(learn,))
    with making(tmp_path / "corpus", "corpus", {}, {}) as draft:
        refine(find(settings, tmp_path), settings, draft, tmp_path)
    manifest = verify(tmp_path / "corpus")
    assert sum(manifest.statistics["dropped"].values()) == 20
    assert manifest.statistics["classifiers"][0]["recall"] > 0.9
    assert "classifier-1.safetensors" in manifest.files
