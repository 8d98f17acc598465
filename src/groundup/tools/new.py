"""The proposal of `groundup new`: what a recipe for these texts and this machine should say, and why.

Rules, not search. Each stands here once with its source, and again as a comment in the recipe. No torch.
"""

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.corpus.refine import describe_marks
from groundup.corpus.settings import CorpusSettings
from groundup.corpus.sources import describe_left_out, readable
from groundup.errors import DataError, ResourceError, SettingsError
from groundup.model.presets import PRESETS, Preset
from groundup.model.settings import LearnedPosition, ModelConfig
from groundup.pages.render import plain, sentences
from groundup.plan import laws
from groundup.plan.hardware import Machine
from groundup.plan.vocabulary import advise
from groundup.recipe import Recipe
from groundup.settings import toml_value
from groundup.tokenizer.settings import Learned
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tools.survey import TRIAL_BYTES, Survey, relaxed_in
from groundup.weights.files import config_of, model_directory, not_finite_weights, refuse_not_finite, required_tokenizer
from groundup.words import nearest

LADDER = (
    (64, 4), (128, 4), (192, 6), (256, 6), (320, 8), (384, 8), (512, 8), (640, 10), (768, 12), (1024, 16), (1280, 20),
    (1536, 24), (2048, 24), (2560, 32), (4096, 32),
)  # fmt: skip
"""d_model and n_layers to choose from: 16 to 128 channels for each layer, a range in which shape hardly matters (Kaplan
et al. 2020, arXiv:2001.08361, figure 5); a head for each 64 channels."""
LONGEST_CONTEXT_ON_CPU = 256
PARAMETERS_PER_TOKEN = 20
"""At most so many for each different token of the texts: larger models were worse (docs/log.md)."""
BYTES_PER_PARAMETER = 18
"""bfloat16 weights, float32 master weights and gradients, AdamW's two moments; a test compares `optim/memory.py`."""
SHARE_OF_MEMORY = 0.6
"""Share of the memory for weights and their states; the rest is for activations and the system."""
SHARE_OF_TIME = 0.6
"""Share of the time that is planned; a shared machine may be half as fast a minute later (docs/numbers.md)."""
MINUTES = 10.0
COMMON_VOCABULARY = 4096
"""Models with different vocabularies are compared by their loss for a token of a vocabulary of this size."""
VALIDATIONS = 10
"""How often validation is measured."""


@dataclass(frozen=True)
class Start:
    """A trained model that the training is to go on from."""

    path: str
    """As it was named."""
    tokenizer_path: str
    model: ModelConfig
    """With its vocabulary, which may have more rows than the tokenizer has ids."""
    tokenizer: Tokenizer


@dataclass(frozen=True)
class ModelChoice:
    """A model with its vocabulary, and how long it would be trained."""

    model: ModelConfig
    texts: Survey
    machine: Machine
    seconds: float | None
    """For training; None for 20 tokens a parameter, whatever they take."""
    bytes_per_token: float
    common: float = 1.0
    """Tokens of `COMMON_VOCABULARY` in the text of one of its own."""

    @property
    def unique_tokens(self) -> float:
        """In the training documents."""
        return self.texts.train_bytes / self.bytes_per_token

    @property
    def tokens_per_second(self) -> float:
        return self.machine.training_flops(self.model.d_model) / self.model.training_flops_per_token

    @property
    def tokens(self) -> float:
        """To be trained on: what the time allows, as far as reading the texts again is worth it."""
        return min(self._tokens_in_time, laws.MOST_PASSES * self.unique_tokens)

    @property
    def ends_early(self) -> bool:
        """Whether more time could only be filled with overfitting the texts."""
        return self._tokens_in_time > laws.MOST_PASSES * self.unique_tokens

    @property
    def _tokens_in_time(self) -> float:
        if self.seconds is None:
            return laws.TOKENS_PER_PARAMETER * self.model.parameters
        return self.seconds * self.tokens_per_second

    @property
    def flops(self) -> float:
        """FLOPs of the training: 6 N D (Kaplan et al. 2020, section 2.1)."""
        return 6.0 * self.model.parameters * self.tokens

    @property
    def expected_loss(self) -> float:
        """For each token of `COMMON_VOCABULARY`."""
        return laws.loss(self.model.parameters, self.tokens * self.common, self.unique_tokens * self.common)


@dataclass(frozen=True)
class Proposal:
    """A recipe and what it will take; times are estimates."""

    recipe: Recipe
    tables: dict[str, Any]
    """The recipe's tables, without settings that have their default anyway."""
    chosen: ModelChoice
    seconds: float
    """From the corpus to the score on the test documents."""

    @property
    def tokens(self) -> int:
        """Tokens to be read in training, repetitions included."""
        return self.recipe.pretrain.steps * self.recipe.pretrain.batch_tokens

    @property
    def passes(self) -> float:
        """How often the training documents are read."""
        return self.tokens / self.chosen.unique_tokens

    def table(self) -> dict[str, Any]:
        """Everything as plain values."""
        sampled = self.chosen.texts
        return {
            "files": dict(sampled.files),
            "left_out": dict(sampled.left_out),
            "dropped": dict(sampled.dropped),
            "marks": sampled.marks.table(),
            "sampled_documents": sampled.read,
            "documents": sampled.documents,
            "bytes": sampled.bytes,
            "scripts": sampled.scripts,
            "machine": dataclasses.asdict(self.chosen.machine),
            "unique_tokens": round(self.chosen.unique_tokens),
            "bytes_per_token": self.chosen.bytes_per_token,
            "parameters": self.chosen.model.parameters,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "ends_early": self.chosen.ends_early,
            "settings": self.tables,
        }


def parameters_in(size: str) -> float:
    """A number of parameters as people write it.

    Raises:
        SettingsError: for anything else.

    >>> parameters_in("30M"), parameters_in("1.5b"), parameters_in("250000")
    (30000000.0, 1500000000.0, 250000.0)
    """
    units = {"K": 1e3, "M": 1e6, "B": 1e9}
    unit = units.get(size[-1:].upper(), 1.0)
    try:
        number = float(size.removesuffix(size[-1:] if unit > 1 else "")) * unit
    except ValueError:
        number = 0.0
    if not 1e4 <= number <= 1e12:
        raise SettingsError(f"--size is {size!r}; it should be a number of parameters from 10k to 1000B, such as 30M")
    return number


def propose(
    name: str,
    sampled: Survey,
    machine: Machine,
    *,
    minutes: float | None = None,
    size: float | None = None,
    preset: str | None = None,
    start: Start | None = None,
) -> Proposal:
    """A recipe for the surveyed texts on this machine.

    Args:
        minutes: what the whole build may take. If not given, it is 10; but with a size or preset, what it takes to read
            20 tokens for each parameter, or as often as that is worth it.
        size: about how many parameters; if not given, what promises most in the time.
        preset: a name in `PRESETS`, whose blocks and sizes are taken.
        start: a model to go on from, whose blocks, sizes and tokenizer are taken.

    Raises:
        SettingsError: an unknown preset; a time or size that cannot be; two that set the size.
        DataError: too little text to train on.
        ResourceError: a model that this machine cannot hold.
    """
    if minutes is not None and not 0 < minutes < 1e6:
        raise SettingsError(f"--minutes is {minutes}; it should be more than 0 and less than a million")
    given = {"--size": size, "--preset": preset, "--start": start}
    sizes = [option for option, value in given.items() if value is not None]
    if len(sizes) > 1:
        raise SettingsError(f"{' and '.join(sizes)} both set the size: give one of them")
    if preset is not None and preset not in PRESETS:
        raise SettingsError(f"no preset {preset!r}; {nearest(preset, PRESETS)}")
    published = None if preset is None else PRESETS[preset]
    if minutes is None and size is None and published is None:
        minutes = MINUTES
    prepared = sampled.preparing_seconds
    seconds = None if minutes is None else max(minutes * 60 * SHARE_OF_TIME - prepared, minutes * 20)
    if start is None:
        choices = [_choice(model, sampled, machine, seconds) for model in _models(sampled, machine, size, published)]
    else:
        choices = [_going_on(start, sampled, machine, seconds)]
    most_parameters = machine.memory_bytes * SHARE_OF_MEMORY / BYTES_PER_PARAMETER
    held = [each for each in choices if each.model.parameters <= most_parameters]
    if not held:
        raise ResourceError(_too_large(choices[0].model, machine, most_parameters))
    suited = [each for each in held if each.model.parameters <= PARAMETERS_PER_TOKEN * each.unique_tokens]
    chosen = min(suited or held[:1], key=lambda each: each.expected_loss)
    tables = _tables(name, chosen, published, start)
    recipe = Recipe.from_table(tables, "new")
    training = recipe.pretrain.steps * recipe.pretrain.batch_tokens
    validating = VALIDATIONS * recipe.pretrain.validation_tokens / 3  # forward alone is a third of a training step
    scoring = chosen.unique_tokens * sampled.corpus.test_share
    took = prepared + (training + validating + scoring) / chosen.tokens_per_second
    return Proposal(recipe, tables, chosen, took)


def read_start(path: Path) -> Start:
    """The model that `--start` names, as far as a recipe needs to know it.

    Raises:
        DataError: missing, not represented here, without its tokenizer, or with weights that are not finite.
        SettingsError: a tokenizer that is not the model's, or has no token that opens a text.
    """
    model, tokenizer, directory = config_of(path), required_tokenizer(path), model_directory(path)
    tokenizer.framed([])  # which needs what opens a text
    refuse_not_finite(directory, not_finite_weights(directory))
    return Start(str(path), str(directory), model, tokenizer)


def model_of(sampled: Survey, machine: Machine, size: float) -> ModelConfig:
    """The model of about `size` parameters that would be proposed for these texts, whether the machine holds it or not.

    Raises:
        DataError: too little text to train on.
    """
    return _models(sampled, machine, size, None)[0]


def _models(texts: Survey, machine: Machine, size: float | None, published: Preset | None) -> list[ModelConfig]:
    """Those to choose among: the preset's, the one nearest to the size asked for, or the whole ladder."""
    longest = LONGEST_CONTEXT_ON_CPU if machine.is_cpu else 1024
    if published is not None:
        longest = min(longest, published.model.context_length)
        return [_fitted(published.model.model_copy(update={"context_length": longest}), texts)]
    ladder = [
        ModelConfig(
            context_length=longest, d_model=d_model, n_layers=n_layers, n_heads=d_model // 64,
            d_ff=-(-8 * d_model // 3 // 64) * 64,
        )
        for d_model, n_layers in LADDER
    ]  # fmt: skip
    models = [_fitted(shape, texts) for shape in ladder]
    if size is None:
        return models
    return [min(models, key=lambda model: abs(math.log(model.parameters / size)))]


def _fitted(shape: ModelConfig, texts: Survey) -> ModelConfig:
    """With the vocabulary that suits it and the texts, and the power of two as context that holds a middling document,
    as far as the shape's and the amount of text allow."""
    vocabulary = advise(texts.curve, shape, texts.train_bytes)
    tokens = texts.train_bytes / vocabulary.bytes_per_token
    _refuse_little(texts, tokens, SHORTEST_CONTEXT)
    median_tokens = texts.median_bytes / vocabulary.bytes_per_token
    wanted = max(SHORTEST_CONTEXT, min(shape.context_length, median_tokens, tokens / FEWEST_ROWS_OF_TEXT))
    context = int(min(shape.context_length, 2 ** math.ceil(math.log2(wanted))))
    return vocabulary.model.model_copy(update={"context_length": context})


SHORTEST_CONTEXT = 16
"""Tokens; several documents that are shorter share a row."""
FEWEST_ROWS_OF_TEXT = 16


def _refuse_little(texts: Survey, tokens: float, context: int) -> None:
    """
    Raises:
        DataError: when the training documents fill too few rows of this context.
    """
    if tokens >= FEWEST_ROWS_OF_TEXT * context:
        return
    least = FEWEST_ROWS_OF_TEXT * context
    dropped = f" Dropped: {texts.tally.summary()}." if texts.dropped else ""
    raise DataError(
        f"there are only about {texts.train_bytes:,.0f} bytes of text to train on, {tokens:,.0f} tokens; with a "
        f"context of {context}, {least:,} are the least. Kept are {len(texts.texts):,} documents of {texts.read:,} "
        f"read.{dropped} Add texts: a hundred thousand bytes are a beginning, a million are better"
    )


def _going_on(start: Start, texts: Survey, machine: Machine, seconds: float | None) -> ModelChoice:
    """The model of `start`, in rows that these texts fill: its context is cut only where no weight depends on it."""
    sample = "\n".join(texts.texts)[: TRIAL_BYTES // 4]
    bytes_per_token = len(sample.encode()) / max(1, len(start.tokenizer.encode(sample)))
    unique_tokens = texts.train_bytes / bytes_per_token
    context = start.model.context_length
    if not isinstance(start.model.position, LearnedPosition):
        context = min(context, START_CONTEXT, 2 ** int(math.log2(max(16.0, unique_tokens / 16))))
    _refuse_little(texts, unique_tokens, context)
    model = start.model.model_copy(update={"context_length": context})
    return ModelChoice(model, texts, machine, seconds, bytes_per_token)


def _choice(model: ModelConfig, texts: Survey, machine: Machine, seconds: float | None) -> ModelChoice:
    assert model.vocab_size is not None, "_fitted has set it"
    bytes_per_token = texts.curve.of(model.vocab_size).bytes_per_token
    common = bytes_per_token / texts.curve.of(COMMON_VOCABULARY).bytes_per_token
    return ModelChoice(model, texts, machine, seconds, bytes_per_token, common)


def _too_large(model: ModelConfig, machine: Machine, most_parameters: float) -> str:
    return (
        f"a model of {model.parameters / 1e6:,.0f} million parameters takes about "
        f"{model.parameters * BYTES_PER_PARAMETER / 1e9:,.0f} GB in training ({BYTES_PER_PARAMETER} bytes for each); "
        f"this machine has {machine.memory_bytes / 1e9:,.0f} GB, and {SHARE_OF_MEMORY:.0%} of that are planned for it. "
        f"The largest that fits has {most_parameters / 1e6:,.0f} million"
    )


def _tables(name: str, chosen: ModelChoice, published: Preset | None, start: Start | None) -> dict[str, Any]:
    """The recipe's tables, without settings that have their default anyway."""
    model, texts, context = chosen.model, chosen.texts, chosen.model.context_length
    batch = laws.batch_tokens(chosen.flops)
    rows = max(FEWEST_ROWS, min(round(batch / context), int(chosen.tokens / FEWEST_STEPS / context)))
    steps = max(FEWEST_ROWS, round(chosen.tokens / (rows * context)))
    rate = (published.learning_rate if published else None) or laws.learning_rate(chosen.flops)
    rate, warmup_steps = _rounded(min(rate, HIGHEST_LEARNING_RATE)), min(100, -(-steps // 20))
    tokenizer: dict[str, Any] = {"vocab_size": model.vocab_size}
    if texts.split != Learned.model_fields["split"].default:
        tokenizer["split"] = texts.split
    if start is not None:
        rate, warmup_steps = _rounded(rate * START_SHARE_OF_RATE), max(1, min(100, steps // 100))
        tokenizer = {"kind": "existing", "path": start.tokenizer_path}
    micro_batch = MICRO_BATCH_TOKENS_ON_CPU if chosen.machine.is_cpu else MICRO_BATCH_TOKENS_ON_GPU
    opening = _opening_of(texts.texts, context - 2)
    corpus = texts.corpus
    sizes = {key: getattr(model, key) for key in ("context_length", "d_model", "n_layers", "n_heads")}
    return {
        "name": name,
        "corpus": {"sources": list(corpus.sources)} | _changed(corpus, CorpusSettings(sources=corpus.sources)),
        "tokenizer": tokenizer,
        "model": sizes | _changed(model.model_copy(update={"vocab_size": None}), ModelConfig()),
        "pretrain": ({} if start is None else {"start": start.path})
        | {
            "steps": steps,
            "batch_tokens": rows * context,
            "micro_batch_rows": min(rows, max(1, micro_batch // context)),
            "optimizer": {"learning_rate": rate},
            "schedule": {"warmup_steps": warmup_steps, "final": 0.0},
            "validate_every": -(-steps // VALIDATIONS),
            "validation_tokens": max(LEAST_VALIDATION_TOKENS, rows * context * steps // 100),
            "sample_every": -(-steps // 4),
            "sample_prompt": opening,
            "checkpoint_every": -(-steps // VALIDATIONS),
        },
        "evals": {"prompts": [opening, opening, "", ""]},
    }


START_CONTEXT = 1024
"""Most tokens of context when training goes on from a model: longer rows need more memory than most machines have."""
START_SHARE_OF_RATE = 0.3
"""Share of a new model's learning rate: an estimate of ours, between forgetting and adapting too little."""
FEWEST_ROWS = 4
FEWEST_STEPS = 1000
"""Smaller batches than the law has, if need be: on little text 1,240 steps beat 620 of twice the size (docs/log.md)."""
MICRO_BATCH_TOKENS_ON_CPU = 4096
"""More at once is not faster."""
MICRO_BATCH_TOKENS_ON_GPU = 32_768
"""More at once is faster, as far as memory goes."""
LEAST_VALIDATION_TOKENS = 20_000
HIGHEST_LEARNING_RATE = 4e-3
"""The law goes on rising for smaller models; 2e-3 to 4e-3 were alike for the storybook (docs/log.md)."""


def _changed(settings: Any, default: Any) -> dict[str, Any]:
    """The fields that differ from the default, as TOML values; of a union with its kind."""
    before = default.table()
    return {key: value for key, value in settings.table().items() if before.get(key) != value}


def _rounded(value: float) -> float:
    """Two digits: nobody knows more of it."""
    return float(f"{value:.1e}")


def _opening_of(texts: list[str], most_bytes: int) -> str:
    """The commonest beginning of these texts: four words, or eight characters where words are not set apart; of it as
    many whole words as fit into these bytes, else characters: a token has a byte at least, so a row holds them.

    >>> tales = ["Once upon a time there was", "Once upon a time a king", "A dog"]
    >>> _opening_of(tales, 100), _opening_of(tales, 14), _opening_of(["Überraschung"], 4)
    ('Once upon a time', 'Once upon a', 'Übe')
    """
    counts = Counter(_opening(text) for text in texts)
    opening = min(counts, key=lambda opening: (-counts[opening], len(opening), opening))
    while len(opening.encode()) > most_bytes and " " in opening:
        opening = opening.rsplit(" ", 1)[0]
    return opening.encode()[:most_bytes].decode(errors="ignore")


def _opening(text: str) -> str:
    line = text.strip().split("\n", 1)[0][:80]
    words = line.split()
    if max(map(len, words)) > 20:  # no spaces between words, as in Japanese
        return line[:8]
    return " ".join(words[:4])


# --- the proposal in words ---


def rows(proposal: Proposal) -> list[list[str]]:
    """A fact a row: the texts, the machine, the model, the training."""
    texts = proposal.chosen.texts
    left_out = describe_left_out(texts.left_out, texts.left_out_names)
    marks = describe_marks(texts.marks.table())
    lines = sentences("proposal.txt", it=proposal, marks=marks, left_out=left_out, readable=readable())
    return [line.split("\t", 1) for line in lines]


def to_toml(proposal: Proposal, command: str) -> str:
    """The recipe with comments that teach; `command` is what was typed."""
    relaxed = relaxed_in(proposal.recipe.corpus.filters)
    command = " ".join(command.split())
    return plain("recipe.toml", it=proposal, command=command, relaxed=relaxed, toml_value=toml_value)
