"""Masters: float32 copies of weights that the model itself keeps in fewer bits."""

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn


class Masters:
    """Float32 master weights of what is trained: gradients add up in them, the optimizer steps them, the model gets
    them rounded. Weights that need no gradient have none, and cost nothing.

    Without them most updates are lost: bfloat16 has 8 bits, and a weight does not change by less than 1/256 of itself
    (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1). For a model in float32 they are its own weights.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, weights: Iterable[tuple[str, Tensor]] | None = None
    ) -> None:
        """Keep `model`'s present float32 weights and turn the model itself to `dtype`.

        Args:
            weights: by their names, if those differ from the model's.
        """
        self._own = dtype == torch.float32
        named = model.named_parameters() if weights is None else weights
        self._weights = {name: weight for name, weight in named if weight.requires_grad}
        if self._own:
            self.copies: dict[str, Tensor] = dict(self._weights)
            return
        self.copies = {name: weight.detach().to(torch.float32, copy=True) for name, weight in self._weights.items()}
        model.to(dtype)
        for name, weight in self._weights.items():
            weight.register_post_accumulate_grad_hook(partial(_collect, self.copies[name]))

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on, copy the masters into the model after every step of `optimizer`."""
        optimizer.register_step_post_hook(lambda *_: self.publish())

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters, rounded, into the model."""
        if not self._own:
            torch._foreach_copy_(list(self._weights.values()), list(self.copies.values()))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.copies.values())


def _collect(copy: Tensor, weight: Tensor) -> None:
    """Add a weight's gradient to that of its master copy."""
    assert weight.grad is not None, "the hook runs after the gradient is there"
    if copy.grad is None:
        copy.grad = weight.grad.float()
    else:
        copy.grad += weight.grad
    weight.grad = None
