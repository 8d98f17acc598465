"""Documents as Arrow columns: their bytes one after another, and where each begins; and ids as lists."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundup.tokenizer.vocabulary import to_utf8

Item = TypeVar("Item")
CHARACTERS_AT_ONCE = 1 << 24


def columns_of(texts: Iterable[str]) -> Iterator[pa.Array]:
    """The texts in columns of bounded size; a lone surrogate becomes U+FFFD."""
    waiting: list[str] = []
    characters = 0
    for text in texts:
        waiting.append(text)
        characters += len(text)
        if characters > CHARACTERS_AT_ONCE:
            yield column_of(waiting)
            waiting, characters = [], 0
    yield column_of(waiting)


def column_of(texts: Sequence[str]) -> pa.Array:
    """The texts as one column; a lone surrogate becomes U+FFFD."""
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        return pa.array([to_utf8(text).decode() for text in texts], pa.large_string())


def text_of(column: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of a `large_string` column without nulls, and (documents + 1,) where each document begins."""
    if not len(column):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, begins, data = column.buffers()
    offsets = np.frombuffer(begins, np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(data or b"", np.uint8), offsets


def as_list(ids: npt.NDArray[np.int32], vocab_size: int) -> list[int]:
    """Ids as Python's integers, of which each id has one: looking it up is quicker than making it."""
    integers: list[int] = _integers(vocab_size)[ids].tolist()
    return integers


@functools.lru_cache(maxsize=4)
def _integers(n: int) -> npt.NDArray[Any]:
    return np.array(range(n), object)


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; while the caller works on one, a thread reads the next."""
    rest = iter(items)
    with ThreadPoolExecutor(1, "reading") as thread:
        following = thread.submit(lambda: [*itertools.islice(rest, 1)])
        while item := following.result():
            following = thread.submit(lambda: [*itertools.islice(rest, 1)])
            yield item[0]
