"""Measurements against plain loops over one document at a time."""

import math
from typing import get_args

import pytest
import torch

from groundup.evals.heldout import MEASUREMENTS
from groundup.evals.score import HeldOut, score
from groundup.evals.settings import MeasurementName
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.shards import Tokens, stream_of
from groundup.tokenizer.tokenizer import Tokenizer

TEXTS = ["the king and the little fox", "an old queen", "the fox went over the hill to find a golden apple " * 3]


@pytest.fixture(scope="module")
def stream(tokenizer: Tokenizer) -> Tokens:
    return stream_of([(text, len(text.encode())) for text in TEXTS], tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    torch.manual_seed(0)
    config = {"vocab_size": tokenizer.vocab_size, "context_length": 24, "d_model": 16, "n_layers": 1, "n_heads": 2}
    made = Transformer(ModelConfig.from_table({**config, "dropout": 0.5}))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return made


def measure(name: MeasurementName, model: Transformer, tokenizer: Tokenizer, stream: Tokens) -> dict[str, float]:
    return MEASUREMENTS[name].measure(HeldOut(model, tokenizer, stream, batch_rows=2))


@torch.no_grad()
def predicted(model: Transformer, stream: Tokens) -> list[tuple[int, int, torch.Tensor]]:
    """(place in its window, the token that came, probabilities) of every position, one window after another."""
    model.eval()
    found = []
    for begin, end in zip(stream.offsets[:-1], stream.offsets[1:], strict=True):
        for first in range(begin, end, 24):
            last = min(first + 24, end)
            tokens = torch.from_numpy(stream.ids[first:last].astype("int64"))[None]
            share = model(tokens)[0].softmax(dim=-1)
            found += [(n, int(stream.ids[first + n + 1]), share[n]) for n in range(last - first)]
    model.train()
    return found


def test_accuracy_is_the_share_of_likeliest_tokens(model: Transformer, tokenizer: Tokenizer, stream: Tokens) -> None:
    plain = predicted(model, stream)
    expected = sum(int(share.argmax()) == token for _, token, share in plain) / len(plain)
    assert measure("next_token_accuracy", model, tokenizer, stream) == {"next_token_accuracy": expected}


def test_calibration_error_is_that_of_its_paper(model: Transformer, tokenizer: Tokenizer, stream: Tokens) -> None:
    plain = predicted(model, stream)
    expected = 0.0
    for bin_number in range(10):
        inside = [
            (float(share.max()), int(share.argmax()) == token)
            for _, token, share in plain
            if bin_number / 10 <= float(share.max()) < (bin_number + 1) / 10
        ]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            expected += len(inside) / len(plain) * abs(confidence - accuracy)
    found = measure("calibration", model, tokenizer, stream)["calibration_error"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_bits_by_position_are_those_of_the_positions(model: Transformer, tokenizer: Tokenizer, stream: Tokens) -> None:
    special = set(tokenizer.special.values())
    expected = {}
    for first, last in ((0, 4), (4, 16), (16, 24)):
        here = [(token, share) for place, token, share in predicted(model, stream) if first <= place < last]
        bits = sum(-math.log2(float(share[token])) for token, share in here)
        size = sum(len(tokenizer.tokens[token]) for token, _ in here if token not in special)
        expected[f"bits_per_byte_from_{first}"] = bits / size
    assert measure("bits_per_byte_by_position", model, tokenizer, stream) == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_are_the_scores(model: Transformer, tokenizer: Tokenizer, stream: Tokens) -> None:
    expected = score(model, stream).bits_per_byte
    assert measure("bits_per_byte", model, tokenizer, stream) == pytest.approx({"bits_per_byte": expected})
    assert model.training, "a measurement leaves the model as it was"


def test_every_measurement_that_a_recipe_may_name_is_there() -> None:
    assert set(get_args(MeasurementName)) == set(MEASUREMENTS)


def test_the_first_number_is_the_one_it_is_known_by(model: Transformer, tokenizer: Tokenizer, stream: Tokens) -> None:
    for name, measurement in MEASUREMENTS.items():
        numbers = measure(name, model, tokenizer, stream)
        assert next(iter(numbers)) == measurement.first_number
