"""Runs side by side: what was set otherwise, what came of it, and whether the difference is more than noise."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from groundup.artifacts import COMMANDS
from groundup.errors import SettingsError
from groundup.evals.statistics import ratio
from groundup.report import facts
from groundup.report.charts import Bar, Line, bars, line_chart, smooth
from groundup.report.facts import Run
from groundup.report.page import (
    contents,
    figure,
    number,
    sample,
    scientific,
    section,
    sentence,
    table,
    text,
    write,
)
from groundup.settings import differences, flatten, toml_value
from groundup.words import byte_size, duration

BEYOND_NOISE = 2.0
"""Standard errors from which on a difference is called more than noise: by chance, one in twenty is as large."""
Found = dict[str, Any]


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


def compare(runs: Sequence[Run]) -> Found:
    """All that is said of the runs, as JSON values; lists have an entry for each run, in their order."""
    labels = _labels(runs)
    return {
        "runs": labels,
        "scores": {key: [fact.of(run) for run in runs] for key, fact in SCORES.items()},
        "costs": {key: [fact.of(run) for run in runs] for key, fact in COSTS.items()},
        "settings": _settings(runs),
        "stages": {
            name: {
                "same": len({run.manifests[name].digest for run in runs}) == 1,
                "digests": [run.manifests[name].digest for run in runs],
            }
            for name in COMMANDS
        },
        "differences": [
            _paired(runs[0], run, labels[0], label) for run, label in zip(runs[1:], labels[1:], strict=True)
        ],
        "notes": _notes(runs),
    }


def _whole(value: int) -> str:
    return f"{value:,}"


@dataclass(frozen=True)
class Fact:
    """A number of each run: how it is called, where it stands, how it is written."""

    label: str
    of: Callable[[Run], Any]
    shown: Callable[[Any], str] = _whole


def _trained(run: Run) -> Mapping[str, Any]:
    return run.manifests["model"].statistics


def _bytes_per_token(run: Run) -> float:
    train = run.manifests["shards"].statistics["train"]
    return float(train["bytes"] / train["tokens"])


SCORES = {
    "bits_per_byte": Fact("bits per byte", lambda run: run.test["bits_per_byte"], "{:.4f}".format),
    "standard_error": Fact("standard error", lambda run: run.test["standard_error"], partial(number, form=".4f")),
    "perplexity": Fact("perplexity of a token", lambda run: run.test["perplexity"], partial(number, form=",.2f")),
    "documents": Fact("test documents", lambda run: run.test["documents"]),
    "validation_bits_per_byte": Fact(
        "validation, bits per byte", lambda run: _trained(run)["validation_bits_per_byte"], partial(number, form=".4f")
    ),
}
COSTS = {
    "parameters": Fact("parameters", lambda run: run.parameters),
    "vocabulary": Fact("vocabulary", lambda run: run.manifests["shards"].statistics["vocab_size"]),
    "bytes_per_token": Fact("bytes a token", _bytes_per_token, "{:.2f}".format),
    "training_steps": Fact("training steps", lambda run: _trained(run)["steps"]),
    "training_tokens": Fact("training tokens", lambda run: _trained(run)["tokens"]),
    "training_flops": Fact("operations of training", lambda run: _trained(run)["training_flops"], scientific),
    "training_seconds": Fact("training time", lambda run: run.manifests["model"].made["seconds"], duration),
    "seconds": Fact("time for everything", lambda run: run.seconds, duration),
    "model_bytes": Fact("model on disk", lambda run: run.model_bytes, byte_size),
    "machine": Fact("machine", lambda run: run.manifests["model"].made["machine"], str),
}


def _labels(runs: Sequence[Run]) -> list[str]:
    """The runs' names; where two are called the same, their paths."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def _settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Dotted name → its value in each run, where they are not all equal; None is not set."""
    tables = [run.recipe for run in runs]
    names = sorted({name for other in tables[1:] for name in differences(tables[0], other)})
    return {name: [flatten(recipe).get(name) for recipe in tables] for name in names}


def _paired(first: Run, second: Run, first_label: str, second_label: str) -> Found:
    """How much the second differs from the first on the test documents that both were scored on, and in words."""
    pair: Found = {"first": first_label, "second": second_label, "documents": 0, "same_documents": False}
    older = [run for run in (first, second) if not run.documents]
    if older:
        return pair | {
            "says": f"{' and '.join(str(run.directory) for run in older)}: evaluated by an older version of groundup, "
            "which did not record each document, so that nothing is paired. Remove its evals directory and build "
            "again (the model stays)."
        }
    before, after = ({line["id"]: line for line in run.documents} for run in (first, second))
    common = [name for name in before if name in after]
    pair["documents"] = len(common)
    if not common:
        return pair | {
            "says": f"{first_label} and {second_label} were not tested on any common document: their scores cannot be "
            "compared. Some texts are harder than others."
        }
    bits = np.array([after[name]["bits"] - before[name]["bits"] for name in common])
    difference, error = ratio(bits, np.array([before[name]["bytes"] for name in common]))
    pair |= {"difference": difference, "standard_error": None if math.isnan(error) else error}
    pair["same_documents"] = len(common) == len(before) == len(after)
    return pair | {"says": _in_words(pair, len(before), len(after))}


def _in_words(pair: Found, n_first: int, n_second: int) -> str:
    difference, error, documents = pair["difference"], pair["standard_error"], pair["documents"]
    first, second = pair["first"], pair["second"]
    if pair["same_documents"]:
        on = f"on the same {documents:,} test documents" if documents > 1 else "on the same test document"
    else:
        on = (
            f"on the {documents:,} test documents that both were tested on (of {n_first:,} and {n_second:,}; their "
            "overall scores are of different documents and cannot be compared)"
        )
    if not difference:
        return f"{second} and {first} need exactly as many bits {on}."
    said = (
        f"{second} needs {abs(difference):.4f} bits per byte {'less' if difference < 0 else 'more'} than {first} {on}"
    )
    if error is None:
        return f"{said}; one document gives no standard error, so this may be luck."
    said = f"{said}, with a paired standard error of {error:.4f}"
    if abs(difference) < BEYOND_NOISE * error:
        return f"{said}: within the noise of which documents were chosen."
    return (
        f"{said}: beyond the noise of which documents were chosen{'' if documents >= 30 else ', though they are few'}."
    )


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = ["Each run was trained once: how far another seed would move its number was not measured."]
    if len({run.manifests["tokenizer"].digest for run in runs}) > 1:
        notes.append(
            "The tokenizers differ. Bits per byte count the bytes of the text, so they can be compared all the same; "
            "perplexities and losses of a token cannot."
        )
    return notes


def verdicts(found: Found) -> list[str]:
    """What the comparison comes to, in sentences."""
    return [*(pair["says"] for pair in found["differences"]), *found["notes"]]


def rows(found: Found) -> list[list[str]]:
    """The comparison as one table for the terminal: a head, then groups with an empty row before each."""
    blank = [""] * (1 + len(found["runs"]))
    groups = [
        _fact_rows(SCORES, found["scores"]),
        _fact_rows(COSTS, found["costs"]),
        _setting_rows(found["settings"]),
        _stage_rows(found["stages"]),
    ]
    return [["", *found["runs"]], *(row for group in groups if group for row in (blank, *group))]


def _fact_rows(facts_of: Mapping[str, Fact], values: Mapping[str, list[Any]]) -> list[list[str]]:
    return [[fact.label, *map(fact.shown, values[key])] for key, fact in facts_of.items()]


def _setting_rows(settings: dict[str, list[Any]]) -> list[list[str]]:
    return [[name, *map(toml_value, values)] for name, values in settings.items()]


def _stage_rows(stages: dict[str, Any]) -> list[list[str]]:
    return [
        [f"{name} ({'the very same' if stage['same'] else 'differs'})", *(digest[:12] for digest in stage["digests"])]
        for name, stage in stages.items()
    ]


# The page


def default_page(runs: Sequence[Run]) -> Path:
    """Beside the first run, named after all of them."""
    first = runs[0].directory if runs[0].directory.name else runs[0].directory.resolve()
    name = "-".join(["compare", *(run.name for run in runs)])[:200]
    return first.with_name(f"{name}.html")


def write_page(runs: Sequence[Run], found: Found, target: Path) -> None:
    """Write the comparison as one HTML file, with curves and samples.

    Raises:
        SettingsError: when `target` is a folder.
    """
    labels = found["runs"]
    title = " and ".join(labels) if len(labels) == 2 else ", ".join(labels)
    sections = {
        "Which is better?": _which(found),
        "What was set otherwise": _otherwise(found),
        "What they cost": [table(["", *labels], _fact_rows(COSTS, found["costs"]))],
        "Curves": _curves(runs, labels),
        "What they write": _side_by_side(runs, labels),
    }
    head = f"<header><h1>{text(title)}</h1>{sentence('Runs of groundup, side by side.')}</header>"
    body = [head, contents(sections), *(section(name, *parts) for name, parts in sections.items())]
    write(target, f"{title} compared", "\n".join(body))


def _which(found: Found) -> list[str]:
    scores = found["scores"]
    drawn = zip(found["runs"], scores["bits_per_byte"], scores["standard_error"], strict=True)
    comparable = all(pair["same_documents"] for pair in found["differences"])
    best = min(scores["bits_per_byte"]) if comparable else None
    rows = [
        Bar(label, value, f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else ""), own=value == best)
        for label, value, error in drawn
    ]
    caption = (
        "Bits per byte on each run's test documents, with the standard error over documents; less is better. For runs "
        "tested on the same documents the difference is much surer than these errors say, because a hard document is "
        "hard for both: see the sentences above."
    )
    return [
        *(sentence(verdict) for verdict in verdicts(found)),
        figure(bars(rows), caption),
        table(["", *found["runs"]], _fact_rows(SCORES, scores)),
    ]


def _otherwise(found: Found) -> list[str]:
    settings, same = _setting_rows(found["settings"]), [name for name, s in found["stages"].items() if s["same"]]
    told = f"The very same, to the digest: {', '.join(same)}." if same else "No stage is the very same."
    return [
        table(["setting", *found["runs"]], settings) if settings else sentence("No setting differs."),
        sentence(f"{told} A stage differs where its settings, its input or its files do."),
        table(["stage", *found["runs"]], _stage_rows(found["stages"])),
    ]


def _curves(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """Validation and training over steps, tokens and time."""
    longest = max((run.steps[-1]["seconds"] for run in runs if run.steps), default=0)
    time_unit, seconds = ("hours", 3600) if longest > 7200 else ("minutes", 60) if longest > 120 else ("seconds", 1)
    trainings = [run.manifests["model"].settings["pretrain"] for run in runs]
    batches = {settings["batch_tokens"] for settings in trainings}
    if len(batches) == 1 and not any(
        settings.get("batch_ramp") for settings in trainings
    ):  # over tokens, they would look the same
        axes = {f"steps of {batches.pop():,} tokens": ("step", 1), time_unit: ("seconds", seconds)}
    else:
        axes = {"steps": ("step", 1), "tokens": ("tokens", 1), time_unit: ("seconds", seconds)}
    parts = [
        sentence(
            "All in bits per byte, whatever the tokenizer; training is the loss of the next token, mean of the last 20 "
            "steps. Over steps they show who learns more from as much text, over time who learns faster on its machine."
        )
    ]
    for name, of_run in (("Validation", _validation), ("Training", _training)):
        drawn = []
        for unit, (key, per) in axes.items():
            lines = [
                Line(label, [x / per for x in xs], ys, series=n)
                for n, (label, (xs, ys)) in enumerate(zip(labels, (of_run(run, key) for run in runs), strict=True))
            ]
            drawn.append(figure(line_chart(lines, unit, "bits per byte"), _lowest(name, lines, unit)))
        parts.append(f'<h3>{name}</h3><div class="side">{"".join(drawn)}</div>')
    return parts


def _validation(run: Run, key: str) -> tuple[list[float], list[float]]:
    return [line[key] for line in run.validations], [line["validation_bits_per_byte"] for line in run.validations]


def _training(run: Run, key: str) -> tuple[list[float], list[float]]:
    return [line[key] for line in run.steps], smooth(run.training_bits_per_byte, 20)


def _lowest(name: str, lines: Sequence[Line], unit: str) -> str:
    """What to see in it: who is lower where the shortest one ends."""
    drawn = [line for line in lines if len(line.x)]
    common = min((line.x[-1] for line in drawn), default=0.0)
    reached = {line.name: [y for x, y in zip(line.x, line.y, strict=True) if x <= common] for line in drawn}
    at = {label: values[-1] for label, values in reached.items() if values}
    if len(at) < 2:
        return f"{name} over {unit}; the runs have no stretch in common."
    told = ", ".join(f"{label} {bits:.3f}" for label, bits in at.items())
    where = f"{common:,.1f}".removesuffix(".0")
    late = "".join(f"; {line.name} was not measured before" for line in drawn if line.name not in at)
    best = min(at, key=lambda label: at[label])
    return f"{name} after {where} {unit}, as far as all go: {told}{late}. **{best}** is lowest."


def _side_by_side(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """The runs' samples in their order; a run with fewer has an empty place."""
    parts = [sentence("Each run's own samples, in order, not chosen; the prompt is bold.")]
    for place in range(max(len(run.samples) for run in runs)):
        columns = [
            f"<div><h3>{text(label)}</h3>"
            + (sample(drawn["prompt"], drawn["text"], f"seed {drawn['seed']}") if drawn else "")
            + "</div>"
            for label, drawn in (
                (label, run.samples[place] if place < len(run.samples) else None)
                for label, run in zip(labels, runs, strict=True)
            )
        ]
        parts.append(f'<div class="side texts">{"".join(columns)}</div>')
    return parts
