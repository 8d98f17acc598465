"""Averages of weights: over the steps of a run as they are made, and over checkpoints that were kept."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from groundup.optim.masters import Masters
from groundup.optim.state import own


class RunningAverage:
    """The mean of the masters over all steps, in which a step counts `decay` times as much as the one after it.

    After step t it is Σ decay^(t−i) w_i / Σ decay^(t−i) over i = 1..t: without the initial weights, and right from the
    first step on. It is kept in float32 among the optimizer's state, under `average`, and is saved and loaded with it.
    """

    def __init__(self, masters: Masters, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self._masters = masters
        self._optimizer = optimizer
        self._decay = decay
        for weight in masters:
            optimizer.state[weight]["average"] = weight.detach().clone()

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: self._optimizer.state[weight]["average"] for name, weight in self._masters.copies.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the masters as they are after step `step`, the first being 1."""
        share = (1 - self._decay) / (1 - self._decay**step)
        torch._foreach_lerp_(
            [*map(own, self.weights.values())], [own(weight.detach()) for weight in self._masters], share
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average's weights; afterwards its own again, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        averages, weights = [*map(own, self.weights.values())], [own(weight.detach()) for weight in self._masters]
        held = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        torch._foreach_copy_(averages, held)
        self._masters.publish()


def mean_of(weights: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several sets of weights, added up in float64, in float32.

    Raises:
        ValueError: for none, or for sets whose names or shapes differ.

    >>> mean_of([{"gain": torch.tensor([1.0, 2.0])}, {"gain": torch.tensor([3.0, 2.0])}])
    {'gain': tensor([2., 2.])}
    """
    total: dict[str, Tensor] = {}
    n = 0
    for n, each in enumerate(weights, start=1):
        shapes = {name: weight.shape for name, weight in each.items()}
        if n > 1 and shapes != {name: weight.shape for name, weight in total.items()}:
            raise ValueError(
                f"the weights of set {n} have other names or shapes than those before; average like models"
            )
        for name, weight in each.items():
            total[name] = total[name] + weight.double() if n > 1 else weight.double()
    if not n:
        raise ValueError("there are no weights to average; give at least one set of them")
    return {name: (weight / n).float() for name, weight in total.items()}
