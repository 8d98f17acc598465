"""Counts equal the published ones, torch's own, and what a real run keeps in memory."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from groundup.generation.cache import PagedCache
from groundup.model.attention import Causal
from groundup.model.count import DTYPES
from groundup.model.count import count as count_anew
from groundup.model.presets import PRESETS
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("shapes_unchecked")  # its time; what is counted runs checked in the tests beside
count = functools.cache(count_anew)
"""Once for each shape: a count depends on nothing else."""
SIZES: dict[str, Any] = {"vocab_size": 97, "context_length": 60, "d_model": 32, "n_layers": 4, "n_heads": 4, "d_ff": 48}
LAYERNORM = {"norm": {"kind": "layernorm"}, "attention": {"bias": "all"}}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 2, "attention": {"qk_norm": "head"}},
    "dropout": {"dropout": 0.1, "attention": {"dropout": 0.1}},
    "gpt2": {**LAYERNORM, "position": {"kind": "learned"}, "feedforward": {"kind": "gelu"}},
    "opt-350m": {**LAYERNORM, "d_embedding": 20, "feedforward": {"kind": "relu"}, "block": {"norm": "after"}},
    "bloom": {**LAYERNORM, "position": {"kind": "alibi"}, "embedding_norm": True, "feedforward": {"kind": "gelu"}},
    "gptj": {"block": {"kind": "parallel", "shared_norm": True}, "head": {"tied": False, "bias": True}},
    "gemma2": {
        "attention": {"soft_cap": 5.0, "window": 8, "windowed_layers": [True, False]},
        "feedforward": {"kind": "geglu"},
        "block": {"norm": "around"},
        "head": {"soft_cap": 3.0},
        "embedding_scale": 5.0,
    },
    "olmo2": {"attention": {"qk_norm": "full"}, "block": {"norm": "output"}},
    "relu_squared, sinusoidal": {"feedforward": {"kind": "relu_squared"}, "position": {"kind": "sinusoidal"}},
    "latent": {"attention": {"kind": "latent", "d_latent": 16, "d_rotary": 4, "d_query_latent": 24, "d_value": 6}},
    "experts": {"feedforward": {"kind": "experts", "n_experts": 6, "n_shared": 1}},
    "one layer": {"n_layers": 1, "position": {"kind": "none"}},
    "classes": {"head": {"kind": "classes", "n_classes": 3}},
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> ModelConfig:
    """Every kind of block, tiny."""
    return ModelConfig.from_table({**SIZES, **SHAPES[request.param]})


@pytest.mark.parametrize("name", PRESETS)
def test_published_sizes_have_their_published_parameters_by_both_ways_of_counting(name: str) -> None:
    preset = PRESETS[name]
    counted = count(preset.model)
    if preset.parameters is not None:
        assert counted.total_parameters == preset.parameters
    assert preset.model.parameters == counted.total_parameters
    assert preset.model.training_flops_per_token == counted.training_flops_per_token


def test_closed_forms_equal_what_is_counted_of_every_kind_of_block(shape: ModelConfig) -> None:
    assert shape.parameters == count(shape).total_parameters
    assert shape.training_flops_per_token == count(shape).training_flops_per_token


# Brown et al. 2020: as printed in table 2.1, and in millions in table D.1
GPT3 = {
    "125m": (125e6, 125),
    "350m": (350e6, 356),
    "760m": (760e6, 760),
    "1.3b": (1.3e9, 1320),
    "2.7b": (2.7e9, 2650),
    "6.7b": (6.7e9, 6660),
    "13b": (13.0e9, 12_850),
    "175b": (175.0e9, 174_600),
}


@pytest.mark.parametrize("name", GPT3)
def test_gpt3s_sizes_have_their_printed_parameters(name: str) -> None:
    parameters = count(PRESETS[f"gpt3-{name}"].model).total_parameters
    roughly, millions = GPT3[name]
    assert parameters == pytest.approx(roughly, rel=0.02)  # 350 M is printed for the 356 M of the other table
    rounding = 10 if millions > 1000 else 1
    assert abs(parameters / 1e6 - millions) <= rounding


def test_a_mixtures_active_parameters_are_those_published() -> None:
    """Qwen3's two, as their model cards round them: 3.3 B and 22 B."""
    assert count(PRESETS["qwen3-30b-a3b"].model).active_parameters == 3_353_032_704
    assert count(PRESETS["qwen3-235b-a22b"].model).active_parameters == 22_190_763_520


def test_parameters_are_those_of_the_model(shape: ModelConfig) -> None:
    assert count(shape).total_parameters == sum(p.numel() for p in Transformer(shape).parameters())


def test_flops_are_those_of_a_whole_model_on_real_tensors(shape: ModelConfig) -> None:
    model = Transformer(shape).train()
    counted = count(shape)
    tokens = torch.randint(0, 97, (3, shape.context_length))
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    forward = counter.get_total_flops()
    assert forward == 3 * shape.context_length * sum(counted.forward_flops_per_token.values())
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    backward = counter.get_total_flops() - forward
    assert backward == 3 * shape.context_length * sum(counted.backward_flops_per_token.values())


def test_flops_equal_the_papers_formula() -> None:
    """Narayanan et al. 2021 (arXiv:2104.04473, appendix): 96 B s L h² (1 + s/6h + V/16Lh) with recomputation, which is
    4/3 of forward and backward without."""
    config = PRESETS["gpt3-175b"].model
    s, layers, h, vocabulary = 2048, 96, 12_288, 50_257
    with_recomputation = 96 * layers * h**2 * (1 + s / (6 * h)) + 6 * vocabulary * h
    assert count(config).training_flops_per_token == pytest.approx(
        with_recomputation * 3 / 4 + 1.5 * vocabulary * h, rel=1e-9
    )  # the head is not computed again


class Alive(TorchDispatchMode):
    """Bytes of the storages that were made under it and are still there."""

    def __init__(self, besides: Transformer) -> None:
        super().__init__()
        self._besides = {parameter.untyped_storage()._cdata for parameter in besides.parameters()}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes and storage._cdata not in self._besides:
                    self._sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._sizes.pop, storage._cdata)
        return result

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())


def causal(*given: Tensor, **options: Any) -> Tensor:
    """With masks that no one keeps, as they are not counted."""
    return Causal()(*given, **options)


@pytest.mark.parametrize("precision", DTYPES)
def test_activation_bytes_are_those_that_stay_in_memory(shape: ModelConfig, precision: str) -> None:
    torch.manual_seed(0)
    model = Transformer(shape).to(DTYPES[precision]).train()
    tokens = torch.randint(0, 97, (1, shape.context_length))
    with Alive(besides=model) as alive:
        logits = model(tokens, attend=causal)
        measured = alive.bytes + tokens.nbytes - logits.nbytes  # the result is the caller's
    assert sum(count(shape).activation_bytes[precision].values()) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("precision", DTYPES)
def test_checkpointed_activation_bytes_are_those_that_stay_in_memory(shape: ModelConfig, precision: str) -> None:
    """At the end of the forward pass or when a block has been computed again, whichever has more."""
    torch.manual_seed(0)
    shape = shape.model_copy(update={"vocab_size": 11, "context_length": 120})  # gradients of weights weigh little
    model = Transformer(shape).to(DTYPES[precision]).train()
    tokens = torch.randint(0, 11, (1, shape.context_length))
    stream = shape.context_length * shape.d_model * DTYPES[precision].itemsize
    computed: list[int] = []

    def checkpointing(block: torch.nn.Module) -> None:
        inner = block.forward

        def watched(*given: Any) -> Tensor:
            result = inner(*given)
            gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
            computed.append(alive.bytes - gradients)
            return result

        block.forward = lambda *given: checkpoint(watched, *given, use_reentrant=False)

    for block in model.blocks.values():
        checkpointing(block)
    with Alive(besides=model) as alive, set_checkpoint_early_stop(False):
        logits = model(tokens, attend=causal)
        measured = alive.bytes - logits.nbytes
        forward, gradient = len(computed), torch.ones_like(logits)
        logits.backward(gradient)
    # what does not count: the loss's side, a block's own result and the gradient that comes down to it
    again = max(computed[forward:]) - logits.nbytes - gradient.nbytes - 2 * stream
    predicted = count(shape).checkpointed_activation_bytes[precision]
    assert predicted == pytest.approx(max(measured, again) + tokens.nbytes, rel=0.05)


def test_a_layer_of_gpt_keeps_what_the_paper_says() -> None:
    """Korthikanti et al. 2022 (arXiv:2205.05198, eq. 1): s b h (34 + 5 a s / h) bytes a layer, in 16 bits with dropout,
    whose masks take a byte.
    """
    s, h, heads = 128, 256, 4
    base = ModelConfig.from_table(
        {
            **LAYERNORM,
            "vocab_size": 11,
            "context_length": s,
            "d_model": h,
            "n_heads": heads,
            "dropout": 0.1,
            "position": {"kind": "learned"},
            "attention": {"bias": "all", "dropout": 0.1},
            "feedforward": {"kind": "gelu"},
        }
    )
    three, two = (
        sum(count(base.model_copy(update={"n_layers": n})).activation_bytes["bfloat16"].values()) for n in (3, 2)
    )
    assert three - two == pytest.approx(s * h * (34 + 5 * heads * s / h), rel=0.01)


def test_cache_bytes_are_those_of_the_tensors(shape: ModelConfig) -> None:
    for precision, dtype in DTYPES.items():
        cache = PagedCache.empty(shape, 1, shape.context_length, torch.device("cpu"), dtype)
        page = (cache.keys.nbytes + cache.values.nbytes) // 2  # there is one to fill lists up with
        assert page == shape.context_length * count(shape).cache_bytes_per_token[precision]
