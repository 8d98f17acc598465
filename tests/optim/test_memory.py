"""Bytes that are counted are those of the tensors of a step."""

import pytest
import torch

from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.averaging import RunningAverage
from groundup.optim.masters import Masters
from groundup.optim.memory import state_bytes
from groundup.optim.optimizer import make_optimizer
from groundup.optim.precision import weight_dtype
from groundup.optim.settings import (
    Adafactor,
    AdamW,
    Autocast,
    Bfloat16,
    ExponentialAverage,
    Float16,
    Float32,
    Lion,
    Muon,
    Optimizer,
    Precision,
)


@pytest.mark.parametrize("optimizer", [AdamW(), Muon(), Lion(), Adafactor()], ids=lambda settings: settings.kind)
@pytest.mark.parametrize(
    "precision", [Float32(), Bfloat16(), Autocast(), Float16()], ids=lambda settings: settings.kind
)
def test_bytes_are_those_of_the_tensors(llama: ModelConfig, precision: Precision, optimizer: Optimizer) -> None:
    model = Transformer(llama)
    masters = Masters(model, weight_dtype(precision))
    made = make_optimizer(masters.copies.items(), optimizer)
    model(torch.zeros(1, 4, dtype=torch.long)).float().sum().backward()
    made.step()
    gradients = sum(weight.grad.nbytes for weight in (*masters, *model.parameters()) if weight.grad is not None)
    has_copies = weight_dtype(precision) != torch.float32
    remembered = sum(tensor.nbytes for state in made.state.values() for tensor in state.values() if tensor.ndim)
    kept = state_bytes(llama, precision, optimizer)
    assert kept["weight"] == sum(weight.nbytes for weight in model.parameters())
    assert kept.get("master copy", 0) == (sum(copy.nbytes for copy in masters) if has_copies else 0)
    assert kept["gradient"] == (gradients if has_copies else gradients // 2)  # counted twice, where they are the same
    assert kept["optimizer"] == remembered
    RunningAverage(masters, made, 0.9)
    averages = sum(state["average"].nbytes for state in made.state.values())
    assert state_bytes(llama, precision, optimizer, ExponentialAverage()) == kept | {"average": averages}


def test_adamw_keeps_16_bytes_a_parameter_and_18_beside_masters(llama: ModelConfig) -> None:
    parameters = sum(weight.numel() for weight in Transformer(llama).parameters())
    for precision, each in ((Float32(), 16), (Autocast(), 16), (Bfloat16(), 18), (Float16(), 18)):
        assert sum(state_bytes(llama, precision, AdamW()).values()) == each * parameters
