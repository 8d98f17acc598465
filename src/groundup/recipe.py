"""The recipe, root of all settings, and `build`: its stages in order, skipping what is up to date.

Only settings are imported at the top. A room, and torch with it, is imported when its stage runs.
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, field_validator, model_validator

from groundup.artifacts import is_made, lock, making, read_manifest, refuse_in_the_way, share, verify
from groundup.corpus.settings import CorpusSettings
from groundup.errors import DamagedError, DataError, MissingError, SettingsError
from groundup.evals.settings import EvalSettings
from groundup.files import Progress, locate, naming_the_place, no_progress, write_json, write_text
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.pretrain.settings import MultiToken, PretrainSettings
from groundup.settings import Origin, Settings, Table, differences, read_toml
from groundup.tokenizer.settings import (
    N_BYTES,
    N_SPECIAL,
    Existing,
    Learned,
    TokenizerSettings,
    WholeWords,
)
from groundup.train.loggers import refuse_missing

if TYPE_CHECKING:
    from groundup.pretrain.doctor.checks import Line
    from groundup.pretrain.paths import RunPaths
    from groundup.tokenizer.tokenizer import Tokenizer

Watch = Callable[[str], AbstractContextManager[Progress]]
"""Opens something that draws the progress of the stage of that name."""
Say = Callable[[str], None]


SWEEP = "sweep.json"
"""In a directory whose runs are the points of a sweep."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class ShardSettings(Settings):
    """Nothing to choose yet: order and width of the ids follow from corpus and tokenizer."""


class Recipe(Settings):
    """A whole model, one table a stage."""

    name: str = Field(json_schema_extra={"pattern": NAME})
    """The run is written to `runs/NAME`."""
    corpus: CorpusSettings
    tokenizer: TokenizerSettings
    shards: ShardSettings = ShardSettings()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainSettings = PretrainSettings()
    evals: EvalSettings = EvalSettings()

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(NAME, name):
            shown = repr(name) if len(name) < 100 else f"a name of {len(name)} characters"
            raise ValueError(
                f"{shown} cannot be the name of a folder in runs/: it should be letters, digits, dots, dashes and "
                "underscores, a letter or digit first, at most 100 characters"
            )
        return name

    @model_validator(mode="after")
    def _batch_is_whole_rows(self) -> Self:
        context, ramp = self.model.context_length, self.pretrain.batch_ramp
        batches = {"batch_tokens": self.pretrain.batch_tokens}
        if ramp is not None:
            batches["batch_ramp.start_tokens"] = ramp.start_tokens
        for name, batch in batches.items():
            if batch % context:
                below = batch // context * context
                nearest = sorted({max(context, below), below + context})
                raise ValueError(
                    f"pretrain.{name} = {batch:,} is not a multiple of model.context_length = {context:,}; "
                    f"nearest: {', '.join(f'{n:,}' for n in nearest)}"
                )
        return self

    @model_validator(mode="after")
    def _width_can_be_transferred(self) -> Self:
        if self.pretrain.base_width is not None and self.model.block.ends_normed:
            raise ValueError(
                f"pretrain.base_width = {self.pretrain.base_width}, but with model.block.norm = after no norm stands "
                "before the head, whose gain would hold the factor on the scores: leave base_width out, or put the "
                "norms elsewhere"
            )
        return self

    @model_validator(mode="after")
    def _predicts_tokens(self) -> Self:
        loss, context = self.pretrain.loss, self.model.context_length
        if isinstance(loss, MultiToken) and loss.extra_tokens >= context:
            raise ValueError(
                f"pretrain.loss.extra_tokens = {loss.extra_tokens}, but rows have {context} tokens "
                "(model.context_length): it should be fewer"
            )
        if not isinstance(self.model.head, LanguageModel):
            raise ValueError(
                f"model.head.kind = {self.model.head.kind!r}, but pretraining predicts tokens: set it to language_model"
            )
        return self

    @classmethod
    def from_table(cls, table: Table, origin: str | Origin = "settings") -> Self:
        """As `Settings.from_table`, from the `table` of a recipe and an `origin`; the model's `vocab_size` is refused.

        >>> recipe = Recipe.from_table({"name": "a", "corpus": {"sources": ["b"]}, "tokenizer": {"vocab_size": 4096}})
        >>> recipe.override(["pretrain.steps=500"]).pretrain.steps
        500
        """
        origin = Origin(origin) if isinstance(origin, str) else origin
        if isinstance(table.get("model"), dict) and "vocab_size" in table["model"]:
            raise SettingsError(
                f"{origin}: {origin.place(('model', 'vocab_size'))}model.vocab_size follows from the tokenizer; "
                "set tokenizer.vocab_size instead"
            )
        return super().from_table(table, origin)


@dataclass(frozen=True)
class Job:
    """One stage of one run, with everything its function needs."""

    recipe: Recipe
    run: Path
    beside: Path
    """The recipe's folder, where relative paths are looked for first."""
    settings: Table
    inputs: Mapping[str, str]
    progress: Progress
    say: Say
    until: int | None = None
    """The step of training to pause after."""


@dataclass(frozen=True)
class Stage:
    """A step from directories to a directory."""

    name: str
    """The command that runs it alone."""
    directory: str
    kind: str
    settings: Callable[[Recipe], Table]
    """What decides, besides the inputs, whether it is up to date."""
    inputs: tuple[str, ...]
    """Directories of earlier stages that it reads."""
    sources: Callable[[Recipe, Path, Mapping[str, str], Say], dict[str, str]]
    """Name of each input from outside the run → its digest; of what is gone, as the third argument has it."""
    make: Callable[[Job], None]
    work: str | None = None
    """Where it keeps unfinished work that it can go on from."""
    shared: bool = True
    """Whether another run's result may be taken over. A training run is never: two runs of a recipe are two runs."""
    may_change: Callable[[str], bool] = lambda name: False
    """Of a dotted setting, whether unfinished work goes on with another value."""


@dataclass(frozen=True)
class Row:
    """What `build` tells of a stage."""

    stage: str
    seconds: float
    what: str
    """`made`, `up to date`, or where it was taken from."""
    digest: str


@dataclass(frozen=True)
class Built:
    """What `build` made."""

    run: Path
    rows: list[Row]


def load(recipe: str | Path | Recipe, overrides: Iterable[str] = ()) -> tuple[Recipe, Path]:
    """The recipe, and the folder beside which its relative paths are looked for."""
    if isinstance(recipe, Recipe):
        return recipe.override(overrides), Path()
    return Recipe.load(Path(recipe), overrides), Path(recipe).parent


def build(
    recipe: str | Path | Recipe,
    overrides: Iterable[str] = (),
    *,
    run: str | Path | None = None,
    replace: bool = False,
    only: str | None = None,
    last: str | None = None,
    until: int | None = None,
    watch: Watch = lambda stage: nullcontext(no_progress),
    say: Say = print,
) -> Built:
    """Make everything that a recipe describes and that is not there yet.

    Args:
        recipe: a TOML file, or a loaded Recipe.
        overrides: such as `["pretrain.steps=500"]`.
        run: the run directory; `runs/NAME` if not given.
        replace: throw away stages that the settings or inputs no longer fit, instead of stopping.
        only: run this one stage; those before it must be up to date.
        last: run no stage after this one.
        until: the step of training to pause after; a build without it goes on.
        watch: opens something that draws the progress of the stage of that name.
        say: is told what a person should know.

    Raises:
        Paused: at that step.
        SettingsError: when finished stages no longer fit the recipe, listing what changed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in range(40):
    ...         _ = Path(folder, f"{number}.txt").write_text(f"Once upon a time there were {number} foxes. " * 4)
    ...     recipe = {"name": "foxes", "corpus": {"sources": [folder]}, "tokenizer": {"vocab_size": 320}}
    ...     made = build(Recipe.from_table(recipe), run=Path(folder, "foxes"), last="pack", say=lambda told: None)
    >>> [(row.stage, row.what) for row in made.rows]
    [('corpus', 'made'), ('tokenizer', 'made'), ('pack', 'made')]
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    loaded, beside = load(recipe, overrides)
    refuse_missing(loaded.pretrain.loggers, loaded.pretrain.TABLE)
    directory = Path(run) if run is not None else Path("runs") / loaded.name
    if not directory.name:
        directory = directory.resolve()
    with naming_the_place(directory):
        _refuse_foreign(directory)
    with lock(directory):
        for stage in STAGES:
            refuse_in_the_way(directory / stage.directory)
        recorded = _recorded(directory, say)
        loaded = _with_recorded_choices(loaded, recorded or _made_with(directory))
        wanted = only or last
        stages = STAGES if wanted is None else _up_to(wanted)
        stale = _stale(STAGES, loaded, beside, directory, replace, say)
        if stale and not replace:
            raise SettingsError(_conflict(stale, recorded, loaded, directory))
        if "pretrain" in stale:
            loaded, _ = load(recipe, overrides)  # what was chosen for another model is open again
            if not {"tokenizer", "pack"} & stale.keys():
                _check_fits(loaded, beside, directory, say)  # before anything is thrown away
        _refuse_to_lose(stages, stale, loaded, beside, directory, only, say)
        for stage in reversed(stages):  # a kill in between leaves no stage whose input is gone
            if stage.name in stale:
                for place in (directory / stage.directory, directory / (stage.work or stage.directory)):
                    with naming_the_place(place):
                        if place.exists():
                            shutil.rmtree(place)
        write_text(directory / "recipe.toml", loaded.to_toml())
        rows = []
        for stage in stages:
            with _explaining_memory(loaded, directory) if stage.name in ("pretrain", "eval") else nullcontext():
                if stage.name == "pretrain" and only in (None, "pretrain"):
                    loaded = _ready_to_train(loaded, beside, directory, say, examined=last is None)
                rows.append(_run_stage(stage, loaded, beside, directory, only, until, watch, say))
        if wanted in (None, "report"):
            rows.append(_run_report(directory))
    return Built(directory, rows)


def examine(
    recipe: str | Path | Recipe,
    overrides: Iterable[str] = (),
    *,
    run: str | Path | None = None,
    only_quick: bool = False,
    watts: float | None = None,
    price_per_hour: float | None = None,
    watch: Watch = lambda stage: nullcontext(no_progress),
    say: Say = print,
) -> "Iterator[Line]":
    """The doctor's lines for a recipe, one by one as they are found (docs/doctor.md).

    Corpus, tokenizer and shards are made in the run directory if they are not there yet; `build` takes them over. What
    is trained already is neither read nor touched.

    Args:
        only_quick: the lines that also come before every training.
        watts: what the machine takes, for the energy; looked up or assumed if not given.
        price_per_hour: of the machine; without it no price is told.

    Raises:
        SettingsError: when corpus, tokenizer or shards in the run are those of another recipe.
    """
    loaded, beside = load(recipe, overrides)
    directory = Path(run) if run is not None else Path("runs") / loaded.name
    with naming_the_place(directory):
        _refuse_foreign(directory)
    before = _up_to("pack")
    with lock(directory):
        stale = _stale(before, loaded, beside, directory, False, say)
        if stale:
            raise SettingsError(_conflict(stale, _recorded(directory, say), loaded, directory))
        for stage in before:
            if not is_made(directory / stage.directory):
                say(f"making {directory / stage.directory}, which a build will take over")
            _run_stage(stage, loaded, beside, directory, None, None, watch, say)
    from groundup.pretrain.doctor import run as doctor
    from groundup.train.assemble import prepare_process

    prepare_process()
    _check_fits(loaded, beside, directory, say)
    with _explaining_memory(loaded, directory):
        patient = doctor.admit(loaded.model, loaded.pretrain, _places(loaded, beside, directory))
        yield from doctor.quick(patient) if only_quick else doctor.whole(patient, watts, price_per_hour)


def _recorded(run: Path, say: Say) -> Table:
    """The recipe that the run was last built from, if there is one that can be read."""
    path = run / "recipe.toml"
    try:
        return read_toml(path) if path.is_file() else {}
    except SettingsError as error:
        say(f"the recipe recorded in the run cannot be read and is written anew: {error}")
        return {}


def _up_to(name: str) -> tuple["Stage", ...]:
    """The stages that the command of this name needs, itself included; the report needs all."""
    names = [stage.name for stage in STAGES]
    return STAGES[: names.index(name) + 1] if name in names else STAGES


def _refuse_foreign(directory: Path) -> None:
    begun = (directory / "lock").exists() or (directory / "corpus" / "manifest.json").exists()
    if directory.is_dir() and any(directory.iterdir()) and not begun:
        raise SettingsError(f"{directory} holds other files and is not a run of groundup; choose another with --run")


def _refuse_to_lose(
    stages: Iterable[Stage],
    stale: Mapping[str, str],
    recipe: Recipe,
    beside: Path,
    run: Path,
    only: str | None,
    say: Say,
) -> None:
    """Before anything is thrown away: what is to be made again, and what is gone, can be made.

    Raises:
        MissingError: sources, a tokenizer or a start that are not there.
        SettingsError: a stage before the only one that will run has to be made first.
    """
    for stage in stages if stale else ():
        if stage.name in stale or not is_made(run / stage.directory):
            if only not in (None, stage.name):
                raise SettingsError(_not_made(stage, run, only))
            stage.sources(recipe, beside, {}, say)


def _not_made(stage: Stage, run: Path, wanted: str | None) -> str:
    return (
        f"{run} does not have the result of {stage.name} yet, which {wanted} needs: run "
        f"`groundup {stage.name} RECIPE --run {run}` first, or `groundup build RECIPE --run {run}` for all"
    )


def _run_stage(
    stage: Stage,
    recipe: Recipe,
    beside: Path,
    run: Path,
    only: str | None,
    until: int | None,
    watch: Watch,
    say: Say,
) -> Row:
    started = time.monotonic()
    target = run / stage.directory
    if is_made(target):
        return Row(stage.name, 0.0, "up to date", read_manifest(target).digest)
    if only not in (None, stage.name):
        raise SettingsError(_not_made(stage, run, only))
    settings = stage.settings(recipe)
    other: Path | None = None
    inputs: dict[str, str] = {}
    try:
        inputs = _inputs(stage, recipe, beside, run, {}, say)
    except MissingError:
        other = _made_elsewhere(stage, settings, None, run) if stage.shared else None
        if other is None:
            raise
        say(f"what {other} was made from is not here: it is taken as it was made")
    shutil.rmtree(_left_behind(target), ignore_errors=True)
    if stage.shared and other is None:
        other = _made_elsewhere(stage, settings, inputs, run)
    if other is not None:
        share(other, target)
        return Row(stage.name, time.monotonic() - started, f"from {other.parent}", verify(target, stage.kind).digest)
    with watch(stage.name) as progress:
        stage.make(Job(recipe, run, beside, settings, inputs, progress, say, until))
    return Row(stage.name, time.monotonic() - started, "made", read_manifest(target).digest)


def _inputs(
    stage: Stage, recipe: Recipe, beside: Path, run: Path, recorded: Mapping[str, str], say: Say
) -> dict[str, str]:
    """
    Args:
        recorded: what the stage was made from, if it is finished with these settings: stands for sources that are gone.
    """
    before = {name: read_manifest(run / name).digest for name in stage.inputs}
    return {**before, **stage.sources(recipe, beside, recorded, say)}


def _made_elsewhere(stage: Stage, settings: Table, inputs: Mapping[str, str] | None, run: Path) -> Path | None:
    """A finished and whole directory of another run that was made from the same settings and inputs; from whatever
    inputs, if None."""
    found = sorted(run.parent.glob(f"*/{stage.directory}"))
    if (run.parent / SWEEP).is_file():  # its points take what the runs beside the sweep have
        found += sorted(run.parent.parent.glob(f"*/{stage.directory}"))
    for other in found:
        if other.parent != run and is_made(other):
            try:
                manifest = read_manifest(other, stage.kind)
                if manifest.settings == settings and inputs in (None, manifest.inputs):
                    verify(other)
                    return other
            except DataError:
                continue  # that run's damage is that run's to report
    return None


def _stale(stages: Iterable[Stage], recipe: Recipe, beside: Path, run: Path, replace: bool, say: Say) -> dict[str, str]:
    """Finished or begun stages that no longer fit settings or inputs: name → why.

    Raises:
        DamagedError: when a stage is damaged and is not to be replaced.
    """
    stale: dict[str, str] = {}
    stale_directories: set[str] = set()
    for stage in stages:
        try:
            made = _made_from(stage, run)
            if made is None:
                continue
            missing = [name for name in stage.inputs if not is_made(run / name)]
            upstream = [name for name in stage.inputs if name in stale_directories]
            if missing or upstream:
                why = f"{', '.join(missing or upstream)} {'is gone' if missing else 'will be another'}"
            else:
                settings = stage.settings(recipe)
                changed = differences(made["settings"], settings)
                if not is_made(run / stage.directory) and all(map(stage.may_change, changed)):
                    settings = made["settings"]
                recorded = {} if changed else made["inputs"]
                why = _why_stale(made, settings, _inputs(stage, recipe, beside, run, recorded, say))
            if not why and is_made(run / stage.directory):
                verify(run / stage.directory, stage.kind)
        except DamagedError:
            if not replace:
                raise
            why = "damaged"
        if why:
            stale[stage.name] = why
            stale_directories.add(stage.directory)
    return stale


def _made_from(stage: Stage, run: Path) -> dict[str, Any] | None:
    """Settings and inputs of a finished or begun stage; None if it was not begun."""
    if is_made(run / stage.directory):
        manifest = read_manifest(run / stage.directory, stage.kind)
        return {"settings": manifest.settings, "inputs": manifest.inputs}
    origin = run / stage.work / "origin.json" if stage.work else None
    if origin is None or not origin.is_file():
        return None
    try:
        begun = json.loads(origin.read_bytes())
        return {"settings": dict(begun["settings"]), "inputs": dict(begun["inputs"])}
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{origin} is damaged. Make it again with --replace") from None


def _why_stale(made: Mapping[str, Any], settings: Table, inputs: Mapping[str, str]) -> str:
    if made["settings"] != settings:
        return "its settings changed"
    before = made["inputs"]
    changed = [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)]
    if not changed:
        return ""
    told = [f"{name} was {_short(before.get(name))}, is {_short(inputs.get(name))}" for name in changed[:3]]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"made from other inputs: {'; '.join(told)}{more}"


def _short(digest: str | None) -> str:
    return f"{digest[:8]}…" if digest else "not there"


def _conflict(stale: Mapping[str, str], recorded: Table, recipe: Recipe, run: Path) -> str:
    changed = differences(recorded, recipe.table())
    lines = [f"{run} was built from another recipe or other inputs."]
    lines += [f"  {name}: {_shown(old)} → {_shown(new)}" for name, (old, new) in changed.items()]
    lines += [f"  stale: {stage} ({why})" for stage, why in stale.items()]
    lines += [
        f"Build beside it with --run {next_to(run)} (stages that fit are shared), or make the stale stages again "
        "with --replace"
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def next_to(run: Path) -> Path:
    """The first of its name with a number behind it that is not there."""
    number = 2
    while run.with_name(f"{run.name}-{number}").exists():
        number += 1
    return run.with_name(f"{run.name}-{number}")


def _made_with(run: Path) -> Table:
    """What a begun or finished training says of its settings, where the recorded recipe is lost."""
    with contextlib.suppress(DataError):
        for stage in STAGES:
            if stage.name == "pretrain" and (made := _made_from(stage, run)):
                return dict(made["settings"])
    return {}


def _with_recorded_choices(recipe: Recipe, recorded: Table) -> Recipe:
    """What the recipe leaves open and this run has already chosen stays chosen."""
    before = recorded.get("pretrain", {})
    chosen = {
        name: before[name]
        for name in ("device", "precision", "compile")
        if getattr(recipe.pretrain, name) is None and before.get(name) is not None
    }
    table = recipe.table()
    return Recipe.from_table({**table, "pretrain": {**table["pretrain"], **chosen}}) if chosen else recipe


def _ready_to_train(recipe: Recipe, beside: Path, run: Path, say: Say, examined: bool) -> Recipe:
    """Check that the settings fit the data; choose device and precision if the recipe leaves them open, and write
    them down before the first step."""
    settings = recipe.pretrain
    if is_made(run / "model") or not is_made(run / "shards"):
        return recipe
    from groundup.pretrain.speed import settle, told_machine
    from groundup.train.assemble import prepare_process
    from groundup.weights.load import find_device

    prepare_process()
    begun = any((run / "pretrain" / "checkpoints").glob("step-*"))
    _check_fits(recipe, beside, run, say, begun)
    device = find_device(settings.device)
    model = recipe.model.with_vocabulary(read_manifest(run / "shards").statistics["vocab_size"])
    settled, told = settle(model, settings, run / "shards", device)
    for line in [*told, told_machine(settled, device)]:
        say(line)
    chosen = recipe.model_copy(update={"pretrain": settled})
    if examined and not begun:  # a sweep tries on purpose what the doctor would stop
        _let_the_doctor_look(chosen, beside, run, say)
    write_text(run / "recipe.toml", chosen.to_toml())
    return chosen


def _let_the_doctor_look(recipe: Recipe, beside: Path, run: Path, say: Say) -> None:
    """The quick lines before the first step: one line if all is well, else those that are not.

    Raises:
        GroundupError: when a line says stop; nothing has been written yet.
    """
    from groundup.pretrain.doctor import run as doctor
    from groundup.train.log import RunLog

    began = time.monotonic()
    patient = doctor.admit(recipe.model, recipe.pretrain, _places(recipe, beside, run))
    lines = list(doctor.quick(patient))
    doctor.refuse(lines)
    cares = [line for line in lines if line.verdict != "ok"]
    for line in cares:
        say(f"doctor: take care, {line.checked}: {line.seen}" + (f" → {line.advice}" if line.advice else ""))
    seconds = time.monotonic() - began
    if not cares:
        say(f"doctor: {len(lines)} checks in {seconds:.1f} s, all well")
    told = {"take_care": "; ".join(f"{line.checked}: {line.seen}" for line in cares)} if cares else {}
    RunLog(run / "pretrain").event("doctor", checks=len(lines), seconds=round(seconds, 3), **told)


@contextmanager
def _explaining_memory(recipe: Recipe, run: Path) -> Iterator[None]:
    """Where memory runs out: what this model's training needs, part by part, and the smallest change that fits."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from groundup.pretrain.doctor.run import out_of_memory

        vocab_size = read_manifest(run / "shards").statistics["vocab_size"]
        explained = out_of_memory(recipe.model.with_vocabulary(vocab_size), recipe.pretrain, error)
        if explained is None:
            raise
        raise explained from None


def _check_fits(recipe: Recipe, beside: Path, run: Path, say: Say, begun: bool = False) -> None:
    """A training that was `begun` has no more use for the model that it started with."""
    from groundup.pretrain.paths import check_fits
    from groundup.pretrain.start import check_start
    from groundup.tokenizer.tokenizer import Tokenizer

    places = _places(recipe, beside, run)
    prompts = [recipe.pretrain.sample_prompt, *recipe.evals.prompts]
    check_fits(recipe.model, places, prompts)
    if places.start is not None and not begun:
        check_start(places.start, recipe.model, Tokenizer.load(places.tokenizer), places.shards, prompts, say)


# The stages


def _no_sources(recipe: Recipe, beside: Path, recorded: Mapping[str, str], say: Say) -> dict[str, str]:
    return {}


def _corpus_sources(recipe: Recipe, beside: Path, recorded: Mapping[str, str], say: Say) -> dict[str, str]:
    """Of a finished corpus, sources that are gone altogether are taken as they were; what is there is compared."""
    from groundup.corpus.refine import source_digests
    from groundup.corpus.sources import find

    if not recorded:
        return source_digests(find(recipe.corpus, beside))
    digests: dict[str, str] = {}
    gone = []
    for source in recipe.corpus.sources:
        try:
            digests |= source_digests(find(recipe.corpus.model_copy(update={"sources": (source,)}), beside))
        except MissingError:
            gone.append(source)
            within = source.rstrip("/") + "/"
            digests |= {name: old for name, old in recorded.items() if name == source or name.startswith(within)}
    if gone:
        say(f"the sources {', '.join(gone)} are not here: the corpus is taken as it was made")
    return digests


def _tokenizer_sources(recipe: Recipe, beside: Path, recorded: Mapping[str, str], say: Say) -> dict[str, str]:
    name = "existing tokenizer"
    if not isinstance(recipe.tokenizer, Existing):
        return {}
    try:
        return {name: _existing_tokenizer(recipe.tokenizer, beside).digest}
    except MissingError:
        if name not in recorded:
            raise
        say(f"the tokenizer {recipe.tokenizer.path} is not here: it is taken as it was made")
        return {name: recorded[name]}


def _start_sources(recipe: Recipe, beside: Path, recorded: Mapping[str, str], say: Say) -> dict[str, str]:
    if recipe.pretrain.start is None:
        return {}
    from groundup.weights.files import digest_of

    return {"start": digest_of(locate(recipe.pretrain.start, beside, "model"))}


def _existing_tokenizer(settings: Existing, beside: Path) -> "Tokenizer":
    from groundup.tokenizer.tokenizer import Tokenizer

    path = locate(settings.path, beside, "tokenizer")
    return Tokenizer.load(path, pattern=settings.split, special=settings.special)


def _left_behind(directory: Path) -> Path:
    """Where a stage that ends in an error leaves what tells why, until it runs again."""
    return directory.with_name(f"{directory.name}.dropped")


def _make_corpus(job: Job) -> None:
    from groundup.corpus.refine import refine, told_marks
    from groundup.corpus.sources import find, told_left_out

    found = find(job.recipe.corpus, job.beside)
    if found.left_out:
        job.say(f"left out: {told_left_out(found.left_out, found.left_out_names)}")
    with making(job.run / "corpus", "corpus", job.settings, job.inputs) as draft:
        try:
            refine(found, job.recipe.corpus, draft, job.progress, job.inputs)
        except DataError as error:
            if not draft.statistics.get("dropped"):
                raise
            kept = (draft.path / "dropped").rename(_left_behind(job.run / "corpus"))
            raise DataError(f"{error}. What was dropped until then, each with its reason, is in {kept}") from None
    told = draft.statistics
    if told["dropped"]:
        counts = ", ".join(f"{count:,} × {reason}" for reason, count in told["dropped"].items())
        job.say(f"dropped: {counts}; each with its reason in {job.run / 'corpus' / 'dropped'}")
    if told["metadata_left_out"]:
        counts = ", ".join(f"{count:,} × {name}" for name, count in told["metadata_left_out"].items())
        job.say(f"fields left out of the metadata, as they are no JSON that can be written: {counts}")
    for line in told_marks(told["marks"]):
        job.say(": ".join(line))


def _make_tokenizer(job: Job) -> None:
    from groundup.corpus.document import read_texts
    from groundup.tokenizer.tokenizer import Tokenizer

    settings = job.recipe.tokenizer
    with making(job.run / "tokenizer", "tokenizer", job.settings, job.inputs) as draft:
        if isinstance(settings, Existing):
            tokenizer = _existing_tokenizer(settings, job.beside)
        else:
            wanted = settings.vocab_size
            if isinstance(settings, Learned):
                tokenizer = _learn(settings, job)
            else:
                pattern = settings.split if isinstance(settings, WholeWords) else "characters"
                texts = read_texts(job.run / "corpus" / "train.parquet")
                tokenizer = Tokenizer.of_pieces(texts, vocab_size=wanted, pattern=pattern)
            reached = tokenizer.vocab_size - len(tokenizer.special) - N_BYTES
            if reached < wanted - N_BYTES - N_SPECIAL:
                of = {"learned": "pairs", "characters": "characters", "words": "words"}[settings.kind]
                what = "merges" if settings.kind == "learned" else of
                job.say(
                    f"the corpus ran out of {of} after {reached:,} {what} of {wanted - N_BYTES - N_SPECIAL:,}: the "
                    f"vocabulary has {tokenizer.vocab_size:,} ids"
                )
        tokenizer.save(draft.path)
        draft.statistics |= {
            "vocab_size": tokenizer.vocab_size,
            "merges": len(tokenizer.merges),
            "special": len(tokenizer.special),
            "split": tokenizer.pattern,
        }


def _learn(settings: Learned, job: Job) -> "Tokenizer":
    from groundup.corpus.document import read_batches
    from groundup.tokenizer.tokenizer import Tokenizer

    tokenizer, least = Tokenizer.learn_columns(
        (batch.column("text") for batch in read_batches(job.run / "corpus" / "train.parquet", ["text"])),
        vocab_size=settings.vocab_size,
        pattern=settings.split,
        memory_bytes=settings.memory_bytes,
        progress=job.progress,
        n_documents=read_manifest(job.run / "corpus").statistics["train"]["documents"],
        directory=job.run / ".tokenizer.counts",
        of=job.inputs["corpus"],
    )
    if least > 1:
        job.say(
            f"pieces of text that occur fewer than {least} times were left out of learning, as "
            f"tokenizer.memory_bytes = {settings.memory_bytes} does not suffice for all of them"
        )
    return tokenizer


def _make_shards(job: Job) -> None:
    from groundup.shards import pack
    from groundup.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(job.run / "tokenizer")
    with making(job.run / "shards", "shards", job.settings, job.inputs) as draft:
        pack(job.run / "corpus", tokenizer, draft, job.progress)


def _make_model(job: Job) -> None:
    from groundup.pretrain.run import pretrain

    run = job.run
    with naming_the_place(run / "pretrain"):
        (run / "pretrain").mkdir(exist_ok=True)
    write_json(run / "pretrain" / "origin.json", {"settings": job.settings, "inputs": job.inputs})
    places = _places(job.recipe, job.beside, run)
    pretrain(job.recipe.model, job.recipe.pretrain, places, dict(job.inputs), job.progress, job.say, job.until)


def _places(recipe: Recipe, beside: Path, run: Path) -> "RunPaths":
    from groundup.pretrain.paths import RunPaths

    start = recipe.pretrain.start
    found = None if start is None else locate(start, beside, "model")
    return RunPaths(run / "shards", run / "tokenizer", run / "pretrain", run / "model", run / "corpus", found)


def _make_evals(job: Job) -> None:
    from groundup.evals.run import evaluate

    with making(job.run / "evals", "evals", job.settings, job.inputs) as draft:
        device = job.recipe.pretrain.device
        evaluate(job.run / "model", job.run / "shards", job.recipe.evals, device, draft, job.progress)


def _run_report(run: Path) -> Row:
    from groundup.report.run import is_up_to_date, shown, write_report

    started = time.monotonic()
    fresh = is_up_to_date(run)
    if not fresh:
        write_report(run)
    return Row("report", time.monotonic() - started, "up to date" if fresh else "made", shown(run))


STAGES = (
    Stage("corpus", "corpus", "corpus", lambda r: r.corpus.table(), (), _corpus_sources, _make_corpus),
    Stage(
        "tokenizer",
        "tokenizer",
        "tokenizer",
        lambda r: r.tokenizer.table(),
        ("corpus",),
        _tokenizer_sources,
        _make_tokenizer,
    ),
    Stage("pack", "shards", "shards", lambda r: r.shards.table(), ("corpus", "tokenizer"), _no_sources, _make_shards),
    Stage(
        "pretrain",
        "model",
        "model",
        lambda r: {"model": r.model.table(), "pretrain": r.pretrain.table()},
        ("shards", "tokenizer"),
        _start_sources,
        _make_model,
        work="pretrain",
        shared=False,
        may_change=PretrainSettings.may_change,
    ),
    Stage(
        "eval",
        "evals",
        "evals",
        lambda r: r.evals.table(),
        ("model", "shards"),
        _no_sources,
        _make_evals,
        shared=False,
    ),
)
"""The report comes after these: a file, not a directory."""
