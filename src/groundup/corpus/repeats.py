"""Keys that come more than once among any number of them, in bounded memory: they are sorted, on disk if need be."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from groundup.compiled.words import Hashes, Offsets
from groundup.files import explaining_write_errors

PAIR = np.dtype([("key", "<u8"), ("value", "<i8")])
BYTES_OF_PAIR = 80
"""While it is sorted: with its copies, its place, and what it is compared with."""
RANGE_BITS = 10
"""Keys go to disk in 2^this files, by their highest bits."""


def repeats(
    keyed: Iterable[tuple[Hashes, Offsets]], memory: int, folder: Path | None = None
) -> Iterator[tuple[Offsets, Offsets]]:
    """For each key that comes more than once the least of its values, with each of the others.

    However often one key comes, about `memory` is taken, as long as there are fewer than `memory` x 10 different ones.
    What comes out, order apart, depends neither on memory nor on how the pairs are cut into arrays.

    Args:
        keyed: keys, which are evenly spread hashes, and values, none twice for a key; those of one key rise.
        memory: in bytes.
        folder: where they go that memory does not hold, 16 bytes each; the system's temporary one, if not given.

    Raises:
        ResourceError: no room on the disk.

    >>> pairs = [(np.array([5, 7, 5], np.uint64), np.array([0, 1, 2])), (np.array([5], np.uint64), np.array([3]))]
    >>> [(least.tolist(), others.tolist()) for least, others in repeats(pairs, memory=1 << 20)]
    [([0, 0], [2, 3])]
    """
    room = max(1, memory // BYTES_OF_PAIR)
    held, n = list[npt.NDArray[np.void]](), 0
    with ExitStack() as opened:
        spilled: Path | None = None
        for keys, values in keyed:
            for first in range(0, len(keys), room):
                pairs = _pairs(keys[first : first + room], values[first : first + room])
                if held and n + len(pairs) > room:
                    spilled = spilled or Path(opened.enter_context(tempfile.TemporaryDirectory(dir=folder)))
                    _spill(np.concatenate(held), spilled)
                    held, n = [], 0
                held.append(pairs)
                n += len(pairs)
        if spilled is None:
            yield from _repeats_of([np.concatenate([np.empty(0, PAIR), *held])])
            return
        _spill(np.concatenate(held), spilled)
        held.clear()
        for file in sorted(spilled.iterdir()):
            size = PAIR.itemsize * room
            blocks = range(0, file.stat().st_size, size)
            yield from _repeats_of(np.fromfile(file, PAIR, room, offset=begin) for begin in blocks)


def _pairs(keys: Hashes, values: Offsets) -> npt.NDArray[np.void]:
    pairs = np.empty(len(keys), PAIR)
    pairs["key"], pairs["value"] = keys, values
    return pairs


def _spill(pairs: npt.NDArray[np.void], folder: Path) -> None:
    number = (pairs["key"] >> np.uint64(64 - RANGE_BITS)).astype(np.uint16)
    order = np.argsort(number, kind="stable")
    pairs, borders = pairs[order], np.searchsorted(number[order], np.arange((1 << RANGE_BITS) + 1))
    with explaining_write_errors(folder):
        for each in np.flatnonzero(np.diff(borders)):
            with open(folder / f"{each:04}", "ab") as stream:
                stream.write(pairs[borders[each] : borders[each + 1]].tobytes())


def _repeats_of(blocks: Iterable[npt.NDArray[np.void]]) -> Iterator[tuple[Offsets, Offsets]]:
    """Of keys in one range; of each that was met, the least value is kept for the next blocks."""
    known = np.empty(0, PAIR)
    for block in blocks:
        pairs = np.concatenate([known, block])
        bits = np.uint64(len(pairs).bit_length())  # of a key its highest, and the place: what is sorted fastest
        packed = np.sort(pairs["key"] >> bits << bits | np.arange(len(pairs), dtype=np.uint64))
        pairs = pairs[(packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)]
        pairs = pairs[np.argsort(pairs["key"], kind="stable")]  # almost in order
        is_new = np.append(True, pairs["key"][1:] != pairs["key"][:-1])[: len(pairs)]
        starts = np.flatnonzero(is_new)
        least = np.minimum.reduceat(pairs["value"], starts) if len(pairs) else pairs["value"]
        known, least = _pairs(pairs["key"][starts], least), least[np.cumsum(is_new) - 1]
        is_later = pairs["value"] > least
        if is_later.any():
            yield least[is_later], pairs["value"][is_later]
