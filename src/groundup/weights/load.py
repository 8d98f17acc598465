"""Trained models, read: our directories, Hugging Face's, GGUF files and llama2.c's. Never a pickle."""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from groundup.artifacts import SMALL, is_made
from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.model.transformer import Transformer
from groundup.tensor_files import read_safetensors
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights import files
from groundup.weights.names import from_published, refusing_contradictions


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; without a name the accelerator, if there is one, else the CPU.

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
        raise SettingsError(f"this machine has no device {str(name)!r}; the best it has is {best}") from None


def load(
    path: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = torch.float32
) -> tuple[Transformer, Tokenizer | None]:
    """A trained model and its tokenizer, if there is one beside it.

    Args:
        path: a model directory of ours, a run (its `model/` is meant), a Hugging Face directory, a GGUF file, or a
            `.bin` file of llama2.c.
        device: the best present if not given.
        dtype: of the weights, such as `torch.bfloat16` or its name.

    Raises:
        DataError: missing, damaged, a pickle, or an architecture that is not represented here, naming the setting.
        SettingsError: a tokenizer with more ids than the model; a device that is not there.

    A tokenizer of a kind that is not represented here is left out with a warning.

    >>> import tempfile
    >>> from groundup.weights.write import save
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> learned = Tokenizer.learn("low lower", vocab_size=320)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder), model.config, dict(model.named_parameters()), learned)
    ...     again, tokenizer = load(folder)
    >>> ids = torch.tensor([tokenizer.encode("lower")])
    >>> torch.equal(again(ids), model.eval()(ids))
    True
    """
    model = load_model(path, device=device, dtype=dtype)
    try:
        return model, files.tokenizer_of(files.model_directory(Path(path)), model.config)
    except UnsupportedError as error:
        warnings.warn(f"the model is loaded without its tokenizer: {error}", stacklevel=2)
        return model, None


def load_with_tokenizer(path: Path, device: str | torch.device | None = None) -> tuple[Transformer, Tokenizer]:
    """A trained model and its tokenizer, both of which are needed.

    Raises:
        DataError: also where there is no tokenizer, or one that is not represented here, by the name of its file.
    """
    model = load_model(path, device=device)  # first, since it checks the digests
    return model, files.required_tokenizer(path)


def load_model(
    path: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype = torch.float32
) -> Transformer:
    """A trained model without its tokenizer. The arguments are those of `load`.

    >>> import tempfile
    >>> from groundup.weights.write import save
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder), model.config, dict(model.named_parameters()), tokenizer=None)
    ...     load_model(folder, device="cpu", dtype="bfloat16").embed.weight.dtype
    torch.bfloat16
    """
    source, chosen = files.model_directory(Path(path)), _dtype(dtype)
    if is_made(source):
        files.verify_model(source, digest_up_to=SMALL)
    config, weights = read_weights(source, chosen)
    return build(config, weights, str(source)).to(find_device(device), chosen).eval()


def read_weights(source: Path, dtype: torch.dtype | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and the tensors, under our names, of a model directory or file.

    Args:
        dtype: of the tensors of a file that holds them otherwise; as they are if not given, packed ones as float32.
    """
    config = files.config_of(source)
    try:
        if form := files.file_format(source):
            tensors = form.read_weights(source, dtype)
            files.refuse_not_finite(source, (name for name, tensor in tensors.items() if not _is_finite(tensor)))
            return config, tensors
        table, tensors = files.config_table(source), _read_tensors(source)
        if table.get("format") == files.FORMAT:
            return config, tensors
        return config, from_published(table["model_type"], config, tensors)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{source}: the weights do not fit the config: {error}") from None


def _is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or Inf, which a sum would be too; only then each is looked at, which takes memory."""
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all())


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    parts = files.weight_files(directory)
    if not parts:
        if pickles := files.pickles_in(directory):
            raise DataError(
                f"{directory} has its weights in {pickles[0].name}, a pickle, which can run any program when it is "
                "loaded; ask for model.safetensors"
            )
        raise DataError(f"{directory} has no model.safetensors")
    tensors: dict[str, Tensor] = {}
    for file in parts:
        try:
            read_safetensors(file)  # refuses what the library does not
            tensors |= load_file(file)
        except (SafetensorError, FileNotFoundError, ValueError, OSError) as error:
            raise DataError(f"{file} is not a whole safetensors file: {error}") from None
    files.refuse_not_finite(directory, files.not_finite_weights(directory))
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
    """Drop the stored copy of a tied head. A stored head that differs from the embedding is read as not tied."""
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


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    chosen: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype):
        raise SettingsError(f"dtype {dtype!r} is not one of torch's; try float32 or bfloat16")
    return chosen
