"""Beside whom is the tokenizer measured, and how is one of them run alone?

The other programs named tokenizer_*.py use this file. Each measurement is made in a fresh process that may use only so
many cores: they are asked for through the variables that the libraries read, and held to by the process's affinity.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

PEERS = {
    "tokenizers": ("tokenizers",),
    "tiktoken": ("tiktoken",),
    "rustbpe": ("rustbpe==0.1.0",),
    "gigabpe": ("gigabpe==0.1.0",),
    "gigatok": ("gigatok==0.2.0", "awkward==2.14.0", "awkward-cpp==57", "fsspec", "'importlib_metadata<9'", "zipp"),
    "tokie": ("tokie==0.1.4",),
    "bpeasy": ("bpeasy==0.1.6",),
}
"""Name of the library → what pip installs for it, without what it depends on beyond that."""
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Radford et al. 2019, encoder.py of the published code."""
N_NOT_MERGED = 256 + 16
"""Ids of a learned vocabulary of ours that no merge makes: bytes and special tokens."""


def refuse_missing_peers(names: Sequence[str]) -> None:
    """End with the line that installs what is missing of the peers named."""
    modules = {name: (name, "awkward") if name == "gigatok" else (name,) for name in names}
    absent = [name for name in names if any(importlib.util.find_spec(module) is None for module in modules[name])]
    if absent:
        wanted = [package for name in absent for package in PEERS[name]]
        sys.exit(f"missing, or missing what it needs: {', '.join(absent)}\npip install --no-deps {' '.join(wanted)}")


def refuse_missing_files(*paths: Path, remedy: str) -> None:
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        sys.exit(f"missing: {', '.join(absent)}; {remedy}")


def this_machine(names: Sequence[str]) -> str:
    """One sentence for the head of a table: processor, versions, date."""
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(": ", 1)[1]
            break
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"{processor}, Python {platform.python_version()}, {versions}; {date.today()}."


def texts_of(parquet: Path, n_bytes: int | None = None) -> list[str]:
    """The documents, or as many of the first ones as `n_bytes` of UTF-8 hold."""
    from groundup.corpus.document import read_texts

    if n_bytes is None:
        return list(read_texts(parquet))
    texts = []
    for text in read_texts(parquet):
        n_bytes -= len(text.encode())
        if n_bytes < 0:
            break
        texts.append(text)
    return texts


def alone(program: str, request: dict[str, Any], threads: int, numba_cache: Path | None = None) -> dict[str, Any]:
    """What `program --alone` answers to a request, and `process_seconds`, the wall-clock time of its whole process.

    Args:
        numba_cache: where numba keeps what it has compiled; an empty folder makes it compile first.
    """
    environment = os.environ | dict.fromkeys(
        ["RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"], str(threads)
    )
    environment["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    if numba_cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(numba_cache)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, program, "--alone", json.dumps({**request, "answer": str(answer), "cores": threads})]
        began = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        process_seconds = time.perf_counter() - began
        if done.returncode:
            sys.exit(f"{request} failed with exit status {done.returncode}:\n{done.stderr[-2_000:]}")
        return {**json.loads(answer.read_text()), "process_seconds": process_seconds}


def answer_alone(measure: Callable[..., dict[str, Any]]) -> None:
    """In the process that `alone` has started: keep to the cores, measure, and leave the answer; then end."""
    if "--alone" not in sys.argv:
        return
    request = json.loads(sys.argv[sys.argv.index("--alone") + 1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request.pop("cores")])
    answer = Path(request.pop("answer"))
    answer.write_text(json.dumps({**measure(**request), "peak_bytes": peak_bytes()}))
    sys.exit()


def peak_bytes() -> int:
    """The most memory this process has held. Not ru_maxrss, which begins with what the parent held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux tells VmHWM")


def parser_of(documentation: str | None, rounds: int = 3) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made by bench/tokenizer_text.py")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often each is measured, in turn ({rounds})")
    return parser


def median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median over rounds: what was measured a minute apart is compared, not what was measured an hour apart."""
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")
