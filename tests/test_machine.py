"""What the machine says of itself."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from groundup.machine import available_cores, peak_memory, reset_peak_memory, total_memory

CPU = torch.device("cpu")


def test_peak_memory_is_the_most_that_the_system_saw() -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs Linux's /proc")
    highest = re.search(r"VmHWM:\s+(\d+) kB", status.read_text("utf-8"))
    assert highest is not None
    assert peak_memory() == pytest.approx(int(highest[1]) * 1024, rel=0.01)


def test_a_reset_peak_counts_only_what_is_taken_after_it() -> None:
    large = np.ones(50_000_000 // 8)
    del large
    before = reset_peak_memory(CPU)
    if before is None:
        pytest.skip("the peak cannot be reset here")
    kept = np.ones(20_000_000 // 8)
    assert 15_000_000 < peak_memory(CPU) - before < 40_000_000
    assert kept.any()


def test_the_machine_has_cores_and_more_memory_than_is_used() -> None:
    assert available_cores() >= 1
    assert peak_memory() < total_memory(CPU) == total_memory()
