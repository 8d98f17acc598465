"""Measure the speed of a recipe or a run: prepare text and tokens, choose the precision, train some steps."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.artifacts import read_manifest, verify
from groundup.building import Say, Watch, build
from groundup.errors import SettingsError
from groundup.files import no_progress, require_path
from groundup.pretrain.setup import batches
from groundup.pretrain.speed import Speed, measure_speed, settle, tokens_per_second
from groundup.recipe import Recipe, load_recipe
from groundup.settings import differences
from groundup.shards import open_split
from groundup.train.assemble import prepare_process
from groundup.weights.load import find_device

SECONDS = 10.0


@dataclass(frozen=True)
class Measured:
    """A speed, and of what."""

    recipe: Recipe
    """With device and precision chosen."""
    speed: Speed

    def table(self) -> dict[str, Any]:
        settings = self.recipe.pretrain
        return {
            "name": self.recipe.name,
            "recipe_batch_tokens": settings.batch_tokens,
            "micro_batch_rows": settings.micro_batch_rows,
            **self.speed.table(),
        }


def bench(
    target: Path,
    overrides: Iterable[str] = (),
    *,
    steps: int | None = None,
    trace: Path | None = None,
    watch: Watch = lambda stage: nullcontext(no_progress),
    say: Say = print,
) -> Measured:
    """Measure how fast the model of a recipe, or of a run, trains on its own rows.

    Args:
        target: a recipe, whose text and tokens are made in `runs/NAME-bench` if no run beside it has them; or a run.
        steps: to measure, after two that warm up; if not given, for about ten seconds.
        trace: the file for a profiler's trace of two more steps.

    Raises:
        SettingsError: neither a recipe nor a run with shards; settings that its shards were not made with.
    """
    if trace is not None and (trace.is_dir() or not trace.parent.is_dir()):
        raise SettingsError(f"--trace {trace} cannot be written: it should be a file in a folder that exists")
    overrides = list(overrides)
    recipe, run = _of_recipe(target, overrides, watch, say) if target.suffix == ".toml" else _of_run(target, overrides)
    prepare_process()
    train = open_split(run / "shards", "train")
    device = find_device(recipe.pretrain.device)
    model = recipe.model.with_vocabulary(read_manifest(run / "shards").statistics["vocab_size"])
    settings, told = settle(model, recipe.pretrain, run / "shards", device)
    for line in told:
        say(line)
    context, most_rows = model.context_length, settings.batch_tokens // model.context_length
    micro_batch = min(settings.micro_batch_rows, most_rows)
    affordable = SECONDS / 5 * tokens_per_second(model, settings, run / "shards", device, 0.0) / context
    rows = min(most_rows, micro_batch * max(1, int(affordable / micro_batch)))  # leave time for at least five steps
    drawn = batches(train, context, settings.seed, rows, 0)
    speed = measure_speed(model, settings, drawn, device, seconds=SECONDS, steps=steps, trace=trace)
    return Measured(recipe.model_copy(update={"pretrain": settings}), speed)


def _of_recipe(target: Path, overrides: Iterable[str], watch: Watch, say: Say) -> tuple[Recipe, Path]:
    loaded, _ = load_recipe(target, overrides)
    run = Path("runs") / f"{loaded.name}-bench"
    if (run / "pretrain").exists() or (run / "model").exists():
        raise SettingsError(f"{run} is a run of its own, where text and tokens would go: measure it, or rename it")
    built = build(target, overrides, run=run, replace=True, last="pack", watch=watch, say=say)
    if any(row.what == "made" for row in built.rows):
        say(f"text and tokens are kept in {run}, where builds find them")
    return loaded, run


def _of_run(target: Path, overrides: Iterable[str]) -> tuple[Recipe, Path]:
    require_path(target, "recipe or run")
    if not (target / "recipe.toml").is_file() or not (target / "shards" / "manifest.json").is_file():
        raise SettingsError(
            f"{target} is neither a recipe nor a run with shards: the speed of training is measured on rows of its own"
        )
    verify(target / "shards", "shards")
    recorded = Recipe.load(target / "recipe.toml")
    loaded = recorded.override(overrides)
    for name in differences(recorded.table(), loaded.table()):
        if name.startswith(("corpus.", "tokenizer.", "shards.")):
            raise SettingsError(
                f"{name} is set, but the shards in {target} are made already: measure the recipe instead"
            )
    return loaded, target


def rows(measured: Measured) -> list[tuple[str, str]]:
    """A fact a row."""
    speed, machine = measured.speed, measured.speed.machine
    whole = measured.recipe.pretrain.batch_tokens
    part = "" if speed.batch_tokens >= whole else f", a part of the recipe's {whole:,}"
    step = sum(speed.parts.values())
    shares = ", ".join(f"{name} {seconds / step:.0%}" for name, seconds in speed.parts.items())
    where = "of tensors" if machine["device"] != "cpu" else "of the process"
    return [
        ("speed", f"{speed.tokens_per_second:,.0f} tokens/s, median; {speed.slowest:,.0f} to {speed.fastest:,.0f} in "
         f"{speed.steps} steps of {speed.batch_tokens:,} tokens{part}"),
        ("arithmetic", f"{_flops(speed.flops_per_second)}: {_flops(speed.flops_per_token, '')} a token in the model's "
         "matmuls, forward and backward"),
        ("share of peak", f"{speed.share_of_peak:.0%} of {_flops(speed.peak_flops)}, the fastest matmul here"),
        ("memory", f"{speed.peak_bytes / 1e9:,.2f} GB at most, {where}"),
        ("a step", f"{step:.3g} s, waiting after each part: {shares}"),
        ("conditions", ", ".join(f"{name} {value}" for name, value in machine.items())),
    ]  # fmt: skip


def operation_rows(measured: Measured) -> list[tuple[str, str, str]]:
    """The operations of a step that took most time themselves."""
    operations = measured.speed.operations
    return [(name, f"{seconds * 1e3:,.1f} ms", f"{calls:,} ×") for name, seconds, calls in operations]


def _flops(value: float, unit: str = "/s") -> str:
    """
    >>> _flops(5.1e11), _flops(8.4e7, "")
    ('510 GFLOP/s', '84 MFLOP')
    """
    for least, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= least:
            return f"{value / least:,.3g} {letter}FLOP{unit}"
    return f"{value:,.0f} FLOP{unit}"
