"""How fast is the whole corpus stage, and how much memory does it take as the corpus grows?

    python bench/corpus_stage.py classics.jsonl.xz [--times 1 10 50] [--processes 2] [--near]

Writes so many different variants of the documents (letters changed by the variant's number, so that no two share a
word) to a .jsonl file, and makes a corpus of it in a process of its own, with the usual settings; with --near also near
duplicates. Prints MB/s from file to corpus, and the largest resident memory of the main process and of one of the
others, less the pages of files that are mapped: those the system takes back when it likes.
"""

import argparse
import json
import lzma
import string
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

STAGE = """
import sys
from functools import partial
from pathlib import Path
from groundup.artifacts import making
from groundup.corpus.executors import one_machine
from groundup.corpus.refine import refine
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import find

folder, processes, near = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
duplicates = [{"kind": "exact"}, {"kind": "near"}] if near else [{"kind": "exact"}]
settings = CorpusSettings.from_table({"sources": ["in.jsonl"], "duplicates": duplicates})
with making(folder / "corpus", "corpus", settings.table(), {}) as draft:
    refine(find(settings, folder), settings, draft, folder, executor=partial(one_machine, processes=processes))
"""


def write_variants(source: Path, target: Path, times: int) -> int:
    """The bytes of text written."""
    letters, n_bytes = string.ascii_lowercase, 0
    with target.open("w") as stream:
        for variant in range(times):
            turned = letters[variant % 26 :] + letters[: variant % 26]
            table = str.maketrans(letters + letters.upper(), turned + turned.upper())
            mark = "" if variant < 26 else letters[variant // 26] * 2
            with lzma.open(source, "rt") as lines:
                for line in lines:
                    text = json.loads(line)["text"].translate(table).replace(" ", f" {mark}")
                    n_bytes += len(text.encode())
                    stream.write(json.dumps({"text": text}) + "\n")
    return n_bytes


def resident(process: int) -> int:
    """Bytes of memory of its own that a process holds."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def children(process: int) -> list[int]:
    """Those that any of its threads started."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    try:
        return [int(child) for each in lists for child in each.read_text().split()]
    except OSError:
        return []


def measure(folder: Path, processes: int, near: bool) -> tuple[float, int, int]:
    """Seconds, and the largest memory of the main process and of one of the others."""
    stage = subprocess.Popen([sys.executable, "-c", STAGE, folder, str(processes), str(near)])
    most, ended = [0, 0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            others = children(stage.pid)
            most[:] = max(most[0], resident(stage.pid)), max([most[1], *map(resident, others)])

    thread, began = threading.Thread(target=watch), time.perf_counter()
    thread.start()
    code = stage.wait()
    seconds = time.perf_counter() - began
    ended.set()
    thread.join()
    assert code == 0
    return seconds, most[0], most[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--near", action="store_true")
    arguments = parser.parse_args()
    print("| documents of text | MB/s | main process | one of the others |")
    print("|---|---|---|---|")
    for times in arguments.times:
        with tempfile.TemporaryDirectory() as folder:
            n_bytes = write_variants(arguments.source, Path(folder) / "in.jsonl", times)
            seconds, main_bytes, other_bytes = measure(Path(folder), arguments.processes, arguments.near)
        speed = f"{n_bytes / seconds / 1e6:.1f} | {main_bytes / 1e6:,.0f} MB | {other_bytes / 1e6:,.0f} MB |"
        print(f"| {times} × {n_bytes / times / 1e6:.0f} MB | {speed}", flush=True)


if __name__ == "__main__":
    main()
