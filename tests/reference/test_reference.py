"""The reference against finite differences and autograd; then our models and optimizer against the reference."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW

from . import layers
from .adamw import adamw, no_moments
from .transformer import GPT2, LLAMA, Sizes, loss_and_gradients

Array = np.ndarray

# --- Layers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One operation: the reference's forward and backward, and torch's forward, as functions of float arrays."""

    forward: Callable[..., tuple[Any, layers.Kept]]
    backward: Callable[..., Any]
    torch: Callable[..., Tensor]
    inputs: tuple[Array, ...]


_generator = np.random.default_rng(0)


def _normal(*shape: int) -> Array:
    """Other numbers at every call; not called inside a test, which then would depend on the tests before it."""
    return _generator.normal(size=shape)


def _gain(width: int) -> Array:
    return 1 + 0.3 * _normal(width)


INDEX = np.array([[2, 0, 2, 5], [5, 5, 1, 2]])
"""With repetitions, and rows 3 and 4 of a table of six never read."""
POSITION = np.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 2]])
TARGETS = np.array([[1, 0, 6], [3, 3, 2]])
WEIGHTS = np.array([[1.0, 0.5, 0.0], [2.0, 1.0, 0.0]])


def _rotary_by_complex_numbers(x: Tensor, position: Array, base: float, channels: int) -> Tensor:
    """Multiply the point first + i second by exp(i angle)."""
    first, second, rest = x.split([channels // 2, channels // 2, x.shape[-1] - channels], dim=-1)
    frequency = torch.tensor([base ** (-2 * i / channels) for i in range(channels // 2)], dtype=torch.float64)
    angle = torch.from_numpy(position)[:, None, :, None] * frequency
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag, rest), dim=-1)


def _attention(heads: int, groups: int) -> Layer:
    return Layer(
        layers.causal_attention,
        layers.causal_attention_backward,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        (_normal(2, heads, 5, 3), _normal(2, groups, 5, 3), _normal(2, groups, 5, 4)),
    )


def _rotary(channels: int) -> Layer:
    return Layer(
        lambda x: layers.rotary(x, POSITION, 100.0, channels),
        layers.rotary_backward,
        lambda x: _rotary_by_complex_numbers(x, POSITION, 100.0, channels),
        (_normal(2, 3, 5, 6),),
    )


LAYERS: dict[str, Layer] = {
    "embedding": Layer(
        lambda table: layers.embedding(table, INDEX),
        layers.embedding_backward,
        lambda table: F.embedding(torch.from_numpy(INDEX), table),
        (_normal(6, 3),),
    ),
    "learned position": Layer(
        lambda x, table: layers.learned_position(x, table, INDEX),
        layers.learned_position_backward,
        lambda x, table: x + F.embedding(torch.from_numpy(INDEX), table),
        (_normal(2, 4, 3), _normal(6, 3)),
    ),
    "linear": Layer(layers.linear, layers.linear_backward, F.linear, (_normal(2, 4, 3), _normal(5, 3), _normal(5))),
    "linear without bias": Layer(
        layers.linear,
        lambda gradient, kept: layers.linear_backward(gradient, kept)[:2],
        F.linear,
        (_normal(2, 4, 3), _normal(5, 3)),
    ),
    "layer norm": Layer(
        lambda x, weight, bias: layers.layer_norm(x, weight, bias, 1e-2),
        layers.layer_norm_backward,
        lambda x, weight, bias: F.layer_norm(x, (7,), weight, bias, 1e-2),
        (_normal(2, 4, 7) + 0.5, _gain(7), _normal(7)),
    ),
    "layer norm without bias": Layer(
        lambda x, weight: layers.layer_norm(x, weight, None, 1e-2),
        lambda gradient, kept: layers.layer_norm_backward(gradient, kept)[:2],
        lambda x, weight: F.layer_norm(x, (7,), weight, None, 1e-2),
        (_normal(2, 4, 7) + 0.5, _gain(7)),
    ),
    "rms norm": Layer(
        lambda x, weight: layers.rms_norm(x, weight, 1e-2),
        layers.rms_norm_backward,
        lambda x, weight: F.rms_norm(x, (7,), weight, 1e-2),
        (_normal(2, 4, 7) + 0.5, _gain(7)),
    ),
    "rotary": _rotary(6),
    "rotary on some channels": _rotary(4),
    "softmax": Layer(layers.softmax, layers.softmax_backward, lambda x: x.softmax(dim=-1), (3 * _normal(2, 4, 5),)),
    "attention, a key/value head for each query head": _attention(4, 4),
    "attention, two query heads to a key/value head": _attention(4, 2),
    "attention, one key/value head": _attention(4, 1),
    "gelu": Layer(layers.gelu, layers.gelu_backward, F.gelu, (2 * _normal(5, 7),)),
    "gelu by tanh": Layer(
        layers.gelu_tanh, layers.gelu_tanh_backward, lambda x: F.gelu(x, approximate="tanh"), (2 * _normal(5, 7),)
    ),
    "silu": Layer(layers.silu, layers.silu_backward, F.silu, (2 * _normal(5, 7),)),
    "swiglu": Layer(
        layers.swiglu, layers.swiglu_backward, lambda gate, up: F.silu(gate) * up, (2 * _normal(5, 7), _normal(5, 7))
    ),
    "cross-entropy": Layer(
        lambda logits: layers.cross_entropy(logits, TARGETS, WEIGHTS, 7.0),
        layers.cross_entropy_backward,
        lambda logits: (
            (
                torch.from_numpy(WEIGHTS)
                * F.cross_entropy(logits.transpose(1, 2), torch.from_numpy(TARGETS), reduction="none")
            ).sum()
            / 7.0
        ),
        (2 * _normal(2, 3, 7),),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_torchs(name: str) -> None:
    layer = LAYERS[name]
    output, _ = layer.forward(*layer.inputs)
    expected = layer.torch(*(torch.from_numpy(x) for x in layer.inputs))
    assert _relative_difference(output, expected.numpy()) < 1e-12  # float64; the sums run in another order


@pytest.mark.parametrize("name", LAYERS)
def test_layer_backward_is_finite_differences(name: str) -> None:
    layer = LAYERS[name]
    output, kept = layer.forward(*layer.inputs)
    gradient = _any_gradient(output)
    for number, derived in enumerate(_as_tuple(layer.backward(gradient, kept))):

        def projected(x: Array, number: int = number) -> float:
            inputs = [*layer.inputs[:number], x, *layer.inputs[number + 1 :]]
            return float((gradient * layer.forward(*inputs)[0]).sum())

        expected = _central_differences(projected, layer.inputs[number])
        assert derived.shape == layer.inputs[number].shape
        # A step of 1e-5 leaves an error of about its square times the third derivative, and 1e-16 / 1e-5 of rounding.
        assert _relative_difference(derived, expected) < 1e-7


@pytest.mark.parametrize("name", LAYERS)
def test_layer_backward_is_autograd(name: str) -> None:
    layer = LAYERS[name]
    output, kept = layer.forward(*layer.inputs)
    gradient = _any_gradient(output)
    inputs = [torch.from_numpy(x).requires_grad_() for x in layer.inputs]
    expected = torch.autograd.grad(layer.torch(*inputs), inputs, torch.as_tensor(gradient))
    for derived, of_torch in zip(_as_tuple(layer.backward(gradient, kept)), expected, strict=True):
        assert _relative_difference(derived, of_torch.numpy()) < 1e-12  # float64; the sums run in another order


def test_extreme_inputs_stay_finite() -> None:
    """Overflow would be a warning, and a warning is an error here."""
    x = np.array([[-800.0, 0.0, 800.0]])
    for name in ("softmax", "gelu", "gelu by tanh", "silu"):
        output, kept = LAYERS[name].forward(x)
        assert np.isfinite(output).all()
        assert np.isfinite(LAYERS[name].backward(np.ones_like(x), kept)).all()
    loss, _ = layers.cross_entropy(x, np.array([0]), np.ones(1), 1.0)
    assert loss == 1600.0


def _any_gradient(output: Any) -> Any:
    """An array of the output's shape, or a number for a number."""
    return np.random.default_rng(1).normal(size=np.shape(output))[()]


def _central_differences(function: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """(f(x + h) − f(x − h)) / 2h for each element of x in turn."""
    slopes = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += step
        behind[place] -= step
        slopes[place] = (function(ahead) - function(behind)) / (2 * step)
    return slopes


def _relative_difference(actual: Array, expected: Array) -> float:
    """The largest difference, over the largest value expected."""
    assert np.shape(actual) == np.shape(expected)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _as_tuple(gradients: Any) -> tuple[Array, ...]:
    return gradients if isinstance(gradients, tuple) else (gradients,)


# --- Models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """One model, described once for both sides."""

    sizes: Sizes
    d_head: int
    attention_bias: Literal["none", "qkv", "all"] = "none"
    feedforward_bias: bool = False
    norm_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    time: int = 7
    vocab_size: int = 23
    d_model: int = 10
    d_ff: int = 13
    context_length: int = 11


ALL_BIASES: dict[str, Any] = {"attention_bias": "all", "feedforward_bias": True, "norm_bias": True}
SHAPES: dict[str, Shape] = {
    "gpt2": Shape(GPT2(n_layers=2, n_heads=4, n_kv_heads=4), d_head=3, **ALL_BIASES),
    "gpt2, exact GELU, untied, no biases": Shape(
        GPT2(n_layers=1, n_heads=3, n_kv_heads=3, feedforward="gelu"), d_head=5, tied=False
    ),
    "gpt2, grouped, normalised heads": Shape(
        GPT2(n_layers=2, n_heads=4, n_kv_heads=2, epsilon=1e-2), d_head=5, qk_norm=True, **ALL_BIASES
    ),
    "gpt2, one key/value head, no biases": Shape(GPT2(n_layers=3, n_heads=2, n_kv_heads=1), d_head=7, time=5),
    "llama, one key/value head": Shape(LLAMA(n_layers=2, n_heads=4, n_kv_heads=1), d_head=4),
    "llama, grouped, untied, normalised heads": Shape(
        LLAMA(n_layers=2, n_heads=4, n_kv_heads=2, epsilon=1e-2), d_head=6, qk_norm=True, tied=False
    ),
    "llama, multi-head, other base": Shape(
        LLAMA(n_layers=3, n_heads=3, n_kv_heads=3, rotary_base=50.0), d_head=2, qk_norm=True, time=9
    ),
    "llama, all biases": Shape(
        LLAMA(n_layers=1, n_heads=6, n_kv_heads=2), d_head=8, attention_bias="all", feedforward_bias=True, tied=False
    ),
    "llama, biases on queries, keys and values": Shape(
        LLAMA(n_layers=2, n_heads=4, n_kv_heads=4), d_head=4, attention_bias="qkv"
    ),
    "rotary on some channels": Shape(LLAMA(n_layers=2, n_heads=4, n_kv_heads=2, rotary_channels=2), d_head=8),
    "rotary with LayerNorm and GELU": Shape(
        LLAMA(n_layers=2, n_heads=4, n_kv_heads=2, norm="layernorm", feedforward="gelu"), d_head=4, **ALL_BIASES
    ),
    "learned with RMSNorm and SwiGLU": Shape(
        GPT2(n_layers=2, n_heads=4, n_kv_heads=2, norm="rmsnorm", feedforward="swiglu"), d_head=3
    ),
}


def _config(shape: Shape) -> ModelConfig:
    """The one place that knows how the settings spell a shape."""
    sizes = shape.sizes
    position: dict[str, object] = {"kind": sizes.position}
    if sizes.position == "rotary":
        turned = sizes.rotary_channels or shape.d_head
        position |= {"base": sizes.rotary_base, "fraction": turned / shape.d_head}
    norm: dict[str, object] = {"kind": sizes.norm, "epsilon": sizes.epsilon}
    if sizes.norm == "layernorm":
        norm["bias"] = shape.norm_bias
    feedforward: dict[str, object] = {"kind": "swiglu", "bias": shape.feedforward_bias}
    if sizes.feedforward != "swiglu":
        approximate = {"gelu": "none", "gelu_tanh": "tanh"}[sizes.feedforward]
        feedforward |= {"kind": "gelu", "approximate": approximate}
    return ModelConfig.from_table(
        {
            "vocab_size": shape.vocab_size,
            "context_length": shape.context_length,
            "d_model": shape.d_model,
            "n_layers": sizes.n_layers,
            "n_heads": sizes.n_heads,
            "n_kv_heads": sizes.n_kv_heads,
            "d_head": shape.d_head,
            "d_ff": shape.d_ff,
            "position": position,
            "norm": norm,
            "attention": {"bias": shape.attention_bias, "qk_norm": "head" if shape.qk_norm else "none"},
            "feedforward": feedforward,
            "head": {"tied": shape.tied},
        }
    )


def _tolerance(shape: Shape) -> float:
    """Relative. The model computes rotary angles in float32 whatever its precision, which leaves some 1e-7; all else is
    float64 on both sides, and differs by the order of the sums alone."""
    return {"learned": 1e-10, "rotary": 1e-5}[shape.sizes.position]


def _model(shape: Shape) -> Transformer:
    """In float64; gains are not one and biases not zero, so that each of them matters."""
    torch.manual_seed(0)
    model = Transformer(_config(shape)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def _parameters(model: Transformer) -> dict[str, Array]:
    """Copies; a tied matrix once, under its first name."""
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


@dataclass(frozen=True)
class Rows:
    tokens: Array
    targets: Array
    weights: Array
    position: Array


def _rows(shape: Shape) -> Rows:
    """Three rows: a plain one, one whose positions start again from zero, and one whose end is padding."""
    generator = np.random.default_rng(0)
    ids = generator.integers(shape.vocab_size, size=(3, shape.time + 1))
    position = np.tile(np.arange(shape.time), (3, 1))
    position[1, 2:] -= 2
    weights = generator.uniform(0.5, 2.0, size=(3, shape.time))
    weights[2, -3:] = 0.0
    return Rows(ids[:, :-1], ids[:, 1:], weights, position)


def _autograd(model: Transformer, rows: Rows) -> tuple[float, dict[str, Array]]:
    model.zero_grad()
    logits = model(torch.from_numpy(rows.tokens), torch.from_numpy(rows.position))
    losses = F.cross_entropy(logits.transpose(1, 2), torch.from_numpy(rows.targets), reduction="none")
    weights = torch.from_numpy(rows.weights)
    loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.numpy().copy()
    return loss.item(), gradients


def _reference(parameters: dict[str, Array], shape: Shape, rows: Rows) -> tuple[float, dict[str, Array]]:
    return loss_and_gradients(parameters, shape.sizes, rows.tokens, rows.targets, rows.weights, position=rows.position)


@pytest.mark.parametrize("name", SHAPES)
def test_every_gradient_of_the_model_is_the_references(name: str) -> None:
    shape = SHAPES[name]
    model, rows = _model(shape), _rows(shape)
    loss, gradients = _reference(_parameters(model), shape, rows)
    expected_loss, expected = _autograd(model, rows)
    assert loss == pytest.approx(expected_loss, rel=_tolerance(shape))
    assert gradients.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for parameter, gradient in gradients.items():
        # A bias on the keys adds the same to all scores of a query, which the softmax does not see: without rotation
        # its gradient is zero but for rounding, so a difference is also measured against the model's largest.
        allowed = _tolerance(shape) * np.abs(expected[parameter]).max() + 1e-14 * largest
        assert gradient.shape == expected[parameter].shape, parameter
        assert np.abs(gradient - expected[parameter]).max() <= allowed, parameter


@pytest.mark.parametrize("name", ["gpt2, grouped, normalised heads", "llama, grouped, untied, normalised heads"])
def test_the_references_gradients_are_finite_differences(name: str) -> None:
    """Along one random direction of all parameters at once; some channels turned, others not."""
    shape = SHAPES[name]
    shape = replace(shape, sizes=replace(shape.sizes, rotary_channels=4))
    parameters, rows = _parameters(_model(shape)), _rows(shape)
    generator = np.random.default_rng(1)
    direction = {name: generator.normal(size=parameter.shape) for name, parameter in parameters.items()}

    def along(distance: Array) -> float:
        moved = {name: parameter + distance * direction[name] for name, parameter in parameters.items()}
        return _reference(moved, shape, rows)[0]

    _, gradients = _reference(parameters, shape, rows)
    slope = sum((gradients[name] * direction[name]).sum() for name in parameters)
    assert slope == pytest.approx(_central_differences(along, np.array(0.0)).item(), rel=1e-6)  # see the layers


def test_pieces_of_a_batch_add_up_to_the_batch() -> None:
    """What the divisor is for: gradients of rows over the whole batch's weight sum to the whole batch's."""
    shape = SHAPES["llama, one key/value head"]
    parameters, rows = _parameters(_model(shape)), _rows(shape)
    _, whole = _reference(parameters, shape, rows)
    total = {name: np.zeros_like(parameter) for name, parameter in parameters.items()}
    for row in range(3):
        one = slice(row, row + 1)
        _, gradients = loss_and_gradients(
            parameters,
            shape.sizes,
            rows.tokens[one],
            rows.targets[one],
            rows.weights[one],
            divisor=rows.weights.sum(),
            position=rows.position[one],
        )
        for name, gradient in gradients.items():
            total[name] += gradient
    for name, gradient in whole.items():
        np.testing.assert_allclose(total[name], gradient, rtol=0, atol=1e-13)  # float64


# --- Optimizer --------------------------------------------------------------------------------------------------------

OPTIONS = {"learning_rate": 0.02, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}


def _torchs(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """torch's own plain loop over parameters, matrices decayed and vectors not."""
    decayed = {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": OPTIONS["weight_decay"]}
    plain = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    return torch.optim.AdamW(
        [decayed, plain],
        lr=OPTIONS["learning_rate"],
        betas=(OPTIONS["beta1"], OPTIONS["beta2"]),
        eps=OPTIONS["epsilon"],
        foreach=False,
    )


def _ours(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return make_optimizer(((str(n), weight) for n, weight in enumerate(parameters)), AdamW(**OPTIONS))


@pytest.mark.parametrize("make", [_torchs, _ours])
def test_adamw_is_the_references(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
    generator = np.random.default_rng(0)
    shapes = {"matrix": (4, 3), "gain": (5,), "never used": (2, 2)}
    expected = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    moments = no_moments(expected)
    parameters = {name: torch.from_numpy(value.copy()).requires_grad_() for name, value in expected.items()}
    optimizer = make(list(parameters.values()))
    for _ in range(8):
        gradients = {name: generator.normal(size=value.shape) ** 3 for name, value in expected.items()}
        gradients["never used"] *= 0.0
        expected, moments = adamw(expected, gradients, moments, **OPTIONS)
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradients[name])
        optimizer.step()
    assert moments.step == 8
    for name, parameter in parameters.items():
        assert _relative_difference(parameter.detach().numpy(), expected[name]) < 1e-12, name  # float64 on both sides


@pytest.mark.parametrize("name", ["gpt2", "llama, one key/value head"])
def test_training_is_the_references(name: str) -> None:
    """Five steps of model, gradient and optimizer together: the same loss at each."""
    shape = SHAPES[name]
    model, rows = _model(shape), _rows(shape)
    optimizer = _ours(list(model.parameters()))
    parameters = _parameters(model)
    moments = no_moments(parameters)
    losses = []
    for _ in range(5):
        expected_loss, gradients = _reference(parameters, shape, rows)
        parameters, moments = adamw(parameters, gradients, moments, **OPTIONS)
        loss, _ = _autograd(model, rows)
        optimizer.step()
        assert loss == pytest.approx(expected_loss, rel=_tolerance(shape))
        losses.append(loss)
    assert losses == sorted(losses, reverse=True)
