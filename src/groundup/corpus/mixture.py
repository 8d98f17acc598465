"""Mixtures: how often the training documents of each source, and of each language, are read."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from groundup.corpus.settings import CorpusSettings, Source
from groundup.errors import SettingsError

Key = tuple[int, str]
"""Number of a source, and a language."""


@dataclass(frozen=True)
class Share:
    """What one source has in one language, and what becomes of it."""

    source: str
    language: str
    bytes: int
    """Of its training documents, each once."""
    epochs: float
    """How often each is there, in the mean."""


def mix(kept: Mapping[Key, int], settings: CorpusSettings) -> dict[Key, Share]:
    """How often each document is there.

    `epochs` of a source is kept to. Sources with a `weight` get shares of the whole in that proportion: as much text as
    there is, without one of them being read more than its `epochs`. Languages get shares of their source that are
    proportional to their bytes to the power of `temperature`'s inverse (Conneau et al. 2020, section 3.1).

    Args:
        kept: bytes of training documents.

    Raises:
        SettingsError: some sources have a weight and others have none.

    >>> a, b = Source(path="a", weight=3), Source(path="b", weight=1)
    >>> mixed = mix({(0, ""): 300, (1, ""): 300}, CorpusSettings(sources=(a, b)))
    >>> [round(share.epochs, 3) for share in mixed.values()]
    [1.0, 0.333]
    """
    sources = [each if isinstance(each, Source) else Source(path=each) for each in settings.sources]
    totals = Counter[int]()
    for (number, _), n_bytes in kept.items():
        totals[number] += n_bytes
    often = _often(sources, totals)
    powers = {key: n_bytes ** (1 / settings.language_temperature) for key, n_bytes in kept.items()}
    of_source = dict.fromkeys(totals, 0.0)
    for (number, _), power in powers.items():
        of_source[number] += power
    shares = {}
    for (number, language), n_bytes in kept.items():
        share = powers[number, language] / of_source[number]
        epochs = often[number] * share * totals[number] / n_bytes
        shares[number, language] = Share(sources[number].path, language, n_bytes, epochs)
    return shares


def _often(sources: Sequence[Source], totals: Mapping[int, int]) -> dict[int, float]:
    weights = {number: sources[number].weight for number in totals}
    if all(weight is None for weight in weights.values()):
        return {number: sources[number].epochs for number in totals}
    without = [sources[number].path for number, weight in weights.items() if weight is None]
    if without:
        raise SettingsError(
            f"corpus.sources: {', '.join(without)} has no weight, and others have. Give each source one, or none"
        )
    whole = sum(weight for weight in weights.values() if weight)
    parts = {number: weight / whole for number, weight in weights.items() if weight}
    size = min(totals[number] * sources[number].epochs / part for number, part in parts.items())
    return {number: size * part / totals[number] for number, part in parts.items()}


def copies(document_id: str, epochs: float) -> int:
    """How often a document is there: `epochs` rounded up or down, by its id alone.

    >>> copies("00" * 32, 2.5), copies("ff" * 32, 2.5), copies("00" * 32, 2.0)
    (3, 2, 2)
    """
    left = int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8], "big") / 2**64 if epochs % 1 else 1.0
    return int(epochs) + (left < epochs % 1)
