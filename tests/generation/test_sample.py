"""Sampling is the stated distribution."""

import pytest
import torch
from torch.testing import assert_close

from groundup.errors import SettingsError
from groundup.generation.sample import adjusted, draw, probabilities, uniform
from groundup.generation.settings import Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, LOGITS.softmax(0)),
        ({"temperature": 0.5}, (LOGITS * 2).softmax(0)),
        ({"temperature": 0.0}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"temperature": 1e-45}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"temperature": 1.0, "top_k": 2}, torch.cat([LOGITS[:2].softmax(0), torch.zeros(3)])),
        ({"temperature": 1.0, "top_k": 9}, LOGITS.softmax(0)),
        # shares 0.606, 0.223, 0.135, …: the first two reach 0.7, one alone reaches 0.6
        ({"temperature": 1.0, "top_p": 0.7}, torch.cat([LOGITS[:2].softmax(0), torch.zeros(3)])),
        ({"temperature": 1.0, "top_p": 0.6}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"temperature": 1.0, "top_p": 1.0}, LOGITS.softmax(0)),
        # the second has 0.37 of the first's, the third 0.22
        ({"temperature": 1.0, "min_p": 0.3}, torch.cat([LOGITS[:2].softmax(0), torch.zeros(3)])),
        ({"temperature": 1.0, "min_p": 1.0}, torch.tensor([1.0, 0, 0, 0, 0])),
    ],
)
def test_the_distribution_is_the_stated_one(options: dict[str, float], expected: torch.Tensor) -> None:
    rows = probabilities(torch.stack([LOGITS, LOGITS.flip(0)]), Sampling.from_table(options))
    assert_close(rows, torch.stack([expected, expected.flip(0)]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"repetition_penalty": 2.0}, [1.0, 0.5, 0.5, -2.0, -3.0]),  # of ids 0, 1 and 3, whichever are whose
        ({"presence_penalty": 0.5}, [2.0, 0.5, 0.5, -1.5, -3.0]),  # of the answer's ids, 1 and 3
        ({"frequency_penalty": 0.5}, [2.0, 0.0, 0.5, -1.5, -3.0]),  # of 1 twice
        ({"logit_bias": {"4": 2.5, 0: -1.0}}, [1.0, 1.0, 0.5, -1.0, -0.5]),
    ],
)
def test_penalties_and_biases_are_those_of_the_ids(options: dict[str, object], expected: list[float]) -> None:
    scores = adjusted(LOGITS, Sampling.from_table(options), prompt=[0], answer=[1, 3, 1])
    assert_close(scores, torch.tensor(expected))
    assert_close(LOGITS[:2], torch.tensor([2.0, 1.0]), msg="the model's scores stay")


def test_draws_follow_the_distribution() -> None:
    row = probabilities(LOGITS[None], Sampling(temperature=1.0))
    drawn = draw(row.expand(4000, -1), [uniform(0, number) for number in range(4000)])
    assert_close(torch.bincount(drawn, minlength=5) / 4000, LOGITS.softmax(0), atol=0.03, rtol=0)
    # four standard deviations of the largest share


def test_a_draw_never_takes_what_has_no_share() -> None:
    shares = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    ends = [0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53]
    assert draw(shares.expand(4, -1), ends).tolist() == [1, 1, 3, 3]


def test_a_row_is_drawn_alike_in_every_company() -> None:
    shares = torch.randn(9, 1000, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    uniforms = [uniform(seed, 4) for seed in range(9)]
    together = draw(shares, uniforms)
    assert [int(draw(row[None], [each])) for row, each in zip(shares, uniforms, strict=True)] == together.tolist()


def test_two_constraints_are_one_too_many() -> None:
    with pytest.raises(SettingsError, match="regex and json_schema are both set"):
        Sampling(regex="a", json_schema="{}")
