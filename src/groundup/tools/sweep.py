"""A sweep: a recipe trained with several values of some settings, to see which serve best.

Each point is a run of its own under `runs/NAME-sweep/`; corpus, tokenizer and shards are shared between them by digest.
`sweep.json` there says what was asked for and what was measured; it is written after each point, so that an
interrupted sweep goes on where it was.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.artifacts import lock
from groundup.building import MACHINE_CHOICES, SWEEP, Say, Watch, build, next_to
from groundup.errors import DamagedError, DataError, DivergedError, Paused, SettingsError
from groundup.files import naming_the_place, no_progress, read_lines, write_json
from groundup.pretrain import sweep as asking
from groundup.pretrain.sweep import Axis, Point, override
from groundup.recipe import Recipe, load_recipe
from groundup.report.sweep import write_page
from groundup.settings import Table, differences, read_toml
from groundup.words import short_value

PAGE = "sweep.html"
Found = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A sweep as it is asked for."""

    recipe: str | Path | Recipe
    words: tuple[str, ...]
    """Settings as given, swept ones among them: their order counts, as with any overrides."""
    axes: tuple[Axis, ...]
    points: dict[str, Point]
    loaded: dict[str, Recipe]
    """Of each point."""
    rungs: tuple[int, ...]
    """Steps at which points drop out; none in a grid."""

    def overrides(self, point: Point) -> list[str]:
        keys = [word.partition("=")[0].strip() for word in self.words]
        return [
            override(key, point.settings[key]) if key in point.settings else word
            for key, word in zip(keys, self.words, strict=True)
        ]

    @property
    def definition(self) -> Table:
        """What may not change while the sweep goes on, but for points that are added to a grid."""
        table = self.recipe.table() if isinstance(self.recipe, Recipe) else read_toml(Path(self.recipe))
        swept = {axis.key for axis in self.axes}
        return {
            "recipe": table,
            "settings": [word for word in self.words if word.partition("=")[0].strip() not in swept],
            "axes": [{"key": axis.key, "values": list(axis.values)} for axis in self.axes],
            "rungs": list(self.rungs),
        }


def ask(recipe: str | Path | Recipe, words: Sequence[str], *, halving: bool = False, steps: int | None = None) -> Asked:
    """Read what is asked for, and check every point of it.

    Raises:
        SettingsError: nothing swept, a malformed range, an unknown setting, or a point that no recipe can have.
    """
    words = [*words, *([] if steps is None else [f"pretrain.steps={steps}"])]
    axes, _ = asking.parse(words)
    points = {point.name: point for point in asking.points(axes)}
    asked = Asked(recipe, tuple(words), tuple(axes), points, {}, ())
    loaded = {name: load_recipe(recipe, asked.overrides(point))[0] for name, point in points.items()}
    found: list[int] = []
    if halving:
        lengths = {each.pretrain.steps for each in loaded.values()}
        if len(lengths) > 1:
            raise SettingsError(
                "--halving compares trainings of one length after the same steps, but pretrain.steps is swept: leave "
                "--halving out, or sweep another setting"
            )
        found = asking.rungs(len(points), next(iter(loaded.values())).pretrain)
    return Asked(recipe, tuple(words), tuple(axes), points, loaded, tuple(found))


def sweep(
    recipe: str | Path | Recipe,
    words: Sequence[str],
    *,
    halving: bool = False,
    steps: int | None = None,
    run: str | Path | None = None,
    watch: Watch = lambda stage: nullcontext(no_progress),
    say: Say = print,
) -> Found:
    """Train every point, or what is left of it, and write `sweep.json` and `sweep.html`.

    Args:
        words: such as `["pretrain.optimizer.learning_rate=1e-4..1e-2:log:8", "model.d_model=64,128"]`; a setting with
            one value is the same in all points.
        halving: all points begin, the best third goes on at each rung.
        steps: of each training; the recipe's if not given.
        run: the directory of the sweep; `runs/NAME-sweep` if not given.

    Raises:
        SettingsError: a sweep that cannot be, or that is not the one in the directory.
        DivergedError: when no point can be trained.
        SavedAndStopped: after Ctrl-C or SIGTERM; the same command goes on.
    """
    asked = ask(recipe, words, halving=halving, steps=steps)
    name = next(iter(asked.loaded.values())).name
    directory = Path(run) if run is not None else Path("runs") / f"{name}-sweep"
    with naming_the_place(directory):
        _refuse_foreign(directory)
    with lock(directory):
        state = _begun(directory, asked)
        write_json(directory / SWEEP, state)
        _train_all(asked, directory, state, watch, say)
        best = _ranked(state)[0]
        state["best"] = None if "diverged" in state["points"][best] else best
        write_json(directory / SWEEP, state)
        found = _told(asked, directory, state)
        write_page(directory / PAGE, found)
    if found["best"] is None:
        raise DivergedError(
            f"every point of the sweep diverged ({state['points'][best]['diverged']}); {directory / PAGE} lists them. "
            "Sweep lower learning rates"
        )
    return found


def _refuse_foreign(directory: Path) -> None:
    there = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if there - {"lock"} and SWEEP not in there:
        what = "is a run, not a sweep" if "recipe.toml" in there else "holds other files and is not a sweep of groundup"
        raise SettingsError(f"{directory} {what}; choose another place with --run")


def _begun(directory: Path, asked: Asked) -> Table:
    """The state of the sweep, as it was left or new.

    Raises:
        SettingsError: what is there was asked for otherwise.
    """
    new: Table = {
        "definition": asked.definition,
        "chosen": {},
        "best": None,
        "points": {name: {} for name in asked.points},
    }
    path = directory / SWEEP
    if not path.is_file():
        return new
    try:
        state: Table = json.loads(path.read_bytes())
        before, points = state["definition"], state["points"]
    except (ValueError, KeyError, TypeError):
        raise DamagedError(
            f"{path} is damaged: remove it; points that were finished are then only read again"
        ) from None
    changed = [
        f"  {name}: {old!r} → {new!r}"
        for name, (old, new) in differences(before["recipe"], asked.definition["recipe"]).items()
    ]
    for what in ("settings", "rungs"):
        if before[what] != asked.definition[what]:
            changed.append(f"  {what}: {before[what]} → {asked.definition[what]}")
    gone = [name for name in points if name not in asked.points]
    if gone:
        changed.append(f"  without {', '.join(gone[:4])}{', …' if len(gone) > 4 else ''}")
    if asked.rungs and len(asked.points) != len(points):
        changed.append(f"  {len(points)} points → {len(asked.points)}, of which other thirds would have dropped out")
    if changed:
        raise SettingsError(
            "\n".join([f"{directory} holds another sweep:", *changed])
            + f"\nSweep beside it with --run {next_to(directory)}; to a grid, points can be added by naming "
            "the old values too"
        )
    return {**new, "chosen": state["chosen"], "points": {name: points.get(name, {}) for name in asked.points}}


def _train_all(asked: Asked, directory: Path, state: Table, watch: Watch, say: Say) -> None:
    """Train the points, rung after rung, and write down each."""
    going = list(asked.points)
    for rung in asked.rungs or (None,):
        for number, name in enumerate(going, start=1):
            end = asked.loaded[name].pretrain.steps
            step = rung or end
            told = state["points"][name]
            if "diverged" in told or any(each["step"] == step for each in told.get("measured", [])):
                continue
            after = f", to step {step:,} of {end:,}" if step < end else ""
            say(f"point {number} of {len(going)}: {name}{after}")
            state["points"][name] = _train(asked, directory, name, step, state, watch, say)
            write_json(directory / SWEEP, state)
        if rung is not None and rung != asked.rungs[-1]:
            reached = {name: _at(state["points"][name], rung) for name in going}
            going = asking.survivors(reached)
            say(f"after {rung:,} steps these go on: {', '.join(going) or 'none'}")


def _train(asked: Asked, directory: Path, name: str, step: int, state: Table, watch: Watch, say: Say) -> Table:
    """Bring a point to a step; what is then known of it."""
    run = directory / name
    words = [*asked.overrides(asked.points[name]), *(override(key, value) for key, value in state["chosen"].items())]
    end = asked.loaded[name].pretrain.steps
    told: Table = {}
    try:
        build(asked.recipe, words, run=run, last="pretrain", until=step if step < end else None, watch=watch, say=say)
    except Paused:
        pass
    except DivergedError as error:
        say(f"{name} diverged: {error}")
        told["diverged"] = str(error)
    if not state["chosen"]:
        state["chosen"] = _chosen(asked.loaded[name], run)
    lines = read_lines(run / "pretrain" / "metrics.jsonl")
    told["seconds"] = max((line["seconds"] for line in lines if "seconds" in line), default=0.0)
    told["measured"] = [
        {"step": line["step"], "validation_bits_per_byte": line["validation_bits_per_byte"]}
        for line in lines
        if "validation_bits_per_byte" in line and (line["step"] in asked.rungs or line["step"] == end)
    ]
    if "diverged" not in told and _at(told, step) is None:
        raise DataError(
            f"{run} has no measurement of validation at step {step:,} in its metrics.jsonl: remove that run, and it is "
            "made again"
        )
    return told


def _chosen(recipe: Recipe, run: Path) -> Table:
    """What the first point found best where the recipe leaves it open: all points have the same, or their difference
    would be in the comparison."""
    made = read_toml(run / "recipe.toml")["pretrain"]
    chosen = {
        f"pretrain.{name}": made[name]
        for name in MACHINE_CHOICES
        if getattr(recipe.pretrain, name) is None and name in made
    }
    return {name: value["kind"] if isinstance(value, dict) else value for name, value in chosen.items()}


def _at(told: Table, step: int) -> float | None:
    """Bits per byte at a step; None where it diverged before."""
    found = [each["validation_bits_per_byte"] for each in told.get("measured", []) if each["step"] == step]
    return found[-1] if found else None


def _ranked(state: Table) -> list[str]:
    """The points, those that went furthest first, of these the best first, diverged ones last."""

    def place(name: str) -> tuple[bool, int, float]:
        told = state["points"][name]
        measured = told.get("measured", [])
        last = measured[-1] if measured else {"step": 0, "validation_bits_per_byte": 0.0}
        furthest = -int(last["step"]) if state["definition"]["rungs"] else 0
        return "diverged" in told, furthest, float(last["validation_bits_per_byte"])

    return sorted(state["points"], key=place)


def _told(asked: Asked, directory: Path, state: Table) -> Found:
    """All that is known of the sweep, as JSON values, the best point first."""
    best = state["best"]
    return {
        "name": next(iter(asked.loaded.values())).name,
        "directory": str(directory),
        "axes": [
            {"key": axis.key, "values": list(axis.values), "numeric": axis.is_numeric, "log": axis.is_logarithmic}
            for axis in asked.axes
        ],
        "rungs": list(asked.rungs),
        "chosen": state["chosen"],
        "points": [
            {"name": name, "settings": dict(asked.points[name].settings), "diverged": None, **state["points"][name]}
            for name in _ranked(state)
        ],
        "best": best,
        "overrides": [] if best is None else asked.overrides(asked.points[best]),
        "notes": [] if best is None else _edges(asked.axes, asked.points[best]),
    }


def _edges(axes: Sequence[Axis], best: Point) -> list[str]:
    """Where the best value is the least or the largest that was tried."""
    notes = []
    for axis in axes:
        value = best.settings[axis.key]
        if axis.is_numeric and value in (min(axis.values), max(axis.values)):
            end, beyond = ("least", "lower") if value == min(axis.values) else ("largest", "higher")
            told = f"{axis.key} = {short_value(value)}"
            notes.append(f"{told} is the {end} value that was tried: {beyond} ones may be better still")
    return notes
