"""Name maps: published architectures, read into our blocks.

An entry turns a Hugging Face `config.json` into a `ModelConfig`, and its tensors' names into ours. A setting that our
blocks cannot represent is refused by name, never ignored. Where a setting is left out, it has the value that the
architecture's configuration class gives it. Dropout is left at 0: it is no part of what a trained model computes.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # a config is read without torch, which takes a second to import

Table = Mapping[str, Any]
Tensors = dict[str, Tensor]


def _as_it_is(config: ModelConfig, tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Architecture:
    """How one published architecture maps to ours."""

    config: Callable[[Table], ModelConfig]
    names: Mapping[str, str]
    """Their module → ours; `*` stands for a number, the same on both sides."""
    prefix: str
    """Begins the names in some files and is left out in others."""
    buffers: tuple[str, ...] = ()
    """What old files keep besides weights: masks and angles that are computed here."""
    convert: Callable[[ModelConfig, Tensors], Tensors] = _as_it_is
    """Brings tensors under our names into our layout."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of settings in config.json → those that `config` reads."""


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
    told = dict(table)
    for alias, name in architecture.aliases.items():
        if alias in told and told.setdefault(name, told[alias]) != told[alias]:
            raise DataError(
                f"config.json has {alias} = {told[alias]!r} and {name} = {told[name]!r}, which are the same"
            )
    _check_numbers(told)
    try:
        return architecture.config(told)
    except KeyError as error:
        raise DataError(f"config.json does not say {error}") from None


@contextmanager
def refusing_contradictions(origin: object) -> Iterator[None]:
    """A description by others that makes no model ends in one kind of error."""
    try:
        yield
    except SettingsError as error:
        _, *why = str(error).split("\n  ")  # after whose they are
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
    """Refuse by its own name what is no size or no number above nought, before arithmetic is done with it."""
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


def rename(architecture: Architecture, config: ModelConfig, tensors: Tensors) -> Tensors:
    """The tensors under our names, in our layout; a name that is not known is kept."""
    patterns = [(_pattern(theirs), ours) for theirs, ours in architecture.names.items()]
    buffers = [_pattern(name) for name in architecture.buffers]
    renamed = {}
    for name, tensor in tensors.items():
        module, _, kind = name.removeprefix(architecture.prefix).rpartition(".")
        if any(buffer.fullmatch(f"{module}.{kind}") for buffer in buffers):
            continue
        for pattern, ours in patterns:
            if found := pattern.fullmatch(module):
                module = ours
                for number in found.groups():
                    module = module.replace("*", number, 1)
                break
        renamed[f"{module}.{kind}"] = tensor
    return architecture.convert(config, renamed)


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


def _plain(table: Table, name: str, default: str, bias: bool = True) -> Dense:
    """A feed-forward of two matrices, by the name of its activation."""
    tanh, exact = GELU(approximate="tanh", bias=bias), GELU(approximate="none", bias=bias)
    known = {"gelu_new": tanh, "gelu_pytorch_tanh": tanh, "gelu_fast": tanh, "gelu": exact, "gelu_python": exact}
    chosen: Dense = _choose(table, name, default, known | {"relu": ReLU(bias=bias), "relu2": ReLUSquared(bias=bias)})
    return chosen


def _gated(table: Table, name: str, default: str, bias: bool = False) -> Dense:
    """A feed-forward of three matrices, by the name of its activation."""
    silu, tanh = SwiGLU(bias=bias), GeGLU(approximate="tanh", bias=bias)
    known = {"silu": silu, "swish": silu, "gelu_new": tanh, "gelu_pytorch_tanh": tanh}
    chosen: Dense = _choose(table, name, default, known | {"gelu": GeGLU(approximate="none", bias=bias)})
    return chosen


def _rotary(table: Table, base: float = 10_000.0) -> Rotary:
    """From `rope_parameters`, or `rope_theta` and `rope_scaling` in older files, which win where both are, as there."""
    given = table.get("rope_scaling") or table.get("rope_parameters") or {}
    for place in (given, table):
        _require(place, "partial_rotary_factor", 1.0)  # GPT-NeoX, which knows it, takes it out
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


def _windows(table: Table, window: int | None, otherwise: Callable[[int], bool]) -> dict[str, Any]:
    """The window, and which layers keep to it: by `layer_types`, or by their number."""
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


def _sizes(table: Table) -> dict[str, Any]:
    """What most of them call alike."""
    return {
        "vocab_size": table["vocab_size"],
        "context_length": table["max_position_embeddings"],
        "d_model": table["hidden_size"],
        "n_layers": table["num_hidden_layers"],
        "n_heads": table["num_attention_heads"],
    }


# --- GPT-2 and its like ---


def _gpt_sizes(table: Table) -> dict[str, Any]:
    """By GPT-2's own names."""
    return {
        "vocab_size": table["vocab_size"],
        "context_length": table["n_positions"],
        "d_model": table["n_embd"],
        "n_layers": table["n_layer"],
        "n_heads": table["n_head"],
        "d_ff": table.get("n_inner"),
    }


def _gpt2(table: Table) -> ModelConfig:
    _require(table, "scale_attn_weights", True)
    _require(table, "scale_attn_by_inverse_layer_idx", False)
    return ModelConfig(
        **_gpt_sizes(table),
        position=LearnedPosition(),
        norm=LayerNorm(epsilon=table.get("layer_norm_epsilon", 1e-5)),
        attention=GroupedQuery(bias="all"),
        feedforward=_plain(table, "activation_function", "gelu_new"),
        head=LanguageModel(tied=_flag(table, "tie_word_embeddings", True)),
    )


def _transpose_and_split(config: ModelConfig, tensors: Tensors) -> Tensors:
    """GPT-2 keeps its blocks' matrices transposed, and query, key and value one after another in one."""
    turned = {
        name: tensor.T if name.startswith("blocks.") and tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }
    return _split_fused(turned, lambda fused: fused.chunk(3))


def _split_heads(config: ModelConfig, tensors: Tensors) -> Tensors:
    """GPT-NeoX and BLOOM keep query, key and value of head 0, then those of head 1, … in one matrix."""

    def split(fused: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.flatten(0, 1) for part in fused.unflatten(0, (config.n_heads, 3, -1)).unbind(1))

    return _split_fused(tensors, split)


def _split_fused(tensors: Tensors, split: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensors:
    separate: Tensors = {}
    for name, tensor in tensors.items():
        if "query_key_value" in name:
            for part, piece in zip(("query", "key", "value"), split(tensor), strict=True):
                separate[name.replace("query_key_value", part)] = piece
        else:
            separate[name] = tensor
    return separate


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
        feedforward=_plain(table, "activation_function", "relu", bias),
        block=Sequential(norm="before" if _flag(table, "do_layer_norm_before", True) else "after"),
        head=LanguageModel(tied=_flag(table, "tie_word_embeddings", True)),
    )


def _rename_norms(config: ModelConfig, tensors: Tensors) -> Tensors:
    """OPT-350M has its norms after the sums, under the names that the others have for norms before."""
    if config.block != Sequential(norm="after"):
        return tensors
    return {re.sub(r"(attention|feedforward)_norm\.", r"\1_sum_norm.", name): t for name, t in tensors.items()}


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
        feedforward=_plain(table, "hidden_act", "gelu"),
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
        **_gpt_sizes(table),
        position=Rotary(fraction=rotated * heads / width),
        norm=LayerNorm(epsilon=table.get("layer_norm_epsilon", 1e-5)),
        attention=GroupedQuery(),
        feedforward=_plain(table, "activation_function", "gelu_new"),
        block=Parallel(shared_norm=True),
        head=LanguageModel(tied=_flag(table, "tie_word_embeddings", False), bias=True),
    )


def pairs_to_halves(config: ModelConfig, tensors: Tensors) -> Tensors:
    """GPT-J and Llama's own files turn channels 0 and 1 together, 2 and 3, …; here a channel of the first half goes
    with one of the second. Queries and keys in another order, but both in the same, have the same products."""
    rotated = config.rotary_width
    order = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, config.head_width)]
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
    """What all of them share; the keywords are the architecture's own defaults and blocks."""
    return ModelConfig(
        **_sizes(table),
        n_kv_heads=table.get("num_key_value_heads", kv_heads),
        d_head=table.get("head_dim", head_width),
        d_ff=table["intermediate_size"],
        position=_rotary(table, base),
        norm=RMSNorm(epsilon=table.get("rms_norm_eps", epsilon)),
        attention=attention,
        **{
            "feedforward": _gated(table, "hidden_act", "silu"),
            "head": LanguageModel(tied=_flag(table, "tie_word_embeddings", False)),
            **others,
        },
    )


def _all_or_none(table: Table) -> Any:
    return "all" if _flag(table, "attention_bias", False) else "none"


def _llama(table: Table) -> ModelConfig:
    feedforward = _gated(table, "hidden_act", "silu", bias=_flag(table, "mlp_bias", False))
    return _llama_like(table, GroupedQuery(bias=_all_or_none(table)), feedforward=feedforward)


def _mistral(table: Table) -> ModelConfig:
    if table.get("layer_types") is not None:  # heeded by one of their classes and not by the other
        raise DataError("config.json has layer_types, which mistral does not know; is it a ministral?")
    return _llama_like(table, GroupedQuery(window=table.get("sliding_window", 4096)), kv_heads=8)


def _qwen_window(table: Table) -> dict[str, Any]:
    """The first `max_window_layers` layers see all, the others a window, if windows are in use."""
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
        expert=_gated(table, "hidden_act", "silu"),
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
        feedforward=_gated(table, "hidden_activation", "gelu_pytorch_tanh"),
        block=Sequential(norm="around"),
        head=LanguageModel(
            tied=_flag(table, "tie_word_embeddings", True), soft_cap=table.get("final_logit_softcapping", 30.0)
        ),
    )


def _stack_experts(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Mixtral keeps a matrix for each expert; ours lie in one tensor, expert after expert."""
    import torch  # only where there are tensors

    stacks: dict[str, dict[int, Tensor]] = {}
    for name in [name for name in tensors if ".experts." in name]:
        before, _, after = name.partition(".experts.")
        number, _, part = after.partition(".")
        stacks.setdefault(f"{before}.experts.{part}", {})[int(number)] = tensors.pop(name)
    return tensors | {name: torch.stack([stack[n] for n in sorted(stack)]) for name, stack in stacks.items()}


def _add_one_to_gains(config: ModelConfig, tensors: Tensors) -> Tensors:
    """Gemma keeps a norm's gain as what it has above 1; in float32, since bfloat16 would round the sum."""
    return {name: tensor.float() + 1 if "norm." in name else tensor for name, tensor in tensors.items()}


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

MASKS = ("h.*.attn.bias", "h.*.attn.masked_bias")
ANGLES = ("layers.*.self_attn.rotary_emb.inv_freq",)
NEOX_BUFFERS = ("layers.*.attention.bias", "layers.*.attention.masked_bias", "layers.*.attention.rotary_emb.inv_freq")

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(_gpt2, GPT2_NAMES, "transformer.", MASKS, _transpose_and_split, GPT2_ALIASES),
    "opt": Architecture(_opt, OPT_NAMES, "model.", (), _rename_norms),
    "gptj": Architecture(_gptj, GPTJ_NAMES, "transformer.", MASKS, pairs_to_halves, GPT2_ALIASES),
    "gpt_neox": Architecture(_gpt_neox, GPT_NEOX_NAMES, "gpt_neox.", NEOX_BUFFERS, _split_heads),
    "bloom": Architecture(_bloom, BLOOM_NAMES, "transformer.", (), _split_heads, BLOOM_ALIASES),
    "llama": Architecture(_llama, LLAMA_NAMES, "model.", ANGLES),
    "mistral": Architecture(_mistral, LLAMA_NAMES, "model.", ANGLES),
    "mixtral": Architecture(
        _mixtral, MIXTRAL_NAMES, "model.", ANGLES, _stack_experts, {"num_experts": "num_local_experts"}
    ),
    "qwen2": Architecture(_qwen2, LLAMA_NAMES, "model.", ANGLES),
    "qwen3": Architecture(_qwen3, LLAMA_NAMES, "model."),
    "olmo2": Architecture(_olmo2, OLMO2_NAMES, "model."),
    "gemma2": Architecture(_gemma2, GEMMA2_NAMES, "model.", (), _add_one_to_gains),
}
"""By `model_type` of a Hugging Face config.json."""
