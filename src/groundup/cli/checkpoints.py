"""Commands that look at checkpoints: list, verify, diff, average."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from groundup.cli import terminal
from groundup.cli.options import AsJson, example

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at the checkpoints of a run: which there are, whether they are whole, how two differ, their mean.\n\n"
    "Where a checkpoint is asked for, a run stands for its newest one.",
    epilog=example("checkpoint list"),
)

RunOrCheckpoint = Annotated[Path, Argument(help="A run, or a step-… in it.")]


@app.command("list", epilog=example("checkpoint list"))
def list_checkpoints(path: RunOrCheckpoint, as_json: AsJson = False) -> None:
    """List the checkpoints of a run: step, time, size, loss, why it is kept, whether it is whole."""
    from groundup.tools import checkpoints as looking

    with terminal.watch("checkpoint") as progress:
        found = looking.list_checkpoints(path, progress)
    terminal.show(looking.list_rows(found), instead=as_json and [asdict(each) for each in found])


@app.command("verify", epilog=example("checkpoint verify"))
def verify_checkpoints(paths: Annotated[list[Path], Argument(help="Runs or checkpoints.")]) -> None:
    """Compare every byte with the digests that were written down. Ends in 3 when one is another."""
    from groundup.tools import checkpoints as looking

    with terminal.watch("checkpoint") as progress:
        found = [each for path in paths for each in looking.list_checkpoints(path, progress)]
    looking.refuse_damaged(found)
    terminal.show([(each.path, f"{each.bytes:,} bytes", "whole") for each in found])


@app.command("diff", epilog=example("checkpoint diff"))
def diff_checkpoints(first: RunOrCheckpoint, second: RunOrCheckpoint, as_json: AsJson = False) -> None:
    """Say how two checkpoints differ: settings, inputs, and how far each weight has moved."""
    from groundup.tools import checkpoints as looking

    found = looking.diff(first, second)
    terminal.show(looking.setting_rows(found), looking.weight_rows(found), instead=as_json and asdict(found))


@app.command("average", epilog=example("checkpoint average"))
def average_checkpoints(
    paths: Annotated[list[Path], Argument(help="Checkpoints, or a run, all of whose are meant.")],
    out: Annotated[Path, Option(help="Where the model goes.")],
    last: Annotated[int | None, Option(min=2, help="Of a run only so many, the newest.")] = None,
) -> None:
    """Write a model whose weights are the mean of several checkpoints'."""
    from groundup.tools import checkpoints as looking

    with terminal.watch("checkpoint") as progress:
        used = looking.average(paths, out, last, progress)
    then = [terminal.command("eval", out, "FILE"), terminal.command("generate", out, "Once upon a time")]
    terminal.show(f"{out}: the mean of {', '.join(directory.name for directory in used)}", then=then)
