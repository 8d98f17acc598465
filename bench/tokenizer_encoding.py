"""How fast is text encoded, and are the ids tiktoken's, document by document?

    python bench/tokenizer_encoding.py FOLDER [--rounds 3] [--bytes 20000000] [--sizes 16384 32768] [--peers NAME ...]
        [--published ../shared/data/tokenizers]

Encodes the first 20 MB of the text of bench/tokenizer_text.py, with GPT-2's published vocabulary and with those that
bench/tokenizer_learning.py has left in FOLDER. Documents are in memory as Python strings; the result is what each
library gives most cheaply; for ours also as lists. One by one: a call for each document. Batch: one call for all.

Each measurement is a fresh process, all in turn, a few rounds. A first call on made-up text of numbers loads what is
loaded once, and is shown by itself; for ours also with nothing compiled (an empty cache of numba). Then the text is
encoded again and again: the first pass is with caches that do not know the text, the later ones with caches that do; a
corpus lies between them. Shown are medians over rounds. Speeds by ours are medians over rounds of the same round's.

The published vocabulary is read from GPT-2's two files, by tiktoken from r50k's ranks. Peers that read a
tokenizer.json are given the "ByteLevel" form of GPT-2's pattern, which tokie knows best. Ends with status 1 when ids of
ours differ from tiktoken's.
"""

import base64
import hashlib
import json
import lzma
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizer_peers import (
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

LATER_PASSES = 5
LATER_SECONDS = 8.0
"""After the first of the later passes no other is begun once so much time has passed."""
NUMBERS = [" ".join(str(number) for number in range(first, first + 25_000)) for first in range(0, 250_000, 25_000)]
WARM_UP = ["1" * 100_000, *NUMBERS]
"""One piece so long that our compiled loops are loaded for it, and text for them."""

Encoder = Callable[[Sequence[str]], Any]
Ids = npt.NDArray[np.uint32]
Ready = tuple[Encoder, Callable[[Any], list[Ids]]]
"""What encodes texts, and what turns its result into the ids of each text, which is not timed."""


def ours(vocabulary: dict[str, str], batch: bool, threads: int) -> Ready:
    """Change this when the interface changes: the fastest way from strings to ids."""
    import pyarrow as pa

    from groundup.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(vocabulary["ours"])

    def encode(texts: Sequence[str]) -> Any:
        return tokenizer.encode_documents(pa.array(texts, pa.large_string()))

    if batch:
        return encode, lambda found: np.split(found[0], found[1][1:-1])
    return lambda texts: [encode([text]) for text in texts], lambda found: [ids for ids, _ in found]


def ours_as_lists(vocabulary: dict[str, str], batch: bool, threads: int) -> Ready:
    from groundup.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(vocabulary["ours"])
    if batch:
        return tokenizer.encode_batch, arrays
    return lambda texts: [tokenizer.encode(text) for text in texts], arrays


def tiktoken(vocabulary: dict[str, str], batch: bool, threads: int) -> Ready:
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    lines = Path(vocabulary["ranks"]).read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split(" ") for line in lines)}
    encoding = tiktoken.Encoding("measured", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    if batch:
        return partial(encoding.encode_ordinary_batch, num_threads=threads), arrays
    return lambda texts: [encoding.encode_ordinary(text) for text in texts], arrays


def tokenizers(vocabulary: dict[str, str], batch: bool, threads: int) -> Ready:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(vocabulary["json"])
    encode: Encoder = partial(tokenizer.encode_batch_fast, add_special_tokens=False)
    if not batch:
        return (lambda texts: [encode([text])[0] for text in texts]), lambda found: arrays([one.ids for one in found])
    return encode, lambda found: arrays([one.ids for one in found])


def tokie(vocabulary: dict[str, str], batch: bool, threads: int) -> Ready:
    import tokie

    tokenizer = tokie.Tokenizer.from_json(vocabulary["json"])
    if batch:
        return partial(tokenizer.encode_batch_flat, add_special_tokens=False), lambda found: np.split(
            found[0], np.cumsum(found[1])[:-1].astype(np.int64)
        )
    encode = partial(tokenizer.encode, add_special_tokens=False)
    return lambda texts: [encode(text) for text in texts], lambda found: arrays([one.ids for one in found])


def gigatok(vocabulary: dict[str, str], batch: bool, threads: int) -> Ready:
    import gigatok

    tokenizer = gigatok.Tokenizer(vocabulary["json"])
    encode = tokenizer.encode_batch if batch else (lambda texts: [tokenizer.encode(text) for text in texts])
    return encode, lambda found: [np.asarray(one) for one in found]


def arrays(lists: Sequence[Sequence[int]]) -> list[Ids]:
    return [np.asarray(ids, np.uint32) for ids in lists]


ENCODERS: dict[str, Callable[[dict[str, str], bool, int], Ready]] = {
    "ours": ours,
    "ours, as lists": ours_as_lists,
    "tiktoken": tiktoken,
    "tokenizers": tokenizers,
    "tokie": tokie,
    "gigatok": gigatok,
}
SETUPS = {"one by one, 1 thread": (False, 1), "batch, 1 thread": (True, 1), "batch, 2 threads": (True, 2)}


def measure(
    encoder: str, vocabulary: dict[str, str], batch: bool, threads: int, parquet: str, n_bytes: int
) -> dict[str, Any]:
    """Seconds of the first call and of each pass, and a digest of each document's ids; with `n_bytes` 0 only the
    former."""
    texts = texts_of(Path(parquet), n_bytes)
    encode, ids_of = ENCODERS[encoder](vocabulary, batch, threads)
    began = time.perf_counter()
    encode(WARM_UP)
    first_call = time.perf_counter() - began
    if not texts:
        return {"first_call": first_call}
    passes: list[float] = []
    while len(passes) < 2 or (len(passes) <= LATER_PASSES and sum(passes[1:]) < LATER_SECONDS):
        began = time.perf_counter()
        found = encode(texts)
        passes.append(time.perf_counter() - began)
        if len(passes) == 1:
            ids = [np.ascontiguousarray(one, np.uint32) for one in ids_of(found)]
        del found
    return {
        "first_call": first_call,
        "passes": passes,
        "digests": [hashlib.sha256(one.tobytes()).hexdigest()[:16] for one in ids],
        "tokens": sum(map(len, ids)),
        "bytes": sum(len(text.encode()) for text in texts),
    }


def vocabularies(folder: Path, published: Path, sizes: Sequence[int], scratch: Path) -> dict[str, dict[str, str]]:
    """For each vocabulary the files that ours, tiktoken and the others are given."""
    gpt2, ranks = published / "gpt2", published / "r50k_base.tiktoken.xz"
    learned = {size: folder / f"tokenizer-{size}.json" for size in sizes}
    refuse_missing_files(gpt2, ranks, remedy="give the folder that holds GPT-2's files and r50k's ranks as --published")
    refuse_missing_files(*learned.values(), remedy="learn them with bench/tokenizer_learning.py")
    found = {"GPT-2's, 50,257 ids": {"ours": str(gpt2), **files_for_peers(gpt2, scratch / "gpt2")}}
    (scratch / "gpt2.ranks").write_bytes(lzma.decompress(ranks.read_bytes()))
    for size, path in learned.items():
        found[f"learned, {size:,} ids"] = {"ours": str(path), **files_for_peers(path, scratch / str(size))}
    return found


def files_for_peers(path: Path, to: Path) -> dict[str, str]:
    """tokenizer.json with the pattern as "ByteLevel", and tiktoken's ranks."""
    from groundup.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    content = tokenizer.to_hugging_face()
    content["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
    }  # fmt: skip
    to.with_suffix(".json").write_text(json.dumps(content))
    special = set(tokenizer.special.values())
    lines = [f"{base64.b64encode(token).decode()} {i}" for i, token in enumerate(tokenizer.tokens) if i not in special]
    to.with_suffix(".ranks").write_text("\n".join(lines))
    return {"json": str(to.with_suffix(".json")), "ranks": str(to.with_suffix(".ranks"))}


def main() -> None:
    answer_alone(measure)
    parser = parser_of(__doc__)
    parser.add_argument("--bytes", type=int, default=20_000_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[16_384, 32_768])
    parser.add_argument("--published", type=Path, default=Path("../shared/data/tokenizers"))
    peers = [name for name in ENCODERS if not name.startswith("ours")]
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers)
    arguments = parser.parse_args()
    peers = [name for name in peers if name in arguments.peers or name == "tiktoken"]
    refuse_missing_peers(peers)
    parquet = arguments.folder / "documents.parquet"
    refuse_missing_files(parquet, remedy="make it with bench/tokenizer_text.py")
    print(f"Encoding {arguments.bytes / 1e6:.1f} MB, {arguments.rounds} rounds.\n{this_machine(peers)}")
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for vocabulary, files in vocabularies(arguments.folder, arguments.published, arguments.sizes, scratch).items():
            request = {"vocabulary": files, "parquet": str(parquet), "n_bytes": arguments.bytes}
            encoders = [name for name in ENCODERS if name.startswith("ours") or name in peers]
            answers = rounds(request, encoders, arguments.rounds, scratch)
            print(f"\n**{vocabulary}**\n")
            wrong += show(answers, encoders, vocabulary)
    if wrong:
        sys.exit(f"ids of ours differ from tiktoken's: {'; '.join(wrong)}")


def rounds(
    request: dict[str, Any], encoders: Sequence[str], n_rounds: int, scratch: Path
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The answers of each encoder in each setup, a round each; `("ours", "nothing compiled")` has first calls only."""
    compiled = scratch / "compiled"
    for batch, threads in SETUPS.values():  # compiles; not counted
        alone(__file__, {**request, "encoder": "ours", "batch": batch, "threads": threads}, threads, compiled)
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(n_rounds):
        for setup, (batch, threads) in SETUPS.items():
            for encoder in encoders:
                asked = {**request, "encoder": encoder, "batch": batch, "threads": threads}
                answer = alone(__file__, asked, threads, compiled)
                answers.setdefault((encoder, setup), []).append(answer)
                print(f"{encoder}, {setup}: {answer['bytes'] / 1e6 / answer['passes'][0]:.1f} MB/s", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=scratch) as nothing:
            asked = {**request, "encoder": "ours", "batch": True, "threads": 2, "n_bytes": 0}
            answers.setdefault(("ours", "nothing compiled"), []).append(alone(__file__, asked, 2, Path(nothing)))
    return answers


def show(answers: dict[tuple[str, str], list[dict[str, Any]]], encoders: Sequence[str], vocabulary: str) -> list[str]:
    """Print the tables of one vocabulary; returns in which setups ids of ours are not tiktoken's."""
    reference = answers["tiktoken", next(iter(SETUPS))][0]
    speed_rows, ratio_rows, wrong = [], [], []
    for encoder in encoders:
        speeds, ratios, equal = [encoder], [encoder], len(reference["digests"])
        for setup in SETUPS:
            found, our = answers[encoder, setup], answers["ours", setup]
            first = [answer["passes"][0] for answer in found]
            later = [statistics.median(answer["passes"][1:]) for answer in found]
            size = reference["bytes"] / 1e6
            speeds.append(f"{size / statistics.median(first):.1f} / {size / statistics.median(later):.1f}")
            of_first = median_ratio(first, [answer["passes"][0] for answer in our])
            of_later = median_ratio(later, [statistics.median(answer["passes"][1:]) for answer in our])
            ratios.append(f"{of_first:.2f} / {of_later:.2f}")
            for answer in found:
                pairs = zip(answer["digests"], reference["digests"], strict=True)
                equal = min(equal, sum(a == b for a, b in pairs))
        first_call = statistics.median(answer["first_call"] for answer in answers[encoder, "batch, 2 threads"])
        peak = max(answer["peak_bytes"] for setup in SETUPS for answer in answers[encoder, setup])
        speeds += [f"{first_call * 1e3:,.0f}", f"{peak / 2**20:,.0f}", f"{equal:,} of {len(reference['digests']):,}"]
        speed_rows.append(speeds)
        ratio_rows.append(ratios)
        if encoder.startswith("ours") and equal < len(reference["digests"]):
            wrong.append(f"{encoder}, {vocabulary}: {len(reference['digests']) - equal} documents")
    print_table(
        ["MB/s, first pass / later ones", *SETUPS, "first call, ms", "peak, MiB", "documents as tiktoken's"], speed_rows
    )
    print()
    print_table(["ours is … times as fast as", *SETUPS], ratio_rows[1:])
    compiling = statistics.median(answer["first_call"] for answer in answers["ours", "nothing compiled"])
    tokens = reference["tokens"]
    print(
        f"\n{reference['bytes']:,} bytes, {len(reference['digests']):,} documents, {tokens:,} tokens. "
        f"Our first call with nothing compiled: {compiling:.1f} s."
    )
    return wrong


if __name__ == "__main__":
    main()
