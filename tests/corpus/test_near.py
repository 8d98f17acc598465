"""Near duplicates: what is found is what the S-curve says, and nothing else."""

import gzip
import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from groundup.compiled.words import NO_VALUE, runs_of, words_of
from groundup.corpus.near import NO_KEY, cluster, fingerprint, signature, similarity
from groundup.corpus.settings import Near

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "rstvwxyz"]


def plain_signature(text: str, settings: Near) -> list[int]:
    """By Python's whole numbers, from the hashes of the runs."""
    drawn = np.random.Generator(np.random.PCG64(settings.seed))
    n = settings.bands * settings.rows
    factors, terms = drawn.integers(0, 1 << 32, (2, n), np.uint32).tolist()
    words = words_of(text)[0]
    runs = [run >> 32 for run in runs_of(words, min(settings.words, len(words))).tolist()] if len(words) > 1 else []
    return [
        min(((run * (a | 1) + b) % 2**32 for run in runs), default=2**32 - 1)
        for a, b in zip(factors, terms, strict=True)
    ]


def random_text(random: np.random.Generator, n: int) -> list[str]:
    return [WORDS[i] for i in random.integers(0, len(WORDS), n)]


def found(keys: np.ndarray, other: np.ndarray) -> bool:
    return bool((keys == other).any())


def roots_of(tmp_path: Path, parts: list[list[str]], settings: Near, memory: int = 1 << 26) -> list[int]:
    files = []
    for number, texts in enumerate(parts):
        files.append(tmp_path / f"{number}.npy")
        np.save(files[-1], fingerprint(texts, settings))
    alive = np.ones(sum(map(len, parts)), bool)
    return cluster(files, memory, alive, tmp_path).tolist()


@pytest.mark.parametrize(
    "text", ["", "one", "one two", "The king, and the king; and the fox and THE KING.", "漢字かな" * 9]
)
def test_a_signature_is_that_of_plain_arithmetic(text: str) -> None:
    settings = Near(bands=3, rows=4, seed=5)
    assert signature(text, settings).tolist() == plain_signature(text, settings)


def test_texts_without_two_words_are_like_no_other(tmp_path: Path) -> None:
    """A20: no cluster of what is empty."""
    assert (signature("", Near()) == NO_VALUE).all()
    texts = ["", "one", "", "one", "...", "two words", "Two, words!"]
    assert (fingerprint(texts, Near()) == NO_KEY).all(1).tolist() == [True] * 5 + [False] * 2
    assert roots_of(tmp_path, [texts[:3], [], texts[3:]], Near()) == [0, 1, 2, 3, 4, 5, 5]


def test_a_million_copies_are_one_cluster_in_bounded_memory(tmp_path: Path) -> None:
    """A20. Ten of a hundred thousand here; each range of keys is far larger than what is sorted at once."""
    keys = np.repeat(fingerprint(["the same words as ever"], Near()), 100_000, axis=0)
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.npy")
        np.save(files[-1], keys[:, :2])
    roots = cluster(files, 10_000_000, np.ones(1_000_000, bool), tmp_path)
    assert not roots.any()


def test_clusters_depend_neither_on_parts_nor_on_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = [random_text(random, 60) for _ in range(60)]
    for _ in range(60):
        copy = list(texts[random.integers(len(texts))])
        for place in random.integers(0, len(copy), 2):
            copy[place] = "changed"
        texts.append(copy)
    documents = [" ".join(text) for text in texts]
    keys = fingerprint(documents, Near())
    reached = list(range(len(documents)))  # of every pair that shares a key, both get the lesser number
    for _ in range(9):
        for i, j in combinations(range(len(documents)), 2):
            if found(keys[i], keys[j]):
                reached[i] = reached[j] = min(reached[i], reached[j])
    assert 60 < len(set(reached)) < 100
    for cuts, memory in (([], 1 << 26), ([7, 60, 61], 1 << 26), ([50], 8_000)):
        parts = [list(part) for part in np.split(np.array(documents, object), cuts)]
        assert roots_of(tmp_path, parts, Near(), memory) == reached


def within_three_errors(hits: int, trials: int, chance: float) -> bool:
    """Also of a chance near 0 or 1, where one hit more or less is always allowed."""
    return abs(hits - trials * chance) <= max(1.0, 3 * math.sqrt(trials * chance * (1 - chance)))


@pytest.mark.parametrize(
    ("bands", "rows"),
    [(14, 8), pytest.param(2, 30, marks=pytest.mark.slow), pytest.param(4, 16, marks=pytest.mark.slow)],
)
def test_pairs_are_found_as_often_as_the_curve_says(bands: int, rows: int) -> None:
    """Of planted pairs, at each similarity: 20 seeds, 8 pairs each."""
    random = np.random.default_rng(4)
    for changes in (2, 6, 12, 18, 26, 40):
        hits, chance = 0, 0.0
        for _ in range(8):
            words = random_text(random, 300)
            other = list(words)
            for place in random.choice(300, changes, replace=False):
                other[place] = "changed" + other[place]
            pair = " ".join(words), " ".join(other)
            for seed in range(20):
                settings = Near(bands=bands, rows=rows, seed=seed)
                chance += settings.chance(similarity(*pair, settings.words)) / 160
                hits += found(*fingerprint(pair, settings))
        assert within_three_errors(hits, 160, chance), (changes, hits, 160 * chance)


@pytest.mark.slow
@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (2, 30), (3, 60), (1, 100)])
def test_real_pairs_are_found_as_often_as_the_curve_says(shared: Path, bands: int, rows: int) -> None:
    """Chapters of two editions: 20 seeds, at every similarity within three standard errors."""
    with gzip.open(shared / "data" / "messy" / "near_duplicate_pairs.jsonl.gz") as stream:
        pairs = [(row["a"], row["b"]) for row in map(json.loads, stream)]
    by_similarity = sorted((similarity(*pair, 5), pair) for pair in pairs)
    for group in np.array_split(np.arange(len(pairs)), 8):
        hits, chance = 0, 0.0
        for number in group.tolist():
            alike, pair = by_similarity[number]
            for seed in range(20):
                settings = Near(bands=bands, rows=rows, seed=seed)
                chance += settings.chance(alike)
                hits += found(*fingerprint(pair, settings))
        trials = 20 * len(group)
        assert within_three_errors(hits, trials, chance / trials), (by_similarity[group[0]][0], hits, chance)


@pytest.mark.slow
def test_no_unrelated_documents_are_merged(tmp_path: Path, shared: Path) -> None:
    """The first chapters of each pair are of different ones: more than 10,000 pairs, over 5 seeds."""
    with gzip.open(shared / "data" / "messy" / "near_duplicate_pairs.jsonl.gz") as stream:
        texts = [row["a"] for row in map(json.loads, stream)]
    texts = list({similar: text for text in texts if (similar := text[:200])}.values())
    pairs = len(texts) * (len(texts) - 1) // 2
    for seed in range(-(-10_000 // pairs)):
        assert roots_of(tmp_path, [texts], Near(seed=seed)) == list(range(len(texts)))


@pytest.mark.slow
def test_recall_and_precision_on_planted_copies_are_those_of_the_curve(tmp_path: Path) -> None:
    """2,000 texts, 1,000 changed copies of some: found as often as the curve says, and nothing else is."""
    random = np.random.default_rng(2)
    texts = [random_text(random, 200) for _ in range(2000)]
    documents, chance = [" ".join(text) for text in texts], []
    for number in range(1000):
        copy = list(texts[number])
        for place in random.choice(200, number % 20, replace=False):
            copy[place] = "changed" + copy[place]
        documents.append(" ".join(copy))
        chance.append(Near().chance(similarity(documents[number], documents[-1], 5)))
    roots = roots_of(tmp_path, [documents[:1500], documents[1500:]], Near())
    hits = [roots[2000 + number] == number for number in range(1000)]
    error = math.sqrt(sum(each * (1 - each) for each in chance))
    assert abs(sum(hits) - sum(chance)) <= 3 * error
    assert roots[:2000] == list(range(2000)), "precision 1: unrelated texts stay apart"
    assert all(hit or root == 2000 + number for number, (hit, root) in enumerate(zip(hits, roots[2000:], strict=True)))
