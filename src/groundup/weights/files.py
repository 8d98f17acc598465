"""The files of a trained model: its config, its tokenizer, its digest, and whether its weights are finite.

No torch: recipes name models, and are read without it.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from groundup.artifacts import Manifest, is_made, read_manifest, verify
from groundup.errors import DamagedError, DataError, SettingsError
from groundup.files import PICKLES, canonical_json, require_path, sha256_of_file
from groundup.model.settings import ModelConfig
from groundup.tensor_files import is_gguf, not_finite
from groundup.tokenizer import chat
from groundup.tokenizer.chat import Chat
from groundup.tokenizer.declared import read_table
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights import gguf, llama2c
from groundup.weights.names import architectures, read_config, refusing_contradictions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = "groundup"
MODEL_FILES = (".json", ".safetensors", ".txt", ".bpe", ".gz", ".model")
"""Suffixes of the files that model directories of others consist of."""


class FileFormat(Protocol):
    """What a module knows that reads models of one file each."""

    def read_config(self, path: Path) -> ModelConfig: ...
    def read_weights(self, path: Path, dtype: "torch.dtype | None" = None) -> "dict[str, Tensor]":
        """The tensors under our names, in this precision or their own."""

    def read_tokenizer(self, path: Path) -> Tokenizer | None:
        """The tokenizer in or beside the file, if there is one."""


def file_format(path: Path) -> FileFormat | None:
    """What reads this file, if it holds a whole model."""
    return llama2c if llama2c.is_model(path) else gguf if is_gguf(path) else None


def model_directory(path: Path) -> Path:
    """The directory that holds the model, or the file that does: `path`, or the `model/` of a run."""
    if file_format(path):
        return path
    if path.suffix == ".toml" and path.is_file():
        raise SettingsError(
            f"{path} is a recipe; name what `groundup build {path}` makes of it, such as runs/{path.stem}"
        )
    if path.is_file():
        if path.suffix.lower() in PICKLES:
            cut = ", or a file of llama2.c that is not whole" if path.suffix == ".bin" else ""
            raise DataError(
                f"{path} is a pickle{cut}: a pickle can run any program when it is loaded; ask for safetensors"
            )
        raise DataError(f"{path} is a file; a model is a directory with config.json and model.safetensors")
    require_path(path, "model")
    if (path / "model" / "config.json").is_file():
        return path / "model"
    if (path / "recipe.toml").is_file() and not (path / "config.json").is_file():
        raise DataError(f"the run {path} has no finished model yet: go on with the command that began it")
    return path


def verify_model(directory: Path, digest_up_to: int | None = None) -> Manifest:
    """`verify` of a model that was made here, or of an export of one."""
    kind = "export" if read_manifest(directory).kind == "export" else "model"
    return verify(directory, kind, digest_up_to)


def config_of(path: Path) -> ModelConfig:
    """The config of anything that `load` reads.

    Raises:
        DataError: missing, damaged, or an architecture that is not represented here.
    """
    directory = model_directory(path)
    if form := file_format(directory):
        with refusing_contradictions(path):
            return form.read_config(directory)
    table = config_table(directory)
    if table.get("format") == FORMAT:
        return ModelConfig.from_table(table.get("model", {}), str(directory / "config.json"))
    with refusing_contradictions(directory / "config.json"):
        return read_config(table)


def config_table(directory: Path) -> dict[str, Any]:
    """The table in `config.json`, which is of a format that can be read."""
    if not (directory / "config.json").is_file():
        raise DataError(f"{directory} holds no model: it has no config.json")
    table = read_table(directory / "config.json")
    kind = table.get("model_type")
    if table.get("format") != FORMAT and (not isinstance(kind, str) or kind not in architectures()):
        raise DataError(f"{directory} has model_type {kind!r}; known are {FORMAT}, {', '.join(architectures())}")
    return table


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold the weights; an empty list where there are none.

    Raises:
        DataError: a damaged index of them.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    files = read_table(index).get("weight_map")
    if not isinstance(files, dict):
        raise DamagedError(f"{index} is damaged: it has no weight_map")
    names = {Path(str(name)).name for name in files.values()}
    return [directory / name for name in sorted(names)]


def pickles_in(directory: Path) -> list[Path]:
    """The files of a directory that are pickles by their names."""
    return sorted(path for path in directory.iterdir() if path.suffix.lower() in PICKLES)


def tokenizer_of(directory: Path, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer beside a model, or in its file, if there is one.

    Raises:
        UnsupportedError: a kind of tokenizer that is not supported.
        SettingsError: more ids than the model has rows, special and added tokens, which no text need hold, not counted.
    """
    names = ("tokenizer.json", "vocab.json", "encoder.json", "tokenizer.model")
    if form := file_format(directory):
        tokenizer = form.read_tokenizer(directory)
    else:
        tokenizer = Tokenizer.load(directory) if any((directory / name).is_file() for name in names) else None
    if tokenizer is None:
        return None
    outside = {*tokenizer.special.values(), *tokenizer.added.values()}
    ordinary = sum(i not in outside for i in range(tokenizer.vocab_size))
    if config.vocab_size is not None and ordinary > config.vocab_size:
        raise SettingsError(
            f"the tokenizer in {directory} has {ordinary:,} ids besides special and added tokens, the model rows for "
            f"{config.vocab_size:,}: they do not belong together"
        )
    return tokenizer


def required_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of anything that `load` reads.

    Raises:
        DataError: also where there is none.
    """
    directory = model_directory(path)
    tokenizer = tokenizer_of(directory, config_of(directory))
    if tokenizer is None and directory.is_file():
        raise DataError(f"{directory} has no tokenizer in it, nor a tokenizer.bin of llama2.c beside it")
    if tokenizer is None:
        raise DataError(f"{directory} has no tokenizer: put its tokenizer.json beside config.json")
    return tokenizer


def layout_of(path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """The table of `chat.json` for anything that `load` reads; `tokenizer` is its own."""
    model = model_directory(path)
    if not is_gguf(model):
        return chat.read_layout(model)
    ids = {"bos_token": tokenizer.roles.opener, "eos_token": tokenizer.roles.closer}
    named = {role: tokenizer.tokens[i].decode() for role, i in ids.items() if i is not None}
    return chat.layout_of(gguf.read_template(model), named)


def chat_of(path: Path) -> Chat | None:
    """How to converse with anything that `load` reads; None for a base model.

    Raises:
        DataError: also where there is no tokenizer.
    """
    tokenizer = required_tokenizer(path)
    return Chat.of(layout_of(path, tokenizer), tokenizer, path)


def not_finite_weights(directory: Path) -> list[str]:
    """The weights with NaN or Inf, by their names in the model's files. Buffers that nothing reads do not count."""
    architecture = architectures().get(str(config_table(directory).get("model_type")))
    names = (name for file in weight_files(directory) for name in not_finite(file))
    return [name for name in names if not (architecture and architecture.is_buffer(name))]


def refuse_not_finite(origin: Path, names: Iterable[str]) -> None:
    """Refuse a model of which these tensors hold NaN or Inf.

    Raises:
        DataError: naming the tensors, if there are any.
    """
    if named := list(names):
        more = f" and {len(named) - 3:,} more" if len(named) > 3 else ""
        raise DataError(
            f"{origin}: {', '.join(named[:3])}{more} hold{'s' if len(named) == 1 else ''} numbers that are not finite "
            "(NaN or Inf): take an earlier copy of these weights"
        )


def digest_of(path: Path) -> str:
    """Digest of a model: the manifest's (verified) for ours, else a hash of its files."""
    directory = model_directory(path)
    if directory.is_file():
        return sha256_of_file(directory)
    if is_made(directory):
        return verify_model(directory).digest
    files = {file.name: sha256_of_file(file) for file in sorted(directory.iterdir()) if file.suffix in MODEL_FILES}
    return hashlib.sha256(canonical_json(files)).hexdigest()
