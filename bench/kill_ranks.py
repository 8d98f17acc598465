"""Do ranks that are killed at 50 random moments end with the weights of the run that never was?

    python bench/kill_ranks.py --kills 50

A tiny recipe is built by two ranks without interruption, then again and again while one rank, both, or the process that
started them get SIGKILL at random moments, saves included. Ranks are started again by that process, up to three times,
and then by a new one. What is compared at the end: every byte of the weights, every loss, validation and sample.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kills import RECIPE, compare, is_finished, steps_written, write_texts

LAYOUT = ["--ranks", "2", "parallel.shard=2"]
WHO = ("one rank", "one rank", "both ranks", "who started them")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; another one each time if not given")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 30) if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory() as folder:
        hits = kill_and_compare(Path(folder), arguments.kills, arguments.steps, random.Random(seed))
    print(f"{sum(hits.values())} kills (--seed {seed}), {arguments.steps} steps:", dict(hits))
    print("weights, losses, validations and samples: those of the unbroken run, bit for bit")


def kill_and_compare(home: Path, kills: int, steps: int, draw: random.Random) -> Counter[str]:
    """How often who was killed.

    Raises:
        AssertionError: when the killed run is not the unbroken one.
    """
    write_texts(home)
    (home / "tiny.toml").write_text(RECIPE.format(steps=steps, precision="float32"))
    told, _ = (whole := start(home, "unbroken")).communicate()
    assert whole.returncode == 0, told
    run, hits = home / "killed", Counter[str]()
    process = start(home, "killed")
    while sum(hits.values()) < kills:
        before = steps_written(run)
        while steps_written(run) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.5)
        if process.poll() is None and (ranks := ranks_of(process.pid)):
            who = draw.choice(WHO)
            kill({"one rank": [draw.choice(ranks)], "both ranks": ranks}.get(who, [process.pid]))
            hits[who] += 1
        if process.poll() is not None:
            process = again(process, home, run)
    while process.wait() != 0:
        process = again(process, home, run)
    compare(run, home / "unbroken")
    return hits


def start(home: Path, run: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "groundup", "build", "tiny.toml", "--run", run, *LAYOUT]
    around = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=around)


def again(process: "subprocess.Popen[bytes]", home: Path, run: Path) -> "subprocess.Popen[bytes]":
    """Start a run again that ended; from its beginning if it was finished."""
    assert process.returncode in (0, 4, -signal.SIGKILL), f"ended in {process.returncode}"
    if is_finished(run):
        compare(run, home / "unbroken")
        shutil.rmtree(run)
    return start(home, run.name)


def ranks_of(process: int) -> list[int]:
    """The processes that this one started as ranks."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def kill(processes: list[int]) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
