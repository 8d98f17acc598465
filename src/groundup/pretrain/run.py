"""The pretraining stage: shards in, a model out; interrupted at any moment, it goes on as if it had not been.

Every number of the run is a function of the recipe and the step: rows come from their number, dropout from (seed,
step, micro-batch), samples from their own seed. So resuming needs only the weights, the optimizer's state and the step.
`train/session.py` has the loop and all around it; here is what is special about pretraining.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from groundup.artifacts import making
from groundup.batch import Batch
from groundup.evals.heldout import MEASUREMENTS
from groundup.evals.score import HeldOut, score
from groundup.evals.settings import Evaluation
from groundup.files import Progress, no_progress
from groundup.generation.settings import Sampling
from groundup.generation.text import stream
from groundup.model.settings import ModelConfig
from groundup.model.transformer import evaluating
from groundup.pretrain.paths import RunPaths
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import batches, draw_model, set_up, training_flops_per_token
from groundup.pretrain.speed import WORTH_MEASURING_FLOPS, matmul_peak
from groundup.pretrain.start import with_vocabulary
from groundup.pretrain.suspects import suspects
from groundup.shards import Tokens, open_split
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train import checkpoint
from groundup.train.health import activations
from groundup.train.session import Periodic, Session
from groundup.weights.load import find_device
from groundup.weights.write import write_model


def pretrain(
    model_config: ModelConfig,
    settings: PretrainSettings,
    paths: RunPaths,
    inputs: dict[str, str],
    progress: Progress = no_progress,
    say: Callable[[str], None] = print,
    until: int | None = None,
) -> None:
    """Train, or go on training, and write `paths.model`.

    Args:
        settings: with `device` and `precision` chosen.
        inputs: name of each input → its digest, recorded in checkpoints and model.
        until: the step to pause after, measured and saved; another call goes on from there.

    Raises:
        Paused: at that step.
        SavedAndStopped: after Ctrl-C or SIGTERM, with a checkpoint written.
        DivergedError: when the guard has gone back as often as it may, or without one at a loss that is no number.
    """
    assert settings.precision is not None and settings.device is not None, "chosen before the stage begins"
    tokenizer = Tokenizer.load(paths.tokenizer)
    config = with_vocabulary(model_config, tokenizer, paths.start)
    ids = min(tokenizer.vocab_size, config.vocab_size or 0)
    train, validation = (  # every id was compared with the vocabulary by `check_fits`
        replace(open_split(paths.shards, split), vocab_size=ids) for split in ("train", "validation")
    )
    device, context = find_device(settings.device), config.context_length
    begun = bool(checkpoint.list_checkpoints(paths.work / "checkpoints"))
    assembled = set_up(config, settings, device, None if begun else paths.start)
    flops_per_token = training_flops_per_token(config, settings.loss)
    long = flops_per_token * settings.tokens(context) >= WORTH_MEASURING_FLOPS
    whose = f"the weights of {paths.start}" if paths.start is not None else "the drawn weights"

    def batches_from(step: int, first_row: int) -> Iterator[Batch]:
        n_rows = (settings.batch_rows(number, context) for number in itertools.count(step))
        return batches(train, context, settings.seed, n_rows, first_row)

    def initial_weights() -> Mapping[str, Tensor]:
        return dict(draw_model(config, settings, paths.start).named_parameters())

    session = Session(
        settings,
        assembled,
        paths.work,
        {"model": model_config.table(), "pretrain": settings.table()},
        inputs,
        batches=batches_from,
        initial_weights=initial_weights,
        activations=partial(activations, assembled.model),
        suspects=lambda batch, first_row: suspects(
            assembled.model, batch, first_row, settings.micro_batch_rows, paths.corpus / "train.parquet"
        ),
        advice_at_start=f"`groundup doctor RECIPE` looks at {whose} and at these rows",
        flops_per_token=flops_per_token,
        peak_flops=matmul_peak(config, settings, device) if long else None,
        say=say,
    )
    measurements = [
        _validation(session, settings, validation),
        *(_evaluation(session, asked, settings, tokenizer, validation) for asked in settings.evaluations),
        _sample(session, settings, tokenizer),
    ]
    session.run(measurements, partial(_write_model, session, config, tokenizer, paths, inputs), progress, until)


def _validation(session: Session[Batch], settings: PretrainSettings, data: Tokens) -> Periodic:
    def measure(check: Progress) -> dict[str, Any]:
        most, rows = settings.validation_tokens, settings.micro_batch_rows
        measured = score(session.assembled.model, data, max_tokens=most, batch_rows=rows, progress=check)
        return {"validation_bits_per_byte": measured.bits_per_byte, "tokens": session.tokens}

    return Periodic(settings.validate_every, "validation_bits_per_byte", measure)


def _evaluation(
    session: Session[Batch], asked: Evaluation, settings: PretrainSettings, tokenizer: Tokenizer, data: Tokens
) -> Periodic:
    measurement = MEASUREMENTS[asked.task]

    def measure(check: Progress) -> dict[str, Any]:
        model, rows = session.assembled.model, settings.micro_batch_rows
        held_out = HeldOut(model, tokenizer, data, asked.max_tokens, rows, check)
        return {**measurement.measure(held_out), "tokens": session.tokens}

    return Periodic(asked.every, measurement.first_number, measure)


def _sample(session: Session[Batch], settings: PretrainSettings, tokenizer: Tokenizer) -> Periodic:
    def measure(check: Progress) -> dict[str, Any]:
        model, prompt = session.assembled.model, settings.sample_prompt
        sampling = Sampling(max_tokens=settings.sample_tokens)
        with evaluating(model):
            parts = stream(model, tokenizer, prompt, sampling, look=lambda *_: check(0, 0, ""))
            return {"sample": prompt + "".join(parts)}

    return Periodic(settings.sample_every, "sample", measure)


def _write_model(
    session: Session[Batch], config: ModelConfig, tokenizer: Tokenizer, paths: RunPaths, inputs: dict[str, str]
) -> None:
    with making(paths.model, "model", session.recorded, inputs) as draft:
        write_model(draft, config, session.assembled.final_weights, tokenizer, Sampling().table())
        draft.seconds_before = session.seconds
        draft.statistics |= {
            "steps": session.settings.steps,
            "tokens": session.tokens,
            "training_flops": session.flops_per_token * session.tokens,
            "validation_bits_per_byte": session.log.last("validation_bits_per_byte"),
        }
