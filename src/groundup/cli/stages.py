"""Commands that write or take a recipe: new, doctor, build, its stages one by one, and sweep."""

import importlib
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from groundup.cli import terminal
from groundup.cli.options import AsJson, Device, Overrides, PackedIn, Ranks, RecipeFile, Replace, Run, example

if TYPE_CHECKING:
    from groundup.building import Built
    from groundup.evals.settings import TaskSettings
    from groundup.pretrain.doctor.verdict import Verdict

app = typer.Typer()


def _presets(begun: str) -> list[str]:
    from groundup.model.presets import PRESETS

    return [name for name in PRESETS if name.startswith(begun)]


@app.command(epilog=example("new"))
def new(
    name: Annotated[str, Argument(help="What the model is called; the recipe becomes NAME.toml.")],
    sources: Annotated[
        list[str] | None,
        Option("--from", help="A file or folder of .txt, .md or .jsonl (also .gz, .zst, .xz); may be repeated."),
    ] = None,
    minutes: Annotated[float | None, Option(help="Time for the build; 10, or what --size or --preset need.")] = None,
    size: Annotated[str | None, Option(help="About how many parameters, such as 30M.")] = None,
    preset: Annotated[str | None, Option(help="A published model, such as gpt2.", autocompletion=_presets)] = None,
    start: Annotated[Path | None, Option(help="A run or a model directory, also of others, to go on from.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at your texts and this machine, and write a recipe sized to both.

    Nothing is trained yet: read the recipe, change it, then build it.
    """
    from groundup.errors import SettingsError
    from groundup.files import write_text
    from groundup.plan.hardware import this_machine
    from groundup.tools.new import parameters_in, propose, read_start, rows, to_toml
    from groundup.tools.survey import survey

    name = name.removesuffix(".toml")
    target = Path(f"{name}.toml")
    if not sources:
        raise SettingsError(
            f"name the texts to learn from: `{terminal.command('new', name, '--from', 'FILE_OR_FOLDER')}`"
        )
    if target.exists():
        raise SettingsError(f"{target} exists and is left as it is: choose another name, or move it away")
    parameters = None if size is None else parameters_in(size)
    begun = None if start is None else read_start(start)
    sample = survey(tuple(sources), Path())
    proposal = propose(name, sample, this_machine(), minutes=minutes, size=parameters, preset=preset, start=begun)
    write_text(target, to_toml(proposal, f"groundup {shlex.join(sys.argv[1:])}"))
    then = [terminal.command("build", target), terminal.command("chat", Path("runs") / proposal.recipe.name)]
    table = as_json and {"recipe": str(target), **proposal.table()}
    terminal.show(rows(proposal), f"Wrote {target}.", then=then, instead=table)


@app.command(epilog=example("doctor"))
def doctor(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run: Run = None,
    quick: Annotated[bool, Option("--quick", help="Only the checks that come before every training.")] = False,
    watts: Annotated[float | None, Option(min=0, help="Power draw of the machine; else looked up or assumed.")] = None,
    price_per_hour: Annotated[float | None, Option(min=0, help="Price of the machine, in your currency.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe, its texts and this machine before time is spent on them.

    Makes corpus, tokenizer and shards if they are not there yet; trains only throw-away copies. Ends in 0 if there is
    no error, else in the exit code of the first one.
    """
    from groundup.building import examine
    from groundup.words import plural

    verdicts: list[Verdict] = []
    for verdict in examine(
        recipe, overrides or (), run=run, only_quick=quick, watts=watts, price_per_hour=price_per_hour,
        watch=terminal.watch, say=terminal.say(True),
    ):  # fmt: skip
        if not as_json:
            terminal.print_verdict(verdict, first_of_group=not verdicts or verdicts[-1].group != verdict.group)
        verdicts.append(verdict)
    errors = [verdict for verdict in verdicts if verdict.error]
    code = errors[0].exit_code if errors else 0
    if as_json:
        tables = [verdict.table() for verdict in verdicts]
        terminal.print_json({"go": not errors, "exit_code": code, "verdicts": tables})
    else:
        warnings = sum(verdict.level == "warning" for verdict in verdicts)
        counts = ", ".join((plural(len(verdicts), "check"), plural(len(errors), "error"), plural(warnings, "warning")))
        then = [] if errors else [terminal.command("build", recipe, *(overrides or ()))]
        print()
        terminal.show(f"{'No go' if errors else 'Go'}: {counts}", then=then)
    raise typer.Exit(code)


@app.command(epilog=example("build"))
def build(
    recipe: RecipeFile, overrides: Overrides = None, run: Run = None, replace: Replace = False, ranks: Ranks = 1
) -> None:
    """Make all that a recipe describes, from corpus to report.

    Stages that are up to date are not run again. Interrupted, the same command goes on.
    """
    from groundup.tools.summary import read_samples, score_line

    directory = _build(recipe, overrides, run, replace, ranks=ranks).run
    samples = read_samples(directory)
    prompt = next((sample["prompt"] for sample in samples if sample["prompt"]), "")
    then = [
        terminal.command("chat", directory),
        terminal.command("generate", directory, prompt, "seed=7"),
        f"open {directory / 'report.html'} in a browser",
        f"{terminal.command('new', 'my-model', '--from', 'FOLDER')}        (a recipe for texts of your own)",
    ]
    texts = (f"“{sample['prompt']}{sample['text']}”" for sample in samples)
    print()
    terminal.show(score_line(directory), *texts, then=then)


def _build(
    recipe: Path,
    overrides: list[str] | None,
    run: Path | None,
    replace: bool,
    only: str | None = None,
    quiet: bool = False,
    ranks: int = 1,
    executor: str = "processes",
) -> "Built":
    """Build all stages or `only` one, and print a row for each; `quiet` leaves standard output to the caller."""
    from groundup import building
    from groundup.tools.summary import stage_rows

    with terminal.keeping("the stages"):
        built = building.build(
            recipe, overrides or (), run=run, replace=replace, only=only, ranks=ranks, executor=executor,
            watch=terminal.watch, say=terminal.say(quiet),
        )  # fmt: skip
    if not built.rows:  # one of many ranks, and not the first, which tells of everything
        raise typer.Exit()
    if not quiet:
        print()
        terminal.show(stage_rows(built))
    return built


TABLES = {
    "corpus": ("groundup.corpus.settings", "CorpusSettings"),
    "tokenizer": ("groundup.tokenizer.settings", "TokenizerSettings"),
    "model": ("groundup.model.settings", "ModelConfig"),
    "pretrain": ("groundup.pretrain.settings", "PretrainSettings"),
    "parallel": ("groundup.parallel.settings", "ParallelSettings"),
}
"""Tables of a recipe and where they are declared, for help that imports no more than it shows."""
ALONE = {
    "tokenizer": "Learn the tokenizer on the corpus, or take the one named.",
    "pack": "Encode the corpus into shards of token ids.",
    "pretrain": "Train the model on the shards, or go on training.",
}
"""Commands that run one stage, with their help."""


class _WithSettings(typer.core.TyperCommand):
    """A command whose help ends with the settings of its tables, read off their fields."""

    def get_help(self, ctx: Any) -> str:
        from groundup.cli.help import describe_table

        tables = (
            ["model", "pretrain", "parallel"] if self.name == "pretrain" else [self.name] if self.name in TABLES else []
        )
        rows: list[tuple[str, str, str]] = []
        for name in tables:
            room, kind = TABLES[name]
            rows += describe_table(name, getattr(importlib.import_module(room), kind))
        lines = [
            f"  {name} = {default}".rstrip(" =").ljust(58) + f"  {text}"
            for name, default, text in rows
            if name != "model.vocab_size"
        ]
        return "\n".join([super().get_help(ctx), "", "Settings:" if lines else "", *lines]).rstrip()


@app.command(cls=_WithSettings, epilog=example("corpus"))
def corpus(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run: Run = None,
    replace: Replace = False,
    sample: Annotated[
        int | None, Option(min=1, help="Look at so many documents only, and show what would become of them.")
    ] = None,
    part: Annotated[
        str | None, Option(metavar="K/N", help="Read only each N-th file, from the K-th on: one of N jobs.")
    ] = None,
    executor: Annotated[Literal["processes", "ray"], Option(help="What reads the files.")] = "processes",
    as_json: AsJson = False,
) -> None:
    """Read, clean, filter and deduplicate the sources; hold documents out."""
    from groundup.artifacts import read_manifest
    from groundup.building import make_part
    from groundup.errors import SettingsError
    from groundup.tools.sample import lines, sample_corpus

    if sample is not None:
        found = sample_corpus(recipe, overrides or (), sample)
        terminal.show(*lines(found), then=[terminal.command("corpus", recipe)], instead=as_json and asdict(found))
    elif part is not None:
        numbers = part.split("/")
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise SettingsError(f"--part {part} should be two numbers, such as 3/16")
        n_files = make_part(
            recipe, overrides or (), part=(int(numbers[0]), int(numbers[1])), run=run, watch=terminal.watch
        )
        terminal.show(f"part {part} is made: {n_files:,} files", then=[terminal.command("corpus", recipe)])
    else:
        built = _build(recipe, overrides, run, replace, "corpus", executor=executor, quiet=as_json)
        if as_json:
            terminal.show(instead=read_manifest(built.run / "corpus").statistics)


def _add_stage(name: str) -> None:
    """Add the command that runs one stage alone."""

    def command(recipe: RecipeFile, overrides: Overrides = None, run: Run = None, replace: Replace = False) -> None:
        _build(recipe, overrides, run, replace, name)

    def training(
        recipe: RecipeFile, overrides: Overrides = None, run: Run = None, replace: Replace = False, ranks: Ranks = 1
    ) -> None:
        _build(recipe, overrides, run, replace, name, ranks=ranks)

    command = training if name == "pretrain" else command
    app.command(name, cls=_WithSettings, help=ALONE[name], epilog=example(name))(command)


for stage in ALONE:
    _add_stage(stage)


@app.command("eval", epilog=example("eval"))
def evaluate(
    target: Annotated[Path, Argument(help="A recipe, a run, or a model directory.")],
    rest: Annotated[
        list[str] | None,
        Argument(
            metavar="FILE|KEY=VALUE",
            help="Files or folders to score, and how they are read (corpus.…); with a recipe, any settings; with "
            "--tasks, how they are asked: limit, shots, chat, samples, temperature, seed, stride.",
        ),
    ] = None,
    run: Run = None,
    replace: Replace = False,
    device: Device = None,
    tasks: Annotated[str | None, Option(help="Benchmarks, with commas between; see `groundup tasks`.")] = None,
    suite: Annotated[str | None, Option(help="Benchmarks that belong together: core.")] = None,
    data: Annotated[Path, Option(help="The folder with the benchmarks' files.")] = Path("benchmarks"),
    corpus: Annotated[
        Path | None, Option(help="Write a corpus whose documents carry their perplexity to --out.")
    ] = None,
    out: Annotated[Path | None, Option("--out", help="Where results go; beside the model if not given.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Items of each benchmark; all if not given.")] = None,
    shots: Annotated[int | None, Option(min=0, help="Examples before each question; else as many as usual.")] = None,
    chat: Annotated[bool, Option("--chat", help="Ask in the model's own chat template.")] = False,
    together: Annotated[int, Option(min=1, help="Requests that run at once; no result depends on it.")] = 32,
    precision: PackedIn = None,
    engine: Annotated[
        Literal["own", "lm-eval"], Option(help="lm-eval asks tasks of lm-evaluation-harness, by their names there.")
    ] = "own",
    allow_unsandboxed: Annotated[
        bool,
        Option(
            "--allow-unsandboxed",
            help="Run programs that the model writes (humaneval) where nothing isolates them, too: they can then read, "
            "change and send all that you can.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure bits per byte on the test documents or any file, or what a model gets in benchmarks.

    Benchmarks that were interrupted go on item by item; those that are done are not run again.
    """
    from groundup.errors import SettingsError
    from groundup.tools.evaluate import lines, read_score, score, score_documents

    if corpus:
        if out is None or rest or run or replace or tasks or suite or target.suffix == ".toml":
            raise SettingsError("--corpus takes a model and --out, a directory to be made; no recipe, files or tasks")
        with terminal.watch("eval") as progress:
            counted = score_documents(target, corpus, out, device, progress)
        facts = {"corpus": str(out), "documents": counted}
        terminal.show(f"{out} has {counted:,} documents with their perplexity", instead=as_json and facts)
        return
    if tasks or suite:
        if run or replace or target.suffix == ".toml":
            raise SettingsError("--tasks and --suite take a model: no recipe, --run or --replace")
        from groundup.evals.settings import TaskSettings

        given = {"limit": limit, "shots": shots, "chat": chat}
        settings = TaskSettings.from_table({name: value for name, value in given.items() if value is not None}, "eval")
        names = [name for each in (tasks, suite) if each for name in each.split(",")]
        asked = settings.override(rest or ())
        _examine(target, names, data, out, asked, together, device, precision, engine, allow_unsandboxed, as_json)
        return
    if target.suffix == ".toml":
        if device is not None:
            raise SettingsError(f"--device goes with files to score; with a recipe, set pretrain.device={device}")
        result = read_score(_build(target, rest, run, replace, "eval", quiet=as_json).run)
    elif run or replace:
        raise SettingsError(f"--run and --replace go with a recipe; {target} is not one")
    elif rest:
        with terminal.watch("eval") as progress:
            result = score(target, rest, device, progress)
    else:
        result = read_score(target)
    terminal.show("\n".join(lines(result)), instead=as_json and result)


def _examine(
    target: Path,
    names: list[str],
    data: Path,
    out: Path | None,
    settings: "TaskSettings",
    together: int,
    device: str | None,
    precision: PackedIn,
    engine: str,
    allow_unsandboxed: bool,
    as_json: bool,
) -> None:
    """Ask a model the items of benchmarks, and print what it got."""
    from groundup.errors import SettingsError
    from groundup.tools import examine as examining
    from groundup.tools import examined

    if engine == "lm-eval":
        if out or allow_unsandboxed:
            raise SettingsError(
                "--out and --allow-unsandboxed do not go with --engine lm-eval, which prints its results"
            )
        found = examining.examine_by_harness(
            target, names, settings, together=together, device=device, precision=precision
        )
        terminal.show(examined.harness_rows(found), instead=as_json and found)
        return
    place = out or examined.results_directory(target)
    with terminal.keeping("the items"):
        results = examining.examine(
            target, names, data, place, settings, together=together, device=device, precision=precision,
            watch=terminal.watch, allow_unsandboxed=allow_unsandboxed,
        )  # fmt: skip
    then = [f"open {place / 'report.html'} in a browser", terminal.command("compare", target, "ANOTHER_MODEL")]
    terminal.show(examined.rows(results), then=then, instead=as_json and [asdict(result) for result in results])


@app.command(epilog=example("export"))
def export(
    target: Annotated[Path, Argument(help="A recipe, a run, or a model directory.")],
    overrides: Overrides = None,
    to: Annotated[str | None, Option("--to", help="huggingface, gguf or onnx.")] = None,
    out: Annotated[Path | None, Option("--out", help="The directory to make.")] = None,
    quantize: Annotated[str | None, Option(help="Of gguf: q8_0 or q4_0.")] = None,
    dtype: Annotated[str | None, Option(help="float32, float16 or bfloat16; as the weights are, if not given.")] = None,
    licence: Annotated[str | None, Option(help="Of the model, for its card.")] = None,
    run: Run = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Write a model for other programs: read back and compared, or it is not called done."""
    from groundup.errors import SettingsError
    from groundup.export.settings import ExportSettings

    chosen = {"to": to, "quantize": quantize, "dtype": dtype, "licence": licence}
    given = [f"--{name}" for name, value in {**chosen, "out": out}.items() if value is not None]
    if target.suffix == ".toml":
        if given:
            raise SettingsError(f"{given[0]} goes with a model; with a recipe, set its table [export]: export.to=gguf")
        from groundup.artifacts import read_manifest

        directory = _build(target, overrides, run, replace, "export", quiet=as_json).run / "export"
        read_back = read_manifest(directory).statistics["read_back"]
        terminal.show([(form, each["words"]) for form, each in read_back.items()], instead=as_json and read_back)
        return
    if overrides or run or replace:
        raise SettingsError(f"settings, --run and --replace go with a recipe; {target} is not one")
    if to is None or out is None:
        command = terminal.command("export", target)
        raise SettingsError(f"name the format and the directory: `{command} --to huggingface --out DIR`")
    settings = ExportSettings.from_table({name: value for name, value in chosen.items() if value is not None}, "export")
    from groundup.export.run import export as write  # imports torch

    with terminal.watch("export") as progress:
        agreement = write(target, out, settings, progress)
    table = as_json and {"directory": str(out), "format": to, **vars(agreement), "words": agreement.words}
    then = [terminal.command("inspect", out)]
    terminal.show(f"Wrote {out}, read it back: {agreement.words}.", then=then, instead=table)


@app.command(epilog=example("report"))
def report(
    target: Annotated[Path, Argument(help="A run, or a recipe.")],
    overrides: Overrides = None,
    run: Run = None,
) -> None:
    """Write the page that tells what was built, how good it is, and what it cost."""
    from groundup.errors import SettingsError
    from groundup.report.run import write_report

    if target.suffix == ".toml":
        _build(target, overrides, run, False, "report")
    elif overrides or run:
        raise SettingsError(f"settings and --run go with a recipe; {target} is a run, which is reported as it is")
    else:
        print(write_report(target))


@app.command(epilog=example("sweep"))
def sweep(
    recipe: RecipeFile,
    settings: Annotated[
        list[str] | None,
        Argument(
            metavar="KEY=VALUES",
            help="Settings with several values: FIRST..LAST:log:N, FIRST..LAST:N or A,B,C; ordinary ones.",
        ),
    ] = None,
    halving: Annotated[
        bool,
        Option("--halving", help="All points begin, and at each rung only the best third goes on, three times as far."),
    ] = False,
    steps: Annotated[int | None, Option(min=1, help="Of each training, with its schedule; else the recipe's.")] = None,
    run: Annotated[Path | None, Option("--run", help="Where it goes; runs/NAME-sweep if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe with several values of some settings, and say which serve best.

    Interrupted, the same command goes on; points that were finished are not trained again.
    """
    from groundup.building import next_to
    from groundup.recipe import Recipe
    from groundup.tools import sweep as sweeping

    with terminal.keeping("the points"):
        result = sweeping.sweep(
            recipe, settings or (), halving=halving, steps=steps, run=run, watch=terminal.watch,
            say=terminal.say(as_json),
        )  # fmt: skip
    directory, usual = Path(result.directory), Path("runs") / Recipe.load(recipe).name
    beside = ("--run", next_to(usual)) if usual.exists() else ()
    best = terminal.command("build", recipe, *result.overrides, *beside)
    itself = terminal.command("build", recipe, *result.overrides, "--run", directory / str(result.best))
    drawn = f"Drawn: {directory / sweeping.PAGE}"
    then = [best, f"{itself}        (evaluate and report the best point itself)"]
    if not as_json:
        print()
    table = as_json and result.table()
    terminal.show(result.rows, "\n".join([*result.notes, drawn]), then=then, instead=table)
