"""Generation: the cache changes nothing, sampling is the stated distribution, text comes in whole characters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import groundup
from groundup.errors import SettingsError
from groundup.generation.cache import ContiguousCache
from groundup.generation.engine import Sequences, continue_ids
from groundup.generation.sample import draw, probabilities
from groundup.generation.settings import Sampling
from groundup.generation.text import stream, until_stop
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.vocabulary import whole_characters


@pytest.mark.parametrize("cuts", [[24], [10, 14], [1] * 24, [5, 1, 1, 17]])
def test_cached_decoding_equals_the_full_forward(model: Transformer, cuts: list[int]) -> None:
    tokens = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(0))
    cache = ContiguousCache.empty(model.config, 2, torch.device("cpu"), torch.float32)
    parts, held = [], 0
    for length in cuts:
        here = slice(held, held + length)
        attend = cache.attend([held, held], [length, length])
        parts.append(model(tokens[:, here], torch.arange(24)[here].expand(2, -1), attend))
        held += length
    assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-4, rtol=0)


def test_greedy_ids_are_the_argmax_of_the_full_forward(model: Transformer) -> None:
    ids = [3, 5]
    for _ in range(15):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert list(continue_ids(model, [3, 5], Sampling(temperature=0, max_tokens=15))) == ids[2:]


def test_a_full_context_goes_on_from_its_later_half(model: Transformer) -> None:
    ids = list(continue_ids(model, [3, 5], Sampling(temperature=0, max_tokens=60)))
    assert len(ids) == 60
    held = [3, 5, *ids[:22], ids[22]]  # 25 tokens do not fit into 24; the last 12 are read again
    assert int(model(torch.tensor([held[-12:]]))[0, -1].argmax()) == ids[23]


def test_prompts_that_do_not_fit_are_answered(model: Transformer) -> None:
    with pytest.raises(SettingsError, match="30 tokens; this model sees at most 24"):
        next(continue_ids(model, [1] * 30, Sampling()))
    with pytest.raises(SettingsError, match="prompt is empty"):
        next(continue_ids(model, [], Sampling()))


def test_generation_leaves_the_model_in_training_as_it_was(model: Transformer) -> None:
    model.train()
    list(continue_ids(model, [1], Sampling(max_tokens=2)))
    assert model.training


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_rows_of_unequal_length_together_equal_each_alone(config: ModelConfig, temperature: float) -> None:
    """Through prompts, single ids and contexts that become full at different times."""
    torch.manual_seed(0)
    model = Transformer(config.with_vocabulary(97)).eval()
    prompts = [[3, 5], list(range(20)), [7], list(range(30, 54))]
    samplings = [Sampling(temperature=temperature, seed=seed, max_tokens=12) for seed in range(4)]
    alone = [list(continue_ids(model, *each, never=(1,))) for each in zip(prompts, samplings, strict=True)]
    rows = Sequences(model, prompts, samplings, never=(1,))
    together = []
    for _ in range(12):
        chosen, _ = rows.choose()
        rows.append(chosen)
        together.append(chosen)
    assert [list(ids) for ids in zip(*together, strict=True)] == alone


def test_two_generators_take_turns_and_an_abandoned_one_leaves_the_mode(model: Transformer) -> None:
    model.train()
    one, other = (continue_ids(model, [1], Sampling(temperature=0, max_tokens=5)) for _ in range(2))
    turns = [(next(one), model.training, next(other), model.training) for _ in range(3)]
    del one, other
    assert model.training
    assert all(first == second and after and at_last for first, after, second, at_last in turns)


LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, LOGITS.softmax(0)),
        ({"temperature": 0.5}, (LOGITS * 2).softmax(0)),
        ({"temperature": 0.0}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"temperature": 1e-45}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"temperature": 1.0, "top_k": 2}, torch.cat([LOGITS[:2].softmax(0), torch.zeros(3)])),
        ({"temperature": 1.0, "top_k": 9}, LOGITS.softmax(0)),
        # shares 0.606, 0.223, 0.135, …: the first two reach 0.7, one alone reaches 0.6
        ({"temperature": 1.0, "top_p": 0.7}, torch.cat([LOGITS[:2].softmax(0), torch.zeros(3)])),
        ({"temperature": 1.0, "top_p": 0.6}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"temperature": 1.0, "top_p": 1.0}, LOGITS.softmax(0)),
    ],
)
def test_the_distribution_is_the_stated_one(options: dict[str, float], expected: torch.Tensor) -> None:
    assert_close(probabilities(LOGITS, Sampling(**options)), expected)


def test_draws_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    row = probabilities(LOGITS, Sampling(temperature=1.0))[None]
    drawn = torch.cat([draw(row, [generator]) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=5) / 4000
    assert_close(shares, LOGITS.softmax(0), atol=0.03, rtol=0)  # four standard deviations of the largest share


def test_a_draw_is_torchs_multinomial_whoever_else_draws() -> None:
    shares = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    ids = draw(shares, [torch.Generator().manual_seed(seed) for seed in range(3)])
    for seed in range(3):
        assert ids[seed] == torch.multinomial(shares[seed], 1, generator=torch.Generator().manual_seed(seed))


def wide(config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config.with_vocabulary(320)).eval()


def test_a_seed_gives_one_text_and_another_seed_another(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    model = wide(llama)
    texts = [groundup.generate(model, tokenizer, "the", max_tokens=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_reserved_tokens_are_never_written(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    text = groundup.generate(wide(llama), tokenizer, "the", max_tokens=400, temperature=5.0, seed=2)
    assert "<|" not in text


def test_streamed_parts_put_together_the_text(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    model = wide(llama)
    parts = list(stream(model, tokenizer, "the", Sampling(max_tokens=40, temperature=1.5)))
    assert "".join(parts) == groundup.generate(model, tokenizer, "the", max_tokens=40, temperature=1.5)
    assert len(parts) > 5


def test_a_cache_and_its_attend_are_pytrees_of_tensors(llama: ModelConfig) -> None:
    cache = ContiguousCache.empty(llama, 2, torch.device("cpu"), torch.float32)
    for tree in (cache, cache.attend([0, 3], [2, 1])):
        leaves, spec = torch.utils._pytree.tree_flatten(tree)
        rebuilt = torch.utils._pytree.tree_unflatten(leaves, spec)
        again, _ = torch.utils._pytree.tree_flatten(rebuilt)
        assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
        assert all(one is other for one, other in zip(leaves, again, strict=True)), "nothing is computed"


@given(st.text(max_size=30), st.data())
def test_characters_come_whole_however_the_bytes_are_cut(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    parts = []
    while raw:
        size = data.draw(st.integers(1, len(raw)))
        parts.append(raw[:size])
        raw = raw[size:]
    assert "".join(whole_characters(parts)) == text


def test_bytes_that_never_become_a_character_are_marked() -> None:
    assert list(whole_characters([b"a", b"\xf0\x9f", b"b", b"\xe2\x82"])) == ["a", "\ufffdb", "\ufffd"]


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_end_the_text_however_it_is_cut(text: str, stop: list[str], data: st.DataObject) -> None:
    parts, rest = [], text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        parts.append(rest[:size])
        rest = rest[size:]
    first = min((text.find(s) + len(s) for s in stop if s in text), default=None)
    shown = "".join(until_stop(parts, tuple(stop)))
    if first is None:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(s in shown for s in stop)
