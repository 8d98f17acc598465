"""Published model sizes by name, with what was published about training them, from `presets.toml`."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from groundup.model.settings import ModelConfig


@dataclass(frozen=True)
class Preset:
    """A published size."""

    model: ModelConfig
    source: str
    """Where its numbers are from."""
    parameters: int | None
    """Exact, as published for the released weights or computed from their shapes; None where none were released."""
    batch_tokens: int | None
    """Tokens a step; None where it was not published."""
    learning_rate: float | None
    """At the top of its schedule; None where it was not published."""


def _read(path: Path) -> dict[str, Preset]:
    tables = tomllib.loads(path.read_text("utf-8"))
    families = tables["families"]
    for name, family in families.items():  # each stands below the one that it is like
        elder = families[family["like"]] if "like" in family else {}
        families[name] = {**elder, **family, "blocks": elder.get("blocks", {}) | family["blocks"]}
    presets = {}
    for name, sizes in tables["sizes"].items():
        family = families[sizes.pop("family")]
        published = {what: sizes.pop(what, None) for what in ("parameters", "batch_tokens", "learning_rate")}
        presets[name] = Preset(ModelConfig.from_table(family["blocks"] | sizes, name), family["source"], **published)
    return presets


PRESETS: dict[str, Preset] = _read(Path(__file__).with_suffix(".toml"))
