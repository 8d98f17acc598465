"""The report of a run: one HTML file that needs nothing else. Its words are in the template run.html."""

import hashlib
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from groundup.artifacts import COMMANDS, read_manifest
from groundup.corpus.document import SPLITS
from groundup.evals.heldout import measurement_of
from groundup.files import canonical_json, write_text
from groundup.pages.charts import Bar, Chart, Curve
from groundup.pages.render import render
from groundup.report import facts
from groundup.report.facts import Run, smooth
from groundup.report.trust import overfitting, verdicts
from groundup.report.watch import freeze
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.words import duration

SCRIPTS = ("chart.js", "heat.js", "board.js", "figures.js", "frozen.js")


def write_report(directory: Path) -> Path:
    """Write `report.html` of a finished run, and return its path.

    Raises:
        DataError: when the run is not finished, or damaged.
    """
    run, tokenizer = facts.read(directory), Tokenizer.load(directory / "tokenizer")
    measurements = list(_measurement_charts(run))
    elsewhere = {curve.name for chart in measurements for curve in chart.curves}
    page = render(
        "run.html",
        scripts=SCRIPTS,
        mark=_mark(directory),
        run=run,
        verdicts=verdicts(run),
        recipe_text=(directory / "recipe.toml").read_text(encoding="utf-8"),
        training=_training(run) if run.steps else None,
        measurements=measurements,
        frozen={"runs": [freeze(directory, leave_out=elsewhere)]},
        event_rows=[(event.get("at", ""), event.get("event", ""), _details(event)) for event in run.events],
        **_scores(run),
        **_times(run),
        **_corpus(run),
        **_tokens(run, tokenizer),
        **_shards(run),
    )
    write_text(directory / "report.html", page)
    return directory / "report.html"


def stages_digest(directory: Path) -> str:
    """Digest of the directories that the page is about."""
    digests = {name: read_manifest(directory / name).digest for name in COMMANDS}
    return hashlib.sha256(canonical_json(digests)).hexdigest()


def is_up_to_date(directory: Path) -> bool:
    """Whether there is a page, and it is about exactly what is there."""
    target = directory / "report.html"
    return target.is_file() and f"<!-- {_mark(directory)} -->" in target.read_text(encoding="utf-8")[:400]


def _mark(directory: Path) -> str:
    return f"shows {stages_digest(directory)}"


def _scores(run: Run) -> dict[str, Any]:
    own, baselines = run.test["bits_per_byte"], run.test["baselines"]
    others = {"frequencies of tokens": baselines["unigram"], "xz -9": baselines["xz"], "the bytes as they are": 8.0}
    rows = [Bar("this model", own, f"{own:.2f}", main=True)]
    rows += [Bar(name, value, f"{value:.2f}") for name, value in sorted(others.items(), key=lambda pair: pair[1])]
    return {
        "score_bars": rows,
        "against_xz": _compared(own, baselines["xz"]),
        "against_frequencies": _compared(own, baselines["unigram"]),
        "by_difficulty": sorted((line["bits"] / line["bytes"], line["id"]) for line in run.documents),
    }


def _compared(value: float, other: float) -> str:
    return f"{abs(1 - value / other):.0%} {'less' if value < other else 'more'} than"


def _times(run: Run) -> dict[str, Any]:
    spent = {COMMANDS[name]: manifest.made["seconds"] for name, manifest in run.manifests.items()}
    longest = max(spent, key=lambda stage: spent[stage])
    stage_rows = [
        (
            COMMANDS[name],
            duration(manifest.made["seconds"]),
            ", ".join(f"{key} {digest[:8]}" for key, digest in manifest.inputs.items()) or "–",
            manifest.digest[:12],
            manifest.made["at"].replace("T", " ")[:16],
            f"groundup {manifest.made['code']}"
            + (f", torch {manifest.made['torch']}" if manifest.made["torch"] else ""),
        )
        for name, manifest in run.manifests.items()
    ]
    bars = [Bar(stage, seconds, duration(seconds), main=stage == longest) for stage, seconds in spent.items()]
    return {"stage_bars": bars, "stage_rows": stage_rows}


def _corpus(run: Run) -> dict[str, Any]:
    units = ("documents", "bytes", "characters", "words")
    bars = [Bar(name, count, f"{count:,}") for name, count in run.corpus["documents_by_bytes"].items()]
    return {
        "split_rows": [(split, *(f"{run.corpus[split][unit]:,}" for unit in units)) for split in SPLITS],
        "length_bars": bars,
        "commonest": max(bars, key=lambda bar: bar.value),
    }


def _tokens(run: Run, tokenizer: Tokenizer) -> dict[str, Any]:
    tokens, special = tokenizer.tokens, set(tokenizer.special.values())
    ordinary = [token for i, token in enumerate(tokens) if i not in special]
    most_used = [tokens[i] for i in run.packed["most_used"]]
    return {
        "tokenizer": tokenizer,
        "n_ordinary": len(ordinary),
        "first_merges": _readable(left + right for left, right in tokenizer.merges[:16]),
        "most_used": _readable(most_used),
        "commonest_token": _readable(most_used[:1]),
        "longest_tokens": _readable(sorted(ordinary, key=len, reverse=True)[:12]),
    }


def _readable(tokens: Iterable[bytes]) -> str:
    return "  ".join(token.decode("utf-8", "replace").replace(" ", "␣").replace("\n", "⏎") for token in tokens)


def _shards(run: Run) -> dict[str, Any]:
    packed, context = run.packed, run.model_settings["model"]["context_length"]
    rows = [
        (
            split,
            f"{packed[split]['documents']:,}",
            f"{packed[split]['tokens']:,}",
            f"{packed[split]['bytes'] / packed[split]['tokens']:.2f}",
            f"{packed[split]['tokens'] / packed[split]['documents']:,.0f}",
            f"{-(-(packed[split]['tokens'] - 1) // context):,}",
        )
        for split in SPLITS
    ]
    ranks, uses = zip(*((rank, count) for rank, count in packed["uses_by_rank"] if count), strict=True)
    parameters, flops = run.trained["parameters"], run.trained["forward_flops_per_token"]
    parts = [(part, parameters.get(part, 0), flops.get(part, 0)) for part in dict.fromkeys([*parameters, *flops])]
    parts.append(("together", sum(parameters.values()), sum(flops.values())))
    return {
        "shard_rows": rows,
        "packed_tokens": sum(packed[split]["tokens"] for split in SPLITS),
        "rows_per_document": packed["train"]["tokens"] / packed["train"]["documents"] / context,
        "token_uses": Chart(
            "Uses of tokens", "rank of the token", "occurrences", [Curve("", ranks, uses)],
            logarithmic_x=True, logarithmic_y=True,
        ),
        "part_rows": [(part, f"{n:,}", f"{n_flops:,}") for part, n, n_flops in parts],
    }  # fmt: skip


# Training


def _training(run: Run) -> dict[str, Any]:
    steps, bits = [line["step"] for line in run.steps], smooth(run.training_bits_per_byte)
    loss = smooth([line["loss"] for line in run.steps])
    norm, clip = [line["grad_norm"] for line in run.steps], run.model_settings["pretrain"]["clip"]
    validation = [
        Curve(
            "validation",
            [line["step"] for line in run.validations],
            [line["validation_bits_per_byte"] for line in run.validations],
        ),
        Curve("training, mean of 20", steps, bits),
    ]

    def over_steps(title: str, unit: str, values: list[float]) -> Chart:
        return Chart(title, "step", unit, [Curve("", steps, values)])

    return {
        "loss": over_steps("Training loss", "loss, nats per token, mean of 20", loss),
        "validation": Chart("Validation", "step", "bits per byte", validation),
        "overfitting": overfitting(run).text,
        "epoch": run.packed["train"]["tokens"] / run.model_settings["pretrain"]["batch_tokens"],
        "learning_rate": over_steps("Learning rate", "learning rate", [line["learning_rate"] for line in run.steps]),
        "gradient_norm": over_steps("Gradient norm", "gradient norm", norm),
        "usual_norm": statistics.median(norm),
        "clip": clip,
        "n_clipped": sum(value > clip for value in norm) if clip else 0,
    }


def _measurement_charts(run: Run) -> Iterator[Chart]:
    """A chart for each kind of measurement made during training; several numbers of one kind share it."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in run.metrics:
        for name, value in line.items():
            measurement = measurement_of(name)
            if measurement is not None and isinstance(value, float):
                points.setdefault(measurement.title, {}).setdefault(name, []).append((line["step"], value))
    for title, named in points.items():
        curves = [
            Curve(name, [step for step, _ in pairs], [value for _, value in pairs]) for name, pairs in named.items()
        ]
        yield Chart(title.capitalize(), "step", title, curves)


def _details(event: dict[str, Any]) -> str:
    """What an event says besides its time and name."""
    values = {key: value for key, value in event.items() if key not in ("at", "event", "documents", "changed")}
    if "worst" in values:
        values["worst"] = "; ".join(map(_skipped_row, values["worst"]))
    changed = [f"{name} {old} → {new}" for name, (old, new) in event.get("changed", {}).items()]
    return ", ".join([*(f"{key} {value}" for key, value in values.items()), *changed])


def _skipped_row(row: dict[str, Any]) -> str:
    """One of the worst rows of a step that was left out."""
    sources = ", ".join(f"{document.get('number')} ({document.get('source')})" for document in row.get("documents", []))
    return f"row {row.get('row')} with loss {row.get('loss') or row.get('loss_was')} of documents {sources}"
