"""Trained models: our directories, Hugging Face's and llama2.c's files, read; ours, written. Never a pickle."""

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from groundup import llama2c
from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.files import PICKLES, check, is_made, write_json
from groundup.model.names import ARCHITECTURES, refusing_contradictions, rename
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.model.transformer import Transformer
from groundup.model_files import FORMAT, config_of, config_table, model_directory
from groundup.tokenizer.tokenizer import Tokenizer


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; without one the accelerator, if there is any, else the CPU.

    Raises:
        SettingsError: a device that this machine does not have.
    """
    best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if name is None:
        return best
    try:
        torch.ones(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise SettingsError(f"device {str(name)!r} is not one of this machine; the best here is {best}") from None


def load(
    path: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = torch.float32
) -> tuple[Transformer, Tokenizer | None]:
    """A trained model and its tokenizer, if there is one beside it.

    Args:
        path: a model directory of ours, a run (its `model/` is meant), a Hugging Face directory, or a `.bin` file of
            llama2.c.
        device: the best present if not given.
        dtype: of the weights, such as `torch.bfloat16` or its name.

    Raises:
        DataError: missing, damaged, a pickle, or an architecture that is not represented here, naming the setting.
        SettingsError: a tokenizer with more ids than the model; a device that is not there.

    A tokenizer of a kind that is not represented here is left out with a warning.
    """
    if llama2c.is_model(Path(path)):
        with refusing_contradictions(path):
            config, weights = llama2c.read_model(Path(path))
        return build(config, weights, str(path)).to(find_device(device), _dtype(dtype)).eval(), None
    directory = model_directory(Path(path))
    if is_made(directory):
        check(directory, "model")
    config, weights = read_weights(directory)
    model = build(config, weights, str(directory)).to(find_device(device), _dtype(dtype)).eval()
    try:
        return model, tokenizer_of(directory, config)
    except UnsupportedError as error:
        warnings.warn(f"the model is loaded without its tokenizer: {error}", stacklevel=2)
        return model, None


def read_weights(directory: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and the tensors under our names."""
    config = config_of(directory)
    table, tensors = config_table(directory), _read_tensors(directory)
    if table.get("format") == FORMAT:
        return config, tensors
    try:
        return config, rename(ARCHITECTURES[table["model_type"]], config, tensors)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{directory}: the weights do not fit the config: {error}") from None


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        try:
            names = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DataError(f"{index} is damaged: {error}") from None
        files = [directory / Path(name).name for name in sorted(names)]
    else:
        pickles = [path.name for path in sorted(directory.iterdir()) if path.suffix.lower() in PICKLES]
        if pickles:
            raise DataError(
                f"{directory} has its weights in {pickles[0]}, a pickle, which can run any program when it is loaded; "
                "ask for model.safetensors"
            )
        raise DataError(f"{directory} has no model.safetensors")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, FileNotFoundError, ValueError, OSError) as error:
            raise DataError(f"{file} is not a whole safetensors file: {error}") from None
    return tensors


def build(config: ModelConfig, weights: dict[str, Tensor], origin: str) -> Transformer:
    """A model with these weights, in their precision.

    Raises:
        DataError: naming tensors that are missing, left over or of another shape.
    """
    config = _tied_or_not(config, weights, origin)
    with refusing_contradictions(origin), torch.device("meta"):
        model = Transformer(config)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"left over {name}" for name in weights if name not in wanted]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    problems += [
        f"{name} is in {w.dtype}, not in floating point" for name, w in weights.items() if not w.dtype.is_floating_point
    ]
    if problems:
        raise DataError(f"{origin}: the weights do not fit the config: {'; '.join(problems[:5])}")
    model.load_state_dict({name: weight.contiguous() for name, weight in weights.items()}, strict=False, assign=True)
    model.tie()
    return model


def _tied_or_not(config: ModelConfig, weights: dict[str, Tensor], origin: str) -> ModelConfig:
    """Leaves one of the two matrices of a tied head; a head that is stored and another is taken for what it is."""
    if not isinstance(config.head, LanguageModel) or not config.head.tied or "head.weight" not in weights:
        return config
    weights.setdefault("embed.weight", weights["head.weight"])
    if torch.equal(weights["embed.weight"], weights["head.weight"]):
        del weights["head.weight"]
        return config
    warnings.warn(
        f"{origin} says that the head is tied to the embedding, but holds another one: it is read as not tied",
        stacklevel=3,
    )
    return config.model_copy(update={"head": config.head.model_copy(update={"tied": False})})


def save(directory: Path, config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer | None) -> None:
    """Write `config.json`, `model.safetensors` and `tokenizer.json` into a directory that is being made."""
    write_json(directory / "config.json", {"format": FORMAT, "model": config.table()})
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    try:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # the library hides which error the system gave
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else error) from None
    if tokenizer is not None:
        tokenizer.save(directory)


def tokenizer_of(directory: Path, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer beside a model, if there is one.

    Raises:
        UnsupportedError: of a kind that is not represented here.
        SettingsError: it has more ids than the model.
    """
    names = ("tokenizer.json", "vocab.json", "encoder.json", "tokenizer.model")
    if not any((directory / name).is_file() for name in names):
        return None
    tokenizer = Tokenizer.load(directory)
    if config.vocab_size is not None and tokenizer.vocab_size > config.vocab_size:
        raise SettingsError(
            f"the tokenizer in {directory} has {tokenizer.vocab_size:,} ids, the model {config.vocab_size:,}: "
            "they do not belong together"
        )
    return tokenizer


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise SettingsError(f"dtype {dtype!r} is not one of torch's; try float32 or bfloat16")
    return found
