"""Ids that a GPU generates against those of the CPU."""

import copy

import pytest
import torch

from groundup.generation.engine import continue_ids
from groundup.generation.settings import Sampling
from groundup.model.transformer import Transformer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=60, temperature=0.0), Sampling(max_tokens=60, seed=3)])
def test_the_same_ids_are_chosen(model: Transformer, device: torch.device, sampling: Sampling) -> None:
    """In float32, past the end of the context; the draws are made by the same generator."""
    expected = list(continue_ids(model, [5, 6, 7], sampling))
    assert list(continue_ids(copy.deepcopy(model).to(device), [5, 6, 7], sampling)) == expected
