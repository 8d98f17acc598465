"""Muon is Jordan's: torch's own says the same, and singular vectors stay where they are."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from groundup.optim.muon import COEFFICIENTS, ITERATIONS, orthogonalised
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW, Muon


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_each_singular_value_goes_through_the_quintic_and_its_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    a, b, c = COEFFICIENTS
    values = values / matrices.norm(dim=(1, 2))[:, None]
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    expected = left @ torch.diag_embed(values) @ right
    assert_close(orthogonalised(matrices.float(), torch.float32).double(), expected, atol=1e-4, rtol=0)


def test_singular_values_end_near_one_in_bfloat16_too() -> None:
    torch.manual_seed(0)
    made = orthogonalised(torch.randn(4, 32, 96), torch.bfloat16)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
def test_steps_are_those_of_torchs_muon(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(2, *shape), torch.randn(4, 2, *shape)
    ours = {f"blocks.{n}.weight": weight.clone() for n, weight in enumerate(start)}
    settings = Muon(learning_rate=0.02, momentum=0.9, weight_decay=0.3)
    mine = make_optimizer(ours.items(), settings, torch.bfloat16)
    theirs = [torch.nn.Parameter(weight.clone()) for weight in start]
    torchs = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for step in gradients:
        for weight, other, gradient in zip(ours.values(), theirs, step, strict=True):
            weight.grad, other.grad = gradient.clone(), gradient.clone()
        mine.step()
        torchs.step()
    # Both multiply in bfloat16 (8 bits), ours after dividing in float32: four times a twentieth of a step's 0.02 × 0.2.
    assert_close(torch.stack(list(ours.values())), torch.stack(theirs).detach(), atol=4 * 0.02 * 0.2 * 0.05, rtol=0)


def test_what_is_no_matrix_of_a_block_follows_adamw_bit_for_bit() -> None:
    shapes = {"embed.weight": (9, 4), "norm.weight": (4,), "head.bias": (9,)}

    def stepped(settings: AdamW | Muon) -> dict[str, Tensor]:
        torch.manual_seed(0)
        weights = {name: torch.randn(shape) for name, shape in shapes.items()}
        optimizer = make_optimizer(weights.items(), settings)
        for _ in range(3):
            for weight in weights.values():
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        return weights

    options = {"learning_rate": 0.01, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.2}
    ours, plain = stepped(Muon(**options)), stepped(AdamW(**options))
    assert all(torch.equal(ours[name], plain[name]) for name in shapes)


def test_a_step_is_as_long_as_one_of_adamws() -> None:
    """Root mean square 0.2 of the learning rate, whatever the shape (Liu et al. 2025, section 2.2)."""
    torch.manual_seed(0)
    for shape in ((64, 64), (32, 128), (128, 32)):
        weight = torch.zeros(shape)
        optimizer = make_optimizer([("blocks.0.weight", weight)], Muon(learning_rate=0.1))
        weight.grad = torch.randn(shape)
        optimizer.step()
        length = weight.norm() / math.sqrt(weight.numel())
        assert length == pytest.approx(0.1 * 0.2, rel=0.2)  # singular values are 0.7 to 1.2, not one
