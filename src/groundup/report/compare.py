"""Runs side by side: which settings differ, what came of it, and whether the difference is more than noise."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from groundup.artifacts import COMMANDS
from groundup.errors import SettingsError
from groundup.evals.statistics import ratio
from groundup.pages.charts import Bar, Chart, Curve
from groundup.pages.render import number, scientific, sentences
from groundup.pages.render import write_page as write_template
from groundup.report import facts
from groundup.report.facts import Run, differing_settings, smooth
from groundup.report.trust import FEW_DOCUMENTS
from groundup.report.watch import freeze
from groundup.settings import toml_value
from groundup.words import byte_size, duration

SCRIPTS = ("chart.js", "heat.js", "board.js", "frozen.js")
BEYOND_NOISE = 2.0
"""Standard errors from which on a difference is called more than noise: by chance, one in twenty is as large."""


def read_all(directories: Sequence[Path]) -> list[Run]:
    """
    Raises:
        SettingsError: fewer than two runs, or one twice.
        DataError: one that is not a finished run, or is damaged.
    """
    if len({directory.resolve() for directory in directories}) < max(2, len(directories)):
        raise SettingsError(
            f"there is nothing to compare {directories[0]} with: name two or more different runs, such as "
            "`groundup compare runs/a runs/b`"
        )
    return [facts.read(directory) for directory in directories]


@dataclass(frozen=True)
class StageDigests:
    """The results of a stage in all runs: their digests, and whether these are the same."""

    same: bool
    digests: list[str]


@dataclass(frozen=True)
class PairedDifference:
    """How much the second run differs from the first on the test documents that both were scored on."""

    first: str
    second: str
    documents: int
    same_documents: bool
    """Whether neither run was scored on any other document."""
    difference: float | None
    """Bits per byte of the second less those of the first; None without common documents."""
    standard_error: float | None
    """Standard error of the paired difference; None for fewer than two documents."""
    says: str


@dataclass(frozen=True)
class Comparison:
    """What is known of the runs. Lists have an entry for each run, in their order."""

    runs: list[str]
    scores: dict[str, list[Any]]
    costs: dict[str, list[Any]]
    settings: dict[str, list[Any]]
    """Dotted name → its value in each run, where they differ; None where it is not set."""
    stages: dict[str, StageDigests]
    differences: list[PairedDifference]
    notes: list[str]

    @property
    def verdicts(self) -> list[str]:
        """What the comparison comes to, in sentences."""
        return [*(difference.says for difference in self.differences), *self.notes]

    @property
    def tables(self) -> dict[str, list[list[str]]]:
        """Rows of scores, costs, settings and stages: a label, and a cell for each run."""
        scores, costs = (
            [[facts[key].label, *map(facts[key].write, values)] for key, values in read.items()]
            for facts, read in ((SCORES, self.scores), (COSTS, self.costs))
        )
        settings = [[name, *map(toml_value, values)] for name, values in self.settings.items()]
        stages = [
            [f"{name} ({'the very same' if stage.same else 'differs'})", *(digest[:12] for digest in stage.digests)]
            for name, stage in self.stages.items()
        ]
        return {"scores": scores, "costs": costs, "settings": settings, "stages": stages}

    @property
    def rows(self) -> list[list[str]]:
        """One table for the terminal: a head, then groups with an empty row before each."""
        empty = [""] * (1 + len(self.runs))
        return [["", *self.runs], *(row for group in self.tables.values() if group for row in (empty, *group))]


def compare(runs: Sequence[Run]) -> Comparison:
    names = [run.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run.directory) for run in runs]
    digests = {name: [run.manifests[name].digest for run in runs] for name in COMMANDS}
    stages = {name: StageDigests(len(set(each)) == 1, each) for name, each in digests.items()}
    notes = ["Each run was trained once: how far another seed would move its number was not measured."]
    if not stages["tokenizer"].same:
        notes.append(
            "The tokenizers differ. Bits per byte count the bytes of the text, so they can be compared all the same; "
            "perplexities and losses of a token cannot."
        )
    return Comparison(
        runs=labels,
        scores={key: [fact.read(run) for run in runs] for key, fact in SCORES.items()},
        costs={key: [fact.read(run) for run in runs] for key, fact in COSTS.items()},
        settings=differing_settings([run.recipe for run in runs]),
        stages=stages,
        differences=[
            paired_difference(runs[0], run, labels[0], label) for run, label in zip(runs[1:], labels[1:], strict=True)
        ],
        notes=notes,
    )


@dataclass(frozen=True)
class Fact:
    """A number of each run: its label, where to read it, how to write it."""

    label: str
    read: Callable[[Run], Any]
    write: Callable[[Any], str] = "{:,}".format


SCORES = {
    "bits_per_byte": Fact("bits per byte", lambda run: run.test["bits_per_byte"], "{:.4f}".format),
    "standard_error": Fact("standard error", lambda run: run.test["standard_error"], partial(number, form=".4f")),
    "perplexity": Fact("perplexity of a token", lambda run: run.test["perplexity"], partial(number, form=",.2f")),
    "documents": Fact("test documents", lambda run: run.test["documents"]),
    "validation_bits_per_byte": Fact(
        "validation, bits per byte", lambda run: run.trained["validation_bits_per_byte"], partial(number, form=".4f")
    ),
}
COSTS = {
    "parameters": Fact("parameters", lambda run: run.parameters),
    "vocabulary": Fact("vocabulary", lambda run: run.packed["vocab_size"]),
    "bytes_per_token": Fact("bytes a token", lambda run: run.bytes_per_token, "{:.2f}".format),
    "training_steps": Fact("training steps", lambda run: run.trained["steps"]),
    "training_tokens": Fact("training tokens", lambda run: run.trained["tokens"]),
    "training_flops": Fact("FLOPs of training", lambda run: run.trained["training_flops"], scientific),
    "training_seconds": Fact("training time", lambda run: run.manifests["model"].made["seconds"], duration),
    "seconds": Fact("time for everything", lambda run: run.seconds, duration),
    "model_bytes": Fact("model on disk", lambda run: run.model_bytes, byte_size),
    "machine": Fact("machine", lambda run: run.machine, str),
}


def paired_difference(first: Run, second: Run, first_label: str, second_label: str) -> PairedDifference:
    before, after = ({line["id"]: line for line in run.documents} for run in (first, second))
    common = [name for name in before if name in after]
    bits = np.array([after[name]["bits"] - before[name]["bits"] for name in common])
    sizes = np.array([before[name]["bytes"] for name in common])
    difference, error = ratio(bits, sizes) if common else (None, None)
    known: dict[str, Any] = {
        "first": first_label,
        "second": second_label,
        "documents": len(common),
        "same_documents": len(common) == len(before) == len(after),
        "difference": difference,
        "standard_error": error if len(common) > 1 else None,
    }
    limits = {"beyond_noise": BEYOND_NOISE, "few_documents": FEW_DOCUMENTS}
    (says,) = sentences("difference.txt", tested=(len(before), len(after)), **limits, **known)
    return PairedDifference(**known, says=says)


# The page


def default_page(runs: Sequence[Run]) -> Path:
    """Beside the first run, named after all of them."""
    first = runs[0].directory if runs[0].directory.name else runs[0].directory.resolve()
    name = "-".join(["compare", *(run.name for run in runs)])[:200]
    return first.with_name(f"{name}.html")


def write_page(runs: Sequence[Run], comparison: Comparison, target: Path) -> None:
    """Write the comparison as one HTML file, with curves and samples.

    Raises:
        SettingsError: when `target` is a folder.
    """
    labels, bits = comparison.runs, comparison.scores["bits_per_byte"]
    comparable = all(difference.same_documents for difference in comparison.differences)
    errors = ["" if error is None else f" ± {error:.3f}" for error in comparison.scores["standard_error"]]
    bars = [
        Bar(label, value, f"{value:.3f}{error}", comparable and value == min(bits))
        for label, value, error in zip(labels, bits, errors, strict=True)
    ]
    write_template(
        target,
        "compare.html",
        scripts=SCRIPTS,
        title=" and ".join(labels) if len(labels) == 2 else ", ".join(labels),
        comparison=comparison,
        bars=bars,
        same_stages=[name for name, stage in comparison.stages.items() if stage.same],
        charts=[Chart(name, "step", "bits per byte", _curves(name, runs, labels, "step")) for name in CURVES],
        lowest=[
            (name, key, *_lowest(_curves(name, runs, labels, key))) for name in CURVES for key in ("tokens", "seconds")
        ],
        training={"runs": [_frozen(run, label) for run, label in zip(runs, labels, strict=True)]},
        samples=itertools.zip_longest(*(run.samples for run in runs)),
    )


def _frozen(run: Run, label: str) -> dict[str, Any]:
    """The run for the board, its training in bits per byte: losses of a token cannot be compared."""
    frozen = freeze(run.directory)
    training, metrics = frozen["training_bits_per_byte"], frozen["metrics"]
    metrics = {name: curve for name, curve in metrics.items() if name not in ("loss", "next_token")}
    metrics |= {} if training is None else {"training_bits_per_byte": training}
    return {**frozen, "name": label, "metrics": metrics, "training_bits_per_byte": None}


CURVES: dict[str, Callable[[Run], tuple[list[dict[str, Any]], list[float]]]] = {
    "Validation": lambda run: (run.validations, [line["validation_bits_per_byte"] for line in run.validations]),
    "Training": lambda run: (run.steps, smooth(run.training_bits_per_byte)),
}
"""Name → lines of the metrics, and bits per byte at each."""


def _curves(name: str, runs: Sequence[Run], labels: Sequence[str], key: str) -> list[Curve]:
    """A curve for each run over a number of its metrics."""
    measured = [(label, *CURVES[name](run)) for label, run in zip(labels, runs, strict=True)]
    return [Curve(label, [line[key] for line in lines], bits) for label, lines, bits in measured]


def _lowest(curves: Sequence[Curve]) -> tuple[float, dict[str, float], list[str]]:
    """Where the shortest of the curves ends, the value that each has reached there, and the names of those that have
    none yet."""
    drawn = [curve for curve in curves if curve.x]
    end = min((curve.x[-1] for curve in drawn), default=0.0)
    reached = {curve.name: [y for x, y in zip(curve.x, curve.y, strict=True) if x <= end] for curve in drawn}
    values = {name: bits[-1] for name, bits in reached.items() if bits}
    return end, values, [name for name in reached if name not in values]
