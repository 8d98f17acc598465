"""Training that begins with the weights of another model: what must fit, and how they are taken over."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.corpus.document import SPLITS
from groundup.errors import SettingsError
from groundup.model.settings import LearnedPosition, ModelConfig
from groundup.settings import differences, toml_value
from groundup.shards import count_ids, open_split
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.pieces import block, piece_of
from groundup.weights.files import config_of
from groundup.weights.load import load, load_model


def check_start(
    start: Path,
    model: ModelConfig,
    tokenizer: Tokenizer,
    shards: Path,
    prompts: Iterable[str],
    say: Callable[[str], None],
) -> None:
    """Refuse, before the first step, to begin a model with the weights of one that is shaped or speaks otherwise.

    Args:
        start: a model that `load` reads.
        model: what the recipe describes.
        tokenizer: the one of the run.
        shards: what it made of the texts, and
        prompts: texts that the model will be asked to continue; every id of both must have a row.

    Raises:
        SettingsError: listing the settings that differ, saying whose tokenizer it is, or naming a token without a row.
        DataError: a model that is missing, damaged, or not represented here.
    """
    loaded, own = load(start, device="cpu")
    found = differences(_shape(model), _shape(loaded.config))
    if found:
        lines = [f"the model in {start}, with which pretrain.start begins, is not the one that [model] describes:"]
        lines += [
            f"  model.{name}: {toml_value(here)} in the recipe, {toml_value(there)} there"
            for name, (here, there) in found.items()
        ]
        remedy = f"Set these as they are there, or let `groundup new NAME --from TEXTS --start {start}` write a recipe"
        raise SettingsError("\n".join([*lines, remedy]))
    if own is None:
        say(f"the model in {start} came without its tokenizer: that the ids are its own is not checked")
    elif own.digest != tokenizer.digest:
        raise SettingsError(
            f"the tokenizer of the run ({tokenizer.vocab_size:,} ids, {tokenizer.digest[:8]}…) is not that of the "
            f"model in {start} ({own.vocab_size:,} ids, {own.digest[:8]}…), whose weights know tokens by its ids: set "
            f'tokenizer.kind = "existing" and tokenizer.path to that directory'
        )
    rows = loaded.config.vocab_size or 0
    if tokenizer.vocab_size > rows:  # such as special tokens, which no text has
        for split in SPLITS:
            used = count_ids([open_split(shards, split).ids], tokenizer.vocab_size).nonzero()[0]
            tokenizer.refuse_without_row(used.tolist(), rows, f"a {split} document")
        for prompt in prompts:
            tokenizer.refuse_without_row(tokenizer.encode(prompt), rows, f"the prompt {prompt!r}")


def with_vocabulary(model: ModelConfig, tokenizer: Tokenizer, start: Path | None) -> ModelConfig:
    """The model with a row for each id; with as many as the model in `start` has, which may be more or fewer."""
    return model.with_vocabulary(tokenizer.vocab_size if start is None else config_of(start).vocab_size or 0)


@torch.no_grad()
def take_weights(start: Path, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of the model in `start` into those of the same name, or into the parts of them that are here.

    What it does not have, heads for further tokens, stays as it was drawn.
    """
    loaded = load_model(start, device="cpu")
    there = dict(loaded.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        if name in there:
            piece = piece_of(weight)
            piece.local.copy_(there[name][block(piece.offset, piece.local.shape)])


def _shape(config: ModelConfig) -> dict[str, Any]:
    """What decides which weights there are and what is computed with them, the defaults written out."""
    table = config.table()
    table |= {"n_kv_heads": config.kv_heads, "d_head": config.head_width, "d_ff": config.feedforward_width}
    own = {"vocab_size", "dropout"}
    if not isinstance(config.position, LearnedPosition):
        own.add("context_length")  # no weight depends on it
    table["attention"] = {name: value for name, value in table["attention"].items() if name != "dropout"}
    return {name: value for name, value in table.items() if name not in own}
