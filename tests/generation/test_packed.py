"""Packed models: the same structure and nearly the same scores, for every kind of model."""

import math

import pytest
import torch
from torch.testing import assert_close

from groundup.generation import packed as packing
from groundup.generation.packed import GROUP, PRECISIONS, Packed, pack, refresh
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer

SIZES = {"vocab_size": 203, "context_length": 24, "d_model": 48, "n_layers": 2, "n_heads": 4}
KINDS = {
    "gpt2": {
        "position": {"kind": "learned"},
        "norm": {"kind": "layernorm"},
        "attention": {"bias": "all"},
        "feedforward": {"kind": "gelu"},
    },
    "llama": {"n_kv_heads": 2, "feedforward": {"kind": "swiglu"}},
    "untied, with a bias": {"head": {"kind": "language_model", "tied": False, "bias": True}},
    "norms of queries and keys": {"attention": {"qk_norm": "head"}, "feedforward": {"kind": "geglu", "bias": True}},
    "a narrow embedding": {"d_embedding": 20, "position": {"kind": "alibi"}},
    "parallel": {"block": {"kind": "parallel"}, "position": {"kind": "sinusoidal"}},
    "experts": {"feedforward": {"kind": "experts", "n_experts": 4, "n_active": 2, "n_shared": 1}},
    "latent": {"attention": {"kind": "latent", "d_latent": 16, "d_query_latent": 24, "d_rotary": 8}},
    "classes": {"head": {"kind": "classes", "n_classes": 3}},
}
TOKENS = torch.randint(0, 203, (3, 24), generator=torch.Generator().manual_seed(1))


def make(kind: str, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    model = Transformer(ModelConfig.from_table({**SIZES, **KINDS[kind]}), seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as large as in a trained model, biases too
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(torch.linspace(0, 0.1, len(parameter)))
    return model.to(dtype)


def scores(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).double()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_bfloat16_has_the_scores_of_the_model_in_bfloat16(kind: str) -> None:
    model = make(kind)
    assert_close(scores(pack(model, "bfloat16")), scores(model), atol=0.02 * scores(model).abs().max().item(), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "share"), [("bfloat16", 0.02), ("int8", 0.05), ("int4", 0.5)])
def test_scores_are_near_those_in_float32(kind: str, precision: packing.Precision, share: float) -> None:
    model = make(kind, torch.float32)
    exact = scores(model)
    error = (scores(pack(model, precision)) - exact).square().mean().sqrt()
    assert 0 < error < share * exact.std()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_linear_map_is_shared(kind: str) -> None:
    model = make(kind)
    twin = pack(model, "bfloat16")
    shared = dict(twin.named_parameters())
    live = dict(model.named_parameters(remove_duplicate=False))
    assert shared and all(parameter is live[name] for name, parameter in shared.items())
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    left = {name for name in linear if f"{name}.weight" in shared}
    assert all(name.endswith(("attention.key", "attention.value", "router")) for name in left)
    assert bool(left) == (kind in ("latent", "experts"))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["llama", "latent"])
def test_refreshing_gives_what_packing_anew_gives(kind: str, precision: packing.Precision) -> None:
    model = make(kind)
    twin = pack(model, precision)
    before = scores(twin)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    refresh(twin, model)
    assert torch.equal(scores(twin), scores(pack(model, precision)))
    assert not torch.equal(scores(twin), before)


def test_packing_changes_nothing_in_the_model() -> None:
    model = make("llama", torch.float32).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    twin = pack(model, "int8")
    assert model.training and not twin.training
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    model(TOKENS).sum().backward()
    assert model.blocks["0"].attention.query.weight.grad is not None


def test_a_block_that_is_compiled_for_training_is_packed_as_it_is_written() -> None:
    model = make("llama")
    for block in model.blocks.values():
        block.forward = lambda *_, **__: pytest.fail("the block of the live model was run")
    scores(pack(model, "bfloat16"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_torch_s_private_operations_the_scores_are_nearly_the_same(
    precision: packing.Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("gpt2")
    by_kernel = scores(pack(model, precision))
    monkeypatch.setattr(packing, "has_kernel", lambda _: False)
    plain = scores(pack(model, precision))
    # The same weights; rounded once where they are scaled, once where a bias is added.
    assert (plain - by_kernel).square().mean().sqrt() < 0.02 * plain.std()


def test_an_operation_that_is_missing_or_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = packing.has_kernel.__wrapped__
    assert probe("int4")
    monkeypatch.setattr(torch, "_weight_int4pack_mm_for_cpu", lambda rows, codes, *_: rows.new_zeros(len(rows), 48))
    assert not probe("int4")
    monkeypatch.delattr(torch, "_weight_int4pack_mm_for_cpu")
    assert not probe("int4")


def test_quantised_weights_are_as_near_as_their_steps() -> None:
    weight = torch.randn(37, 70, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(70, dtype=torch.bfloat16)
    for precision, step in (("int8", weight.abs().amax(dim=1) / 127), ("int4", (weight.amax() - weight.amin()) / 15)):
        for by_kernel in (False, True):
            held = PRECISIONS[precision](weight, None, by_kernel)(eye).T  # type: ignore[index]
            bound = step.view(-1, 1) / 2 + weight.abs() / 2**7  # half a step, and scale and answer rounded to 8 bits
            assert ((held - weight).abs() <= bound + 0.02).all()


def test_int8_adds_up_as_exactly_as_bfloat16_knows_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    for n_in in (32, 100, 768, 4096, 16384):
        weight = torch.randn(40, n_in, generator=generator)
        rows = (torch.randn(9, n_in, generator=generator) * 10.0 ** torch.linspace(-20, 20, 9)[:, None]).bfloat16()
        rows[1] = 0
        held = PRECISIONS["int8"](weight, None, False)(torch.eye(n_in, dtype=torch.bfloat16)).T  # rounded to 8 bits
        exact = rows.double() @ held.double().T
        error = (PRECISIONS["int8"](weight, None, True)(rows) - exact).abs().amax(dim=1)
        assert (error <= 2**-7 * exact.abs().amax(dim=1)).all(), n_in


def test_the_largest_sums_of_int8_fit() -> None:
    weight = torch.ones(3, 4096)
    rows = torch.ones(2, 4096, dtype=torch.bfloat16)
    assert torch.equal(PRECISIONS["int8"](weight, None, True)(rows), rows @ weight.bfloat16().T)


def test_rows_that_are_not_finite_stay_so_alone() -> None:
    rows = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = PRECISIONS["int8"](torch.ones(5, 64), None, True)(rows)
    rows[2, 3], rows[4, 60] = math.nan, math.inf
    after = PRECISIONS["int8"](torch.ones(5, 64), None, True)(rows)
    assert after[[2, 4]].isnan().all()
    assert torch.equal(after[[0, 1, 3, 5]], before[[0, 1, 3, 5]])


SHAPES = {
    "gpt2": [(768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50257)],
    "SmolLM2": [(576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49152)],
    "odd": [(100, 75), (48, 203), (1, 1)],
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", SHAPES)
def test_a_row_has_the_same_bits_whatever_stands_beside_it(family: str, precision: packing.Precision) -> None:
    """Of this machine's kernels; it is what makes an answer independent of its neighbours."""
    for n_in, n_out in SHAPES[family]:
        generator = torch.Generator().manual_seed(n_in)
        linear = torch.nn.Linear(n_in, n_out)
        rows = torch.randn(64, n_in, generator=generator).bfloat16()
        held = Packed([linear], precision)
        together = held(rows)
        numbers = range(1, 65) if n_out < 10_000 else (1, 2, 3, 4, 5, 16, 17, 33)
        assert all(torch.equal(held(rows[:n]), together[:n]) for n in numbers), (n_in, n_out)
        assert torch.equal(held(rows.flip(0)).flip(0), together)


def test_maps_of_one_input_are_one_product_and_keep_nothing() -> None:
    linears = [torch.nn.Linear(32, n, bias=False).bfloat16() for n in (32, 16, 16)]
    whole = Packed(linears, "bfloat16")
    x, y = torch.randn(2, 5, 32).bfloat16(), torch.randn(2, 5, 32).bfloat16()
    for each in (x, y):
        for number, linear in enumerate(linears):
            assert_close(whole.part(each, number), linear(each), atol=0.02, rtol=0)
    assert whole.part(x, 0) is not None and torch.equal(whole.part(y, 1), whole(y)[..., 32:48])  # out of turn
    whole.part(y, 2)
    assert whole._latest == [None, ()]
    assert GROUP == 32


def test_float32_is_read_where_it_is_trained(llama):
    model = Transformer(llama.model_copy(update={"d_ff": 64}), seed=1).eval()
    tokens, packed = torch.tensor([[5, 6, 7, 8]]), pack(model, "float32")
    assert_close(packed(tokens), model(tokens), atol=1e-5, rtol=0)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    assert_close(packed(tokens), model(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n_in", "n_out"), [(768, 768), (192, 512), (100, 37), (2048, 64)])
def test_a_row_of_float32_has_the_same_bits_beside_any_others(n_in, n_out):
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(n_in, n_out)
    packed, rows = Packed([linear], "float32"), torch.randn(70, n_in, generator=generator)
    whole = packed(rows)
    assert_close(whole, linear(rows), atol=1e-4, rtol=0)
    for n in (1, 2, 3, 4, 5, 7, 16, 33):
        assert torch.equal(packed(rows[:n]), whole[:n]) and torch.equal(packed(rows[-n:]), whole[-n:])
