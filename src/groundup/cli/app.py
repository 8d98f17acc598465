"""The command line: every command of `groundup`, and how the program begins and ends.

One function a command, in the modules beside this one: it parses, calls, and prints. A room is imported when its
command runs, so `--help` is quick.
"""

import sys
from typing import Annotated

import typer
from typer import Option

from groundup.cli import checkpoints, stages, terminal, tokens, tools

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Build a language model from the ground up, on your own text.\n\n"
    "Begin with:  groundup build recipes/storybook.toml",
)
app.add_typer(stages.app)
app.add_typer(tools.app)
app.add_typer(tokens.app, name="tokens")
app.add_typer(checkpoints.app, name="checkpoint")


@app.callback()
def groundup(
    debug: Annotated[bool, Option(terminal.DEBUG, help="Show where in the code an error arose; in any place.")] = False,
) -> None:
    # `debug` is taken out of the command line by terminal.run; here it is only listed.
    pass


def main() -> None:
    """The command `groundup`."""
    terminal.open_standard_streams()
    sys.exit(terminal.run(app))
