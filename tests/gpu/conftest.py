"""Tests of what runs on a GPU; where there is none they are skipped, and say so."""

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The GPU, whose paths are compared with the CPU's."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use; there is none here, so nothing was tested")
    return torch.device("cuda")
