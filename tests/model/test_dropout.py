"""Dropout by place: the right share, the same units however rows, positions, heads and layers are spread."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from groundup.batch import Batch
from groundup.model.attention import Causal
from groundup.model.dropout import Drop, Dropout, drop_for, left_out, position_keys, row_keys
from groundup.model.execution import compile_blocks, recompute_blocks
from groundup.model.position import terms_at
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer, make_block
from groundup.train.losses import next_token

CPU = torch.device("cpu")
SIZES = {"vocab_size": 31, "context_length": 24, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
DROPS = {**SIZES, "dropout": 0.3, "attention": {"dropout": 0.3}}


def keys_of(rows: int, length: int, step: int = 0) -> Tensor:
    return position_keys(row_keys(0, step, 0, rows, CPU), length)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_left_out_of_every_row_position_and_channel(share: float) -> None:
    out = left_out(keys_of(16, 128), torch.arange(512), share).double()
    for axes in ((0, 1, 2), (1, 2), (0, 2), (0, 1)):
        shares = out.mean(dim=axes)
        error = (share * (1 - share) * shares.numel() / out.numel()) ** 0.5
        assert (shares - share).abs().max() < 5 * error


def test_units_are_left_out_independently_of_their_neighbours() -> None:
    base = left_out(keys_of(16, 128), torch.arange(512), 0.5).double()
    shifted = [(base[..., 1:], base[..., :-1]), (base[:, 1:], base[:, :-1]), (base[1:], base[:-1]),
               (base[:, 1:, 1:], base[:, :-1, :-1]), (base[..., 256:], base[..., :256]),
               (base, left_out(keys_of(16, 128, step=1), torch.arange(512), 0.5).double())]  # fmt: skip
    for one, other in shifted:
        agreeing = (one == other).double().mean()
        assert abs(agreeing - 0.5) < 5 * 0.5 / one.numel() ** 0.5


def test_what_is_left_is_made_larger_and_the_expectation_is_kept() -> None:
    x, total = torch.randn(2, 6, 16, dtype=torch.float64), torch.zeros(2, 6, 16, dtype=torch.float64)
    drops = Dropout(0.25, number=1)
    for step in range(2000):
        dropped = drops(x, keys_of(2, 6, step))
        assert_close(dropped[dropped != 0], (x / 0.75)[dropped != 0])
        total += dropped
    error = x.abs() * (0.25 / 0.75 / 2000) ** 0.5
    assert ((total / 2000 - x).abs() <= 5 * error).all()


def test_gradients_are_those_of_the_function() -> None:
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Dropout(0.4, 0)(x, keys_of(2, 5)), (x,))
    q, k, v = (torch.randn(2, h, 5, 4, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    drop = drop_for(0.4, keys_of(2, 5), x, 0, 4)
    assert torch.autograd.gradcheck(lambda q, k, v: Causal()(q, k, v, dropout=drop), (q, k, v))


def weights_of(drop: Drop | None, heads: int, length: int) -> Tensor:
    """The weights that attention makes of equal scores, (B, H, T, S), dropped."""
    q = torch.zeros(1, heads, length, 8)
    return Causal()(q, q, torch.eye(length).expand(1, heads, length, length), dropout=drop)


def test_attention_drops_by_query_head_and_key_in_blocks_too() -> None:
    """300 queries are taken in two blocks, of which the second begins at another query."""
    keys, x = keys_of(1, 300), torch.zeros(1, 300, 8)
    drop = drop_for(0.25, keys, x, 0, 4)
    assert drop is not None
    out = torch.stack([left_out(keys_of_head, torch.arange(300), 0.25) for keys_of_head in drop.keys[0]])
    plain = weights_of(None, 4, 300)[0]
    assert torch.equal(weights_of(drop, 4, 300)[0], plain.masked_fill(out, 0) * (1 / 0.75))
    assert len({head[-1].sum().item() for head in out}) > 1, "each head by itself"


def test_heads_and_keys_taken_apart_are_dropped_as_together() -> None:
    keys, x = keys_of(2, 12), torch.zeros(2, 12, 8)
    whole, part = drop_for(0.5, keys, x, 0, 4), drop_for(0.5, keys, x, 2, 2)
    assert whole is not None and part is not None
    ones = torch.ones(2, 4, 12, 12)
    assert torch.equal(whole(ones)[:, 2:], part(ones[:, 2:]))
    order = torch.randperm(12)
    assert torch.equal(whole(ones)[..., order], whole(ones, order))
    assert torch.equal(whole(ones)[..., 5:], whole(ones[..., 5:], first_key=5))
    assert torch.equal(whole(ones)[:, :, 3:7], whole.of_queries(3, 7)(ones[:, :, 3:7]))


@pytest.mark.parametrize("attention", [{}, {"kind": "latent", "d_latent": 16, "d_rotary": 8}])
def test_a_rank_with_some_heads_drops_as_the_whole_attention(attention: dict[str, object]) -> None:
    config = ModelConfig.from_table({**DROPS, "n_kv_heads": 4, "attention": {**attention, "dropout": 0.3}})
    module, x, seen = make_block(config, 1).attention, torch.randn(1, 6, 32), []
    terms = replace(terms_at(config, x), keys=keys_of(1, 6))

    def attend(q: Tensor, k: Tensor, v: Tensor, *, dropout: Drop, **_: object) -> Tensor:
        seen.append(dropout)
        return q.new_zeros(*q.shape[:3], v.shape[3])

    for module.first_head in (0, 2):
        module(x, terms, attend)
    assert torch.equal(seen[1].keys[:, :2], seen[0].keys[:, 2:])


def grads(model: Transformer, rows: Batch, keys: Tensor | None, compiled: bool = False) -> dict[str, Tensor]:
    model.zero_grad()
    model.keys = keys
    summed, _, _ = next_token(model, rows, compiled=compiled)
    model.keys = None
    summed.backward()
    return {"loss": summed.detach()} | {name: weight.grad.clone() for name, weight in model.named_parameters()}


def batch() -> Batch:
    tokens = torch.randint(31, (5, 24), generator=torch.Generator().manual_seed(1))
    position = torch.arange(24).expand(5, 24)
    return Batch(tokens, tokens.roll(-1, dims=1), torch.ones(5, 24), position, position // 9)


@pytest.mark.parametrize("how", ["selective", "full"])
def test_what_is_computed_again_is_dropped_again(how: str) -> None:
    model, keys = Transformer(ModelConfig.from_table(DROPS), seed=0), row_keys(0, 0, 0, 5, CPU)
    plain = grads(model, batch(), keys)
    recompute_blocks(model, how)  # type: ignore[arg-type]
    again = grads(model, batch(), keys)
    assert all(torch.equal(again[name], plain[name]) for name in plain)
    drawn = [grads(model, batch(), None)["loss"].item() for _ in range(2)]
    assert drawn[0] != drawn[1], "without keys of its own"


def test_a_row_cut_along_time_is_dropped_as_the_whole_row() -> None:
    """As on a rank that has some positions: it brings the keys of its own."""
    model, tokens = Transformer(ModelConfig.from_table({**SIZES, "dropout": 0.4}), seed=0), batch().tokens
    keys = row_keys(0, 0, 0, 5, CPU)

    def itself(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        return v.repeat_interleave(2, dim=1)  # reads its own position alone, so that a part can be computed by itself

    model.keys = keys
    whole = model.hidden(tokens, attend=itself)
    model.keys = position_keys(keys, 24)[:, 9:17]
    assert torch.equal(model.hidden(tokens[:, 9:17], batch().position[:, 9:17], itself), whole[:, 9:17])


def test_layers_and_sublayers_drop_other_units() -> None:
    model, seen = Transformer(ModelConfig.from_table({**SIZES, "n_layers": 3, "dropout": 0.5}), seed=0), []
    for module in model.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda _, __, output: seen.append(output == 0))
    model.keys = row_keys(0, 0, 0, 5, CPU)
    model(batch().tokens)
    assert len(seen) == 1 + 2 * 3
    for number, one in enumerate(seen):
        for other in seen[:number]:
            assert (one == other).double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / one.numel() ** 0.5)


def test_a_later_stage_drops_as_the_whole_model() -> None:
    config, keys, tokens = ModelConfig.from_table(DROPS), row_keys(0, 0, 0, 5, CPU), batch().tokens
    whole, first, last = (Transformer(config, seed=0) for _ in range(3))
    del first.blocks["1"], last.blocks["0"]
    first.head, last.embed = None, None
    whole.keys = first.keys = last.keys = keys
    assert torch.equal(last(first.hidden(tokens)), whole(tokens))


def test_keys_of_other_rows_are_refused() -> None:
    model = Transformer(ModelConfig.from_table(DROPS), seed=0)
    model.keys = row_keys(0, 0, 0, 4, CPU)
    with pytest.raises(ValueError, match="keys are of 4 rows, and 5 are read: .* or to None"):
        model(batch().tokens)
    model.eval()(batch().tokens)


def test_a_drop_is_a_pytree_of_its_keys() -> None:
    drop = Drop(0.5, torch.ones(1, 2, 3, dtype=torch.long))
    leaves, spec = pytree.tree_flatten(drop)
    assert leaves == [drop.keys]
    assert pytree.tree_unflatten(leaves, spec) == drop


def compare_compiled() -> None:
    """In a process of its own: here every function is wrapped to check its shapes, and is not compiled as one graph."""
    keys, x = keys_of(5, 24), torch.randn(5, 24, 32)
    drops, drop = Dropout(0.3, 1), drop_for(0.3, keys, x, 2, 4)
    assert drop is not None
    weights = torch.rand(5, 4, 24, 24)
    once = torch.compile(lambda x, keys: (drops(x, keys), drop(weights, 3)), fullgraph=True, dynamic=False)
    dropped, of_weights = once(x, keys)
    assert torch.equal(dropped, drops(x, keys))
    assert torch.equal(of_weights, drop(weights, 3))
    for config in (DROPS, {**DROPS, "position": "alibi", "block": "parallel"}):
        model, rows = Transformer(ModelConfig.from_table(config), seed=0), row_keys(0, 0, 0, 5, CPU)
        plain = grads(model, batch(), rows)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        recompute_blocks(model, "selective" if config is DROPS else "none")
        compile_blocks(model)
        for name, gradient in grads(model, batch(), rows, compiled=True).items():
            assert_close(gradient, plain[name], atol=2e-4, rtol=1e-4)  # float32, sums in another order
        if config is not DROPS:
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3, "one for both layers, two for logits"


@pytest.mark.slow
def test_compiled_blocks_drop_the_same_units() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    compare_compiled()
