"""Trained models: our directories, Hugging Face's and llama2.c's files, read; ours, written. Never a pickle."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from groundup.artifacts import check, is_made
from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.files import PICKLES, write_json
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights import llama2c
from groundup.weights.files import (
    FORMAT,
    config_of,
    config_table,
    is_finite,
    model_directory,
    not_finite_weights,
    refuse_not_finite,
    tokenizer_of,
    weight_files,
)
from groundup.weights.names import ARCHITECTURES, refusing_contradictions, rename


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

    >>> import tempfile
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(
    ...         Path(folder), model.config, dict(model.named_parameters()), Tokenizer.learn("low lower", vocab_size=320)
    ...     )
    ...     again, tokenizer = load(folder)
    >>> ids = torch.tensor([tokenizer.encode("lower")])
    >>> torch.equal(again(ids), model.eval()(ids))
    True
    """
    model = load_model(path, device=device, dtype=dtype)
    if llama2c.is_model(Path(path)):
        return model, None
    try:
        return model, tokenizer_of(model_directory(Path(path)), model.config)
    except UnsupportedError as error:
        warnings.warn(f"the model is loaded without its tokenizer: {error}", stacklevel=2)
        return model, None


def load_with_tokenizer(path: Path, device: str | torch.device | None = None) -> tuple[Transformer, Tokenizer]:
    """The same for who needs both.

    Raises:
        DataError: also where there is no tokenizer, or one that is not represented here, by the name of its file.
    """
    if llama2c.is_model(path):
        raise DataError(f"{path} is a model of llama2.c, which comes without a tokenizer that is read here")
    directory = model_directory(path)
    model = load_model(path, device=device)
    tokenizer = tokenizer_of(directory, model.config)
    if tokenizer is None:
        raise DataError(f"{directory} has no tokenizer: put its tokenizer.json beside config.json")
    return model, tokenizer


def load_model(
    path: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = torch.float32
) -> Transformer:
    """The model alone; `path`, `device` and `dtype` as of `load`.

    >>> import tempfile
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder), model.config, dict(model.named_parameters()), tokenizer=None)
    ...     load_model(folder, device="cpu", dtype="bfloat16").embed.weight.dtype
    torch.bfloat16
    """
    if llama2c.is_model(Path(path)):
        with refusing_contradictions(path):
            config, weights = llama2c.read_model(Path(path))
        refuse_not_finite(Path(path), (name for name, weight in weights.items() if not is_finite(weight.numpy())))
        return build(config, weights, str(path)).to(find_device(device), _dtype(dtype)).eval()
    directory = model_directory(Path(path))
    if is_made(directory):
        check(directory, "model")
    config, weights = read_weights(directory)
    return build(config, weights, str(directory)).to(find_device(device), _dtype(dtype)).eval()


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
    files = weight_files(directory)
    if not files:
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
    refuse_not_finite(directory, not_finite_weights(directory))
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
    """Write `config.json`, `model.safetensors` and `tokenizer.json` into a directory, for `load`.

    Args:
        directory: is there; that of a `making` draft, for a model whose every byte is checked as it is loaded.
        weights: by name, as of `dict(model.named_parameters())`, where a tied head is named once.
        tokenizer: None for none.

    >>> import tempfile
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(
    ...         Path(folder), model.config, dict(model.named_parameters()), Tokenizer.learn("low lower", vocab_size=320)
    ...     )
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['config.json', 'model.safetensors', 'tokenizer.json']
    """
    write_json(directory / "config.json", {"format": FORMAT, "model": config.table()})
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    try:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # the library hides which error the system gave
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else error) from None
    if tokenizer is not None:
        tokenizer.save(directory)


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise SettingsError(f"dtype {dtype!r} is not one of torch's; try float32 or bfloat16")
    return found
