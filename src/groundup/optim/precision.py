"""Precision: which numbers are kept in which type, and how the loss of a float16 model is scaled."""

import torch

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
