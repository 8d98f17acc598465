"""Prepare `groundup generate` and `chat`: read the words typed, load the model, and show how sure it was."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from groundup.errors import SettingsError
from groundup.generation.settings import Sampling
from groundup.model.transformer import Transformer
from groundup.settings import toml_value
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.files import model_directory
from groundup.weights.load import load_with_tokenizer

SETTING = re.compile(r"[A-Za-z_.]+=")


def prompt_and_settings(words: Iterable[str]) -> tuple[str | None, list[str]]:
    """A prompt, if one was typed, and the settings of sampling among the words; `--top-k 40` is read as `top_k=40`.

    >>> prompt_and_settings(["Once upon a time", "temperature=0.5", "--top-k", "40"])
    ('Once upon a time', ['temperature=0.5', 'top_k=40'])

    Raises:
        SettingsError: two prompts, or an option that does not exist.
    """
    prompts: list[str] = []
    settings: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word.startswith("--"):
            option, _, value = word.removeprefix("--").partition("=")
            name = option.replace("-", "_")
            if name not in Sampling.model_fields:
                raise SettingsError(f"no option --{option}; how to sample is set by {', '.join(Sampling.model_fields)}")
            settings.append(f"{name}={value or next(remaining, '')}")
        else:
            (settings if SETTING.match(word) else prompts).append(word)
    if len(prompts) > 1:
        raise SettingsError(f"two prompts are given, {prompts[0]!r} and {prompts[1]!r}: put one in quotes")
    return next(iter(prompts), None), settings


def settings_only(words: Iterable[str]) -> list[str]:
    """
    Raises:
        SettingsError: a word that is not of the form `key=value`.
    """
    prompt, settings = prompt_and_settings(words)
    if prompt is not None:
        raise SettingsError(f"{prompt!r} is not of the form key=value, such as temperature=0.5")
    return settings


def load_writer(
    model: Path, device: str | None, settings: Sequence[str], **defaults: Any
) -> tuple[Transformer, Tokenizer, Sampling]:
    """A model, its tokenizer, and how to sample: its own `generation.json`, `defaults`, then the `settings` typed.

    Raises:
        SettingsError: a setting that sampling does not have, or a value that it cannot have.
    """
    loaded, tokenizer = load_with_tokenizer(model, device)
    file = model_directory(model) / "generation.json"
    table = json.loads(file.read_bytes()) if file.is_file() else {}
    return loaded, tokenizer, Sampling.from_table({**table, **defaults}, str(file)).override(settings)


def probability_rows(chosen: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each token that was chosen, with what `generation.text.Probabilities` collected."""
    rows: list[tuple[str, ...]] = []
    for token in chosen:
        others = [f"{toml_value(other['text'])} {other['probability']:.1%}" for other in token["instead"]]
        rows.append((f"{token['probability']:6.1%}", toml_value(token["text"]), "  ".join(others)))
    return rows
