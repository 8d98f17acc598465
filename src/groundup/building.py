"""`build`: the stages of a recipe in order, skipping what is up to date.

A room, and torch with it, is imported when its stage runs.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.artifacts import COMMANDS, is_made, lock, making, read_manifest, refuse_in_the_way, share, verify
from groundup.errors import DamagedError, DataError, MissingError, SettingsError
from groundup.files import (
    Progress,
    canonical_json,
    explaining_write_errors,
    locate,
    no_progress,
    write_json,
    write_text,
)
from groundup.machine import rank_and_world_size
from groundup.pretrain.settings import PretrainSettings
from groundup.recipe import Recipe, load_recipe
from groundup.settings import Table, differences, read_toml, toml_value
from groundup.tokenizer.settings import Existing
from groundup.train.loggers import refuse_missing
from groundup.words import nearest

if TYPE_CHECKING:
    from groundup.pretrain.doctor.verdict import Verdict

Watch = Callable[[str], AbstractContextManager[Progress]]
"""Opens something that draws the progress of the stage of that name."""
Say = Callable[[str], None]
SWEEP = "sweep.json"
"""In a directory whose runs are the points of a sweep."""
MACHINE_CHOICES = ("device", "precision", "compile")
"""Settings of `[pretrain]` that are chosen by measuring where the recipe leaves them open, and kept for the run."""


@dataclass(frozen=True)
class Job:
    """A recipe, the run directory it is built in, and how far."""

    recipe: Recipe
    beside: Path
    """The recipe's folder, where relative paths are looked for first."""
    run: Path
    say: Say
    watch: Watch
    only: str | None = None
    """The command of the one stage that may run."""
    until: int | None = None
    """The step of training to pause after."""
    examined: bool = True
    """Whether the doctor looks at a training before its first step."""
    ranks: int = 1
    """Processes that train together."""
    executor: str = "processes"
    """What makes the parts of the corpus, by its name in `corpus.executors.EXECUTORS`."""

    @property
    def start(self) -> Path | None:
        """The model whose weights the training begins with, if it is not to draw them."""
        start = self.recipe.pretrain.start
        return None if start is None else locate(start, self.beside, "model")


@dataclass(frozen=True)
class Stage:
    """A step from directories to a directory."""

    name: str
    """Its directory in the run, and the kind of artifact that it makes."""
    settings: Callable[[Recipe], Table]
    """What decides, besides the inputs, whether it is up to date."""
    inputs: tuple[str, ...]
    """The stages that it reads."""
    make: Callable[[Job, Table, Mapping[str, str], Progress], None]
    """Make the directory from settings and inputs."""
    sources: Callable[[Job, Mapping[str, str]], dict[str, str]] = lambda job, recorded: {}
    """Name of each input from outside the run → its digest; of what is gone, the recorded one."""
    work: str | None = None
    """Where it keeps unfinished work that it can go on from."""
    shared: bool = True
    """Whether another run's result may be taken over. A training run is never: two runs of a recipe are two runs."""
    may_change: Callable[[str], bool] = lambda name: False
    """Whether unfinished work goes on with another value of this dotted setting."""

    @property
    def command(self) -> str:
        return COMMANDS.get(self.name, self.name)


@dataclass(frozen=True)
class Row:
    """One stage of what `build` made."""

    stage: str
    """Its command."""
    seconds: float
    what: str
    """`made`, `up to date`, or where it was taken from."""
    digest: str


@dataclass(frozen=True)
class Built:
    """What `build` made."""

    run: Path
    rows: list[Row]


def build(
    recipe: str | Path | Recipe,
    overrides: Iterable[str] = (),
    *,
    run: str | Path | None = None,
    replace: bool = False,
    only: str | None = None,
    last: str | None = None,
    until: int | None = None,
    ranks: int = 1,
    executor: str = "processes",
    watch: Watch = lambda stage: nullcontext(no_progress),
    say: Say = print,
) -> Built:
    """Make everything that a recipe describes and that is not there yet.

    Args:
        recipe: a TOML file, or a loaded Recipe.
        overrides: such as `["pretrain.steps=500"]`.
        run: the run directory; `runs/NAME` if not given.
        replace: make stages again whose settings or inputs have changed, instead of stopping.
        only: run this one stage; those before it must be up to date.
        last: run no stage after this one.
        until: the step of training to pause after; a build without it goes on.
        ranks: processes that train together, as `[parallel]` says; they are started here. Where torchrun has started
            this process as one of many, the first makes everything, and the others train with it and return no rows.
        executor: what makes the parts of the corpus: processes of this machine, or "ray" (docs/corpus.md).
        watch: opens something that draws the progress of the stage of that name.
        say: called with each message.

    Raises:
        Paused: at that step.
        SettingsError: when finished stages no longer fit the recipe, listing what changed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in range(40):
    ...         _ = Path(folder, f"{number}.txt").write_text(f"Once upon a time there were {number} foxes. " * 4)
    ...     recipe = {"name": "foxes", "corpus": {"sources": [folder]}, "tokenizer": {"vocab_size": 320}}
    ...     made = build(Recipe.from_table(recipe), run=Path(folder, "foxes"), last="pack", say=lambda text: None)
    >>> [(row.stage, row.what) for row in made.rows]
    [('corpus', 'made'), ('tokenizer', 'made'), ('pack', 'made')]
    """
    examined = last is None  # a sweep tries on purpose what the doctor would refuse
    job = _open_job(
        recipe, overrides, run, say=say, watch=watch, only=only, until=until, examined=examined, ranks=ranks,
        executor=executor,
    )  # fmt: skip
    among = rank_and_world_size() if (only or last) in (None, "pretrain") else None
    if among is None:
        job.recipe.parallel.sizes(ranks)
    elif among[0] > 0:
        return _follow(job)
    stages = _stages_up_to(only or last or "report", job.recipe)
    _check_export(job)
    refuse_missing(job.recipe.pretrain.loggers, job.recipe.pretrain.TABLE)
    with lock(job.run):
        for stage in _chain(job.recipe):
            refuse_in_the_way(job.run / stage.name)
        job = _without_stale_stages(job, stages, replace)
        write_text(job.run / "recipe.toml", job.recipe.to_toml())
        rows = [_run_stage(stage, job) for stage in stages]
        if (only or last) in (None, "report"):
            rows.append(_run_report(job.run))
    return Built(job.run, rows)


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
) -> "Iterator[Verdict]":
    """Run the doctor on a recipe, and yield its verdicts one by one (docs/doctor.md).

    Corpus, tokenizer and shards are made in the run directory if they are not there yet; `build` takes them over. What
    is trained already is neither read nor touched.

    Args:
        only_quick: the lines that also come before every training.
        watts: what the machine draws, for the energy; looked up or assumed if not given.
        price_per_hour: of the machine; without it there is no price.

    Raises:
        SettingsError: when corpus, tokenizer or shards in the run are those of another recipe.
    """
    job = _open_job(recipe, overrides, run, say=say, watch=watch)
    before = _stages_up_to("pack", job.recipe)
    with lock(job.run):
        if stale := _find_stale(before, job):
            raise SettingsError(_conflict(stale, job))
        for stage in before:
            if not is_made(job.run / stage.name):
                say(f"making {job.run / stage.name}, which a build will take over")
            _run_stage(stage, job)
    from groundup.pretrain.doctor import run as doctor
    from groundup.train.assemble import prepare_process

    prepare_process()
    _check_fits(job, job.start)
    with _explaining_memory(job):
        subject = doctor.prepare(job.recipe.model, job.recipe.pretrain, job.run, job.start)
        yield from (doctor.quick_checks(subject) if only_quick else doctor.all_checks(subject, watts, price_per_hour))


def _open_job(recipe: str | Path | Recipe, overrides: Iterable[str], run: str | Path | None, **options: Any) -> Job:
    loaded, beside = load_recipe(recipe, [overrides] if isinstance(overrides, str) else overrides)
    directory = Path(run) if run is not None else Path("runs") / loaded.name
    if not directory.name:
        directory = directory.resolve()
    with explaining_write_errors(directory):
        begun = any((directory / name).exists() for name in ("lock", PARTS, "corpus/manifest.json"))
        if directory.is_dir() and any(directory.iterdir()) and not begun:
            raise SettingsError(
                f"{directory} holds other files and is not a run of groundup; choose another with --run"
            )
    return Job(loaded, beside, directory, **options)


def _chain(recipe: Recipe) -> tuple[Stage, ...]:
    """All stages of a recipe; it is exported only with a table that says so."""
    return STAGES if recipe.export is None else (*STAGES, EXPORT)


def _stages_up_to(command: str, recipe: Recipe) -> tuple[Stage, ...]:
    """The stages that a command needs, its own included; the report needs all."""
    chain = _chain(recipe)
    commands = [*(stage.command for stage in chain), "report"]
    if command == EXPORT.name and command not in commands:
        raise SettingsError(
            "the recipe has no table [export], which says what to export: add one, or set export.to=huggingface"
        )
    if command not in commands:
        raise SettingsError(f"no stage is called {command}; {nearest(command, commands)}")
    return chain[: commands.index(command) + 1]


# Which stages are stale


def _without_stale_stages(job: Job, stages: Iterable[Stage], replace: bool) -> Job:
    """Remove those of `stages` that no longer fit the recipe. The job comes back with the choices recorded in the run.

    Raises:
        SettingsError: there are some, and they are not to be replaced; or one cannot be made again.
    """
    asked, job = job, _with_recorded_choices(job)
    stale = _find_stale(_chain(job.recipe), job, replace)
    if stale and not replace:
        raise SettingsError(_conflict(stale, job))
    if "model" in stale:
        job = asked  # what was chosen for another model is open again
        if not {"tokenizer", "shards"} & stale.keys():
            _check_fits(job, job.start)  # before anything is thrown away
    for stage in stages if stale else ():
        if stage.name in stale or not is_made(job.run / stage.name):
            _refuse_another_than_asked(stage, job)
            stage.sources(job, {})  # raises if they are gone
    for stage in reversed(tuple(stages)):  # a kill in between leaves no stage whose input is gone
        if stage.name in stale:
            for path in (job.run / stage.name, job.run / (stage.work or stage.name)):
                with explaining_write_errors(path):
                    if path.exists():
                        shutil.rmtree(path)
    return job


def _with_recorded_choices(job: Job) -> Job:
    """What the recipe leaves open and this run's training has already chosen stays chosen."""
    model = next(stage for stage in STAGES if stage.name == "model")
    made = None
    with contextlib.suppress(DataError):
        made = _made_from(model, job.run)
    before = made[0].get("pretrain", {}) if made else {}
    open_choices = [name for name in MACHINE_CHOICES if getattr(job.recipe.pretrain, name) is None]
    chosen = {name: before[name] for name in open_choices if before.get(name) is not None}
    table = job.recipe.table()
    recipe = Recipe.from_table({**table, "pretrain": {**table["pretrain"], **chosen}}) if chosen else job.recipe
    return dataclasses.replace(job, recipe=recipe)


def _find_stale(stages: Iterable[Stage], job: Job, replace: bool = False) -> dict[str, str]:
    """Finished or begun stages that no longer fit settings or inputs: name → why.

    Raises:
        DamagedError: when a stage is damaged and is not to be replaced.
    """
    stale: dict[str, str] = {}
    for stage in stages:
        try:
            why = _why_stale(stage, job, stale)
        except DamagedError:
            if not replace:
                raise
            why = "damaged"
        if why:
            stale[stage.name] = why
    return stale


def _why_stale(stage: Stage, job: Job, stale: Mapping[str, str]) -> str:
    """Why a finished or begun stage no longer fits, where the `stale` ones before it do not; else nothing.

    Raises:
        DamagedError: a stage that is damaged.
    """
    made = _made_from(stage, job.run)
    if made is None:
        return ""
    if missing := [name for name in stage.inputs if not is_made(job.run / name)]:
        return f"{', '.join(missing)} is gone"
    if changing := [name for name in stage.inputs if name in stale]:
        return f"{', '.join(changing)} will be another"
    before, inputs = made
    settings = stage.settings(job.recipe)
    finished = is_made(job.run / stage.name)
    if before != settings and (finished or not all(map(stage.may_change, differences(before, settings)))):
        return "its settings changed"
    now = _inputs(stage, job, inputs)
    changed = [
        f"{name} was {_short(inputs.get(name))}, is {_short(now.get(name))}"
        for name in {**inputs, **now}
        if inputs.get(name) != now.get(name)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"made from other inputs: {'; '.join(changed[:3])}{more}"
    if finished:
        verify(job.run / stage.name, stage.name)
    return ""


def _short(digest: str | None) -> str:
    return f"{digest[:8]}…" if digest else "not there"


def _made_from(stage: Stage, run: Path) -> tuple[Mapping[str, Any], Mapping[str, str]] | None:
    """Settings and inputs of a finished or begun stage; None if it was not begun."""
    if is_made(run / stage.name):
        manifest = read_manifest(run / stage.name, stage.name)
        return manifest.settings, manifest.inputs
    origin = run / (stage.work or stage.name) / "origin.json"
    if not origin.is_file():
        return None
    try:
        begun = json.loads(origin.read_bytes())
        return dict(begun["settings"]), dict(begun["inputs"])
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{origin} is damaged. Make it again with --replace") from None


def _inputs(stage: Stage, job: Job, recorded: Mapping[str, str]) -> dict[str, str]:
    """
    Args:
        recorded: the inputs of the finished stage, if its settings are the same: they stand for sources that are gone.
    """
    before = {name: read_manifest(job.run / name).digest for name in stage.inputs}
    return {**before, **stage.sources(job, recorded)}


def _conflict(stale: Mapping[str, str], job: Job) -> str:
    recorded = job.run / "recipe.toml"
    changed = differences(read_toml(recorded) if recorded.is_file() else {}, job.recipe.table())
    lines = [f"{job.run} was built from another recipe or other inputs."]
    lines += [f"  {name}: {toml_value(old)} → {toml_value(new)}" for name, (old, new) in changed.items()]
    lines += [f"  stale: {COMMANDS.get(name, name)} ({why})" for name, why in stale.items()]
    lines += [
        f"Build beside it with --run {next_to(job.run)} (stages that fit are shared), or make the stale stages again "
        "with --replace"
    ]
    return "\n".join(lines)


def next_to(run: Path) -> Path:
    """The first free name among NAME-2, NAME-3 and so on."""
    number = 2
    while run.with_name(f"{run.name}-{number}").exists():
        number += 1
    return run.with_name(f"{run.name}-{number}")


# Running a stage


def _run_stage(stage: Stage, job: Job) -> Row:
    started = time.monotonic()
    target = job.run / stage.name
    if is_made(target):
        return Row(stage.command, 0.0, "up to date", read_manifest(target).digest)
    _refuse_another_than_asked(stage, job)
    settings = stage.settings(job.recipe)
    try:
        inputs = _inputs(stage, job, {})
        other = _made_elsewhere(stage, settings, inputs, job.run) if stage.shared else None
    except MissingError:
        other = _made_elsewhere(stage, settings, None, job.run) if stage.shared else None
        if other is None:
            raise
        job.say(f"what {other} was made from is not here: it is taken as it was made")
    shutil.rmtree(_left_by_an_error(target), ignore_errors=True)
    if other is not None:
        share(other, target)
        return Row(stage.command, time.monotonic() - started, f"from {other.parent}", verify(target, stage.name).digest)
    with job.watch(stage.command) as progress:
        stage.make(job, settings, inputs, progress)
    return Row(stage.command, time.monotonic() - started, "made", read_manifest(target).digest)


def _refuse_another_than_asked(stage: Stage, job: Job) -> None:
    """
    Raises:
        SettingsError: when one stage was asked for, and this one, which it needs, is not made yet.
    """
    if job.only not in (None, stage.command):
        raise SettingsError(
            f"{job.run} does not have the result of {stage.command} yet, which {job.only} needs: run `groundup "
            f"{stage.command} RECIPE --run {job.run}` first, or `groundup build RECIPE --run {job.run}` for all"
        )


def _made_elsewhere(stage: Stage, settings: Table, inputs: Mapping[str, str] | None, run: Path) -> Path | None:
    """A finished and whole directory of another run that was made from the same settings and inputs; from whatever
    inputs, if None."""
    others = sorted(run.parent.glob(f"*/{stage.name}"))
    if (run.parent / SWEEP).is_file():  # its points take what the runs beside the sweep have
        others += sorted(run.parent.parent.glob(f"*/{stage.name}"))
    for other in others:
        if other.parent != run and is_made(other):
            try:
                manifest = read_manifest(other, stage.name)
                if manifest.settings == settings and inputs in (None, manifest.inputs):
                    verify(other)
                    return other
            except DataError:
                continue  # that run's damage is that run's to report
    return None


# The stages


PARTS = ".corpus.parts"
"""The folder of a run in which the parts of a corpus are, while it is made."""


def _corpus_sources(job: Job, recorded: Mapping[str, str]) -> dict[str, str]:
    from groundup.corpus.refine import digest_sources

    digests, gone = digest_sources(job.recipe.corpus, job.beside, recorded)
    if gone:
        job.say(f"the sources {', '.join(gone)} are not here: the corpus is taken as it was made")
    return digests


def _make_corpus(job: Job, settings: Table, inputs: Mapping[str, str], progress: Progress) -> None:
    from groundup.corpus.executors import EXECUTORS
    from groundup.corpus.refine import in_words, refine
    from groundup.corpus.sources import describe_left_out, find

    executor, found = EXECUTORS[job.executor], find(job.recipe.corpus, job.beside)
    if found.left_out:
        job.say(f"left out: {describe_left_out(found.left_out, found.left_out_names)}")
    with making(job.run / "corpus", "corpus", settings, inputs) as draft:
        try:
            refine(found, job.recipe.corpus, draft, job.beside, progress, inputs, job.run / PARTS, executor)
        except DataError as error:
            if not draft.statistics.get("dropped"):
                raise
            kept = (draft.path / "dropped").rename(_left_by_an_error(job.run / "corpus"))
            raise DataError(f"{error}. What was dropped until then, each with its reason, is in {kept}") from None
    for line in in_words(draft.statistics, job.run / "corpus"):
        job.say(line)


def make_part(
    recipe: str | Path | Recipe,
    overrides: Iterable[str] = (),
    *,
    part: tuple[int, int],
    run: str | Path | None = None,
    watch: Watch = lambda stage: nullcontext(no_progress),
) -> int:
    """Make the parts of every n-th source file of a corpus, from the k-th on, as one of n jobs that share a run
    directory; `build` then makes the corpus of them.

    Args:
        part: (k, n), k from 1.

    Returns:
        The number of files.

    Raises:
        SettingsError: a k that is none of 1 to n.
    """
    from groundup.corpus.executors import digest, one_machine
    from groundup.corpus.filters import prepare
    from groundup.corpus.parts import Refiner
    from groundup.corpus.refine import begin
    from groundup.corpus.sources import find

    first, step = part
    if not 1 <= first <= step:
        raise SettingsError(f"part {first}/{step}: the first number should be one of 1 to {step}")
    job = _open_job(recipe, overrides, run, say=print, watch=watch)
    settings, found = job.recipe.corpus, find(job.recipe.corpus, job.beside)
    digests = {name: digest(name, path) for name, path in found.files[first - 1 :: step]}
    folder = begin(job.run / PARTS, settings, job.beside)
    prepared, _ = prepare(settings, job.beside, folder)
    with watch("corpus") as progress:
        one_machine(found, Refiner(prepared, job.beside, folder), digests, progress)
    return len(digests)


def _left_by_an_error(directory: Path) -> Path:
    """Where a stage that ends in an error leaves what explains it, until it runs again."""
    return directory.with_name(f"{directory.name}.dropped")


def _tokenizer_sources(job: Job, recorded: Mapping[str, str]) -> dict[str, str]:
    settings, name = job.recipe.tokenizer, "existing tokenizer"
    if not isinstance(settings, Existing):
        return {}
    from groundup.tokenizer.make import load_existing

    try:
        return {name: load_existing(settings, job.beside).digest}
    except MissingError:
        if name not in recorded:
            raise
        job.say(f"the tokenizer {settings.path} is not here: it is taken as it was made")
        return {name: recorded[name]}


def _make_tokenizer(job: Job, settings: Table, inputs: Mapping[str, str], progress: Progress) -> None:
    from groundup.corpus.document import read_batches
    from groundup.tokenizer.make import Corpus, make_tokenizer

    def read() -> Iterator[Any]:
        for batch in read_batches(job.run / "corpus" / "train.parquet", ["text"]):
            yield batch.column("text")

    n_documents = read_manifest(job.run / "corpus").statistics["train"]["documents"]
    corpus = Corpus(read, n_documents, inputs["corpus"], job.run / ".tokenizer.counts")
    with making(job.run / "tokenizer", "tokenizer", settings, inputs) as draft:
        make_tokenizer(job.recipe.tokenizer, job.beside, corpus, draft, progress, job.say)


def _make_shards(job: Job, settings: Table, inputs: Mapping[str, str], progress: Progress) -> None:
    from groundup.shards import pack
    from groundup.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(job.run / "tokenizer")
    with making(job.run / "shards", "shards", settings, inputs) as draft:
        pack(job.run / "corpus", tokenizer, draft, progress)


def _start_sources(job: Job, recorded: Mapping[str, str]) -> dict[str, str]:
    if job.start is None:
        return {}
    from groundup.weights.files import digest_of

    return {"start": digest_of(job.start)}


def _model_settings(recipe: Recipe) -> Table:
    return {"model": recipe.model.table(), "pretrain": recipe.pretrain.table()}


def _make_model(job: Job, settings: Table, inputs: Mapping[str, str], progress: Progress) -> None:
    """Choose what the recipe leaves open, and write it down before the first step; then train, or go on training."""
    from groundup.pretrain.before import ready
    from groundup.pretrain.ranks import PretrainJob, pretrain_rank, ready_for_ranks
    from groundup.pretrain.run import pretrain
    from groundup.processes.agent import run_ranks
    from groundup.train.assemble import prepare_process

    prepare_process()
    among = rank_and_world_size()
    ranks = job.ranks if among is None else among[1]
    many = among is not None or ranks > 1 or job.recipe.parallel.exact
    work, recipe = job.run / "pretrain", job.recipe
    begun = any((work / "checkpoints").glob("step-*"))
    _check_fits(job, None if begun else job.start)  # what has begun has no more use for the model it started with
    with _explaining_memory(job):
        if many:
            chosen = ready_for_ranks(recipe.model, recipe.pretrain, recipe.parallel, ranks)
        else:
            chosen = ready(recipe.model, recipe.pretrain, job.run, job.start, job.say, job.examined and not begun)
        recipe = recipe.model_copy(update={"pretrain": chosen})
        write_text(job.run / "recipe.toml", recipe.to_toml())
        with explaining_write_errors(work):
            work.mkdir(exist_ok=True)
        write_json(work / "origin.json", {"settings": _model_settings(recipe), "inputs": dict(inputs)})
        if many:
            whole = PretrainJob(recipe.model, chosen, recipe.parallel, job.run, dict(inputs), job.start, job.until)
            told = (whole, _digest_of(job.recipe))
            run_ranks(pretrain_rank, told, ranks, recipe.parallel, progress, job.say)
        else:
            pretrain(recipe.model, chosen, job.run, dict(inputs), job.start, progress, job.say, job.until)


def _digest_of(recipe: Recipe) -> str:
    return hashlib.sha256(canonical_json(recipe.table())).hexdigest()[:12]


def _follow(job: Job) -> Built:
    """As a rank that torchrun started and that is not the first: wait for the first to make what comes before, train
    with it, and leave the rest to it."""
    from groundup.pretrain.ranks import pretrain_rank
    from groundup.processes.agent import run_ranks

    if not is_made(job.run / "model"):  # else the first has nothing to train, either
        run_ranks(pretrain_rank, (None, _digest_of(job.recipe)), 0, job.recipe.parallel, say=job.say)
    return Built(job.run, [])


def _check_fits(job: Job, start: Path | None) -> None:
    from groundup.pretrain.before import check_fits

    prompts = [job.recipe.pretrain.sample_prompt, *job.recipe.evals.prompts]
    check_fits(job.recipe.model, job.run, start, prompts, job.say)


def _make_evals(job: Job, settings: Table, inputs: Mapping[str, str], progress: Progress) -> None:
    from groundup.evals.run import evaluate

    device = job.recipe.pretrain.device
    with _explaining_memory(job), making(job.run / "evals", "evals", settings, inputs) as draft:
        evaluate(job.run / "model", job.run / "shards", job.recipe.evals, device, draft, progress)


def _check_export(job: Job) -> None:
    if job.recipe.export is not None:
        from groundup.export.check import refuse_impossible

        refuse_impossible(job.recipe.export, job.recipe.model.with_vocabulary(64))


def _make_export(job: Job, settings: Table, inputs: Mapping[str, str], progress: Progress) -> None:
    from groundup.export.run import export_run

    assert job.recipe.export is not None, "else it is no stage"
    export_run(job.run, job.recipe.export, inputs, progress)


@contextmanager
def _explaining_memory(job: Job) -> Iterator[None]:
    """Where memory runs out: what this model's training needs, part by part, and the smallest change that fits."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from groundup.pretrain.doctor.run import explain_memory

        explain_memory(error, job.recipe.model, job.recipe.pretrain, job.run)
        raise


def _run_report(run: Path) -> Row:
    from groundup.report.run import is_up_to_date, stages_digest, write_report

    started = time.monotonic()
    fresh = is_up_to_date(run)
    if not fresh:
        write_report(run)
    return Row("report", time.monotonic() - started, "up to date" if fresh else "made", stages_digest(run))


STAGES = (
    Stage("corpus", lambda recipe: recipe.corpus.table(), (), _make_corpus, _corpus_sources),
    Stage("tokenizer", lambda recipe: recipe.tokenizer.table(), ("corpus",), _make_tokenizer, _tokenizer_sources),
    Stage("shards", lambda recipe: recipe.shards.table(), ("corpus", "tokenizer"), _make_shards),
    Stage(
        "model",
        _model_settings,
        ("shards", "tokenizer"),
        _make_model,
        _start_sources,
        work="pretrain",
        shared=False,
        may_change=PretrainSettings.may_change,
    ),
    Stage("evals", lambda recipe: recipe.evals.table(), ("model", "shards"), _make_evals, shared=False),
)
"""In the order of `artifacts.COMMANDS`. The report comes after these: a file, not a directory."""
EXPORT = Stage(
    "export",
    lambda recipe: {} if recipe.export is None else recipe.export.table(),
    ("corpus", "tokenizer", "shards", "model", "evals"),
    _make_export,
    shared=False,
)
"""The last, of a recipe that asks for it. Its card tells of all that come before."""
