"""The log of a run."""

import re
from pathlib import Path

import pytest

from groundup.train.log import most_memory


def test_memory_is_the_most_that_the_system_saw() -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs Linux's /proc")
    highest = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert highest is not None
    assert most_memory() == pytest.approx(int(highest[1]) * 1024, rel=0.01)
