"""Attention, float8 and compiled blocks on a GPU against the plain model on the CPU.

`make test-gpu` runs these without the checks of shapes, which wrap every function: what is wrapped is not compiled.
"""

import copy
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from groundup.batch import Batch, to
from groundup.model.attention import Causal, Packed
from groundup.model.execution import compile_blocks, recompute_blocks, why_not_compiled
from groundup.model.kernels.float8 import Float8Matmul, has_float8, rounded, use_float8
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.settings import Float32
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import attending
from groundup.train.losses import Attending, by_document, next_token

pytestmark = pytest.mark.gpu
SIZES = {"vocab_size": 97, "context_length": 256, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 2, "attention": {"qk_norm": "head"}},
    "gpt2": {"position": "learned", "norm": "layernorm", "attention": {"bias": "all"}, "feedforward": "gelu"},
    "windows": {"attention": {"window": 48, "windowed_layers": [True, False], "soft_cap": 20.0}},
    "alibi": {"position": "alibi", "block": "parallel", "feedforward": "relu_squared"},
    "latent": {"attention": {"kind": "latent", "d_latent": 16, "d_rotary": 8}},
    "experts": {"feedforward": {"kind": "experts", "n_experts": 4, "n_shared": 1}},
}
NEAR = {"atol": 5e-4, "rtol": 2e-3}
"""For float32 on both sides: sums run in another order, and gradients add up a few hundred terms."""


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Transformer:
    """Each kind of block, its weights large enough that every part matters."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig.from_table({**SIZES, **KINDS[request.param]})).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def batch() -> Batch:
    """Two rows of three documents and some padding."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(97, (2, 256), generator=draw)
    document = (torch.arange(256) // 90).expand(2, 256).contiguous()
    weight = torch.rand(2, 256, generator=draw)
    position = (torch.arange(256) % 90).expand(2, 256).contiguous()
    return Batch(tokens, tokens.roll(-1, dims=1), weight, position, document)


def causal(_: Batch) -> Causal:
    return Causal()


def gradients(
    model: Transformer, device: torch.device, attending: Attending = by_document, compiled: bool = False
) -> dict[str, torch.Tensor]:
    """The loss and every gradient, on the CPU in float32."""
    model.zero_grad()
    summed, weight, _ = next_token(model, to(batch(), device), attending=attending, compiled=compiled)
    (summed / weight).backward()
    read = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: tensor.detach().float().cpu() for name, tensor in {"loss": summed / weight, **read}.items()}


@pytest.mark.parametrize("kept_apart", [causal, by_document], ids=["causal", "documents"])
def test_losses_and_gradients_are_those_of_the_cpu(
    model: Transformer, device: torch.device, kept_apart: Attending
) -> None:
    expected = gradients(model, torch.device("cpu"), kept_apart)
    assert_close(gradients(copy.deepcopy(model).to(device), device, kept_apart), expected, **NEAR)


def test_compiled_blocks_with_flex_attention_give_the_gradients_of_the_plain_ones(
    model: Transformer, device: torch.device
) -> None:
    if why := why_not_compiled(model.config, device):
        pytest.skip(f"not compiled: {why}")
    expected = gradients(model, torch.device("cpu"))
    settings = PretrainSettings(precision=Float32(), compile=True)
    there = copy.deepcopy(model).to(device)
    compile_blocks(there)
    found = gradients(there, device, attending(model.config, settings, device), compiled=True)
    assert_close(found, expected, **NEAR)


def test_in_bfloat16_compiled_blocks_are_as_near_to_float32_as_plain_ones(
    model: Transformer, device: torch.device
) -> None:
    if why := why_not_compiled(model.config, device):
        pytest.skip(f"not compiled: {why}")
    expected = gradients(model, torch.device("cpu"))
    plain, compiled = (copy.deepcopy(model).to(device, torch.bfloat16) for _ in range(2))
    compile_blocks(compiled)
    flex = attending(model.config, PretrainSettings(precision=Float32(), compile=True), device)
    apart = gradients(plain, device)
    fused = gradients(compiled, device, flex, compiled=True)
    for name, gradient in expected.items():
        allowed = 2 * (apart[name] - gradient).norm() + 0.02 * gradient.norm()  # rounding, in another order
        assert (fused[name] - gradient).norm() <= allowed, name


@pytest.mark.parametrize("how", ["selective", "full"])
def test_computed_again_the_gradients_are_the_same(model: Transformer, device: torch.device, how: str) -> None:
    expected = gradients(model, torch.device("cpu"))
    there = copy.deepcopy(model).to(device)
    recompute_blocks(there, how)  # type: ignore[arg-type]
    assert_close(gradients(there, device), expected, **NEAR)


def test_causal_attention_without_documents_reaches_the_fused_kernel(device: torch.device) -> None:
    """The only backend that is allowed here takes no mask: whoever brings one gets an error."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 256, 64, dtype=torch.bfloat16) for heads in (8, 2, 2))
    expected = Causal()(q.float(), k.float(), v.float())
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = Causal()(q.to(device), k.to(device), v.to(device))
    assert_close(found.float().cpu(), expected, atol=2e-2, rtol=2e-2)  # bfloat16 has 8 bits


def test_packed_documents_do_not_see_each_other(device: torch.device) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 64, 32, device=device) for _ in range(3))
    document = (torch.arange(64, device=device) >= 24).long()[None]
    together = Packed(document)(q, k, v)[:, :, 24:]
    alone = Causal()(q[:, :, 24:], k[:, :, 24:], v[:, :, 24:])
    assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_float8_products_and_gradients_are_those_of_the_rounded_matrices(device: torch.device) -> None:
    if not has_float8(device):
        pytest.skip(f"{torch.cuda.get_device_name(device)} does not multiply float8")
    torch.manual_seed(0)
    x, weight, gradient = (torch.randn(shape).bfloat16() for shape in ((256, 128), (384, 128), (256, 384)))
    there = [tensor.to(device).requires_grad_() for tensor in (x, weight)]
    product = Float8Matmul.apply(*there)
    product.backward(gradient.to(device))
    types = (torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float8_e5m2)
    x8, weight8, gradient8 = (
        eight.float() * scale
        for eight, scale in (rounded(t, dtype) for t, dtype in zip((x, weight, gradient), types, strict=True))
    )
    pairs = [
        (product, x8 @ weight8.T),
        (there[0].grad, gradient8 @ weight8),
        (there[1].grad, gradient8.T @ x8),
    ]
    for found, expected in pairs:
        assert_close(found.detach().float().cpu(), expected, atol=0.15, rtol=2**-6)  # results are rounded to bfloat16


def test_a_compiled_model_in_float8_is_near_the_one_in_bfloat16(device: torch.device) -> None:
    if not has_float8(device):
        pytest.skip(f"{torch.cuda.get_device_name(device)} does not multiply float8")
    torch.manual_seed(0)
    model = Transformer(ModelConfig.from_table(SIZES)).to(device, torch.bfloat16).train()
    expected = gradients(copy.deepcopy(model), device)
    use_float8(model.blocks)
    compile_blocks(model)
    found = gradients(model, device)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.15 * gradient.norm() + 1e-4, name
