"""Training that begins with the weights of another model: what must fit, and how they are taken over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from groundup import pretrained
from groundup.errors import SettingsError
from groundup.model.settings import LearnedPosition, ModelConfig
from groundup.model_files import config_of
from groundup.optim.precision import Masters
from groundup.settings import differences
from groundup.tokenizer.tokenizer import Tokenizer


def check_start(start: Path, model: ModelConfig, tokenizer: Tokenizer, say: Callable[[str], None]) -> None:
    """Refuse, before the first step, to begin a model with the weights of one that is shaped or speaks otherwise.

    Args:
        start: a model that `pretrained.load` reads.
        model: what the recipe describes.
        tokenizer: the one of the run.

    Raises:
        SettingsError: listing the settings that differ, or saying whose tokenizer it is.
        DataError: a model that is missing, damaged, or not represented here.
    """
    loaded, own = pretrained.load(start, device="cpu")
    found = differences(_shape(model), _shape(loaded.config))
    if found:
        lines = [f"the model in {start}, with which pretrain.start begins, is not the one that [model] describes:"]
        lines += [
            f"  model.{name}: {_shown(here)} in the recipe, {_shown(there)} there"
            for name, (here, there) in found.items()
        ]
        lines += [
            f"Set these as they are there, or let `groundup new NAME --from TEXTS --start {start}` write a recipe"
        ]
        raise SettingsError("\n".join(lines))
    rows = loaded.config.vocab_size or 0
    if own is None:
        if tokenizer.vocab_size > rows:
            raise SettingsError(
                f"the tokenizer has {tokenizer.vocab_size:,} ids, the model in {start} rows for {rows:,}: they do not "
                "belong together"
            )
        say(f"the model in {start} came without its tokenizer: that the ids are its own is not checked")
    elif own.digest != tokenizer.digest:
        raise SettingsError(
            f"the tokenizer of the run ({tokenizer.vocab_size:,} ids, {tokenizer.digest[:8]}…) is not that of the "
            f"model in {start} ({own.vocab_size:,} ids, {own.digest[:8]}…), whose weights know tokens by its ids: set "
            f'tokenizer.kind = "existing" and tokenizer.path to that directory'
        )


def with_vocabulary_of(start: Path, model: ModelConfig) -> ModelConfig:
    """The model with as many rows as the one it begins with, which may have more than its tokenizer has ids."""
    return model.with_vocabulary(config_of(start).vocab_size or 0)


@torch.no_grad()
def take_weights(start: Path, masters: Masters) -> None:
    """Put the weights of the model in `start` in the place of those of the same name.

    What it does not have, heads for further tokens, stays as it was drawn.
    """
    loaded, _ = pretrained.load(start, device="cpu")
    for name, weight in loaded.named_parameters():
        masters.copies[name].copy_(weight)
    masters.publish()


def _shape(config: ModelConfig) -> dict[str, Any]:
    """What decides which weights there are and what is computed with them, the defaults written out."""
    table = config.table()
    table |= {"n_kv_heads": config.kv_heads, "d_head": config.head_width, "d_ff": config.feedforward_width}
    own = {"vocab_size", "dropout"}
    if not isinstance(config.position, LearnedPosition):
        own.add("context_length")  # no weight depends on it
    table["attention"] = {name: value for name, value in table["attention"].items() if name != "dropout"}
    return {name: value for name, value in table.items() if name not in own}


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
