"""Unfit: what a model refuses to read, with words for it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.model.settings import ModelConfig


def refuse_unfit(config: ModelConfig, embeds: bool, tokens: Tensor, position: Tensor | None) -> None:
    """By shapes and types alone: values would be waited for on a GPU.

    Args:
        embeds: whether the model has an embedding; without, as in the later stages of a pipeline, `tokens` are hidden
            states.

    Raises:
        ValueError: shapes that do not fit, or more tokens than `context_length`.
        TypeError: tokens that are not ids.
    """
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens are of type {type(tokens).__name__}; give a tensor, such as torch.tensor([ids])")
    shape, most = tuple(tokens.shape), config.context_length
    if embeds and tokens.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"tokens are of type {tokens.dtype}; they should be ids, of type torch.int64: tokens.long()")
    wrong = [
        (
            not embeds and (len(shape) != 3 or shape[2] != config.d_model),
            f", but a model without an embedding reads hidden states, (rows, length, {config.d_model})",
        ),
        (embeds and len(shape) != 2, "; it should be (rows, length), for one text tokens[None]"),
        (0 in shape[:2], ": there is nothing to read; give a row or more, of a token or more"),
        (
            len(shape) > 1 and shape[1] > most,
            f", but the model reads at most context_length = {most:,} at once: cut them, or make a Transformer of the "
            "same config with another context_length for these weights",
        ),
    ]
    for is_wrong, why in wrong:
        if is_wrong:
            raise ValueError(f"tokens have shape {shape}{why}")
    if position is not None and position.shape != shape[:2]:
        raise ValueError(f"position has shape {tuple(position.shape)}; it should be that of the tokens, {shape[:2]}")


def row_of(table: nn.Embedding, number: Int[Tensor, "B T"], what: str) -> Float[Tensor, "B T D"]:
    """The row of a table for each number.

    Raises:
        IndexError: a row that is not in the table; on a CPU. On a GPU torch ends the process's work there.
    """
    try:
        row: Tensor = table(number)
    except IndexError:
        raise IndexError(
            f"{what} go from {number.min()} to {number.max()}, but this model has 0 to {table.num_embeddings - 1}"
        ) from None
    return row
