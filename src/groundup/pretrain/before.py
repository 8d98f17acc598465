"""Before a training: whether its settings fit the data, the choices they leave open, and a look by the doctor."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from groundup.artifacts import is_made, read_manifest
from groundup.corpus.document import SPLITS
from groundup.errors import SettingsError
from groundup.model.settings import ModelConfig
from groundup.pretrain.doctor import run as doctor
from groundup.pretrain.doctor.verdict import refuse_errors
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.speed import describe_conditions, settle
from groundup.pretrain.start import check_start
from groundup.shards import open_split, refuse_another_tokenizer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.log import RunLog
from groundup.weights.load import find_device


def check_fits(
    model: ModelConfig, run: Path, start: Path | None, prompts: Iterable[str], say: Callable[[str], None] = print
) -> None:
    """Refuse, before the first step, settings that contradict the data.

    Args:
        run: with `tokenizer/` and `shards/`.
        start: the model whose weights the training begins with, if it is not to draw them.
        prompts: texts that the model will be asked to continue, in the run or after it.

    Raises:
        SettingsError: context longer than the corpus, a prompt longer than the context, shards of another tokenizer,
            or a start that is shaped or speaks otherwise.
        DamagedError: shards that are damaged, or hold ids that are not in the vocabulary.
    """
    context, prompts = model.context_length, list(prompts)
    tokenizer = Tokenizer.load(run / "tokenizer")
    if is_made(run / "tokenizer"):
        digest = read_manifest(run / "tokenizer").digest
        refuse_another_tokenizer(run / "shards", digest, str(run / "tokenizer"))
    train, *_ = [open_split(run / "shards", split, tokenizer.vocab_size) for split in SPLITS]
    if len(train.ids) <= context:
        raise SettingsError(
            f"model.context_length = {context:,}, but the training documents have only {len(train.ids):,} tokens "
            "together: shorten the context or add text"
        )
    for prompt in prompts:
        length = 1 + len(tokenizer.encode(prompt))
        if length > context:
            raise SettingsError(f"the prompt {prompt!r} has {length} tokens; model.context_length is {context}")
    if start is not None:
        check_start(start, model, tokenizer, run / "shards", prompts, say)


def ready(
    model: ModelConfig,
    settings: PretrainSettings,
    run: Path,
    start: Path | None,
    say: Callable[[str], None],
    examined: bool,
) -> PretrainSettings:
    """The settings with the choices that they leave open.

    Args:
        run: with `corpus/`, `tokenizer/` and `shards/`.
        start: the model whose weights the training begins with, if it is not to draw them.
        say: called with what was measured and chosen, and with each warning.
        examined: whether the doctor runs its quick checks.

    Raises:
        GroundupError: when one of them is an error; nothing has been written yet.
    """
    device = find_device(settings.device)
    sized = model.with_vocabulary(read_manifest(run / "shards").statistics["vocab_size"])
    settings, messages = settle(sized, settings, run / "shards", device)
    for line in [*messages, describe_conditions(settings, device)]:
        say(line)
    if examined:
        began = time.monotonic()
        verdicts = list(doctor.quick_checks(doctor.prepare(model, settings, run, start)))
        refuse_errors(verdicts)
        warnings = [verdict for verdict in verdicts if verdict.level == "warning"]
        seconds = time.monotonic() - began
        for verdict in warnings:
            say(f"doctor: warning, {verdict}")
        if not warnings:
            say(f"doctor: {len(verdicts)} checks in {seconds:.1f} s, all ok")
        listed = {"warnings": "; ".join(f"{each.check}: {each.finding}" for each in warnings)} if warnings else {}
        RunLog(run / "pretrain").event("doctor", checks=len(verdicts), seconds=round(seconds, 3), **listed)
    return settings
