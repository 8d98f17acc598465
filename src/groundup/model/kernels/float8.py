"""Matmuls in float8, done to a model from outside.

M rows, K input width, N output width. Numbers that are multiplied are rounded to eight bits after scaling their tensor
to the type's range (dynamic scaling by the largest of it; Micikevicius et al. 2022, arXiv:2209.05433): activations and
weights to e4m3, gradients to e5m2. Sums are made in float32, results are in the model's own type.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ALIGNED = 16
"""Rows and widths that the hardware multiplies are multiples of this."""


def use_float8(blocks: nn.Module) -> None:
    """Multiply by the blocks' matrices in float8; matrices of other widths stay as they are."""
    for linear in (module for module in blocks.modules() if isinstance(module, nn.Linear)):
        if linear.in_features % ALIGNED == 0 and linear.out_features % ALIGNED == 0:
            linear.forward = partial(_linear, linear)  # type: ignore[method-assign]


def has_float8(device: torch.device) -> bool:
    """Whether the device multiplies float8 faster than bfloat16: NVIDIA's from Ada and Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _linear(linear: nn.Linear, x: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows N"]:
    rows = x.flatten(0, -2)
    if rows.shape[0] % ALIGNED:
        return nn.functional.linear(x, linear.weight, linear.bias)
    product: Tensor = Float8Matmul.apply(rows, linear.weight)  # type: ignore[no-untyped-call]
    product = product.unflatten(0, x.shape[:-1])
    return product if linear.bias is None else product + linear.bias


class Float8Matmul(torch.autograd.Function):
    """x wᵀ, and its two gradients, each a matmul of float8 matrices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = rounded(x, torch.float8_e4m3fn)
        weight8, weight_scale = rounded(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(x8, x_scale, weight8, weight_scale)
        ctx.dtype = x.dtype
        return _multiplied(x8, weight8.t(), x_scale, weight_scale, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, weight8, weight_scale = ctx.saved_tensors
        gradient8, scale = rounded(gradients[0], torch.float8_e5m2)
        to_x = _multiplied(gradient8, _by_columns(weight8), scale, weight_scale, ctx.dtype)  # (M, K)
        to_weight = _multiplied(gradient8.t().contiguous(), _by_columns(x8), scale, x_scale, ctx.dtype)  # (N, K)
        return to_x, to_weight


def rounded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Float[Tensor, ""]]:
    """`x` / scale in float8, and the scale."""
    largest = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=1e-12) / largest
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale


def _multiplied(left: Tensor, right: Tensor, left_scale: Tensor, right_scale: Tensor, dtype: torch.dtype) -> Tensor:
    product: Tensor = torch._scaled_mm(left, right, scale_a=left_scale, scale_b=right_scale, out_dtype=dtype)
    return product


def _by_columns(x: Tensor) -> Tensor:
    """Lay out a matrix with contiguous columns, as the matmul wants its right factor."""
    return x.t().contiguous().t()
