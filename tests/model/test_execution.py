"""Blocks that are compiled or computed again give what the plain ones give."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.testing import assert_close

from groundup.batch import Batch
from groundup.model.execution import Recomputation, compile_blocks, recompute_blocks, why_not_compiled
from groundup.model.feedforward import gelu_tanh
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.train.losses import next_token

COMPILE = torch.compile
KINDS = {
    "llama": {"n_kv_heads": 2, "attention": {"qk_norm": "head"}},
    "gpt2": {"position": "learned", "norm": "layernorm", "attention": {"bias": "all"}, "feedforward": "gelu"},
    "windows": {"attention": {"window": 48, "windowed_layers": [True, False], "soft_cap": 20.0}},
    "alibi": {"position": "alibi", "block": "parallel", "feedforward": "relu_squared"},
    "latent": {"attention": {"kind": "latent", "d_latent": 16, "d_rotary": 8}},
}


def model_of(kind: str) -> Transformer:
    sizes = {"vocab_size": 97, "context_length": 128, "d_model": 32, "n_layers": 3, "n_heads": 4, "d_ff": 64}
    torch.manual_seed(0)
    return Transformer(ModelConfig.from_table({**sizes, **KINDS[kind]})).train()


def batch() -> Batch:
    tokens = torch.randint(97, (2, 128), generator=torch.Generator().manual_seed(1))
    document = torch.arange(128).expand(2, 128) // 50
    weight = torch.rand(2, 128, generator=torch.Generator().manual_seed(2))
    return Batch(tokens, tokens.roll(-1, dims=1), weight, torch.arange(128).expand(2, 128), document)


def gradients(model: Transformer, compiled: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad()
    summed, _, _ = next_token(model, batch(), compiled=compiled)
    summed.backward()
    return {"loss": summed.detach()} | {name: weight.grad.clone() for name, weight in model.named_parameters()}


def run(*kinds: str, recompute: str = "none", backend: str = "inductor") -> None:
    """In a process of its own: here every function is wrapped to check its shapes, and what is wrapped is not compiled
    as one graph."""
    command = [sys.executable, __file__, recompute, backend, *kinds]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compare(kind: str, recompute: Recomputation) -> None:
    model = model_of(kind)
    plain = gradients(model)
    torch._dynamo.reset()
    counters.clear()
    recompute_blocks(model, recompute)
    compile_blocks(model)
    for name, gradient in gradients(model, compiled=True).items():
        # float32, sums in another order; a key's bias has no effect on the softmax, so its gradient is all rounding
        assert_close(gradient, plain[name], atol=2e-4, rtol=1e-4, msg=lambda told, name=name: f"{kind} {name}: {told}")
    graphs = 2 + (2 if kind == "windows" else 1)
    assert recompute != "none" or counters["stats"]["unique_graphs"] == graphs, (
        "one for all layers of a shape, two for rows of logits"
    )


@pytest.mark.slow
def test_traced_blocks_are_one_graph_a_shape_and_give_the_gradients_of_the_plain_ones() -> None:
    """All of compilation but the generated code, which the next test has compiled."""
    run("llama", "windows", backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_give_the_gradients_of_the_plain_ones(kind: str) -> None:
    run(kind)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["selective", "full"])
def test_blocks_can_be_compiled_and_computed_again(how: str) -> None:
    run("llama", recompute=how)


def test_evaluation_and_whoever_looks_inside_get_the_block_as_it_is_written() -> None:
    model = model_of("llama")
    expected = model.eval()(batch().tokens)
    counters.clear()
    compile_blocks(model)
    assert torch.equal(model(batch().tokens), expected)
    seen: list[str] = []
    model.train().hidden(batch().tokens, tap=lambda name, tensor: seen.append(name))
    assert "blocks.2.attention" in seen
    with torch.no_grad():
        block, x = model.blocks["1"], torch.randn(1, 5, 32)
        assert torch.equal(block(x), block(x, tap=lambda name, tensor: seen.append(name)))
    assert seen[-1] == "feedforward"
    assert not counters["stats"]


@pytest.mark.parametrize("how", ["selective", "full"])
def test_computing_again_keeps_less_and_gives_the_same_gradients(how: str) -> None:
    model = model_of("llama")
    plain, kept_before = gradients(model), kept_bytes(model)
    recompute_blocks(model, how)  # type: ignore[arg-type]
    assert all(torch.equal(gradient, plain[name]) for name, gradient in gradients(model).items())
    assert kept_bytes(model) < kept_before


def kept_bytes(model: Transformer) -> int:
    """What the forward pass leaves for the backward pass, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(batch().tokens)
    del hidden
    return sum(kept.values())


def test_the_compiled_gelu_is_the_same_function() -> None:
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(gelu_tanh, backend="eager")
    for function in (compiled, gelu_tanh):
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        if function is compiled:
            expected = y, slope
    assert_close((y, slope), expected, atol=1e-12, rtol=1e-9)


def with_backend(backend: str, function: Callable[..., Any], options: Any = None, **others: Any) -> Callable[..., Any]:
    """torch.compile with another backend, which takes none of inductor's options."""
    return COMPILE(function, backend=backend, options=options if backend == "inductor" else None, **others)


def test_experts_are_not_compiled_and_it_is_said_why() -> None:
    config = ModelConfig.from_table({"vocab_size": 97, "d_model": 32, "n_heads": 4, "feedforward": "experts"})
    assert "experts" in str(why_not_compiled(config, torch.device("cpu")))


if __name__ == "__main__":
    torch.compile = partial(with_backend, sys.argv[2])
    for each in sys.argv[3:]:
        compare(each, sys.argv[1])  # type: ignore[arg-type]
