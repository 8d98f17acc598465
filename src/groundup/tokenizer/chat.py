"""Chat: how a model is talked to. Its `chat.json` names the layout; `text` is that of a base model, which has none."""

import json
from pathlib import Path

from groundup.errors import DataError, UnsupportedError

FILE = "chat.json"
CONTINUES_TEXT = {"layout": "text"}
"""What pretraining writes: the model continues text, and was not taught to answer."""


def layout_of(model_directory: Path) -> str:
    """The layout that the model was taught; `text` where nothing is said.

    Raises:
        UnsupportedError: a layout that is not known here.
        DataError: a file that is damaged.
    """
    path = model_directory / FILE
    if not path.is_file():
        return CONTINUES_TEXT["layout"]
    try:
        layout = json.loads(path.read_bytes())["layout"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if layout != CONTINUES_TEXT["layout"]:
        raise UnsupportedError(f"{path} asks for the layout {layout!r}; this version knows text")
    return str(layout)
