"""Scaling laws from the literature, for choosing sizes. N parameters, D tokens read, U different tokens."""

import math

PASSES_WORTH = 15.4
"""Readings of the same text after which one more is worth 1/e of a first one (R_D*; Muennighoff et al. 2023,
arXiv:2305.16264, section 6)."""
MOST_PASSES = 8
"""Four readings are nearly as good as new text (Muennighoff et al. 2023, section 6); ours of small texts went on
improving to about ten, and overfitted from then on (docs/log.md)."""
TOKENS_PER_PARAMETER = 20
"""Hoffmann et al. 2022, arXiv:2203.15556, table 3."""


def effective_tokens(tokens: float, unique: float) -> float:
    """What D tokens, of which U are different ones, are worth in new ones (Muennighoff et al. 2023, eq. 5).

    >>> round(effective_tokens(1e6, 1e6)), round(effective_tokens(4e6, 1e6)), round(effective_tokens(1e9, 1e6))
    (1000000, 3725878, 16400000)
    """
    repeats = max(0.0, tokens / unique - 1)
    return min(tokens, unique) * (1 + PASSES_WORTH * (1 - math.exp(-repeats / PASSES_WORTH)))


def loss(parameters: float, tokens: float, unique: float) -> float:
    """Expected loss in nats per token: the form of Hoffmann et al. 2022, eq. 2, refitted by Besiroglu et al. 2024
    (arXiv:2404.10102; digits as in their notebook). For *comparing* sizes: it was fitted on other texts, and on models
    far larger than a laptop's.

    The penalty on parameters of Muennighoff et al. 2023 is left out: by it no model above half a million parameters
    gains anything on a million tokens, and ours do (docs/log.md).
    """
    return (
        1.8169 + 482.01 / math.pow(parameters, 0.34781) + 2085.43 / math.pow(effective_tokens(tokens, unique), 0.36585)
    )


def batch_tokens(flops: float) -> float:
    """Tokens per step for a training of so many FLOPs (DeepSeek LLM 2024, arXiv:2401.02954, eq. 1)."""
    return 0.2920 * math.pow(flops, 0.3271)


def learning_rate(flops: float) -> float:
    """Peak learning rate for a training of so many FLOPs (DeepSeek LLM 2024, arXiv:2401.02954, eq. 1)."""
    return 0.3118 * math.pow(flops, -0.1250)
