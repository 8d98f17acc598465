"""Trained models, written: our own directory, and any file of tensors."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from groundup.artifacts import Draft
from groundup.files import write_json
from groundup.model.count import count
from groundup.model.settings import ModelConfig
from groundup.tokenizer import chat
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.files import FORMAT


def save(directory: Path, config: ModelConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer | None) -> None:
    """Write `config.json`, `model.safetensors` and `tokenizer.json` into a directory, for `load`.

    Args:
        directory: is there; that of a `making` draft, for a model whose every byte is checked as it is loaded.
        weights: by name, as of `dict(model.named_parameters())`, where a tied head is named once.
        tokenizer: None for none.

    >>> import tempfile
    >>> from groundup.model.transformer import Transformer
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> learned = Tokenizer.learn("low lower", vocab_size=320)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder), model.config, dict(model.named_parameters()), learned)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['config.json', 'model.safetensors', 'tokenizer.json']
    """
    write_json(directory / "config.json", {"format": FORMAT, "model": config.table()})
    file = directory / "model.safetensors"
    write_tensors(file, weights)
    shutil.copymode(directory / "config.json", file)  # the library's is the owner's alone
    if tokenizer is not None:
        tokenizer.save(directory)


def write_model(
    draft: Draft,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    sampling: Mapping[str, Any],
    layout: Mapping[str, Any] = chat.CONTINUES_TEXT,
) -> None:
    """Write a finished model into its draft, and count it in the draft's statistics.

    Args:
        weights: as of `save`; the heads for further tokens, which only training needs, are left out.
        sampling: the table of `generation.json`.
        layout: the table of `chat.json`.
    """
    kept = {name: weight for name, weight in weights.items() if not name.startswith("multi_token.")}
    save(draft.path, config, kept, tokenizer)
    write_json(draft.path / "generation.json", sampling)
    write_json(draft.path / chat.FILE, layout)
    counted = count(config)
    draft.statistics |= {
        "parameters": dict(counted.parameters),
        "forward_flops_per_token": dict(counted.forward_flops_per_token),
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file while other threads run, from the tensors' own memory where it is the CPU's.

    Args:
        metadata: further entries of the file's header.

    Raises:
        OSError: as the system gave it, such as of a full disk.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(held, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # the library hides which error the system gave
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else error) from None
