"""Do learning and packing take no more memory for twenty times the corpus, and does learning find the same merges?

    python bench/tokenizer_memory.py FOLDER [--sizes 16384] [--memory 2000000000] [--bytes N] [--times 1 5 20]
        [--scratch DIRECTORY]

Learning: from a corpus that holds the text of bench/tokenizer_text.py 1, 5 and 20 times, document after document, which
must give the same merges each time; and from 1/20, 1/4 and all of it, which is as much different text as there is. Peak
memory is of the whole process and must stay under the budget, `--memory`, which is given to learning.

Packing: corpus to shards with the vocabulary learned on the text once, from the first two of those corpora, on two
cores; encoding alone and with what `making` a directory adds, the digests of the files.

Writes about 64 MB for each time the text is repeated to the scratch directory, and shards. Ends with status 1 when
merges differ or the budget is passed.
"""

import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tokenizer_peers import (
    N_NOT_MERGED,
    alone,
    answer_alone,
    parser_of,
    print_table,
    refuse_missing_files,
    texts_of,
    this_machine,
)

from groundup.corpus.document import SPLITS, Document, DocumentWriter, read_batches


def learn(parquet: str, vocab_size: int, memory_bytes: int, save: str | None) -> dict[str, Any]:
    """As the tokenizer stage learns from a corpus."""
    from groundup.tokenizer.tokenizer import Tokenizer

    began = time.perf_counter()
    columns = (batch.column("text") for batch in read_batches(Path(parquet), ["text"]))
    tokenizer, least = Tokenizer.learn_columns(
        columns, vocab_size=vocab_size, pattern="gpt2", memory_bytes=memory_bytes
    )
    seconds = time.perf_counter() - began
    if save:
        tokenizer.save(Path(save))
    merges = hashlib.sha256(repr(tokenizer.merges).encode()).hexdigest()
    return {"seconds": seconds, "merges": merges, "n_merges": len(tokenizer.merges), "least": least}


def pack(corpus: str, tokenizer: str, to: str) -> dict[str, Any]:
    """As the shards stage packs a corpus; `packing_seconds` leaves out the digests and the renaming."""
    from groundup.artifacts import making
    from groundup.shards import pack
    from groundup.tokenizer.tokenizer import Tokenizer

    began = time.perf_counter()
    loaded = Tokenizer.load(tokenizer)
    with making(Path(to), "shards", {}, {}) as draft:
        packing = time.perf_counter()
        pack(Path(corpus), loaded, draft)
        packing_seconds = time.perf_counter() - packing
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "packing_seconds": packing_seconds, "tokens": draft.statistics["train"]["tokens"]}


def measure(what: str, **request: Any) -> dict[str, Any]:
    return learn(**request) if what == "learn" else pack(**request)


def corpus_of(parquet: Path, times: int, to: Path) -> int:
    """A corpus that holds the documents `times` times, all in training; returns its bytes of text."""
    writers = {split: DocumentWriter(to / f"{split}.parquet") for split in SPLITS}
    n_bytes = 0
    for again in range(times):
        for batch in read_batches(parquet, ["text"]):
            for text in batch.column("text").to_pylist():
                writers["train"].write(Document(text, f"time {again}"))
                n_bytes += len(text.encode())
    for writer in writers.values():
        writer.close()
    return n_bytes


def part_of(parquet: Path, n_bytes: int, to: Path) -> int:
    """The first documents, up to `n_bytes`; returns how many bytes they have."""
    texts = texts_of(parquet, n_bytes)
    writer = DocumentWriter(to)
    for number, text in enumerate(texts):
        writer.write(Document(text, str(number)))
    writer.close()
    return sum(len(text.encode()) for text in texts)


def main() -> None:
    answer_alone(measure)
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16_384])
    parser.add_argument("--memory", type=int, default=2_000_000_000)
    parser.add_argument("--bytes", type=int, help="take only so much of the text as the corpus that is repeated")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--scratch", type=Path, help="where there is room for 2 GB and more")
    arguments = parser.parse_args()
    text = arguments.folder / "documents.parquet"
    refuse_missing_files(text, remedy="make it with bench/tokenizer_text.py")
    print(f"Two threads, budget {arguments.memory / 1e6:,.0f} MB.\n{this_machine(['numba', 'pyarrow'])}")
    wrong = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        scratch = Path(folder)
        if arguments.bytes is not None:
            part_of(text, arguments.bytes, scratch / "text.parquet")
            text = scratch / "text.parquet"
        whole = sum(len(one.encode()) for one in texts_of(text))
        parts = {divisor: scratch / f"part-{divisor}.parquet" for divisor in (20, 4)}
        different = [(f"1/{n} of the text", path, part_of(text, whole // n, path)) for n, path in parts.items()]
        compiled = scratch / "compiled"
        for size in arguments.sizes:
            request = {"what": "learn", "vocab_size": size, "memory_bytes": arguments.memory, "save": None}
            alone(__file__, {**request, "parquet": str(text)}, 2, compiled)  # compiles; not counted
            rows, seen, packed = [], set(), []
            for name, path, n_bytes in different:
                answer = alone(__file__, {**request, "parquet": str(path)}, 2, compiled)
                rows.append(learning_row(name, n_bytes, answer))
                wrong += over_budget(name, answer, arguments.memory)
            for times in arguments.times:
                corpus = scratch / f"corpus-{size}-{times}"
                n_bytes = corpus_of(text, times, corpus)
                save = str(scratch / "tokenizer.json") if times == arguments.times[0] else None
                answer = alone(
                    __file__, {**request, "parquet": str(corpus / "train.parquet"), "save": save}, 2, compiled
                )
                rows.append(learning_row(f"the text × {times}", n_bytes, answer))
                wrong += over_budget(f"× {times}", answer, arguments.memory)
                seen.add(answer["merges"])
                if times in arguments.times[:2]:
                    packed += packing_rows(corpus, times, n_bytes, scratch, compiled, arguments.rounds)
                for file in corpus.iterdir():
                    file.unlink()
            if len(seen) > 1:
                wrong.append(f"{size} ids: the merges differ between repetitions of the same text")
            print(f"\n**{size - N_NOT_MERGED:,} merges**\n")
            head = ["learning from", "MB", "s", "MB/s", "peak, MiB", "least count of a piece", "sha256 of the merges"]
            print_table(head, rows)
            print()
            print_table(["packing", "MB", "s", "MB/s", "MB/s, packing alone", "peak, MiB", "tokens"], packed)
    if wrong:
        sys.exit("; ".join(wrong))


def learning_row(name: str, n_bytes: int, answer: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{n_bytes / 1e6:,.1f}",
        f"{answer['seconds']:.1f}",
        f"{n_bytes / 1e6 / answer['seconds']:.1f}",
        f"{answer['peak_bytes'] / 2**20:,.0f}",
        str(answer["least"]),
        answer["merges"][:12],
    ]


def packing_rows(
    corpus: Path, times: int, n_bytes: int, scratch: Path, compiled: Path, n_rounds: int
) -> list[list[str]]:
    rows = []
    for number in range(n_rounds):
        to = scratch / f"shards-{times}-{number}"
        request = {"what": "pack", "corpus": str(corpus), "tokenizer": str(scratch / "tokenizer.json"), "to": str(to)}
        if not number:  # compiles; not counted
            alone(__file__, {**request, "to": f"{to}-first"}, 2, compiled)
        answer = alone(__file__, request, 2, compiled)
        rows.append(
            [
                f"the text × {times}",
                f"{n_bytes / 1e6:,.1f}",
                f"{answer['seconds']:.1f}",
                f"{n_bytes / 1e6 / answer['seconds']:.1f}",
                f"{n_bytes / 1e6 / answer['packing_seconds']:.1f}",
                f"{answer['peak_bytes'] / 2**20:,.0f}",
                f"{answer['tokens']:,}",
            ]
        )
    return rows


def over_budget(name: str, answer: dict[str, Any], memory_bytes: int) -> list[str]:
    if answer["peak_bytes"] <= memory_bytes:
        return []
    return [f"{name}: {answer['peak_bytes'] / 1e6:,.0f} MB were taken of {memory_bytes / 1e6:,.0f} MB allowed"]


if __name__ == "__main__":
    main()
