"""Tasks: what can be asked of a model while it is trained. Each reads held-out documents and gives numbers by name.

A task is given the documents in windows of the context length, as `score` is. N positions, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from groundup.batch import to
from groundup.evals.score import documents_within, score, windows
from groundup.files import Progress, no_progress
from groundup.model.transformer import Transformer, evaluating
from groundup.shards import Tokens
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.losses import CHUNK, by_document, token_logprobs

Task = Callable[[Transformer, Tokenizer, Tokens, int | None, int, Progress], dict[str, float]]
"""(model, tokenizer, documents, most tokens to read, rows at once, progress) → name of each number → it."""
CALIBRATION_BINS = 10


def bits_per_byte(
    model: Transformer,
    tokenizer: Tokenizer,
    shards: Tokens,
    max_tokens: int | None,
    batch_rows: int,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """As the evaluation stage measures it, on fewer tokens."""
    return {
        "bits_per_byte": score(
            model, shards, max_tokens=max_tokens, batch_rows=batch_rows, progress=progress
        ).bits_per_byte
    }


def bits_per_byte_by_position(
    model: Transformer,
    tokenizer: Tokenizer,
    shards: Tokens,
    max_tokens: int | None,
    batch_rows: int,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Bits per byte of the tokens that are predicted from positions 0–3 of a window, from 4–15, 16–63, …: falling
    numbers say that the model uses what it has read. `bits_per_byte_from_16` is of positions 16 to 63."""
    sizes = np.array([len(token) for token in tokenizer.tokens])
    sizes[list(tokenizer.special.values())] = 0  # they are not text
    device = next(model.parameters()).device
    bounds = [0, *(4**n for n in range(1, 16) if 4**n < model.config.context_length)]
    bits, n_bytes = np.zeros(len(bounds)), np.zeros(len(bounds))
    with evaluating(model):
        n_documents = documents_within(shards, max_tokens)
        for window in windows(shards, model.config.context_length, n_documents, batch_rows, progress):
            logprobs = token_logprobs(model, to(window.batch, device), by_document).cpu().double()
            bucket = np.searchsorted(bounds, window.batch.position[window.own].numpy(), side="right") - 1
            np.add.at(bits, bucket, -logprobs[window.own].numpy() / math.log(2))
            np.add.at(n_bytes, bucket, sizes[window.batch.targets[window.own].numpy()])
    return {f"bits_per_byte_from_{bound}": float(bits[i] / n_bytes[i]) for i, bound in enumerate(bounds) if n_bytes[i]}


def next_token_accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    shards: Tokens,
    max_tokens: int | None,
    batch_rows: int,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Share of tokens that were the likeliest one."""
    right = total = 0
    for logits, targets in _predictions(model, shards, max_tokens, batch_rows, progress):
        right += int((logits.argmax(dim=-1) == targets).sum())
        total += len(targets)
    return {"next_token_accuracy": right / total}


def calibration(
    model: Transformer,
    tokenizer: Tokenizer,
    shards: Tokens,
    max_tokens: int | None,
    batch_rows: int,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Expected calibration error: how far, on average, the probability of the likeliest token is from how often it is
    right, in ten bins of that probability (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    count, sure, right = (np.zeros(CALIBRATION_BINS) for _ in range(3))
    for logits, targets in _predictions(model, shards, max_tokens, batch_rows, progress):
        confidence, likeliest = logits.float().softmax(dim=-1).max(dim=-1)
        place = np.minimum((confidence.cpu().numpy() * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        np.add.at(count, place, 1)
        np.add.at(sure, place, confidence.cpu().double().numpy())
        np.add.at(right, place, (likeliest == targets).cpu().double().numpy())
    return {"calibration_error": float(np.abs(sure - right).sum() / count.sum())}


def _predictions(
    model: Transformer, shards: Tokens, max_tokens: int | None, batch_rows: int, progress: Progress
) -> Iterator[tuple[Float[Tensor, "N V"], Int[Tensor, "N"]]]:
    """Logits and the token that came, for every position of the documents, some at a time."""
    device = next(model.parameters()).device
    with evaluating(model):
        n_documents = documents_within(shards, max_tokens)
        for window in windows(shards, model.config.context_length, n_documents, batch_rows, progress):
            batch, own = to(window.batch, device), window.own.to(device)
            hidden = model.hidden(batch.tokens, batch.position, by_document(batch))[own]
            for rows, targets in zip(hidden.split(CHUNK), batch.targets[own].split(CHUNK), strict=True):
                yield model.logits(rows), targets


TASKS: dict[str, Task] = {
    "bits_per_byte": bits_per_byte,
    "bits_per_byte_by_position": bits_per_byte_by_position,
    "next_token_accuracy": next_token_accuracy,
    "calibration": calibration,
}
FIRST_NUMBER = {"bits_per_byte_by_position": "bits_per_byte_from_0", "calibration": "calibration_error"}
"""Name of the first number of a task, where it is not the task's own."""
