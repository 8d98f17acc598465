"""The files of a trained model, as far as they tell of it without its weights: which they are, its config, its digest.

No torch: recipes name models, and are read without it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from groundup import llama2c
from groundup.errors import DataError, SettingsError
from groundup.files import PICKLES, canonical_json, is_made, refuse_nothing, sha256_of_file, verify
from groundup.model.names import ARCHITECTURES, read_config, refusing_contradictions
from groundup.model.settings import ModelConfig

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


def digest_of(path: Path) -> str:
    """Of a model of ours its manifest's, after every byte was compared with it; else of the files it is read from."""
    if llama2c.is_model(path):
        return sha256_of_file(path)
    directory = model_directory(path)
    if is_made(directory):
        return verify(directory, "model").digest
    files = {file.name: sha256_of_file(file) for file in sorted(directory.iterdir()) if file.suffix in MODEL_FILES}
    return hashlib.sha256(canonical_json(files)).hexdigest()
