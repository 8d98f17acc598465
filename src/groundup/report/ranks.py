"""What the ranks of a training spend their time on, from the lines of its metrics that say so."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from groundup.errors import SettingsError
from groundup.pages.render import sentences
from groundup.parallel.settings import Interleaved, ParallelSettings, ZeroBubble, in_words
from groundup.settings import Table
from groundup.train.settings import STEPS_PER_FLUSH
from groundup.words import byte_size, plural

PARTS = ("computing", "collectives", "waiting", "bytes")
HEADER = ("rank", "", "a step", "computing", "in collectives", "waiting", "sent a step")
SLOWEST = 30
"""Ranks that are shown, beside the fastest and the one in the middle, where there are more than all these."""


class RankTimes:
    """The sum of the lines since the number of ranks last changed."""

    def __init__(self) -> None:
        self._lines, self._first_step = 0, 0.0
        self._sums = np.zeros((len(PARTS), 0))

    def add(self, line: dict[str, Any]) -> None:
        """Take in a line `{"step": 20, "ranks": {"computing": [1.5, 1.6], …}}`; any other counts for nothing."""
        try:
            values = np.array([line["ranks"][name] for name in PARTS], np.float64)
            step = float(line["step"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return
        if values.ndim != 2 or not values.size or not np.isfinite(values).all():
            return
        if values.shape != self._sums.shape:
            self._lines, self._first_step, self._sums = 0, step, np.zeros_like(values)
        self._lines += 1
        self._sums += values

    def summary(self, recipe: Table, events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Means of a step as a table to be shown; None without such lines.

        Returns:
            `words`: sentences; `header`; `rows`: for each rank `name`, whether it was `slow`, the `widths` of the parts
            of its bar in percent, and the `cells` behind it.
        """
        if not self._lines:
            return None
        computing, collectives, waiting, sent = self._sums / (self._lines * STEPS_PER_FLUSH)
        parts = np.array([computing, collectives - waiting, waiting]).T.clip(min=0)
        totals, n = np.maximum(parts.sum(axis=1), 1e-9), len(parts)
        slow = Counter(
            event.get("rank")
            for event in events
            if event.get("event") == "slow rank"
            and isinstance(event.get("step"), int)
            and event["step"] >= self._first_step
        )
        order = sorted(range(n), key=lambda rank: (slow[rank], computing[rank]))
        shown = set(order if n <= SLOWEST + 2 else [order[0], order[(n - 1) // 2], *order[-SLOWEST:]])
        rows = [
            {
                "name": f"{rank}, slow {plural(slow[rank], 'time')}" if slow[rank] else str(rank),
                "slow": rank in slow,
                "widths": [round(100 * float(part / totals.max()), 2) for part in parts[rank]],
                "cells": [
                    f"{totals[rank]:#.3g} s",
                    *(f"{part / totals[rank]:.0%}" for part in parts[rank]),
                    byte_size(sent[rank]),
                ],
            }
            for rank in sorted(shown)
        ]
        rest = [computing[rank] for rank in order if rank not in shown]
        facts = {"n": n, "steps": self._lines * STEPS_PER_FLUSH, "rest": rest, "slowest": SLOWEST, **_layout(recipe, n)}
        return {"words": sentences("ranks.txt", **facts), "header": HEADER, "rows": rows}


def _layout(recipe: Table, ranks: int) -> dict[str, Any]:
    """In words how the ranks share the work, the micro-batches of a step and the `bubble`; None for what is unknown."""
    facts: dict[str, Any] = {"layout": None, "micro_batches": None, "bubble": None}
    try:
        parallel = ParallelSettings.from_table(recipe.get("parallel", {}))
        sizes = parallel.sizes(ranks)
        facts["layout"] = in_words(sizes, "one")
        rows = recipe["pretrain"]["batch_tokens"] // recipe["model"]["context_length"]
        rank_rows = -(-rows // (sizes["replicate"] * sizes["shard"]))
        least = -(-rank_rows // min(recipe["pretrain"]["micro_batch_rows"], rank_rows))
        # a pipeline's micro-batches are all of one size
        facts["micro_batches"] = next(n for n in range(least, rank_rows + 1) if rank_rows % n == 0)
        facts["bubble"] = bubble(parallel, facts["micro_batches"])
    except (SettingsError, KeyError, TypeError, ZeroDivisionError):
        pass  # the recipe is not there, or another program's
    return facts


def bubble(parallel: ParallelSettings, micro_batches: int) -> float | None:
    """Share of a step for which the ranks of a pipeline are idle if all stages take as long; the bubble is
    (p − 1) / (v m) of the ideal time, with p ranks, v stages a rank, m micro-batches (Narayanan et al. 2021,
    arXiv:2104.04473, section 2.2). None without a pipeline, and for zero bubble, where it depends on its passes' times.

    >>> bubble(ParallelSettings(pipeline=4), 8)
    0.2727272727272727
    """
    if parallel.pipeline == 1 or isinstance(parallel.schedule, ZeroBubble):
        return None
    stages = parallel.schedule.stages if isinstance(parallel.schedule, Interleaved) else 1
    return (parallel.pipeline - 1) / (stages * micro_batches + parallel.pipeline - 1)
