"""The doctor: what experts check by hand before they spend on a training, on the user's own recipe, text and machine.

The list follows Karpathy 2019 ("A Recipe for Training Neural Networks"), Godbole et al. 2023 ("Deep Learning Tuning
Playbook"), and the mishaps in reports of large trainings. The checks are in `checks.py` and `texts.py`; this module
gives them what they look at, in order. What would only repeat an earlier error is not checked.
"""

import math
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from groundup.artifacts import is_made, read_manifest
from groundup.batch import Batch
from groundup.corpus.document import SPLITS, read_texts
from groundup.errors import ResourceError
from groundup.machine import available_cores, peak_memory, power_limit, reset_peak_memory, total_memory
from groundup.model.settings import ModelConfig
from groundup.optim.settings import Float32
from groundup.plan.memory import MemoryNeeds, breakdown, smallest_change
from groundup.pretrain.doctor import checks, texts
from groundup.pretrain.doctor.verdict import Verdict, error, judge, ok, warning
from groundup.pretrain.run import pretrain
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import batches, set_up, training_flops_per_token
from groundup.pretrain.speed import settle, time_steps
from groundup.pretrain.start import with_vocabulary
from groundup.shards import Tokens, count_ids, open_split
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.assemble import Assembled
from groundup.train.fit import fit
from groundup.weights.load import find_device
from groundup.words import byte_size, duration

QUICK_FLOPS, QUICK_FLOPS_ON_ACCELERATOR = 2e10, 1e13
"""FLOPs of one forward and backward pass of a check."""
SWEEP = (1e-5, 1.0, 36)
"""Learning rates: from, to, how many."""
OVERFIT_STEPS = 24


@dataclass(frozen=True)
class Subject:
    """What the doctor examines: a recipe's training, assembled as for step 0 and never trained further."""

    config: ModelConfig
    """With its vocabulary."""
    settings: PretrainSettings
    """With device and precision chosen."""
    run: Path
    start: Path | None
    """The model whose weights it begins with, if it is not to draw them."""
    tokenizer: Tokenizer
    train: Tokens
    held_out: Mapping[str, Tokens]
    rows: texts.DrawRows
    assembled: Assembled

    @property
    def device(self) -> torch.device:
        return self.assembled.device

    @property
    def quick_tokens(self) -> int:
        """Tokens whose forward and backward pass is quick."""
        most = QUICK_FLOPS if self.device.type == "cpu" else QUICK_FLOPS_ON_ACCELERATOR
        return max(64, int(most / training_flops_per_token(self.config, self.settings.loss)))

    @property
    def check_tokens(self) -> int:
        """Tokens that a check sends through the model: a micro-batch, if that is quick."""
        rows = min(self.settings.micro_batch_rows, self.settings.batch_tokens // self.config.context_length)
        return max(64, min(self.quick_tokens, rows * self.config.context_length))

    def throw_away(self) -> Assembled:
        """Another one, before its first step, for a check that trains."""
        return set_up(self.config, self.settings, self.device, self.start)

    @property
    def first_rows(self) -> Batch:
        """The rows of step 1, as many as are quick."""
        tokens, context = self.quick_tokens, self.config.context_length
        n = max(1, min(self.settings.batch_rows(0, context), tokens // context))
        return checks.first_tokens(self.rows(0, n), tokens)

    def first_step(self) -> float:
        """The loss of the next token in step 1 of the training. Its gradients, unscaled, are left in the masters."""
        _, parts = replace(self.assembled, scaler=None).gradients(self.settings)(self.first_rows)
        return parts["next_token"].item()


def prepare(config: ModelConfig, settings: PretrainSettings, run: Path, start: Path | None = None) -> Subject:
    """Open and assemble what is to be examined.

    Args:
        run: with `corpus/`, `tokenizer/` and `shards/`.
        start: the model whose weights the training begins with, if it is not to draw them.

    Raises:
        GroundupError: when shards or tokenizer are damaged or not there.
    """
    tokenizer = Tokenizer.load(run / "tokenizer")
    train, *others = (open_split(run / "shards", name, tokenizer.vocab_size) for name in SPLITS)
    config = with_vocabulary(config, tokenizer, start)
    device = find_device(settings.device)
    # Uncompiled: compiling takes longer than all checks.
    settings, _ = settle(config, settings.model_copy(update={"compile": False}), run / "shards", device)

    def rows(first: int, count: int) -> Batch:
        return next(batches(train, config.context_length, settings.seed, count, first))

    assembled = set_up(config, settings, device, start)
    held_out = dict(zip(SPLITS[1:], others, strict=True))
    return Subject(config, settings, run, start, tokenizer, train, held_out, rows, assembled)


def quick_checks(subject: Subject) -> Iterator[Verdict]:
    """Run the checks that cost little."""
    config, settings = subject.config, subject.settings
    about_settings = (
        checks.check_learning_rate(config, settings),
        checks.check_optimizer_settings(settings),
        checks.check_warmup(settings),
        checks.check_length(config, settings, len(subject.train.ids)),
    )
    yield from _in_group("settings", about_settings)
    splits = (subject.train, *subject.held_out.values())
    counts = count_ids((split.ids for split in splits), subject.tokenizer.vocab_size)
    yield from _in_group("text", _check_texts(subject, counts))
    yield from _in_group("model", _check_model(subject, texts.token_frequencies_loss(counts)))
    yield from _in_group("machine", (check_device(subject), check_disk(subject)))


def all_checks(subject: Subject, watts: float | None = None, price_per_hour: float | None = None) -> Iterator[Verdict]:
    """Run all checks. Those that train do so on a throw-away copy each, and only if text and model have no error."""
    may_train = True
    for verdict in quick_checks(subject):
        may_train = may_train and (not verdict.error or verdict.group in ("settings", "machine"))
        yield verdict
    if not may_train:
        yield Verdict("learning", "not tried: first correct the errors above", group="learning")
        return
    yield from _in_group("learning", _check_learning(subject))
    yield from _in_group("cost", estimate_cost(subject, watts, price_per_hour))


def _in_group(group: str, verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
    for verdict in verdicts:
        yield replace(verdict, group=group)


def _check_texts(subject: Subject, counts: texts.Counts) -> Iterator[Verdict]:
    run, tokenizer, train = subject.run, subject.tokenizer, subject.train
    counted = read_manifest(run / "corpus").statistics if is_made(run / "corpus") else {}
    if counted:
        yield texts.check_separators(counted.get("marks", {}))
    documents = run / "corpus" / "train.parquet"
    first_texts = list(islice(read_texts(documents), 8)) if documents.is_file() else []
    yield texts.check_round_trip(tokenizer, first_texts)
    taken = is_made(run / "tokenizer") and read_manifest(run / "tokenizer").settings.get("kind") == "existing"
    yield texts.check_vocabulary(counts, tokenizer, may_learn=taken and subject.start is None)
    yield texts.check_shards(run / "shards", train, tokenizer, first_texts)
    yield texts.check_held_out(counted.get("held_out"))
    yield texts.check_order(subject.rows, train, subject.config.context_length)


def _check_model(subject: Subject, frequencies: float) -> Iterator[Verdict]:
    """
    Args:
        frequencies: the loss of a model that knows only how often each token occurs.
    """
    assembled, rows, trained = subject.assembled, subject.settings.micro_batch_rows, subject.start is not None
    model, loss, weights = assembled.model, assembled.loss, assembled.masters.copies
    if subject.start is not None:
        start = checks.check_trained_weights(model, subject.start)
        yield start
        if start.error:
            return
    loss_at_start = subject.first_step()
    first = _check_loss_at_start(subject, loss_at_start, frequencies)
    if not math.isfinite(loss_at_start):
        yield first
        return
    batch = checks.first_tokens(subject.rows(0, rows), subject.check_tokens)
    bordered = checks.most_documents_first(subject.rows(0, max(32, rows)))
    targets = checks.check_targets(model, batch, loss)
    mask = checks.check_mask(model, checks.first_tokens(bordered, subject.check_tokens), loss)
    units = checks.check_units(model, batch, loss, trained)
    yield from (targets, mask, checks.check_ties(model), units)
    if not targets.error and not mask.error:
        yield first
    if not units.error:
        yield checks.check_gradients(weights, trained)
    assembled.optimizer.step()
    yield checks.check_numbers(weights, assembled.optimizer)


def _check_loss_at_start(subject: Subject, loss: float, frequencies: float) -> Verdict:
    vocab_size, added = subject.config.vocab_size or 2, torch.tensor([*subject.tokenizer.added.values()])
    if subject.start is None:
        return checks.check_start(loss, vocab_size, subject.config.d_model)
    known, batch = loss, subject.first_rows
    old = batch.weight * ~torch.isin(batch.targets, added)
    if loss > checks.NEAR_CHANCE * math.log(vocab_size) and 0 < old.sum() < batch.weight.sum():
        assembled = subject.assembled
        _, summed = checks.hidden_and_loss(assembled.model, replace(batch, weight=old), assembled.loss)
        known = summed / old.sum().item()
    n, in_batch = len(batch.tokens), subject.settings.batch_rows(0, subject.config.context_length)
    rows = f"the {n:,} rows of step 1" if n == in_batch else f"the first {n:,} of {in_batch:,} rows of step 1"
    return checks.check_trained_start(loss, known, rows, vocab_size, frequencies)


# --- learning ---


def _check_learning(subject: Subject) -> Iterator[Verdict]:
    in_range = _sweep_learning_rate(subject)
    yield in_range
    if in_range.level == "ok":
        losses = train_briefly(subject, lambda number: min(1.0, (number + 1) / 4), OVERFIT_STEPS + 1, same_rows=True)
        yield checks.check_overfit(list(losses), subject.start is not None)
        yield check_resume(subject)


def _sweep_learning_rate(subject: Subject) -> Verdict:
    low, high, n = SWEEP
    rates = [low * (high / low) ** (i / (n - 1)) for i in range(n)]
    rate, vocab_size = subject.settings.optimizer.learning_rate, subject.config.vocab_size or 2
    losses: list[float] = []
    for loss in train_briefly(subject, lambda number: rates[number] / rate, n):
        losses.append(loss)
        if not math.isfinite(loss) or loss > 1.5 * max(losses[0], math.log(vocab_size)):
            break
    if subject.start is None:
        return checks.check_range(rates, losses, [losses[0]] * len(losses), rate)
    untouched = list(train_briefly(subject, lambda number: 0.0, len(losses)))
    known = max(math.log(vocab_size) - untouched[0], 0.1 * untouched[0])
    return checks.check_range(rates, losses, untouched, rate, known)


def train_briefly(
    subject: Subject, schedule: Callable[[int], float], steps: int, same_rows: bool = False
) -> Iterator[float]:
    """Train a throw-away copy on few rows per step, the same or the next ones, and yield the loss at each step."""
    assembled, settings, tokens = subject.throw_away(), subject.settings, subject.check_tokens
    rows = max(1, tokens // subject.config.context_length)
    first_rows = (0 if same_rows else step * rows for step in range(steps))
    drawn = (checks.first_tokens(subject.rows(first, rows), tokens) for first in first_rows)
    for step in fit(assembled.optimizer, schedule, drawn, assembled.gradients(settings), steps=steps,
                    clip=settings.clip, scaler=assembled.scaler):  # fmt: skip
        yield step.parts["next_token"].item()


def check_resume(subject: Subject) -> Verdict:
    """Train four steps by the stage itself, and again from the checkpoint of step 2 in fresh state."""
    rows = max(1, subject.check_tokens // subject.config.context_length)
    short = subject.settings.model_copy(
        update={
            "steps": 4, "checkpoint_every": 2, "keep_checkpoints": 2, "sample_tokens": 0, "validation_tokens": 1,
            "batch_tokens": rows * subject.config.context_length, "micro_batch_rows": max(1, rows // 2), "loggers": (),
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=subject.run) as folder:
        run, weights = Path(folder), []
        for name in ("tokenizer", "shards"):
            (run / name).symlink_to((subject.run / name).resolve())
        for _ in range(2):
            pretrain(subject.config, short, run, {}, subject.start, say=lambda text: None)
            weights.append((run / "model" / "model.safetensors").read_bytes())
            newest = max((run / "pretrain" / "checkpoints").glob("step-*"))
            size = sum(file.stat().st_size for file in newest.iterdir())
            for made in (newest, run / "model"):
                shutil.rmtree(made)
    if weights[0] == weights[1]:
        return ok("resume", f"bit for bit the unbroken training; a checkpoint has {byte_size(size)}")
    finding = "a resumed training gives other weights than an unbroken one"
    return error("resume", finding, "look for random or shared state: two computations differ")


# --- the machine, and what the training costs ---


def check_device(subject: Subject) -> Verdict:
    """Whether the best device is used, with as many threads as there are cores."""
    device, precision = subject.device, subject.settings.precision
    assert precision is not None, "prepare() has chosen it"
    if device.type != "cpu":
        return ok("device", f"{device}, {precision.kind}")
    cores, threads = available_cores(), torch.get_num_threads()
    return judge(
        "device",
        f"{device}, {precision.kind}, {threads} threads on {cores} cores",
        (threads > cores, warning, f"threads wait for each other: OMP_NUM_THREADS={cores}"),
        (torch.cuda.is_available(), warning, "there is a GPU: pretrain.device=cuda"),
    )


def check_disk(subject: Subject) -> Verdict:
    """Whether there is room for the checkpoints that are kept, one more while it is written, and the model."""
    keep, weights = subject.settings.keep_checkpoints, 4 * subject.config.parameters
    needed = (keep + 1) * 3 * weights + weights
    free = shutil.disk_usage(subject.run).free
    finding = f"{byte_size(free)} free, {byte_size(needed)} needed for checkpoints and model"
    if free >= needed:
        return ok("disk", finding)
    fewer = ", or lower pretrain.keep_checkpoints" if keep > 1 else ""
    return error("disk", finding, f"free some, or choose another path with --run{fewer}", ResourceError)


def estimate_cost(subject: Subject, watts: float | None, price_per_hour: float | None) -> Iterator[Verdict]:
    """Measure memory and speed in full micro-batches on a throw-away copy, and what the whole run will take."""
    settings, config, device = subject.settings, subject.config, subject.device
    needs, available = memory_needs(config, settings), total_memory(device)
    if needs.bytes() > available:
        finding = f"{breakdown(needs)}; the {device} has {byte_size(available)}"
        yield error("memory", finding, smallest_change(needs, available), ResourceError)
        return
    before = reset_peak_memory(device)
    drawn = batches(subject.train, config.context_length, settings.seed, needs.rows, 0)
    seconds, step_tokens = time_steps(subject.throw_away(), settings, drawn, seconds=6.0)
    if before is not None:
        measured = max(0, peak_memory(device) - before)
        finding = f"{byte_size(needs.bytes())} predicted, {byte_size(measured)} measured, of {byte_size(available)}"
        is_tight = max(measured, needs.bytes()) > 0.8 * available
        advice = f"if it does not suffice, {smallest_change(needs, available // 2)}"
        yield judge("memory", finding, (is_tight, warning, advice))
    tokens = settings.steps * settings.batch_tokens
    flops = training_flops_per_token(config, settings.loss) * tokens
    speed = step_tokens / statistics.median(seconds)
    total_seconds = tokens / speed
    yield ok("speed", f"{speed:,.0f} tokens/s, {flops / total_seconds / 1e9:,.0f} GFLOP/s, before any compilation")
    yield ok("whole run", f"{duration(total_seconds)} of training, {flops:.3g} FLOPs")
    power, source = power_limit(device) if watts is None else (watts, "as given")
    yield ok("energy", f"{power * total_seconds / 3.6e6:.3g} kWh at {power:,.0f} W ({source})")
    if price_per_hour is not None:
        yield ok("price", f"{price_per_hour * total_seconds / 3600:,.2f} at {price_per_hour:g} an hour")


def memory_needs(config: ModelConfig, settings: PretrainSettings) -> MemoryNeeds:
    """What decides how much memory a recipe's training takes."""
    rows = min(settings.micro_batch_rows, settings.batch_tokens // config.context_length)
    precision = settings.precision or Float32()  # while it is being chosen
    has_start = settings.start is not None
    return MemoryNeeds(config, precision, settings.optimizer, rows, settings.recompute, settings.average, has_start)


def explain_memory(error: BaseException, model: ModelConfig, settings: PretrainSettings, run: Path) -> None:
    """Say what this model's training needs and the smallest change that fits, if it is memory that ran out.

    Raises:
        ResourceError: if it is.
    """
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        needs = memory_needs(model.with_vocabulary(read_manifest(run / "shards").statistics["vocab_size"]), settings)
        change = smallest_change(needs, int(0.7 * needs.bytes()))
        raise ResourceError(
            f"out of memory. This training needs about {breakdown(needs)}. The smallest change: {change}"
        ) from None
