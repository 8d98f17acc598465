"""What is told of this machine, and of a GPU that is not there."""

from pathlib import Path

import pytest

from groundup.plan.hardware import this_machine


def nvidia_smi(place: Path, answer: str) -> None:
    program = place / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)


def test_this_machine_has_cores_memory_and_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = this_machine()
    assert machine.is_cpu
    assert "CPU core" in machine.name
    assert 1e9 < machine.memory_bytes < 1e14
    assert 1e8 < machine.peak_flops < 1e15
    assert machine.training_flops(64) < machine.training_flops(1024)


def test_a_known_gpu_is_planned_by_its_published_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, "echo 'NVIDIA H200, 143771'")
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = this_machine()
    assert (machine.name, machine.is_cpu, machine.peak_flops) == ("NVIDIA H200", False, 989e12)
    assert machine.memory_bytes == 143_771 * 2**20
    assert not machine.is_measured


@pytest.mark.parametrize(("name", "flops"), [("RTX A1000", 50e12), ("NVIDIA L40", 181e12), ("Quadro T400", 50e12)])
def test_a_name_is_known_as_a_whole_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, flops: float
) -> None:
    nvidia_smi(tmp_path, f"echo '{name}, 8192'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (this_machine().name, this_machine().peak_flops) == (name, flops)


@pytest.mark.parametrize("answer", ["exit 9", "echo nonsense", "true"])
def test_without_a_gpu_the_cpu_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    nvidia_smi(tmp_path, answer)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert this_machine().is_cpu
