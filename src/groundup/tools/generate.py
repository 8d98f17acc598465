"""Prepare `groundup generate` and `chat`: read the words typed, load the model, and show how sure it was."""

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from groundup.errors import SettingsError
from groundup.generation.engine import Proposes
from groundup.generation.settings import Sampling
from groundup.generation.speculate import PromptLookup, draft_for
from groundup.model.transformer import Transformer
from groundup.settings import toml_value
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.files import model_directory
from groundup.weights.load import load_model, load_with_tokenizer

ALTERNATIVES = 3
"""Tokens that are told beside the one that was chosen."""


def prompt_and_settings(words: Iterable[str]) -> tuple[str | None, list[str]]:
    """A prompt, if one was typed, and the settings of sampling among the words; `--top-k 40` is read as `top_k=40`.

    Settings are words that begin with the name of one; any other word is a text, whether it has a = or not.

    >>> prompt_and_settings(["Once upon a time", "temperature=0.5", "--top-k", "40"])
    ('Once upon a time', ['temperature=0.5', 'top_k=40'])

    Raises:
        SettingsError: two prompts, an option that does not exist, or a word that is nearly a setting.
    """
    prompts: list[str] = []
    settings: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            name = name.removeprefix("--").replace("-", "_")
            if name not in Sampling.model_fields:
                raise SettingsError(f"no option --{name}; how to sample is set by {', '.join(Sampling.model_fields)}")
            settings.append(f"{name}={value if equals else next(remaining, '')}")
        elif equals and name.strip() in Sampling.model_fields:
            settings.append(word)
        elif equals and (near := difflib.get_close_matches(name, Sampling.model_fields, n=1)):
            raise SettingsError(
                f"unknown setting {name}; did you mean {near[0]}? A prompt that begins so comes through a pipe, with "
                "- in its place"
            )
        else:
            prompts.append(word)
    if len(prompts) > 1:
        raise SettingsError(f"two prompts are given, {prompts[0]!r} and {prompts[1]!r}: put one in quotes")
    return next(iter(prompts), None), settings


def sampling_with(sampling: Sampling, settings: Sequence[str]) -> Sampling:
    """Set how to sample; several `stop` are several texts, each of which ends the answer.

    >>> sampling_with(Sampling(), ["stop=END", "seed=3", "stop=THE END"]).stop
    ('END', 'THE END')

    Raises:
        SettingsError: a setting that sampling does not have, or a value that it cannot have.
    """
    stops = [Sampling().override([word]).stop for word in settings if word.partition("=")[0].strip() == "stop"]
    changed = sampling.override(settings)
    return changed.model_copy(update={"stop": sum(stops, ())}) if stops else changed


def load_writer(
    model: Path, device: str | None, settings: Sequence[str], **defaults: Any
) -> tuple[Transformer, Tokenizer, Sampling]:
    """A model, its tokenizer, and how to sample: its own `generation.json`, `defaults`, then the `settings` typed."""
    loaded, tokenizer = load_with_tokenizer(model, device)
    file = model_directory(model) / "generation.json"
    table = json.loads(file.read_bytes()) if file.is_file() else {}
    return loaded, tokenizer, sampling_with(Sampling.from_table({**table, **defaults}, str(file)), settings)


def proposer(model: Transformer, draft: str | None, device: str | None) -> Proposes | None:
    """What guesses ahead: `lookup`, or the small model at a path."""
    if draft is None or draft == "lookup":
        return None if draft is None else PromptLookup()
    return draft_for(model, load_model(draft, device=device))


def probability_rows(chosen: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each token that was chosen, as `generation.text.described` describes it."""
    rows: list[tuple[str, ...]] = []
    for token in chosen:
        others = [f"{toml_value(other['text'])} {other['probability']:.1%}" for other in token["instead"]]
        rows.append((f"{token['probability']:6.1%}", toml_value(token["text"]), "  ".join(others)))
    return rows
