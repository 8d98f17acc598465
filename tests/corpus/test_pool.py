"""Processes of a corpus: results in order, a killed one known by its task, and no guard needed in a script."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from groundup.corpus.pool import KilledError, Pool


@pytest.fixture
def square(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that the other processes find as well."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("killing").square


def test_results_come_in_order_and_killed_tasks_are_done_otherwise(square: Any) -> None:
    with Pool(square, 2, seconds=2) as pool:
        assert list(pool.map(range(7), otherwise=lambda task: -task)) == [0, 1, 4, -3, 16, -5, 36]


def test_an_error_comes_out_where_the_result_would(square: Any) -> None:
    with Pool(square, 1) as pool:
        results = pool.map([1, 7, 2])
        assert next(results) == 1
        with pytest.raises(ValueError, match="seven"):
            next(results)


def test_a_task_that_kills_every_process_is_an_error_if_nothing_else_can_do_it(square: Any) -> None:
    with Pool(square, 1) as pool, pytest.raises(KilledError):
        list(pool.map([3]))


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from groundup.corpus.pool import Pool\nwith Pool(abs, 2) as pool:\n print(*pool.map([-1, 2]))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1 2\n", "")
