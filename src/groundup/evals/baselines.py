"""Baselines: the bits per byte that simpler models of text need for the same documents.

Eight bits a byte is the text as it is. A general compressor shows how much of a text is repetition; a model of token
frequencies alone shows how much a language model gains from context.
"""

import lzma
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from groundup.shards import Tokens, count_ids
from groundup.tokenizer.tokenizer import Tokenizer


def texts(split: Tokens, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The UTF-8 bytes of each document, which byte-level tokens give back exactly."""
    for first, last in pairwise(split.offsets):
        yield tokenizer.decode_bytes(split.text_ids(first, last).tolist())


def xz(documents: Iterable[bytes]) -> float:
    """Bits per byte of `xz -9` over the documents one after another, so that it may refer back to all of them."""
    compressor = lzma.LZMACompressor(preset=9)
    read = written = 0
    for document in documents:
        read += len(document)
        written += len(compressor.compress(document))
    return 8 * (written + len(compressor.flush())) / read


def unigram(train: Tokens, test: Tokens, vocab_size: int) -> float:
    """Bits per byte of a model that knows only how often each token occurs in the training split, plus one."""
    counts = 1 + _counts(train, vocab_size)
    bits = np.log2(counts.sum()) - np.log2(counts)
    return float((_counts(test, vocab_size) * bits).sum() / test.n_bytes.sum())


def _counts(split: Tokens, vocab_size: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """How often each id is a target: all but the first token of the stream are, and what follows a closer."""
    counts = count_ids([split.ids[1:]], vocab_size)
    if split.closer is not None:
        counts[split.ids[0]] -= split.n_documents
    return counts
