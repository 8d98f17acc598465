"""Engine: continues sequences of ids, many together. It knows nothing of text. R places that are scored, V vocabulary.

Requests come and go at any time: each step computes one token of every request that writes, and a part of the prompts
that wait (Yu et al. 2022, "Orca", OSDI). What a request is answered does not depend on the others.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groundup.errors import DivergedError, SettingsError
from groundup.generation.cache import ROWS, PagedAttend, PagedCache
from groundup.generation.graphs import Graphs
from groundup.generation.packed import Precision, pack, refresh
from groundup.generation.sample import adjusted, draw, is_greedy, probabilities, uniform
from groundup.generation.schedule import Pages, Schedule, Scheduled, Work
from groundup.generation.settings import Sampling
from groundup.machine import total_memory
from groundup.model.settings import Latent
from groundup.model.transformer import Transformer, evaluating

T = TypeVar("T")
PAGE = 16
"""Tokens of a page."""
SCORED_TOGETHER = 16
"""Rows of scores whose sums are taken at once: so many of 50,000 ids in float32 stay in a processor's cache."""
Ending = Literal["stop", "length", "cancelled", "failed"]


@runtime_checkable
class Constraint(Protocol):
    """What an answer has to be like, token by token."""

    def allowed(self, n: int) -> Bool[Tensor, "V"]:
        """Which of the model's `n` ids may come next."""

    def accept(self, id: int) -> None:
        """It came."""


@runtime_checkable
class Proposes(Protocol):
    """Guesses how requests go on."""

    def propose(self, requests: Sequence["Request"], most: Sequence[int]) -> list[list[int]]:
        """For each request, at most so many ids that might come next."""


@dataclass(frozen=True)
class Chosen:
    """How likely a token was, as a `Request` of an `Engine` tells it."""

    id: int
    logprob: float
    """Natural logarithm of its probability by the model, before anything else was done to the scores."""
    drawn_logprob: float
    """That of the distribution it was drawn from; 0 where the best is taken. A prompt's token has `logprob` here."""
    best: tuple[tuple[int, float], ...] = ()
    """The model's likeliest ids there, with their `logprob`."""


@dataclass(eq=False)
class Request(Scheduled):
    """A sequence that an `Engine` continues: `answer` grows as steps are made, until `ending` is set."""

    sampling: Sampling = field(default_factory=Sampling)
    stops: Collection[int] = ()
    """Ids that end the answer; they are not part of it."""
    constraint: Constraint | None = None
    best: int | None = None
    """How many of the likeliest ids are told at each place; None: not even the chosen one's probability."""
    echo: int = 0
    """The first of the prompt's tokens that is told, 1 for all that come after another; 0: none."""
    prompt: tuple[int, ...] = ()
    answer: list[int] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)
    """Of the answer's tokens, and of a stop that ended it."""
    echoed: list[Chosen] = field(default_factory=list)
    """Of the prompt's."""
    ending: Ending | None = None
    error: Exception | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its distribution follows from the scores alone."""
        sampling = self.sampling
        penalties = sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty - 1
        return not (any(penalties) or sampling.logit_bias or self.constraint)


@dataclass(eq=False)
class Place:
    """A position whose scores are computed in a step: after it a token is chosen, or the prompt's is told."""

    request: Request
    at: int
    token: int | None
    """Number in the answer of the token that is chosen; None for one of the prompt's."""
    id: int | None = None
    """The one that was chosen; None if it is not chosen yet."""
    logits: Float[Tensor, "V"] = field(init=False)
    """The model's scores."""
    allowed: Float[Tensor, "V"] = field(init=False)
    """Those with −∞ for what is never chosen."""
    total: float = field(init=False)
    """log Σ exp(logits), where probabilities are told."""
    told: Chosen | None = None
    """How likely the prompt's token was."""


class Engine:
    """Continues sequences of ids with a model, as many at once as fit.

    Args:
        model: is read as it is at each step, and in `eval()` meanwhile.
        precision: that its linear maps are packed in for a CPU, as they are now; `update` packs them again. If not
            given they are as they are; on a CPU those of float32 are multiplied by our kernel, where they lie.
        never: ids that are not chosen.
        most_requests: that run together; the others wait.
        step_tokens: most tokens of a step; longer prompts take several.
        cache_tokens: tokens whose keys and values are kept at most; if not given, as many as `most_requests` can have
            and a quarter of the device's memory holds.
        page: tokens of a page; of what requests begin with, whole pages are shared.
        reads: whether it reads prompts more than it writes: float32 is then multiplied by torch on a CPU too, which is
            faster for many rows, and slower for few.
        proposer: guesses how requests go on; a step then checks the guesses and may give several tokens.
        static: positions of the batches in which a trainer scores the answers: log-probabilities are then the trainer's
            to the bit.

    Raises:
        SettingsError: sizes that no request would fit; a `static` that this model or machine cannot keep to the bit.

    >>> from groundup.model.settings import ModelConfig
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1), seed=1)
    >>> engine, best = Engine(model), model(torch.tensor([[5, 6, 7]]))[0, -1].argmax()
    >>> engine.generate([[5, 6, 7], [8]], max_tokens=4, temperature=0.0)[0][0] == best.item()
    True
    >>> request = engine.submit([5, 6, 7], Sampling(max_tokens=2), best=3)
    >>> while request.ending is None:
    ...     _ = engine.step()
    >>> len(request.answer), request.ending, isinstance(request.chosen[0], Chosen), len(request.chosen[0].best)
    (2, 'length', True, 3)
    >>> engine.cancel(engine.submit([8]))
    >>> engine.is_idle
    True
    >>> engine.update(model)  # after its weights were changed
    """

    def __init__(
        self,
        model: Transformer,
        *,
        precision: Precision | None = None,
        never: Sequence[int] = (),
        most_requests: int = 64,
        step_tokens: int = 256,
        cache_tokens: int | None = None,
        page: int = PAGE,
        reads: bool = False,
        proposer: Proposes | None = None,
        static: int | None = None,
    ) -> None:
        self.live, self.precision, self.proposer, self.static = model, precision, proposer, static
        self.context = model.config.context_length
        if static is not None:
            self._refuse_static(static)
            self.context = static
        weight = next(model.parameters())
        if precision is not None and weight.device.type != "cpu":
            raise SettingsError(f"precision = {precision} packs for a CPU: on a GPU load the model in bfloat16 instead")
        if static is None and not reads and (weight.device.type, weight.dtype) == ("cpu", torch.float32):
            self.precision = precision = precision or "float32"
        self.model = model if precision is None else pack(model, precision)
        weight = next(self.model.parameters())
        self._device = weight.device
        if cache_tokens is None:
            heads, *widths = model.config.cached
            token_bytes = model.config.n_layers * heads * sum(widths) * weight.element_size()
            cache_tokens = min(most_requests * self.context, total_memory(weight.device) // 4 // token_bytes)
        count = -(-max(cache_tokens, self.context) // page)
        self.cache = PagedCache.empty(model.config, count, page, weight.device, weight.dtype)
        self.schedule = Schedule[Request](Pages(count, page), most_requests, step_tokens)
        self._never = torch.tensor(list(never), dtype=torch.long, device=weight.device)
        self._multiple = ROWS if precision in (None, "bfloat16") else 1  # the other kernels keep a row's bits
        self._graphs = self._new_graphs()
        if static is not None:
            self._refuse_inexact(static)

    def submit(
        self,
        ids: Sequence[int],
        sampling: Sampling | None = None,
        *,
        stops: Collection[int] = (),
        constraint: Constraint | None = None,
        best: int | None = None,
        echo: int = 0,
    ) -> Request:
        """Let a sequence wait to be continued by `step`.

        Args:
            ids: its prompt.
            sampling: how ids are chosen, and how many.
            stops: ids that end the answer.
            constraint: what the answer has to be like.
            best: tell the probability of each token, and this many of the likeliest ids beside it.
            echo: tell them for the prompt's tokens, too, from this one on (1 for all that come after another).

        Raises:
            SettingsError: an empty prompt, one longer than the context, or an id that the model has no row for.
        """
        sampling, rows = Sampling() if sampling is None else sampling, self.model.config.vocab_size or 0
        if not ids:
            raise SettingsError("the prompt is empty, and this model has no token that opens a document; give a prompt")
        read = list(ids) if sampling.max_tokens else list(ids[:-1])  # of the last, nothing but its probability is asked
        if len(read) > self.context:
            raise SettingsError(
                f"the prompt has {len(ids)} tokens; this model sees at most {self.context} at once: shorten it"
            )
        if outside := [i for i in {*ids, *sampling.logit_bias} if not 0 <= i < rows]:
            raise SettingsError(f"id {outside[0]} is none of this model's, which are 0 to {rows - 1}")
        request = Request(
            read,
            shared=echo or None,
            sampling=sampling,
            stops=frozenset(stops),
            constraint=constraint,
            best=0 if echo and best is None else best,
            echo=echo,
            prompt=tuple(ids),
        )
        if sampling.max_tokens or (echo and read):
            self.schedule.add(request)
        else:
            request.ending = "length"
        return request

    def cancel(self, request: Request, ending: Ending = "cancelled") -> None:
        """End a request before its time, with this `ending`; what it held is free again."""
        if request.ending is None:
            self.schedule.remove(request)
            request.ending = ending

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not (self.schedule.waiting or self.schedule.running)

    def step(self) -> list[Request]:
        """Compute one step, and give the requests that got on. One that fails ends with its `error`; the others do not
        notice."""
        if self.proposer is not None:
            self._propose(self.proposer)
        works = self.schedule.plan()
        if not works:
            return []
        places = [_places(work) for work in works]
        with evaluating(self.model), torch.inference_mode():
            self._score([*itertools.chain.from_iterable(places)], self._logits(works, places))
            for work, its in zip(works, places, strict=True):
                self._advance(work, its)
        return [work.request for work in works]

    def generate(
        self,
        prompts: Iterable[Sequence[int]],
        *,
        n: int = 1,
        best_of: int | None = None,
        stops: Collection[int] = (),
        **sampling: Any,
    ) -> list[list[int]]:
        """Answers to prompts, in their order, computed together.

        Args:
            n: answers to each prompt, which come one after the other; each is drawn with the next seed.
            best_of: write so many for each prompt, and give the `n` that are likeliest as a whole.
            stops: ids that end an answer.
            sampling: fields of `Sampling`.

        Raises:
            SettingsError: as of `submit`.
            DivergedError: scores that are not finite.
        """
        settings = Sampling.from_table(sampling, "generate")
        if settings.stop or settings.regex is not None or settings.json_schema is not None:
            raise SettingsError(
                "stop, regex and json_schema are of texts, and an engine knows ids: use groundup.generate"
            )
        requests = write_all(self, lambda request: request, prompts, settings, n, best_of, stops=stops)
        return [request.answer for request in requests]

    def update(self, model: Transformer | None = None) -> None:
        """Forget what was computed with earlier weights, after the model was trained on; or go on with another model of
        the same shape. Requests that run read all of their tokens again."""
        self.live = self.live if model is None else model
        if self.precision is None:
            self.model = self.live
        else:
            refresh(self.model, self.live)
        if model is not None:
            self._graphs = self._new_graphs()  # which know the addresses of weights
        old, pages = self.schedule, self.schedule.pages
        for request in old.running:
            old.forget(request)
        self.schedule = Schedule[Request](Pages(pages.count, pages.size), old.most_requests, old.most_tokens)
        self.schedule.waiting.extend([*old.running, *old.waiting])

    def _new_graphs(self) -> Graphs | None:
        """For a GPU, where attention need not be a trainer's."""
        pages = self.schedule.pages
        is_on_gpu = self._device.type == "cuda" and self.static is None
        return Graphs(self._step_of_tensors, self._device, pages.count, pages.size) if is_on_gpu else None

    def _refuse_static(self, static: int) -> None:
        if not 2 <= static <= self.context:
            raise SettingsError(
                f"static = {static}; it should be the positions of a trainer's rows, 2 to {self.context:,}"
            )
        if isinstance(self.live.config.attention, Latent):
            raise SettingsError(f"static = {static}, but latent attention is computed in another way in training")

    def _refuse_inexact(self, static: int) -> None:
        """Compare the log-probabilities of some answers with those of a forward pass over `static` positions.

        Raises:
            SettingsError: they are not the same bits.
        """
        lengths = sorted({1, static // 3, static - 1 - min(4, static // 2)} - {0})
        draws = torch.Generator().manual_seed(0)
        prompts = [torch.randint(self.model.config.vocab_size or 0, (n,), generator=draws).tolist() for n in lengths]
        requests = [self.submit(prompt, Sampling(max_tokens=min(4, static // 2)), best=0) for prompt in prompts]
        while not self.is_idle:
            self.step()
        rows = [request.ids + [0] * (static - len(request.ids)) for request in requests]
        with evaluating(self.live):
            logits = self.live(torch.tensor(rows, device=self._device))
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        totals = logits.logsumexp(dim=-1)
        for row, request in enumerate(requests):
            for number, each in enumerate(request.chosen, start=len(request.prompt) - 1):
                if (logits[row, number, each.id] - totals[row, number]).item() != each.logprob:
                    raise SettingsError(
                        "static: this model's log-probabilities are not those of its training to the bit on this "
                        "machine; leave static out, and they differ by rounding"
                    )

    # --- one step ---

    def _propose(self, proposer: Proposes) -> None:
        writing = [each for each in self.schedule.running if each.unread == 1 and each.constraint is None]
        most = [
            min(self.context - len(request.ids), request.sampling.max_tokens - len(request.answer) - 1)
            for request in writing
        ]
        for request, ids in zip(writing, proposer.propose(writing, most), strict=True):
            request.proposed = ids

    def _logits(self, works: list[Work[Request]], places: list[list[Place]]) -> Float[Tensor, "R V"]:
        """One forward pass over the works' tokens; the scores at the places of each."""
        firsts = itertools.accumulate((len(work.ids) for work in works), initial=0)
        ids = [id for work in works for id in work.ids]
        positions = [at for work in works for at in range(work.first, work.end)]
        columns = zip(firsts, works, places, strict=False)
        rows = [first + place.at - work.first for first, work, its in columns for place in its]
        if self._graphs is not None and len(ids) == len(works):
            tables = [work.request.pages for work in works]
            return self._graphs(ids, positions, self.cache.slots(works), tables)[rows]
        tokens, position = (
            torch.tensor(_filled_up(self._multiple, each), device=self._device)[:, None] for each in (ids, positions)
        )
        hidden = self.model.hidden(tokens, position, self.cache.attend(works, self.static)).squeeze(1)
        wanted = torch.tensor(_filled_up(self._multiple, rows), dtype=torch.long, device=self._device)
        return self.model.logits(hidden[wanted])[: len(rows)]

    def _step_of_tensors(
        self,
        tokens: Int[Tensor, "N 1"],
        position: Int[Tensor, "N 1"],
        slot: Int[Tensor, "N"],
        table: Int[Tensor, "N pages"],
        length: Int[Tensor, "N"],
    ) -> Float[Tensor, "N V"]:
        """The scores after tokens that are each of another request: a forward pass that knows tensors alone."""
        attend = PagedAttend(self.cache, self.cache.pages_of(slot), table=table, length=length)
        return self.model.logits(self.model.hidden(tokens, position, attend).squeeze(1))

    def _score(self, places: list[Place], logits: Float[Tensor, "R V"]) -> None:
        """Note at each place what was computed there."""
        chooses = len(self._never) and any(place.token is not None for place in places)
        allowed = logits.index_fill(1, self._never, -math.inf) if chooses else logits
        totals = [math.nan] * len(places)
        if any(place.request.best is not None for place in places):
            for first in range(0, len(places), SCORED_TOGETHER):
                block = places[first : first + SCORED_TOGETHER]
                # of several rows: a single one may be added up in parts, with other bits
                rows = torch.tensor(_filled_up(ROWS, [*range(first, first + len(block))]), device=self._device)
                scores = logits[rows].to(torch.promote_types(logits.dtype, torch.float32))
                sums = scores.logsumexp(dim=1)
                totals[first : first + len(block)] = sums.tolist()[: len(block)]
                _tell_prompts(block, scores, sums)
        for place, row, allowed_row, total in zip(places, logits, allowed, totals, strict=False):
            place.logits, place.allowed, place.total = row, allowed_row, total
        self._choose_together(places, allowed)

    def _choose_together(self, places: list[Place], allowed: Float[Tensor, "R V"]) -> None:
        """Choose the next id for requests whose distributions follow from the scores alone, at once for all that draw
        alike; not where the scores are not finite."""
        alike = defaultdict[Any, list[int]](list)
        for number, place in enumerate(places):
            if place.token is not None and place.request.is_plain:
                sampling = place.request.sampling
                how = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
                alike[None if is_greedy(sampling) else how].append(number)
        for how, numbers in alike.items():
            rows = allowed if len(numbers) == len(places) else allowed[torch.tensor(numbers, device=self._device)]
            best, ids = rows.max(dim=1)
            if how is not None:
                drawn = [places[number] for number in numbers]
                uniforms = [uniform(place.request.sampling.seed, place.token or 0) for place in drawn]
                ids = draw(probabilities(rows, drawn[0].request.sampling), uniforms)
            for number, id, is_finite in zip(numbers, ids.tolist(), best.isfinite().tolist(), strict=True):
                places[number].id = id if is_finite else None

    def _advance(self, work: Work[Request], places: list[Place]) -> None:
        """Give a request the id that was chosen after its tokens; and the next, while what was proposed is chosen."""
        request = work.request
        proposed, request.proposed = request.proposed, []
        ending: Ending | None = None
        try:
            begun = len(request.answer)
            for place in places:
                if place.told is not None:
                    request.echoed.append(place.told)
                    continue
                ending = _append(place)
                if ending or proposed[(place.token or 0) - begun :][:1] != request.ids[-1:]:
                    break
        except Exception as error:  # of this request alone: the others go on
            self.cache.clear(self.schedule.pages.forget(request.pages))
            request.error = error
            return self.cancel(request, "failed")
        if not request.sampling.max_tokens and work.end == len(request.ids):
            ending = "length"
        self.schedule.computed(work, min(work.end, len(request.ids) - (ending != "stop")))
        if ending:
            return self.cancel(request, ending)
        if len(request.ids) > self.context:
            self.schedule.forget(request)
            request.ids = request.ids[-(self.context // 2) :]
        return None


def _places(work: Work[Request]) -> list[Place]:
    """Those whose scores are asked for: the last of a request's ids, what is proposed after it, and a prompt that is
    to be told."""
    request, places = work.request, list[Place]()
    last = len(request.ids) - 1
    for at in range(work.first, work.end):
        if at >= last and request.sampling.max_tokens:
            places.append(Place(request, at, len(request.answer) + at - last))
        elif request.echo and not request.answer and at >= request.echo - 1 + len(request.echoed):
            places.append(Place(request, at, None))
    return places


def _tell_prompts(places: list[Place], scores: Float[Tensor, "R V"], totals: Float[Tensor, "R"]) -> None:
    """Tell how likely the prompts' tokens were, all at once."""
    told = [(row, place) for row, place in enumerate(places) if place.token is None]
    if not told:
        return
    numbers = torch.tensor([row for row, _ in told], device=scores.device)
    rows, sums = (scores, totals) if len(told) == len(scores) else (scores[numbers], totals[numbers])
    ids = [place.request.prompt[place.at + 1] for _, place in told]
    logprobs = (rows.gather(1, torch.tensor(ids, device=rows.device)[:, None])[:, 0] - sums).tolist()
    n_best = min(max(place.request.best or 0 for _, place in told), rows.shape[1])
    best, columns_of = rows.max(dim=1, keepdim=True) if n_best == 1 else rows.topk(n_best)  # the former is faster
    likeliest = zip(columns_of.tolist(), (best - sums[:, None]).tolist(), strict=True)
    for (_, place), id, logprob, columns in zip(told, ids, logprobs, likeliest, strict=True):
        place.told = Chosen(id, logprob, logprob, tuple(zip(*columns, strict=True))[: place.request.best])


def _append(place: Place) -> Ending | None:
    """Add the id that is chosen, and say whether that ends the answer.

    Raises:
        DivergedError: scores that are not finite.
    """
    request, id = place.request, place.id
    if id is None:
        scores = _scores(place)
        if not scores.max().isfinite():
            if place.logits.isfinite().all():  # nothing is allowed any more
                return "stop"
            raise not_finite()
        shares = probabilities(scores[None], request.sampling)
        id = int(draw(shares, [uniform(request.sampling.seed, len(request.answer))]))
    if request.best is not None:
        request.chosen.append(_told(place, id))
    if id in request.stops:
        return "stop"
    request.answer.append(id)
    request.ids.append(id)
    if request.constraint is not None:
        request.constraint.accept(id)
    return "length" if len(request.answer) == request.sampling.max_tokens else None


def _scores(place: Place) -> Float[Tensor, "V"]:
    """What an id is chosen by."""
    request = place.request
    scores = adjusted(place.allowed, request.sampling, request.prompt, request.answer)
    if request.constraint is not None:
        allowed = request.constraint.allowed(len(scores)).to(scores.device)
        scores = scores.masked_fill(~allowed, -math.inf)
    return scores


def _told(place: Place, id: int) -> Chosen:
    """How likely an id was. Log-probabilities are computed as a trainer's are (`losses.target_logprobs`)."""
    logits = place.logits.to(torch.promote_types(place.logits.dtype, torch.float32))
    logprobs = logits - place.total
    best = logprobs.topk(min(place.request.best or 0, len(logprobs)))
    drawn = probabilities(_scores(place)[None], place.request.sampling)[0, id].log()
    likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Chosen(id, logprobs[id].item(), drawn.item(), likeliest)


def _filled_up(multiple: int, rows: list[int]) -> list[int]:
    """With the first repeated behind them, up to the next multiple."""
    return rows + rows[:1] * (-len(rows) % multiple)


def write_all(
    writer: Any,
    request_of: Callable[[T], Request],
    prompts: Iterable[Any],
    sampling: Sampling,
    n: int = 1,
    best_of: int | None = None,
    **options: Any,
) -> list[T]:
    """What an engine, or what stands on one, writes after prompts, in their order; each answer has the next seed.

    Args:
        writer: has `submit`, which takes the `options`, and `step`.
        best_of: write so many for each prompt, and give the `n` that are likeliest by the model, best first.
    """
    if n < 1:
        raise SettingsError(f"n = {n}; it should be the number of answers, 1 or more")
    each, seeds = max(n, best_of or n), itertools.count(sampling.seed)
    options = {"best": 0, **options} if each > n else options
    answers: list[T] = [
        writer.submit(prompt, sampling.model_copy(update={"seed": next(seeds)}), **options)
        for prompt in prompts
        for _ in range(each)
    ]
    while any(request_of(answer).ending is None for answer in answers):
        writer.step()
    for request in map(request_of, answers):
        if request.error is not None:
            raise request.error
    if each == n:
        return answers

    def logprob(answer: T) -> float:
        return sum(chosen.logprob for chosen in request_of(answer).chosen)

    groups = (answers[at : at + each] for at in range(0, len(answers), each))
    return [answer for group in groups for answer in sorted(group, key=logprob, reverse=True)[:n]]


def not_finite() -> DivergedError:
    """For a model whose scores are no numbers."""
    return DivergedError(
        "the model's scores for the next token are not finite numbers (NaN or Inf), though its weights are: they are "
        "too large to be computed with"
    )
