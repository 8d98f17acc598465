"""Arguments and options that several commands share, declared once, and the examples under their help."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

EXAMPLES = Path(__file__).with_name("examples.txt").read_text("utf-8").splitlines()
"""Command lines, those of one command below each other."""


def example(command: str) -> str:
    """The examples of a command as the end of its help, which keeps their lines."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in EXAMPLES if f"groundup {command} " in line)


RecipeFile = Annotated[Path, Argument(help="A recipe, such as recipes/storybook.toml.")]
Overrides = Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help="Settings, such as pretrain.steps=500.")]
Run = Annotated[Path | None, Option("--run", help="The run directory; runs/NAME if not given.")]
Ranks = Annotated[int, Option("--ranks", min=1, help="Processes that train together, as [parallel] says.")]
Replace = Annotated[bool, Option("--replace", help="Make again the stages that no longer fit the recipe.")]
Model = Annotated[Path, Argument(help="A run or a model directory.")]
Device = Annotated[str | None, Option(help="Such as cpu or cuda; the best present if not given.")]
PackedIn = Annotated[
    Literal["bfloat16", "int8", "int4"] | None,
    Option(
        "--precision", help="Pack the weights so for this processor: fewer bytes to read; int8 and int4 round them."
    ),
]
Page = Annotated[Path | None, Option("--html", help="Write it as a page, too.")]
AsJson = Annotated[bool, Option("--json", help="Print the same as JSON.")]
