"""The settings of published `config.json` files as pairs: one half reads into our config, the other writes from it.

Values of ours have dotted names, such as `norm.epsilon`. What ours cannot represent is refused by name, never ignored.
Where a setting is left out, it has the value that the architecture's configuration class gives it. Dropout is left at
0: it is no part of what a trained model computes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from groundup.errors import DataError
from groundup.model.settings import GroupedQuery, ModelConfig, Rotary
from groundup.settings import flatten

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting of config.json, or a few that belong together."""

    read: Callable[[Table], Table]
    """config.json → values of ours.

    Raises:
        DataError: what cannot be represented.
        KeyError: what is missing.
    """
    write: Callable[[Table], Table]
    """Values of ours, as of `filled` → what is written into config.json; empty if there is nothing to write."""


def filled(config: ModelConfig) -> dict[str, Any]:
    """All that decides what a trained model computes, by dotted names: defaults filled in, no dropout."""
    ours = flatten(config.model_dump(mode="json")) | {
        "n_kv_heads": config.kv_heads,
        "d_head": config.head_width,
        "d_ff": config.feedforward_width,
        "dropout": 0.0,
        "attention.dropout": 0.0,
    }
    if isinstance(config.attention, GroupedQuery):
        ours["attention.scale"] = config.attention.scale or config.head_width**-0.5
        ours["attention.windowed_layers"] = [config.attention.window_of(n) for n in range(config.n_layers)]
        if isinstance(config.position, Rotary):
            ours["position.fraction"] = config.rotary_width / config.head_width
    return ours


# --- values that are refused ---


def require(table: Table, name: str, only: object) -> None:
    """Refuse any other value of a setting, where it is set."""
    value = table.get(name)
    if value is not None and value != only:
        _refuse(name, value, f"only {only!r} is represented here")


def choose(name: str, value: object, known: Mapping[Any, Any]) -> Any:
    """What a name, true or false stands for."""
    if not isinstance(value, str | bool) or value not in known:
        _refuse(name, value, f"known here: {', '.join(map(str, known))}")
    return known[value]


def _size(name: str, value: Any) -> Any:
    if value is not None and (type(value) is not int or not 0 < value < 1e15):
        _refuse(name, value, "it should be a whole number from 1")
    return value


def _number(name: str, value: Any) -> Any:
    if value is not None and (type(value) not in (int, float) or not 0 < value < 1e15):
        _refuse(name, value, "it should be a number above 0")
    return value


def _refuse(name: str, value: object, why: str) -> NoReturn:
    raise DataError(f"config.json has {name} = {value!r:.120}; {why}")


# --- settings that stand for one of ours, or choose among blocks ---


def setting(
    name: str,
    ours: str,
    default: Any = None,
    optional: bool = False,
    *,
    read: Callable[[Any, Table], Any] = lambda value, table: value,
    write: Callable[[Any, Table], Any] = lambda value, ours: value,
    check: Callable[[str, Any], Any] = lambda name, value: value,
) -> Setting:
    """A setting that stands for one of ours.

    Args:
        default: its value where it is left out; without one it has to be there, if it is not `optional`.
        read: its value and all of config.json → our value.
        write: our value and all of ours → its value.
        check: refuses values by the setting's name.
    """

    def read_one(table: Table) -> Table:
        value = table.get(name, default) if optional or default is not None else table[name]
        return {ours: read(check(name, value), table)}

    def write_one(values: Table) -> Table:
        return {name: write(values[ours], values)} if ours in values else {}

    return Setting(read_one, write_one)


def choice(name: str, default: str | bool, known: Mapping[Any, Table]) -> Setting:
    """A setting whose values each stand for values of ours. Of those that mean the same, the first is written."""

    def write(ours: Table) -> Table:
        return next(({name: value} for value, meant in known.items() if meant.items() <= ours.items()), {})

    return Setting(lambda table: choose(name, table.get(name, default), known), write)


def flag(name: str, ours: str, default: bool, true: Any = True, false: Any = False) -> Setting:
    """A setting that is true or false, which is another value of ours each."""
    return choice(name, default, {True: {ours: true}, False: {ours: false}})


# --- rotary position ---

ORIGINAL = "original_max_position_embeddings"
SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "dynamic": {},  # changes angles beyond max_position_embeddings only, and our context ends there
    "linear": {"factor": "factor"},
    "llama3": {"factor": "factor", "low_freq_factor": "slow", "high_freq_factor": "fast", ORIGINAL: "trained_length"},
    "yarn": {
        "factor": "factor",
        "beta_slow": "slow",
        "beta_fast": "fast",
        ORIGINAL: "trained_length",
        "attention_factor": "magnitude",
    },
}
"""By `rope_type`, which is our kind: its settings, by their names and ours."""


def rotary(base: str, share: str | None = None) -> Setting:
    """From `rope_parameters`, or `base` and `rope_scaling` in older files, which win where both are, as there.

    Args:
        share: the older setting for the share of channels that is rotated, where there is one.
    """

    def read(table: Table) -> Table:
        given = _rope_table(table)
        theta = _number(base, given.get("rope_theta") or table.get(base))
        ours = {"position.base": theta} if theta else {}
        if share is not None:
            channels = table["hidden_size"] // table["num_attention_heads"]
            rotated = _number(share, given.pop("partial_rotary_factor", table.get(share, 0.25)))
            ours["position.fraction"] = int(channels * rotated) / channels
        return {**ours, **_read_scaling(table, given)}

    def write(ours: Table) -> Table:
        if not _rotates(ours):
            return {}
        kind, theta = ours["position.scaling.kind"], ours["position.base"]
        values = {name: ours[f"position.scaling.{our}"] for name, our in SCALINGS.get(kind, {}).items()}
        scaling = {"rope_type": kind} | {name: value for name, value in values.items() if value is not None}
        if share is None:
            return {base: theta, "rope_scaling": scaling if values else None}
        also = {"rope_theta": theta, "partial_rotary_factor": ours["position.fraction"]}
        parameters = (scaling if values else {"rope_type": "default"}) | also
        return {share: ours["position.fraction"], base: theta, "rope_parameters": parameters}

    return Setting(read, write)


def _rotates(ours: Table) -> bool:
    return bool(ours["position.kind"] == "rotary")


def _rope_table(table: Table) -> dict[str, Any]:
    for name in ("rope_scaling", "rope_parameters"):
        given = table.get(name)
        if given is not None and not isinstance(given, Mapping):
            _refuse(name, given, "it should be a table")
        if given:
            return {key: value for key, value in given.items() if value is not None}
    return {}


def _read_scaling(table: Table, given: dict[str, Any]) -> Table:
    for settings in (given, table):
        require(settings, "partial_rotary_factor", 1.0)  # GPT-NeoX, which knows it, takes it out
    rope_type = given.get("rope_type", given.get("type", "default"))
    names = choose("rope_type", rope_type, SCALINGS)
    longest = table["max_position_embeddings"]
    given[ORIGINAL] = _size(ORIGINAL, table.get(ORIGINAL) or given.get(ORIGINAL) or longest)
    if rope_type == "yarn":
        require(given, "truncate", True)
        given = {"factor": longest / given[ORIGINAL], "beta_slow": 1, "beta_fast": 32} | given
        given.setdefault("attention_factor", _yarn_magnitude(given))
    values = {f"position.scaling.{ours}": _number(name, given[name]) for name, ours in names.items()}
    return {"position.scaling.kind": rope_type if names else "none", **values}


def _yarn_magnitude(given: Table) -> float | None:
    above, below = float(given.get("mscale") or 0), float(given.get("mscale_all_dim") or 0)
    if not (above and below):
        return None
    grown = math.log(_number("factor", given["factor"]))
    return (0.1 * above * grown + 1) / (0.1 * below * grown + 1)


# --- windows of attention ---


def windows(with_window: Callable[[Table, int], bool], may_be_off: bool = False) -> Setting:
    """The window, and which layers have it: by `layer_types`, or by their number.

    Args:
        with_window: config.json and the number of a layer → whether the layer has it, where `layer_types` is not set.
        may_be_off: `use_sliding_window` says whether there is one.
    """

    def read(table: Table) -> Table:
        n_layers, kinds = table["num_hidden_layers"], table.get("layer_types")
        window = _size("sliding_window", table.get("sliding_window", 4096))
        if may_be_off and not choose("use_sliding_window", table.get("use_sliding_window", False), ON_OR_OFF):
            window = None
        if kinds is None:
            windowed = [with_window(table, layer) for layer in range(n_layers)]
        elif not isinstance(kinds, list) or len(kinds) != n_layers:
            _refuse("layer_types", kinds, f"it should name each of the {n_layers} layers")
        else:
            windowed = [choose("layer_types", kind, LAYER_TYPES) for kind in kinds]
        if window is None and kinds is not None and any(windowed):
            raise DataError("config.json has layer_types with sliding_attention, but sliding_window is not set")
        used = window is not None and any(windowed)
        return {"attention.window": window, "attention.windowed_layers": windowed} if used else {}

    def write(ours: Table) -> Table:
        if "attention.window" not in ours:
            return {}
        window = ours["attention.window"]
        layers = ["sliding_attention" if each else "full_attention" for each in ours["attention.windowed_layers"]]
        switch = {"use_sliding_window": window is not None} if may_be_off else {}
        return {"sliding_window": window, **switch, "layer_types": None if window is None else layers}

    return Setting(read, write)


ON_OR_OFF = {True: True, False: False}
LAYER_TYPES = {"sliding_attention": True, "full_attention": False}


# --- what is special about GGUF, whose keys are without the name of the architecture here ---

FACTORS = "groundup.rope."
GGUF_SCALINGS: dict[str, dict[str, tuple[str, Any]]] = {
    "none": {},
    "linear": {"rope.scaling.factor": ("factor", 1.0)},
    "yarn": {"rope.scaling.factor": ("factor", 1.0), "rope.scaling.yarn_beta_slow": ("slow", 1.0),
             "rope.scaling.yarn_beta_fast": ("fast", 32.0),
             "rope.scaling.original_context_length": ("trained_length", None)},
    "llama3": {f"{FACTORS}factor": ("factor", None), f"{FACTORS}slow": ("slow", 1.0), f"{FACTORS}fast": ("fast", 4.0),
               f"{FACTORS}trained_length": ("trained_length", 8192)},
}  # fmt: skip
"""By our kind: its keys → our names, and what they are where a file does not say. Of Llama 3's scaling GGUF keeps only
what it comes to, the tensor `rope_freqs.weight`; keys of ours say the rest, and without them it is as of Llama 3.1."""


def _gguf_head_width(table: Table) -> int:
    width: int = _size("attention.key_length", table.get("attention.key_length")) or (
        table["embedding_length"] // table["attention.head_count"]
    )
    require(table, "attention.value_length", width)
    if width > 1 << 16:
        _refuse("attention.key_length", width, "no head has so many channels")
    return width


def _read_gguf_rotary(table: Table, kinds: Sequence[str]) -> Table:
    """
    Args:
        kinds: of scaling that llama.cpp knows in this architecture.
    """
    width, sharper = _gguf_head_width(table), _number(SHARPER, table.get(SHARPER, 1.0))
    rotated = _size("rope.dimension_count", table.get("rope.dimension_count", width))
    factor = table.get("rope.scaling.factor", table.get("rope.scale_linear")) or 1.0
    given = {"rope.scaling.original_context_length": table["context_length"], **table, "rope.scaling.factor": factor}
    default = "llama3" if f"{FACTORS}factor" in table else "none" if factor == 1 else "linear"
    kind = choose("rope.scaling.type", table.get("rope.scaling.type", default), {kind: kind for kind in kinds})
    named = GGUF_SCALINGS[kind].items()
    ours = {f"position.scaling.{our}": _number(name, given.get(name, usual)) for name, (our, usual) in named}
    if kind == "yarn" and sharper != 1:
        ours["position.scaling.magnitude"] = sharper * (0.1 * math.log(factor) + 1)
    base = _number("rope.freq_base", table.get("rope.freq_base", 10_000.0))
    return {"position.base": base, "position.fraction": rotated / width, "position.scaling.kind": kind, **ours}


def _write_gguf_rotary(ours: Table) -> Table:
    if not _rotates(ours) or "position.fraction" not in ours:
        return {}
    kind = ours["position.scaling.kind"]
    table = {"rope.scaling.type": kind} if kind in ("linear", "yarn") else {}
    table |= {"rope.freq_base": ours["position.base"]}
    table["rope.dimension_count"] = round(ours["position.fraction"] * ours["d_head"])
    if magnitude := ours.get("position.scaling.magnitude"):
        table[SHARPER] = magnitude / (0.1 * math.log(ours["position.scaling.factor"]) + 1)
    return table | {name: ours[f"position.scaling.{our}"] for name, (our, _) in GGUF_SCALINGS.get(kind, {}).items()}


SHARPER = "rope.scaling.attn_factor"


def _read_gemma_scales(table: Table) -> Table:
    """llama.cpp knows the 27B by its 46 layers, whose scores are scaled by the width for each head."""
    width = table["embedding_length"] // table["attention.head_count"]
    scale = {"attention.scale": width**-0.5} if table["block_count"] == 46 else {}
    return {"embedding_scale": table["embedding_length"] ** 0.5, **scale}


# --- what `architectures.toml` and `gguf.toml` name ---


def _rotated_share(rotated: int | None, table: Table) -> float:
    channels: int = table["n_embd"] // table["n_head"]
    if rotated is None or rotated % 2 or rotated > channels:
        _refuse("rotary_dim", rotated, f"it should be an even number of a head's {channels} channels")
    return rotated / channels


def _inverse_square(scale: float, ours: Table) -> float:
    scalar = float(f"{scale**-2:.12g}")
    return int(scalar) if scalar == int(scalar) else scalar


def _refuse_left_out_biases(table: Table) -> Table:
    if table.get("pretraining_tp", 1) > 1:
        require(table, "slow_but_exact", False)  # which then leaves biases out
    return {}


OPT_BIASES = {
    True: {"attention.bias": "all", "feedforward.bias": True},
    False: {"attention.bias": "none", "feedforward.bias": False},
}
PAIRS: dict[str, Callable[..., Setting]] = {
    "same": setting,
    "size": partial(setting, check=_size),
    "number": partial(setting, check=_number),
    "flag": flag,
    "size_unless_width": partial(
        setting,
        read=lambda width, table: None if width == table["hidden_size"] else width,
        write=lambda width, ours: width or ours["d_model"],
        check=_size,
    ),
    # a window that no text of the context is longer than: llama.cpp heeds none in this architecture
    "idle_window": partial(
        setting, write=lambda window, ours: window if window and window >= ours["context_length"] else None, check=_size
    ),
    "rotated_channels": partial(
        setting, read=_rotated_share, write=lambda share, ours: round(share * ours["d_head"]), check=_size
    ),
    "inverse_square": partial(setting, read=lambda scalar, table: scalar**-0.5, write=_inverse_square, check=_number),
    # theirs is a mean over layers of what is n_active when even, ours a sum over layers of what is then 1
    "mean_balance": partial(
        setting,
        read=lambda weight, table: weight * table.get("num_experts_per_tok", 2) / table["num_hidden_layers"],
        write=lambda weight, ours: weight * ours["n_layers"] / ours["feedforward.n_active"],
    ),
}
"""How one setting is read and written."""
GROUPS = {
    "rotary": rotary("rope_theta"),
    "neox_rotary": rotary("rotary_emb_base", "rotary_pct"),  # which heeds no `rope_theta` beside it
    "windows_in_even_layers": windows(lambda table, layer: layer % 2 == 0),
    "windows_in_later_layers": windows(
        lambda table, layer: bool(layer >= table.get("max_window_layers", 28)), may_be_off=True
    ),
    "opt_biases": choice("enable_bias", True, OPT_BIASES),
    "bloom_exactness": Setting(_refuse_left_out_biases, lambda ours: {}),
    "gguf_rotary": Setting(partial(_read_gguf_rotary, kinds=("none", "linear", "yarn")), _write_gguf_rotary),
    "gguf_rotary_or_factors": Setting(partial(_read_gguf_rotary, kinds=tuple(GGUF_SCALINGS)), _write_gguf_rotary),
    "gguf_head_width": Setting(
        lambda table: {"d_head": _gguf_head_width(table)},
        lambda ours: {f"attention.{each}_length": ours["d_head"] for each in ("key", "value")},
    ),
    "gguf_heads_fill_width": Setting(lambda table: {"d_head": _gguf_head_width(table)}, lambda ours: {}),
    "gguf_gemma_scales": Setting(_read_gemma_scales, lambda ours: {}),
    "root_of_width": Setting(lambda table: {"embedding_scale": table["hidden_size"] ** 0.5}, lambda ours: {}),
}
"""Settings that belong together."""


def setting_of(name: str, how: str | Table, activations: Mapping[str, Mapping[str, Table]]) -> Setting:
    """The setting that a line of `architectures.toml` describes."""
    if isinstance(how, str):
        return GROUPS[how]
    (pair, ours), *options = how.items()
    if pair in activations:
        return choice(name, how["default"], {act: flatten({ours: meant}) for act, meant in activations[pair].items()})
    return PAIRS[pair](name, ours, **dict(options))
