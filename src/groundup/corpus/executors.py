"""What makes the parts of a corpus: processes on one machine, jobs on several, or Ray."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from groundup.corpus.parts import SECONDS, Batch, Refiner, batches, out_of_memory, part_path
from groundup.corpus.pool import Pool
from groundup.corpus.sources import Found, records
from groundup.errors import DataError, MissingError
from groundup.files import Progress, no_progress, sha256_of_file
from groundup.machine import available_cores

SMALL_BYTES = 4_000_000
"""Sources of fewer bytes are read in this process: others would take longer to begin."""
RUN_AGAIN = "Nothing was made of it; run the same command again when no other program writes to the sources"

Executor = Callable[[Found, Refiner, Mapping[str, str], Progress], None]
"""Makes the parts that are not there: (files, what makes a part, name of each file → its sha256, progress)."""


def one_machine(
    found: Found, refiner: Refiner, digests: Mapping[str, str], progress: Progress, processes: int | None = None
) -> None:
    """Make parts in processes of this machine.

    Args:
        digests: of the files whose parts are to be made.
        processes: 0 makes them here; as many as there are cores, if not given, and none for small sources.

    Raises:
        DataError: a source that cannot be read, or changed meanwhile.
    """
    sizes = [path.stat().st_size if path.exists() else 0 for _, path in found.files]  # reading says which are gone
    asked = [number for number, (name, _) in enumerate(found.files) if name in digests]
    marks = {number: all_there(refiner.folder, number, digests[found.files[number][0]]) for number in asked}
    left = [number for number in asked if not marks[number].exists()]
    total, to_do = (sum(sizes[number] for number in numbers) for numbers in (asked, left))
    if processes is None:
        processes = 0 if to_do < SMALL_BYTES else available_cores()
    ended, in_file, kept, dropped = total - to_do, 0, 0, 0
    progress(ended, total, "")
    with Pool(refiner, processes, SECONDS) as pool:
        for made in pool.map(_read(found, refiner, digests, left), otherwise=refiner.one_by_one):
            size = sizes[made.batch.file]
            in_file = min(size, in_file + made.bytes)
            kept, dropped = kept + made.kept, dropped + made.dropped
            if made.batch.is_last:
                marks[made.batch.file].write_text(str(made.batch.number + 1), "utf-8")
                ended, in_file = ended + size, 0
            progress(ended + in_file, total, f"{made.batch.name}: {kept:,} kept, {dropped:,} dropped so far")


def all_there(folder: Path, file: int, digest: str) -> Path:
    """The mark that all parts of a file are there; it holds their number."""
    return part_path(folder, file, digest, 0).with_suffix(".all")


def _read(found: Found, refiner: Refiner, digests: Mapping[str, str], files: list[int]) -> Iterator[Batch]:
    for number in files:
        name, path = found.files[number]
        try:
            for batch in batches(number, digests[name], name, records(name, path, refiner.settings)):
                if batch.is_last:
                    _refuse_changed(name, digests[name], digest(name, path))
                yield batch
        except MemoryError:
            raise out_of_memory(name) from None


def digest(name: str, path: Path) -> str:
    """sha256 of a source file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise DataError(f"cannot read source {name} ({path}): {error.strerror}. {RUN_AGAIN}") from None


def _refuse_changed(name: str, before: str, now: str) -> None:
    if now != before:
        raise DataError(
            f"source {name} changed while it was read: its sha256 was {before[:8]}…, and now it is {now[:8]}…. "
            f"{RUN_AGAIN}"
        )


def on_ray(found: Found, refiner: Refiner, digests: Mapping[str, str], progress: Progress) -> None:
    """Make the parts of each file as a task of Ray Data, on a cluster whose machines see the sources and the run.

    Raises:
        MissingError: Ray is not installed.
    """
    try:
        import ray.data  # type: ignore[import-not-found]  # an extra
    except ImportError:
        raise MissingError("executor ray needs the package ray: pip install 'groundup[ray]'") from None
    rows = [{"name": name, "digest": digest} for name, digest in digests.items()]
    make = partial(_whole_file, found=found, refiner=refiner)
    tasks = ray.data.from_items(rows, override_num_blocks=len(rows)).map(make)
    for number, row in enumerate(tasks.iter_rows(), start=1):
        progress(number, len(rows), row["name"])


def _whole_file(row: dict[str, str], found: Found, refiner: Refiner) -> dict[str, str]:
    one_machine(found, refiner, {row["name"]: row["digest"]}, no_progress, processes=0)
    return row


EXECUTORS: dict[str, Executor] = {"processes": one_machine, "ray": on_ray}
