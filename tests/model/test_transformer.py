"""The model: the future stays unseen, documents and rows stay apart, intermediates are shown."""

import math

import pytest
import torch
from torch.testing import assert_close

from groundup.errors import SettingsError
from groundup.model.attention import Causal, Packed
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.model.transformer import Transformer, initialise, make_block

SAME_SUMS_OTHER_ORDER = 1e-5  # float32


def ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_a_future_token_never_changes_a_past_logit(model: Transformer) -> None:
    tokens = ids(2, 24)
    before = model(tokens)
    for place in range(1, 24):
        changed = tokens.clone()
        changed[:, place:] = (changed[:, place:] + 1) % 97
        assert torch.equal(model(changed)[:, :place], before[:, :place])
        assert not torch.equal(model(changed)[:, place], before[:, place])


def test_packed_documents_do_not_see_each_other(model: Transformer) -> None:
    tokens = ids(1, 24)
    document = torch.tensor([[0] * 5 + [1] * 11 + [2] * 8])
    position = torch.tensor([[*range(5), *range(11), *range(8)]])
    together = model(tokens, position, Packed(document))
    for begin, end in ((0, 5), (5, 16), (16, 24)):
        alone = model(tokens[:, begin:end])
        assert_close(together[:, begin:end], alone, atol=SAME_SUMS_OTHER_ORDER, rtol=0)


def test_a_row_never_changes_another(model: Transformer) -> None:
    tokens = ids(3, 24)
    before = model(tokens)
    changed = tokens.clone()
    changed[1] = (changed[1] + 1) % 97
    after = model(changed)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])


def test_padding_does_not_change_the_rest(model: Transformer) -> None:
    tokens = ids(1, 24)
    document = torch.tensor([[0] * 10 + [-1] * 14])
    position = torch.tensor([[*range(10), *([0] * 14)]])
    assert_close(
        model(tokens, position, Packed(document))[:, :10], model(tokens[:, :10]), atol=SAME_SUMS_OTHER_ORDER, rtol=0
    )


def test_defaults_are_positions_from_zero_and_plain_causal(model: Transformer) -> None:
    tokens = ids(2, 7)
    explicit = model(tokens, torch.arange(7).expand(2, 7), Causal())
    assert torch.equal(model(tokens), explicit)
    assert explicit.shape == (2, 7, 97)


def test_tap_sees_every_intermediate_and_changes_nothing(model: Transformer) -> None:
    seen: dict[str, torch.Tensor] = {}
    tokens = ids(1, 5)
    hidden = model.hidden(tokens, tap=lambda name, tensor: seen.update({name: tensor}))
    assert list(seen) == [
        "embed",
        *[
            f"blocks.{layer}{part}"
            for layer in range(2)
            for part in (".attention", ".feedforward.active", ".feedforward", "")
        ],
        "norm",
    ]
    assert torch.equal(seen["norm"], hidden)
    assert torch.equal(hidden, model.hidden(tokens))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "alibi"])
def test_a_model_cut_in_two_composes_to_the_whole(llama: ModelConfig, position: str) -> None:
    """Pipeline stages are models without a head or an embedding; they add no position and no norm."""
    torch.manual_seed(0)
    llama = llama.override([f"position={position}"])
    whole, first, second = Transformer(llama), Transformer(llama), Transformer(llama)
    for part in (first, second):
        part.load_state_dict(whole.state_dict())
    first.head = second.embed = None
    del first.blocks["1"], second.blocks["0"]
    tokens = ids(2, 9)
    assert torch.equal(second(first(tokens)), whole(tokens))
    names = {name for part in (first, second) for name, _ in part.named_parameters()}
    assert names - {"head.weight"} == {name for name, _ in whole.named_parameters()}, "blocks keep their global names"


def test_auxiliary_losses_come_through_all_stages(llama: ModelConfig) -> None:
    config = llama.override(["feedforward=experts", "feedforward.n_experts=4"])
    torch.manual_seed(0)
    whole, first, second = Transformer(config), Transformer(config), Transformer(config)
    for part in (first, second):
        part.load_state_dict(whole.state_dict())
    first.head = second.embed = None
    del first.blocks["1"], second.blocks["0"]
    seen: dict[str, torch.Tensor] = {}
    states, asked = first.hidden_and_auxiliary(ids(2, 9))
    second.earlier_auxiliary = asked
    hidden, auxiliary = second.hidden_and_auxiliary(states)
    expected, all_asked = whole.hidden_and_auxiliary(ids(2, 9), tap=seen.__setitem__)
    assert torch.equal(hidden, expected)
    assert torch.equal(auxiliary, all_asked)
    assert_close(auxiliary, sum(tensor for name, tensor in seen.items() if name.endswith("auxiliary_loss")))


@pytest.mark.parametrize("kind", ["alibi", "rotary"])
def test_ranks_that_hold_some_heads_each_add_up_to_all(llama: ModelConfig, kind: str) -> None:
    """Query, key and value split by heads, the output by its inputs: as `TP` says, and with their own slopes."""
    torch.manual_seed(0)
    whole = Transformer(llama.override([f"position={kind}", "n_kv_heads=4"])).blocks["0"].attention
    ranks, x = [make_block(whole.config, 0).attention for _ in range(2)], torch.randn(2, 9, 32)
    for number, rank in enumerate(ranks):
        rank.first_head = 2 * number
        for name, way in rank.TP.items():
            weight = getattr(whole, name).weight.data.chunk(2, dim=0 if way == "column" else 1)[number]
            getattr(rank, name).weight.data = weight
    assert_close(sum(rank(x) for rank in ranks), whole(x), atol=SAME_SUMS_OTHER_ORDER, rtol=0)


def test_a_norm_over_all_heads_says_that_it_needs_them_all(llama: ModelConfig) -> None:
    attention = make_block(llama.override(["attention.qk_norm=full"]), 0).attention
    assert attention.TP["query_norm"] == attention.TP["key_norm"] == "all heads"


@pytest.mark.parametrize("n_layers", [1, 8])
def test_initialisation_is_gpt2s(n_layers: int) -> None:
    config = ModelConfig(vocab_size=512, d_model=256, n_layers=n_layers, n_heads=4, head=LanguageModel(tied=False))
    torch.manual_seed(0)
    model = Transformer(config)
    block = model.blocks[str(n_layers - 1)]
    for weight, deviation in [
        (model.embed.weight, 0.02),
        (model.head.weight, 0.02),
        (block.attention.query.weight, 0.02),
        (block.feedforward.up.weight, 0.02),
        (block.attention.out.weight, 0.02 / math.sqrt(2 * n_layers)),
        (block.feedforward.down.weight, 0.02 / math.sqrt(2 * n_layers)),
    ]:
        assert weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert (model.norm.weight == 1).all()
    tokens = torch.randint(0, 512, (4, 64))
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(512), abs=0.1)


def test_a_weight_depends_on_seed_name_and_place_alone(config: ModelConfig) -> None:
    """Whatever is here of the model, on whatever device it was made, and whatever was drawn before."""
    whole = Transformer(config, seed=5)
    whole.add_multi_token(1, seed=5)
    weights = dict(whole.named_parameters())
    with torch.device("meta"):
        late = Transformer(config)
        late.add_multi_token(1)
    stage = Transformer(config, seed=6)
    del stage.blocks["0"]
    stage.embed = None  # as at the end of a pipeline
    for model in (late.to_empty(device="cpu"), stage):
        model.tie()
        torch.rand(3)
        initialise(model, config.n_layers, seed=5)
        for name, weight in model.named_parameters():
            held = name if name in weights else "embed.weight"  # the head's own copy, where it is tied
            assert torch.equal(weight, weights[held]), name
    assert not torch.equal(
        Transformer(config, seed=6).blocks["0"].attention.query.weight, weights["blocks.0.attention.query.weight"]
    )
    drawn = [next(Transformer(config).parameters()) for _ in range(2) if torch.manual_seed(7)]
    assert torch.equal(*drawn), "without a seed by torch's generator"


def test_on_the_meta_device_nothing_is_drawn(config: ModelConfig) -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        Transformer(config)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_acts_in_training_only(llama: ModelConfig) -> None:
    config = llama.model_copy(update={"dropout": 0.5})
    torch.manual_seed(0)
    model = Transformer(config)
    tokens = ids(1, 6)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_a_config_without_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is not set"):
        Transformer(ModelConfig())


def test_shapes_are_checked_in_this_test_run(model: Transformer) -> None:
    with pytest.raises(Exception, match="(?i)type"):
        model(torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("tokens", "error", "answer"),
    [
        ([1, 2, 3], TypeError, r"tokens are of type list; .* torch.tensor\(\[ids\]\)"),
        (torch.arange(5), ValueError, r"tokens have shape \(5,\); it should be \(rows, length\)"),
        (torch.zeros(1, 2, 3).long(), ValueError, r"tokens have shape \(1, 2, 3\)"),
        (torch.zeros(2, 0).long(), ValueError, r"shape \(2, 0\): there is nothing to read"),
        (torch.zeros(0, 5).long(), ValueError, r"shape \(0, 5\): there is nothing to read"),
        (torch.zeros(2, 5), TypeError, r"type torch.float32; they should be ids, .* tokens.long\(\)"),
        (torch.zeros(2, 5).bool(), TypeError, "type torch.bool"),
        (torch.zeros(2, 5, dtype=torch.uint8), TypeError, "type torch.uint8"),
        (torch.zeros(1, 25).long(), ValueError, r"shape \(1, 25\), but the model reads at most context_length = 24"),
        (torch.tensor([[3, 97]]), IndexError, "ids of tokens go from 3 to 97, but this model has 0 to 96"),
        (torch.tensor([[-1, 3]]), IndexError, "ids of tokens go from -1 to 3"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_what_cannot_be_read_is_named(model: Transformer, tokens: object, error: type[Exception], answer: str) -> None:
    with pytest.raises(error, match=answer):
        model(tokens)


@pytest.mark.usefixtures("shapes_unchecked")
def test_positions_and_hidden_states_that_do_not_fit_are_named(gpt2: ModelConfig) -> None:
    model = Transformer(gpt2)
    with pytest.raises(ValueError, match=r"position has shape \(5,\); it should be that of the tokens, \(1, 5\)"):
        model(ids(1, 5), torch.arange(5))
    with pytest.raises(IndexError, match="rows of the table of positions go from 20 to 24, .* 0 to 23"):
        model(ids(1, 5), torch.arange(20, 25)[None])
    model.embed = None
    for states in (torch.zeros(1, 5, 31), torch.zeros(5, 32), ids(1, 5)):
        with pytest.raises(ValueError, match=r"tokens have shape .*, but .* reads hidden states, \(rows, length, 32\)"):
            model(states)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_block_without_rows_is_told_so(config: ModelConfig) -> None:
    with pytest.raises(ValueError, match=r"x has shape \(5, 32\); it should be \(rows, length, width\)"):
        make_block(config, 0)(torch.zeros(5, 32))


def test_ids_of_32_bits_are_read_as_those_of_64(model: Transformer) -> None:
    assert torch.equal(model(ids(2, 24).int()), model(ids(2, 24)))


def test_an_attention_that_is_empty_yet_is_taken(model: Transformer) -> None:
    """It is asked whether there is one, not whether it is true."""

    class Blind:
        def __len__(self) -> int:
            return 0

        def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
            return torch.zeros_like(q)

    tokens = ids(1, 5)
    assert not torch.equal(model(tokens, attend=Blind()), model(tokens))


SMALL = {"vocab_size": 50, "context_length": 24, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48}


def stream_of(table: dict[str, object], tokens: torch.Tensor) -> tuple[Transformer, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.from_table({**SMALL, **table})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    seen: dict[str, torch.Tensor] = {}
    model.hidden(tokens, tap=seen.__setitem__)
    return model, seen


@pytest.mark.parametrize("norm", ["before", "after", "output", "around"])
def test_norms_stand_where_they_are_said_to(norm: str) -> None:
    """The second block, written out."""
    model, seen = stream_of({"block": {"norm": norm}}, ids(2, 9) % 50)
    block, x = model.blocks["1"], seen["blocks.0"]
    _, terms = model.position(x, torch.arange(9).expand(2, 9))

    def attend(x: torch.Tensor) -> torch.Tensor:
        return block.attention(x, terms, Causal())

    def feed(x: torch.Tensor) -> torch.Tensor:
        return block.feedforward(x)

    match norm:
        case "before":
            x = x + attend(block.attention_norm(x))
            x = x + feed(block.feedforward_norm(x))
        case "after":
            x = block.attention_sum_norm(x + attend(x))
            x = block.feedforward_sum_norm(x + feed(x))
        case "output":
            x = x + block.attention_output_norm(attend(x))
            x = x + block.feedforward_output_norm(feed(x))
        case "around":
            x = x + block.attention_output_norm(attend(block.attention_norm(x)))
            x = x + block.feedforward_output_norm(feed(block.feedforward_norm(x)))
    assert_close(seen["blocks.1"], x, atol=SAME_SUMS_OTHER_ORDER, rtol=0)
    final = seen["norm"]
    assert_close(final, x if norm == "after" else model.norm(x), atol=SAME_SUMS_OTHER_ORDER, rtol=0)


ALONE: dict[str, dict[str, object]] = {
    "rotary, in part": {"position": {"kind": "rotary", "fraction": 0.5, "scaling": {"kind": "linear"}}},
    "alibi, windows, parallel": {"position": "alibi", "attention": {"window": 3, "soft_cap": 9.0}, "block": "parallel"},
    "learned": {"position": "learned", "feedforward": "gelu"},
    "sinusoidal": {"position": "sinusoidal"},
    "latent": {"attention": {"kind": "latent", "d_latent": 8, "d_rotary": 4}},
    "experts": {"feedforward": {"kind": "experts", "n_experts": 4}},
}


@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize("training", [True, False])
def test_blocks_and_their_parts_alone_do_what_they_do_in_the_model(kind: str, training: bool) -> None:
    model, seen = stream_of(ALONE[kind], ids(2, 9) % 50)
    model.train(training)
    block, x = model.blocks["1"], seen["blocks.0"]
    assert_close(block(x), seen["blocks.1"], atol=SAME_SUMS_OTHER_ORDER, rtol=0)
    alone = make_block(model.config, 1).train(training)
    alone.load_state_dict(block.state_dict())
    assert torch.equal(alone(x), block(x))
    if not training:
        assert torch.equal(block.attention(block.attention_norm(x)), seen["blocks.1.attention"])
        if block.feedforward_norm is not None and kind != "alibi, windows, parallel":
            fed = block.feedforward(block.feedforward_norm(x + seen["blocks.1.attention"]))
            assert torch.equal(fed, seen["blocks.1.feedforward"])
    model.add_multi_token(1)
    position = torch.arange(9).expand(2, 9)
    (further,) = model.hidden_multi_token(x, position, Causal())
    assert torch.equal(model.multi_token[0](x), further)


@pytest.mark.parametrize("shared_norm", [True, False])
def test_parallel_blocks_add_both_to_what_both_read(shared_norm: bool) -> None:
    model, seen = stream_of({"block": {"kind": "parallel", "shared_norm": shared_norm}}, ids(2, 9) % 50)
    block, x = model.blocks["1"], seen["blocks.0"]
    _, terms = model.position(x, torch.arange(9).expand(2, 9))
    other = block.attention_norm if shared_norm else block.feedforward_norm
    expected = x + block.attention(block.attention_norm(x), terms, Causal()) + block.feedforward(other(x))
    assert_close(seen["blocks.1"], expected, atol=SAME_SUMS_OTHER_ORDER, rtol=0)


def test_heads_of_classes_and_of_one_number() -> None:
    tokens = ids(2, 9) % 50
    for head, width in (({"kind": "classes", "n_classes": 3}, 3), ({"kind": "scalar"}, 1)):
        model, _ = stream_of({"head": head}, tokens)
        assert model(tokens).shape == (2, 9, width)
        assert_close(model(tokens), model.hidden(tokens) @ model.head.weight.T)


def test_soft_capped_scores_stay_within_the_cap() -> None:
    tokens = ids(2, 9) % 50
    model, _ = stream_of({"head": {"soft_cap": 0.5}}, tokens)
    plain = model.head(model.hidden(tokens))
    assert plain.abs().max() > 0.5
    assert model(tokens).abs().max() < 0.5
    assert_close(model(tokens), 0.5 * torch.tanh(plain / 0.5))


def test_embeddings_are_widened_scaled_and_normed() -> None:
    tokens = ids(1, 9) % 50
    model, seen = stream_of({"d_embedding": 12, "embedding_scale": 3.0, "embedding_norm": True}, tokens)
    assert_close(seen["embed"], model.embedding_norm(model.project_in(model.embed(tokens) * 3)))
    assert_close(model(tokens), model.project_out(seen["norm"]) @ model.embed.weight.T)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"attention": {"kind": "latent"}, "position": {"kind": "alibi"}},
            "position.kind = alibi, but latent attention keeps channels for rotary",
        ),
        ({"attention": {"kind": "latent"}, "n_kv_heads": 2}, "n_kv_heads = 2, but latent attention makes"),
        (
            {"position": {"kind": "rotary", "fraction": 0.4}},
            "position.fraction = 0.4 of a head's 8 is 3; set position.fraction to 0.25",
        ),
        (
            {"position": {"kind": "rotary", "fraction": 0.01}},
            "fraction = 0.01 of a head's 8 is 0; set position.fraction to 0.25",
        ),
        ({"position": {"kind": "sinusoidal"}, "d_model": 33, "n_heads": 3}, "sinusoidal position fills pairs"),
        ({"feedforward": {"kind": "experts", "n_active": 9}}, "n_active = 9 is more than n_experts = 8"),
        (
            {"position": {"scaling": {"kind": "llama3", "slow": 4.0, "fast": 1.0}}},
            "fast = 1.0 is not more than slow = 4.0",
        ),
        (
            {"position": {"scaling": {"kind": "yarn", "slow": 4.0, "fast": 1.0}}},
            "fast = 1.0 is not more than slow = 4.0",
        ),
        ({"position": {"kind": "rotray"}}, "rotary"),
        ({"attention": {"kind": "latent", "d_rotary": 31}}, "attention.*d_rotary"),
        ({"attention": {"windowed_layers": [True, False]}}, "windowed_layers = .True, False. without a window"),
        ({"n_kv_heads": 3}, "n_kv_heads = 3 does not divide n_heads = 4.*possible: 1, 2, 4"),
    ],
)
def test_sizes_that_cannot_be_are_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ModelConfig.from_table({**SMALL, **table})
