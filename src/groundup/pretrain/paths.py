"""Where a run keeps what pretraining reads and writes, and whether settings fit what is there."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from groundup.artifacts import is_made, read_manifest
from groundup.corpus.document import SPLITS
from groundup.errors import SettingsError
from groundup.model.settings import ModelConfig
from groundup.shards import open_split, refuse_another_tokenizer
from groundup.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class RunPaths:
    """Where a run keeps what pretraining reads and writes."""

    shards: Path
    tokenizer: Path
    work: Path
    """metrics.jsonl, events.jsonl, health.jsonl, checkpoints/"""
    model: Path
    corpus: Path
    """Tells from which files the documents came; training does not need it."""
    start: Path | None = None
    """The model that the training begins with, if it is not to draw its weights."""


def check_fits(model: ModelConfig, paths: RunPaths, prompts: Iterable[str]) -> None:
    """Refuse, before the first step, settings that contradict the data.

    Args:
        prompts: texts that the model will be asked to continue, in the run or after it.

    Raises:
        SettingsError: context longer than the corpus, a prompt longer than the context, or shards of another tokenizer.
        DamagedError: shards that are damaged, or hold ids that are not in the vocabulary.
    """
    context = model.context_length
    tokenizer = Tokenizer.load(paths.tokenizer)
    if is_made(paths.tokenizer):
        refuse_another_tokenizer(paths.shards, read_manifest(paths.tokenizer).digest, str(paths.tokenizer))
    for split in SPLITS:
        open_split(paths.shards, split, tokenizer.vocab_size)
    tokens = len(open_split(paths.shards, "train").ids)
    if tokens <= context:
        raise SettingsError(
            f"model.context_length = {context:,}, but the training documents have only {tokens:,} tokens together: "
            "shorten the context or add text"
        )
    for prompt in prompts:
        length = 1 + len(tokenizer.encode(prompt))
        if length > context:
            raise SettingsError(f"the prompt {prompt!r} has {length} tokens; model.context_length is {context}")
