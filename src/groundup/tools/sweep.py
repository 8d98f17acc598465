"""A sweep: a recipe trained with several values of some settings, to see which serve best.

A point is one choice of a value for each swept setting, and a run of its own under `runs/NAME-sweep/`; corpus,
tokenizer and shards are shared between the points by digest. `sweep.json` there says what was asked for and what was
measured; it is written after each point, so that an interrupted sweep goes on where it was.
"""

import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from groundup.artifacts import lock
from groundup.building import MACHINE_CHOICES, SWEEP, Say, Watch, build, next_to
from groundup.errors import DamagedError, DataError, DivergedError, Paused, SettingsError
from groundup.files import explaining_write_errors, no_progress, read_lines, write_json
from groundup.optim.schedule import make_schedule
from groundup.pretrain.settings import PretrainSettings
from groundup.recipe import Recipe, load_recipe
from groundup.report.sweep import Axis, Measured, Outcome, Swept, Trained, write_page
from groundup.settings import Table, differences, read_toml, read_value, toml_value
from groundup.words import short_value

PAGE = "sweep.html"
ETA = 3
"""At each rung the best third goes on, for three times as long (Li et al. 2018, arXiv:1603.06560, section 3.6)."""
MOST_POINTS = 1000
EXAMPLE = "pretrain.optimizer.learning_rate=1e-4..1e-2:log:8"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?:(\d+)")


@dataclass(frozen=True)
class Point:
    """One choice of a value for each swept setting."""

    settings: Mapping[str, Any]
    words: list[str]
    """All settings as overrides, in the order in which they were typed."""
    recipe: Recipe
    """With these settings."""

    @property
    def steps(self) -> int:
        return self.recipe.pretrain.steps


class Record(BaseModel):
    """What is in `sweep.json`."""

    definition: Table
    chosen: Table = {}
    """What the recipe leaves open, as the first point chose it for all."""
    best: str | None = None
    points: dict[str, Outcome] = {}

    def write(self, directory: Path) -> None:
        write_json(directory / SWEEP, {"best": None, **self.model_dump(exclude_none=True)})


@dataclass(frozen=True)
class Plan:
    """A sweep as it was asked for."""

    recipe: str | Path | Recipe
    axes: tuple[Axis, ...]
    points: dict[str, Point]
    """By the names of their directories."""
    rungs: tuple[int, ...]
    """Steps at which points drop out; none in a grid."""
    definition: Table
    """Everything that may not change while the sweep goes on; to a grid, points may be added."""


# --- what is asked for ---


def plan(recipe: str | Path | Recipe, words: Sequence[str], *, halving: bool = False, steps: int | None = None) -> Plan:
    """Read what is asked for, and check every point of it.

    Raises:
        SettingsError: nothing swept, a malformed range, an unknown setting, or a point that no recipe can have.
    """
    words = list(words) if steps is None else [*words, f"pretrain.steps={steps}"]
    axes = parse(words)
    points = {}
    for values in itertools.product(*(axis.values for axis in axes)):  # the last setting changes fastest
        settings = {axis.key: value for axis, value in zip(axes, values, strict=True)}
        changed = [override(key, settings[key]) if (key := _key(word)) in settings else word for word in words]
        points[_directory(axes, values)] = Point(settings, changed, load_recipe(recipe, changed)[0])
    rungs: tuple[int, ...] = ()
    if halving:
        if len({point.steps for point in points.values()}) > 1:
            raise SettingsError(
                "--halving compares trainings of one length after the same steps, but pretrain.steps is swept: leave "
                "--halving out, or sweep another setting"
            )
        rungs = rungs_of(len(points), next(iter(points.values())).recipe.pretrain)
    swept = {axis.key for axis in axes}
    definition = {
        "recipe": recipe.table() if isinstance(recipe, Recipe) else read_toml(Path(recipe)),
        "settings": [word for word in words if _key(word) not in swept],
        "rungs": list(rungs),
    }
    return Plan(recipe, tuple(axes), points, rungs, definition)


def parse(words: Iterable[str]) -> list[Axis]:
    """The swept settings among `key=a..b:log:n`, `key=a..b:n`, `key=a,b,c` and ordinary ones, `key=value`.

    Raises:
        SettingsError: a range that is malformed, or nothing that is swept.

    >>> parse(["a.rate=1e-4..1e-2:log:3", "b=64,128", "c=1"])
    [Axis(key='a.rate', values=(0.0001, 0.001, 0.01)), Axis(key='b', values=(64, 128))]
    """
    axes: dict[str, Axis] = {}
    for word in words:
        key, equals, text = _key(word), *word.partition("=")[1:]
        if not equals or not key:
            raise SettingsError(f"{word!r} is not of the form key=values, such as {EXAMPLE}")
        values = _values(key, text.strip())
        if len(values) > 1 and key in axes:
            raise SettingsError(f"{key} is given twice: name all its values in one place, such as {key}=1,2,3")
        if len(values) > 1:
            axes[key] = Axis(key, tuple(values))
    if not axes:
        raise SettingsError(
            f"nothing is swept: give a setting several values, such as {EXAMPLE}, model.d_model=64..256:4 or "
            "pretrain.schedule.final=0.0,0.1"
        )
    counts = [len(axis.values) for axis in axes.values()]
    if math.prod(counts) > MOST_POINTS:
        raise SettingsError(
            f"{' × '.join(map(str, counts))} values are {math.prod(counts):,} trainings; at most {MOST_POINTS:,} are "
            "taken on: fewer values, or one setting after the other"
        )
    return list(axes.values())


def _key(word: str) -> str:
    return word.partition("=")[0].strip()


def _values(key: str, text: str) -> list[Any]:
    if re.match(rf"{NUMBER}\.\.", text):
        return _range(key, text)
    try:
        values: list[Any] = tomllib.loads(f"values = [{text}]")["values"]
    except (ValueError, RecursionError):
        values = [read_value(part) for part in text.split(",")]
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise SettingsError(f"{key}={text} names {twice[0]!r} twice")
    return values


def _range(key: str, text: str) -> list[Any]:
    match = RANGE.fullmatch(text)
    if not match:
        raise SettingsError(
            f"{key}={text} is not a range: write FIRST..LAST:log:HOW_MANY or FIRST..LAST:HOW_MANY, such as {EXAMPLE}"
        )
    first, last, many = float(match[1]), float(match[2]), int(match[4])
    for is_wrong, why in (
        (many < 2 or first == last, f"is one value; a range has two ends and at least 2 values, such as {EXAMPLE}"),
        (many > MOST_POINTS, f"asks for {many:,} values; at most {MOST_POINTS:,} are taken on"),
        (match[3] and min(first, last) <= 0, "is a range by logarithms (:log), which has both ends above 0"),
    ):
        if is_wrong:
            raise SettingsError(f"{key}={text} {why}")
    shares = [i / (many - 1) for i in range(1, many - 1)]
    between = [first * (last / first) ** share if match[3] else first + (last - first) * share for share in shares]
    values = [first, *(float(f"{value:.4g}") for value in between), last]
    is_whole = not re.search(r"[.eE]", match[1] + match[2]) and all(value == int(value) for value in values)
    return [int(value) for value in values] if is_whole else values


def _directory(axes: Sequence[Axis], values: Iterable[Any]) -> str:
    """A name that every file system takes; what was left out of it stands in a digest at its end."""
    last_words = [axis.key.rpartition(".")[2] for axis in axes]
    names = [word if last_words.count(word) == 1 else axis.key for axis, word in zip(axes, last_words, strict=True)]
    name = ",".join(f"{name}={short_value(value)}" for name, value in zip(names, values, strict=True))
    safe = re.sub(r"[^A-Za-z0-9._,=+-]", "_", name)[:100]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def override(key: str, value: Any) -> str:
    """As it is given on a command line.

    >>> override("pretrain.optimizer.kind", "muon"), override("model.attention.windows", [16, 32])
    ('pretrain.optimizer.kind=muon', 'model.attention.windows=[16, 32]')
    """
    return f"{key}={value if isinstance(value, str) and read_value(value) == value else toml_value(value)}"


def rungs_of(n_points: int, settings: PretrainSettings) -> tuple[int, ...]:
    """The steps after which successive halving looks at the points; the last is the end of the training.

    After the first of s + 1 rungs, at steps / 3^s, the best third goes on to three times as many steps, and so on
    (Jamieson and Talwalkar 2016, arXiv:1502.07943; Li et al. 2018, algorithm 1, with one bracket). There are as many
    rungs as leave one point for the last and as lie beyond the warm-up, within which rates cannot be compared.

    Raises:
        SettingsError: too few points, or a warm-up too long for a rung after it.
    """
    if n_points < ETA:
        raise SettingsError(
            f"--halving keeps the best third of the points, but there are {n_points}: name at least {ETA} values, or "
            "leave --halving out"
        )
    factor = make_schedule(settings.schedule, settings.steps)
    warmup = max(range(settings.steps), key=lambda step: (factor(step), -step))
    most = int(math.log(n_points, ETA) + 1e-9)
    rungs = [settings.steps // ETA**s for s in range(most, 0, -1) if settings.steps // ETA**s > warmup]
    if not rungs:
        raise SettingsError(
            f"--halving would first look after {settings.steps // ETA:,} of {settings.steps:,} steps, within the "
            f"{warmup:,} of the warm-up: shorten pretrain.schedule.warmup_steps, train longer, or leave --halving out"
        )
    return (*rungs, settings.steps)


# --- training ---


def sweep(
    recipe: str | Path | Recipe,
    words: Sequence[str],
    *,
    halving: bool = False,
    steps: int | None = None,
    run: str | Path | None = None,
    watch: Watch = lambda stage: nullcontext(no_progress),
    say: Say = print,
) -> Swept:
    """Train every point, or what is left of it, and write `sweep.json` and `sweep.html`.

    Args:
        words: such as `["pretrain.optimizer.learning_rate=1e-4..1e-2:log:8", "model.d_model=64,128"]`; a setting with
            one value is the same in all points.
        halving: all points begin, the best third goes on at each rung.
        steps: of each training; the recipe's if not given.
        run: the directory of the sweep; `runs/NAME-sweep` if not given.

    Returns:
        All that is known of the sweep.

    Raises:
        SettingsError: a sweep that cannot be, or that is not the one in the directory.
        DivergedError: when no point can be trained.
        SavedAndStopped: after Ctrl-C or SIGTERM; the same command goes on.
    """
    planned = plan(recipe, words, halving=halving, steps=steps)
    name = next(iter(planned.points.values())).recipe.name
    directory = Path(run) if run is not None else Path("runs") / f"{name}-sweep"
    with explaining_write_errors(directory):
        there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if there - {"lock"} and SWEEP not in there:
        what = "is a run, not a sweep" if "recipe.toml" in there else "holds other files and is not a sweep of groundup"
        raise SettingsError(f"{directory} {what}; choose another place with --run")
    with lock(directory):
        record = _read_record(directory, planned)
        _train_all(planned, directory, record, watch, say)
        ranked = sorted(record.points, key=lambda point: _rank(planned, record.points[point]))
        diverged = record.points[ranked[0]].diverged
        record.best = None if diverged else ranked[0]
        record.write(directory)
        best = planned.points.get(record.best or "")
        result = Swept(
            name=name,
            directory=str(directory),
            axes=planned.axes,
            rungs=planned.rungs,
            chosen=record.chosen,
            points=[
                Trained(name=point, settings=dict(planned.points[point].settings), **vars(record.points[point]))
                for point in ranked
            ],
            best=record.best,
            overrides=best.words if best else [],
            notes=_edges(planned.axes, best) if best else [],
        )
        write_page(directory / PAGE, result)
    if diverged:
        raise DivergedError(
            f"every point of the sweep diverged ({diverged}); {directory / PAGE} lists them. Sweep lower learning rates"
        )
    return result


def _read_record(directory: Path, planned: Plan) -> Record:
    """The record of the sweep, as it was left or new.

    Raises:
        SettingsError: the directory holds a sweep of other settings.
    """
    file, record = directory / SWEEP, Record(definition=planned.definition)
    if file.is_file():
        try:
            record = Record.model_validate_json(file.read_bytes())
        except ValidationError:
            raise DamagedError(
                f"{file} is damaged: remove it; points that were finished are then only read again"
            ) from None
        _refuse_changed(directory, record.definition, record.points, planned)
    points = {name: record.points.get(name, Outcome()) for name in planned.points}
    return record.model_copy(update={"definition": planned.definition, "points": points})


def _refuse_changed(directory: Path, before: Table, points: Mapping[str, Outcome], planned: Plan) -> None:
    changed = [
        f"{name.removeprefix('recipe.')}: {old!r} → {new!r}"
        for name, (old, new) in differences(before, planned.definition).items()
    ]
    if gone := [name for name in points if name not in planned.points]:
        changed.append(f"without {', '.join(gone[:4])}{', …' if len(gone) > 4 else ''}")
    if planned.rungs and len(planned.points) != len(points):
        changed.append(f"{len(points)} points → {len(planned.points)}, of which other thirds would have dropped out")
    if changed:
        raise SettingsError(
            "\n  ".join([f"{directory} holds another sweep:", *changed])
            + f"\nSweep beside it with --run {next_to(directory)}; to a grid, points can be added by naming "
            "the old values too"
        )


def _train_all(planned: Plan, directory: Path, record: Record, watch: Watch, say: Say) -> None:
    """Train the points, rung after rung, and write down each."""
    going, points = list(planned.points), record.points
    for rung in planned.rungs or (None,):
        for number, name in enumerate(going, start=1):
            end = planned.points[name].steps
            step = rung or end
            if not points[name].diverged and points[name].bits_per_byte(step) is None:
                after = f", to step {step:,} of {end:,}" if step < end else ""
                say(f"point {number} of {len(going)}: {name}{after}")
                points[name] = _train(planned, directory, name, step, record, watch, say)
                record.write(directory)
        if rung is not None and rung != planned.rungs[-1]:
            going = survivors({name: points[name].bits_per_byte(rung) for name in going})
            say(f"after {rung:,} steps these go on: {', '.join(going) or 'none'}")


def survivors(bits_at_rung: Mapping[str, float | None]) -> list[str]:
    """The points that go on from a rung: the best third, the best first.

    Args:
        bits_at_rung: name → bits per byte; None for one that diverged.

    >>> survivors({"a": 2.0, "b": None, "c": 1.5, "d": 3.0})
    ['c']
    """
    whole = {name: value for name, value in bits_at_rung.items() if value is not None}
    return sorted(whole, key=whole.__getitem__)[: max(1, len(bits_at_rung) // ETA)]


def _train(planned: Plan, directory: Path, name: str, step: int, record: Record, watch: Watch, say: Say) -> Outcome:
    """Bring a point to a step, and return what is then known of it."""
    run, point = directory / name, planned.points[name]
    words = [*point.words, *(override(key, value) for key, value in record.chosen.items())]
    diverged = None
    try:
        until = step if step < point.steps else None
        build(planned.recipe, words, run=run, last="pretrain", until=until, watch=watch, say=say)
    except Paused:
        pass
    except DivergedError as error:
        say(f"{name} diverged: {error}")
        diverged = str(error)
    record.chosen = record.chosen or _chosen_by_first(point.recipe, run)
    lines = read_lines(run / "pretrain" / "metrics.jsonl")
    seconds = max((line["seconds"] for line in lines if "seconds" in line), default=0.0)
    measured = [
        Measured(line["step"], line["validation_bits_per_byte"])
        for line in lines
        if "validation_bits_per_byte" in line and line["step"] in (*planned.rungs, point.steps)
    ]
    outcome = Outcome(diverged, seconds, measured)
    if not diverged and outcome.bits_per_byte(step) is None:
        raise DataError(
            f"{run} has no measurement of validation at step {step:,} in its metrics.jsonl: remove that run, and it is "
            "made again"
        )
    return outcome


def _chosen_by_first(recipe: Recipe, run: Path) -> Table:
    """The first point's choices where the recipe leaves them open: all points get the same, or the comparison would
    measure these too."""
    made = read_toml(run / "recipe.toml")["pretrain"]
    left_open = [name for name in MACHINE_CHOICES if getattr(recipe.pretrain, name) is None and name in made]
    values = {f"pretrain.{name}": made[name] for name in left_open}
    return {name: value["kind"] if isinstance(value, dict) else value for name, value in values.items()}


def _rank(planned: Plan, point: Outcome) -> tuple[bool, int, float]:
    """The points that went furthest come first, of these the best first, diverged ones last."""
    last = point.measured[-1] if point.measured else Measured(0, 0.0)
    return bool(point.diverged), -last.step if planned.rungs else 0, last.validation_bits_per_byte


def _edges(axes: Sequence[Axis], best: Point) -> list[str]:
    """Where the best value is the least or the largest that was tried."""
    return [
        f"{axis.key} = {short_value(value)} is the {end} value that was tried: {beyond} ones may be better still"
        for axis in axes
        if axis.is_numeric
        for value, end, beyond in ((min(axis.values), "least", "lower"), (max(axis.values), "largest", "higher"))
        if value == best.settings[axis.key]
    ]
