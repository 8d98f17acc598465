"""Precision: which numbers are kept in which type, and float32 master copies of weights that are kept in fewer bits."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from groundup.optim.settings import Autocast, Bfloat16, Float8, Float16, Float32, Precision


def weight_dtype(precision: Precision) -> torch.dtype:
    """The type that the model's own weights have in training."""
    match precision:
        case Float32() | Autocast():
            return torch.float32
        case Bfloat16() | Float8():
            return torch.bfloat16
        case Float16():
            return torch.float16


def optimizer_matmul_dtype(precision: Precision) -> torch.dtype:
    """The type of an optimizer's matmuls: the model's, which is quick here, but not float16, whose range is short."""
    match precision:
        case Bfloat16() | Float8() | Autocast():
            return torch.bfloat16
        case Float32() | Float16():
            return torch.float32


def make_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler | None:
    """What scales the loss of a float16 model; None for other precisions, whose gradients do not vanish."""
    match precision:
        case Float16(initial_scale=initial, growth_steps=growth):
            return torch.amp.GradScaler(device.type, init_scale=initial, growth_interval=growth)
        case _:
            return None


def step_optimizer(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, accepted: bool) -> bool:
    """Step if the step was accepted and no scaled gradient overflowed; returns whether it was taken."""
    if scaler is None:
        if accepted:
            optimizer.step()
        return accepted
    before = scaler.get_scale()
    if accepted:
        scaler.step(optimizer)
    scaler.update()
    return accepted and scaler.get_scale() >= before  # it is lowered after an overflow, and only then


class Masters:
    """Float32 master weights of what is trained: gradients add up in them, the optimizer steps them, the model gets
    them rounded. Weights that need no gradient have none, and cost nothing.

    Without them most updates are lost: bfloat16 has 8 bits, and a weight does not change by less than 1/256 of itself
    (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1). For a model in float32 they are its own weights.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Keep `model`'s present float32 weights and turn the model itself to `dtype`."""
        self._own = dtype == torch.float32
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if self._own:
            self.copies: dict[str, Tensor] = dict(self._weights)
            return
        self.copies = {name: weight.detach().to(torch.float32, copy=True) for name, weight in self._weights.items()}
        model.to(dtype)
        for name, weight in self._weights.items():
            weight.register_post_accumulate_grad_hook(self._collector(self.copies[name]))

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

    @staticmethod
    def _collector(copy: Tensor):  # type: ignore[no-untyped-def]
        def collect(weight: Tensor) -> None:
            assert weight.grad is not None, "the hook runs after the gradient is there"
            if copy.grad is None:
                copy.grad = weight.grad.float()
            else:
                copy.grad += weight.grad
            weight.grad = None

        return collect
