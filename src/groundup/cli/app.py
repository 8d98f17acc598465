"""The command line: one function a command. A room is imported when its command runs, so `--help` is quick."""

import contextlib
import importlib
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groundup.cli import terminal

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from groundup.artifacts import Manifest
    from groundup.generation.settings import Sampling
    from groundup.model.settings import ModelConfig
    from groundup.model.transformer import Transformer
    from groundup.pretrain.doctor.checks import Line
    from groundup.recipe import Built
    from groundup.tokenizer.tokenizer import Tokenizer
    from groundup.tools.bench import Measured
    from groundup.tools.new import Proposal
    from groundup.tools.survey import Survey

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Build a language model from the ground up, on your own text.\n\n"
    "Begin with:  groundup build recipes/storybook.toml",
)


def _example(*lines: str) -> str:
    """An epilog that keeps its lines."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


@app.callback()
def groundup(
    debug: Annotated[
        bool, typer.Option(terminal.DEBUG, help="Show where in the code an error arose; in any place.")
    ] = False,
) -> None:
    # `debug` is taken out of the command line by terminal.run; here it is only listed.
    pass


RecipeFile = Annotated[Path, typer.Argument(help="A recipe, such as recipes/storybook.toml.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as pretrain.steps=500.")
]
Run = Annotated[Path | None, typer.Option("--run", help="The run directory; runs/NAME if not given.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Make stages again that no longer fit the recipe, instead of stopping.")
]


def _presets(begun: str) -> list[str]:
    from groundup.model.presets import PRESETS

    return [name for name in PRESETS if name.startswith(begun)]


@app.command(
    epilog=_example(
        "groundup new my-model --from ./my-texts",
        "groundup new my-model --from book.txt --from letters.jsonl --minutes 60",
        "groundup new my-gpt2 --from ./my-texts --preset gpt2",
        "groundup new my-storybook --from ./my-texts --start runs/storybook",
    )
)
def new(
    name: Annotated[str, typer.Argument(help="What the model is called; the recipe becomes NAME.toml.")],
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", help="A file or folder of .txt, .md or .jsonl (also .gz, .zst, .xz); may be repeated."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="What the build may take; 10, or with --size or --preset what those need.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="About how many parameters, such as 30M.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A published model's blocks and sizes, such as gpt2.", autocompletion=_presets),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="A trained model to go on from: a run, a model directory, or one as of Hugging Face."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found and planned as JSON.")] = False,
) -> None:
    """Look at your texts and this machine, and write a recipe sized to both.

    Nothing is trained yet: read the recipe, change it, then build it.
    """
    from groundup.errors import SettingsError
    from groundup.files import write_text
    from groundup.plan.hardware import this_machine
    from groundup.tools.new import parameters_in, propose, read_start, to_toml
    from groundup.tools.survey import survey

    name = name.removesuffix(".toml")
    target = Path(f"{name}.toml")
    if not sources:
        raise SettingsError(
            f"name the texts to learn from: `{terminal.command('new', name, '--from', 'FILE_OR_FOLDER')}`"
        )
    if target.exists():
        raise SettingsError(f"{target} exists and is left as it is: choose another name, or move it away")
    wanted = None if size is None else parameters_in(size)
    begun = None if start is None else read_start(start)
    sampled = survey(tuple(sources), Path())
    proposal = propose(name, sampled, this_machine(), minutes=minutes, size=wanted, preset=preset, start=begun)
    write_text(target, to_toml(proposal, terminal.typed()))
    if as_json:
        terminal.print_json({"recipe": str(target), **proposal.table()})
    else:
        _show_proposal(proposal, target)


def _show_proposal(proposal: "Proposal", target: Path) -> None:
    from groundup.corpus.refine import told_marks
    from groundup.corpus.sources import readable, told_left_out
    from groundup.tools.new import told_duration

    sampled, model, machine = proposal.sampled, proposal.model, proposal.machine
    about = "" if sampled.is_whole else "about "
    rows = [
        ("texts", f"{_counted(sampled.files)}: {about}{sampled.documents:,} documents, {sampled.bytes / 1e6:,.2f} MB"),
        ("letters", ", ".join(f"{share:.1%} {script}" for script, share in list(sampled.scripts.items())[:6])),
    ]
    if separator := sampled.corpus.separator:
        texts = round(sampled.separated * sampled.scale)
        rows.append(("separator", f"{separator}, found in your files: it cuts them into {about}{texts:,} texts"))
    rows += [("marks", ": ".join(told)) for told in told_marks(sampled.marks.table())]
    if sampled.left_out:
        told = told_left_out(sampled.left_out, sampled.left_out_names)
        rows.append(("left out", f"{told}: read are {readable()}"))
    if sampled.dropped:
        looked = "" if sampled.is_whole else f" of {sampled.read:,} looked at"
        rows.append(("dropped", f"{sum(sampled.dropped.values()):,} documents{looked}: {sampled.tally.told(6)}"))
    often = f"{proposal.passes:.1f} times" if proposal.passes >= 1 else f"{proposal.passes:.0%} of them"
    rows += [
        ("tokens", f"about {proposal.unique_tokens:,.0f} to train on, of {proposal.bytes_per_token:.1f} bytes each"),
        ("machine", machine.name + ("" if machine.is_measured else " (its speed looked up, not measured)")),
        ("model", f"{model.parameters:,} parameters, vocabulary {model.vocab_size:,}, {model.d_model} wide, "
         f"{model.n_layers} layers, context {model.context_length}"),
        ("training", f"{proposal.tokens:,} tokens: the texts {often}"),
        ("time", told_duration(proposal.seconds) + (
            ". More would only teach it your texts by heart: more text is what it needs" if proposal.ends_early else ""
        )),
    ]  # fmt: skip
    terminal.print_table(rows)
    print(f"\nWrote {target}. Next:")
    print(f"  {terminal.command('build', target)}")
    print(f"  {terminal.command('chat', Path('runs') / proposal.recipe.name)}")


def _counted(kinds: "Counter[str]") -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(8))


@app.command(
    epilog=_example(
        "groundup build recipes/storybook.toml",
        "groundup build my-recipe.toml pretrain.steps=500 --run runs/short",
    )
)
def build(recipe: RecipeFile, overrides: Overrides = None, run: Run = None, replace: Replace = False) -> None:
    """Make all that a recipe describes, from corpus to report.

    Stages that are up to date are not run again. Interrupted, the same command goes on.
    """
    _build(recipe, overrides, run, replace, None)


def _stage_command(name: str, tables: tuple[str, ...], does: str) -> None:
    """Add the command that runs one stage alone."""

    def command(recipe: RecipeFile, overrides: Overrides = None, run: Run = None, replace: Replace = False) -> None:
        _build(recipe, overrides, run, replace, name)

    class Command(_WithSettings):
        settings_of = tables

    command.__doc__ = does
    app.command(name, cls=Command, epilog=_example(f"groundup {name} recipes/storybook.toml"))(command)


class _WithSettings(typer.core.TyperCommand):
    """A command whose help ends with the settings of its tables, read off their fields."""

    settings_of: tuple[str, ...] = ()

    def get_help(self, ctx: Any) -> str:
        from groundup.settings import describe_table

        tables = [(name, *TABLES[name]) for name in self.settings_of if name in TABLES]
        found = [describe_table(name, getattr(importlib.import_module(room), kind)) for name, room, kind in tables]
        rows = [row for rows in found for row in rows if row[0] != "model.vocab_size"]
        lines = [f"  {name} = {default}".rstrip(" =").ljust(58) + f"  {text}" for name, default, text in rows]
        return "\n".join([super().get_help(ctx), "", "Settings:" if rows else "", *lines]).rstrip()


TABLES = {
    "corpus": ("groundup.corpus.settings", "CorpusSettings"),
    "tokenizer": ("groundup.tokenizer.settings", "TokenizerSettings"),
    "model": ("groundup.model.settings", "ModelConfig"),
    "pretrain": ("groundup.pretrain.settings", "PretrainSettings"),
}
"""Tables of a recipe and where they are declared, for help that imports no more than it shows."""


_stage_command("corpus", ("corpus",), "Read, clean, filter and deduplicate the sources; hold documents out.")
_stage_command("tokenizer", ("tokenizer",), "Learn the tokenizer on the corpus, or take the one named.")
_stage_command("pack", ("shards",), "Encode the corpus into shards of token ids.")
_stage_command("pretrain", ("model", "pretrain"), "Train the model on the shards, or go on training.")


@app.command(
    "eval",
    epilog=_example(
        "groundup eval recipes/storybook.toml",
        "groundup eval runs/storybook another-book.txt",
        "groundup eval runs/storybook letters.jsonl corpus.text_field=body",
    ),
)
def evaluate(
    target: Annotated[Path, typer.Argument(help="A recipe, a run, or a model directory.", show_default=False)],
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE|KEY=VALUE",
            help="Files or folders to score, and how they are read (corpus.…); with a recipe, any settings.",
        ),
    ] = None,
    run: Run = None,
    replace: Replace = False,
    device: Annotated[str | None, typer.Option(help="For files: such as cpu or cuda; else the best present.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the score as JSON.")] = False,
) -> None:
    """Measure bits per byte on the test documents, or on any file."""
    from groundup.artifacts import verify
    from groundup.corpus.settings import CorpusSettings
    from groundup.errors import SettingsError
    from groundup.files import refuse_nothing
    from groundup.recipe import Recipe

    if target.suffix == ".toml":
        if device is not None:
            raise SettingsError(f"--device goes with files to score; with a recipe, set pretrain.device={device}")
        directory = _build(target, rest, run, replace, "eval", quiet=as_json).run
        result = json.loads((directory / "evals" / "test.json").read_bytes())
    elif run or replace:
        raise SettingsError(f"--run and --replace go with a recipe; {target} is not one")
    elif rest:
        settings = [word for word in rest if "=" in word and not Path(word).exists()]
        files = tuple(word for word in rest if word not in settings)
        others = [word for word in settings if not word.startswith(HOW_FILES_ARE_READ)]
        if others or not files:
            raise SettingsError(
                f"{(others or settings)[0]} is given, but no recipe: with {target}, name files to score and, if need "
                "be, how they are read, such as corpus.text_field=body"
            )
        from groundup.evals.run import score_files
        from groundup.evals.score import table_of
        from groundup.evals.settings import FilesRead
        from groundup.weights.load import load_with_tokenizer

        model, tokenizer = load_with_tokenizer(target, device)
        own = target / "recipe.toml"
        read = FilesRead(corpus=Recipe.load(own).corpus if own.is_file() else CorpusSettings(sources=files))
        corpus = read.override(settings).corpus
        with terminal.watch("eval") as progress:
            result = table_of(score_files(model, tokenizer, files, corpus, progress))
    elif (target / "evals" / "test.json").is_file():
        verify(target / "evals", "evals")
        result = json.loads((target / "evals" / "test.json").read_bytes())
    else:
        refuse_nothing(target, "run or model")
        raise SettingsError(
            f"name the files to score: `groundup eval {target} FILE`, or a recipe for its test documents"
        )
    if as_json:
        terminal.print_json(result)
        return
    error = "" if result["standard_error"] is None else f" ± {result['standard_error']:.4f}"
    perplexity = "beyond number" if result["perplexity"] is None else f"{result['perplexity']:.2f}"
    print(f"{result['bits_per_byte']:.4f}{error} bits per byte, perplexity {perplexity} a token")
    print(f"{result['documents']:,} documents, {result['tokens']:,} tokens, {result['bytes']:,} bytes")


HOW_FILES_ARE_READ = tuple(
    f"corpus.{name}" for name in ("text_field", "encoding", "separator", "unicode", "whitespace")
)
Model = Annotated[Path, typer.Argument(help="A run or a model directory.", show_default=False)]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to write.")]
Temperature = Annotated[float | None, typer.Option(help="Scores are divided by this; 0 takes the best.")]
TopK = Annotated[int | None, typer.Option(help="Only among the k best tokens.")]
TopP = Annotated[float | None, typer.Option(help="Only among the best whose probabilities add up to p.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be repeated.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda; the best present if not given.")]


@app.command(
    epilog=_example(
        'groundup generate runs/storybook "Once upon a time"',
        'echo "The king said" | groundup generate runs/storybook --temperature 0.5',
        'groundup generate runs/storybook "The king" --samples 3 --probabilities --max-tokens 20',
    )
)
def generate(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="What to continue; - reads it from standard input, as does none where that is no terminal."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many texts, each with the next seed.")] = 1,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Each token with its probability and what else it might have been.")
    ] = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each text.")] = False,
) -> None:
    """Let a model continue a text."""
    from groundup.generation.text import Probabilities, stream

    given = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    loaded, tokenizer, sampling = _ready_to_write(model, device, {**given, "stop": stop}, "generate")
    prompt = _typed_or_piped(prompt)
    for number in range(samples):
        each = sampling.model_copy(update={"seed": sampling.seed + number})
        look = Probabilities(tokenizer) if probabilities else None
        parts = stream(loaded, tokenizer, prompt, each, look)
        if as_json:
            told = {"prompt": prompt, "text": "".join(parts), "seed": each.seed}
            terminal.print_json(told | ({"tokens": look.chosen} if look else {}))
            continue
        if samples > 1:
            print(f"{'' if number == 0 else chr(10)}[seed {each.seed}]")
        print(prompt, end="", flush=True)
        for part in parts:
            print(part, end="", flush=True)
            if not terminal.has_reader():
                return
        print()
        if look is not None:
            _show_probabilities(look.chosen)


def _typed_or_piped(text: str | None) -> str:
    """A text that was typed; or what standard input holds, where it is asked for with `-`, or nothing was typed and it
    is no terminal. Line ends at its end are left out, bytes that are no text become U+FFFD, with a warning."""
    encoding = "utf-8"
    if text == "-" or (text is None and not sys.stdin.isatty()):
        raw, encoding = sys.stdin.buffer.read().rstrip(b"\r\n"), sys.stdin.encoding
    else:
        raw = (text or "").encode("utf-8", "surrogateescape")
    with contextlib.suppress(UnicodeDecodeError):
        return raw.decode()
    with contextlib.suppress(UnicodeDecodeError):
        return raw.decode(encoding)
    warnings.warn(f"the text has bytes that are not {encoding}: they are read as U+FFFD", stacklevel=2)
    return raw.decode(encoding, "replace")


def _ready_to_write(
    model: Path, device: str | None, options: dict[str, Any], origin: str
) -> "tuple[Transformer, Tokenizer, Sampling]":
    """A model, its tokenizer, and how to sample: the options given, else what the model's own file says."""
    from groundup.generation.settings import Sampling
    from groundup.weights.files import model_directory
    from groundup.weights.load import load_with_tokenizer

    loaded, tokenizer = load_with_tokenizer(model, device)
    defaults = model_directory(model) / "generation.json"
    table = json.loads(defaults.read_bytes()) if defaults.is_file() else {}
    given = {name: value for name, value in options.items() if value is not None}
    return loaded, tokenizer, Sampling.from_table({**table, **given}, origin)


def _show_probabilities(chosen: list[dict[str, Any]]) -> None:
    print()
    terminal.print_table(
        [
            (
                f"{token['probability']:6.1%}",
                _quoted(token["text"]),
                "  ".join(f"{_quoted(other['text'])} {other['probability']:.1%}" for other in token["instead"]),
            )
            for token in chosen
        ]
    )


@app.command(epilog=_example("groundup chat runs/storybook", "groundup chat runs/storybook --temperature 0.5 --seed 7"))
def chat(
    model: Model,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a reply.")] = 60,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    device: Device = None,
) -> None:
    """Converse with a model in the terminal. One that was only pretrained writes on at your text."""
    from groundup.cli.chat import Conversation, talk, typed_lines
    from groundup.tokenizer.chat import layout_of
    from groundup.weights.files import model_directory

    given = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    layout_of(model_directory(model))
    loaded, tokenizer, sampling = _ready_to_write(model, device, {**given, "stop": stop}, "chat")
    if sys.stdin.isatty():
        print(
            f"{model} is a base model: it was not taught to answer, it only continues text. Begin one, and write it "
            "together.\n/help lists what else can be done; /quit ends."
        )
    talk(Conversation(loaded, tokenizer, sampling), typed_lines())


@app.command(epilog=_example("groundup inspect runs/storybook", "groundup inspect runs/storybook/model --json"))
def inspect(
    path: Annotated[Path, typer.Argument(help="A run, an artifact, a model, a recipe, or a file.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")] = False,
) -> None:
    """Say what something is, what made it, from what, whether it is whole, and what to do with it.

    Every byte is compared with the digests that were written down. Nothing is run, and no pickle is opened.
    """
    from groundup.errors import DataError
    from groundup.tools import inspect as inspection

    with terminal.watch("inspect") as progress:
        found = inspection.inspect(path, progress)
    if as_json:
        terminal.print_json({**vars(found), "path": str(found.path)}, indent=1)
    else:
        print(f"{found.path}: {found.what}\n")
        terminal.print_facts(found.facts)
        if found.next and not found.damage:
            print("\nTry next:", *found.next, sep="\n  ")
    if found.damage:
        then = f"\nTry next: {found.next[0]}" if found.next else ""
        raise DataError("\n  ".join([f"{found.path} is not whole:", *found.damage]) + then)


@app.command(
    epilog=_example(
        "groundup sweep recipes/storybook.toml pretrain.optimizer.learning_rate=1e-4..1e-2:log:8 --steps 300",
        "groundup sweep recipes/storybook.toml pretrain.optimizer.learning_rate=1e-3..8e-3:log:9 --halving",
        "groundup sweep recipes/storybook.toml pretrain.optimizer.weight_decay=0.0,0.1 model.n_layers=4..8:3",
    )
)
def sweep(
    recipe: RecipeFile,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUES",
            help="Settings with several values: FIRST..LAST:log:N, FIRST..LAST:N or A,B,C; ordinary ones.",
        ),
    ] = None,
    halving: Annotated[
        bool,
        typer.Option(
            "--halving", help="All points begin, and at each rung only the best third goes on, three times as far."
        ),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="How long each training is, its schedule included; else as in the recipe.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Where it goes; runs/NAME-sweep if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all points as JSON.")] = False,
) -> None:
    """Train a recipe with several values of some settings, and say which serve best.

    Interrupted, the same command goes on; points that were finished are not trained again.
    """
    from groundup.errors import SavedAndStopped
    from groundup.recipe import Recipe, next_to
    from groundup.report.sweep import rows
    from groundup.tools.sweep import PAGE
    from groundup.tools.sweep import sweep as train_points

    say = (lambda text: print(text, file=sys.stderr)) if as_json else print
    try:
        found = train_points(
            recipe, settings or (), halving=halving, steps=steps, run=run, watch=terminal.watch, say=say
        )
    except terminal.Interrupted:
        raise SavedAndStopped("stopped; the points that were finished are kept") from None
    if as_json:
        terminal.print_json(found)
        return
    header, told = rows(found)
    print()
    terminal.print_table([header, *told])
    print()
    for note in found["notes"]:
        print(note)
    directory = Path(found["directory"])
    print(f"Drawn: {directory / PAGE}\n\nTry next:")
    usual = Path("runs") / Recipe.load(recipe).name
    beside = ("--run", next_to(usual)) if usual.exists() else ()
    print(f"  {terminal.command('build', recipe, *found['overrides'], *beside)}")
    finish = terminal.command("build", recipe, *found["overrides"], "--run", directory / found["best"])
    print(f"  {finish}        (evaluate and report the best point itself)")


@app.command(
    epilog=_example(
        "groundup bench recipes/storybook.toml",
        "groundup bench runs/storybook pretrain.precision=float32",
        "groundup bench recipes/storybook.toml --trace trace.json.gz",
    )
)
def bench(
    target: Annotated[Path, typer.Argument(help="A recipe, or a run with shards.", show_default=False)],
    overrides: Overrides = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to measure; about ten seconds if not given.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write a profiler's trace of two steps, such as trace.json.gz.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
) -> None:
    """Measure how fast a recipe trains here, how near that is to the machine's limit, and where the rest goes.

    A throw-away model is trained on the recipe's own rows; nothing of it is kept.
    """
    from groundup.tools.bench import bench as measure

    say = (lambda text: print(text, file=sys.stderr)) if as_json else print
    measured = measure(target, overrides or (), steps=steps, trace=trace, watch=terminal.watch, say=say)
    if as_json:
        terminal.print_json(measured.table())
    else:
        _show_speed(measured)
        if trace is not None:
            print(f"\nWrote {trace}: open it in a browser at chrome://tracing, or in Perfetto.")


def _show_speed(measured: "Measured") -> None:
    speed = measured.speed
    whole = measured.recipe.pretrain.batch_tokens
    part = "" if speed.batch_tokens >= whole else f", a part of the recipe's {whole:,}"
    step = sum(speed.parts.values())
    shares = ", ".join(f"{name} {seconds / step:.0%}" for name, seconds in speed.parts.items())
    machine = speed.machine
    where = "of tensors" if machine["device"] != "cpu" else "of the process"
    rows = [
        ("speed", f"{speed.tokens_per_second:,.0f} tokens/s, median; {speed.slowest:,.0f} to {speed.fastest:,.0f} in "
         f"{speed.steps} steps of {speed.batch_tokens:,} tokens{part}"),
        ("arithmetic", f"{_flops(speed.flops_per_second)}: {_flops(speed.flops_per_token, '')} a token in the model's "
         "products, forward and backward"),
        ("share of peak", f"{speed.share_of_peak:.0%} of {_flops(speed.peak_flops)}, the fastest product here"),
        ("memory", f"{speed.peak_bytes / 1e9:,.2f} GB at most, {where}"),
        ("a step", f"{step:.3g} s, waiting after each part: {shares}"),
        ("settings", ", ".join(f"{name} {machine[name]}"
         for name in ("device", "precision", "compile", "recompute", "threads", "allocator"))),
        ("machine", ", ".join([*([machine["accelerator"]] if "accelerator" in machine else []), machine["processor"],
         f"torch {machine['torch']}"])),
    ]  # fmt: skip
    terminal.print_table(rows)
    if speed.operations:
        print("\nOperations that took most time themselves, of a step:\n")
        told = [(name, f"{seconds * 1e3:,.1f} ms", f"{calls:,} ×") for name, seconds, calls in speed.operations]
        terminal.print_table(told)


def _flops(value: float, unit: str = "/s") -> str:
    """
    >>> _flops(5.1e11), _flops(8.4e7, "")
    ('510 GFLOP/s', '84 MFLOP')
    """
    for least, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= least:
            return f"{value / least:,.3g} {letter}FLOP{unit}"
    return f"{value:,.0f} FLOP{unit}"


@app.command(epilog=_example("groundup report runs/storybook", "groundup report recipes/storybook.toml"))
def report(
    target: Annotated[Path, typer.Argument(help="A run, or a recipe.", show_default=False)],
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


@app.command("watch", epilog=_example("groundup watch runs/", "groundup watch runs/a runs/b --port 9000 --open"))
def watch_runs(
    runs: Annotated[list[Path], typer.Argument(help="Runs, or folders with runs.", show_default=False)],
    port: Annotated[
        int, typer.Option(help="Where to listen, on this machine only; 0 takes any.", min=0, max=65_535)
    ] = 8470,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show the training of runs as a live page: curves, health, samples, events, side by side.

    From elsewhere, through a tunnel: ssh -L 8470:localhost:8470 MACHINE
    """
    from groundup.report.watch import watch

    with contextlib.suppress(terminal.Interrupted):  # ending is what Ctrl-C is for here
        watch(runs, port, open_page)


@app.command(
    epilog=_example(
        "groundup compare runs/storybook runs/storybook-2",
        "groundup compare runs/a runs/b runs/c --out comparison.html",
    )
)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more finished runs.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; beside the first run if not given.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as JSON; a page is written only with --out.")
    ] = False,
) -> None:
    """Set runs side by side: settings that differ, scores, costs, curves, samples."""
    from groundup.report import compare as comparing

    finished = comparing.read_all(runs)
    found = comparing.compare(finished)
    page = out or (None if as_json else comparing.default_page(finished))
    if page:
        comparing.write_page(finished, found, page)
    if as_json:
        terminal.print_json(found)
        return
    terminal.print_table(comparing.rows(found))
    print()
    for line in comparing.verdicts(found):
        print(line)
    print(f"\nWith curves and samples: {page}")


@app.command(
    epilog=_example(
        "groundup doctor recipes/storybook.toml",
        "groundup doctor recipes/storybook.toml pretrain.optimizer.learning_rate=0.01 --quick",
        "groundup doctor my-recipe.toml --watts 350 --price-per-hour 2.5",
    )
)
def doctor(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run: Run = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the lines that also come before every training, in seconds.")
    ] = False,
    watts: Annotated[
        float | None, typer.Option(min=0, help="What the machine takes; looked up or assumed if not given.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="Of the machine, in your currency.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as JSON.")] = False,
) -> None:
    """Check a recipe, its texts and this machine before time is spent on them.

    Makes corpus, tokenizer and shards if they are not there yet; trains only throw-away copies. Ends in 0 if nothing
    says stop, else in the exit code of the first line that does.
    """
    from groundup.recipe import examine

    lines: list[Line] = []
    for line in examine(
        recipe, overrides or (), run=run, only_quick=quick, watts=watts, price_per_hour=price_per_hour,
        watch=terminal.watch, say=partial(print, file=sys.stderr),
    ):  # fmt: skip
        if not as_json:
            terminal.print_line(line, first_of_group=not lines or lines[-1].group != line.group)
        lines.append(line)
    stops = [line for line in lines if line.verdict == "stop"]
    code = stops[0].exit_code if stops else 0
    if as_json:
        terminal.print_json({"go": not stops, "exit_code": code, "lines": [vars(line) for line in lines]}, indent=1)
    else:
        cares = sum(line.verdict == "take care" for line in lines)
        care = f", {cares} to take care of" if cares else ""
        print(f"\n{'Stop' if stops else 'Go'}: {len(lines)} checks, {len(stops)} say stop{care}")
        if not stops:
            print(f"\nTry next:\n  {terminal.command('build', recipe, *(overrides or ()))}")
    raise typer.Exit(code)


tokens = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at tokenizers: how they cut a text, and why; which is better, and how large one should be.\n\n"
    "A tokenizer is named by its tokenizer.json, by a directory that holds one, or by a run.",
    epilog=_example('groundup tokens show runs/storybook "Once upon a time"'),
)
app.add_typer(tokens, name="tokens")

TokenizerPath = Annotated[
    Path, typer.Argument(help="A tokenizer.json, a directory with one, or a run.", show_default=False)
]


def _tokenizer_in(path: Path, split: str | None = None, special: "Sequence[str]" = ()) -> "Tokenizer":
    """The tokenizer that a path stands for; of a run, its own. Ranks of an unknown name need `split` and `special`."""
    from groundup.errors import DataError, SettingsError
    from groundup.files import refuse_nothing
    from groundup.tokenizer.tokenizer import Tokenizer

    if path.suffix == ".toml" and path.is_file():
        raise SettingsError(
            f"{path} is a recipe; name what `groundup tokenizer {path}` makes, such as runs/{path.stem}"
        )
    refuse_nothing(path, "tokenizer")
    if not (path / "recipe.toml").is_file() or (path / "tokenizer.json").is_file():
        return Tokenizer.load(path, pattern=split, special=special)
    if not (path / "tokenizer").is_dir():
        raise DataError(f"the run {path} has no tokenizer yet: go on with the command that began it")
    return Tokenizer.load(path / "tokenizer")


@tokens.command(
    epilog=_example(
        'groundup tokens show runs/storybook "Once upon a time"',
        'groundup tokens show runs/storybook "Once upon a time" --html tokens.html',
        "echo 'naïve 👩‍👩‍👧' | groundup tokens show tokenizer.json - --json",
    )
)
def show(
    tokenizer: TokenizerPath,
    text: Annotated[
        str | None,
        typer.Argument(help="The text; without it, or with -, standard input to the last byte.", show_default=False),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file, to the last byte.")] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Recognise the special tokens in the text, else they are ordinary text.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write it as a page, with the tree of merges of each piece.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Show how a text is cut into tokens: their ids and bytes, and the merges that made each piece."""
    from groundup.report import tokens as showing

    loaded = _tokenizer_in(tokenizer)
    explained = showing.explain(str(tokenizer), loaded, _text_given(text, file), special=special)
    if html:
        showing.write_page(explained, html, showing.uses_in(tokenizer, loaded.vocab_size))
    if as_json:
        terminal.print_json(showing.to_json(explained))
        return
    print(f"{explained.summary}\n")
    terminal.print_pieces(showing.shown_pieces(explained))
    if len(explained.ids) > showing.TOKENS_SHOWN:
        print(f"… the first {showing.TOKENS_SHOWN:,} of {len(explained.ids):,} tokens; --json has all")
    print()
    terminal.print_table(showing.token_rows(explained))
    if explained.is_of_a_library:
        print("\nHow it was cut is decided by the tokenizer's own library: its merges are not known here.")
    else:
        print("\nThe merges that made each piece, in the order they happened:\n")
        terminal.print_table(showing.merge_rows(explained))
    if html:
        print(f"\nWith the tree of each piece: {html}")


class _ManyTexts(typer.core.TyperCommand):
    """A command in which `--text` may be followed by several files."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parts: list[str] = []
        in_texts = False
        for word in args:
            if word.startswith("-"):
                in_texts = word == "--text"
                parts += [] if in_texts else [word]
            else:
                parts += ["--text", word] if in_texts else [word]
        if in_texts and args[-1] == "--text":
            parts.append("--text")  # and nothing: refused as any option without its value
        return super().parse_args(ctx, parts)


@tokens.command(
    "compare",
    cls=_ManyTexts,
    epilog=_example(
        "groundup tokens compare runs/storybook gpt2/ --text groundup:storybook groundup:shakespeare",
        "groundup tokens compare a/tokenizer.json b/tokenizer.json --text my-texts --html tokenizers.html",
    ),
)
def compare_tokenizers(
    tokenizers: Annotated[
        list[Path],
        typer.Argument(help="Two or more: a tokenizer.json, a directory with one, or a run.", show_default=False),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Files, folders or packaged corpora, as in a recipe; each is a line of the table."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write all numbers as a page, too.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Set tokenizers side by side on texts: how short each makes them, by file and by script, and how fast."""
    from groundup.evals import tokenizers as comparing

    names = comparing.labels(tokenizers)
    loaded = {name: _tokenizer_in(path) for name, path in zip(names, tokenizers, strict=True)}
    with terminal.watch("compare") as progress:
        found = comparing.compare(loaded, text or [], progress)
    if html:
        from groundup.report.tokenizers import write_page

        write_page(found, html)
    if as_json:
        terminal.print_json(found)
        return
    terminal.print_table(comparing.group_rows(found, most=comparing.SHOWN_SCRIPTS))
    print("\nAll texts:\n")
    terminal.print_table(comparing.fact_rows(found))
    print()
    for line in comparing.verdicts(found):
        print(line)
    if html:
        print(f"\nBy script and file: {html}")


@tokens.command(
    epilog=_example(
        "groundup tokens advise my-texts",
        "groundup tokens advise groundup:storybook --size 3.4M",
        "groundup tokens advise groundup:storybook --model recipes/storybook.toml",
    )
)
def advise(
    texts: Annotated[
        list[str], typer.Argument(help="Files, folders or packaged corpora, as in a recipe.", show_default=False)
    ],
    model: Annotated[Path | None, typer.Option(help="A recipe, whose [model] is meant.", show_default=False)] = None,
    size: Annotated[
        str | None,
        typer.Option(help="About how many parameters, such as 30M; else what `new` would train here in ten minutes."),
    ] = None,
    max_vocab: Annotated[int, typer.Option(help="The largest vocabulary to measure.")] = 65_536,
    as_json: Annotated[bool, typer.Option("--json", help="Print the curve and the advice as JSON.")] = False,
) -> None:
    """Say what vocabulary size suits texts and a model, with the curve and the reasons.

    By the rule of `groundup new`, on more text.
    """
    from groundup.plan import vocabulary
    from groundup.tools.new import split_for
    from groundup.tools.survey import survey

    wanted, split = _model_meant(model, size)
    print("reading the texts", file=sys.stderr)
    sampled = survey(tuple(texts), Path())
    with terminal.watch("measure") as progress:
        pattern = split or split_for(sampled)
        curve = vocabulary.measure(sampled.texts, largest=max_vocab, pattern=pattern, progress=progress)
    advice = vocabulary.advise(curve, wanted(sampled), sampled.train_bytes)
    if as_json:
        terminal.print_json(vocabulary.table(advice, curve))
        return
    terminal.print_table(vocabulary.rows(advice))
    print("\nBytes of text for a million million operations of training:\n")
    print(*vocabulary.chart(advice), sep="\n")
    print()
    for line in vocabulary.reasons(advice, curve):
        print(line)
    print(f"\nIn a recipe:\n\n[tokenizer]\nvocab_size = {advice.vocab_size}")


def _model_meant(recipe: Path | None, size: str | None) -> "tuple[Callable[[Survey], ModelConfig], str | None]":
    """Of surveyed texts the model that a vocabulary is wanted for; and the split pattern, where a recipe says which."""
    from groundup.errors import SettingsError
    from groundup.plan.hardware import this_machine
    from groundup.recipe import Recipe
    from groundup.tools.new import model_of, parameters_in, propose

    if recipe is not None and size is not None:
        raise SettingsError(f"--model {recipe} and --size {size} both set the size: give one of them")
    if recipe is not None:
        chosen = Recipe.load(recipe)
        learned = chosen.tokenizer.split if chosen.tokenizer.kind == "learned" else None
        return (lambda sampled: chosen.model), learned
    if size is not None:
        parameters = parameters_in(size)
        return (lambda sampled: model_of(sampled, this_machine(), parameters)), None
    return (lambda sampled: propose("advice", sampled, this_machine()).model), None


def _text_given(text: str | None, file: Path | None) -> bytes:
    """The bytes of a text that was typed, piped, or named."""
    from groundup.errors import SettingsError
    from groundup.files import reading

    if file is not None:
        if text is not None:
            raise SettingsError(f"two texts are given, {text[:40]!r} and --file {file}: give one of them")
        with reading(file) as stream:
            return stream.read()
    if text is None and sys.stdin.isatty():
        raise SettingsError("give a text: as an argument, through a pipe, or with --file FILE")
    if text is None or text == "-":
        return sys.stdin.buffer.read()
    return text.encode("utf-8", "surrogateescape")


@tokens.command(
    epilog=_example(
        "groundup tokens convert runs/storybook storybook.tiktoken",
        "groundup tokens convert cl100k_base.tiktoken cl100k/tokenizer.json",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="Any file of a tokenizer that is read here, or a run.")],
    target: Annotated[
        Path, typer.Argument(help="By its name: .json as Hugging Face's, .tiktoken ranks, or vocab.bpe of GPT-2's two.")
    ],
    split: Annotated[
        str | None, typer.Option(help="How ranks of an unknown name cut text: the name of a pattern, or an expression.")
    ] = None,
    special: Annotated[list[str] | None, typer.Option(help="A special token of such ranks; may be repeated.")] = None,
) -> None:
    """Write a tokenizer as another kind of file, read it again, and compare."""
    from groundup.tokenizer import formats

    tokenizer = _tokenizer_in(source, split, special or ())
    formats.convert(tokenizer.rules, tokenizer.roles, target)
    print(f"{target}: {tokenizer.vocab_size:,} ids, {len(tokenizer.special):,} of them special")


@tokens.command(
    epilog=_example(
        'groundup tokens extend runs/storybook --add " oak" --out models/oak',
        'groundup tokens extend runs/storybook --special "<|tool|>" --out models/tool',
        "groundup tokens extend runs/storybook --from words.txt --out models/with-words",
    )
)
def extend(
    model: Annotated[
        Path, typer.Argument(help="A run, a model directory, or one as of Hugging Face.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Where the model with more tokens goes.", show_default=False)],
    add: Annotated[
        list[str] | None, typer.Option(help="A text that becomes one token wherever it stands; may be repeated.")
    ] = None,
    words: Annotated[
        Path | None, typer.Option("--from", help="A file of such texts, one a line, blanks at its ends included.")
    ] = None,
    special: Annotated[
        list[str] | None, typer.Option(help="A token that is recognised only where it is allowed; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was added as JSON.")] = False,
) -> None:
    """Add tokens to a trained model. Texts without them keep their ids and their scores.

    A word inside a text has a blank before it, which belongs to the token: --add " photosynthesis".
    """
    from groundup.weights import extend as extending

    added = [*(add or ()), *(extending.read_tokens(words) if words else ())]
    done = extending.extend(model, out, added, special or ())
    if as_json:
        told = {text: {"id": i, "before": done.pieces[text]} for text, i in done.ids.items()}
        terminal.print_json({"model": str(out), "tokens": told, "rows": done.rows})
        return
    rows = [("token", "id", "begins as the mean of")]
    for text, pieces in done.pieces.items():
        rows.append((_quoted(text), f"{done.ids[text]:,}", " ".join(map(_quoted, pieces))))
    terminal.print_table(rows)
    before, after = done.rows
    grown = f"{before:,}, now {after:,}" if after > before else f"{before:,}, as before"
    print(f"\nRows of the model's vocabulary: {grown}\n\nTry next:")
    print(f"  {terminal.command('inspect', out)}")
    print(f"  {terminal.command('generate', out, next(iter(done.ids)))}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


checkpoints = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at the checkpoints of a run: which there are, whether they are whole, how two differ, their mean.\n\n"
    "Where a checkpoint is asked for, a run stands for its newest one.",
    epilog=_example("groundup checkpoint list runs/storybook"),
)
app.add_typer(checkpoints, name="checkpoint")

RunOrCheckpoint = Annotated[Path, typer.Argument(help="A run, or a step-… in it.", show_default=False)]


@checkpoints.command("list", epilog=_example("groundup checkpoint list runs/storybook"))
def list_checkpoints(
    path: RunOrCheckpoint, as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False
) -> None:
    """List the checkpoints of a run: step, time, size, loss, why it is kept, whether it is whole."""
    from groundup.tools import checkpoints as looking

    with terminal.watch("checkpoint") as progress:
        found = looking.listed(path, progress)
    if as_json:
        terminal.print_json(looking.to_json(found))
    else:
        terminal.print_table(looking.list_rows(found))


@checkpoints.command("verify", epilog=_example("groundup checkpoint verify runs/storybook"))
def verify_checkpoints(paths: Annotated[list[Path], typer.Argument(help="Runs or checkpoints.")]) -> None:
    """Compare every byte with the digests that were written down. Ends in 3 when one is another."""
    from groundup.tools import checkpoints as looking

    with terminal.watch("checkpoint") as progress:
        found = [each for path in paths for each in looking.listed(path, progress)]
    looking.refuse_damaged(found)
    terminal.print_table([(each.path, f"{each.bytes:,} bytes", "whole") for each in found])


@checkpoints.command(
    "diff",
    epilog=_example(
        "groundup checkpoint diff runs/a runs/b",
        "groundup checkpoint diff runs/a/pretrain/checkpoints/step-00000200 runs/a",
    ),
)
def diff_checkpoints(
    first: RunOrCheckpoint,
    second: RunOrCheckpoint,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Say how two checkpoints differ: settings, inputs, and how far each weight has moved."""
    from groundup.tools import checkpoints as looking

    found = looking.diff(first, second)
    if as_json:
        terminal.print_json(looking.to_json(found))
        return
    changed = {"step": found.steps, **found.settings, **found.inputs}
    rows = [(name, str(old), str(new)) for name, (old, new) in changed.items() if old != new]
    terminal.print_table([("setting or input", "first", "second"), *rows] if rows else [("the same settings",)])
    print()
    terminal.print_table(looking.diff_rows(found))


@checkpoints.command(
    "average",
    epilog=_example(
        "groundup checkpoint average runs/storybook --out models/mean",
        "groundup checkpoint average runs/storybook --last 3 --out models/mean",
    ),
)
def average_checkpoints(
    paths: Annotated[list[Path], typer.Argument(help="Checkpoints, or a run, all of whose are meant.")],
    out: Annotated[Path, typer.Option(help="Where the model goes.", show_default=False)],
    last: Annotated[int | None, typer.Option(min=2, help="Of a run only so many, the newest.")] = None,
) -> None:
    """Write a model whose weights are the mean of several checkpoints'."""
    from groundup.tools import checkpoints as looking

    with terminal.watch("checkpoint") as progress:
        used = looking.average(paths, out, last, progress)
    print(f"{out}: the mean of {', '.join(directory.name for directory in used)}\n\nTry next:")
    print(f"  {terminal.command('eval', out, 'FILE')}")
    print(f"  {terminal.command('generate', out, 'Once upon a time')}")


def _build(
    recipe: Path, overrides: list[str] | None, run: Path | None, replace: bool, only: str | None, quiet: bool = False
) -> "Built":
    from groundup import recipe as recipes
    from groundup.errors import SavedAndStopped

    say = (lambda text: print(text, file=sys.stderr)) if quiet else print
    try:
        built = recipes.build(
            recipe, overrides or (), run=run, replace=replace, only=only, watch=terminal.watch, say=say
        )
    except terminal.Interrupted:
        raise SavedAndStopped("stopped; the stages that were finished are kept") from None
    if not quiet:
        _show(built, whole=only is None)
    return built


def _show(built: "Built", whole: bool) -> None:
    """The table of stages and, after a whole build, what came out and what to try next."""
    from groundup.artifacts import is_made, read_manifest
    from groundup.recipe import STAGES

    manifests = {
        stage.name: read_manifest(built.run / stage.directory)
        for stage in STAGES
        if is_made(built.run / stage.directory)
    }
    rows = [("stage", "time", "in", "out", "digest")]
    for row in built.rows:
        read, wrote = _in_and_out(row.stage, manifests, built.run)
        took = f"{row.seconds:.1f} s" if row.what == "made" else row.what
        rows.append((row.stage, took, read, wrote, row.digest[:12]))
    print()
    terminal.print_table(rows)
    if not whole:
        return
    test = manifests["eval"].statistics["test"]
    error = "" if test["standard_error"] is None else f" ± {test['standard_error']:.3f}"
    print(f"\n{test['bits_per_byte']:.3f}{error} bits per byte on {test['documents']} documents it never saw\n")
    samples = json.loads((built.run / "evals" / "samples.json").read_bytes())
    for sample in samples:
        print(f"“{sample['prompt']}{sample['text']}”\n")
    print("Try next:")
    prompt = next((sample["prompt"] for sample in samples if sample["prompt"]), "")
    print(f"  {terminal.command('chat', built.run)}")
    print(f"  {terminal.command('generate', built.run, prompt, '--seed', 7)}")
    print(f"  open {built.run / 'report.html'} in a browser")
    print(f"  {terminal.command('new', 'my-model', '--from', 'FOLDER')}        (a recipe for texts of your own)")


def _in_and_out(stage: str, manifests: dict[str, "Manifest"], run: Path) -> tuple[str, str]:
    """What a stage read and what it wrote, in a few words."""
    facts: dict[str, Any] = {name: manifest.statistics for name, manifest in manifests.items()}

    def total(name: str, key: str) -> int:
        return sum(int(facts[name][split][key]) for split in ("train", "validation", "test"))

    match stage:
        case "corpus":
            read = facts["corpus"]["read"]
            kept = f"{total('corpus', 'documents'):,} documents, {total('corpus', 'bytes') / 1e6:.1f} MB"
            return f"{read['documents']:,} documents, {read['bytes'] / 1e6:.1f} MB", kept
        case "tokenizer":
            return f"{facts['corpus']['train']['documents']:,} documents", f"{facts['tokenizer']['vocab_size']:,} ids"
        case "pack":
            packed = (
                f"{total('pack', 'tokens'):,} tokens, {total('pack', 'bytes') / total('pack', 'tokens'):.2f} bytes each"
            )
            return f"{total('corpus', 'documents'):,} documents", packed
        case "pretrain":
            model = facts["pretrain"]
            size = f"{sum(model['parameters'].values()) / 1e6:.1f} M parameters"
            validation = f"{model['validation_bits_per_byte']:.3f} bits per byte (validation)"
            return f"{model['tokens']:,} tokens", f"{size}, {validation}"
        case "eval":
            test = facts["eval"]["test"]
            return f"{test['documents']:,} documents", f"{test['bits_per_byte']:.3f} bits per byte (test)"
        case _:
            return "all of the above", str(run / "report.html")


def main() -> None:
    """The command `groundup`."""
    terminal.open_standard_streams()
    sys.exit(terminal.run(app))
