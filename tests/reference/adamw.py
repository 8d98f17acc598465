"""AdamW, one step at a time, in float64 NumPy (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Moments:
    """What the optimizer remembers between steps."""

    step: int
    """Steps taken."""
    mean: Arrays
    """Running mean of each parameter's gradient."""
    mean_square: Arrays
    """Running mean of its square."""


def no_moments(parameters: Arrays) -> Moments:
    """Before the first step."""
    zeros = {name: np.zeros_like(parameter) for name, parameter in parameters.items()}
    return Moments(0, zeros, zeros)


def adamw(
    parameters: Arrays,
    gradients: Arrays,
    moments: Moments,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> tuple[dict[str, np.ndarray], Moments]:
    """New parameters and moments after one step.

    With g the gradient, θ the parameter and t the number of the step, from 1 (lines of algorithm 2):

        m ← β₁ m + (1 − β₁) g                            (7)
        v ← β₂ v + (1 − β₂) g²                           (8)
        m̂ = m / (1 − β₁ᵗ)     v̂ = v / (1 − β₂ᵗ)          (9, 10)
        θ ← θ − η (m̂ / (√v̂ + ε) + λ θ)                   (12)

    Why the division in (9) and (10) (Kingma and Ba 2015, arXiv:1412.6980, section 3): m starts from zero, so after t
    steps it is the sum of (1 − β₁) β₁^(t−i) g_i over i = 1..t, in which the factors add up to 1 − β₁ᵗ instead of 1.

    Here η, the learning rate, multiplies the decay λ θ too, as in torch.optim.AdamW; the paper's line 12 has a learning
    rate α on the first term alone and a schedule's η on both. Only arrays with two or more axes decay; gains and biases
    do not.

    In the first step m̂ = g and v̂ = g², so every parameter moves by the learning rate, whatever its gradient's size:

    >>> start = {"weight": np.array([1.0, 1.0])}
    >>> options = dict(learning_rate=0.25, beta1=0.9, beta2=0.95, epsilon=0.0, weight_decay=0.1)
    >>> moved, _ = adamw(start, {"weight": np.array([3.0, -0.001])}, no_moments(start), **options)
    >>> moved["weight"].round(12).tolist()
    [0.75, 1.25]
    """
    step = moments.step + 1
    moved, mean, mean_square = {}, {}, {}
    for name, parameter in parameters.items():
        gradient = gradients[name]
        mean[name] = beta1 * moments.mean[name] + (1 - beta1) * gradient
        mean_square[name] = beta2 * moments.mean_square[name] + (1 - beta2) * gradient**2
        unbiased_mean = mean[name] / (1 - beta1**step)
        unbiased_mean_square = mean_square[name] / (1 - beta2**step)
        direction = unbiased_mean / (np.sqrt(unbiased_mean_square) + epsilon)
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        moved[name] = parameter - learning_rate * (direction + decay * parameter)
    return moved, Moments(step, mean, mean_square)
