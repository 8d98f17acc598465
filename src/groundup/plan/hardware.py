"""Hardware: what this machine is and how fast it trains, measured or looked up without torch."""

import re
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from groundup.machine import available_cores, query_gpu, total_memory
from groundup.words import plural

UNKNOWN_GPU_FLOPS = 50e12
"""Peak assumed for a GPU that is not in `hardware.toml`: that of a modest one."""


@dataclass(frozen=True)
class Machine:
    """A device that trains, and the memory it has for that."""

    name: str
    is_cpu: bool
    memory_bytes: int
    peak_flops: float
    """Peak FLOPs a second of matmuls: measured in float32 on a CPU, published for bfloat16 on a GPU."""
    best_share: float
    """Share of the peak that training reaches with very wide models."""
    half_width: float
    """The width at which training reaches half of `best_share`."""
    is_measured: bool
    """Whether this kind of machine was one on which `best_share` was measured."""

    def training_flops(self, d_model: int) -> float:
        """FLOPs a second in training. Narrow models spend more of their time outside of matmuls."""
        return self.peak_flops * self.best_share * d_model / (d_model + self.half_width)


def this_machine() -> Machine:
    """The first GPU that `nvidia-smi` tells of, else the CPU."""
    return _gpu() or _cpu()


def gpus() -> dict[str, dict[str, float]]:
    """Of each kind of GPU that is known, `flops` a second of dense matmuls in half precision, and bytes of `memory`."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def _gpu() -> Machine | None:
    values = query_gpu("name", "memory.total")
    if values is None or not values[1].isdigit():
        return None
    name, memory = values[0], int(values[1]) * 2**20
    words = (gpu["flops"] for part, gpu in gpus().items() if re.search(rf"\b{re.escape(part)}\b", name))
    # A quarter of the peak is what plain PyTorch code often reaches; not measured with this project.
    return Machine(name, False, memory, next(words, UNKNOWN_GPU_FLOPS), 0.25, 512, is_measured=False)


def _cpu() -> Machine:
    cores, memory = available_cores(), total_memory()
    # Measured with bench/proposed_speed.py. More than one, as bfloat16 matmuls are faster than float32 ones.
    best_share, half_width = (4.0, 300) if _multiplies_bfloat16() else (0.8, 110)
    name = f"{plural(cores, 'CPU core')}, {memory / 1e9:.0f} GB"
    return Machine(name, True, memory, _matmul_flops(), best_share, half_width, is_measured=True)


def _multiplies_bfloat16() -> bool:
    """Whether the processor lists instructions for it: known on Linux with x86 or ARM, elsewhere taken for no."""
    described = Path("/proc/cpuinfo")
    words = set(described.read_text("utf-8").split()) if described.is_file() else set()
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def _matmul_flops(size: int = 1024, seconds: float = 0.3) -> float:
    """FLOPs a second of NumPy's float32 matmul, the best of those that fit into `seconds`."""
    left = np.ones((size, size), np.float32)
    right = left.copy()
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best
