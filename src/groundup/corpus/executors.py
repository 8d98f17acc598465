"""What makes the parts of a corpus: processes on one machine, jobs on several, or Ray."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from groundup.corpus.parts import SECONDS, Batch, Refiner, batches, out_of_memory
from groundup.corpus.pool import Pool
from groundup.corpus.sources import Found, records
from groundup.errors import DataError, MissingError
from groundup.files import Progress, sha256_of_file
from groundup.machine import available_cores

SMALL_BYTES = 4_000_000
"""Sources of fewer bytes are read in this process: others would take longer to begin."""
RUN_AGAIN = "Nothing was made of it; run the same command again when no other program writes to the sources"

Executor = Callable[[Found, Refiner, Mapping[str, str] | None, Progress], None]
"""Makes the parts of all files that are not done: (files, what makes a part, their digests, progress)."""


def one_machine(
    found: Found,
    refiner: Refiner,
    digests: Mapping[str, str] | None,
    progress: Progress,
    processes: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Make parts in processes of this machine.

    Args:
        processes: 0 makes them here; as many as there are cores, if not given, and none for small sources.
        part: (k, n): only every n-th file, from the k-th on.

    Raises:
        DataError: a source that cannot be read, or changed meanwhile.
    """
    sizes = [path.stat().st_size if path.exists() else 0 for _, path in found.files]  # reading says which are gone
    mine = [number for number in range(*part[:1], len(sizes), part[1]) if not done(refiner.folder, number).exists()]
    if processes is None:
        processes = 0 if sum(sizes[number] for number in mine) < SMALL_BYTES else available_cores()
    before = sum(sizes) - sum(sizes[number] for number in mine)
    kept = dropped = 0
    with Pool(refiner, processes, SECONDS) as pool:
        progress(before, sum(sizes), "")
        for made in pool.map(_read(found, refiner, digests, mine), otherwise=refiner.one_by_one):
            kept, dropped = kept + made.kept, dropped + made.dropped
            if made.batch.is_last:
                before += sizes[made.batch.file]
                done(refiner.folder, made.batch.file).write_text(str(made.batch.number + 1))
            progress(before, sum(sizes), f"{made.batch.name}: {kept:,} kept, {dropped:,} dropped so far")


def done(folder: Path, file: int) -> Path:
    """The mark that all parts of a file are there."""
    return folder / f"{file:07}.done"


def _read(found: Found, refiner: Refiner, digests: Mapping[str, str] | None, files: list[int]) -> Iterator[Batch]:
    for number in files:
        name, path = found.files[number]
        try:
            for batch in batches(number, name, records(name, path, refiner.settings)):
                if batch.is_last and digests is not None:
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


def on_ray(found: Found, refiner: Refiner, digests: Mapping[str, str] | None, progress: Progress) -> None:
    """Make the parts of each file as a task of Ray Data, on a cluster whose machines see the sources and the run.

    Raises:
        MissingError: Ray is not installed.
    """
    try:
        import ray.data  # type: ignore[import-not-found]  # an extra
    except ImportError:
        raise MissingError("executor ray needs the package ray: pip install 'groundup[ray]'") from None
    n_files = len(found.files)
    make = partial(_whole_file, found=found, refiner=refiner, digests=digests)
    tasks = ray.data.from_items([{"file": number} for number in range(n_files)], override_num_blocks=n_files)
    for number, row in enumerate(tasks.map(make).iter_rows(), start=1):
        progress(number, n_files, row["name"])


def _whole_file(
    task: dict[str, int], found: Found, refiner: Refiner, digests: Mapping[str, str] | None
) -> dict[str, str]:
    from groundup.files import no_progress

    one_machine(found, refiner, digests, no_progress, processes=0, part=(task["file"], len(found.files)))
    return {"name": found.files[task["file"]][0]}
