"""Counts equal the published ones, and torch's own."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from groundup.model.count import count
from groundup.model.presets import PRESETS
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer

PUBLISHED = {  # of the released weights
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PRESETS)
def test_gpt2s_sizes_have_their_published_parameters(name: str) -> None:
    assert count(PRESETS[name]).total_parameters == PUBLISHED[name]


def test_parameters_are_those_of_the_model(config: ModelConfig) -> None:
    assert count(config).total_parameters == sum(p.numel() for p in Transformer(config).parameters())


def test_flops_equal_torchs_counter(config: ModelConfig) -> None:
    model = Transformer(config)
    tokens = torch.zeros(3, config.context_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    forward = counter.get_total_flops()
    assert forward == 3 * config.context_length * sum(count(config).forward_flops_per_token.values())
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    assert counter.get_total_flops() == 3 * config.context_length * count(config).training_flops_per_token


def test_cache_and_training_bytes_are_those_of_the_tensors(llama: ModelConfig) -> None:
    from groundup.generation.cache import ContiguousCache
    from groundup.optim.adamw import Masters, make_adamw
    from groundup.optim.settings import AdamW

    cache = ContiguousCache.empty(llama, 1, torch.device("cpu"), torch.bfloat16)
    held = cache.keys.nbytes + cache.values.nbytes
    assert held == llama.context_length * count(llama).cache_bytes_per_token
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = Transformer(llama)
        masters = Masters(model, dtype)
        optimizer = make_adamw(masters, AdamW())
        model(torch.zeros(1, 4, dtype=torch.long)).float().sum().backward()
        optimizer.step()
        weights = sum(p.nbytes for p in model.parameters())
        copies = sum(c.nbytes for c in masters) if dtype != torch.float32 else 0
        gradients = sum(c.grad.nbytes for c in masters)
        moments = sum(s["exp_avg"].nbytes + s["exp_avg_sq"].nbytes for s in optimizer.state.values())
        assert weights + copies + gradients + moments == count(llama).training_bytes[precision]
