"""Work that kills its process, for tests: in a module that other processes can import."""

import os
import signal
import time
from collections.abc import Iterator

from groundup.corpus.document import Document, Drop
from groundup.corpus.formats import Record
from groundup.corpus.parts import Refiner


def square(task: int) -> int:
    """Squares a number; kills its process at 3, takes long at 5, fails at 7."""
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 5:
        time.sleep(60)
    if task == 7:
        raise ValueError("seven")
    print("what a library says is no answer")
    return task * task


class Fragile(Refiner):
    """Is killed by a text, as a parser may be that runs out of memory."""

    def judged(self, record: Record) -> Iterator[tuple[Document, Document, Drop | None]]:
        if b"poison" in record.payload:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().judged(record)
