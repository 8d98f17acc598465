"""Ids that a GPU generates against those of the CPU."""

import copy

import pytest
import torch

from groundup.generation.engine import Engine
from groundup.generation.settings import Sampling
from groundup.model.transformer import Transformer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=60, temperature=0.0), Sampling(max_tokens=60, seed=3)])
def test_the_same_ids_are_chosen(model: Transformer, device: torch.device, sampling: Sampling) -> None:
    """In float32, past the end of the context; what is drawn depends on seed and number alone."""
    asked = sampling.model_dump(exclude={"stop"})
    expected = Engine(model).generate([[5, 6, 7]], n=3, **asked)
    assert Engine(copy.deepcopy(model).to(device)).generate([[5, 6, 7]], n=3, **asked) == expected
