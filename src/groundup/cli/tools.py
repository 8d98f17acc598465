"""Commands that take a model, a run or any file: generate, chat, inspect, trace, compare, tasks, judge,
watch, bench, verify."""

import contextlib
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from groundup.cli import terminal
from groundup.cli.options import AsJson, Device, Model, Overrides, PackedIn, RecipeFile, example

app = typer.Typer()
Port = Annotated[int, Option(help="Where to listen, on this machine only; 0 takes any.", min=0, max=65_535)]
OpenPage = Annotated[bool, Option("--open", help="Open the page in a browser.")]


def _sampling_words(begun: str) -> list[str]:
    from groundup.generation.settings import Sampling

    return [f"{name}=" for name in Sampling.model_fields if name.startswith(begun)]


WORDS = {"ignore_unknown_options": True}
"""So that `--temperature 0.5`, as scripts write it, comes among the words, where it is read as `temperature=0.5`."""
SAMPLING = "how to sample: max_tokens, temperature, top_k, top_p, min_p, seed, stop, regex, json_schema, …"


@app.command(context_settings=WORDS, epilog=example("generate"))
def generate(
    model: Model,
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="PROMPT|KEY=VALUE",
            help="What to continue; - reads it from standard input, as does none where that is no terminal. And "
            + SAMPLING,
            autocompletion=_sampling_words,
        ),
    ] = None,
    samples: Annotated[
        int, Option("--samples", "-n", min=1, help="How many texts after each prompt, each with the next seed.")
    ] = 1,
    probabilities: Annotated[
        bool, Option("--probabilities", help="Each token with its probability and what else it might have been.")
    ] = False,
    precision: PackedIn = None,
    draft: Annotated[
        str | None,
        Option(
            metavar="MODEL|lookup",
            help="What guesses ahead: a small model of the same tokenizer, or the text so far. The same text, in fewer "
            "steps.",
        ),
    ] = None,
    device: Device = None,
    as_json: Annotated[
        bool,
        Option("--json", help="A line of JSON for each text; each line of standard input is then a prompt of its own."),
    ] = False,
) -> None:
    """Let a model continue a text, or many at once."""
    from groundup.generation.text import Writer, described
    from groundup.tools.generate import ALTERNATIVES, load_writer, probability_rows, prompt_and_settings, proposer

    typed, settings = prompt_and_settings(words or ())
    loaded, tokenizer, sampling = load_writer(model, device, settings)
    prompt = _read_prompt(typed)
    prompts = prompt.splitlines() or [""] if as_json and typed is None else [prompt]
    writer = Writer(
        loaded,
        tokenizer,
        precision=precision,
        proposer=proposer(loaded, draft, device),
        most_requests=min(64, samples * len(prompts)),
    )
    best = ALTERNATIVES + 1 if probabilities else None
    answers = [
        (prompt, seed, writer.submit(prompt, sampling.model_copy(update={"seed": seed}), best=best))
        for seed, prompt in enumerate((each for each in prompts for _ in range(samples)), sampling.seed)
    ]
    for number, (prompt, seed, answer) in enumerate(answers):
        parts = writer.parts(answer)
        if as_json:
            result = {"prompt": prompt, "text": "".join(parts), "seed": seed}
            told = {"tokens": described(tokenizer, answer.request.chosen, ALTERNATIVES)} if probabilities else {}
            terminal.print_json(result | told)
            continue
        if samples > 1:
            print(f"{'' if number == 0 else chr(10)}[seed {seed}]")
        print(prompt, end="", flush=True)
        for part in parts:
            print(part, end="", flush=True)
            if not terminal.has_reader():
                return
        print()
        if probabilities:
            print()
            terminal.show(probability_rows(described(tokenizer, answer.request.chosen, ALTERNATIVES)))


def _read_prompt(typed: str | None) -> str:
    """A prompt that was typed or comes through standard input, whose line ends at its end are left out; bytes that are
    not text become U+FFFD, with a warning."""
    raw = terminal.typed_or_piped(typed) or b""
    if typed in (None, "-"):
        raw = raw.rstrip(b"\r\n")
    encoding = sys.stdin.encoding
    for each in ("utf-8", encoding):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(each)
    warnings.warn(f"the text has bytes that are not {encoding}: they are read as U+FFFD", stacklevel=2)
    return raw.decode(encoding, "replace")


@app.command(context_settings=WORDS, epilog=example("chat"))
def chat(
    model: Model,
    words: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help=SAMPLING.capitalize(), autocompletion=_sampling_words)
    ] = None,
    device: Device = None,
) -> None:
    """Converse with a model in the terminal. One that was only pretrained continues your text."""
    from groundup.cli.chat import REPLY_TOKENS, Conversation, talk, typed_lines
    from groundup.errors import SettingsError
    from groundup.tools.generate import load_writer, prompt_and_settings
    from groundup.weights.files import chat_of

    typed, settings = prompt_and_settings(words or ())
    if typed is not None:
        raise SettingsError(f"{typed!r} is not of the form key=value, such as temperature=0.5")
    how = chat_of(model)
    most = {"max_tokens": REPLY_TOKENS} if how is None else {}
    loaded, tokenizer, sampling = load_writer(model, device, settings, **most)
    if sys.stdin.isatty():
        base = (
            f"{model} is a base model: it was not taught to answer, it only continues text. Begin one, and write it "
            "together.\n"
        )
        print(f"{base if how is None else ''}/help lists what else can be done; /quit ends.")
    talk(Conversation(loaded, tokenizer, sampling, how), typed_lines())


@app.command("import", epilog=example("import"))
def import_(
    source: Annotated[Path, Argument(help="A GGUF file, a Hugging Face directory, or a model of llama2.c.")],
    out: Annotated[Path | None, Option(help="Where it goes; models/ and the name of the source if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a model of others a model directory like our own, with its tokenizer and chat template.

    Nothing of a pickle is read. What is written is read back, and every number compared, before it gets its name.
    """
    from groundup.tools.importing import import_model

    directory, manifest = import_model(source, out)
    counted = sum(manifest.statistics["parameters"].values())
    facts = {"model": str(directory), "parameters": counted, "digest": manifest.digest}
    then = [terminal.command("inspect", directory), terminal.command("generate", directory, "Once upon a time")]
    terminal.show(f"{source} is now {directory}", terminal.fact_rows(facts), then=then, instead=as_json and facts)


@app.command(epilog=example("inspect"))
def inspect(
    path: Annotated[Path, Argument(help="A run, an artifact, a model, a recipe, or a file.")],
    as_json: AsJson = False,
) -> None:
    """Say what something is, what made it, from what, whether it is whole, and what to do with it.

    Every byte is compared with the digests that were written down. Nothing is run, and no pickle is opened.
    """
    from groundup.tools import inspect as inspection

    with terminal.watch("inspect") as progress:
        findings = inspection.inspect(path, progress)
    table = as_json and {**vars(findings), "path": str(findings.path)}
    then = [] if findings.damage else findings.next
    terminal.show(f"{findings.path}: {findings.what}", terminal.fact_rows(findings.facts), then=then, instead=table)
    findings.refuse_damage()


@app.command(epilog=example("trace"))
def trace(
    corpus: Annotated[Path, Argument(help="A corpus, or a run that has one.")],
    text: Annotated[str, Argument(help="A sentence, such as one that a model wrote; - reads standard input.")],
    most: Annotated[int, Option(min=1, help="How many documents.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Say which training documents have the longest runs of words of a text, each with the passage.

    Case and punctuation do not count. Every document is read; there is no index to make first.
    """
    from groundup.tools import trace as tracing

    with terminal.watch("trace") as progress:
        traced = tracing.trace(corpus, _read_prompt(text), most, progress)
    none = "" if traced else "No training document has one of its words."
    terminal.show(tracing.rows(traced), none, instead=as_json and [asdict(each) for each in traced])


@app.command(epilog=example("compare"))
def compare(
    runs: Annotated[list[Path], Argument(help="Two or more finished runs; or two models that were asked benchmarks.")],
    out: Annotated[Path | None, Option(help="Where the page goes; beside the first run if not given.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print it as JSON; a page is written only with --out.")] = False,
) -> None:
    """Set runs side by side: settings that differ, scores, costs, curves, samples, and benchmarks item by item."""
    from groundup.evals.compare import compare as compare_tasks
    from groundup.report import compare as comparing
    from groundup.tools import examined

    results = examined.results_of(runs)
    differences, notes = compare_tasks(*map(examined.results_directory, runs)) if len(results) == 2 else ([], [])
    tasks = {"tasks": [asdict(each) for each in differences], "task_notes": notes}
    table = examined.difference_rows(differences) if len(results) < 3 else examined.spread_rows(runs, results)
    said = (table if results else (), "\n".join(notes))
    if results and not all((run / "recipe.toml").is_file() for run in runs):
        terminal.show(*said, instead=as_json and tasks)
        return
    finished = comparing.read_all(runs)
    comparison = comparing.compare(finished)
    page = out or (None if as_json else comparing.default_page(finished))
    if page:
        comparing.write_page(finished, comparison, page)
    verdicts, instead = "\n".join(comparison.verdicts), as_json and asdict(comparison) | tasks
    terminal.show(comparison.rows, verdicts, *said, f"With curves and samples: {page}", instead=instead)


@app.command(epilog=example("tasks"))
def tasks(
    names: Annotated[list[str] | None, Argument(metavar="TASK", help="Tasks or suites; all if not given.")] = None,
    data: Annotated[Path | None, Option(help="The folder that has the benchmark files, anywhere below.")] = None,
    dump: Annotated[
        Path | None,
        Option(help="Write the items of each task as TASK.jsonl into this folder, to look for them in texts."),
    ] = None,
    fetch: Annotated[
        bool, Option("--fetch", help="First get what --data lacks from the Hugging Face hub, where the hub has it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the benchmarks: which file each needs, how it is scored, what chance gets; or write their items."""
    from groundup.errors import SettingsError
    from groundup.tools import tasks as listing

    if (data is not None) != (dump is not None or fetch):
        raise SettingsError("--data is the folder of the benchmark files for --dump and --fetch: give it with them")
    if data is None:
        listed = listing.list_tasks(names or ())
        terminal.show(listing.rows(listed), instead=as_json and [asdict(each) for each in listed])
        return
    with terminal.watch("tasks") as progress:
        fetched = listing.fetch_missing(names or (), data) if fetch else []
        written = listing.dump(names or (), data, dump, progress) if dump else {}
    rows = [[name, f"{n:,} items" if isinstance(n, int) else f"not written: {n}"] for name, n in written.items()]
    got = f"Fetched into {data}: {', '.join(fetched)}" if fetched else ""
    terminal.show(got, rows, instead=as_json and {"fetched": fetched, "written": written})


@app.command(epilog=example("judge"))
def judge(
    first: Annotated[Path, Argument(metavar="A.JSONL", help="Answers of a model: lines of generate --json.")],
    second: Annotated[Path, Argument(metavar="B.JSONL", help="Another's, to the same prompts.")],
    by: Annotated[str, Option(metavar="URL", help="Where the judge answers, such as http://localhost:8000/v1.")],
    model: Annotated[str, Option(help="Its name there.")],
    key_file: Annotated[Path | None, Option(help="The file with the key of the address; it is never shown.")] = None,
    out: Annotated[Path | None, Option(help="Write a line of JSON for each pair, with both verdicts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let another model say which of two models answers better.

    It is asked about each pair twice, with the answers exchanged: only what both orders say is a win.
    """
    from groundup.evals.judge import Judge, judge_pairs, judgement
    from groundup.tools import judge as judging

    pairs = judging.read_pairs(first, second)
    with terminal.watch("judge") as progress:
        judged = judge_pairs(Judge(by, model, judging.read_key(key_file)), pairs, progress=progress)
    if out:
        judging.write_pairs(out, judged)
    result = judgement(judged)
    terminal.show(judging.rows(result, (str(first), str(second))), instead=as_json and asdict(result))


@app.command("watch", epilog=example("watch"))
def watch_runs(
    runs: Annotated[list[Path], Argument(help="Runs, or folders with runs.")],
    port: Port = 8470,
    open_page: OpenPage = False,
) -> None:
    """Show the training of runs as a live page: curves, health, samples, events, side by side.

    From elsewhere, through a tunnel: ssh -L 8470:localhost:8470 MACHINE
    """
    from groundup.report.watch import watch

    with contextlib.suppress(terminal.Interrupted):  # ending is what Ctrl-C is for here
        watch(runs, port, open_page)


@app.command(epilog=example("browse"))
def browse(
    corpus: Annotated[Path, Argument(help="A run, or the corpus directory of one.")],
    port: Port = 8471,
    open_page: OpenPage = False,
) -> None:
    """Look into a corpus in a browser: its documents, what was dropped and why, near copies side by side."""
    from groundup.report import browse

    with contextlib.suppress(terminal.Interrupted):
        browse.browse(corpus, port, open_page)


@app.command(epilog=example("bench"))
def bench(
    target: Annotated[Path, Argument(help="A recipe, or a run with shards; with --generate a model.")],
    overrides: Overrides = None,
    generate: Annotated[bool, Option("--generate", help="Measure how fast a trained model writes.")] = False,
    precision: PackedIn = None,
    steps: Annotated[int | None, Option(min=1, help="Steps to measure; about ten seconds if not given.")] = None,
    trace: Annotated[Path | None, Option(help="Write a profiler's trace of two steps, such as trace.json.gz.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a recipe trains here, or a model writes, and how near that is to the machine's limit.

    A throw-away model is trained on the recipe's own rows; nothing of it is kept.
    """
    if generate:
        from groundup.errors import SettingsError
        from groundup.tools import bench_generation

        if overrides or steps or trace:
            raise SettingsError("--generate measures a model as it is: leave out settings, --steps and --trace")
        with terminal.watch("bench") as progress:
            speed = bench_generation.bench_generation(target, precision, progress=progress)
        terminal.show(bench_generation.rows(speed), instead=as_json and speed.table())
        return
    from groundup.tools import bench as benching

    measured = benching.bench(
        target, overrides or (), steps=steps, trace=trace, watch=terminal.watch, say=terminal.say(as_json)
    )
    operations = benching.operation_rows(measured)
    longest = "Operations that took most time themselves, of a step:" if operations else ""
    wrote = f"Wrote {trace}: open it in a browser at chrome://tracing, or in Perfetto." if trace else ""
    terminal.show(benching.rows(measured), longest, operations, wrote, instead=as_json and measured.table())


@app.command(epilog=example("launch"))
def launch(
    recipe: RecipeFile,
    overrides: Overrides = None,
    nodes: Annotated[int, Option(min=1, help="Machines.")] = 1,
    ranks_per_node: Annotated[int, Option(min=1, help="Processes on each of them; as many as it has GPUs.")] = 8,
    slurm: Annotated[bool, Option("--slurm", help="Write NAME.sbatch, to be submitted with sbatch.")] = False,
    hours: Annotated[float, Option(min=0.1, help="Time limit of one stay in Slurm's queue.")] = 24.0,
    first_node: Annotated[str, Option(help="Name or address of the first machine, where not under Slurm.")] = "FIRST",
) -> None:
    """Write how to build a recipe on many machines: a Slurm script, or the line to run on each of them.

    [parallel] is checked against the number of ranks. Preempted, or out of time, a job saves and queues again.
    """
    from groundup.files import write_text
    from groundup.tools.launch import Launch

    job = Launch(recipe, overrides or (), nodes, ranks_per_node)
    if slurm:
        script = Path(f"{job.recipe.name}.sbatch")
        write_text(script, job.slurm(terminal.command(*sys.argv[1:]), hours))
        terminal.show(f"Wrote {script}: {job.layout}", job.warning, then=[f"sbatch {script}"])
    else:
        terminal.show(job.layout, job.warning, job.lines(first_node).rstrip())


@app.command(epilog=example("rehearse"))
def rehearse(
    recipe: RecipeFile,
    overrides: Overrides = None,
    ranks: Annotated[int, Option("--ranks", min=1, help="How many ranks the layout is for.")] = 1,
    gpu: Annotated[str, Option(help="Of what kind: its memory is what must suffice.")] = "H100",
    as_json: AsJson = False,
) -> None:
    """Say what each rank of a layout would hold and send in a step, and what does not divide: without GPUs.

    The real model is cut up for every kind of rank, on tensors without values, and takes a step.
    """
    from groundup.tools import rehearse as rehearsing

    settings, model, memory = rehearsing.read(recipe, overrides or (), gpu)
    rehearsal = rehearsing.rehearse(model, settings.pretrain, settings.parallel, ranks)
    blocks: list[terminal.Block] = [
        rehearsing.summary_rows(rehearsal),
        rehearsing.memory_rows(rehearsal, memory),
        rehearsing.advice(rehearsal, settings.pretrain, memory),
    ]
    for kind in rehearsal.kinds:
        blocks += [f"Exchanges of {kind.name}:", rehearsing.collective_rows(kind)]
    blocks.append("\n".join(rehearsal.remarks))
    terminal.show(*blocks, instead=as_json and rehearsing.table_of(rehearsal))


@app.command(epilog=example("verify"))
def verify(
    recipe: RecipeFile,
    overrides: Overrides = None,
    ranks: Annotated[int | None, Option(min=2, help="How many; as few as [parallel] has if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that many ranks train a recipe as one process does, or say where not. Ends in 2 if they do not.

    The recipe is shrunk and trained in float64 by as many processes of this machine as the layout has ranks, at most 8,
    and by one: losses, gradient norms, every gradient and the final weights are compared.
    """
    from groundup.tools import verify as verifying

    with terminal.watch("verify") as progress:
        verdict = verifying.verify(recipe, overrides or (), ranks, progress)
    where = () if verdict.is_equal else (verifying.places(verdict), verifying.likely(verdict))
    table = as_json and verdict.table()
    terminal.show(verifying.layout_words(verdict), verifying.rows(verdict), *where, instead=table)
    verdict.refuse_unequal()
