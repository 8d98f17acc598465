"""Constrain: let an answer fit a pattern or a JSON schema, by the library llguidance."""

import importlib
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from groundup.errors import SettingsError
from groundup.generation.settings import Sampling
from groundup.tokenizer.tokenizer import Tokenizer


def constraint_of(sampling: Sampling, tokenizer: Tokenizer, stops: Collection[int]) -> "Grammar | None":
    """What `sampling` asks an answer to fit, if anything.

    Raises:
        SettingsError: a pattern or schema that is none, or the library is not there.
    """
    if sampling.regex is None and sampling.json_schema is None:
        return None
    try:
        library = importlib.import_module("llguidance")
    except ImportError:
        raise SettingsError(
            "regex and json_schema need the library llguidance: pip install 'groundup[constrained]'"
        ) from None
    asked = ("regex", sampling.regex) if sampling.regex is not None else ("json_schema", sampling.json_schema)
    try:
        if sampling.regex is not None:
            grammar = library.LLMatcher.grammar_from_regex(sampling.regex)
        else:  # written as models write it, without room for white space that never ends
            style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            grammar = library.LLMatcher.grammar_from_json_schema(sampling.json_schema, overrides=style)
        matcher = library.LLMatcher(_vocabulary(library, tokenizer, frozenset(stops)), grammar)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
    except ValueError as error:
        raise SettingsError(f"{asked[0]} = {asked[1]!r} cannot be followed: {error}") from None
    return Grammar(matcher, tokenizer.vocab_size, frozenset(stops))


class Grammar:
    """An answer that is being written, and what may come next. Where it may end, so may what ends answers."""

    def __init__(self, matcher: Any, vocab_size: int, stops: Collection[int]) -> None:
        self._matcher, self._vocab_size, self._stops = matcher, vocab_size, list(stops)

    def allowed(self, n: int) -> Bool[Tensor, "V"]:
        """Which of `n` ids may come next; none once nothing can."""
        allowed = torch.zeros(n, dtype=torch.bool)
        if not self._matcher.is_stopped():
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            flags = np.unpackbits(bits, bitorder="little")[: min(n, self._vocab_size)]
            allowed[: len(flags)] = torch.from_numpy(flags.astype(bool))
        ends = self._matcher.is_stopped() or self._matcher.is_accepting()
        for stop in self._stops:
            allowed[stop] = ends
        return allowed

    def accept(self, id: int) -> None:
        """It came."""
        self._matcher.consume_token(id)


@lru_cache(maxsize=2)
def _vocabulary(library: Any, tokenizer: Tokenizer, stops: frozenset[int]) -> Any:
    """A tokenizer as the library reads it; it takes a while for a large one."""

    class Wrapped:
        eos_token_id = min(stops, default=tokenizer.vocab_size - 1)
        bos_token_id = tokenizer.roles.opener
        tokens = tokenizer.tokens
        special_token_ids = [*tokenizer.special.values()]

        def __call__(self, text: str | bytes) -> list[int]:
            return tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))

    return library.LLTokenizer(library.TokenizerWrapper(Wrapped()))
