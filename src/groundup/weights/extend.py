"""Add tokens to a trained model: ids after the last one, rows that begin as the mean of the rows of their parts.

The parts of a new token are the tokens that its text was encoded as before. V rows of a matrix over the vocabulary, of
which the tokenizer's ids may be fewer; D width of a token's vector.

A score is linear in its row. So old ids keep their scores, and a new token's score is the mean of its parts' scores,
which never beats the best of them (as no point in the convex hull of the rows does: Mundra et al. 2024,
arXiv:2407.05841). Averaging the parts is Gee et al. 2022 (arXiv:2402.09977); Hewitt 2021, "Initializing New Word
Embeddings", averages all rows, as is done here for rows that no token has. docs/log.md has the measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from groundup.artifacts import is_made, making, read_manifest
from groundup.errors import DataError, SettingsError
from groundup.files import reading
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.tokenizer.declared import read_table
from groundup.tokenizer.settings import MULTIPLE
from groundup.weights.files import digest_of, layout_of, model_directory, required_tokenizer
from groundup.weights.load import build, read_weights
from groundup.weights.write import write_model


@dataclass(frozen=True)
class Extended:
    """What was added to a model."""

    ids: dict[str, int]
    """Text of each new token → its id."""
    pieces: dict[str, list[str]]
    """Text of each new token → the tokens that it was before; a byte that is not UTF-8 is shown as U+FFFD."""
    rows: tuple[int, int]
    """Rows of the matrices over the vocabulary, before and after."""


def extend(source: Path, out: Path, added: Sequence[str] = (), special: Sequence[str] = ()) -> Extended:
    """Write the model in `source` with more tokens into `out`.

    Args:
        source: a model directory, a run, or a Hugging Face directory, with its tokenizer.
        added: texts that become tokens wherever they stand.
        special: texts that become tokens only where they are allowed.

    Raises:
        SettingsError: no token, or one that cannot be added; a tokenizer that is not the model's; `out` exists.
        DataError: a model that cannot be read, or has no tokenizer.
    """
    if not added and not special:
        raise SettingsError('name the tokens to add: --add " photosynthesis", --special "<|tool|>" or --from FILE')
    if out.exists():
        raise SettingsError(f"{out} exists and is left as it is: choose another --out, or move it away")
    base, before = digest_of(source), required_tokenizer(source)
    directory = model_directory(source)
    made = read_manifest(directory).statistics if is_made(directory) else {}
    model = build(*read_weights(directory), str(directory))
    rows = model.config.vocab_size or 0
    if before.vocab_size > rows:
        beyond = before.tokens[rows].decode("utf-8", "replace")
        raise SettingsError(
            f"the tokenizer in {directory} has {before.vocab_size:,} ids, the model rows for {rows:,}: take the tokens "
            f"from {beyond!r} on out of the tokenizer, and add them with --special or --add"
        )
    after = before.extended(added, special)
    parts = {text: before.encode(text) for text in (*added, *special)}
    config = add_rows(model.config, after.vocab_size)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    for name in names_over_vocabulary(config):
        parameters[name] = widen(parameters[name], before.vocab_size, list(parts.values()), config.vocab_size or 0)
    settings = {"model": config.table(), "extend": {"added": list(added), "special": list(special)}}
    with making(out, "model", settings, {"base": base}) as draft:
        sampling, layout = read_table(directory / "generation.json"), layout_of(directory, before)
        write_model(draft, config, parameters, after, sampling, layout)
        draft.statistics |= {name: made[name] for name in ("steps", "tokens") if name in made}
    return Extended(
        ids={text: before.vocab_size + number for number, text in enumerate(parts)},
        pieces={text: [before.decode([i]) for i in ids] for text, ids in parts.items()},
        rows=(rows, config.vocab_size or 0),
    )


def read_tokens(path: Path) -> list[str]:
    """The lines of a file with the whitespace at their ends; empty lines are left out.

    Raises:
        DataError: missing, or not UTF-8.
    """
    try:
        with reading(path) as stream:
            lines = stream.read().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start:,}") from None
    return [text for line in lines if (text := line.removesuffix("\r"))]


def add_rows(config: ModelConfig, ids: int) -> ModelConfig:
    """The model with rows for `ids` ids. Rows that it has beyond them stay; a multiple of 64 becomes one again."""
    rows = config.vocab_size or 0
    if ids > rows:
        rows = -(-ids // MULTIPLE) * MULTIPLE if rows % MULTIPLE == 0 else ids
    return config.with_vocabulary(rows)


def names_over_vocabulary(config: ModelConfig) -> list[str]:
    """The names of the parameters that have a row for each token."""
    names = ["embed.weight"]
    if isinstance(config.head, LanguageModel):
        names += [] if config.head.tied else ["head.weight"]
        names += ["head.bias"] if config.head.bias else []
    return names


@torch.no_grad()
def widen(matrix: Tensor, ids: int, parts: Sequence[Sequence[int]], rows: int) -> Tensor:
    """Bring a (V, D) matrix or (V,) bias to `rows` rows, of which those from `ids` on are new.

    Args:
        ids: how many ids the tokenizer had; rows beyond were never used.
        parts: for each new token, the rows whose mean it begins as.

    Rows beyond those of `parts` stay if they were there; otherwise they begin as the mean of all `ids` rows.

    >>> widen(torch.tensor([1.0, 2.0, 6.0, 7.0]), 3, [[0, 1]], 6)
    tensor([1.0000, 2.0000, 6.0000, 1.5000, 3.0000, 3.0000])
    """
    means = torch.stack([matrix[list(each)].double().mean(dim=0) for each in parts]).to(matrix.dtype)
    kept = torch.cat([matrix[:ids], means, matrix[ids + len(means) :]])
    spare = matrix[:ids].double().mean(dim=0).to(matrix.dtype)
    return torch.cat([kept, spare.expand(rows - len(kept), *spare.shape)])
