"""Measurements of held-out documents that a recipe may ask for while it trains: functions that return numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from groundup.evals.score import HeldOut
from groundup.evals.settings import MeasurementName
from groundup.model.transformer import evaluating

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Measurement:
    """Something to measure, and how its numbers are called."""

    function: Callable[[HeldOut], dict[str, float]]
    first_number: str
    """The name of its first number, by which training sees whether it has measured."""

    def measure(self, held_out: HeldOut) -> dict[str, float]:
        """Its numbers by their names in the metrics; the model is in `eval()` meanwhile."""
        with evaluating(held_out.model):
            return self.function(held_out)


def bits_per_byte(held_out: HeldOut) -> dict[str, float]:
    """Bits per byte as the evaluation stage measures them, on fewer tokens."""
    return {"bits_per_byte": held_out.score().bits_per_byte}


def bits_per_byte_by_position(held_out: HeldOut) -> dict[str, float]:
    """Bits per byte of the tokens that are predicted from positions 0–3 of a window, from 4–15, 16–63, …: falling
    numbers say that the model uses what it has read. `bits_per_byte_from_16` is of positions 16 to 63."""
    sizes = np.array([len(token) for token in held_out.tokenizer.tokens])
    sizes[list(held_out.tokenizer.special.values())] = 0  # they are not text
    bounds = [0, *(4**n for n in range(1, 16) if 4**n < held_out.model.config.context_length)]
    bits, n_bytes = np.zeros(len(bounds)), np.zeros(len(bounds))
    for window, logprobs in held_out.logprobs():
        bucket = np.searchsorted(bounds, window.batch.position[window.own].numpy(), side="right") - 1
        np.add.at(bits, bucket, -logprobs[window.own].numpy() / math.log(2))
        np.add.at(n_bytes, bucket, sizes[window.batch.targets[window.own].numpy()])
    return {f"bits_per_byte_from_{bound}": float(bits[i] / n_bytes[i]) for i, bound in enumerate(bounds) if n_bytes[i]}


def next_token_accuracy(held_out: HeldOut) -> dict[str, float]:
    """Share of tokens to which the model gave the highest probability."""
    right = total = 0
    for logits, targets in held_out.predictions():
        right += int((logits.argmax(dim=-1) == targets).sum())
        total += len(targets)
    return {"next_token_accuracy": right / total}


def calibration(held_out: HeldOut) -> dict[str, float]:
    """Expected calibration error: how far, on average, the probability of the likeliest token is from how often it is
    right, in ten bins of that probability (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    count, confident, right = (np.zeros(CALIBRATION_BINS) for _ in range(3))
    for logits, targets in held_out.predictions():
        confidence, likeliest = logits.float().softmax(dim=-1).max(dim=-1)
        bins = np.minimum((confidence.cpu().numpy() * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        np.add.at(count, bins, 1)
        np.add.at(confident, bins, confidence.cpu().double().numpy())
        np.add.at(right, bins, (likeliest == targets).cpu().double().numpy())
    return {"calibration_error": float(np.abs(confident - right).sum() / count.sum())}


MEASUREMENTS: dict[MeasurementName, Measurement] = {
    "bits_per_byte": Measurement(bits_per_byte, "bits_per_byte"),
    "bits_per_byte_by_position": Measurement(bits_per_byte_by_position, "bits_per_byte_from_0"),
    "next_token_accuracy": Measurement(next_token_accuracy, "next_token_accuracy"),
    "calibration": Measurement(calibration, "calibration_error"),
}
"""By the name that a recipe asks for."""
