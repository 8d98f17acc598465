"""Runs commands, in this process and in one of their own, in a folder with a finished run."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup import __main__ as entrance
from groundup.cli.app import main
from groundup.tokenizer.tokenizer import Tokenizer

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, finished_home: Path) -> Path:
    """A folder with a finished run, and a tokenizer beside it."""
    home = Path(shutil.copytree(finished_home, tmp_path_factory.mktemp("built") / "home"))
    Tokenizer.learn(["the fox"], vocab_size=320).save(home / "other.json")
    return home


@pytest.fixture(scope="session", name="run")
def run_here() -> Callable[..., Done]:
    """What a command prints and how it ends, without the seconds that a process of its own takes to begin."""
    return _run


def _run(*arguments: object, cwd: Path | None = None, stdin: str = "") -> Done:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", [entrance.__file__, *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setenv("COLUMNS", "200")
            patch.setattr("groundup.cli.terminal.SECONDS_BETWEEN_LINES", float("inf"))  # how far it is
            patch.chdir(cwd or Path())
            main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    told = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return Done(arguments, int(ended.value.code or 0), *told)


@pytest.fixture(scope="session")
def run_apart() -> Callable[..., Done]:
    """The same, in a process of its own."""
    return _run_apart


def _run_apart(*arguments: object, cwd: Path | None = None, stdin: str | None = None) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "groundup", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
