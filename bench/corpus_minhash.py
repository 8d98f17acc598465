"""How fast are MinHash signatures made, beside rensa and datasketch, and how fast is the rest of deduplication?

    python bench/corpus_minhash.py FILE.jsonl[.xz] [--documents 2000] [--rounds 5] [--memory 500000000]

Texts in memory, cut into pieces of 6,600 characters; one thread. 112 hash functions over runs of 5 words, text in,
signature out. For the peers words are found by a regular expression, in Python, as their users do. All in turn, a few
rounds; shown are medians, and ours by the same round's. pip install rensa datasketch; without them ours is shown alone.

Then the whole text once: each kind's fingerprint, and what is decided of it.
"""

import argparse
import importlib.util
import json
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from groundup.corpus import near
from groundup.corpus.duplicates import Standing, decide, fingerprint, shared_passages
from groundup.corpus.settings import Exact, HeldOut, Lines, Near, Substrings
from groundup.files import reading

PIECE, FUNCTIONS, PART = 6_600, 112, 1_000
_WORDS = re.compile(r"\w+")


def shingles(text: str) -> list[str]:
    words = _WORDS.findall(text.lower())
    return [" ".join(words[i : i + 5]) for i in range(len(words) - 4)]


def by_rensa(kind: str) -> Callable[[str], Any]:
    made = getattr(__import__("rensa"), kind)

    def sign(text: str) -> Any:
        minhash = made(FUNCTIONS, 0)
        minhash.update(shingles(text))
        return minhash.digest()

    return sign


def by_datasketch(text: str) -> Any:
    from datasketch import MinHash

    minhash = MinHash(FUNCTIONS)
    minhash.update_batch([shingle.encode() for shingle in shingles(text)])
    return minhash.digest()


def documents_per_second(sign: Callable[[str], Any], texts: list[str]) -> float:
    started = time.perf_counter()
    for text in texts:
        sign(text)
    return len(texts) / (time.perf_counter() - started)


def compare(texts: list[str], rounds: int) -> None:
    signers: dict[str, tuple[Callable[[str], Any], int]] = {
        "ours": (lambda text: near.signature(text, Near()), len(texts))
    }
    if importlib.util.find_spec("rensa"):
        signers |= {f"rensa {kind}": (by_rensa(kind), len(texts) // 4) for kind in ("RMinHash", "CMinHash")}
    if importlib.util.find_spec("datasketch"):
        signers["datasketch"] = (by_datasketch, len(texts) // 10)
    near.signature("to compile it", Near())
    speeds = [
        {name: documents_per_second(sign, texts[:n]) for name, (sign, n) in signers.items()} for _ in range(rounds)
    ]
    size = sum(len(text.encode()) for text in texts) / len(texts) / 1e6
    for name in signers:
        speed = statistics.median(each[name] for each in speeds)
        ratio = statistics.median(each["ours"] / each[name] for each in speeds)
        print(f"{name:16} {speed:9,.0f} documents/s {speed * size:7.1f} MB/s   ours is {ratio:5.1f} times as fast")


def decide_all(texts: list[str], memory: int) -> None:
    n_bytes = sum(len(text.encode()) for text in texts)
    parts = [texts[first : first + PART] for first in range(0, len(texts), PART)]
    for kind in (Exact(), Near(), Lines(), Substrings(), HeldOut()):
        fingerprint(["to compile it"], kind)
        with tempfile.TemporaryDirectory() as name:
            files = [Path(name, f"{number}.npy") for number in range(len(parts))]
            started = time.perf_counter()
            for file, part in zip(files, parts, strict=True):
                np.save(file, fingerprint(part, kind))
            between = time.perf_counter()
            on_disk = sum(file.stat().st_size for file in files)
            standing = Standing([*map(len, parts)], np.array([len(text) for text in texts], np.int64))
            if isinstance(kind, HeldOut):
                held_out = np.random.default_rng(0).random(len(texts)) < 0.1
                shared = shared_passages(files, standing, held_out, kind, memory)
                found = f"{shared.copies.sum():,} copies of {held_out.sum():,} held-out documents"
            else:
                decide(files, kind, standing, memory, texts.__getitem__)
                cut = int(np.diff(standing.cuts, axis=0).sum())
                found = f"{(~standing.alive).sum():,} documents dropped, {cut:,} bytes cut"
            ended = time.perf_counter()
        print(
            f"{kind.kind:12} fingerprint {n_bytes / 1e6 / (between - started):5.0f} MB/s, {on_disk / n_bytes:6.3f} B "
            f"a B; decided {n_bytes / 1e6 / (ended - between):6.0f} MB/s: {found}"
        )
    print(f"most memory, texts included: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=500_000_000)
    asked = parser.parse_args()
    with reading(asked.file) as stream:
        whole = [json.loads(line)["text"] for line in stream]
    pieces = [text[at : at + PIECE] for text in whole for at in range(0, len(text), PIECE)]
    compare(pieces[: asked.documents], asked.rounds)
    decide_all(pieces, asked.memory)
