"""Graphs: a GPU's step in which every request computes one token, captured once for each size and replayed.

Then no kernel waits for Python. N rows, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Step = Callable[..., Tensor]
"""(tokens, position, slot, table, length) → (N, V)."""


class Graphs:
    """A step for any number of rows, filled up to a power of two, as are the pages of the longest.

    Args:
        step: the forward pass, which reads and writes tensors of the device alone.
        spare: the page that no one holds; rows that nobody reads write there.
    """

    def __init__(self, step: Step, device: torch.device, spare: int, page: int) -> None:
        self._step, self._device, self._spare, self._page = step, device, spare, page
        self._captured: dict[tuple[int, int], tuple[Callable[[], object], list[Tensor], Tensor]] = {}

    def __call__(
        self, ids: Sequence[int], positions: Sequence[int], slots: Sequence[int], tables: Sequence[Sequence[int]]
    ) -> Float[Tensor, "N V"]:
        """The scores after each of these tokens.

        Args:
            positions: of the tokens in their requests.
            slots: where their keys and values go.
            tables: the pages of their requests.
        """
        n, pages = len(ids), max(map(len, tables))
        rows, wide = (1 << (size - 1).bit_length() for size in (n, pages))
        if (rows, wide) not in self._captured:
            self._captured[rows, wide] = self._capture(rows, wide)
        replay, inputs, scores = self._captured[rows, wide]
        more, filled = rows - n, [[*table, *[self._spare] * (wide - len(table))] for table in tables]
        tokens, position = (torch.tensor([*each, *[0] * more])[:, None] for each in (ids, positions))
        slot = torch.tensor([*slots, *[self._spare * self._page] * more])
        table = torch.tensor(filled + [[self._spare] * wide] * more)
        for held, new in zip(inputs, (tokens, position, slot, table, position[:, 0] + 1), strict=True):
            held.copy_(new)
        replay()
        return scores[:n].clone()

    def _capture(self, rows: int, pages: int) -> tuple[Callable[[], object], list[Tensor], Tensor]:
        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        slot, table = zeros(rows) + self._spare * self._page, zeros(rows, pages, dtype=torch.int32) + self._spare
        given = [zeros(rows, 1), zeros(rows, 1), slot, table, zeros(rows, dtype=torch.int32) + 1]
        if self._device.type != "cuda":  # the slow twin: the same step, run each time
            scores = self._step(*given).clone()
            return lambda: scores.copy_(self._step(*given)), given, scores
        aside = torch.cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries make their plans and workspaces outside of what is captured
                self._step(*given)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scores = self._step(*given)
        return graph.replay, given, scores
