"""The recipe: the root of all settings, one table a stage. Only settings are imported here, so torch is not."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from groundup.corpus.settings import CorpusSettings
from groundup.evals.settings import EvalSettings
from groundup.export.settings import ExportSettings
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.parallel.settings import ParallelSettings
from groundup.pretrain.settings import MultiToken, PretrainSettings
from groundup.settings import Settings
from groundup.tokenizer.settings import TokenizerSettings
from groundup.words import contradiction

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class ShardSettings(Settings):
    """No settings: the order of the ids follows from the corpus, their width from the tokenizer."""


class Recipe(Settings):
    """A whole model, one table a stage.

    >>> recipe = Recipe.from_table({"name": "a", "corpus": {"sources": ["b"]}, "tokenizer": {"vocab_size": 4096}})
    >>> recipe.override(["pretrain.steps=500"]).pretrain.steps
    500
    """

    name: str = Field(json_schema_extra={"pattern": NAME})
    """The run is written to `runs/NAME`."""
    corpus: CorpusSettings
    tokenizer: TokenizerSettings
    shards: ShardSettings = ShardSettings()
    model: ModelConfig = ModelConfig()
    parallel: ParallelSettings = ParallelSettings()
    pretrain: PretrainSettings = PretrainSettings()
    evals: EvalSettings = EvalSettings()
    export: ExportSettings | None = None
    """Without this table nothing is exported."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(NAME, name):
            shown = repr(name) if len(name) < 100 else f"a name of {len(name)} characters"
            raise ValueError(
                f"{shown} cannot be the name of a folder in runs/: it should be letters, digits, dots, dashes and "
                "underscores, a letter or digit first, at most 100 characters"
            )
        return name

    @field_validator("model")
    @classmethod
    def _leaves_the_vocabulary_open(cls, model: ModelConfig) -> ModelConfig:
        if model.vocab_size is not None:
            raise contradiction("vocab_size follows from the tokenizer; set tokenizer.vocab_size instead", "vocab_size")
        return model

    @model_validator(mode="after")
    def _batch_is_whole_rows(self) -> Self:
        context, ramp = self.model.context_length, self.pretrain.batch_ramp
        batches = {"batch_tokens": self.pretrain.batch_tokens}
        if ramp is not None:
            batches["batch_ramp.start_tokens"] = ramp.start_tokens
        for name, batch in batches.items():
            if batch % context:
                below = batch // context * context
                nearest = sorted({max(context, below), below + context})
                raise contradiction(
                    f"pretrain.{name} = {batch:,} is not a multiple of model.context_length = {context:,}; "
                    f"nearest: {', '.join(f'{n:,}' for n in nearest)}",
                    f"pretrain.{name}",
                    "model.context_length",
                )
        return self

    @model_validator(mode="after")
    def _width_can_be_transferred(self) -> Self:
        if self.pretrain.base_width is not None and self.model.block.ends_normed:
            raise contradiction(
                f"pretrain.base_width = {self.pretrain.base_width}, but with model.block.norm = after no norm stands "
                "before the head, whose gain would hold the factor on the scores: leave base_width out, or put the "
                "norms elsewhere",
                "pretrain.base_width",
                "model.block.norm",
            )
        return self

    @model_validator(mode="after")
    def _predicts_tokens(self) -> Self:
        loss, context = self.pretrain.loss, self.model.context_length
        if isinstance(loss, MultiToken) and loss.extra_tokens >= context:
            raise contradiction(
                f"pretrain.loss.extra_tokens = {loss.extra_tokens}, but rows have {context} tokens "
                "(model.context_length): it should be fewer",
                "pretrain.loss.extra_tokens",
            )
        if not isinstance(self.model.head, LanguageModel):
            raise contradiction(
                f"model.head.kind = {self.model.head.kind!r}, but pretraining predicts tokens: set it to "
                "language_model",
                "model.head.kind",
            )
        return self


def load_recipe(recipe: str | Path | Recipe, overrides: Iterable[str] = ()) -> tuple[Recipe, Path]:
    """Load a recipe; with it comes the folder in which its relative paths are looked for first."""
    if isinstance(recipe, Recipe):
        return recipe.override(overrides), Path()
    return Recipe.load(Path(recipe), overrides), Path(recipe).parent
