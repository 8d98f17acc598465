"""Benchmark files: found under a person's directory, checked, and read."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Files:
    """Where a person keeps benchmark files."""

    directory: Path
