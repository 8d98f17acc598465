"""Beam search: the likeliest answer that is found when the best few are continued side by side."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from groundup.generation.engine import Engine, write_all
from groundup.generation.settings import Sampling


@dataclass(frozen=True)
class Beam:
    """An answer, or the beginning of one."""

    ids: tuple[int, ...]
    logprob: float
    """Of all its ids together, and of the stop that ended it."""
    length: int
    """Ids that `logprob` is of."""

    def score(self, length_penalty: float) -> float:
        """What beams are compared by: log-probability / length ** `length_penalty` (Wu et al. 2016, arXiv:1609.08144,
        simplified as in Hugging Face): 0 is for the likeliest, more is for longer ones."""
        return self.logprob / self.length**length_penalty if self.length else 0.0


def beam_search(
    engine: Engine,
    prompt: Sequence[int],
    n: int,
    *,
    max_tokens: int,
    stops: Collection[int] = (),
    length_penalty: float = 1.0,
) -> list[Beam]:
    """The `n` best answers to a prompt, best first.

    In each round every beam is a request for one token, which shares the pages of its beginning with the others.

    Args:
        engine: continues the beams.
        prompt: ids; with `max_tokens` more they fit the context.
        n: beams that are kept.
        stops: ids that end an answer.
        length_penalty: as of `Beam.score`.

    >>> from groundup.model.settings import ModelConfig
    >>> from groundup.model.transformer import Transformer
    >>> engine = Engine(Transformer(ModelConfig(vocab_size=8, d_model=16, n_layers=1), seed=1))
    >>> best, second = beam_search(engine, [1, 2], 2, max_tokens=3)
    >>> len(best.ids), best.logprob >= second.logprob
    (3, True)
    """
    live, ended = [Beam((), 0.0, 0)], list[Beam]()
    for _ in range(max_tokens):
        one = Sampling(max_tokens=1, temperature=0.0)
        prompts = [[*prompt, *beam.ids] for beam in live]
        requests = write_all(engine, lambda request: request, prompts, one, best=2 * n)
        found = [
            Beam((*beam.ids, id), beam.logprob + logprob, beam.length + 1)
            for beam, request in zip(live, requests, strict=True)
            for id, logprob in request.chosen[0].best
        ]
        found = sorted(found, key=lambda beam: -beam.logprob)[: 2 * n]
        ended += [Beam(beam.ids[:-1], beam.logprob, beam.length) for beam in found[:n] if beam.ids[-1] in stops]
        ended = sorted(ended, key=lambda beam: -beam.score(length_penalty))[:n]
        live = [beam for beam in found if beam.ids[-1] not in stops][:n]
        if not live or (len(ended) == n and ended[-1].score(length_penalty) >= live[0].score(length_penalty)):
            return ended
    return sorted(ended + live, key=lambda beam: -beam.score(length_penalty))[:n]
