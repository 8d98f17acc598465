"""Each scheme of position has the property that it was made for."""

import math

import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from groundup.model.attention import Causal, Packed
from groundup.model.position import Position, alibi_slopes, rotary_frequencies
from groundup.model.settings import (
    ALiBi,
    LearnedPosition,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    NoPosition,
    NTKScaling,
    Rotary,
    Sinusoidal,
    YaRNScaling,
)
from groundup.model.transformer import Transformer

CPU = torch.device("cpu")


def scores(position: Rotary, q: Tensor, k: Tensor, at_q: int, at_k: int) -> Tensor:
    """Scaled dot product of a query and a key at their positions; both (N, K)."""
    config = ModelConfig(n_heads=len(q), d_head=q.shape[1], position=position)
    module = Position(config)
    turned = []
    for x, at in ((q, at_q), (k, at_k)):
        _, terms = module(torch.zeros(1, 1, 1), torch.tensor([[at]]))
        turned.append(terms.rotate(x[None, :, None]))
    return (turned[0] * turned[1]).sum(-1)


SCALINGS = [
    Rotary(),
    Rotary(fraction=0.5),
    Rotary(scaling=LinearScaling(factor=3.0)),
    Rotary(scaling=NTKScaling(factor=3.0)),
    Rotary(scaling=Llama3Scaling(trained_length=64)),
    Rotary(scaling=YaRNScaling(trained_length=64)),
]


@pytest.mark.parametrize("position", SCALINGS)
def test_rotary_scores_depend_on_the_distance_alone(position: Rotary) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 16), torch.randn(2, 16)
    for distance in (0, 1, 5, 20):
        near = scores(position, q, k, distance, 0)
        for shift in (1, 37, 400):
            assert_close(scores(position, q, k, distance + shift, shift), near, atol=1e-3, rtol=0)
    assert not torch.allclose(scores(position, q, k, 3, 1), scores(position, q, k, 9, 1), atol=1e-2)


def test_rotary_turns_a_pair_by_its_angle_and_keeps_lengths() -> None:
    """Equation 13 of the paper: in two dimensions, position m turns by m radians."""
    config = ModelConfig(n_heads=1, d_head=2)
    _, terms = Position(config)(torch.zeros(1, 5, 1), torch.arange(5)[None])
    turned = terms.rotate(torch.tensor([1.0, 0.0]).expand(1, 1, 5, 2))[0, 0]
    expected = torch.tensor([[math.cos(m), math.sin(m)] for m in range(5)])
    assert_close(turned, expected)


def test_what_is_not_turned_is_left() -> None:
    config = ModelConfig(n_heads=1, d_head=8, position=Rotary(fraction=0.25))
    _, terms = Position(config)(torch.zeros(1, 5, 1), torch.arange(5)[None])
    x = torch.randn(1, 1, 5, 8)
    assert torch.equal(terms.rotate(x)[..., 2:], x[..., 2:])
    assert not torch.equal(terms.rotate(x)[..., :2], x[..., :2])


def test_linear_scaling_puts_positions_closer_together() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 16), torch.randn(1, 16)
    stretched = scores(Rotary(scaling=LinearScaling(factor=4.0)), q, k, 40, 8)
    assert_close(stretched, scores(Rotary(), q, k, 10, 2), atol=1e-4, rtol=0)


def test_ntk_scaling_stretches_the_slowest_pair_by_the_factor_and_leaves_the_fastest() -> None:
    before, _ = rotary_frequencies(Rotary(), 32, CPU)
    after, _ = rotary_frequencies(Rotary(scaling=NTKScaling(factor=5.0)), 32, CPU)
    ratio = before / after
    assert_close(ratio[0].item(), 1.0)
    assert_close(ratio[-1].item(), 5.0, rtol=1e-4, atol=0)
    assert (ratio.diff() > 0).all()


@pytest.mark.parametrize(
    ("scaling", "theirs"),
    [
        (
            Llama3Scaling(factor=8.0, slow=1.0, fast=4.0, trained_length=256),
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        ),
        (YaRNScaling(factor=16.0, trained_length=256), {"rope_type": "yarn", "factor": 16.0}),
        (
            YaRNScaling(factor=4.0, slow=2.0, fast=20.0, trained_length=256, magnitude=1.5),
            {"rope_type": "yarn", "factor": 4.0, "beta_slow": 2.0, "beta_fast": 20.0, "attention_factor": 1.5},
        ),
    ],
)
def test_scaled_angles_equal_hugging_faces(scaling: object, theirs: dict[str, object]) -> None:
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=1,
        max_position_embeddings=4096,
        rope_parameters={**theirs, "rope_theta": 500.0, "original_max_position_embeddings": 256},
    )
    init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[theirs["rope_type"]]
    expected, magnitude = init(config, CPU)
    ours, factor = rotary_frequencies(Rotary(base=500.0, scaling=scaling), 64, CPU)
    assert_close(ours, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(magnitude)


def test_sinusoidal_positions_are_the_papers() -> None:
    """PE(p, 2i) = sin(p / 10000^(2i/d)), PE(p, 2i + 1) = cos of the same (Vaswani et al. 2017, section 3.5)."""
    config = ModelConfig(d_model=16, position=Sinusoidal())
    x, _ = Position(config)(torch.zeros(1, 50, 16), torch.arange(50)[None])
    for p in (0, 1, 7, 49):
        for i in range(8):
            angle = p / 10_000 ** (2 * i / 16)
            assert x[0, p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert x[0, p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_shift_of_sinusoidal_positions_is_linear() -> None:
    """For every shift there is one matrix, which turns each pair by shift × frequency, that takes any position's vector
    to that of the position so much later."""
    waves = Position(ModelConfig(d_model=16, position=Sinusoidal()))
    table = waves(torch.zeros(1, 300, 16), torch.arange(300)[None])[0][0]
    for shift in (1, 10, 100):
        angles = [shift / 10_000 ** (2 * i / 16) for i in range(8)]
        turns = [torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in angles]
        assert_close(table[:200] @ torch.block_diag(*turns).T, table[shift : 200 + shift], atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 8, 12, 16, 71, 112])
def test_alibi_slopes_equal_hugging_faces(n_heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2), n_heads, torch.float32)[:, 0, 1]
    assert_close(alibi_slopes(n_heads, CPU), theirs, rtol=1e-6, atol=0)


def test_alibi_takes_off_scores_in_proportion_to_distance() -> None:
    """With equal contents the logarithm of the attention weights is a straight line, of a slope for each head."""
    n_heads, length = 8, 30
    _, terms = Position(ModelConfig(n_heads=n_heads, d_model=64, position=ALiBi()))(
        torch.zeros(1, length, 64), torch.arange(length)[None]
    )
    q = k = torch.zeros(1, n_heads, length, 4)
    v = torch.eye(length).expand(1, n_heads, length, length)
    options = {"window": None, "scale": None, "soft_cap": None, "dropout": None}
    weights = Causal()(q, k, v, layer=0, slopes=terms.slopes, **options)[0]
    steps = weights[:, -1].log().diff(dim=-1)  # from each key to the next nearer one
    assert_close(steps, terms.slopes[:, None].expand(n_heads, length - 1), atol=1e-4, rtol=1e-4)


def test_alibi_reads_further_than_it_was_trained() -> None:
    """Beyond that length it is defined, and what lies far enough back has next to no weight, even in the head with the
    flattest slope: the logits for a long text are those for its end."""
    torch.manual_seed(0)
    base = {"vocab_size": 50, "context_length": 16, "d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 32}
    config = ModelConfig.from_table({**base, "position": {"kind": "alibi"}})
    trained, model = Transformer(config), Transformer(config.model_copy(update={"context_length": 4000})).eval()
    model.load_state_dict(trained.state_dict())  # no weight depends on it
    tokens = torch.randint(0, 50, (1, 4000))
    long = model(tokens)
    assert long.isfinite().all()
    assert_close(long[:, -1], model(tokens[:, -3000:])[:, -1], atol=1e-4, rtol=0)  # e^(−3000/256) is 8e-6
    for position in ("alibi", "rotary", "learned"):
        short = Transformer(ModelConfig.from_table({**base, "position": position}))
        with pytest.raises(ValueError, match="at most context_length = 16"):
            short(tokens)


def first_layer(position: object, **changes: object) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=50, d_model=32, n_layers=1, n_heads=2, d_ff=32, position=position, **changes)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


def test_without_position_the_first_layer_is_blind_to_order() -> None:
    """What the last token reads in layer 1 is a sum over those before it, in whatever order; not so in layer 2."""
    tokens = torch.randint(0, 50, (1, 20))
    mixed = torch.cat((tokens[:, torch.randperm(19)], tokens[:, -1:]), dim=1)
    blind = first_layer(NoPosition())
    assert_close(blind(mixed)[:, -1], blind(tokens)[:, -1], atol=1e-5, rtol=0)
    for position in (LearnedPosition(), Sinusoidal(), Rotary(), ALiBi()):
        seeing = first_layer(position)
        assert not torch.allclose(seeing(mixed)[:, -1], seeing(tokens)[:, -1], atol=1e-3), position.kind
    deeper = Transformer(ModelConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=2, position=NoPosition()))
    with torch.no_grad():
        for parameter in deeper.parameters():
            parameter.mul_(5)
    assert not torch.allclose(deeper(mixed)[:, -1], deeper(tokens)[:, -1], atol=1e-3)


def test_opts_offset_leaves_rows_unused() -> None:
    place = Position(ModelConfig(context_length=8, d_model=4, n_heads=1, position=LearnedPosition(offset=2)))
    assert place.table.weight.shape == (10, 4)
    torch.nn.init.normal_(place.table.weight)
    x, _ = place(torch.zeros(1, 8, 4), torch.arange(8)[None])
    assert torch.equal(x[0], place.table.weight[2:])


@pytest.mark.parametrize("position", [LearnedPosition(), Sinusoidal(), Rotary(), ALiBi(), NoPosition()])
def test_positions_begin_anew_in_each_document(position: object) -> None:
    model = first_layer(position)
    tokens = torch.randint(0, 50, (1, 12))
    document = torch.tensor([[0] * 5 + [1] * 7])
    packed = model(tokens, torch.tensor([[*range(5), *range(7)]]), Packed(document))
    assert_close(packed[:, 5:], model(tokens[:, 5:]), atol=1e-4, rtol=0)
