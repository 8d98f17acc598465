"""The pretraining stage: shards in, a model out; interrupted at any moment, it goes on as if it had not been.

Every number of the run is a function of the recipe and the step: rows come from their number, dropout from (seed,
step, row), samples from their own seed. So resuming needs only the weights, the optimizer's state and the step.
`train/session.py` has the loop and all around it; here is what is special about pretraining.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from groundup.artifacts import making
from groundup.batch import Batch
from groundup.errors import SettingsError
from groundup.evals.examine import benchmark
from groundup.evals.heldout import MEASUREMENTS, Measurement
from groundup.evals.score import HeldOut
from groundup.files import Progress, no_progress
from groundup.generation.settings import Sampling
from groundup.generation.text import stream
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer, evaluating
from groundup.parallel.world import World
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import batches, draw_model, own_batches, set_up, set_up_ranks, training_flops_per_token
from groundup.pretrain.speed import WORTH_MEASURING_FLOPS, matmul_peak
from groundup.pretrain.start import with_vocabulary
from groundup.pretrain.suspects import suspects
from groundup.settings import Table
from groundup.shards import Tokens, open_split
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train import checkpoint
from groundup.train.assemble import Assembled
from groundup.train.health import activations
from groundup.train.session import Periodic, Session
from groundup.weights.load import find_device
from groundup.weights.write import write_model


def pretrain(
    model_config: ModelConfig,
    settings: PretrainSettings,
    run: Path,
    inputs: dict[str, str],
    start: Path | None = None,
    progress: Progress = no_progress,
    say: Callable[[str], None] = print,
    until: int | None = None,
    world: World | None = None,
) -> None:
    """Train, or go on training, and write `model/`.

    Args:
        settings: with `device` and `precision` chosen.
        run: with `tokenizer/`, `shards/` and, where bad batches are to be traced to their sources, `corpus/`.
        inputs: name of each input → its digest, recorded in checkpoints and model.
        start: the model whose weights it begins with; they are drawn if not given.
        until: the step to pause after, measured and saved; another call goes on from there.
        world: the ranks that train together, each calling this; alone if not given.

    Raises:
        Paused: at that step.
        SavedAndStopped: after Ctrl-C or SIGTERM, with a checkpoint written.
        DivergedError: when the guard has gone back as often as it may, or without one at a loss that is no number.
    """
    assert settings.precision is not None and settings.device is not None, "chosen before the stage begins"
    tokenizer = Tokenizer.load(run / "tokenizer")
    config = with_vocabulary(model_config, tokenizer, start)
    ids = min(tokenizer.vocab_size, config.vocab_size or 0)
    train, validation = (  # every id was compared with the vocabulary by `check_fits`
        replace(open_split(run / "shards", split), vocab_size=ids) for split in ("train", "validation")
    )
    begun = bool(checkpoint.list_checkpoints(run / "pretrain" / "checkpoints"))
    origin = None if begun else start
    if world is None:
        assembled = set_up(config, settings, find_device(settings.device), origin)
    else:
        assembled = set_up_ranks(config, settings, world, origin)
    recorded = {"model": model_config.table(), "pretrain": settings.table()}
    session = _session(assembled, config, settings, recorded, run, inputs, start, train, say, world)
    held_out = HeldOut(assembled.model, tokenizer, validation, batch_rows=settings.micro_batch_rows)
    measurements = _measurements(session, settings, held_out)
    session.run(measurements, partial(_write_model, session, config, tokenizer, run, inputs), progress, until)


def _session(
    assembled: Assembled,
    config: ModelConfig,
    settings: PretrainSettings,
    recorded: Table,
    run: Path,
    inputs: dict[str, str],
    start: Path | None,
    train: Tokens,
    say: Callable[[str], None],
    world: World | None,
) -> Session[Batch]:
    """The session over the training shards, alone or on this rank of a world."""
    context, flops_per_token = config.context_length, training_flops_per_token(config, settings.loss)
    long = flops_per_token * settings.tokens(context) >= WORTH_MEASURING_FLOPS
    whose = f"the weights of {start}" if start is not None else "the drawn weights"

    def batches_from(step: int, first_row: int) -> Iterator[Batch]:
        n_rows = (settings.batch_rows(number, context) for number in itertools.count(step))
        if world is not None:
            return own_batches(train, context, settings.seed, n_rows, first_row, world)
        return batches(train, context, settings.seed, n_rows, first_row)

    def size_of(step: int, batch: Batch) -> tuple[int, int]:
        rows = settings.batch_rows(step, context)
        return rows, rows * context

    def initial_weights() -> Mapping[str, Tensor]:
        if world is not None:
            return set_up_ranks(config, settings, world, start).masters.copies
        return dict(draw_model(config, settings, start).named_parameters())

    def look(batch: Batch, first_row: int) -> tuple[dict[str, Any], str]:
        if world is not None:  # this rank has only some rows of what was bad
            return {}, ""
        corpus = run / "corpus" / "train.parquet"
        return suspects(assembled.model, batch, first_row, settings.micro_batch_rows, corpus)

    return Session(
        settings,
        assembled,
        run / "pretrain",
        recorded,
        inputs,
        batches=batches_from,
        initial_weights=initial_weights,
        size_of=size_of,
        activations=partial(activations, assembled.model) if world is None or world.shares_rows_alone else None,
        suspects=look,
        advice_at_start=f"`groundup doctor RECIPE` looks at {whose} and at these rows",
        flops_per_token=flops_per_token,
        peak_flops=matmul_peak(config, settings, assembled.device) * assembled.ranks.size if long else None,
        say=say,
    )


def _measurements(session: Session[Batch], settings: PretrainSettings, held_out: HeldOut) -> list[Periodic]:
    """The measurements of a run: validation, the evaluations that were asked for, a sample."""

    def on_held_out(
        measure: Callable[[HeldOut], dict[str, Any]], max_tokens: int | None, check: Progress
    ) -> dict[str, Any]:
        return {**measure(replace(held_out, max_tokens=max_tokens, progress=check)), "tokens": session.tokens}

    def validate(held_out: HeldOut) -> dict[str, Any]:
        return {"validation_bits_per_byte": held_out.score().bits_per_byte}

    def sample(check: Progress) -> dict[str, Any]:
        model, tokenizer, prompt = held_out.model, held_out.tokenizer, settings.sample_prompt
        sampling = Sampling(max_tokens=settings.sample_tokens)
        parts = []
        with evaluating(model):
            for part in stream(model, tokenizer, prompt, sampling):
                parts.append(part)
                check(0, 0, "")
        return {"sample": prompt + "".join(parts)}

    if settings.benchmarks and type(held_out.model) is not Transformer:
        raise SettingsError(
            "pretrain.benchmarks needs the whole model on each rank, and [parallel] cuts it: leave benchmarks out, and "
            "evaluate the finished model with `groundup eval`, or share rows alone (parallel.replicate)"
        )
    chosen: list[tuple[int, int | None, Measurement]] = [
        (asked.every, asked.max_tokens, MEASUREMENTS[asked.task]) for asked in settings.evaluations
    ]
    chosen += [(asked.every, None, benchmark(asked)) for asked in settings.benchmarks]
    validation = partial(on_held_out, validate, settings.validation_tokens)
    return [
        Periodic(settings.validate_every, "validation_bits_per_byte", validation),
        *(Periodic(every, what.first_number, partial(on_held_out, what.measure, most)) for every, most, what in chosen),
        Periodic(settings.sample_every, "sample", sample),
    ]


def _write_model(
    session: Session[Batch], config: ModelConfig, tokenizer: Tokenizer, run: Path, inputs: dict[str, str]
) -> None:
    weights = session.final_weights()
    if session.ranks.rank:
        return  # the first writes for all
    with making(run / "model", "model", session.recorded, inputs) as draft:
        write_model(draft, config, weights, tokenizer, Sampling().table())
        draft.seconds_before = session.seconds
        draft.statistics |= {
            "steps": session.settings.steps,
            "tokens": session.tokens,
            "training_flops": session.flops_per_token * session.tokens,
            "validation_bits_per_byte": session.log.last("validation_bits_per_byte"),
        }
