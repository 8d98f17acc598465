"""Name maps between published architectures and our blocks, both ways.

An entry turns a Hugging Face `config.json` into a `ModelConfig` and its tensors into ours, and back. A setting that the
other side cannot represent is refused by name, never ignored. Where a setting is left out, it has the value that the
architecture's configuration class gives it. Dropout is left at 0: it is no part of what a trained model computes.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from groundup.errors import DataError, GroundupError, SettingsError
from groundup.model.settings import (
    GELU,
    ALiBi,
    Dense,
    Experts,
    GeGLU,
    GroupedQuery,
    LanguageModel,
    LayerNorm,
    LearnedPosition,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    NoScaling,
    Parallel,
    ReLU,
    ReLUSquared,
    RMSNorm,
    Rotary,
    RotaryScaling,
    Sequential,
    SwiGLU,
    YaRNScaling,
)
from groundup.settings import Settings, differences

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # a config is read without torch, which takes a second to import

Table = Mapping[str, Any]
Kind = TypeVar("Kind", bound=Settings)
Tensors = Mapping[str, Tensor]


def _keep(config: ModelConfig, tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Layout:
    """How the tensors of a published architecture lie, where it is not as ours do. All are under our names."""

    read: Callable[[ModelConfig, Tensors], Tensors] = _keep
    """Brings tensors from their layout into ours."""
    write: Callable[[ModelConfig, Tensors], Tensors] = _keep
    """Brings tensors from our layout into theirs."""


@dataclass(frozen=True)
class Architecture:
    """How one published architecture maps to ours."""

    read_config: Callable[[Table], ModelConfig]
    settings: tuple[str, ...]
    """Those that are written into config.json, by `WRITTEN`."""
    names: Mapping[str, str]
    """Their module → ours; `*` stands for a number, the same on both sides."""
    prefix: str
    """Begins the names in some files and is left out in others; the head has none."""
    layout: Layout = Layout()
    buffers: tuple[str, ...] = ()
    """Masks and angles, which old files keep besides weights and which are computed here."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of settings in config.json → those that `read_config` reads."""


def read_config(table: Table) -> ModelConfig:
    """Our config for a `config.json` whose `model_type` is in `ARCHITECTURES`.

    Raises:
        DataError: naming a setting that our blocks cannot represent, or one that is missing.
    """
    for name in ("is_encoder_decoder", "add_cross_attention"):
        _require(table, name, False)
    if table.get("quantization_config"):
        raise DataError(
            "config.json has quantization_config: quantized weights are not read here; ask for bfloat16 ones"
        )
    architecture = ARCHITECTURES[table["model_type"]]
    given = dict(table)
    for alias, name in architecture.aliases.items():
        if alias in given and given.setdefault(name, given[alias]) != given[alias]:
            raise DataError(
                f"config.json has {alias} = {given[alias]!r} and {name} = {given[name]!r}, which are the same"
            )
    _check_numbers(given)
    try:
        return architecture.read_config(given)
    except KeyError as error:
        raise DataError(f"config.json does not say {error}") from None


def write_config(kind: str, config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of architecture `kind` for our config. It is read back to see that it says all of it.

    Raises:
        SettingsError: naming the settings that this architecture cannot have.
    """
    try:
        table = {"model_type": kind, **{name: WRITTEN[name](config) for name in ARCHITECTURES[kind].settings}}
        lost = differences(_written_out(config), _written_out(read_config(table)))
    except (DataError, ValueError) as error:
        raise SettingsError(f"the model cannot be written as {kind}: {error}") from None
    if lost:
        listed = "; ".join(f"model.{name} is {ours!r}, there {theirs!r}" for name, (ours, theirs) in lost.items())
        raise SettingsError(f"the model cannot be written as {kind}: {listed}")
    return table


def _written_out(config: ModelConfig) -> dict[str, Any]:
    """All that decides what a trained model computes: defaults filled in, numbers to 12 digits, no dropout."""
    table = config.table() | {
        "n_kv_heads": config.kv_heads,
        "d_head": config.head_width,
        "d_ff": config.feedforward_width,
        "dropout": 0.0,
    }
    table["attention"] = {**table["attention"], "dropout": 0.0}
    if isinstance(config.attention, GroupedQuery):
        table["attention"]["scale"] = config.attention.scale or config.head_width**-0.5
        table["attention"]["windowed_layers"] = [config.attention.window_of(n) for n in range(config.n_layers)]
    if isinstance(config.position, Rotary):
        table["position"] = {**table["position"], "fraction": config.rotary_width}
    return {name: _to_12_digits(value) for name, value in table.items()}


def _to_12_digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_12_digits(part) for name, part in value.items()}
    return float(f"{value:.12g}") if isinstance(value, float) else value


@contextmanager
def refusing_contradictions(origin: object) -> Iterator[None]:
    """Turn every error about a published description that makes no model into a `DataError`."""
    try:
        yield
    except SettingsError as error:
        _, *why = str(error).split("\n  ")  # the first line says whose settings they are
        raise DataError(f"{origin} describes a model that cannot be: {'; '.join(why) or error}") from None
    except GroundupError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise DataError(f"{origin} describes a model that cannot be: {error}") from None


SIZES = {
    *("vocab_size", "hidden_size", "n_embd", "n_embed", "word_embed_proj_dim", "intermediate_size", "ffn_dim"),
    *("n_inner", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads", "head_dim"),
    *("rotary_dim", "max_position_embeddings", "original_max_position_embeddings", "n_positions", "seq_length"),
    *("sliding_window", "num_local_experts", "num_experts_per_tok"),
}
NUMBERS = {
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "rotary_emb_base", "rotary_pct"),
    *("partial_rotary_factor", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
    *("attention_factor", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
}


def _check_numbers(table: Table) -> None:
    """Refuse by name what is not a size or not a number above zero, before arithmetic is done with it."""
    for name, value in table.items():
        if name in ("rope_scaling", "rope_parameters") and value is not None:
            if not isinstance(value, Mapping):
                raise DataError(f"config.json has {name} = {value!r}; it should be a table")
            _check_numbers(value)
        if value is None or name not in SIZES | NUMBERS:
            continue
        kinds = int if name in SIZES else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 1e15:
            what = "a whole number from 1" if name in SIZES else "a number above 0"
            raise DataError(f"config.json has {name} = {value!r}; it should be {what}")


def from_published(kind: str, config: ModelConfig, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of architecture `kind` under our names, in our layout; a name that is not known is kept."""
    architecture = ARCHITECTURES[kind]
    renamed = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix(architecture.prefix)
        if not any(_pattern(buffer).fullmatch(bare) for buffer in architecture.buffers):
            module, _, part = bare.rpartition(".")
            renamed[f"{_translate(module, architecture.names)}.{part}"] = tensor
    return dict(architecture.layout.read(config, renamed))


def to_published(kind: str, config: ModelConfig, tensors: Tensors) -> dict[str, Tensor]:
    """Our tensors as architecture `kind` names and lays them out: the inverse of `from_published`."""
    architecture = ARCHITECTURES[kind]
    theirs = {ours: name for name, ours in architecture.names.items()}
    renamed = {}
    for name, tensor in architecture.layout.write(config, tensors).items():
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


def _require(table: Table, name: str, representable: object) -> None:
    value = table.get(name)
    if value is not None and value != representable:
        raise DataError(f"config.json has {name} = {value!r}; the blocks here represent only {representable!r}")


def _flag(table: Table, name: str, default: bool) -> bool:
    value = table.get(name, default)
    if not isinstance(value, bool):
        raise DataError(f"config.json has {name} = {value!r}; it should be true or false")
    return value


def _choose(table: Table, name: str, default: str, known: Mapping[str, Any]) -> Any:
    value = table.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise DataError(f"config.json has {name} = {value!r}; the blocks here represent {', '.join(known)}")
    return known[value]


def _plain(bias: bool = True) -> dict[str, Dense]:
    """The feed-forwards of two matrices by the names of their activations; the name to write comes first."""
    tanh, exact = GELU(approximate="tanh", bias=bias), GELU(approximate="none", bias=bias)
    gelus = {"gelu_new": tanh, "gelu_pytorch_tanh": tanh, "gelu_fast": tanh, "gelu": exact, "gelu_python": exact}
    return {**gelus, "relu": ReLU(bias=bias), "relu2": ReLUSquared(bias=bias)}


def _gated(bias: bool = False) -> dict[str, Dense]:
    """The feed-forwards of three matrices by the names of their activations; the name to write comes first."""
    silu, tanh = SwiGLU(bias=bias), GeGLU(approximate="tanh", bias=bias)
    exact = GeGLU(approximate="none", bias=bias)
    return {"silu": silu, "swish": silu, "gelu_pytorch_tanh": tanh, "gelu_new": tanh, "gelu": exact}


def _activation(config: ModelConfig) -> str:
    feedforward = config.feedforward.expert if isinstance(config.feedforward, Experts) else config.feedforward
    known = (*_plain(feedforward.bias).items(), *_gated(feedforward.bias).items())
    return next(name for name, kind in known if kind == feedforward)


def _expect(kind: type[Kind], setting: Settings) -> Kind:
    """The setting, if it is of this kind: what else a published architecture would have there is not known."""
    if not isinstance(setting, kind):
        raise ValueError(f"it has {kind.__name__} where the model has {type(setting).__name__}")
    return setting


def _rotary(table: Table, base: float = 10_000.0) -> Rotary:
    """From `rope_parameters`, or `rope_theta` and `rope_scaling` in older files, which win where both are, as there."""
    given = table.get("rope_scaling") or table.get("rope_parameters") or {}
    for settings in (given, table):
        _require(settings, "partial_rotary_factor", 1.0)  # GPT-NeoX, which knows it, takes it out
    base = float(given.get("rope_theta") or table.get("rope_theta") or base)
    return Rotary(base=base, scaling=_scaling(table, given))


def _scaling(table: Table, given: Table) -> RotaryScaling:
    longest: int = table["max_position_embeddings"]
    original = "original_max_position_embeddings"
    trained: int = table.get(original) or given.get(original) or longest
    match given.get("rope_type", given.get("type", "default")):
        case "default":
            return NoScaling()
        case "dynamic":  # changes angles beyond max_position_embeddings only, and our context ends there
            return NoScaling()
        case "linear":
            return LinearScaling(factor=float(given["factor"]))
        case "llama3":
            return Llama3Scaling(
                factor=float(given["factor"]),
                slow=float(given["low_freq_factor"]),
                fast=float(given["high_freq_factor"]),
                trained_length=trained,
            )
        case "yarn":
            _require(given, "truncate", True)
            factor = float(given.get("factor") or longest / trained)
            return YaRNScaling(
                factor=factor,
                slow=float(given.get("beta_slow") or 1),
                fast=float(given.get("beta_fast") or 32),
                trained_length=trained,
                magnitude=_yarn_magnitude(given, factor),
            )
        case other:
            known = "default, dynamic, linear, llama3, yarn"
            raise DataError(f"config.json has rope_type = {other!r}; the blocks here represent {known}")


def _yarn_magnitude(given: Table, factor: float) -> float | None:
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    above, below = float(given.get("mscale") or 0), float(given.get("mscale_all_dim") or 0)
    if not (above and below):
        return None
    grown = math.log(factor)
    return (0.1 * above * grown + 1) / (0.1 * below * grown + 1)


def _write_scaling(scaling: RotaryScaling) -> dict[str, Any] | None:
    trained = "original_max_position_embeddings"
    match scaling:
        case NoScaling():
            return None
        case LinearScaling(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.slow,
                "high_freq_factor": scaling.fast,
                trained: scaling.trained_length,
            }
        case YaRNScaling():
            factors = {"factor": scaling.factor, "beta_slow": scaling.slow, "beta_fast": scaling.fast}
            magnitude = {} if scaling.magnitude is None else {"attention_factor": scaling.magnitude}
            return {"rope_type": "yarn", **factors, trained: scaling.trained_length, **magnitude}
        case other:
            raise ValueError(f"it has no rotary scaling {other.kind!r}")


def _windows(table: Table, window: int | None, otherwise: Callable[[int], bool]) -> dict[str, Any]:
    """The window, and which layers have it: by `layer_types`, or by their number."""
    n_layers, kinds = table["num_hidden_layers"], table.get("layer_types")
    known = {"sliding_attention": True, "full_attention": False}
    if kinds is None:
        windowed = [otherwise(layer) for layer in range(n_layers)]
    elif not isinstance(kinds, list) or len(kinds) != n_layers:
        raise DataError(f"config.json has layer_types = {kinds!r}; it should name each of the {n_layers} layers")
    else:
        windowed = [_choose({"layer_types": kind}, "layer_types", "", known) for kind in kinds]
    if window is None and kinds is not None and any(windowed):
        raise DataError("config.json has layer_types with sliding_attention, but sliding_window is not set")
    return {"window": window, "windowed_layers": tuple(windowed)} if window is not None and any(windowed) else {}


SIZES_OF_MOST = ("vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads")
SIZES_OF_GPT = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")


def _sizes(table: Table, names: Sequence[str] = SIZES_OF_MOST) -> dict[str, Any]:
    ours = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads")
    return {our: table[name] for our, name in zip(ours, names, strict=True)}


# --- GPT-2 and its like ---


def _gpt2(table: Table) -> ModelConfig:
    _require(table, "scale_attn_weights", True)
    _require(table, "scale_attn_by_inverse_layer_idx", False)
    return ModelConfig(
        **_sizes(table, SIZES_OF_GPT),
        d_ff=table.get("n_inner"),
        position=LearnedPosition(),
        norm=LayerNorm(epsilon=table.get("layer_norm_epsilon", 1e-5)),
        attention=GroupedQuery(bias="all"),
        feedforward=_choose(table, "activation_function", "gelu_new", _plain()),
        head=LanguageModel(tied=_flag(table, "tie_word_embeddings", True)),
    )


def _transpose(tensors: Tensors) -> Tensors:
    """The matrices of the blocks transposed, as GPT-2 keeps them."""
    return {
        name: tensor.T if name.startswith("blocks.") and tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }


def _transpose_and_split(config: ModelConfig, tensors: Tensors) -> Tensors:
    """GPT-2 has query, key and value one after another in one matrix."""
    return _split_fused(_transpose(tensors), lambda fused: fused.chunk(3))


def _join_and_transpose(config: ModelConfig, tensors: Tensors) -> Tensors:
    import torch

    return _transpose(_join_fused(tensors, torch.cat))


def _split_heads(config: ModelConfig, tensors: Tensors) -> Tensors:
    """GPT-NeoX and BLOOM have query, key and value of head 0, then those of head 1, … in one matrix."""

    def split(fused: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.flatten(0, 1) for part in fused.unflatten(0, (config.n_heads, 3, -1)).unbind(1))

    return _split_fused(tensors, split)


def _join_heads(config: ModelConfig, tensors: Tensors) -> Tensors:
    import torch

    def join(parts: list[Tensor]) -> Tensor:
        return torch.stack([part.unflatten(0, (config.n_heads, -1)) for part in parts], dim=1).flatten(0, 2)

    return _join_fused(tensors, join)


PARTS = ("query", "key", "value")
FUSED = "query_key_value"


def _split_fused(tensors: Tensors, split: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensors:
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if FUSED in name:
            separate |= {name.replace(FUSED, part): each for part, each in zip(PARTS, split(tensor), strict=True)}
        else:
            separate[name] = tensor
    return separate


def _join_fused(tensors: Tensors, join: Callable[[list[Tensor]], Tensor]) -> Tensors:
    fused: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attention.query." in name:
            fused[name.replace("query", FUSED)] = join([tensors[name.replace("query", part)] for part in PARTS])
        elif ".attention.key." not in name and ".attention.value." not in name:
            fused[name] = tensor
    return fused


def _opt(table: Table) -> ModelConfig:
    _require(table, "_remove_final_layer_norm", False)
    _require(table, "layer_norm_elementwise_affine", True)
    width, own = table["hidden_size"], table.get("word_embed_proj_dim")
    bias = _flag(table, "enable_bias", True)
    return ModelConfig(
        **_sizes(table),
        d_ff=table["ffn_dim"],
        d_embedding=None if own == width else own,
        position=LearnedPosition(offset=2),
        norm=LayerNorm(),
        attention=GroupedQuery(bias="all" if bias else "none"),
        feedforward=_choose(table, "activation_function", "relu", _plain(bias)),
        block=Sequential(norm="before" if _flag(table, "do_layer_norm_before", True) else "after"),
        head=LanguageModel(tied=_flag(table, "tie_word_embeddings", True)),
    )


def _norms_after(config: ModelConfig, tensors: Tensors) -> Tensors:
    """OPT-350M has its norms after the sums, under the names that the others have for norms before."""
    if config.block != Sequential(norm="after"):
        return tensors
    return {re.sub(r"(attention|feedforward)_norm\.", r"\1_sum_norm.", name): t for name, t in tensors.items()}


def _norms_before(config: ModelConfig, tensors: Tensors) -> Tensors:
    return {name.replace("_sum_norm.", "_norm."): tensor for name, tensor in tensors.items()}


def _gpt_neox(table: Table) -> ModelConfig:
    given = dict(table.get("rope_scaling") or table.get("rope_parameters") or {})
    share = given.pop("partial_rotary_factor", table.get("rotary_pct", 0.25))
    base = {"rope_theta": table.get("rotary_emb_base", 10_000.0)}  # a `rope_theta` beside it is not heeded there either
    rotary = _rotary({**table, "rope_scaling": None, "rope_parameters": base | given})
    head = table["hidden_size"] // table["num_attention_heads"]
    bias = _flag(table, "attention_bias", True)
    return ModelConfig(
        **_sizes(table),
        d_ff=table["intermediate_size"],
        position=rotary.model_copy(update={"fraction": int(head * share) / head}),
        norm=LayerNorm(epsilon=table.get("layer_norm_eps", 1e-5)),
        attention=GroupedQuery(bias="all" if bias else "none"),
        feedforward=_choose(table, "hidden_act", "gelu", _plain()),
        block=Parallel() if _flag(table, "use_parallel_residual", True) else Sequential(),
        head=LanguageModel(tied=_flag(table, "tie_word_embeddings", False)),
    )


def _bloom(table: Table) -> ModelConfig:
    _require(table, "apply_residual_connection_post_layernorm", False)
    if table.get("pretraining_tp", 1) > 1:
        _require(table, "slow_but_exact", False)  # which then leaves biases out
    return ModelConfig(
        vocab_size=table["vocab_size"],
        context_length=table.get("seq_length", 2048),
        d_model=table["hidden_size"],
        n_layers=table["n_layer"],
        n_heads=table["n_head"],
        embedding_norm=True,
        position=ALiBi(),
        norm=LayerNorm(epsilon=table.get("layer_norm_epsilon", 1e-5)),
        attention=GroupedQuery(bias="all"),
        feedforward=GELU(approximate="tanh"),
        head=LanguageModel(tied=_flag(table, "tie_word_embeddings", True)),
    )


def _gptj(table: Table) -> ModelConfig:
    width, heads = table["n_embd"], table["n_head"]
    rotated = table.get("rotary_dim", 64)
    if rotated is None or rotated % 2 or rotated > width // heads:
        raise DataError(
            f"config.json has rotary_dim = {rotated}; it should be an even number of a head's {width // heads} channels"
        )
    return ModelConfig(
        **_sizes(table, SIZES_OF_GPT),
        d_ff=table.get("n_inner"),
        position=Rotary(fraction=rotated * heads / width),
        norm=LayerNorm(epsilon=table.get("layer_norm_epsilon", 1e-5)),
        attention=GroupedQuery(),
        feedforward=_choose(table, "activation_function", "gelu_new", _plain()),
        block=Parallel(shared_norm=True),
        head=LanguageModel(tied=_flag(table, "tie_word_embeddings", False), bias=True),
    )


def pairs_to_halves(config: ModelConfig, tensors: Tensors) -> dict[str, Tensor]:
    """Bring the channels of queries and keys into our order.

    GPT-J and Llama's own files rotate channels 0 and 1 together, 2 and 3, …; here a channel of the first half goes with
    one of the second. Queries and keys whose channels are reordered alike have the same dot products.
    """
    return _reorder(config, tensors, _halves(config))


def halves_to_pairs(config: ModelConfig, tensors: Tensors) -> dict[str, Tensor]:
    """The inverse of `pairs_to_halves`."""
    order = _halves(config)
    return _reorder(config, tensors, sorted(range(len(order)), key=order.__getitem__))


def _halves(config: ModelConfig) -> list[int]:
    rotated = config.rotary_width
    return [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, config.head_width)]


def _reorder(config: ModelConfig, tensors: Tensors, order: list[int]) -> dict[str, Tensor]:
    return {
        name: tensor.unflatten(0, (-1, config.head_width))[:, order].flatten(0, 1)
        if re.search(r"attention\.(query|key)\.(weight|bias)$", name)
        else tensor
        for name, tensor in tensors.items()
    }


# --- Llama and its like ---


def _llama_like(
    table: Table,
    attention: GroupedQuery,
    *,
    kv_heads: int | None = None,
    head_width: int | None = None,
    base: float = 10_000.0,
    epsilon: float = 1e-6,
    **others: Any,
) -> ModelConfig:
    """The config with what all of them share; the keywords are the architecture's own defaults and blocks."""
    return ModelConfig(
        **_sizes(table),
        n_kv_heads=table.get("num_key_value_heads", kv_heads),
        d_head=table.get("head_dim", head_width),
        d_ff=table["intermediate_size"],
        position=_rotary(table, base),
        norm=RMSNorm(epsilon=table.get("rms_norm_eps", epsilon)),
        attention=attention,
        **{
            "feedforward": _choose(table, "hidden_act", "silu", _gated()),
            "head": LanguageModel(tied=_flag(table, "tie_word_embeddings", False)),
            **others,
        },
    )


def _all_or_none(table: Table) -> Any:
    return "all" if _flag(table, "attention_bias", False) else "none"


def _llama(table: Table) -> ModelConfig:
    feedforward = _choose(table, "hidden_act", "silu", _gated(_flag(table, "mlp_bias", False)))
    return _llama_like(table, GroupedQuery(bias=_all_or_none(table)), feedforward=feedforward)


def _mistral(table: Table) -> ModelConfig:
    if table.get("layer_types") is not None:  # one of their classes reads it, the other does not
        raise DataError("config.json has layer_types, which mistral does not know; is it a ministral?")
    return _llama_like(table, GroupedQuery(window=table.get("sliding_window", 4096)), kv_heads=8)


def _qwen_window(table: Table) -> dict[str, Any]:
    """The first `max_window_layers` layers read everything, the others a window, if windows are in use."""
    used = _flag(table, "use_sliding_window", False)
    full = table.get("max_window_layers", 28)
    return _windows(table, table.get("sliding_window", 4096) if used else None, lambda layer: layer >= full)


def _qwen2(table: Table) -> ModelConfig:
    return _llama_like(table, GroupedQuery(bias="qkv", **_qwen_window(table)), kv_heads=32)


def _qwen3(table: Table) -> ModelConfig:
    attention = GroupedQuery(bias=_all_or_none(table), qk_norm="head", **_qwen_window(table))
    return _llama_like(table, attention, kv_heads=32, head_width=128)


def _olmo2(table: Table) -> ModelConfig:
    attention = GroupedQuery(bias=_all_or_none(table), qk_norm="full")
    return _llama_like(table, attention, epsilon=1e-5, block=Sequential(norm="output"))


def _mixtral(table: Table) -> ModelConfig:
    active = table.get("num_experts_per_tok", 2)
    experts = Experts(
        n_experts=table.get("num_local_experts", 8),
        n_active=active,
        # theirs is a mean over layers of what is n_active when even, ours a sum over layers of what is then 1
        balance=table.get("router_aux_loss_coef", 0.001) * active / table["num_hidden_layers"],
        expert=_choose(table, "hidden_act", "silu", _gated()),
    )
    attention = GroupedQuery(window=table.get("sliding_window"))
    return _llama_like(table, attention, kv_heads=8, base=1e6, epsilon=1e-5, feedforward=experts)


def _gemma2(table: Table) -> ModelConfig:
    _require(table, "use_bidirectional_attention", False)
    attention = GroupedQuery(
        bias=_all_or_none(table),
        **_windows(table, table.get("sliding_window", 4096), lambda layer: layer % 2 == 0),
        scale=table.get("query_pre_attn_scalar", 256) ** -0.5,
        soft_cap=table.get("attn_logit_softcapping", 50.0),
    )
    return _llama_like(
        table,
        attention,
        kv_heads=4,
        head_width=256,
        embedding_scale=table["hidden_size"] ** 0.5,
        feedforward=_choose(table, "hidden_activation", "gelu_pytorch_tanh", _gated()),
        block=Sequential(norm="around"),
        head=LanguageModel(
            tied=_flag(table, "tie_word_embeddings", True), soft_cap=table.get("final_logit_softcapping", 30.0)
        ),
    )


def _stack_experts(config: ModelConfig, tensors: Tensors) -> dict[str, Tensor]:
    """Mixtral keeps a matrix for each expert; ours lie in one tensor, expert after expert."""
    import torch  # only where there are tensors

    stacked: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        before, dot, after = name.partition(".experts.")
        if dot:
            number, _, part = after.partition(".")
            stacks.setdefault(f"{before}.experts.{part}", {})[int(number)] = tensor
        else:
            stacked[name] = tensor
    return stacked | {name: torch.stack([stack[n] for n in sorted(stack)]) for name, stack in stacks.items()}


def _take_experts_apart(config: ModelConfig, tensors: Tensors) -> dict[str, Tensor]:
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, dot, part = name.partition(".experts.")
        apart |= {f"{before}{dot}{n}.{part}": expert for n, expert in enumerate(tensor)} if dot else {name: tensor}
    return apart


def _add_one_to_gains(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Gemma keeps a norm's gain as what it has above 1; in float32, since bfloat16 would round the sum."""
    return {name: tensor.float() + 1 if "norm." in name else tensor for name, tensor in tensors.items()}


def _subtract_one_from_gains(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Exact for gains from 0.5 to 2, where the difference needs no rounding."""
    return {name: tensor.float() - 1 if "norm." in name else tensor for name, tensor in tensors.items()}


GPT2_NAMES = {
    "wte": "embed",
    "wpe": "position.table",
    "ln_f": "norm",
    "lm_head": "head",
    "h.*.ln_1": "blocks.*.attention_norm",
    "h.*.ln_2": "blocks.*.feedforward_norm",
    "h.*.attn.c_attn": "blocks.*.attention.query_key_value",
    "h.*.attn.c_proj": "blocks.*.attention.out",
    "h.*.mlp.c_fc": "blocks.*.feedforward.up",
    "h.*.mlp.c_proj": "blocks.*.feedforward.down",
}
OPT_NAMES = {
    "decoder.embed_tokens": "embed",
    "decoder.embed_positions": "position.table",
    "decoder.project_in": "project_in",
    "decoder.project_out": "project_out",
    "decoder.final_layer_norm": "norm",
    "lm_head": "head",
    "decoder.layers.*.self_attn_layer_norm": "blocks.*.attention_norm",
    "decoder.layers.*.final_layer_norm": "blocks.*.feedforward_norm",
    "decoder.layers.*.self_attn.q_proj": "blocks.*.attention.query",
    "decoder.layers.*.self_attn.k_proj": "blocks.*.attention.key",
    "decoder.layers.*.self_attn.v_proj": "blocks.*.attention.value",
    "decoder.layers.*.self_attn.out_proj": "blocks.*.attention.out",
    "decoder.layers.*.fc1": "blocks.*.feedforward.up",
    "decoder.layers.*.fc2": "blocks.*.feedforward.down",
}
GPT_NEOX_NAMES = {
    "embed_in": "embed",
    "final_layer_norm": "norm",
    "embed_out": "head",
    "layers.*.input_layernorm": "blocks.*.attention_norm",
    "layers.*.post_attention_layernorm": "blocks.*.feedforward_norm",
    "layers.*.attention.query_key_value": "blocks.*.attention.query_key_value",
    "layers.*.attention.dense": "blocks.*.attention.out",
    "layers.*.mlp.dense_h_to_4h": "blocks.*.feedforward.up",
    "layers.*.mlp.dense_4h_to_h": "blocks.*.feedforward.down",
}
BLOOM_NAMES = {
    "word_embeddings": "embed",
    "word_embeddings_layernorm": "embedding_norm",
    "ln_f": "norm",
    "lm_head": "head",
    "h.*.input_layernorm": "blocks.*.attention_norm",
    "h.*.post_attention_layernorm": "blocks.*.feedforward_norm",
    "h.*.self_attention.query_key_value": "blocks.*.attention.query_key_value",
    "h.*.self_attention.dense": "blocks.*.attention.out",
    "h.*.mlp.dense_h_to_4h": "blocks.*.feedforward.up",
    "h.*.mlp.dense_4h_to_h": "blocks.*.feedforward.down",
}
GPTJ_NAMES = {
    "wte": "embed",
    "ln_f": "norm",
    "lm_head": "head",
    "h.*.ln_1": "blocks.*.attention_norm",
    "h.*.attn.q_proj": "blocks.*.attention.query",
    "h.*.attn.k_proj": "blocks.*.attention.key",
    "h.*.attn.v_proj": "blocks.*.attention.value",
    "h.*.attn.out_proj": "blocks.*.attention.out",
    "h.*.mlp.fc_in": "blocks.*.feedforward.up",
    "h.*.mlp.fc_out": "blocks.*.feedforward.down",
}
LLAMA_NAMES = {
    "embed_tokens": "embed",
    "norm": "norm",
    "lm_head": "head",
    "layers.*.input_layernorm": "blocks.*.attention_norm",
    "layers.*.post_attention_layernorm": "blocks.*.feedforward_norm",
    "layers.*.self_attn.q_proj": "blocks.*.attention.query",
    "layers.*.self_attn.k_proj": "blocks.*.attention.key",
    "layers.*.self_attn.v_proj": "blocks.*.attention.value",
    "layers.*.self_attn.o_proj": "blocks.*.attention.out",
    "layers.*.self_attn.q_norm": "blocks.*.attention.query_norm",
    "layers.*.self_attn.k_norm": "blocks.*.attention.key_norm",
    "layers.*.mlp.gate_proj": "blocks.*.feedforward.gate",
    "layers.*.mlp.up_proj": "blocks.*.feedforward.up",
    "layers.*.mlp.down_proj": "blocks.*.feedforward.down",
}
OLMO2_NAMES = LLAMA_NAMES | {
    "layers.*.post_attention_layernorm": "blocks.*.attention_output_norm",
    "layers.*.post_feedforward_layernorm": "blocks.*.feedforward_output_norm",
}
MIXTRAL_NAMES = LLAMA_NAMES | {
    "layers.*.block_sparse_moe.gate": "blocks.*.feedforward.router",
    "layers.*.block_sparse_moe.experts.*.w1": "blocks.*.feedforward.experts.*.gate",
    "layers.*.block_sparse_moe.experts.*.w2": "blocks.*.feedforward.experts.*.down",
    "layers.*.block_sparse_moe.experts.*.w3": "blocks.*.feedforward.experts.*.up",
}
GEMMA2_NAMES = OLMO2_NAMES | {"layers.*.pre_feedforward_layernorm": "blocks.*.feedforward_norm"}

GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
BLOOM_ALIASES = {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}

MIXTRAL_ALIASES = {"num_experts": "num_local_experts"}

MASKS = ("h.*.attn.bias", "h.*.attn.masked_bias")
ANGLES = ("layers.*.self_attn.rotary_emb.inv_freq",)
NEOX_BUFFERS = ("layers.*.attention.bias", "layers.*.attention.masked_bias", "layers.*.attention.rotary_emb.inv_freq")

# --- our settings, written under their names ---


def _attention(config: ModelConfig) -> GroupedQuery:
    return _expect(GroupedQuery, config.attention)


def _layer_types(config: ModelConfig) -> list[str] | None:
    windows = [_attention(config).window_of(layer) for layer in range(config.n_layers)]
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return None if _attention(config).window is None else kinds


def _neox_rope(config: ModelConfig) -> dict[str, Any]:
    rotary = _expect(Rotary, config.position)
    scaling = _write_scaling(rotary.scaling) or {"rope_type": "default"}
    share = config.rotary_width / config.head_width
    return {**scaling, "rope_theta": rotary.base, "partial_rotary_factor": share}


def _attention_scalar(config: ModelConfig) -> float:
    scale = _attention(config).scale
    scalar = config.head_width if scale is None else float(f"{scale**-2:.12g}")
    return int(scalar) if scalar == int(scalar) else scalar


def _balance(config: ModelConfig) -> float:
    experts = _expect(Experts, config.feedforward)
    return experts.balance * config.n_layers / experts.n_active


WRITTEN: dict[str, Callable[[ModelConfig], Any]] = {
    name: write
    for names, write in (
        ("vocab_size", lambda config: config.vocab_size),
        ("max_position_embeddings n_positions seq_length", lambda config: config.context_length),
        ("hidden_size n_embd", lambda config: config.d_model),
        ("num_hidden_layers n_layer", lambda config: config.n_layers),
        ("num_attention_heads n_head", lambda config: config.n_heads),
        ("num_key_value_heads", lambda config: config.kv_heads),
        ("head_dim", lambda config: config.head_width),
        ("intermediate_size ffn_dim n_inner", lambda config: config.feedforward_width),
        ("word_embed_proj_dim", lambda config: config.d_embedding or config.d_model),
        ("rms_norm_eps layer_norm_eps layer_norm_epsilon", lambda config: config.norm.epsilon),
        ("hidden_act activation_function hidden_activation", _activation),
        ("attention_bias enable_bias", lambda config: _attention(config).bias == "all"),
        ("mlp_bias", lambda config: getattr(config.feedforward, "bias", False)),
        ("tie_word_embeddings", lambda config: _expect(LanguageModel, config.head).tied),
        ("do_layer_norm_before", lambda config: config.block == Sequential(norm="before")),
        ("use_parallel_residual", lambda config: isinstance(config.block, Parallel)),
        ("rotary_dim", lambda config: config.rotary_width),
        ("rotary_pct", lambda config: config.rotary_width / config.head_width),
        ("rope_theta rotary_emb_base", lambda config: _expect(Rotary, config.position).base),
        ("rope_scaling", lambda config: _write_scaling(_expect(Rotary, config.position).scaling)),
        ("rope_parameters", _neox_rope),
        ("sliding_window", lambda config: _attention(config).window),
        ("use_sliding_window", lambda config: _attention(config).window is not None),
        ("layer_types", _layer_types),
        ("num_local_experts", lambda config: _expect(Experts, config.feedforward).n_experts),
        ("num_experts_per_tok", lambda config: _expect(Experts, config.feedforward).n_active),
        ("router_aux_loss_coef", _balance),
        ("query_pre_attn_scalar", _attention_scalar),
        ("attn_logit_softcapping", lambda config: _attention(config).soft_cap),
        ("final_logit_softcapping", lambda config: _expect(LanguageModel, config.head).soft_cap),
    )
    for name in names.split()
}
"""Names of settings in config.json → their values for a config of ours."""

GPT2 = (*SIZES_OF_GPT, "n_inner", "layer_norm_epsilon", "activation_function", "tie_word_embeddings")
OPT = (*SIZES_OF_MOST, "ffn_dim", "word_embed_proj_dim", "enable_bias", "activation_function", "do_layer_norm_before",
       "tie_word_embeddings")  # fmt: skip
NEOX = (*SIZES_OF_MOST, "intermediate_size", "rotary_pct", "rotary_emb_base", "rope_parameters", "layer_norm_eps",
        "attention_bias", "hidden_act", "use_parallel_residual", "tie_word_embeddings")  # fmt: skip
BLOOM = ("vocab_size", "seq_length", "hidden_size", "n_layer", "n_head", "layer_norm_epsilon", "tie_word_embeddings")
LLAMA = (*SIZES_OF_MOST, "num_key_value_heads", "head_dim", "intermediate_size", "rope_theta", "rope_scaling",
         "rms_norm_eps", "tie_word_embeddings")  # fmt: skip
BIASED = (*LLAMA, "hidden_act", "attention_bias")
MISTRAL = (*LLAMA, "hidden_act", "sliding_window")
MIXTRAL = (*MISTRAL, "num_local_experts", "num_experts_per_tok", "router_aux_loss_coef")
QWEN2 = (*MISTRAL, "use_sliding_window", "layer_types")
GEMMA2 = (*LLAMA, "hidden_activation", "attention_bias", "sliding_window", "layer_types", "query_pre_attn_scalar",
          "attn_logit_softcapping", "final_logit_softcapping")  # fmt: skip

TRANSPOSED = Layout(_transpose_and_split, _join_and_transpose)
FUSED_BY_HEAD = Layout(_split_heads, _join_heads)
IN_PAIRS = Layout(pairs_to_halves, halves_to_pairs)
EACH_EXPERT = Layout(_stack_experts, _take_experts_apart)
GAINS_LESS_ONE = Layout(_add_one_to_gains, _subtract_one_from_gains)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(_gpt2, GPT2, GPT2_NAMES, "transformer.", TRANSPOSED, MASKS, GPT2_ALIASES),
    "opt": Architecture(_opt, OPT, OPT_NAMES, "model.", Layout(_norms_after, _norms_before)),
    "gptj": Architecture(_gptj, (*GPT2, "rotary_dim"), GPTJ_NAMES, "transformer.", IN_PAIRS, MASKS, GPT2_ALIASES),
    "gpt_neox": Architecture(_gpt_neox, NEOX, GPT_NEOX_NAMES, "gpt_neox.", FUSED_BY_HEAD, NEOX_BUFFERS),
    "bloom": Architecture(_bloom, BLOOM, BLOOM_NAMES, "transformer.", FUSED_BY_HEAD, aliases=BLOOM_ALIASES),
    "llama": Architecture(_llama, (*BIASED, "mlp_bias"), LLAMA_NAMES, "model.", buffers=ANGLES),
    "mistral": Architecture(_mistral, MISTRAL, LLAMA_NAMES, "model.", buffers=ANGLES),
    "mixtral": Architecture(_mixtral, MIXTRAL, MIXTRAL_NAMES, "model.", EACH_EXPERT, ANGLES, MIXTRAL_ALIASES),
    "qwen2": Architecture(_qwen2, QWEN2, LLAMA_NAMES, "model.", buffers=ANGLES),
    "qwen3": Architecture(_qwen3, (*QWEN2, "attention_bias"), LLAMA_NAMES, "model."),
    "olmo2": Architecture(_olmo2, BIASED, OLMO2_NAMES, "model."),
    "gemma2": Architecture(_gemma2, GEMMA2, GEMMA2_NAMES, "model.", GAINS_LESS_ONE),
}
"""By `model_type` of a Hugging Face config.json."""
