"""Shards: the ids of all documents one after another, with the position where each begins.

The tokenizer's opener, such as `<|endoftext|>`, opens each document and belongs to it; one more ends the stream, so
that every document's last token has a target. Where another token closes a document (`<s>`, `</s>`), it belongs to the
document too, and what comes after it is no target. For each split there are three NumPy files: `train.npy` (uint16, or
uint32 when the vocabulary needs it), `train.offsets.npy` (where each document begins, then where the last one ends),
`train.bytes.npy` (UTF-8 bytes of each document's text).
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from groundup.artifacts import Draft, is_made, read_manifest
from groundup.corpus.document import SPLITS, read_batches
from groundup.errors import DamagedError, SettingsError
from groundup.files import Progress, no_progress
from groundup.tokenizer.columns import one_ahead, text_of
from groundup.tokenizer.tokenizer import Tokenizer

IDS_AT_ONCE = 1 << 22
REMEDY = "Make the shards again with `groundup pack RECIPE --replace`"


@dataclass(frozen=True)
class Tokens:
    """One split of the shards, memory-mapped.

    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> tokens = stream_of([("low lower", 9), ("lowest", 6)], tokenizer)
    >>> tokens.n_documents, tokens.offsets.tolist(), tokens.n_rows(context_length=4), tokens.targets(2)
    (2, [0, 3, 7], 2, 7)
    >>> tokenizer.decode(tokens.text_ids(0, 3)), tokens.read(np.array([0])).tolist() == [tokenizer.opener]
    ('low lower', True)
    """

    ids: npt.NDArray[Any]
    """(N,) all documents, then the opener once more."""
    offsets: npt.NDArray[np.int64]
    """(documents + 1,) where each document begins; the last entry is that opener's position."""
    n_bytes: npt.NDArray[np.int64]
    """(documents,) UTF-8 bytes of each document's text."""
    vocab_size: int | None = None
    """If given, `read` refuses ids that have become too large since the file was opened."""
    closer: int | None = None
    """The id that closes each document, where it is not the opener of the next."""

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The ids at these positions.

        Raises:
            DamagedError: when the file was cut short or overwritten while it was open, naming position and document.
        """
        name = getattr(self.ids, "filename", None) or "the stream"
        if isinstance(self.ids, np.memmap):
            with contextlib.suppress(FileNotFoundError):  # what is open stays readable
                size, needed = os.stat(name).st_size, self.ids.offset + self.ids.nbytes
                if size < needed:  # reading past the end of a mapped file would end the process
                    raise DamagedError(
                        f"{name} had {needed:,} bytes when it was opened and now has {size:,}: it was cut short while "
                        f"it was being read. {REMEDY}"
                    )
        ids = self.ids[positions].astype(np.int64)
        if self.vocab_size is not None and ids.max(initial=0) >= self.vocab_size:
            first = int(positions[ids >= self.vocab_size].min())
            document = int(np.searchsorted(self.offsets, first, side="right")) - 1
            raise DamagedError(
                f"{name} holds id {int(self.ids[first]):,} at position {first:,}, in document {document:,}; the "
                f"vocabulary has {self.vocab_size:,} ids. It was overwritten while it was being read. {REMEDY}"
            )
        return ids

    @property
    def n_documents(self) -> int:
        """Number of documents in the split."""
        return len(self.n_bytes)

    def text_ids(self, first: int, last: int) -> npt.NDArray[Any]:
        """The ids of the text of a document that spans `first` to `last`: without what opens and closes it."""
        return self.ids[first + 1 : last if self.closer is None else last - 1]

    def targets(self, first: int) -> int:
        """Number of targets in the first `first` documents: all their tokens but what follows a closer."""
        return int(self.offsets[first]) - (0 if self.closer is None else first)

    def n_rows(self, context_length: int) -> int:
        """Number of rows of `context_length` targets the stream is cut into; the last may be padded."""
        return max(0, -(-(len(self.ids) - 1) // context_length))


def pack(corpus: Path, tokenizer: Tokenizer, draft: Draft, progress: Progress = no_progress) -> None:
    """Encode every split of a corpus into shards, and leave the counts in `draft.statistics`.

    Args:
        corpus: the directory with the documents of each split as a parquet file.
        tokenizer: whose ids, and whose opener and closer frame each document.
        draft: the directory that is being made.
        progress: called with the number of documents.

    >>> import tempfile
    >>> from groundup.corpus.document import Document, DocumentWriter
    >>> from groundup.artifacts import making
    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for split in SPLITS:
    ...         writer = DocumentWriter(Path(folder, f"{split}.parquet"))
    ...         writer.write(Document("low lower", source="a.txt"))
    ...         writer.close()
    ...     with making(Path(folder, "shards"), "shards", settings={}, inputs={}) as draft:
    ...         pack(Path(folder), tokenizer, draft)
    ...     test = open_split(Path(folder, "shards"), "test", tokenizer.vocab_size)
    ...     print(tokenizer.decode(test.text_ids(0, test.targets(1))))
    low lower
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    usage = np.zeros(tokenizer.vocab_size, np.int64)
    counts = read_manifest(corpus).statistics if is_made(corpus) else {}
    written, total = 0, sum(counts.get(split, {}).get("documents", 0) for split in SPLITS)
    tokenizer.prepare(sum(counts.get(split, {}).get("bytes", 0) for split in SPLITS))
    for split in SPLITS:
        offsets, sizes = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
        with open(draft.path / f"{split}.npy", "wb") as stream:
            header_bytes = _write_header(stream, dtype, 0)
            for batch in one_ahead(read_batches(corpus / f"{split}.parquet", ["text"])):
                ids, starts = tokenizer.encode_documents(batch.column("text"), framed=True)
                usage += np.bincount(ids, minlength=tokenizer.vocab_size)
                stream.write(ids.astype(dtype).tobytes())
                offsets.append(offsets[-1][-1] + starts[1:])
                sizes.append(np.diff(text_of(batch.column("text"))[1]))
                written += len(starts) - 1
                progress(written, max(total, written), "documents")
            stream.write(np.array([tokenizer.opener], dtype).tobytes())
            stream.seek(0)
            n_ids = int(offsets[-1][-1]) + 1
            moved = _write_header(stream, dtype, n_ids) - header_bytes
            assert moved == 0, "the header has room for any length"
        n_bytes = np.concatenate(sizes)
        for name, numbers in (("offsets", np.concatenate(offsets)), ("bytes", n_bytes)):
            with open(draft.path / f"{split}.{name}.npy", "wb") as stream:  # np.save hides a full disk's error number
                _write_header(stream, np.dtype(np.int64), len(numbers))
                stream.write(numbers.tobytes())
        draft.statistics[split] = {"documents": len(n_bytes), "tokens": n_ids, "bytes": int(n_bytes.sum())}
    ranked = np.sort(usage)[::-1]
    draft.statistics |= {
        "vocab_size": tokenizer.vocab_size,
        "ids_never_used": int((usage == 0).sum()),
        "most_used": [int(i) for i in np.argsort(-usage, kind="stable")[:20]],
        "uses_by_rank": [[1 << n, int(ranked[(1 << n) - 1])] for n in range(tokenizer.vocab_size.bit_length())],
    }
    if tokenizer.closer != tokenizer.opener:
        draft.statistics["closer"] = tokenizer.closer
    progress(written, written, "")


def _write_header(stream: BinaryIO, dtype: "np.dtype[Any]", length: int) -> int:
    """A .npy header; NumPy leaves room in it for the length to grow."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.tell()


def open_split(directory: Path, split: str, vocab_size: int | None = None) -> Tokens:
    """Memory-map one split, as `pack` has written it.

    Args:
        directory: of the shards.
        split: `train`, `validation` or `test`; any three files of such names will do.
        vocab_size: of the tokenizer or model that the ids are for; every id is compared with it, once.

    Raises:
        DataError: naming the file that is missing, damaged, does not fit the others, or holds an id that is too large.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "test.npy"), np.array([0, 5, 6, 0], np.uint16))
    ...     np.save(Path(folder, "test.offsets.npy"), np.array([0, 3]))
    ...     np.save(Path(folder, "test.bytes.npy"), np.array([2]))
    ...     open_split(Path(folder), "test", vocab_size=7).ids.tolist()
    [0, 5, 6, 0]
    """
    path = directory / f"{split}.npy"
    ids = _open(path, (np.uint16, np.uint32), mmap_mode="r")
    offsets = _open(directory / f"{split}.offsets.npy", (np.int64,))
    n_bytes = _open(directory / f"{split}.bytes.npy", (np.int64,))
    whole = len(offsets) == len(n_bytes) + 1 and offsets[0] == 0 and bool((np.diff(offsets) > 0).all())
    if not whole or offsets[-1] + 1 != len(ids):
        ends = f"{offsets[-1] + 1:,} ids" if len(offsets) else "nothing"
        raise DamagedError(
            f"{path} has {len(ids):,} ids, but {split}.offsets.npy and {split}.bytes.npy name {len(n_bytes):,} "
            f"documents and {ends}: the three do not fit each other. {REMEDY}"
        )
    if vocab_size is not None:
        check_ids(path, ids, vocab_size)
    closer = read_manifest(directory).statistics.get("closer") if is_made(directory) else None
    return Tokens(ids, offsets, n_bytes, vocab_size, closer)


def _open(path: Path, dtypes: tuple[type, ...], mmap_mode: Literal["r"] | None = None) -> npt.NDArray[Any]:
    """Open a one-dimensional array of one of these types."""
    try:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        numbers: npt.NDArray[Any] = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing. {REMEDY}") from None
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DamagedError(f"{path} is damaged: {error}. {REMEDY}") from None
    if numbers.dtype not in dtypes or numbers.ndim != 1:
        wanted = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise DamagedError(
            f"{path} is {numbers.ndim}-dimensional {numbers.dtype}; it should be a row of {wanted}. {REMEDY}"
        )
    return numbers


def check_ids(path: Path, ids: npt.NDArray[Any], vocab_size: int) -> None:
    """Refuse ids that no embedding has; on an accelerator they would end the process with a fault of the device.

    Raises:
        DamagedError: naming the first such id and its position.
    """
    for first in range(0, len(ids), IDS_AT_ONCE):
        block = ids[first : first + IDS_AT_ONCE]
        if block.max() >= vocab_size:
            position = first + int(np.argmax(block >= vocab_size))
            raise DamagedError(
                f"{path} holds id {ids[position]:,} at position {position:,}; the vocabulary has {vocab_size:,} ids, 0 "
                f"to {vocab_size - 1:,}. The file is damaged, or was packed with another tokenizer. {REMEDY}"
            )


def count_ids(splits: Iterable[npt.NDArray[Any]], vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each id occurs in all splits together."""
    counts = np.zeros(vocab_size, np.int64)
    for ids in splits:
        for first in range(0, len(ids), IDS_AT_ONCE):
            counts += np.bincount(ids[first : first + IDS_AT_ONCE], minlength=vocab_size)
    return counts


def refuse_another_tokenizer(shards: Path, wanted: str | None, whose: str) -> None:
    """Compare the tokenizer that shards were packed with, where both digests are recorded.

    Raises:
        SettingsError: naming both.
    """
    packed = read_manifest(shards).inputs.get("tokenizer") if is_made(shards) else None
    if packed and wanted and packed != wanted:
        raise SettingsError(
            f"{shards} was packed with tokenizer {packed[:8]}…, {whose} has {wanted[:8]}…: the same id would mean "
            "another text. Pack the corpus again with `groundup pack RECIPE --replace`, or bring back the first "
            "tokenizer"
        )


def stream_of(documents: Iterable[tuple[str, int]], tokenizer: Tokenizer) -> Tokens:
    """Encode texts that are not in a corpus, as a split in memory.

    Args:
        documents: (cleaned text, number of its UTF-8 bytes) of each.
        tokenizer: whose ids, and whose opener.

    >>> tokenizer = Tokenizer.learn(["low lower lowest"], vocab_size=320)
    >>> stream = stream_of([("low", 3)], tokenizer)
    >>> stream.ids.tolist() == [tokenizer.opener, *tokenizer.encode("low"), tokenizer.opener]
    True
    """
    ids: list[int] = []
    offsets, sizes = [0], []
    documents = list(documents)
    tokenizer.prepare(sum(size for _, size in documents))
    for text, size in documents:
        ids += tokenizer.framed(tokenizer.encode(text))
        offsets.append(len(ids))
        sizes.append(size)
    return Tokens(
        np.array([*ids, tokenizer.opener], np.uint32),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        closer=None if tokenizer.closer == tokenizer.opener else tokenizer.closer,
    )
