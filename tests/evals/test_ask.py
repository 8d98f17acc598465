"""What a model is asked by the engine equals a forward over each request alone, whatever runs beside it."""

import random
from collections.abc import Sequence

import pytest
import torch

import groundup
from groundup.errors import SettingsError
from groundup.evals.ask import Answered, Examinee
from groundup.evals.items import Choice, Item, Likelihood, Passage, Writing
from groundup.generation.packed import Precision
from groundup.generation.settings import Sampling
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer

TEXT = "the lowest of the low were lower than the slow, and the slower were the slowest of the low. " * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.learn(TEXT, vocab_size=384)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    sizes = {"context_length": 40, "d_model": 32, "n_layers": 2, "n_heads": 4}
    return Transformer(ModelConfig.from_table({**sizes, "vocab_size": tokenizer.vocab_size}), seed=3).eval()


def choices() -> list[Item]:
    """Items of which some share their contexts, and some have none."""
    words = TEXT.split()
    items = []
    for number in range(24):
        context = " ".join(words[number : number + 5 + number % 7]) if number % 6 else ""
        options = tuple(" ".join(words[number + k : number + k + 1 + k % 3]) for k in range(4))
        items.append(Item(str(number), Choice((context,) * 4, options, (number % 4,), " " if context else "")))
    return items


def alone(model: Transformer, examinee: Examinee, context: str, continuation: str) -> Likelihood:
    """By a forward over the whole request."""
    ids, first = examinee.encode(context, continuation)
    ids, first = ids[-model.config.context_length - 1 :], first - max(0, len(ids) - model.config.context_length - 1)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids[:-1]]))[0].log_softmax(dim=-1)
    rows = range(first - 1, len(ids) - 1)
    told = sum(logprobs[row, ids[row + 1]].item() for row in rows)
    return Likelihood(told, all(logprobs[row].argmax().item() == ids[row + 1] for row in rows))


def by_id(answers: Sequence[Answered]) -> dict[str, Answered]:
    return {answered.item.id: answered for answered in answers}


def test_choices_equal_a_forward_over_each_request(model: Transformer, tokenizer: Tokenizer) -> None:
    examinee = Examinee(model, tokenizer)
    for answered in examinee.answers(choices()):
        assert isinstance(answered.item.ask, Choice) and not answered.is_cut
        for found, (context, continuation) in zip(answered.likelihoods, answered.item.ask.requests, strict=True):
            expected = alone(model, examinee, context, continuation)
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)
            assert found.is_greedy == expected.is_greedy


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("together", [1, 7, 64])
def test_neither_order_nor_company_changes_an_answer(
    model: Transformer, tokenizer: Tokenizer, together: int, precision: Precision | None
) -> None:
    items = choices()
    expected = by_id(list(Examinee(model, tokenizer, precision=precision).answers(items)))
    random.Random(together).shuffle(items)
    found = by_id(list(Examinee(model, tokenizer, together=together, precision=precision).answers(items)))
    assert found == expected, "to the bit"


def test_of_a_context_that_is_too_long_the_end_is_read_and_counted(model: Transformer, tokenizer: Tokenizer) -> None:
    examinee = Examinee(model, tokenizer)
    item = Item("long", Choice((TEXT, "the"), (" low", "low"), (0,), ""))
    [answered] = examinee.answers([item])
    assert answered.is_cut
    assert answered.likelihoods[0].logprob == pytest.approx(alone(model, examinee, TEXT, " low").logprob, abs=1e-5)


def test_what_cannot_be_scored_is_refused_by_name(model: Transformer, tokenizer: Tokenizer) -> None:
    for option, counted in (("", "0 tokens are to be scored"), (TEXT, "tokens are to be scored after 2")):
        with pytest.raises(SettingsError, match=f"item 7: .*{counted}.*1 to 40, the context of this model"):
            list(Examinee(model, tokenizer).answers([Item("7", Choice(("the",), (option,), (0,), ""))]))


def test_an_empty_context_is_the_token_that_opens_a_text(model: Transformer, tokenizer: Tokenizer) -> None:
    ids, first = Examinee(model, tokenizer).encode("", "low")
    assert (ids, first) == ([tokenizer.opener, *tokenizer.encode("low")], 1)


def test_spaces_between_the_two_belong_to_the_continuation(model: Transformer, tokenizer: Tokenizer) -> None:
    examinee = Examinee(model, tokenizer)
    assert examinee.encode("the ", "low") == examinee.encode("the", " low")


@pytest.mark.parametrize("stride", [None, 1, 13])
def test_windows_of_a_passage_score_each_token_once(
    model: Transformer, tokenizer: Tokenizer, stride: int | None
) -> None:
    examinee = Examinee(model, tokenizer, stride=stride)
    ids = [tokenizer.opener, *tokenizer.encode(TEXT)]
    [answered] = examinee.answers([Item("0", Passage(TEXT, TEXT))])
    context = model.config.context_length
    expected, done = 0.0, 0
    while done < len(ids) - 1:
        more = min(len(ids) - 1 - done, (stride or context) if done else context)
        window = ids[max(0, done + more - context) : done + more + 1]
        with torch.no_grad():
            logprobs = model(torch.tensor([window[:-1]]))[0].log_softmax(dim=-1)
        told = logprobs.gather(1, torch.tensor(window[1:])[:, None])[-more:]
        expected, done = expected + told.sum().item(), done + more
    assert sum(each.logprob for each in answered.likelihoods) == pytest.approx(expected, abs=1e-4)


def test_what_is_written_is_what_generate_writes_and_samples_are_the_items_own(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    items = [
        Item(str(n), Writing(prompt, (), ("st",), max_tokens=12))
        for n, prompt in enumerate(("the low", "slower", "of"))
    ]
    greedy = by_id(list(Examinee(model, tokenizer).answers(items)))
    for item in items:
        assert isinstance(item.ask, Writing)
        text = groundup.generate(model, tokenizer, item.ask.prompt, max_tokens=12, temperature=0.0, stop="st")
        assert greedy[item.id].texts == (text,)
    heat = Sampling(temperature=1.0, seed=5)
    drawn = by_id(list(Examinee(model, tokenizer).answers(items, n=3, sampling=heat)))
    alone = by_id(list(Examinee(model, tokenizer, together=1).answers(items[1:2], n=3, sampling=heat)))
    assert drawn["1"] == alone["1"] and len(set(drawn["1"].texts)) > 1
