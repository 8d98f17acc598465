"""The files of a trained model, as far as they tell of it without its weights: which they are, its config, its digest.

No torch: recipes name models, and are read without it.
"""

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from groundup.artifacts import is_made, verify
from groundup.errors import DamagedError, DataError, SettingsError
from groundup.files import PICKLES, canonical_json, refuse_nothing, sha256_of_file
from groundup.model.settings import ModelConfig
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights import llama2c
from groundup.weights.names import ARCHITECTURES, read_config, refusing_contradictions

FORMAT = "groundup"
MODEL_FILES = (".json", ".safetensors", ".txt", ".bpe", ".gz", ".model")
"""Suffixes of what others' model directories are read from."""


def model_directory(path: Path) -> Path:
    """The directory that holds the model; of a run, its `model/`."""
    if path.suffix == ".toml" and path.is_file():
        raise SettingsError(
            f"{path} is a recipe; name what `groundup build {path}` makes of it, such as runs/{path.stem}"
        )
    if path.is_file():
        if path.suffix.lower() in PICKLES:
            damaged = ", or a file of llama2.c that is not whole" if path.suffix == ".bin" else ""
            raise DataError(
                f"{path} is a pickle{damaged}: a pickle can run any program when it is loaded; ask for safetensors"
            )
        raise DataError(f"{path} is a file; a model is a directory with config.json and model.safetensors")
    refuse_nothing(path, "model")
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "recipe.toml").is_file() and not (path / "config.json").is_file():
        raise DataError(f"the run {path} has no finished model yet: go on with the command that began it")
    return path


def config_of(path: Path) -> ModelConfig:
    """The config of anything that `pretrained.load` reads.

    Raises:
        DataError: missing, damaged, or an architecture that is not represented here.
    """
    if llama2c.is_model(path):
        with refusing_contradictions(path):
            return llama2c.read_config(path)
    directory = model_directory(path)
    table = config_table(directory)
    if table.get("format") == FORMAT:
        return ModelConfig.from_table(table.get("model", {}), str(directory / "config.json"))
    with refusing_contradictions(directory / "config.json"):
        return read_config(table)


def config_table(directory: Path) -> dict[str, Any]:
    """What `config.json` says, of a format that is read here."""
    try:
        table = json.loads((directory / "config.json").read_bytes())
    except FileNotFoundError:
        raise DataError(f"{directory} holds no model: it has no config.json") from None
    except OSError as error:
        raise DataError(f"cannot read {directory / 'config.json'}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{directory / 'config.json'} is damaged: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"{directory / 'config.json'} is damaged: it is not a JSON object")
    kind = table.get("model_type")
    if table.get("format") != FORMAT and (not isinstance(kind, str) or kind not in ARCHITECTURES):
        raise DataError(f"{directory} is of model_type {kind!r}; read here: {FORMAT}, {', '.join(ARCHITECTURES)}")
    return table


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold the weights; none where there are none.

    Raises:
        DataError: an index of them that is damaged.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    try:
        names = {Path(str(name)).name for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(f"{index} is damaged: {error}") from None
    return [directory / name for name in sorted(names)]


def tokenizer_of(directory: Path, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer beside a model, if there is one.

    Raises:
        UnsupportedError: of a kind that is not represented here.
        SettingsError: it has more ids than the model; special and added tokens, which no text need hold, apart.
    """
    names = ("tokenizer.json", "vocab.json", "encoder.json", "tokenizer.model")
    if not any((directory / name).is_file() for name in names):
        return None
    tokenizer = Tokenizer.load(directory)
    outside = {*tokenizer.special.values(), *tokenizer.added.values()}
    ordinary = sum(i not in outside for i in range(tokenizer.vocab_size))
    if config.vocab_size is not None and ordinary > config.vocab_size:
        raise SettingsError(
            f"the tokenizer in {directory} has {ordinary:,} ids besides special and added tokens, the model rows for "
            f"{config.vocab_size:,}: they do not belong together"
        )
    return tokenizer


EXPONENT = {
    "F64": ("<i8", 0x7FF << 52),
    "F32": ("<i4", 0xFF << 23),
    "F16": ("<i2", 0x1F << 10),
    "BF16": ("<i2", 0xFF << 7),
    "F8_E5M2": ("<i1", 0x7C),
    "F8_E4M3": ("<i1", 0x7F),
}
"""Type of a tensor → the integers that lie over its numbers, and the bits that are all set in NaN and Inf alone."""
NUMBERS_AT_ONCE = 1 << 22


def not_finite_weights(directory: Path) -> list[str]:
    """The weights of a model that hold NaN or Inf, by their names in its files; buffers that nothing reads apart."""
    architecture = ARCHITECTURES.get(str(config_table(directory).get("model_type")))
    buffers = architecture.buffers if architecture else ()
    prefix = architecture.prefix if architecture else ""
    return [
        name
        for file in weight_files(directory)
        for name in not_finite(file)
        if not any(fnmatch.fnmatchcase(name.removeprefix(prefix), pattern) for pattern in buffers)
    ]


def not_finite(file: Path) -> Iterator[str]:
    """The tensors of a whole safetensors file that hold NaN or Inf. Each number is read once, as an integer."""
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    held = np.memmap(file, np.uint8, "r") if len(header) > ("__metadata__" in header) else np.zeros(0, np.uint8)
    for name, tensor in header.items():
        if name != "__metadata__" and tensor["dtype"] in EXPONENT:
            first, last = (8 + length + offset for offset in tensor["data_offsets"])
            if not _has_finite_exponents(held[first:last], tensor["dtype"]):
                yield name


def is_finite(numbers: npt.NDArray[np.float32]) -> bool:
    """Whether no NaN or Inf is among them."""
    return _has_finite_exponents(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8), "F32")


def _has_finite_exponents(raw: npt.NDArray[np.uint8], dtype: str) -> bool:
    kind, exponent = EXPONENT[dtype]
    size = np.dtype(kind).itemsize
    for first in range(0, len(raw), NUMBERS_AT_ONCE * size):
        numbers = np.frombuffer(raw[first : first + NUMBERS_AT_ONCE * size], kind)
        if ((numbers & np.array(exponent, kind)) == exponent).any():
            return False
    return True


def refuse_not_finite(origin: Path, names: Iterable[str]) -> None:
    """
    Raises:
        DataError: naming the tensors, if there are any.
    """
    if named := list(names):
        more = f" and {len(named) - 3:,} more" if len(named) > 3 else ""
        raise DataError(
            f"{origin}: {', '.join(named[:3])}{more} hold{'s' if len(named) == 1 else ''} numbers that are not finite "
            "(NaN or Inf): nothing can be computed with them. Take an earlier copy of these weights"
        )


def digest_of(path: Path) -> str:
    """Of a model of ours its manifest's, after every byte was compared with it; else of the files it is read from."""
    if llama2c.is_model(path):
        return sha256_of_file(path)
    directory = model_directory(path)
    if is_made(directory):
        return verify(directory, "model").digest
    files = {file.name: sha256_of_file(file) for file in sorted(directory.iterdir()) if file.suffix in MODEL_FILES}
    return hashlib.sha256(canonical_json(files)).hexdigest()
