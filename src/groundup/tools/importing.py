"""Import a model that others made: a model directory like our own, from any that `load` reads."""

from pathlib import Path
from typing import Any

import torch

from groundup.artifacts import Manifest, making, read_manifest
from groundup.errors import DamagedError, SettingsError
from groundup.files import require_path
from groundup.generation.settings import Sampling
from groundup.tokenizer.declared import read_table
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.files import digest_of, layout_of, model_directory, required_tokenizer
from groundup.weights.load import build, read_weights
from groundup.weights.write import write_model


def import_model(source: Path, out: Path | None = None) -> tuple[Path, Manifest]:
    """Write a model and all that belongs to it as a model directory, read it back, and compare every number.

    Args:
        source: a GGUF file, a Hugging Face directory, a file of llama2.c, or a model directory.
        out: where it goes; `models/` and the name of the source if not given.

    Weights keep their precision; those that were packed in blocks become float32, which holds each of them exactly.

    Returns:
        The directory, and its manifest.

    Raises:
        DataError: a source that cannot be read, or has no tokenizer.
        DamagedError: what was written is not what is read back.
        SettingsError: `out` exists.
    """
    require_path(source, "model")
    out = out or Path("models") / (source.stem if source.is_file() else source.resolve().name)
    if out.exists():
        raise SettingsError(f"{out} exists and is left as it is: choose another --out, or move it away")
    digest, tokenizer = digest_of(source), required_tokenizer(source)
    model = build(*read_weights(model_directory(source)), str(source))
    settings = {"model": model.config.table(), "import": {"source": source.name}}
    with making(out, "model", settings, {"source": digest}) as draft:
        weights = dict(model.named_parameters())
        write_model(draft, model.config, weights, tokenizer, _sampling(source), layout_of(source, tokenizer))
        again = dict(build(*read_weights(draft.path), str(out)).named_parameters())
        written = Tokenizer.load(draft.path)
        other = [name for name in weights | again if not _same(weights.get(name), again.get(name))]
        other += [] if (written.digest, written.roles) == (tokenizer.digest, tokenizer.roles) else ["the tokenizer"]
        if other:
            raise DamagedError(f"{out} is not kept: of what was written, {', '.join(other[:3])} is read otherwise")
    return out, read_manifest(out)


def _same(weight: torch.Tensor | None, again: torch.Tensor | None) -> bool:
    return weight is not None and again is not None and weight.dtype == again.dtype and torch.equal(weight, again)


def _sampling(source: Path) -> dict[str, Any]:
    """The table of `generation.json`: the source's own, or what Hugging Face's file says of the same settings."""
    directory = model_directory(source)
    theirs = read_table(directory / "generation_config.json")
    given = {name: theirs[name] for name in ("temperature", "top_k", "top_p") if theirs.get(name)}
    return read_table(directory / "generation.json") or Sampling.from_table(given, "generation_config.json").table()
