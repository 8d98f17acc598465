"""Muon: a matrix moves along its momentum, all directions of which are made equally long; what is no matrix of a block
follows AdamW.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon). M the
momentum, R and C a matrix's rows and columns, N how many of them have the same shape.
"""

import math
from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from groundup.model.draw import Ranges, local_part
from groundup.optim.adamw import adamw_step
from groundup.optim.settings import Muon
from groundup.optim.state import Group, adamw_state

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: the steepest at 0 of those that end near 1
ITERATIONS = 5
RMS_OF_ADAMW = 0.2  # Liu et al. 2025, arXiv:2502.16982, section 2.2: the root mean square of AdamW's steps, 0.2 to 0.4


class MuonOptimizer(torch.optim.Optimizer):
    """Groups with `orthogonal` hold the matrices that are Muon's, the others what is AdamW's."""

    def __init__(self, groups: list[Group], settings: Muon, matmul_dtype: torch.dtype) -> None:
        """
        Args:
            matmul_dtype: the type of its matmuls; all that is kept is float32.
        """
        super().__init__(groups, {})
        self._settings = settings
        self._matmul_dtype = matmul_dtype

    def empty_state(self, weight: Tensor, group: Group) -> dict[str, Tensor]:
        if group["orthogonal"]:
            return {"momentum": torch.zeros_like(weight, requires_grad=False)}
        return adamw_state(weight)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            states = [self.state[weight] for weight in weights]
            if weights and group["orthogonal"]:
                self._orthogonal_step(weights, [state["momentum"] for state in states], group)
            elif weights:
                adamw_step(weights, states, group, self._settings)

    def _orthogonal_step(self, weights: list[Tensor], momenta: list[Tensor], group: Group) -> None:
        """M ← μ M + (1 − μ) G, then W ← W − η (0.2 √max(R, C) orthogonalised((1 − μ) G + μ M) + λ W)."""
        momentum = self._settings.momentum
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, momenta, momentum)  # Nesterov's: as if the next gradient were this one
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, weight in enumerate(weights):
            alike[tuple(weight.shape)].append(number)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for shape, members in alike.items():
            matrices = torch.stack([_whole(ahead[number]) for number in members])  # (…, R, C): experts come in stacks
            directions = orthogonalised(matrices.flatten(0, -3), self._matmul_dtype).view_as(matrices)
            length = group["lr"] * RMS_OF_ADAMW * math.sqrt(max(shape[-2:]))
            parts = [local_part(weights[number]) for number in members]
            own = [whole[_slices(ranges)] for whole, (_, ranges) in zip(directions, parts, strict=True)]
            torch._foreach_add_([part for part, _ in parts], own, alpha=-length)


def _whole(matrix: Tensor) -> Tensor:
    """A matrix that is cut over ranks put together, on each of them: its directions are those of the whole."""
    return matrix.full_tensor() if isinstance(matrix, DTensor) else matrix


def _slices(ranges: Ranges) -> tuple[slice, ...]:
    return tuple(slice(*each) for each in ranges)


def orthogonalised(matrices: Float[Tensor, "N R C"], matmul_dtype: torch.dtype) -> Float[Tensor, "N R C"]:
    """Each matrix with its singular values brought near one (0.7 to 1.2 for all but the very small), in
    `matmul_dtype`; what is in float64 stays in float64.

    Five steps of a quintic Newton–Schulz iteration: X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X takes each singular value s to
    a s + b s³ + c s⁵ and leaves the directions as they are.
    """
    a, b, c = COEFFICIENTS
    if matrices.dtype == torch.float64:
        matmul_dtype = torch.float64
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the smaller side first: X Xᵀ is then the smaller of the two squares
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(matmul_dtype)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
