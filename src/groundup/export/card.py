"""The card of an exported model, README.md: what it learned from, how, how good it is, and how to use it.

Everything is read off the manifests of the run that made it; what they do not say is said to be unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from groundup.artifacts import Manifest, is_made, read_manifest
from groundup.corpus.document import SPLITS
from groundup.export.settings import ExportSettings
from groundup.export.subject import Subject
from groundup.pages.render import plain


@dataclass(frozen=True)
class Facts:
    """What is written down about a model."""

    name: str
    made: Mapping[str, Manifest] = field(default_factory=dict)
    """Stage → its manifest, of the stages that this very model was made from or measured by."""
    licences: Mapping[str, int] = field(default_factory=dict)
    """Licence → documents that name it; of documents that name none, empty."""


def read_facts(model: Path) -> Facts:
    """What the manifests in and beside a model directory say of it."""
    model = model.resolve()
    name = model.parent.name if model.name == "model" else model.stem if model.is_file() else model.name
    if not is_made(model):
        return Facts(name)
    made = {"model": read_manifest(model)}
    for stage, user in (("tokenizer", "model"), ("shards", "model"), ("corpus", "shards")):
        if user in made and is_made(model.parent / stage):
            there = read_manifest(model.parent / stage)
            made |= {stage: there} if made[user].inputs.get(stage) == there.digest else {}
    if is_made(model.parent / "evals"):
        score = read_manifest(model.parent / "evals")
        made |= {"evals": score} if score.inputs.get("model") == made["model"].digest else {}
    counts = made["corpus"].statistics.get("licences", {}) if "corpus" in made else {}
    return Facts(name, made, {licence: count["documents"] for licence, count in counts.items()})


def write_card(subject: Subject, facts: Facts, form: str, settings: ExportSettings) -> str:
    """The text of README.md, with the header that the Hugging Face hub reads."""
    opener, parameters = subject.tokenizer.roles.opener, sum(weight.numel() for weight in subject.weights.values())
    return plain(
        "card.md", name=facts.name, made=facts.made, licences=facts.licences, form=form, settings=settings,
        config=subject.config, tokenizer=subject.tokenizer, parameters=parameters, chats=subject.chat is not None,
        opener="" if opener is None else subject.tokenizer.tokens[opener].decode(), splits=SPLITS,
        file=subject.directory.name,
    )  # fmt: skip
