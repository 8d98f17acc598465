"""Name maps: published architectures, read into our blocks.

An entry turns a Hugging Face `config.json` into a `ModelConfig`, and its tensors' names into ours. A setting that our
blocks cannot represent is refused by name, never ignored.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from groundup.errors import DataError
from groundup.model.settings import GELU, GroupedQuery, LayerNorm, LearnedPosition, ModelConfig, RMSNorm, Rotary, SwiGLU

Table = Mapping[str, Any]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """How one published architecture maps to ours."""

    config: Callable[[Table], ModelConfig]
    weights: Callable[[Tensors], Tensors]


def _require(table: Table, name: str, representable: object, default: object) -> None:
    value = table.get(name, default)
    if value != representable:
        raise DataError(f"config.json has {name} = {value!r}; the blocks here represent only {representable!r}")


def _rename(tensors: Tensors, rules: list[tuple[str, str]], ignored: str) -> Tensors:
    """Names by the first rule whose pattern matches all of them; what no rule matches keeps its name."""
    renamed = {}
    for name, tensor in tensors.items():
        if re.fullmatch(ignored, name):
            continue
        for pattern, ours in rules:
            if re.fullmatch(pattern, name):
                name = re.sub(pattern, ours, name)
                break
        renamed[name] = tensor
    return renamed


GELU_NAMES: dict[str, Any] = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}


def _gpt2_config(table: Table) -> ModelConfig:
    _require(table, "scale_attn_weights", True, True)
    _require(table, "scale_attn_by_inverse_layer_idx", False, False)
    _require(table, "add_cross_attention", False, False)
    activation = table.get("activation_function", "gelu_new")
    if activation not in GELU_NAMES:
        raise DataError(f"config.json has activation_function = {activation!r}; known: {', '.join(GELU_NAMES)}")
    return ModelConfig(
        vocab_size=table["vocab_size"],
        context_length=table["n_positions"],
        d_model=table["n_embd"],
        n_layers=table["n_layer"],
        n_heads=table["n_head"],
        d_ff=table.get("n_inner"),
        position=LearnedPosition(),
        norm=LayerNorm(epsilon=table.get("layer_norm_epsilon", 1e-5)),
        attention=GroupedQuery(bias=True),
        feedforward=GELU(approximate=GELU_NAMES[activation]),
        tied_embeddings=table.get("tie_word_embeddings", True),
    )


def _gpt2_weights(tensors: Tensors) -> Tensors:
    """GPT-2 keeps its matrices transposed, and query, key and value in one (`c_attn`)."""
    block = r"(?:transformer\.)?h\.(\d+)\."
    named = _rename(
        tensors,
        [
            (r"(?:transformer\.)?wte\.weight", r"embed.weight"),
            (r"(?:transformer\.)?wpe\.weight", r"position.table.weight"),
            (r"(?:transformer\.)?ln_f\.(.*)", r"norm.\1"),
            (r"lm_head\.weight", r"head.weight"),
            (block + r"ln_1\.(.*)", r"blocks.\1.attention_norm.\2"),
            (block + r"ln_2\.(.*)", r"blocks.\1.feedforward_norm.\2"),
            (block + r"attn\.c_attn\.(.*)", r"blocks.\1.attention.query_key_value.\2"),
            (block + r"attn\.c_proj\.(.*)", r"blocks.\1.attention.out.\2"),
            (block + r"mlp\.c_fc\.(.*)", r"blocks.\1.feedforward.up.\2"),
            (block + r"mlp\.c_proj\.(.*)", r"blocks.\1.feedforward.down.\2"),
        ],
        ignored=block + r"attn\.(bias|masked_bias)",  # the causal mask, kept as a buffer
    )
    split: Tensors = {}
    for name, tensor in named.items():
        if name.startswith("blocks.") and tensor.ndim == 2:
            tensor = tensor.T
        if "query_key_value" in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                split[name.replace("query_key_value", part)] = piece
        else:
            split[name] = tensor
    return split


def _llama_config(table: Table) -> ModelConfig:
    rope = table.get("rope_parameters") or table.get("rope_scaling") or {}
    _require(rope, "rope_type", "default", rope.get("type", "default"))
    _require(table, "hidden_act", "silu", "silu")
    return ModelConfig(
        vocab_size=table["vocab_size"],
        context_length=table["max_position_embeddings"],
        d_model=table["hidden_size"],
        n_layers=table["num_hidden_layers"],
        n_heads=table["num_attention_heads"],
        n_kv_heads=table.get("num_key_value_heads"),
        d_head=table.get("head_dim"),
        d_ff=table["intermediate_size"],
        position=Rotary(base=float(rope.get("rope_theta") or table.get("rope_theta", 10_000.0))),
        norm=RMSNorm(epsilon=table.get("rms_norm_eps", 1e-6)),
        attention=GroupedQuery(bias=table.get("attention_bias", False)),
        feedforward=SwiGLU(bias=table.get("mlp_bias", False)),
        tied_embeddings=table.get("tie_word_embeddings", False),
    )


def _llama_weights(tensors: Tensors) -> Tensors:
    block = r"model\.layers\.(\d+)\."
    return _rename(
        tensors,
        [
            (r"model\.embed_tokens\.weight", r"embed.weight"),
            (r"model\.norm\.weight", r"norm.weight"),
            (r"lm_head\.weight", r"head.weight"),
            (block + r"input_layernorm\.weight", r"blocks.\1.attention_norm.weight"),
            (block + r"post_attention_layernorm\.weight", r"blocks.\1.feedforward_norm.weight"),
            (block + r"self_attn\.q_proj\.(.*)", r"blocks.\1.attention.query.\2"),
            (block + r"self_attn\.k_proj\.(.*)", r"blocks.\1.attention.key.\2"),
            (block + r"self_attn\.v_proj\.(.*)", r"blocks.\1.attention.value.\2"),
            (block + r"self_attn\.o_proj\.(.*)", r"blocks.\1.attention.out.\2"),
            (block + r"mlp\.(gate|up|down)_proj\.(.*)", r"blocks.\1.feedforward.\2.\3"),
        ],
        ignored=block + r"self_attn\.rotary_emb\.inv_freq",  # computed here, kept as a buffer by old files
    )


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(_gpt2_config, _gpt2_weights),
    "llama": Architecture(_llama_config, _llama_weights),
}
"""By `model_type` of a Hugging Face config.json."""
