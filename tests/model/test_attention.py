"""Attention against loops, other libraries, and itself in other forms."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from groundup.model.attention import Causal, Packed
from groundup.model.dropout import Drop
from groundup.model.position import PositionTerms
from groundup.model.settings import ALiBi, GroupedQuery, ModelConfig
from groundup.model.transformer import Transformer

OPTIONS: list[dict[str, object]] = [
    {},
    {"window": 3},
    {"slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
    {"soft_cap": 2.0},
    {"scale": 0.3, "window": 4, "soft_cap": 1.5},
]


def attend_by_loops(q: Tensor, k: Tensor, v: Tensor, document: Tensor, **options: object) -> Tensor:
    """Equation 1 of Vaswani et al. 2017, one query at a time."""
    window, slopes, soft_cap = options.get("window"), options.get("slopes"), options.get("soft_cap")
    scale = options.get("scale") or 1 / math.sqrt(q.shape[-1])
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h * k.shape[1] // q.shape[1]
            for t in range(q.shape[2]):
                keys = [s for s in range(t + 1) if document[b, s] == document[b, t] and (not window or t - s < window)]
                scores = []
                for s in keys:
                    score = scale * torch.dot(q[b, h, t], k[b, g, s])
                    if soft_cap:
                        score = soft_cap * torch.tanh(score / soft_cap)
                    scores.append(score - (slopes[h] * (t - s) if slopes is not None else 0))
                weights = torch.stack(scores).softmax(dim=0)
                out[b, h, t] = sum(w * v[b, g, s] for w, s in zip(weights, keys, strict=True))
    return out


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_is_the_equation(options: dict[str, object], groups: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 9, 6, dtype=torch.float64)
    k = torch.randn(2, groups, 9, 6, dtype=torch.float64)
    v = torch.randn(2, groups, 9, 5, dtype=torch.float64)
    document = torch.tensor([[0] * 4 + [1] * 5, [7] * 9])
    expected = attend_by_loops(q, k, v, document, **options)
    assert_close(Packed(document)(q, k, v, layer=0, **options), expected, atol=1e-12, rtol=0)


def test_the_pages_attention_of_your_own_hides_what_it_says_it_hides(gpt2: ModelConfig) -> None:
    """In the model, against the window that the model has itself."""
    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    (source,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class Sliding" in block]
    names: dict[str, Any] = {"__name__": "page"}
    exec(source, names)
    torch.manual_seed(0)
    model = Transformer(gpt2).eval()
    windowed = Transformer(gpt2.model_copy(update={"attention": GroupedQuery(bias="all", window=4)})).eval()
    windowed.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 97, (1, 24))
    logits = model(tokens, attend=names["Sliding"](4))
    assert_close(logits, windowed(tokens), atol=1e-5, rtol=0)
    for place in (8, 15):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 97
        reached = (model(changed, attend=names["Sliding"](4)) != logits).any(dim=-1)[0]
        assert reached.nonzero().flatten().tolist() == list(range(place, place + 7)), (
            "twice three further, layer by layer"
        )


def test_the_model_hands_attend_every_argument_that_is_pinned() -> None:
    attention = {"window": 3, "windowed_layers": [True, False], "scale": 0.2, "soft_cap": 4.0, "dropout": 0.5}
    table = {"vocab_size": 50, "d_model": 32, "n_layers": 2, "n_heads": 4}
    model = Transformer(ModelConfig.from_table({**table, "position": {"kind": "alibi"}, "attention": attention}))
    seen = []

    def attend(q, k, v, *, layer, window, slopes, scale, soft_cap, dropout):  # type: ignore[no-untyped-def]
        seen.append((layer, window, slopes.tolist(), scale, soft_cap, dropout and dropout.share))
        return torch.zeros_like(q)

    for training in (True, False):
        model.train(training)(torch.arange(6)[None], attend=attend)
    slopes = [2**-2, 2**-4, 2**-6, 2**-8]
    for number, dropout in ((0, 0.5), (2, None)):
        assert seen[number] == (0, 3, slopes, 0.2, 4.0, dropout)
        assert seen[number + 1] == (1, None, slopes, 0.2, 4.0, dropout)


KINDS: dict[str, dict[str, object]] = {
    "plain": {},
    "windowed, capped": {"attention": {"window": 3, "soft_cap": 4.0}},
    "alibi": {"position": {"kind": "alibi"}},
    "latent": {"attention": {"kind": "latent", "d_latent": 8, "d_rotary": 4}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_at_every_boundary_a_change_in_one_document_leaves_the_other_as_it_is(kind: str) -> None:
    """Fault B10: a mask that is off by one at a packed boundary."""
    torch.manual_seed(0)
    table = {"vocab_size": 50, "context_length": 9, "d_model": 32, "n_layers": 2, "n_heads": 4, **KINDS[kind]}
    model = Transformer(ModelConfig.from_table(table)).eval()
    tokens = torch.randint(0, 50, (1, 9))
    for boundary in range(1, 9):
        document = torch.tensor([[0] * boundary + [1] * (9 - boundary)])
        position = torch.tensor([[*range(boundary), *range(9 - boundary)]])
        parts = {"first": slice(0, boundary), "second": slice(boundary, 9)}
        before = model(tokens, position, Packed(document))
        for changed, left in (("first", "second"), ("second", "first")):
            other = tokens.clone()
            other[:, parts[changed]] = (other[:, parts[changed]] + 1) % 50
            after = model(other, position, Packed(document))
            assert_close(after[:, parts[left]], before[:, parts[left]], atol=1e-6, rtol=0)  # a kernel may sum otherwise
            difference = (after - before)[0, parts[changed]].abs().amax(dim=-1)
            assert (difference > 1e-3).all(), "each of its own tokens has seen it"


def test_dropout_leaves_out_that_share_of_the_weights() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 64, 8), torch.randn(1, 1, 64, 8)
    v = torch.eye(64)[None, None]
    drop = Drop(0.25, keys=torch.randint(1 << 62, (1, 1, 64)))
    weights = Causal()(q, k, v, layer=0, dropout=drop)[0, 0]
    kept = Causal()(q, k, v, layer=0)[0, 0]
    lower = torch.ones(64, 64).tril().bool()
    assert (weights[lower] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    left = weights != 0
    assert_close(weights[left], kept[left] / 0.75)


def test_attend_objects_are_pytrees_of_tensors() -> None:
    document = torch.tensor([[0, 0, 1]])
    for attend in (Packed(document), Causal.of(3, document.device, {None, 2})):
        leaves, spec = torch.utils._pytree.tree_flatten(attend)
        rebuilt = torch.utils._pytree.tree_unflatten(leaves, spec)
        assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
        assert vars(rebuilt).keys() == vars(attend).keys()
        again, _ = torch.utils._pytree.tree_flatten(rebuilt)
        assert all(one is other for one, other in zip(leaves, again, strict=True)), "nothing is computed"
    assert torch.utils._pytree.tree_flatten(Causal())[0] == []


@pytest.mark.parametrize("window", [None, 3])
def test_masks_are_made_once_for_all_layers(
    llama: ModelConfig, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, plain = [], Tensor.masked_fill
    monkeypatch.setattr(Tensor, "masked_fill", lambda *given: made.append(1) or plain(*given))
    config = llama.model_copy(update={"n_layers": 3, "position": ALiBi(), "attention": GroupedQuery(window=window)})
    model, tokens = Transformer(config), torch.zeros(1, 8, dtype=torch.long)
    for attending in (lambda: None, lambda: Packed(tokens)):
        model(tokens, attend=attending())
        assert len(made) == (1 if window is None else 2)
        made.clear()


LATENT = {
    "vocab_size": 90,
    "context_length": 24,
    "d_model": 36,
    "n_layers": 2,
    "n_heads": 3,
    "d_head": 10,
    "d_ff": 50,
    "norm": {"epsilon": 1e-6},
    "attention": {"kind": "latent", "d_latent": 14, "d_rotary": 6, "d_value": 8},
    "head": {"tied": False},
}


class Latents(Causal):
    """Reads latent vectors, as a cache does."""

    wants_latents = True


@pytest.mark.parametrize("d_query_latent", [None, 11])
def test_latent_attention_equals_hugging_faces(d_query_latent: int | None, in_steps: Callable[..., Tensor]) -> None:
    """DeepSeek-V3's, with its mixtures of experts left out; at once and token by token, by keys and by latents."""
    torch.manual_seed(0)
    theirs = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            vocab_size=90,
            hidden_size=36,
            intermediate_size=50,
            num_hidden_layers=2,
            first_k_dense_replace=2,
            num_attention_heads=3,
            num_key_value_heads=3,
            q_lora_rank=d_query_latent,
            kv_lora_rank=14,
            qk_rope_head_dim=6,
            qk_nope_head_dim=10,
            v_head_dim=8,
            max_position_embeddings=24,
            rope_interleave=False,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    attention = {**LATENT["attention"], **({"d_query_latent": d_query_latent} if d_query_latent else {})}
    ours = Transformer(ModelConfig.from_table({**LATENT, "attention": attention})).eval()
    names = {
        "q_proj": "query",
        "q_a_proj": "query_latent",
        "q_a_layernorm": "query_latent_norm",
        "q_b_proj": "query",
        "kv_a_layernorm": "latent_norm",
        "o_proj": "out",
    }
    weights = {}
    for name, tensor in theirs.state_dict().items():
        name = name.removeprefix("model.").replace("layers.", "blocks.").replace("self_attn", "attention")
        name = name.replace("input_layernorm", "attention_norm").replace("post_attention_layernorm", "feedforward_norm")
        name = name.replace("embed_tokens", "embed").replace("lm_head", "head").replace("mlp.", "feedforward.")
        name = name.replace("_proj.weight", ".weight") if "feedforward" in name else name
        module = name.split(".")[-2]
        if module == "kv_a_proj_with_mqa":
            for part, piece in zip(("latent", "rotary_key"), tensor.split((14, 6)), strict=True):
                weights[name.replace(module, part)] = piece
        elif module == "kv_b_proj":
            for part, piece in zip(("key", "value"), tensor.unflatten(0, (3, 18)).split((10, 8), dim=1), strict=True):
                weights[name.replace(module, part)] = piece.flatten(0, 1)
        else:
            weights[name.replace(module, names.get(module, module))] = tensor
    ours.load_state_dict(weights)
    tokens = torch.randint(0, 90, (2, 23))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert_close(ours(tokens), expected, atol=1e-4, rtol=0)
        assert torch.equal(ours.train()(tokens), ours.eval()(tokens)), "the form is attend's choice, not the mode's"
        assert_close(ours(tokens, attend=Latents()), expected, atol=1e-4, rtol=0)
    assert ours.config.cached == (1, 14 + 6, 0)
    assert_close(in_steps(ours, tokens, [7] + [1] * 16), expected, atol=1e-4, rtol=0)


def test_latent_gradients_are_the_same_in_both_forms() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.from_table(LATENT)).double()
    tokens = torch.randint(0, 90, (2, 9))
    gradients = []
    for attend in (Causal(), Latents()):
        model.zero_grad()
        model(tokens, attend=attend).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-6)  # angles are float32


@pytest.mark.parametrize("options", OPTIONS)
def test_bfloat16_attention_is_near_float32s(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    expected = Causal()(q, k, v, layer=0, **options)
    rounded = Causal()(q.bfloat16(), k.bfloat16(), v.bfloat16(), layer=0, **options)
    assert rounded.dtype == torch.bfloat16
    assert_close(rounded.float(), expected, atol=0.05, rtol=0)


def test_windows_are_kept_by_the_layers_that_have_one() -> None:
    """A token further back than all windows together reach does not change the logits, unless one layer sees all."""
    torch.manual_seed(0)
    base = {"vocab_size": 50, "d_model": 32, "n_layers": 3, "n_heads": 2}
    tokens = torch.randint(0, 50, (1, 30))
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 50
    for windowed, reaches in (([True], False), ([True, False], True), ([True, True, True, False], False)):
        attention = {"window": 5, "windowed_layers": windowed}
        model = Transformer(ModelConfig.from_table({**base, "attention": attention})).eval()
        same = torch.equal(model(tokens)[0, -1], model(changed)[0, -1])
        assert same == (not reaches), windowed
        place = 3 * 4  # the furthest that three windows of five reach
        assert not torch.equal(model(tokens)[0, place], model(changed)[0, place])


def test_qk_norm_makes_scores_blind_to_the_length_of_the_input() -> None:
    torch.manual_seed(0)
    for qk_norm in ("head", "full"):
        table = {"vocab_size": 50, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "attention": {"qk_norm": qk_norm}}
        attention = Transformer(ModelConfig.from_table(table)).blocks["0"].attention
        seen: list[Tensor] = []

        def attend(q: Tensor, k: Tensor, v: Tensor, seen: list[Tensor] = seen, **options: object) -> Tensor:
            seen.extend((q, k))
            return torch.zeros_like(q)

        x = torch.randn(1, 5, 32)
        attention(x, PositionTerms(), attend)
        attention(100 * x, PositionTerms(), attend)
        assert_close(seen[0], seen[2], atol=1e-2, rtol=0)
        assert_close(seen[1], seen[3], atol=1e-2, rtol=0)
        assert not torch.allclose(seen[0], torch.zeros_like(seen[0]))
