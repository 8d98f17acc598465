"""Every command under every surrounding: no traceback, the right exit code, the same digests.

    python bench/surroundings.py        # 25 commands under 21 surroundings, about 13 minutes on two cores

Locales, optimised Python, closed streams and broken pipes, homes and working directories that are missing or read-only,
paths of odd characters. Prints what is wrong and exits with 1, or says that all is well. tests/test_surroundings.py
runs some of the pairs in every test run. Needs root (it mounts) and `localedef` with its sources.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

SHORT = ["pretrain.steps=2", "pretrain.validate_every=2", "pretrain.sample_every=2", "evals.sampling.max_tokens=2"]
COMMANDS = {
    "new": ["new", "mine", "--from", "tales"],
    "build": ["build", "tiny.toml", *SHORT, "--run", "made/build"],
    "corpus": ["corpus", "tiny.toml", "--run", "made/corpus"],
    "tokenizer": ["tokenizer", "tiny.toml", "--run", "runs/tiny"],
    "pack": ["pack", "tiny.toml", "--run", "runs/tiny"],
    "pretrain": ["pretrain", "tiny.toml", "--run", "runs/tiny"],
    "eval": ["eval", "runs/tiny", "tales/00.txt"],
    "generate": ["generate", "runs/tiny", "The king", "max_tokens=3", "temperature=9"],
    "chat": ["chat", "runs/tiny", "max_tokens=3"],
    "inspect": ["inspect", "runs/tiny"],
    "sweep": ["sweep", "tiny.toml", "pretrain.optimizer.learning_rate=0.001,0.002", *SHORT[1:], "--steps", "2"],
    "bench": ["bench", "runs/tiny", "--steps", "1"],
    "report": ["report", "runs/tiny"],
    "watch": ["watch", "runs", "--port"],
    "compare": ["compare", "runs/tiny", "runs/other"],
    "doctor": ["doctor", "tiny.toml", "--quick"],
    "tokens show": ["tokens", "show", "runs/tiny", "The “king”"],
    "tokens compare": ["tokens", "compare", "runs/tiny", "learned.json", "--text", "tales"],
    "tokens advise": ["tokens", "advise", "tales", "--size", "10k", "--max-vocab", "512"],
    "tokens convert": ["tokens", "convert", "runs/tiny", "made/tokenizer.json"],
    "tokens extend": ["tokens", "extend", "runs/tiny", "--add", " queenly", "--out", "made/extended"],
    "checkpoint list": ["checkpoint", "list", "runs/tiny"],
    "checkpoint verify": ["checkpoint", "verify", "runs/tiny"],
    "checkpoint diff": ["checkpoint", "diff", "runs/tiny", "runs/other"],
    "checkpoint average": ["checkpoint", "average", "runs/tiny", "--out", "made/mean"],
}
WRITES_HERE = {"new", "build", "corpus", "sweep", "tokens convert", "tokens extend", "checkpoint average", "report",
               "compare", "doctor", "tokenizer", "pack", "pretrain"}  # fmt: skip
"""Commands that write below the working directory."""


@dataclass(frozen=True)
class Surrounding:
    """How a command is started."""

    environment: dict[str, str | None] = field(default_factory=dict)
    """None takes a variable away."""
    closed: tuple[int, ...] = ()
    """Descriptors that are closed."""
    unread: tuple[int, ...] = ()
    """Descriptors that are pipes whose other end is closed."""
    locale: tuple[str, str] | None = None
    """Its name and its character set."""
    folder: str | bytes = "home"
    """What the working directory is called."""
    named: bool = False
    """Whether the command runs elsewhere, and names the folder in its paths."""
    read_only: bool = False
    """Whether the working directory, and HOME in it, can only be read."""
    gone: bool = False
    """Whether the working directory was removed."""

    def exit_code(self, command: str) -> int:
        if self.gone:
            return 4
        if self.named and isinstance(self.folder, bytes):
            return 2  # names that are not UTF-8 are refused
        return 4 if self.read_only and command in WRITES_HERE else 0


SURROUNDINGS = {
    "locale C": Surrounding({"LC_ALL": "C"}),
    "locale POSIX": Surrounding({"LC_ALL": "POSIX"}),
    "C without UTF-8": Surrounding({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "Latin-1": Surrounding(locale=("en_US", "ISO-8859-1")),
    "GBK": Surrounding(locale=("zh_CN", "GBK")),
    "python -O": Surrounding({"PYTHONOPTIMIZE": "1"}),
    "no stderr": Surrounding(closed=(2,)),
    "no stdin": Surrounding(closed=(0,)),
    "no stdout": Surrounding(closed=(1,)),
    "python -OO": Surrounding({"PYTHONOPTIMIZE": "2"}),
    "no streams": Surrounding(closed=(0, 1, 2)),
    "stdout unread": Surrounding(unread=(1,)),
    "stderr unread": Surrounding(unread=(2,)),
    "no HOME": Surrounding({"HOME": None}),
    "HOME missing": Surrounding({"HOME": "/nowhere/at/all"}),
    "read-only": Surrounding(read_only=True),
    "folder gone": Surrounding(gone=True),
    "space in the path": Surrounding(folder="my texts and runs", named=True),
    "line end in the path": Surrounding(folder="two\nlines", named=True),
    "path not UTF-8": Surrounding(folder=b"lat\xe9", named=True),
    "folder not UTF-8": Surrounding(folder=b"lat\xe9"),
}


def main() -> None:
    from kills import RECIPE, write_texts  # beside this file; not on the path of the tests, which bring their own run

    with tempfile.TemporaryDirectory() as folder:
        finished = Path(folder, "finished")
        finished.mkdir()
        write_texts(finished)
        (finished / "tiny.toml").write_text(RECIPE.format(steps=40, precision="float32"))
        subprocess.run([sys.executable, "-m", "groundup", "build", "tiny.toml"], cwd=finished, check=True)
        home = prepare(finished, Path(folder, "home"))
        locales = make_locales(Path(folder, "locales"))
        pairs = [(command, name) for name in SURROUNDINGS for command in COMMANDS]
        with ThreadPoolExecutor(2) as pool:
            places = [Path(folder, str(number)) for number in range(len(pairs))]
            wrong = pool.map(lambda pair, place: check(*pair, home, place, locales), pairs, places)
            faults = list(filter(None, wrong))
    print(*faults, sep="\n\n")
    sys.exit(f"{len(faults)} of {len(pairs)} pairs are wrong" if faults else None)


def prepare(finished: Path, home: Path) -> Path:
    """What the commands work on: a folder with a finished run of tiny.toml, two runs and a tokenizer beside them."""
    shutil.copytree(finished, home)
    shutil.copytree(home / "runs" / "tiny", home / "runs" / "other")
    shutil.copy(home / "runs" / "tiny" / "tokenizer" / "tokenizer.json", home / "learned.json")
    (home / "runs" / "tiny" / "report.html").unlink()
    (home / "made").mkdir()
    return home


def make_locales(place: Path) -> Path:
    """The folder with the locales that surroundings name.

    Raises:
        OSError: `localedef` or its sources are not here.
    """
    place.mkdir(exist_ok=True)
    for name, characters in (s.locale for s in SURROUNDINGS.values() if s.locale):
        command = ["localedef", "-i", name, "-f", characters, place / name]
        made = shutil.which("localedef") and subprocess.run(command, capture_output=True, check=False)
        if not (place / name).is_dir():
            raise OSError(f"needs localedef and its sources to make {name} in {characters}: {made}")
    return place


def renamed(words: list[str], folder: Path) -> list[bytes]:
    """The words with their paths below another folder."""
    there = {path.name for path in folder.iterdir()}
    return [
        os.fsencode(folder / word) if word.split("/")[0] in there or word.startswith("made/") else os.fsencode(word)
        for word in words
    ]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def stop_when_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with socket.socket() as asking:
            if asking.connect_ex(("127.0.0.1", port)) == 0:
                process.send_signal(signal.SIGINT)
                return
        time.sleep(0.05)


def start(command: str, surrounding: Surrounding, prepared: Path, place: Path, locales: Path | None) -> tuple[int, str]:
    """Run a command in a copy of what is prepared; its exit code, and what it said."""
    folder = place / os.fsdecode(surrounding.folder)
    shutil.copytree(prepared, folder)
    where = place if surrounding.named else folder
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if surrounding.locale:
        environment |= {"LOCPATH": str(locales), "LC_ALL": surrounding.locale[0]}
    else:
        environment |= {"LC_ALL": "C.UTF-8"}
    environment |= {name: value for name, value in surrounding.environment.items() if value is not None}
    for name in (name for name, value in surrounding.environment.items() if value is None):
        del environment[name]
    if surrounding.read_only:
        environment["HOME"] = str(folder)
        subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    words = COMMANDS[command]
    port = free_port()
    words = [*words, str(port)] if command == "watch" else words
    given = renamed(words, folder) if surrounding.named else [os.fsencode(word) for word in words]
    pipes = {number: os.pipe() for number in surrounding.unread}
    for reading, _ in pipes.values():
        os.close(reading)

    def before() -> None:
        for number in surrounding.closed:
            os.close(number)
        for number, (_, writing) in pipes.items():
            os.dup2(writing, number)
        if surrounding.gone:
            os.rename(folder, place / "moved")
            shutil.rmtree(place / "moved")

    process = subprocess.Popen(
        [sys.executable, "-m", "groundup", *given], cwd=where, env=environment, preexec_fn=before, close_fds=False,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    for _, writing in pipes.values():
        os.close(writing)
    if command == "watch":
        stop_when_it_answers(process, port)
    out, err = process.communicate(b"The king\n")
    return process.returncode, (out + err).decode("utf-8", "replace")


def check(command: str, name: str, prepared: Path, place: Path, locales: Path | None) -> str:
    """What is wrong, if anything is."""
    surrounding = SURROUNDINGS[name]
    place.mkdir()
    try:
        code, said = start(command, surrounding, prepared, place, locales)
        made = place / os.fsdecode(surrounding.folder) / "made"
        digests = sorted(json.dumps(stage(path)) for path in made.rglob("manifest.json")) if code == 0 else []
        if surrounding.exit_code(command) == 0 and command in ("build", "corpus") and not digests:
            said += "\nnothing was made"
    finally:
        if surrounding.read_only:
            subprocess.run(["umount", place / os.fsdecode(surrounding.folder)], check=True)
        shutil.rmtree(place)
    wrong = [hint for hint in ("Traceback", "bug in groundup", "Exception ignored", "nothing was made") if hint in said]
    expected = DIGESTS.setdefault(command, digests) if digests else []
    if code == surrounding.exit_code(command) and not wrong and digests == expected:
        return ""
    return f"{command} under {name}: {code}, not {surrounding.exit_code(command)}\n{said}\n{digests}\n{expected}"


DIGESTS: dict[str, list[str]] = {}
"""What each command made where it was run first."""


def stage(manifest: Path) -> list[object]:
    """The files of an artifact but those that hold times, with their digests."""
    table = json.loads(manifest.read_text("utf-8"))
    return [table["kind"], {name: value for name, value in table["files"].items() if name != "state.json"}]


if __name__ == "__main__":
    main()
