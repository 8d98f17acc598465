"""Memory: the bytes that training keeps of a model's weights, by precision and optimizer."""

import torch

from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.averaging import RunningAverage
from groundup.optim.masters import Masters
from groundup.optim.optimizer import make_optimizer
from groundup.optim.precision import weight_dtype
from groundup.optim.settings import Average, ExponentialAverage, Optimizer, Precision


def state_bytes(
    config: ModelConfig, precision: Precision, optimizer: Optimizer, average: Average | None = None
) -> dict[str, int]:
    """Bytes of `weight`, `master copy`, `gradient`, `optimizer` and `average`, as far as there are such.

    Read off the tensors themselves, made on the meta device, where they have shapes but no memory; counts of steps are
    left out. Gradients are float32 in every precision: those of a half-precision model are added up on its masters.

    >>> from groundup.model.presets import PRESETS
    >>> from groundup.optim.settings import Bfloat16, Lion
    >>> {part: n / 124_439_808 for part, n in state_bytes(PRESETS["gpt2"].model, Bfloat16(), Lion()).items()}
    {'weight': 2.0, 'master copy': 4.0, 'gradient': 4.0, 'optimizer': 4.0}
    """
    with torch.device("meta"):
        model = Transformer(config)
    masters = Masters(model, weight_dtype(precision))
    made = make_optimizer(masters.copies.items(), optimizer)
    remembered = sum(tensor.nbytes for state in made.state.values() for tensor in state.values() if tensor.ndim)
    if isinstance(average, ExponentialAverage):
        RunningAverage(masters, made, average.decay)
    averages = sum(state["average"].nbytes for state in made.state.values() if "average" in state)
    weights = sum(weight.nbytes for weight in model.parameters())
    copies = sum(copy.nbytes for copy in masters)
    has_copies = weight_dtype(precision) != torch.float32
    kept = {
        "weight": weights,
        "master copy": copies if has_copies else 0,
        "gradient": copies,
        "optimizer": remembered,
        "average": averages,
    }
    return {part: n for part, n in kept.items() if n}
