"""groundup: build a language model from the ground up, on your own text.

The public names below are imported when they are first used, so `import groundup` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundup.building import build as build
    from groundup.generation.engine import Engine as Engine
    from groundup.generation.text import generate as generate
    from groundup.model.settings import ModelConfig as ModelConfig
    from groundup.model.transformer import Transformer as Transformer
    from groundup.tokenizer.tokenizer import Tokenizer as Tokenizer
    from groundup.weights.load import load as load

_HOME = {
    "Engine": "groundup.generation.engine",
    "ModelConfig": "groundup.model.settings",
    "Tokenizer": "groundup.tokenizer.tokenizer",
    "Transformer": "groundup.model.transformer",
    "build": "groundup.building",
    "generate": "groundup.generation.text",
    "load": "groundup.weights.load",
}
__all__ = ["Engine", "ModelConfig", "Tokenizer", "Transformer", "build", "generate", "load"]


def __getattr__(name: str) -> Any:
    """PEP 562: import the room that a public name lives in."""
    if name not in _HOME:
        raise AttributeError(f"groundup has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
