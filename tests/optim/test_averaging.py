"""The running average is the weighted mean of the steps, and showing it leaves no trace."""

import pytest
import torch
from torch.testing import assert_close

from groundup.optim.averaging import RunningAverage, mean_of
from groundup.optim.masters import Masters
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_mean_in_which_each_step_counts_less_than_the_next(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    masters = Masters(model, dtype)
    optimizer = make_optimizer(masters.copies.items(), AdamW())
    average = RunningAverage(masters, optimizer, 0.8)
    seen = []
    for step in range(1, 8):
        with torch.no_grad():
            masters.copies["weight"].copy_(torch.randn(2, 3))
        seen.append(masters.copies["weight"].detach().double().clone())
        average.update(step)
    counts = [0.8 ** (7 - step) for step in range(1, 8)]
    expected = sum(count * weight for count, weight in zip(counts, seen, strict=True)) / sum(counts)
    assert_close(average.weights["weight"].double(), expected, atol=1e-6, rtol=0)

    masters.publish()
    own, mean = model.weight.detach().clone(), average.weights["weight"].clone()
    kept = masters.copies["weight"].detach().clone()
    with average.in_place():
        assert torch.equal(model.weight, mean.to(dtype))
    assert torch.equal(model.weight, own)
    assert torch.equal(masters.copies["weight"], kept)
    assert torch.equal(average.weights["weight"], mean)


def test_the_mean_of_checkpoints_is_summed_in_float64() -> None:
    sets = [{"w": torch.tensor([2.0**25])}, *({"w": torch.tensor([1.0])} for _ in range(3))]
    assert mean_of(sets)["w"].item() == 2**23 + 1  # 2²³ + 3/4, rounded once; in float32 the ones would add nothing
    half = [{"w": torch.tensor([1.0], dtype=torch.bfloat16)}, {"w": torch.tensor([1.0078125], dtype=torch.bfloat16)}]
    assert mean_of(half)["w"].item() == 1.00390625


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="set 2 have other names or shapes"):
        mean_of([{"w": torch.ones(2)}, {"w": torch.ones(3)}])
    with pytest.raises(ValueError, match="no weights to average"):
        mean_of([])
