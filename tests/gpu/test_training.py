"""Optimizers, training and resuming on a GPU against the CPU, and against themselves."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from groundup import build
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import Adafactor, AdamW, Lion, Muon, Optimizer

pytestmark = pytest.mark.gpu
SHAPES = {"embed.weight": (97, 32), "blocks.0.feedforward.up.weight": (48, 32), "blocks.0.norm.weight": (32,)}


def stepped(settings: Optimizer, device: torch.device) -> dict[str, torch.Tensor]:
    """The weights after five steps with gradients that are the same on every device."""
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: torch.nn.Parameter(torch.randn(shape, generator=draw).to(device)) for name, shape in SHAPES.items()
    }
    optimizer = make_optimizer(weights.items(), settings, torch.float32, 1.0)
    for _ in range(5):
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape, generator=draw).to(device)
        optimizer.step()
    return {name: weight.detach().cpu() for name, weight in weights.items()}


@pytest.mark.parametrize("settings", [AdamW(), Lion(), Adafactor(), Muon()], ids=lambda settings: settings.kind)
def test_steps_are_those_of_the_cpu(settings: Optimizer, device: torch.device) -> None:
    near = 1e-2 * settings.learning_rate if isinstance(settings, Muon) else 1e-5  # Muon multiplies in bfloat16
    assert_close(stepped(settings, device), stepped(settings, torch.device("cpu")), atol=near, rtol=1e-4)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_in_float32_has_the_losses_of_the_cpu(recipe: Path, device: torch.device) -> None:
    runs = []
    for name in ("cpu", device.type):
        settings = [f"pretrain.device={name}"]  # the same units are dropped on every device
        runs.append(build(recipe, settings, run=recipe.parent / name, say=lambda text: None).run)
    assert_close(losses(runs[1]), losses(runs[0]), atol=1e-4, rtol=1e-3)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels that add in one order, as far as there are such."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bfloat16, compiled"])
def test_resumed_the_run_is_the_unbroken_one_bit_for_bit(recipe: Path, device: torch.device, precision: str) -> None:
    kind, _, compiled = precision.partition(", ")
    settings = [
        f"pretrain.device={device.type}",
        f"pretrain.precision={kind}",
        f"pretrain.compile={str(bool(compiled)).lower()}",
        "pretrain.keep_checkpoints=9",
    ]
    told: list[str] = []
    whole = build(recipe, settings, run=recipe.parent / "whole", say=told.append).run
    cut = recipe.parent / "cut"
    shutil.copytree(whole, cut)
    for made in ("model", "evals", "pretrain/checkpoints/step-00000030", "pretrain/checkpoints/step-00000040"):
        shutil.rmtree(cut / made)
    build(recipe, settings, run=cut, say=told.append)
    assert losses(cut) == losses(whole)
    weights = Path("model", "model.safetensors")
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
