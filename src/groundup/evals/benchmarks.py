"""Benchmark files: found under a person's directory, checked, and read."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Files:
    """Where a person keeps benchmark files."""

    directory: Path
    read: dict[str, str] = field(default_factory=dict)
    """Name of each file that was read → its form."""
