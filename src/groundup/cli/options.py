"""Arguments and options that several commands share, declared once, and the examples under their help."""

from pathlib import Path
from typing import Annotated

import typer


def example(*lines: str) -> str:
    """An epilog that keeps its lines."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


RecipeFile = Annotated[Path, typer.Argument(help="A recipe, such as recipes/storybook.toml.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as pretrain.steps=500.")
]
Run = Annotated[Path | None, typer.Option("--run", help="The run directory; runs/NAME if not given.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Make stages again that no longer fit the recipe, instead of stopping.")
]
Model = Annotated[Path, typer.Argument(help="A run or a model directory.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda; the best present if not given.")]
Page = Annotated[Path | None, typer.Option("--html", help="Write it as a page, too.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the same as JSON.")]
