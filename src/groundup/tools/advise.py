"""The advice of `groundup tokens advise`: the vocabulary that suits texts and a model."""

from collections.abc import Sequence
from pathlib import Path

from groundup.errors import SettingsError
from groundup.files import Progress
from groundup.pages.render import sentences
from groundup.plan.hardware import this_machine
from groundup.plan.vocabulary import ALIKE, SEEN, Advice, advise, measure
from groundup.recipe import Recipe
from groundup.tools.new import model_of, parameters_in, propose
from groundup.tools.survey import survey


def advise_on(
    texts: Sequence[str], *, recipe: Path | None, size: str | None, largest: int, progress: Progress
) -> Advice:
    """The vocabulary that suits these texts and a model.

    Args:
        recipe: whose model is meant; else the one that `new` would propose,
        size: with about so many parameters.
        largest: vocabulary to measure.

    Raises:
        SettingsError: both a recipe and a size, or a size that is no number.
    """
    if recipe is not None and size is not None:
        raise SettingsError(f"--model {recipe} and --size {size} both set the size: give one of them")
    parameters = None if size is None else parameters_in(size)
    chosen = None if recipe is None else Recipe.load(recipe)
    sample = survey(tuple(texts), Path())
    learned = chosen.tokenizer.split if chosen and chosen.tokenizer.kind == "learned" else None
    curve = measure(sample.texts, largest=largest, pattern=learned or sample.split, progress=progress)
    if chosen is not None:
        model = chosen.model
    elif parameters is None:
        model = propose("advice", sample, this_machine()).chosen.model
    else:
        model = model_of(sample, this_machine(), parameters)
    return advise(curve, model, sample.train_bytes)


def reasons(advice: Advice) -> list[str]:
    """The reasons for this size, in sentences."""
    return sentences("vocabulary.txt", advice=advice, enough=SEEN, alike=ALIKE)
