"""Models of published architectures: their settings and the names of their tensors into ours, and back.

`architectures.toml` says how each names what our blocks have in Hugging Face's directories; `gguf.toml`, in GGUF files.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from groundup.errors import DataError, GroundupError, SettingsError
from groundup.model.settings import ModelConfig
from groundup.settings import differences, flatten, nested
from groundup.weights.configs import Setting, Table, filled, require, setting_of
from groundup.weights.layouts import LAYOUTS, Tensors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Architecture:
    """How one published architecture maps to ours; the fields are explained in `architectures.toml`."""

    settings: Mapping[str, Setting]
    prefix: str
    names: Mapping[str, str]
    layout: str = "ours"
    blocks: Table = field(default_factory=dict)
    only: Table = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    buffers: Sequence[str] = ()

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor of a model's files is a mask or angles."""
        return any(_pattern(buffer).fullmatch(name.removeprefix(self.prefix)) for buffer in self.buffers)


Naming = Literal["architectures", "gguf"]
"""Whose names: the file beside this one that has them."""


@cache
def architectures(naming: Naming = "architectures") -> dict[str, Architecture]:
    """All that are known, by `model_type` of a config.json, or by `general.architecture` of a GGUF file."""
    tables = tomllib.loads(Path(__file__).with_name(f"{naming}.toml").read_text("utf-8"))
    shared, activations = tables.pop("shared"), tables.pop("activations", {})
    whole = {kind: _inherit(table, shared) for kind, table in tables.items()}
    for table in whole.values():
        table["settings"] = {name: setting_of(name, how, activations) for name, how in table["settings"].items()}
    return {kind: Architecture(**table) for kind, table in whole.items()}


def _inherit(table: Table, shared: Table) -> dict[str, Any]:
    """The table with what it has of the shared ones; of what both have, its own."""
    own = dict(table)
    above = _inherit(shared[own.pop("like")], shared) if "like" in own else {}
    pairs = (map(_each, pair) for pair in table.get("names", {}).items())
    names = {theirs: ours for pair in pairs for theirs, ours in zip(*pair, strict=True)}
    settings = {**above.get("settings", {}), **table.get("settings", {})}
    return {**above, **own, "settings": settings, "names": {**above.get("names", {}), **names}}


def _each(template: str) -> list[str]:
    """
    >>> _each("attn_{q,k}_norm"), _each("wte")
    (['attn_q_norm', 'attn_k_norm'], ['wte'])
    """
    before, _, rest = template.partition("{")
    among, _, after = rest.partition("}")
    return [f"{before}{each}{after}" for each in among.split(",")]


def read_config(table: Table, naming: Naming = "architectures") -> ModelConfig:
    """Our config for a `config.json`, or its like, whose `model_type` is in `architectures(naming)`.

    Raises:
        DataError: naming a setting that our blocks cannot represent, or one that is missing.
    """
    architecture = architectures(naming)[table["model_type"]]
    if table.get("quantization_config"):
        raise DataError(
            "config.json has quantization_config: quantized weights are not read here; ask for bfloat16 ones"
        )
    for name, value in {"is_encoder_decoder": False, "add_cross_attention": False, **architecture.only}.items():
        require(table, name, value)
    given = dict(table)
    for alias, name in architecture.aliases.items():
        if alias in given and given.setdefault(name, given[alias]) != given[alias]:
            raise DataError(
                f"config.json has {alias} = {given[alias]!r} and {name} = {given[name]!r}, which are the same"
            )
    ours = flatten(architecture.blocks)
    try:
        for each in architecture.settings.values():
            ours |= each.read(given)
    except KeyError as error:
        raise DataError(f"config.json does not say {error}") from None
    d_model, n_heads = ours["d_model"], ours["n_heads"]
    usual = {"n_kv_heads": n_heads, "d_head": d_model // n_heads, "d_ff": 4 * d_model}.items()  # as if not set
    said = {name: value for name, value in ours.items() if (name, value) not in usual}
    return ModelConfig.from_table(nested(said), "config.json")


def write_config(kind: str, config: ModelConfig, naming: Naming = "architectures") -> dict[str, Any]:
    """The `config.json` of architecture `kind` for our config. It is read back to see that it says all of it.

    Raises:
        SettingsError: naming the settings that this architecture cannot have.
    """
    ours, table = filled(config), {"model_type": kind}
    for each in architectures(naming)[kind].settings.values():
        table |= each.write(ours)
    if naming == "gguf":  # it has no null
        table = {name: value for name, value in table.items() if value is not None}
    try:
        lost = differences(_rounded(ours, naming), _rounded(filled(read_config(table, naming)), naming))
    except (DataError, SettingsError) as error:
        raise SettingsError(f"the model cannot be written as {kind}: {error}") from None
    others = [name.removesuffix("kind") for name in lost if name.endswith(".kind")]  # which need not be compared within
    lost = {name: lost[name] for name in lost if not any(name != f"{at}kind" and name.startswith(at) for at in others)}
    if lost:
        listed = "; ".join(f"model.{name} is {ours!r}, there {theirs!r}" for name, (ours, theirs) in lost.items())
        raise SettingsError(f"the model cannot be written as {kind}: {listed}")
    return table


def published_kind(config: ModelConfig, naming: Naming = "architectures") -> str:
    """The first architecture in the file of this naming that says all of our config.

    Raises:
        SettingsError: with what the nearest of them cannot say.

    >>> published_kind(ModelConfig(vocab_size=320))
    'llama'
    """
    reasons = []
    for kind in architectures(naming):
        try:
            write_config(kind, config, naming)
        except SettingsError as error:
            reasons.append(str(error))
        else:
            return kind
    nearest = min(reasons, key=lambda reason: reason.count(", there ") or len(reason))
    known = ", ".join(architectures(naming))
    raise SettingsError(f"no architecture known here says all of this model ({known}): {nearest}")


def _rounded(values: Table, naming: Naming) -> dict[str, Any]:
    digits = 6 if naming == "gguf" else 12  # it has float32 alone
    return {n: float(f"{value:.{digits}g}") if isinstance(value, float) else value for n, value in values.items()}


@contextmanager
def refusing_contradictions(origin: object) -> Iterator[None]:
    """Turn every error about a published description that makes no model into a `DataError` that names `origin`."""
    try:
        yield
    except SettingsError as error:
        _, *why = str(error).split("\n  ")  # the first line says whose settings they are
        raise DataError(f"{origin} describes a model that cannot be: {'; '.join(why) or error}") from None
    except DataError as error:
        raise type(error)(str(error).replace("config.json", str(origin), 1)) from None
    except GroundupError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise DataError(f"{origin} describes a model that cannot be: {error}") from None


def from_published(
    kind: str, config: ModelConfig, tensors: Tensors, naming: Naming = "architectures"
) -> "dict[str, Tensor]":
    """The tensors of architecture `kind` under our names, in our layout; a name that is not known is kept."""
    architecture = architectures(naming)[kind]
    renamed = {}
    for name, tensor in tensors.items():
        if not architecture.is_buffer(name):
            module, _, part = name.removeprefix(architecture.prefix).rpartition(".")
            renamed[f"{_translate(module, architecture.names)}.{part}"] = tensor
    return dict(LAYOUTS[architecture.layout].read(config, renamed))


def to_published(
    kind: str, config: ModelConfig, tensors: Tensors, naming: Naming = "architectures"
) -> "dict[str, Tensor]":
    """Our tensors as architecture `kind` names and lays them out: the inverse of `from_published`."""
    architecture = architectures(naming)[kind]
    theirs = {ours: name for name, ours in architecture.names.items()}
    renamed = {}
    for name, tensor in LAYOUTS[architecture.layout].write(config, tensors).items():
        module, _, part = name.rpartition(".")
        prefix = "" if module == "head" else architecture.prefix
        renamed[f"{prefix}{_translate(module, theirs)}.{part}"] = tensor
    return renamed


def _translate(module: str, names: Mapping[str, str]) -> str:
    """The name of a module on the other side; itself where no pattern fits."""
    for pattern, other in names.items():
        if match := _pattern(pattern).fullmatch(module):
            for number in match.groups():
                other = other.replace("*", number, 1)
            return other
    return module


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\*", r"(\d+)"))
