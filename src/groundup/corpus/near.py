"""Near duplicates: documents that share most of their runs of words, found by MinHash (Broder 1997) in bands.

The signature of a document is the least value of each of `bands x rows` hash functions over its runs of words. Two
documents agree in one of them with a probability that is their similarity s: the share of runs that they have in common
(Jaccard). They are taken for duplicates if they agree in all rows of a band: with probability 1 - (1 - s^rows)^bands.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from groundup.compiled.words import (
    MIXER,
    NO_VALUE,
    Hashes,
    Offsets,
    folded,
    least_values,
    roots,
    runs_of,
    unite,
    words_of,
)
from groundup.corpus.repeats import repeats
from groundup.corpus.settings import Near

Signatures = npt.NDArray[np.uint32]
NO_KEY = np.uint64(0)
"""Of a document with less than two words, which is like no other."""


def fingerprint(texts: Sequence[str], settings: Near) -> Hashes:
    """(documents, bands) a key for each band of each signature."""
    signatures = np.array([signature(text, settings) for text in texts], np.uint64)
    signatures = signatures.reshape(len(texts), settings.bands, settings.rows)
    keys = np.arange(1, settings.bands + 1, dtype=np.uint64) * MIXER + np.zeros((len(texts), 1), np.uint64)
    for row in range(settings.rows):
        keys = (keys ^ signatures[:, :, row]) * MIXER
        keys ^= keys >> np.uint64(32)
    keys[keys == NO_KEY] = 1
    keys[(signatures == NO_VALUE).all((1, 2))] = NO_KEY
    return keys


def signature(text: str, settings: Near) -> Signatures:
    """(bands x rows,) the least value of each hash function; a text with fewer words than a run has is one run."""
    raw = np.frombuffer(text.encode(), np.uint8)
    functions = _functions(settings.bands * settings.rows, settings.seed)
    return least_values(raw, folded(), settings.words, *functions)  # type: ignore[no-any-return]


@functools.cache
def _functions(n: int, seed: int) -> tuple[Signatures, Signatures]:
    """Odd factors, and terms."""
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, 1 << 32, (2, n), np.uint32)
    return drawn[0] | np.uint32(1), drawn[1]


def similarity(text: str, other: str, words: int) -> float:
    """The share of two texts' runs of words that they have in common (Jaccard).

    >>> similarity("the king and the fox", "The king, and the hen.", 2)
    0.6
    """
    hashes = (words_of(each)[0] for each in (text, other))
    one, two = (set(runs_of(each, max(1, min(words, len(each)))).tolist()) for each in hashes)
    return len(one & two) / max(1, len(one | two))


def cluster(files: Sequence[Path], memory: int, alive: npt.NDArray[np.bool_], folder: Path | None = None) -> Offsets:
    """(documents,) the least number in a document's cluster: those hang together that share a key, also through others.

    Args:
        files: of each part of the corpus its `fingerprint`, as .npy.
        memory: bytes for sorting; the result takes 8 a document more.
        alive: (documents,) which are looked at.
        folder: where keys go that memory does not hold.
    """
    parents = np.arange(len(alive))
    for these, those in repeats(keyed(files, alive), memory, folder):
        unite(parents, these, those)
    return roots(parents)  # type: ignore[no-any-return]


def keyed(files: Sequence[Path], alive: npt.NDArray[np.bool_]) -> Iterator[tuple[Hashes, Offsets]]:
    """The keys of documents in such files, and the numbers of these documents."""
    first = 0
    for file in files:
        for band in (keys := np.load(file, mmap_mode="r")).T:
            numbers = np.flatnonzero((band != NO_KEY) & alive[first : first + len(band)])
            yield band[numbers], numbers + first
        first += len(keys)
