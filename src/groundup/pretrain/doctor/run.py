"""The doctor: what experts check by hand before they spend on a training, on one's own recipe, text and machine.

The list follows Karpathy 2019 ("A Recipe for Training Neural Networks"), Godbole et al. 2023 ("Deep Learning Tuning
Playbook"), and what the reports of large trainings tell of their mishaps. `checks.py` has the checks; here is what they
are handed, and in which order. What would only repeat the fault of an earlier line is not asked.
"""

import dataclasses
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.artifacts import is_made, read_manifest
from groundup.batch import Batch
from groundup.corpus.document import read_texts
from groundup.errors import (
    DataError,
    DivergedError,
    GroundupError,
    ResourceError,
    SettingsError,
)
from groundup.machine import available_cores, peak_memory, power_limit, reset_peak_memory, total_memory
from groundup.model.settings import ModelConfig
from groundup.optim.settings import Float32
from groundup.plan import memory
from groundup.pretrain.doctor import checks
from groundup.pretrain.doctor.checks import Line, judged
from groundup.pretrain.paths import RunPaths
from groundup.pretrain.run import pretrain
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import batches, set_up, training_flops_per_token
from groundup.pretrain.speed import settle
from groundup.pretrain.start import with_vocabulary
from groundup.shards import Tokens, open_split
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.assemble import Assembled
from groundup.train.fit import fit
from groundup.weights.load import find_device
from groundup.words import byte_size, duration

QUICK_FLOPS = {"cpu": 2e10}
"""Arithmetic of one pass of a check, forward and backward; on other devices `ELSEWHERE_FLOPS`."""
ELSEWHERE_FLOPS = 1e13
QUICK_TOKENS, WHOLE_TOKENS = 20_000_000, 1_000_000_000
"""How much of the training text is compared with what was held out."""
SWEEP = (1e-5, 1.0, 36)
"""Learning rates: from, to, how many."""
OVERFIT_STEPS = 24


@dataclass(frozen=True)
class Patient:
    """What is looked at: a recipe's training, assembled as it would be for step 0, and never trained further."""

    config: ModelConfig
    """With its vocabulary."""
    settings: PretrainSettings
    """With device and precision chosen."""
    places: RunPaths
    tokenizer: Tokenizer
    train: Tokens
    held: Mapping[str, Tokens]
    rows: checks.Rows
    """As training draws them."""
    assembled: Assembled

    @property
    def device(self) -> torch.device:
        return next(self.assembled.model.parameters()).device

    @property
    def started(self) -> bool:
        """Whether it begins with the weights of a trained model."""
        return self.places.start is not None

    @property
    def affordable(self) -> int:
        """Tokens whose pass, forward and backward, is quick."""
        most = QUICK_FLOPS.get(self.device.type, ELSEWHERE_FLOPS)
        return max(64, int(most / training_flops_per_token(self.config, self.settings.loss)))

    @property
    def little(self) -> int:
        """Tokens that a check sends through the model."""
        rows = min(self.settings.micro_batch_rows, self.settings.batch_tokens // self.config.context_length)
        return max(64, min(self.affordable, rows * self.config.context_length))

    def again(self) -> "Patient":
        """The same before its first step: a throw-away copy for whatever trains."""
        return dataclasses.replace(self, assembled=set_up(self.config, self.settings, self.device, self.places.start))

    @property
    def first_rows(self) -> Batch:
        """The rows of step 1, as many as are quick."""
        tokens, context = self.affordable, self.config.context_length
        n = max(1, min(self.settings.batch_rows(0, context), tokens // context))
        return checks.fewer(self.rows(0, n), tokens)

    def first_step(self, counted: Tensor | None = None) -> tuple[float, dict[str, Tensor | None]]:
        """The loss of the next token and the gradients, as training has them in step 1, but for a scaled loss.

        Args:
            counted: (B, T) the targets that count; all, if not given.
        """
        batch = self.first_rows
        if counted is not None:
            batch = dataclasses.replace(batch, weight=batch.weight * counted)
        loss, parts = dataclasses.replace(self.assembled, scaler=None).gradients(self.settings)(batch)
        gradients = {}
        for name, weight in self.assembled.masters.copies.items():
            gradients[name], weight.grad = weight.grad, None
        return parts.get("next_token", loss).item(), gradients


def admit(config: ModelConfig, settings: PretrainSettings, places: RunPaths) -> Patient:
    """Open and assemble what is to be looked at.

    Raises:
        GroundupError: when shards or tokenizer are damaged or not there.
    """
    tokenizer = Tokenizer.load(places.tokenizer)
    opened = {name: open_split(places.shards, name, tokenizer.vocab_size) for name in ("train", "validation", "test")}
    whole = with_vocabulary(config, tokenizer, places.start)
    device = find_device(settings.device)
    # Uncompiled: compiling takes longer than all that is looked at here.
    settings, _ = settle(whole, settings.model_copy(update={"compile": False}), places.shards, device)
    train = opened.pop("train")

    def rows(first: int, count: int) -> Batch:
        return next(batches(train, whole.context_length, settings.seed, count, first))

    assembled = set_up(whole, settings, device, places.start)
    return Patient(whole, settings, places, tokenizer, train, opened, rows, assembled)


def quick(patient: Patient, tokens: int = QUICK_TOKENS) -> Iterator[Line]:
    """The lines that cost little."""
    for group, line in _quick(patient, tokens):
        yield dataclasses.replace(line, group=group)


def _quick(patient: Patient, tokens: int) -> Iterator[tuple[str, Line]]:
    config, settings, places = patient.config, patient.settings, patient.places
    yield "settings", checks.check_learning_rate(config, settings)
    yield "settings", checks.check_optimizer_settings(settings)
    yield "settings", checks.check_warmup(settings)
    yield "settings", checks.check_length(config, settings, len(patient.train.ids))
    corpus, tokenizer = places.corpus / "train.parquet", patient.tokenizer
    texts = list(islice(read_texts(corpus), 8)) if corpus.is_file() else []
    if is_made(patient.places.corpus):
        yield "text", checks.check_separators(read_manifest(patient.places.corpus).statistics.get("marks", {}))
    yield "text", checks.check_round_trip(tokenizer, texts)
    recorded = read_manifest(places.tokenizer) if is_made(places.tokenizer) else None
    may_learn = recorded is not None and recorded.settings.get("kind") == "existing" and not patient.started
    counts = checks.count_ids([patient.train, *patient.held.values()], tokenizer.vocab_size)
    yield "text", checks.check_vocabulary(counts, tokenizer, may_learn)
    digest = recorded.digest if recorded else None
    yield "text", checks.check_shards(places.shards, patient.train, tokenizer, digest, texts)
    yield "text", checks.check_held_out(patient.train, patient.held, tokens)
    yield "text", checks.check_order(patient.rows, patient.train, config.context_length)
    yield from (("model", line) for line in _quick_of_model(patient, checks.token_frequencies_loss(counts)))
    yield "machine", check_device(patient)
    yield "machine", check_disk(patient)


def _quick_of_model(patient: Patient, frequencies: float) -> Iterator[Line]:
    """
    Args:
        frequencies: the loss of a model that knows only how often each token occurs.
    """
    settings, assembled = patient.settings, patient.assembled
    model, loss = assembled.model, assembled.loss
    if patient.places.start is not None:
        start = checks.check_trained_weights(model, patient.places.start)
        yield start
        if start.verdict == "stop":
            return
    loss_at_start, gradients = patient.first_step()
    first = _check_loss_at_start(patient, loss_at_start, frequencies)
    if not math.isfinite(loss_at_start):
        yield first
        return
    batch = checks.fewer(patient.rows(0, settings.micro_batch_rows), patient.little)
    targets = checks.check_targets(model, batch, loss)
    yield targets
    bordered = checks.with_borders(patient.rows(0, max(32, settings.micro_batch_rows)))
    mask = checks.check_mask(model, checks.fewer(bordered, patient.little), loss, settings.seed)
    yield mask
    yield checks.check_ties(model)
    units = checks.check_units(model, batch, loss, patient.started)
    yield units
    if targets.verdict == mask.verdict == "ok":
        yield first
    weights = assembled.masters.copies
    for name, weight in weights.items():
        weight.grad = gradients[name]
    if units.verdict == "ok":
        yield checks.check_gradients(weights, patient.started)
    assembled.optimizer.step()
    yield checks.check_numbers(weights, assembled.optimizer)


def _check_loss_at_start(patient: Patient, loss: float, frequencies: float) -> Line:
    vocab_size, added = patient.config.vocab_size or 2, torch.tensor([*patient.tokenizer.added.values()])
    if not patient.started:
        return checks.check_start(loss, vocab_size, patient.config.d_model)
    known, batch = loss, patient.first_rows
    old = ~torch.isin(batch.targets, added) & (batch.weight > 0)
    if loss > checks.NEAR_CHANCE * math.log(vocab_size) and 0 < old.sum() < (batch.weight > 0).sum():
        known, _ = patient.first_step(old)
    n, whole = len(batch.tokens), patient.settings.batch_rows(0, patient.config.context_length)
    rows = f"the {n:,} rows of step 1" if n == whole else f"the first {n:,} of {whole:,} rows of step 1"
    return checks.check_trained_start(loss, known, rows, vocab_size, frequencies)


def whole(patient: Patient, watts: float | None = None, price_per_hour: float | None = None) -> Iterator[Line]:
    """All lines. What trains is a throw-away copy each time; what learns is asked only if the quick lines are well."""
    well = True
    for line in quick(patient, WHOLE_TOKENS):
        well = well and (line.verdict != "stop" or line.group in ("settings", "machine"))
        yield line
    if not well:
        yield Line("learning", "not tried: first mend what is above", group="learning")
        return
    tried = [_learning_rate_range(patient)]
    if tried[0].verdict == "ok":
        tried.append(checks.check_overfit(_overfitted(patient), patient.started))
        tried.append(check_resume(patient))
    for line in tried:
        yield dataclasses.replace(line, group="learning")
    for line in cost(patient, watts, price_per_hour):
        yield dataclasses.replace(line, group="cost")


def _learning_rate_range(patient: Patient) -> Line:
    low, high, n = SWEEP
    rates = [low * (high / low) ** (i / (n - 1)) for i in range(n)]
    rate, vocab_size = patient.settings.optimizer.learning_rate, patient.config.vocab_size or 2
    losses: list[float] = []
    for step in _trained(patient.again(), lambda number: rates[number] / rate, n):
        losses.append(step)
        if not math.isfinite(step) or step > 1.5 * max(losses[0], math.log(vocab_size)):
            break
    if patient.started:
        untouched = list(_trained(patient.again(), lambda number: 0.0, len(losses)))
        return checks.check_trained_range(rates, losses, untouched, rate, vocab_size)
    return checks.check_range(rates, losses, rate, losses[0])


def _overfitted(patient: Patient) -> list[float]:
    return list(_trained(patient.again(), lambda number: min(1.0, (number + 1) / 4), OVERFIT_STEPS + 1, same=True))


def _trained(patient: Patient, schedule: Any, steps: int, same: bool = False) -> Iterator[float]:
    """The loss at each step; of the same few rows each time, or of the next ones."""
    tokens = patient.little
    rows = max(1, tokens // patient.config.context_length)

    def drawn() -> Iterator[Batch]:
        first = 0
        while True:
            yield checks.fewer(patient.rows(first, rows), tokens)
            first += 0 if same else rows

    assembled, settings = patient.assembled, patient.settings
    gradients = assembled.gradients(settings)
    taken = fit(assembled.optimizer, schedule, drawn(), gradients, steps=steps, clip=settings.clip,
                scaler=assembled.scaler)  # fmt: skip
    for step in taken:
        yield (step.parts.get("next_token", step.loss)).item()


def check_resume(patient: Patient) -> Line:
    """A short training by the stage itself; again from its checkpoint in fresh state: the same weights."""
    rows = max(1, patient.little // patient.config.context_length)
    short = patient.settings.model_copy(
        update={
            "steps": 4, "checkpoint_every": 2, "keep_checkpoints": 2, "sample_tokens": 0, "validation_tokens": 1,
            "batch_tokens": rows * patient.config.context_length, "micro_batch_rows": max(1, rows // 2), "loggers": (),
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=patient.places.work.parent) as place:
        made = []
        for name in ("first", "second"):
            work = Path(place) / "pretrain"
            places = dataclasses.replace(patient.places, work=work, model=Path(place) / name)
            pretrain(patient.config, short, places, {}, say=lambda told: None)
            made.append((places.model / "model.safetensors").read_bytes())
            newest = max((work / "checkpoints").glob("step-*"))
            size = sum(file.stat().st_size for file in newest.iterdir())
            shutil.rmtree(newest)
    if made[0] != made[1]:
        return judged("stop and go on", "the weights are not those of the unbroken training",
                      checks.LEARNING, "two computations differ: look for random or shared state")  # fmt: skip
    return Line("stop and go on", f"bit for bit the unbroken training; a checkpoint has {byte_size(size)}")


def check_device(patient: Patient) -> Line:
    settings, device = patient.settings, patient.device
    assert settings.precision is not None, "chosen when the patient came in"
    seen = f"{device}, {settings.precision.kind}"
    if device.type != "cpu":
        return Line("device", seen)
    cores = available_cores()
    threads = torch.get_num_threads()
    seen += f", {threads} threads on {cores} cores"
    if threads > cores:
        return Line("device", seen, "take care", f"threads wait for each other: OMP_NUM_THREADS={cores}")
    if torch.cuda.is_available():
        return Line("device", seen, "take care", "a GPU is there: pretrain.device=cuda")
    return Line("device", seen)


def check_disk(patient: Patient) -> Line:
    """Room for the checkpoints that are kept, one more while it is written, and the model."""
    settings = patient.settings
    weights = 4 * patient.config.parameters
    needed = (settings.keep_checkpoints + 1) * 3 * weights + weights
    place = patient.places.work
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    seen = f"{byte_size(free)} free, {byte_size(needed)} needed for checkpoints and model"
    if free < needed:
        fewer = ", or lower pretrain.keep_checkpoints" if settings.keep_checkpoints > 1 else ""
        return judged("disk", seen, checks.MEMORY, f"free some, or choose another place with --run{fewer}")
    return Line("disk", seen)


def cost(patient: Patient, watts: float | None, price_per_hour: float | None) -> Iterator[Line]:
    """Full-size steps on a throw-away copy: memory, speed, and what the whole run will take."""
    settings, device = patient.settings, patient.device
    assert settings.precision is not None, "chosen when the patient came in"
    needs = training_memory(patient.config, settings)
    available = total_memory(device)
    if needs.bytes() > available:
        yield judged("memory", f"{memory.breakdown(needs)}; the {device} has {byte_size(available)}", checks.MEMORY,
                     memory.smallest_change(needs, available))  # fmt: skip
        return
    before = reset_peak_memory(device)
    patient = patient.again()
    rows = needs.rows
    per_step = rows * patient.config.context_length
    drawn = batches(patient.train, patient.config.context_length, settings.seed, rows, 0)
    gradients = patient.assembled.gradients(settings)
    seconds: list[float] = []
    last = began = time.monotonic()
    for step in fit(patient.assembled.optimizer, lambda _: 0.0, drawn, gradients, steps=12,
                    scaler=patient.assembled.scaler):  # fmt: skip
        step.loss.item()  # waits for the device
        now = time.monotonic()
        seconds.append(now - last)
        last = now
        if now - began > 6 and len(seconds) > 1:
            break
    if before is not None:
        measured = max(0, peak_memory(device) - before)
        seen = f"{byte_size(needs.bytes())} predicted, {byte_size(measured)} measured, of {byte_size(available)}"
        verdict: Any = "take care" if max(measured, needs.bytes()) > 0.8 * available else "ok"
        advice = "" if verdict == "ok" else f"if it does not suffice, {memory.smallest_change(needs, available // 2)}"
        yield Line("memory", seen, verdict, advice)
    speed = per_step / statistics.median(seconds[1:] or seconds)
    tokens = settings.steps * settings.batch_tokens
    flops = training_flops_per_token(patient.config, settings.loss) * tokens
    taken = tokens / speed
    yield Line("speed", f"{speed:,.0f} tokens/s, {flops / taken / 1e9:,.0f} GFLOP/s, before any compilation")
    yield Line("the whole run", f"{duration(taken)} of training, {flops:.3g} FLOPs")
    power, whose = power_limit(device) if watts is None else (watts, "as given")
    yield Line("energy", f"{power * taken / 3.6e6:.3g} kWh at {power:,.0f} W ({whose})")
    if price_per_hour is not None:
        yield Line("price", f"{price_per_hour * taken / 3600:,.2f} at {price_per_hour:g} an hour")


def training_memory(config: ModelConfig, settings: PretrainSettings) -> memory.Training:
    """What the planner needs to know of a recipe."""
    rows = min(settings.micro_batch_rows, settings.batch_tokens // config.context_length)
    precision = settings.precision or Float32()  # while it is being chosen
    started = settings.start is not None
    return memory.Training(config, precision, settings.optimizer, rows, settings.recompute, settings.average, started)


def out_of_memory(config: ModelConfig, settings: PretrainSettings, error: BaseException) -> ResourceError | None:
    """If this error says that memory ran out: what the training needs, part by part, and the smallest change."""
    told = str(error)
    if not isinstance(error, MemoryError) and "out of memory" not in told and "can't allocate memory" not in told:
        return None
    needs = training_memory(config, settings)
    change = memory.smallest_change(needs, int(0.7 * needs.bytes()))
    return ResourceError(
        f"out of memory. This training needs about {memory.breakdown(needs)}. The smallest change: {change}"
    )


def refuse(lines: list[Line]) -> None:
    """
    Raises:
        GroundupError: of the kind of the first line that says stop, naming all that do.
    """
    stops = [line for line in lines if line.verdict == "stop"]
    if not stops:
        return
    kinds: dict[int, type[GroundupError]] = {
        checks.SETTINGS: SettingsError,
        checks.DATA: DataError,
        checks.MEMORY: ResourceError,
        checks.LEARNING: DivergedError,
    }
    told = "".join(f"\n  {line.checked}: {line.seen}" + (f" → {line.advice}" if line.advice else "") for line in stops)
    raise kinds[stops[0].exit_code](f"the doctor stops this training before its first step:{told}")
