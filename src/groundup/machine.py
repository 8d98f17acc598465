"""What this machine has and uses: cores, memory, energy. torch is imported only where a GPU is asked."""

import contextlib
import ctypes
import gc
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WATTS_PER_CORE = 10
"""Assumed where the machine does not tell: servers' processors draw 4 to 10 a core under load."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as far as the system tells."""
    lines = _read("/proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def query_gpu(*fields: str) -> list[str] | None:
    """What `nvidia-smi` says of the first GPU, one value a field; None if it knows of none.

    Args:
        fields: as `nvidia-smi --help-query-gpu` lists them, such as `name` and `memory.total`.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in answer.partition("\n")[0].rsplit(",", len(fields) - 1)]
    return values if len(values) == len(fields) and all(values) else None


def total_memory(device: "torch.device | None" = None) -> int:
    """Bytes of memory of a GPU, else of the machine or of what a container was given of it."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[1])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(memory, int(limit)) if limit.isdigit() else memory


def peak_memory(device: "torch.device | None" = None) -> int:
    """The most bytes in use so far: handed out by torch on a GPU, else held by this process."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: "torch.device") -> int | None:
    """Let `peak_memory` count anew from the bytes in use now, which are returned; None where the system cannot."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    give_back_freed_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # begins VmHWM anew: proc(5)
        return _status_bytes("VmRSS") or None
    return None


def give_back_freed_memory() -> None:
    """Return freed memory to the system, so that what the process holds is what it uses."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(name: str) -> int:
    """A field of Linux's /proc/self/status; 0 where there is none."""
    fields = dict(line.split(":", 1) for line in _read("/proc/self/status").splitlines() if ":" in line)
    return int(fields.get(name, "0").split()[0]) * 1024


def _read(path: str) -> str:
    """What Linux tells in a file; nothing where there is no such file."""
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def allocator() -> str:
    """The library that hands out memory on the CPU: the C library, or one loaded before it."""
    loaded = _read("/proc/self/maps")
    others = [name for name in ("tcmalloc", "jemalloc", "mimalloc") if f"lib{name}" in loaded]
    return others[0] if others else platform.libc_ver()[0] or "of the system"


def power_limit(device: "torch.device") -> tuple[float, str]:
    """Watts that a GPU or processor may draw, and where the number is from."""
    if device.type == "cuda" and (values := query_gpu("power.limit")) and values[0].replace(".", "").isdigit():
        return float(values[0]), "the GPU's limit"
    limit = _read("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw").strip()
    if limit.isdigit():
        return int(limit) / 1e6, "the processor's limit"
    watts = float(WATTS_PER_CORE * (os.cpu_count() or 1))
    return watts, f"assumed: {WATTS_PER_CORE} per core; set it with --watts"


def rank_and_world_size() -> tuple[int, int] | None:
    """The number of this process among those that torchrun has started, and how many they are; None elsewhere."""
    import torch.distributed as dist
    from torch.distributed.elastic.utils.api import get_env_variable_or_raise

    if not dist.is_available() or not dist.is_torchelastic_launched():
        return None
    return int(get_env_variable_or_raise("RANK")), int(get_env_variable_or_raise("WORLD_SIZE"))
