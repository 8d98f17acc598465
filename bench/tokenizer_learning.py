"""How long does learning a vocabulary take, and do we find the merges that Hugging Face's tokenizers find?

    python bench/tokenizer_learning.py FOLDER [--rounds 3] [--sizes 16384 32768] [--bytes N] [--peers NAME ...]

Learns on the text of bench/tokenizer_text.py with GPT-2's pattern on two threads. `vocab_size` is ours: 256 bytes,
merges, 16 special tokens; the others are asked for the same number of merges. Each is run in a fresh process, all in
turn, a few rounds; shown are medians, and the median over rounds of their time by ours.

Each is given the text as it likes it best. A list of documents or bytes is in memory before the clock starts; reading
a file is part of learning. Importing a library is not, but it is part of the whole process. gigabpe reads lines, so
what it counts differs where a document holds line feeds: its merges cannot be the same. "Nothing compiled" is ours with
an empty cache of numba. Peak memory is of the whole process, a list of documents included.

Ends with status 1 when our merges are not those of tokenizers. Leaves our vocabularies in FOLDER/tokenizer-SIZE.json,
and with --bytes a folder of the first so many bytes, FOLDER/first-N, in place of FOLDER.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizer_peers import (
    GPT2_PATTERN,
    N_NOT_MERGED,
    PEERS,
    alone,
    answer_alone,
    median_ratio,
    parser_of,
    print_table,
    refuse_missing_files,
    refuse_missing_peers,
    texts_of,
    this_machine,
)

Merges = list[list[bytes]]
"""Both sides of each merge, in order; or only what it makes, where a library tells no more."""
Learner = Callable[[Path, int], tuple[float, Merges]]
"""From the folder of the text and the number of merges, to the seconds that learning took and the merges."""


def ours_from_list(folder: Path, n_merges: int) -> tuple[float, Merges]:
    from groundup.tokenizer.tokenizer import Tokenizer

    texts = texts_of(folder / "documents.parquet")
    began = time.perf_counter()
    tokenizer = Tokenizer.learn(texts, vocab_size=n_merges + N_NOT_MERGED, pattern="gpt2")
    seconds = time.perf_counter() - began
    tokenizer.save(folder / f"tokenizer-{n_merges + N_NOT_MERGED}.json")
    return seconds, [[left, right] for left, right in tokenizer.merges]


def ours_from_parquet(folder: Path, n_merges: int) -> tuple[float, Merges]:
    """As the tokenizer stage learns from a corpus."""
    from groundup.corpus.document import read_batches
    from groundup.tokenizer.tokenizer import Tokenizer

    began = time.perf_counter()
    columns = (batch.column("text") for batch in read_batches(folder / "documents.parquet", ["text"]))
    tokenizer, _ = Tokenizer.learn_columns(columns, vocab_size=n_merges + N_NOT_MERGED, pattern="gpt2")
    return time.perf_counter() - began, [[left, right] for left, right in tokenizer.merges]


def tokenizers(folder: Path, n_merges: int) -> tuple[float, Merges]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = texts_of(folder / "documents.parquet")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + n_merges,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    batches = [texts[first : first + 256] for first in range(0, len(texts), 256)]
    began = time.perf_counter()
    tokenizer.train_from_iterator(batches, trainer)
    seconds = time.perf_counter() - began
    return seconds, from_characters(json.loads(tokenizer.to_str())["model"]["merges"])


def rustbpe(folder: Path, n_merges: int) -> tuple[float, Merges]:
    import rustbpe

    texts = texts_of(folder / "documents.parquet")
    tokenizer = rustbpe.Tokenizer()
    began = time.perf_counter()
    tokenizer.train_from_iterator(iter(texts), 256 + n_merges, pattern=GPT2_PATTERN)
    seconds = time.perf_counter() - began
    ranks = sorted(tokenizer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return seconds, [[bytes(token)] for token, _ in ranks[256:]]


def gigabpe(folder: Path, n_merges: int) -> tuple[float, Merges]:
    """Its vocabulary counts only those bytes that occur, so it may find a few merges too many; they are left out."""
    import gigabpe

    began = time.perf_counter()
    _, merges = gigabpe.train_bpe(
        [str(folder / "text.txt")], 256 + n_merges, special_tokens=[], pretokenizer="bytelevel", threads=2
    )
    return time.perf_counter() - began, from_characters(merges[:n_merges])


def gigatok(folder: Path, n_merges: int) -> tuple[float, Merges]:
    import gigatok

    began = time.perf_counter()
    source = gigatok.TextFileSource([folder / "separated.txt"], separator=b"\0")
    _, merges = gigatok.train_bpe(source, 256 + n_merges, [])
    return time.perf_counter() - began, [[left, right] for left, right in merges]


def bpeasy(folder: Path, n_merges: int) -> tuple[float, Merges]:
    import bpeasy

    texts = texts_of(folder / "documents.parquet")
    began = time.perf_counter()
    ranks = bpeasy.train_bpe(iter(texts), GPT2_PATTERN, 128, 256 + n_merges)
    seconds = time.perf_counter() - began
    return seconds, [[token] for token in sorted(ranks, key=ranks.__getitem__)[256:]]


def from_characters(merges: list[list[str]]) -> Merges:
    from groundup.tokenizer.vocabulary import to_bytes

    return [[to_bytes(left), to_bytes(right)] for left, right in merges]


LEARNERS: dict[str, Learner] = {
    "ours, from a list": ours_from_list,
    "ours, from parquet": ours_from_parquet,
    "ours, from a list, nothing compiled": ours_from_list,
    "tokenizers": tokenizers,
    "rustbpe": rustbpe,
    "gigabpe": gigabpe,
    "gigatok": gigatok,
    "bpeasy": bpeasy,
}
OURS = next(iter(LEARNERS))


def measure(learner: str, folder: str, n_merges: int) -> dict[str, Any]:
    seconds, merges = LEARNERS[learner](Path(folder), n_merges)
    return {"seconds": seconds, "merges": [[side.hex() for side in merge] for merge in merges]}


def compared(merges: list[list[str]], ours: list[list[str]]) -> str:
    """In how far merges, as hexadecimal strings, are ours."""
    if all(len(merge) == 1 for merge in merges):
        ours = [["".join(merge)] for merge in ours]
        what = "tokens"
    else:
        what = "merges"
    if merges == ours:
        return f"the same {len(ours):,} {what}"
    same = next((i for i, (a, b) in enumerate(zip(merges, ours, strict=False)) if a != b), min(len(merges), len(ours)))
    shared = len({tuple(merge) for merge in merges} & {tuple(merge) for merge in ours})
    return f"{len(merges):,} {what}: the first {same:,} the same, {shared:,} in common"


def first_part(folder: Path, n_bytes: int) -> Path:
    """A folder like `folder`, of the first documents only."""
    from tokenizer_text import write

    part = folder / f"first-{n_bytes}"
    if not part.exists():
        write(part, texts_of(folder / "documents.parquet", n_bytes))
    return part


def main() -> None:
    answer_alone(measure)
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16_384, 32_768])
    parser.add_argument("--bytes", type=int)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[name for name in PEERS if name in LEARNERS])
    arguments = parser.parse_args()
    refuse_missing_peers(arguments.peers)
    names = ("documents.parquet", "text.txt", "separated.txt")
    refuse_missing_files(*(arguments.folder / name for name in names), remedy="make them with bench/tokenizer_text.py")
    folder = arguments.folder if arguments.bytes is None else first_part(arguments.folder, arguments.bytes)
    text_bytes = max(len((folder / name).read_bytes()) for name in names[1:])  # and now they are in memory
    print(f"Learning on {text_bytes / 1e6:.1f} MB, two threads, {arguments.rounds} rounds.")
    print(this_machine(arguments.peers))
    learners = [name for name in LEARNERS if name.startswith("ours") or name in arguments.peers]
    differs = False
    with tempfile.TemporaryDirectory() as caches:
        compiled = Path(caches) / "compiled"
        for n_merges in (size - N_NOT_MERGED for size in arguments.sizes):
            answers: dict[str, list[dict[str, Any]]] = {name: [] for name in learners}
            request = {"folder": str(folder), "n_merges": n_merges}
            alone(__file__, {**request, "learner": OURS}, 2, compiled)  # compiles; not counted
            for number in range(arguments.rounds):
                for name in learners:
                    nothing = Path(caches) / f"{n_merges}-{number}"
                    cache = nothing if "nothing compiled" in name else compiled
                    answers[name].append(alone(__file__, {**request, "learner": name}, 2, cache))
                    print(f"{n_merges} {name} {answers[name][-1]['seconds']:.2f} s", file=sys.stderr)
            ours = answers[OURS]
            print(f"\n**{n_merges + N_NOT_MERGED:,} ids, {n_merges:,} merges**\n")
            print_table(
                ["", "learning, s (range)", "MB/s", "time by ours", "whole process, s", "peak, MiB", "beside ours"],
                [row(name, found, ours, text_bytes) for name, found in answers.items()],
            )
            for name, found in answers.items():
                if any(answer["merges"] != found[0]["merges"] for answer in found):
                    print(f"\n{name}: not the same merges in every round")
                    differs |= name.startswith("ours")
                differs |= name.startswith(("ours", "tokenizers")) and found[0]["merges"] != ours[0]["merges"]
    if differs:
        sys.exit("our merges are not those of tokenizers, or not always the same")


def row(name: str, found: list[dict[str, Any]], ours: list[dict[str, Any]], text_bytes: int) -> list[str]:
    seconds = [answer["seconds"] for answer in found]
    middle = statistics.median(seconds)
    return [
        name,
        f"{middle:.2f} ({min(seconds):.2f}–{max(seconds):.2f})",
        f"{text_bytes / 1e6 / middle:.1f}",
        f"{median_ratio(seconds, [answer['seconds'] for answer in ours]):.2f}",
        f"{statistics.median(answer['process_seconds'] for answer in found):.2f}",
        f"{max(answer['peak_bytes'] for answer in found) / 2**20:,.0f}",
        compared(found[0]["merges"], ours[0]["merges"]),
    ]


if __name__ == "__main__":
    main()
