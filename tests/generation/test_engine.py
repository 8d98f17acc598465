"""The engine: many requests together get what each gets alone, read as a whole each time."""

import random
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import groundup
from groundup.batch import Batch
from groundup.errors import DivergedError, SettingsError
from groundup.generation.engine import PAGE, Engine, Request
from groundup.generation.graphs import Graphs
from groundup.generation.sample import adjusted, probabilities
from groundup.generation.settings import Sampling
from groundup.generation.uncached import continue_uncached
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.model.transformer import Transformer
from groundup.train.losses import token_logprobs

GREEDY = Sampling(temperature=0.0, max_tokens=15)


def uncached(model: Transformer, prompt: Sequence[int], sampling: Sampling) -> list[int]:
    return list(continue_uncached(model, prompt, sampling, stops=(), never=()))


def finish(engine: Engine) -> None:
    while not engine.is_idle:
        engine.step()


@pytest.mark.parametrize("lengths", [[24], [10, 14], [1] * 24, [5, 1, 1, 17]])
def test_cached_decoding_equals_the_full_forward(
    model: Transformer, lengths: list[int], in_steps: Callable[..., Tensor]
) -> None:
    tokens = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(0))
    assert_close(in_steps(model, tokens, lengths), model(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_greedy_ids_are_the_argmax_of_the_full_forward(model: Transformer, dtype: torch.dtype) -> None:
    """By the compiled kernel, and in a type that it does not know."""
    ids, model = [3, 5], model.to(dtype)
    for _ in range(15):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert Engine(model).generate([[3, 5]], max_tokens=15, temperature=0.0) == [ids[2:]]


def test_a_full_context_goes_on_from_its_later_half(model: Transformer) -> None:
    ((*ids,),) = Engine(model).generate([[3, 5]], temperature=0.0, max_tokens=60)
    assert len(ids) == 60
    held = [3, 5, *ids[:22], ids[22]]  # 25 tokens do not fit into 24; the last 12 are read again
    assert int(model(torch.tensor([held[-12:]]))[0, -1].argmax()) == ids[23]


def test_what_cannot_be_continued_is_refused(model: Transformer) -> None:
    engine = Engine(model)
    with pytest.raises(SettingsError, match="30 tokens; this model sees at most 24"):
        engine.submit([1] * 30)
    with pytest.raises(SettingsError, match="prompt is empty"):
        engine.submit([])
    with pytest.raises(SettingsError, match="id 97 is none of this model's, which are 0 to 96"):
        engine.submit([97])
    with pytest.raises(SettingsError, match="id -1"):
        engine.submit([1], Sampling(logit_bias={-1: 2.0}))
    assert engine.is_idle


def test_generation_leaves_the_model_in_training_as_it_was(model: Transformer) -> None:
    model.train()
    request = Engine(model).submit([1], Sampling(max_tokens=2))
    engine = Engine(model)
    engine.submit([1], Sampling(max_tokens=2))
    engine.step()
    assert model.training and request.ending is None


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_requests_that_come_at_random_get_what_each_gets_alone(config: ModelConfig, temperature: float) -> None:
    """64 of them, through few pages and short steps, with prompts that begin alike and contexts that become full at
    different times. In float32, ids may part only where two scores lie closer than rounding, and of one request at
    most; here of none."""
    torch.manual_seed(0)
    model = Transformer(config.with_vocabulary(97)).eval()
    draws = random.Random(0)
    beginnings = [[draws.randrange(97) for _ in range(20)] for _ in range(3)]
    prompts = [[*draws.choice(beginnings)[: draws.randint(1, 20)], draws.randrange(97)] for _ in range(64)]
    samplings = [Sampling(temperature=temperature, seed=seed, max_tokens=draws.randint(1, 14)) for seed in range(64)]
    engine = Engine(model, most_requests=7, step_tokens=19, cache_tokens=100)
    requests: list[Request] = []
    while len(requests) < 64 or not engine.is_idle:
        for _ in range(draws.choice([0, 0, 1, 5])):
            if len(requests) < 64:
                requests.append(engine.submit(prompts[len(requests)], samplings[len(requests)]))
        engine.step()
    assert engine.schedule.pages.held == 0
    parted = 0
    for request, prompt, sampling in zip(requests, prompts, samplings, strict=True):
        alone = uncached(model, prompt, sampling)
        if request.answer != alone:
            parts = next(n for n, (one, other) in enumerate(zip(request.answer, alone, strict=True)) if one != other)
            ids = (prompt + alone[:parts])[-24:]
            best = model(torch.tensor([ids]))[0, -1].topk(2).values
            assert temperature == 0.0 and best[0] - best[1] < 1e-4, "they may part only where two are as good"
            parted += 1
    assert parted <= 1


def test_a_thousand_requests_half_of_them_cancelled_leave_no_page_held(llama: ModelConfig) -> None:
    model, draws = small(llama), random.Random(0)
    engine = Engine(model, most_requests=50, cache_tokens=600)  # which half of them could hold
    requests = [
        engine.submit(
            [draws.randrange(320) for _ in range(draws.randint(1, 9))], Sampling(max_tokens=draws.randint(1, 4))
        )
        for _ in range(1000)
    ]
    cancelled = draws.sample(requests, 500)
    while not engine.is_idle:
        engine.step()
        for _ in range(draws.randint(0, 40)):
            if cancelled:
                engine.cancel(cancelled.pop())
    assert engine.schedule.pages.held == 0
    assert {request.ending for request in requests} == {"length", "cancelled"}


@pytest.mark.parametrize("static", [None, 24, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_the_trainers(llama: ModelConfig, dtype: torch.dtype, static: int | None) -> None:
    """With `static`, to the bit; without, to rounding."""
    model = small(llama).to(dtype)
    engine = Engine(model, static=static)
    prompts = [[5, 6, 7], [8], [*range(10, 21)]]
    requests = [engine.submit(ids, Sampling(max_tokens=9, seed=seed), best=0) for seed, ids in enumerate(prompts)]
    finish(engine)
    length = static or 24
    ids = torch.zeros(3, length + 1, dtype=torch.long)
    for row, request in enumerate(requests):
        ids[row, : len(request.ids)] = torch.tensor(request.ids)
    position = torch.arange(length).expand(3, -1)
    batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones(3, length), position, torch.zeros_like(position))
    with torch.no_grad():
        trained = token_logprobs(model, batch)
    for row, request in enumerate(requests):
        first = len(request.prompt) - 1
        told = torch.tensor([chosen.logprob for chosen in request.chosen])
        expected = trained[row, first : first + len(told)]
        if static is None:
            assert_close(told, expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)
        else:
            assert torch.equal(told, expected)


def test_a_static_length_that_cannot_be_kept_is_refused(llama: ModelConfig) -> None:
    with pytest.raises(SettingsError, match="static = 25; it should be the positions of a trainer's rows, 2 to 24"):
        Engine(small(llama), static=25)


def small(config: ModelConfig) -> Transformer:
    return Transformer(config.with_vocabulary(320), seed=1).eval()


def test_echo_tells_the_prompts_probabilities_too(llama: ModelConfig) -> None:
    model = small(llama)
    prompt = [*range(40, 60)]
    engine = Engine(model, step_tokens=7)
    engine.generate([prompt], max_tokens=1)  # its pages are known, and must not be taken: their scores were not kept
    request = engine.submit(prompt, Sampling(max_tokens=0), best=2, echo=True)
    finish(engine)
    expected = model(torch.tensor([prompt]))[0].log_softmax(dim=-1)
    assert [each.id for each in request.echoed] == prompt[1:] and request.ending == "length"
    told = torch.tensor([each.logprob for each in request.echoed])
    assert_close(told, expected[:-1].gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0], atol=1e-5, rtol=0)
    assert [each.best[0][0] for each in request.echoed] == expected[:-1].argmax(dim=-1).tolist()


def test_continuations_of_one_context_are_told_alone_and_its_pages_shared(llama: ModelConfig) -> None:
    model = small(llama)
    context = [*range(40, 40 + 2 * PAGE + 3)][: model.config.context_length - 4]
    engine = Engine(model)
    prompts = [[*context, 7, 8], [*context, 9], [*range(90, 90 + model.config.context_length + 1)]]
    starts = [len(context), len(context), 1]
    requests = [
        engine.submit(ids, Sampling(max_tokens=0), best=1, echo=start)
        for ids, start in zip(prompts, starts, strict=True)
    ]
    finish(engine)
    for ids, start, request in zip(prompts, starts, requests, strict=True):
        logprobs = model(torch.tensor([ids[:-1]]))[0].log_softmax(dim=-1)
        expected = [logprobs[at - 1, ids[at]].item() for at in range(start, len(ids))]
        assert [each.id for each in request.echoed] == ids[start:]
        assert_close(torch.tensor([each.logprob for each in request.echoed]), torch.tensor(expected), atol=1e-5, rtol=0)


def test_what_is_told_is_before_and_after_the_transforms(llama: ModelConfig) -> None:
    model = small(llama)
    sampling = Sampling(max_tokens=1, temperature=0.5, top_k=3, logit_bias={9: 1.0})
    engine = Engine(model)
    request = engine.submit([5, 6], sampling, best=4)
    finish(engine)
    (told,) = request.chosen
    logits = model(torch.tensor([[5, 6]]))[0, -1]
    biased = logits.clone()
    biased[9] += 1.0
    best = (biased / 0.5).topk(3)
    assert told.logprob == pytest.approx(logits.log_softmax(0)[told.id].item(), abs=1e-5)
    drawn = best.values.log_softmax(0)[best.indices.tolist().index(told.id)].item()
    assert told.drawn_logprob == pytest.approx(drawn, abs=1e-5)
    assert [id for id, _ in told.best] == logits.topk(4).indices.tolist()


def test_stops_end_an_answer_and_are_told_but_not_in_it(llama: ModelConfig) -> None:
    model = small(llama)
    ids = uncached(model, [5, 6], GREEDY)
    engine = Engine(model)
    request = engine.submit([5, 6], GREEDY, stops={ids[4]}, best=0)
    finish(engine)
    assert request.answer == ids[: ids.index(ids[4])] and request.ending == "stop"
    assert [each.id for each in request.chosen] == [*request.answer, ids[4]]


def test_ids_that_are_never_chosen_are_not(llama: ModelConfig) -> None:
    model = small(llama)
    best = int(model(torch.tensor([[5]]))[0, -1].argmax())
    ((chosen,),) = Engine(model, never=[best]).generate([[5]], max_tokens=1, temperature=0.0)
    assert chosen == model(torch.tensor([[5]]))[0, -1].topk(2).indices[1]


def test_one_that_fails_does_not_touch_the_others(llama: ModelConfig) -> None:
    """Neither one whose constraint raises, nor one whose scores are not finite, through the pages that it leaves."""

    class Broken:
        def allowed(self, n: int) -> Tensor:
            raise RuntimeError("this grammar is broken")

        def accept(self, id: int) -> None:
            raise AssertionError

    model = small(llama.model_copy(update={"head": LanguageModel(tied=False)}))
    assert model.embed is not None
    model.embed.weight.data[7] = float("inf")
    prompts = [[5, 6], [8, 9, 10], [11]]
    alone = Engine(model).generate(prompts, max_tokens=8, seed=3)
    engine = Engine(model, cache_tokens=100, most_requests=5)
    good = [engine.submit(ids, Sampling(max_tokens=8, seed=3 + n)) for n, ids in enumerate(prompts)]
    broken = engine.submit([5], Sampling(max_tokens=3), constraint=Broken())
    infinite = engine.submit([5, 7, 6], Sampling(max_tokens=3))
    finish(engine)
    assert [request.answer for request in good] == alone
    assert broken.ending == infinite.ending == "failed"
    assert isinstance(broken.error, RuntimeError) and isinstance(infinite.error, DivergedError)
    assert Engine(model).generate(prompts, max_tokens=8, seed=3) == alone
    assert engine.schedule.pages.held == 0 and engine.cache.keys.isfinite().all()


def test_who_fails_leaves_the_pages_that_it_shares(llama: ModelConfig) -> None:
    class Broken:
        def allowed(self, n: int) -> Tensor:
            raise RuntimeError("this grammar is broken")

        def accept(self, id: int) -> None: ...

    model, prompt = small(llama), [*range(20)]
    (alone,) = Engine(model).generate([prompt], max_tokens=4, temperature=0.0)
    engine = Engine(model, most_requests=2)
    good = engine.submit(prompt, Sampling(max_tokens=4, temperature=0.0))
    engine.step()
    bad = engine.submit(prompt, constraint=Broken())
    finish(engine)
    assert bad.ending == "failed" and good.answer == alone
    assert engine.generate([prompt], max_tokens=4, temperature=0.0) == [alone], "what is remembered is right, too"


def test_guesses_that_a_step_has_no_room_for_are_left_out(llama: ModelConfig) -> None:
    model, prompts = small(llama), [[5, 6, 7], [8], [*range(9)]]
    asked = {"max_tokens": 30, "temperature": 0.0}
    guessing = Engine(model, proposer=Guesses(model), step_tokens=5)
    assert guessing.generate(prompts, **asked) == Engine(model).generate(prompts, **asked)


def test_an_engine_refuses_what_is_of_texts(llama: ModelConfig) -> None:
    for options in ({"stop": ["a"]}, {"regex": "a"}, {"json_schema": "{}"}):
        with pytest.raises(SettingsError, match="an engine knows ids"):
            Engine(small(llama)).generate([[1]], **options)
    with pytest.raises(SettingsError, match="n = 0"):
        Engine(small(llama)).generate([[1]], n=0)


def test_the_likeliest_of_several_answers_are_given(llama: ModelConfig) -> None:
    model = small(llama)
    engine = Engine(model)
    every = engine.generate([[5, 6]], n=6, max_tokens=4, temperature=2.0)
    assert every == [*engine.generate([[5, 6]] * 6, max_tokens=4, temperature=2.0)], "the next seed for each"

    def likelihood(answer: list[int]) -> float:
        logits = model(torch.tensor([[5, 6, *answer]]))[0].log_softmax(dim=-1)
        return sum(logits[1 + at, id].item() for at, id in enumerate(answer))

    best = engine.generate([[5, 6]], n=2, best_of=6, max_tokens=4, temperature=2.0)
    assert best == sorted(every, key=likelihood, reverse=True)[:2]


def test_after_an_update_nothing_of_the_old_weights_is_left(llama: ModelConfig) -> None:
    model = small(llama)
    engine = Engine(model)
    request = engine.submit([*range(20)], Sampling(max_tokens=8, temperature=0.0))
    for _ in range(3):
        engine.step()
    begun = list(request.ids)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    engine.update()
    finish(engine)
    left = 28 - len(begun)
    assert request.answer[-left:] == uncached(model, begun, Sampling(max_tokens=left, temperature=0.0))
    assert engine.generate([[*range(20)]], max_tokens=3, temperature=0.0)[0] == uncached(
        model, [*range(20)], Sampling(max_tokens=3, temperature=0.0)
    )


def test_steps_that_a_gpu_replays_give_the_same_answers(llama: ModelConfig) -> None:
    """The step of tensors alone, filled up to powers of two, run on the CPU."""
    model, prompts = small(llama), [[5, 6, 7], [8], [*range(15)], [9, 10]]
    engine = Engine(model)
    engine._graphs = Graphs(engine._step_of_tensors, torch.device("cpu"), engine.schedule.pages.count, PAGE)
    asked = {"max_tokens": 30, "temperature": 0.7, "seed": 3}
    assert engine.generate(prompts, **asked) == Engine(model).generate(prompts, **asked)
    assert {rows for rows, _ in engine._graphs._captured} == {4}


class Guesses:
    """Proposes what a model would say, wrong every third time."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.made = model, 0

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[list[int]]:
        proposals = []
        for request, n in zip(requests, most, strict=True):
            ids = uncached(self.model, request.ids, Sampling(max_tokens=max(0, min(4, n)), temperature=0.0))
            self.made += 1
            proposals.append([*ids[:2], 0, *ids[3:]] if self.made % 3 == 0 else ids)
        return proposals


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_guesses_change_no_answer_and_save_steps(llama: ModelConfig, temperature: float) -> None:
    model = small(llama)
    prompts = [[5, 6, 7], [8], [*range(15)]]
    engine, guessing = Engine(model), Engine(model, proposer=Guesses(model))
    answers = []
    steps = []
    for each in (engine, guessing):
        requests = [
            each.submit(ids, Sampling(max_tokens=30, temperature=temperature, seed=seed))
            for seed, ids in enumerate(prompts)
        ]
        steps.append(0)
        while not each.is_idle:
            each.step()
            steps[-1] += 1
        answers.append([request.answer for request in requests])
    assert answers[0] == answers[1]
    assert steps[1] < steps[0] / 2 if temperature == 0.0 else steps[1] <= steps[0]


def test_the_engine_is_public_and_takes_few_lines(llama: ModelConfig) -> None:
    engine = groundup.Engine(small(llama))
    answers = engine.generate([[5, 6, 7], [8]], max_tokens=4, temperature=0.7, top_p=0.9, seed=1)
    assert [len(answer) for answer in answers] == [4, 4]


def test_answers_are_distributed_as_stated(llama: ModelConfig) -> None:
    """All answers of two tokens over a vocabulary of four, drawn 1,000 times, with a penalty and a bias."""
    model = Transformer(llama.model_copy(update={"vocab_size": 4, "n_layers": 1}), seed=2).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3.0)
    sampling = Sampling(max_tokens=2, temperature=0.8, frequency_penalty=0.5, logit_bias={2: 0.7})
    expected = torch.zeros(4, 4)
    for first, second in product(range(4), repeat=2):
        share = torch.tensor(1.0)
        for answer, id in (([], first), ([first], second)):
            logits = model(torch.tensor([[1, *answer]]))[0, -1]
            share = share * probabilities(adjusted(logits, sampling, [1], answer)[None], sampling)[0, id]
        expected[first, second] = share
    assert expected.sum().item() == pytest.approx(1.0, abs=1e-5)
    drawn = torch.zeros(4, 4)
    for first, second in Engine(model).generate([[1]], n=1000, **sampling.model_dump(exclude={"seed", "stop"})):
        drawn[first, second] += 1 / 1000
    assert_close(drawn, expected, atol=0.06, rtol=0)  # four standard deviations of a share of a half
