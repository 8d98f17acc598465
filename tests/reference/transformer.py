"""Two decoder-only Transformers, GPT-2's shape and Llama's: a loss and the gradient of every parameter.

B batch, T time, D width, H query heads, G key/value heads, K head width, V vocabulary.

Both are pre-norm: each block adds to a stream of vectors what attention, then the feed-forward, make of the normalised
stream (Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3; Xiong et al. 2020,
arXiv:2002.04745, figure 1b). A sum passes its gradient to both of its terms, so on the way back each block adds to the
stream's gradient what comes back through its two branches (He et al. 2016, arXiv:1603.05027, eq. 5).

What is optional is told by the parameters given: a linear map has a bias if there is one under its name, each
query and key head is normalised if there is a `query_norm`, and without a `head.weight` the head is the embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from . import layers
from .layers import Array, Kept

Parameters = Mapping[str, Array]
Gradients = dict[str, Array]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the parameters do not tell."""

    position: Literal["learned", "rotary"]
    norm: Literal["layernorm", "rmsnorm"]
    feedforward: Literal["gelu", "gelu_tanh", "swiglu"]
    n_layers: int
    n_heads: int
    n_kv_heads: int
    epsilon: float = 1e-5
    """Of every normalisation."""
    rotary_base: float = 10_000.0
    rotary_channels: int | None = None
    """How many channels of a head are turned; all if not given."""


GPT2 = partial(Sizes, position="learned", norm="layernorm", feedforward="gelu_tanh")
"""Sizes of GPT-2's shape (Radford et al. 2019)."""
LLAMA = partial(Sizes, position="rotary", norm="rmsnorm", feedforward="swiglu")
"""Sizes of Llama's shape (Touvron et al. 2023, arXiv:2302.13971, section 2.2)."""


def loss_and_gradients(
    parameters: Parameters,
    sizes: Sizes,
    tokens: Array,
    targets: Array,
    weights: Array,
    divisor: float | None = None,
    position: Array | None = None,
) -> tuple[float, Gradients]:
    """Cross-entropy of the targets in nats, and its gradient for each of the parameters.

    Args:
        tokens: (B, T) ids.
        targets: (B, T) ids of the token after each.
        weights: (B, T) of each target in the loss; 0 for padding.
        divisor: of the weighted sum; the total weight if not given.
        position: (B, T) of each token; 0..T−1 if not given.
    """
    divisor = float(weights.sum()) if divisor is None else divisor
    logits, kept = forward(parameters, sizes, tokens, position)
    loss, kept_loss = layers.cross_entropy(logits, targets, weights, divisor)
    return loss, backward(layers.cross_entropy_backward(1.0, kept_loss), kept, sizes)


def forward(parameters: Parameters, sizes: Sizes, tokens: Array, position: Array | None = None) -> tuple[Array, Kept]:
    """The logits (B, T, V) of the token after each position."""
    if position is None:
        position = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    x, kept_embed = layers.embedding(parameters["embed.weight"], tokens)  # (B, T, D)
    kept_position: Kept = ()
    if sizes.position == "learned":
        x, kept_position = layers.learned_position(x, parameters["position.table.weight"], position)
    kept_blocks = []
    for layer in range(sizes.n_layers):
        x, kept_block = _block(parameters, sizes, f"blocks.{layer}", x, position)
        kept_blocks.append(kept_block)
    x, kept_norm = _norm(parameters, sizes, "norm", x)
    tied = "head.weight" not in parameters
    logits, kept_head = layers.linear(x, parameters["embed.weight" if tied else "head.weight"])
    return logits, (kept_embed, kept_position, kept_blocks, kept_norm, tied, kept_head)


def backward(gradient: Array, kept: Kept, sizes: Sizes) -> Gradients:
    """The gradient of every parameter, by name, from that of the logits: `forward`, last step first."""
    kept_embed, kept_position, kept_blocks, kept_norm, tied, kept_head = kept
    gradients: Gradients = {}
    gradient, head_gradient, _ = layers.linear_backward(gradient, kept_head)
    gradient = _norm_backward(gradients, sizes, "norm", gradient, kept_norm)
    for layer in reversed(range(sizes.n_layers)):
        gradient = _block_backward(gradients, sizes, f"blocks.{layer}", gradient, kept_blocks[layer])
    if sizes.position == "learned":
        gradient, gradients["position.table.weight"] = layers.learned_position_backward(gradient, kept_position)
    gradients["embed.weight"] = layers.embedding_backward(gradient, kept_embed)
    if tied:  # one matrix used twice: its gradients add up (Press and Wolf 2017, arXiv:1608.05859, section 3)
        gradients["embed.weight"] += head_gradient
    else:
        gradients["head.weight"] = head_gradient
    return gradients


# --- One block --------------------------------------------------------------------------------------------------------


def _block(parameters: Parameters, sizes: Sizes, name: str, x: Array, position: Array) -> tuple[Array, Kept]:
    """x + attention(norm(x)), then x + feedforward(norm(x))."""
    normalised, kept_attention_norm = _norm(parameters, sizes, f"{name}.attention_norm", x)
    attention, kept_attention = _attention(parameters, sizes, f"{name}.attention", normalised, position)
    x = x + attention
    normalised, kept_feedforward_norm = _norm(parameters, sizes, f"{name}.feedforward_norm", x)
    feedforward, kept_feedforward = _feedforward(parameters, sizes, f"{name}.feedforward", normalised)
    return x + feedforward, (kept_attention_norm, kept_attention, kept_feedforward_norm, kept_feedforward)


def _block_backward(gradients: Gradients, sizes: Sizes, name: str, gradient: Array, kept: Kept) -> Array:
    kept_attention_norm, kept_attention, kept_feedforward_norm, kept_feedforward = kept
    branch = _feedforward_backward(gradients, sizes, f"{name}.feedforward", gradient, kept_feedforward)
    branch = _norm_backward(gradients, sizes, f"{name}.feedforward_norm", branch, kept_feedforward_norm)
    gradient = gradient + branch
    branch = _attention_backward(gradients, sizes, f"{name}.attention", gradient, kept_attention)
    branch = _norm_backward(gradients, sizes, f"{name}.attention_norm", branch, kept_attention_norm)
    return gradient + branch


def _attention(parameters: Parameters, sizes: Sizes, name: str, x: Array, position: Array) -> tuple[Array, Kept]:
    """Queries, keys and values from x; QK-norm is the idea of Henry et al. 2020, arXiv:2010.04245."""
    queries, kept_query = _linear(parameters, f"{name}.query", x)
    keys, kept_key = _linear(parameters, f"{name}.key", x)
    values, kept_value = _linear(parameters, f"{name}.value", x)
    queries = _split(queries, sizes.n_heads)  # (B, H, T, K)
    keys, values = _split(keys, sizes.n_kv_heads), _split(values, sizes.n_kv_heads)  # (B, G, T, K)
    kept_heads: Kept | None = None
    if f"{name}.query_norm.weight" in parameters:
        queries, kept_query_norm = _norm(parameters, sizes, f"{name}.query_norm", queries)
        keys, kept_key_norm = _norm(parameters, sizes, f"{name}.key_norm", keys)
        kept_heads = (kept_query_norm, kept_key_norm)
    kept_turned: Kept | None = None
    if sizes.position == "rotary":
        queries, kept_turned_queries = layers.rotary(queries, position, sizes.rotary_base, sizes.rotary_channels)
        keys, kept_turned_keys = layers.rotary(keys, position, sizes.rotary_base, sizes.rotary_channels)
        kept_turned = (kept_turned_queries, kept_turned_keys)
    read, kept_read = layers.causal_attention(queries, keys, values)
    output, kept_out = _linear(parameters, f"{name}.out", _join(read))
    return output, (kept_query, kept_key, kept_value, kept_heads, kept_turned, kept_read, kept_out)


def _attention_backward(gradients: Gradients, sizes: Sizes, name: str, gradient: Array, kept: Kept) -> Array:
    """x was read three times, by query, key and value: its gradients add up."""
    kept_query, kept_key, kept_value, kept_heads, kept_turned, kept_read, kept_out = kept
    gradient = _linear_backward(gradients, f"{name}.out", gradient, kept_out)
    queries, keys, values = layers.causal_attention_backward(_split(gradient, sizes.n_heads), kept_read)
    if kept_turned is not None:
        kept_turned_queries, kept_turned_keys = kept_turned
        queries = layers.rotary_backward(queries, kept_turned_queries)
        keys = layers.rotary_backward(keys, kept_turned_keys)
    if kept_heads is not None:
        kept_query_norm, kept_key_norm = kept_heads
        queries = _norm_backward(gradients, sizes, f"{name}.query_norm", queries, kept_query_norm)
        keys = _norm_backward(gradients, sizes, f"{name}.key_norm", keys, kept_key_norm)
    return (
        _linear_backward(gradients, f"{name}.query", _join(queries), kept_query)
        + _linear_backward(gradients, f"{name}.key", _join(keys), kept_key)
        + _linear_backward(gradients, f"{name}.value", _join(values), kept_value)
    )


def _split(x: Array, heads: int) -> Array:
    """(B, T, N K) -> (B, N, T, K): a new order of the same numbers, so `_join` is its way back."""
    batch, time, _ = x.shape
    return x.reshape(batch, time, heads, -1).transpose(0, 2, 1, 3)


def _join(x: Array) -> Array:
    """(B, N, T, K) -> (B, T, N K), the way back of `_split`."""
    batch, _, time, _ = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, time, -1)


def _feedforward(parameters: Parameters, sizes: Sizes, name: str, x: Array) -> tuple[Array, Kept]:
    """down(gelu(up(x))), or down(silu(gate(x)) ⊙ up(x)) (Shazeer 2020, arXiv:2002.05202, eq. 6)."""
    inner, kept_up = _linear(parameters, f"{name}.up", x)  # (B, T, F)
    kept_gate: Kept = ()
    match sizes.feedforward:
        case "gelu":
            inner, kept_inner = layers.gelu(inner)
        case "gelu_tanh":
            inner, kept_inner = layers.gelu_tanh(inner)
        case "swiglu":
            gate, kept_gate = _linear(parameters, f"{name}.gate", x)
            inner, kept_inner = layers.swiglu(gate, inner)
    output, kept_down = _linear(parameters, f"{name}.down", inner)
    return output, (kept_up, kept_gate, kept_inner, kept_down)


def _feedforward_backward(gradients: Gradients, sizes: Sizes, name: str, gradient: Array, kept: Kept) -> Array:
    kept_up, kept_gate, kept_inner, kept_down = kept
    inner = _linear_backward(gradients, f"{name}.down", gradient, kept_down)
    match sizes.feedforward:
        case "gelu":
            up = layers.gelu_backward(inner, kept_inner)
        case "gelu_tanh":
            up = layers.gelu_tanh_backward(inner, kept_inner)
        case "swiglu":
            gate, up = layers.swiglu_backward(inner, kept_inner)
            from_gate = _linear_backward(gradients, f"{name}.gate", gate, kept_gate)
            return from_gate + _linear_backward(gradients, f"{name}.up", up, kept_up)
    return _linear_backward(gradients, f"{name}.up", up, kept_up)


# --- Layers by their parameters' names --------------------------------------------------------------------------------


def _linear(parameters: Parameters, name: str, x: Array) -> tuple[Array, Kept]:
    return layers.linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))


def _linear_backward(gradients: Gradients, name: str, gradient: Array, kept: Kept) -> Array:
    gradient, gradients[f"{name}.weight"], bias_gradient = layers.linear_backward(gradient, kept)
    if bias_gradient is not None:
        gradients[f"{name}.bias"] = bias_gradient
    return gradient


def _norm(parameters: Parameters, sizes: Sizes, name: str, x: Array) -> tuple[Array, Kept]:
    if sizes.norm == "rmsnorm":
        return layers.rms_norm(x, parameters[f"{name}.weight"], sizes.epsilon)
    return layers.layer_norm(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"), sizes.epsilon)


def _norm_backward(gradients: Gradients, sizes: Sizes, name: str, gradient: Array, kept: Kept) -> Array:
    if sizes.norm == "rmsnorm":
        gradient, gradients[f"{name}.weight"] = layers.rms_norm_backward(gradient, kept)
        return gradient
    gradient, gradients[f"{name}.weight"], bias_gradient = layers.layer_norm_backward(gradient, kept)
    if bias_gradient is not None:
        gradients[f"{name}.bias"] = bias_gradient
    return gradient
