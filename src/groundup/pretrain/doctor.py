"""The doctor: what experts check by hand before they spend on a training, on one's own recipe, text and machine.

The list follows Karpathy 2019 ("A Recipe for Training Neural Networks"), Godbole et al. 2023 ("Deep Learning Tuning
Playbook"), and what the reports of large trainings tell of their mishaps. `checks.py` has the checks; here is what they
are handed, and in which order. What would only repeat the fault of an earlier line is not asked.
"""

import contextlib
import dataclasses
import math
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from groundup import pretrained
from groundup.batch import Batch
from groundup.corpus.document import read_texts
from groundup.errors import (
    DataError,
    DivergedError,
    GroundupError,
    ResourceError,
    SettingsError,
)
from groundup.files import is_made, read_manifest
from groundup.model.settings import ModelConfig
from groundup.optim.settings import Float32
from groundup.plan import memory
from groundup.plan.hardware import memory_bytes
from groundup.pretrain import checks
from groundup.pretrain.assemble import (
    Assembled,
    assemble,
    batches,
    give_back_freed_memory,
    training_flops_per_token,
)
from groundup.pretrain.checks import Line, judged
from groundup.pretrain.run import Places, pretrain
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.speed import settle
from groundup.shards import Tokens, open_split
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.fit import fit

QUICK_FLOPS = {"cpu": 2e10}
"""Arithmetic of one pass of a check, forward and backward; on other devices `ELSEWHERE_FLOPS`."""
ELSEWHERE_FLOPS = 1e13
QUICK_TOKENS, WHOLE_TOKENS = 20_000_000, 1_000_000_000
"""How much of the training text is compared with what was held out."""
SWEEP = (1e-5, 1.0, 36)
"""Learning rates: from, to, how many."""
OVERFIT_STEPS = 24
WATTS_A_CORE = 10
"""Assumed where the machine does not tell: servers' processors take 4 to 10 a core under load."""


@dataclass(frozen=True)
class Patient:
    """What is looked at: a recipe's training, assembled as it would be for step 0, and never trained further."""

    config: ModelConfig
    """With its vocabulary."""
    settings: PretrainSettings
    """With device and precision chosen."""
    places: Places
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
    def little(self) -> int:
        """Tokens that a check sends through the model."""
        most = QUICK_FLOPS.get(self.device.type, ELSEWHERE_FLOPS)
        per_token = training_flops_per_token(self.config, self.settings.loss)
        rows = min(self.settings.micro_batch_rows, self.settings.batch_tokens // self.config.context_length)
        return max(64, min(int(most / per_token), rows * self.config.context_length))

    def again(self) -> "Patient":
        """The same before its first step: a throw-away copy for whatever trains."""
        return dataclasses.replace(self, assembled=assemble(self.config, self.settings, self.device))


def admit(config: ModelConfig, settings: PretrainSettings, places: Places) -> Patient:
    """Open and assemble what is to be looked at.

    Raises:
        GroundupError: when shards or tokenizer are damaged or not there.
    """
    tokenizer = Tokenizer.load(places.tokenizer)
    opened = {name: open_split(places.shards, name, tokenizer.vocab_size) for name in ("train", "validation", "test")}
    whole = config.with_vocabulary(tokenizer.vocab_size)
    device = pretrained.find_device(settings.device)
    # Uncompiled: compiling takes longer than all that is looked at here.
    settings, _ = settle(whole, settings.model_copy(update={"compile": False}), places.shards, device)
    train = opened.pop("train")

    def rows(first: int, count: int) -> Batch:
        return next(batches(train, whole.context_length, settings.seed, count, first))

    return Patient(whole, settings, places, tokenizer, train, opened, rows, assemble(whole, settings, device))


def quick(patient: Patient, tokens: int = QUICK_TOKENS) -> Iterator[Line]:
    """The lines that cost little."""
    for group, line in _quick(patient, tokens):
        yield dataclasses.replace(line, group=group)


def _quick(patient: Patient, tokens: int) -> Iterator[tuple[str, Line]]:
    config, settings, assembled = patient.config, patient.settings, patient.assembled
    model, loss = assembled.model, assembled.loss
    yield "settings", checks.check_learning_rate(config, settings)
    yield "settings", checks.check_optimizer_settings(settings)
    yield "settings", checks.check_warmup(settings)
    yield "settings", checks.check_length(config, settings, len(patient.train.ids))
    corpus, tokenizer = patient.places.corpus / "train.parquet", patient.tokenizer
    texts = list(islice(read_texts(corpus), 8)) if corpus.is_file() else []
    if is_made(patient.places.corpus):
        yield "text", checks.check_separators(read_manifest(patient.places.corpus).statistics.get("marks", {}))
    yield "text", checks.check_round_trip(tokenizer, texts)
    if is_made(patient.places.shards):
        statistics_ = read_manifest(patient.places.shards).statistics
        yield "text", checks.check_vocabulary(statistics_, len(tokenizer.special))
    recorded = read_manifest(patient.places.tokenizer).digest if is_made(patient.places.tokenizer) else None
    yield "text", checks.check_shards(patient.places.shards, patient.train, tokenizer, recorded, texts)
    yield "text", checks.check_held_out(patient.train, patient.held, tokens)
    yield "text", checks.check_order(patient.rows, patient.train, config.context_length)
    batch = checks.fewer(patient.rows(0, settings.micro_batch_rows), patient.little)
    targets = checks.check_targets(model, batch, loss)
    yield "model", targets
    bordered = checks.with_borders(patient.rows(0, max(32, settings.micro_batch_rows)))
    mask = checks.check_mask(model, checks.fewer(bordered, patient.little), loss, settings.seed)
    yield "model", mask
    yield "model", checks.check_ties(model)
    units = checks.check_units(model, batch, loss)
    yield "model", units
    assembled.optimizer.zero_grad()
    started = checks.mean_loss(model, batch, loss).item()
    if targets.verdict == mask.verdict == "ok":
        yield "model", checks.check_start(started, config.vocab_size or 2, config.d_model)
    if units.verdict == "ok":
        yield "model", checks.check_gradients(assembled.masters.copies)
    assembled.optimizer.step()
    yield "model", checks.check_numbers(assembled.masters.copies, assembled.optimizer)
    yield "machine", check_device(patient)
    yield "machine", check_disk(patient)


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
        tried.append(checks.check_overfit(_overfitted(patient)))
        tried.append(check_resume(patient))
    for line in tried:
        yield dataclasses.replace(line, group="learning")
    for line in cost(patient, watts, price_per_hour):
        yield dataclasses.replace(line, group="cost")


def _learning_rate_range(patient: Patient) -> Line:
    low, high, n = SWEEP
    rates = [low * (high / low) ** (i / (n - 1)) for i in range(n)]
    patient = patient.again()
    losses: list[float] = []
    for step in _trained(patient, lambda number: rates[number] / patient.settings.optimizer.learning_rate, n):
        losses.append(step)
        if not math.isfinite(step) or step > 1.5 * losses[0]:
            break
    return checks.check_range(rates, losses, patient.settings.optimizer.learning_rate, losses[0])


def _overfitted(patient: Patient) -> list[float]:
    return list(_trained(patient.again(), lambda number: min(1.0, (number + 1) / 4), OVERFIT_STEPS + 1, same=True))


def _trained(patient: Patient, schedule: Any, steps: int, same: bool = False) -> Iterator[float]:
    """The loss at each step; of the same few rows each time, or of the next ones."""
    rows = max(1, patient.little // patient.config.context_length)

    def drawn() -> Iterator[Batch]:
        first = 0
        while True:
            yield checks.fewer(patient.rows(first, rows), patient.little)
            first += 0 if same else rows

    assembled, settings = patient.assembled, patient.settings
    gradients = assembled.gradients(settings, 1)
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
            "batch_tokens": rows * patient.config.context_length, "micro_batch_rows": max(1, rows // 2),
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
    return Line("stop and go on", f"bit for bit the unbroken training; a checkpoint has {memory.shown(size)}")


def check_device(patient: Patient) -> Line:
    settings, device = patient.settings, patient.device
    assert settings.precision is not None, "chosen when the patient came in"
    seen = f"{device}, {settings.precision.kind}"
    if device.type != "cpu":
        return Line("device", seen)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
    seen = f"{memory.shown(free)} free, {memory.shown(needed)} needed for checkpoints and model"
    if free < needed:
        return judged("disk", seen, checks.MEMORY, "free some, choose another place with --run, or lower "
                      "pretrain.keep_checkpoints")  # fmt: skip
    return Line("disk", seen)


def cost(patient: Patient, watts: float | None, price_per_hour: float | None) -> Iterator[Line]:
    """Full-size steps on a throw-away copy: memory, speed, and what the whole run will take."""
    settings, device = patient.settings, patient.device
    assert settings.precision is not None, "chosen when the patient came in"
    needs = training_memory(patient.config, settings)
    available = memory_bytes() if device.type == "cpu" else torch.cuda.mem_get_info(device)[1]
    if needs.bytes() > available:
        yield judged("memory", f"{memory.breakdown(needs)}; the {device} has {memory.shown(available)}", checks.MEMORY,
                     memory.smallest_change(needs, available))  # fmt: skip
        return
    before = _forget_peak(device)
    patient = patient.again()
    rows = needs.rows
    per_step = rows * patient.config.context_length
    drawn = batches(patient.train, patient.config.context_length, settings.seed, rows, 0)
    gradients = patient.assembled.gradients(settings, 1)
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
    peak = _peak(device)
    if peak:
        measured = max(0, peak - before)
        seen = (
            f"{memory.shown(needs.bytes())} predicted, {memory.shown(measured)} measured, of {memory.shown(available)}"
        )
        verdict: Any = "take care" if max(measured, needs.bytes()) > 0.8 * available else "ok"
        advice = "" if verdict == "ok" else f"if it does not suffice, {memory.smallest_change(needs, available // 2)}"
        yield Line("memory", seen, verdict, advice)
    speed = per_step / statistics.median(seconds[1:] or seconds)
    tokens = settings.steps * settings.batch_tokens
    flops = training_flops_per_token(patient.config, settings.loss) * tokens
    taken = tokens / speed
    yield Line("speed", f"{speed:,.0f} tokens/s, {flops / taken / 1e9:,.0f} GFLOP/s, before any compilation")
    yield Line("the whole run", f"{_duration(taken)} of training, {flops:.3g} FLOPs")
    power, whose = _watts(device) if watts is None else (watts, "as given")
    yield Line("energy", f"{power * taken / 3.6e6:.3g} kWh at {power:,.0f} W ({whose})")
    if price_per_hour is not None:
        yield Line("price", f"{price_per_hour * taken / 3600:,.2f} at {price_per_hour:g} an hour")


def training_memory(config: ModelConfig, settings: PretrainSettings) -> memory.Training:
    """What the planner needs to know of a recipe."""
    rows = min(settings.micro_batch_rows, settings.batch_tokens // config.context_length)
    precision = settings.precision or Float32()  # while it is being chosen
    return memory.Training(config, precision, settings.optimizer, rows, settings.recompute, settings.average)


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


def _duration(seconds: float) -> str:
    """
    >>> _duration(50), _duration(500), _duration(50_000), _duration(5e6)
    ('50 seconds', '8.3 minutes', '13.9 hours', '57.9 days')
    """
    for size, name in ((86_400 * 2, "days"), (3600 * 2, "hours"), (120, "minutes")):
        if seconds >= size:
            unit = {"days": 86_400, "hours": 3600, "minutes": 60}[name]
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def _watts(device: torch.device) -> tuple[float, str]:
    """What device or processor may take, and who says so."""
    if device.type == "cuda":
        command = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.split()
        if told and told[0].replace(".", "").isdigit():
            return float(told[0]), "the GPU's limit"
    limit = Path("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw")
    try:
        return int(limit.read_text("utf-8")) / 1e6, "the processor's limit"
    except (OSError, ValueError):
        cores = os.cpu_count() or 1
        return float(WATTS_A_CORE * cores), f"assumed: {WATTS_A_CORE} a core; say better with --watts"


STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _forget_peak(device: torch.device) -> int:
    """Begin to measure the most that is held; bytes that are held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    give_back_freed_memory()
    if REFERENCES.exists():
        with contextlib.suppress(OSError):
            REFERENCES.write_text("5", "utf-8")  # Linux: begin VmHWM anew (proc(5))
    return _field("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _field("VmHWM")


def _field(name: str) -> int:
    if not STATUS.exists():
        return 0
    lines = dict(line.split(":", 1) for line in STATUS.read_text("utf-8").splitlines() if ":" in line)
    return int(lines.get(name, "0").split()[0]) * 1024
