"""The guard at work in a run: which rows a bad step read, which documents they are of, and telling what was done."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from groundup.batch import Batch, split, to
from groundup.corpus.document import sources_of
from groundup.errors import DataError, DivergedError
from groundup.files import write_text
from groundup.model.transformer import Transformer, evaluating
from groundup.train.fit import Step
from groundup.train.guard import OVERFLOWS_IN_A_ROW, Guard, Trouble
from groundup.train.log import RunLog, as_json
from groundup.train.losses import by_document, token_logprobs
from groundup.train.settings import NoGuard, SkipAndRollBack

WORST_ROWS = 4
"""So many rows of a bad step are named with their documents, those with the highest loss."""
MOST_DOCUMENTS = 256
"""So many documents of a bad step are listed by number."""
OVERFLOWS_TOLD_EVERY = 100
"""Steps between two events about overflow."""


class Judgement:
    """Says of each step whether it is taken, and tells of those that are not."""

    def __init__(
        self,
        settings: SkipAndRollBack | NoGuard,
        model: Transformer,
        scaler: torch.amp.GradScaler | None,
        piece_rows: int,
        corpus: Path,
        work: Path,
        log: RunLog,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            piece_rows: most rows that go through the model at once.
            corpus: `train.parquet` of the documents, which knows where each came from; it need not exist.
            work: gets `diverged.json`.
        """
        self.guard = Guard(settings) if isinstance(settings, SkipAndRollBack) else None
        self._model, self._scaler, self._piece_rows = model, scaler, piece_rows
        self._corpus, self._work, self._log, self._say = corpus, work, log, say
        self.batch: Batch | None = None
        """The one that is being judged."""
        self._first_row = 0
        self._seen: list[dict[str, Any]] = []
        self._overflows: list[int] = []
        self._overflows_in_a_row = 0
        self._refused = False
        self.skipped: list[list[int]] = []
        """Ranges [first, last) of rows from which nothing was learned, in order."""

    def reading(self, batches: Iterable[Batch], first_row: int) -> Iterator[Batch]:
        """The same batches; the one that is about to be judged is remembered."""
        for batch in batches:
            self.batch, self._first_row = batch, first_row
            yield batch
            first_row += len(batch.tokens)

    @property
    def next_row(self) -> int:
        """The first row that has not been read."""
        assert self.batch is not None, "asked for once a batch was read"
        return self._first_row + len(self.batch.tokens)

    def accept(self, step: Step) -> bool:
        """For `fit`. Without a guard it reads no number, so that nothing waits for the device."""
        self._refused = False
        if self.guard is None:
            return True
        trouble = self.guard.judge(step.loss.item(), step.grad_norm.item(), scaled=self._scaler is not None)
        if trouble is not None:
            self._refused = True
            self.jump_over(self._first_row, self.next_row)
            self._tell(step, trouble)
        return trouble is None

    @property
    def calm(self) -> bool:
        """Whether the last step was good, and the weights with it as far as one can see."""
        return self.guard is None or self.guard.bad_in_a_row == 0

    @property
    def goes_back(self) -> bool:
        """Whether the step that was judged last is one too many, so that older weights must be loaded."""
        return self.guard is not None and self.guard.out_of_patience

    def jump_over(self, first: int, last: int) -> None:
        """Record that rows `first` to `last − 1` were not learned from."""
        ranges: list[list[int]] = []
        for begin, end in sorted([*self.skipped, [first, last]]):
            if ranges and begin <= ranges[-1][1]:
                ranges[-1][1] = max(ranges[-1][1], end)
            else:
                ranges.append([begin, end])
        self.skipped = ranges

    def goal(self, steps: Iterable[int], number: int) -> int | None:
        """Of the checkpoints after these steps the one to go back to from step `number`; None for the beginning."""
        assert self.guard is not None, "asked only when it goes back"
        first_bad = number - self.guard.bad_in_a_row + 1
        before = [step for step in steps if step < first_bad]
        old_enough = [step for step in before if step < first_bad - self.guard.settings.steps_back]
        return max(old_enough, default=min(before, default=None))

    def went_back(self, number: int, to_step: int, first_row: int, last_row: int) -> None:
        """Tell that after step `number` training goes on from `to_step`, and jumps over these rows."""
        assert self.guard is not None, "asked only when it goes back"
        of, times, patience = self.guard.settings.rollbacks, self.guard.rollbacks, self.guard.settings.patience
        self._log.event(
            "rolled back",
            step=number,
            to=to_step,
            rows=[first_row, last_row],
            rollbacks=times,
            of=of,
            seen=self._seen[-1]["seen"],
        )
        self._say(
            f"{patience} bad step{'s' * (patience > 1)} in a row up to step {number:,}: went back to step {to_step:,} "
            f"and jumped over rows {first_row:,} to {last_row - 1:,} ({times} of at most {of} times)"
        )

    def diverged(self, why: str, number: int, advice: str, **known: Any) -> DivergedError:
        """The error that ends the run; what is known is written to `diverged.json` first."""
        remembered = self.guard.state() if self.guard else {}
        dump = {"step": number, "why": why, **known, "bad_steps": self._seen, "guard": remembered}
        write_text(self._work / "diverged.json", json.dumps(as_json(dump), indent=1) + "\n")
        self._log.event("diverged", step=number, why=why)
        return DivergedError(f"{why}: training diverged. {advice}. All that was seen is in {self._work}/diverged.json")

    def count_overflow(self, step: Step) -> bool:
        """Count a step that the scaler left out because gradients overflowed; whether there were too many in a row."""
        overflowed = not step.accepted and not self._refused
        self._overflows_in_a_row = self._overflows_in_a_row + 1 if overflowed else 0
        if overflowed:
            self._overflows.append(step.number)
        if self._overflows and step.number - self._overflows[0] >= OVERFLOWS_TOLD_EVERY:
            self.tell_overflows()
        return self._overflows_in_a_row >= OVERFLOWS_IN_A_ROW

    def tell_overflows(self) -> None:
        """Write the event for the overflows that were not told of yet."""
        if self._overflows:
            assert self._scaler is not None, "nothing else overflows"
            scale = self._scaler.get_scale()
            first, last = self._overflows[0], self._overflows[-1]
            self._log.event("overflow", steps=len(self._overflows), first=first, last=last, scale=scale)
            self._overflows = []

    def _tell(self, step: Step, trouble: Trouble) -> None:
        """A step that is left out: an event, a line on the screen, and a place among what a dump tells."""
        assert self.batch is not None, "a step has read one"
        worst = self._worst_rows(self.batch)
        documents = _documents(self.batch.document)
        event = {
            "step": step.number,
            "seen": trouble.what,
            "loss": trouble.loss,
            "grad_norm": trouble.grad_norm,
            "loss_deviations": trouble.loss_deviations,
            "grad_norm_deviations": trouble.grad_norm_deviations,
            "learning_rate": step.learning_rate,
            "rows": [self._first_row, self.next_row],
            "worst": worst,
            "documents": documents[:MOST_DOCUMENTS],
            "n_documents": len(documents),
        }
        assert self.guard is not None, "it judged"
        self._seen = [*self._seen, event][-self.guard.settings.patience :]
        self._log.event("step skipped", **event)
        first = worst[0]
        whose = ", ".join(f"{document['number']:,} ({document['source']})" for document in first["documents"][:3])
        more = f" and {len(first['documents']) - 3} more" if len(first["documents"]) > 3 else ""
        self._say(
            f"step {step.number:,} left out: {trouble.what}. It read rows {self._first_row:,} to "
            f"{self.next_row - 1:,}; the worst is row {first['row']:,}, loss {first['loss']:.4g}, of document "
            f"{whose}{more}"
        )

    def _worst_rows(self, batch: Batch) -> list[dict[str, Any]]:
        """The rows with the highest loss as the model is now, and their documents; what is no number is highest."""
        device = next(self._model.parameters()).device
        each: list[float] = []
        with evaluating(self._model):
            for piece in split(batch, -(-len(batch.tokens) // self._piece_rows)):
                here = to(piece, device)
                nats = -(token_logprobs(self._model, here, by_document) * here.weight).sum(dim=1)
                each += (nats / here.weight.sum(dim=1).clamp(min=1)).tolist()
        order = sorted(range(len(each)), key=lambda row: -each[row] if math.isfinite(each[row]) else -math.inf)
        rows = {row: _documents(batch.document[row]) for row in order[:WORST_ROWS]}
        sources = self._sources(number for documents in rows.values() for number in documents)
        return [
            {
                "row": self._first_row + row,
                "loss": each[row],
                "documents": [{"number": n, "source": sources.get(n, "source unknown")} for n in documents],
            }
            for row, documents in rows.items()
        ]

    def _sources(self, numbers: Iterable[int]) -> dict[int, str]:
        try:
            return sources_of(self._corpus, numbers)
        except DataError:
            return {}  # the corpus may have been removed; the numbers are still true


def _documents(of: torch.Tensor) -> list[int]:
    """Numbers of the documents, padding left out."""
    return [number for number in of.unique().tolist() if number >= 0]
