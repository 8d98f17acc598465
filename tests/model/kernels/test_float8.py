"""Matmuls in float8 against the same rounded numbers multiplied in float32."""

import pytest
import torch
from torch.testing import assert_close

from groundup.errors import SettingsError
from groundup.model.kernels.float8 import Float8Matmul, has_float8, rounded, use_float8
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.settings import Float8
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import set_up


def test_products_and_gradients_are_those_of_the_rounded_matrices() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(32, 64).bfloat16().requires_grad_(), torch.randn(48, 64).bfloat16().requires_grad_()
    gradient = torch.randn(32, 48).bfloat16()
    product = Float8Matmul.apply(x, weight)
    product.backward(gradient)
    (x8, a), (w8, b), (g8, c) = (
        rounded(tensor.detach(), dtype)
        for tensor, dtype in ((x, torch.float8_e4m3fn), (weight, torch.float8_e4m3fn), (gradient, torch.float8_e5m2))
    )
    x_again, weight_again, gradient_again = x8.float() * a, w8.float() * b, g8.float() * c
    for ours, expected in (
        (product, x_again @ weight_again.T),
        (x.grad, gradient_again @ weight_again),
        (weight.grad, gradient_again.T @ x_again),
    ):
        assert_close(ours.float(), expected, atol=0.02, rtol=2**-7)  # the result is rounded to bfloat16's 8 bits


def test_rounding_keeps_within_a_sixteenth_and_uses_the_whole_range() -> None:
    x = torch.randn(1000) * 1e-5
    x8, scale = rounded(x, torch.float8_e4m3fn)
    assert x8.float().abs().max() == 448  # the largest number of e4m3
    large = x.abs() > x.abs().max() / 2**10
    assert ((x8.float() * scale - x).abs()[large] <= x.abs()[large] / 16).all()  # three bits after the point
    assert rounded(torch.zeros(4), torch.float8_e5m2)[0].float().eq(0).all()


def test_a_model_in_float8_is_near_the_one_in_bfloat16_and_learns() -> None:
    torch.manual_seed(0)
    config = ModelConfig.from_table(
        {"vocab_size": 96, "context_length": 32, "d_model": 64, "n_layers": 2, "n_heads": 4}
    )
    model = Transformer(config).bfloat16()
    tokens = torch.randint(96, (2, 32))
    plain = model(tokens).float()
    use_float8(model.blocks)
    close = model(tokens).float()
    assert not torch.equal(close, plain)
    assert (close - plain).norm() < 0.1 * plain.norm()
    model(tokens).float().logsumexp(-1).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_a_processor_is_not_asked_for_float8() -> None:
    assert not has_float8(torch.device("cpu"))
    config, settings = ModelConfig(vocab_size=96), PretrainSettings(precision=Float8())
    with pytest.raises(SettingsError, match="float8, but cpu has no float8 matmuls .* set pretrain.precision=bfloat16"):
        set_up(config, settings, torch.device("cpu"))
