"""Speculate: guess how requests go on, so that one pass of the model may give several tokens.

A guess is checked and never believed: the answer is the one that would have been written without it (engine.py).
"""

from collections.abc import Sequence

from groundup.errors import SettingsError
from groundup.generation.engine import Engine, Request
from groundup.model.transformer import Transformer


class PromptLookup:
    """Guesses that what followed the last tokens when they came before follows again (Saxena 2023, "Prompt Lookup
    Decoding"): for answers that repeat their prompts, such as summaries and edits.

    Args:
        longest: tokens that are looked for; then fewer, to a single one.
        most: tokens that are guessed.

    >>> PromptLookup().propose([Request([7, 1, 2, 3, 4, 9, 1, 2])], [3])
    [[3, 4, 9]]
    """

    def __init__(self, longest: int = 3, most: int = 8) -> None:
        self.longest, self.most = longest, most

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[list[int]]:
        """What followed, for each request; nothing where its last token is new. Never more than `most` of each."""
        return [self._after(request.ids)[: max(0, limit)] for request, limit in zip(requests, most, strict=True)]

    def _after(self, ids: list[int]) -> list[int]:
        for length in range(min(self.longest, len(ids) - 1), 0, -1):
            last = ids[-length:]
            for at in range(len(ids) - length - 1, -1, -1):
                if ids[at] == last[0] and ids[at : at + length] == last:
                    return ids[at + length : at + length + self.most]
        return []


class Draft:
    """Guesses what a smaller model finds likeliest (Leviathan et al. 2023, arXiv:2211.17192).

    Args:
        model: with the same vocabulary as the one whose requests it guesses for.
        most: tokens that are guessed.

    >>> from groundup.model.settings import ModelConfig
    >>> model = Transformer(ModelConfig(vocab_size=8, d_model=16, n_layers=1))
    >>> [guess] = Draft(model, most=2).propose([Request([1, 2, 3])], [9])
    >>> guess == Engine(model).generate([[1, 2, 3]], max_tokens=2, temperature=0.0)[0]
    True
    """

    def __init__(self, model: Transformer, most: int = 4) -> None:
        self.engine, self.most = Engine(model), most

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[list[int]]:
        """The small model's greedy answers, at most `most` tokens of each; nothing behind the end of its context. What
        it has read of a request before, it knows by its pages."""
        lengths = [
            min(self.most, limit, self.engine.context - len(request.ids))
            for request, limit in zip(requests, most, strict=True)
        ]
        prompts = (request.ids for request, length in zip(requests, lengths, strict=True) if length > 0)
        written = iter(self.engine.generate(prompts, max_tokens=self.most, temperature=0.0))
        return [next(written)[:length] if length > 0 else [] for length in lengths]


def draft_for(model: Transformer, draft: Transformer) -> Draft:
    """A draft whose ids mean the same.

    Raises:
        SettingsError: vocabularies of different sizes.
    """
    mine, its = model.config.vocab_size, draft.config.vocab_size
    if mine != its:
        raise SettingsError(f"the draft has {its:,} ids, the model {mine:,}: it should have the same tokenizer")
    return Draft(draft)
