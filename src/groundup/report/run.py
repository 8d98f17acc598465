"""The report of a run: one HTML file that needs nothing else. Its words are in the template run.html."""

import hashlib
import statistics
import time
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

from groundup.artifacts import COMMANDS, read_manifest
from groundup.corpus.document import SPLITS
from groundup.files import canonical_json, write_text
from groundup.pages.charts import Bar, Chart, Curve
from groundup.pages.render import render
from groundup.report import facts
from groundup.report.facts import Run, smooth
from groundup.report.tokens import visible
from groundup.report.trust import FEW_DOCUMENTS, broken_links, changed_settings, validation_course
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
    frozen = freeze(directory)
    page = render(
        "run.html",
        scripts=SCRIPTS,
        mark=_mark(directory),
        run=run,
        tokenizer=tokenizer,
        splits=SPLITS,
        commands=COMMANDS,
        checked_at=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        broken_links=broken_links(run),
        few_documents=FEW_DOCUMENTS,
        course=validation_course(run),
        changes=changed_settings(run.events),
        recipe_text=(directory / "recipe.toml").read_text(encoding="utf-8"),
        by_difficulty=sorted((line["bits"] / line["bytes"], line["id"]) for line in run.documents),
        charts=_training_charts(run) if run.steps else None,
        usual_norm=statistics.median(line["grad_norm"] for line in run.steps) if run.steps else None,
        frozen={"runs": [frozen]},
        ranks=frozen["ranks"],
        token_uses=_token_uses(run),
        **_bars(run),
        **_tokens(run, tokenizer),
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


def _bars(run: Run) -> dict[str, list[Bar]]:
    own, baselines = run.test["bits_per_byte"], run.test["baselines"]
    others = {"frequencies of tokens": baselines["unigram"], "xz -9": baselines["xz"], "the bytes as they are": 8.0}
    scores = [("this model", own), *sorted(others.items(), key=itemgetter(1))]
    spent = {COMMANDS[name]: manifest.made["seconds"] for name, manifest in run.manifests.items()}
    longest = max(spent, key=spent.__getitem__)
    return {
        "score_bars": [Bar(name, bits, f"{bits:.2f}", main=number == 0) for number, (name, bits) in enumerate(scores)],
        "stage_bars": [Bar(stage, seconds, duration(seconds), stage == longest) for stage, seconds in spent.items()],
        "length_bars": [Bar(name, n, f"{n:,}") for name, n in run.corpus["documents_by_bytes"].items()],
    }


def _tokens(run: Run, tokenizer: Tokenizer) -> dict[str, Any]:
    special = set(tokenizer.special.values())
    ordinary = [token for i, token in enumerate(tokenizer.tokens) if i not in special]
    most_used = [tokenizer.tokens[i] for i in run.packed["most_used"]]
    return {
        "n_ordinary": len(ordinary),
        "first_merges": _in_a_row(left + right for left, right in tokenizer.merges[:16]),
        "most_used": _in_a_row(most_used),
        "commonest_token": visible(most_used[0]),
        "longest_tokens": _in_a_row(sorted(ordinary, key=len, reverse=True)[:12]),
    }


def _in_a_row(tokens: Iterable[bytes]) -> str:
    return "  ".join(map(visible, tokens))


def _token_uses(run: Run) -> Chart:
    ranks, uses = zip(*((rank, count) for rank, count in run.packed["uses_by_rank"] if count), strict=True)
    return Chart(
        "Uses of tokens", "rank of the token", "occurrences", [Curve("", ranks, uses)],
        logarithmic_x=True, logarithmic_y=True,
    )  # fmt: skip


def _training_charts(run: Run) -> dict[str, Chart]:
    """By the metric that each is of."""
    steps = [line["step"] for line in run.steps]

    def over_steps(title: str, unit: str, values: list[float]) -> Chart:
        return Chart(title, "step", unit, [Curve("", steps, values)])

    measured = [line["validation_bits_per_byte"] for line in run.validations]
    curves = [
        Curve("validation", [line["step"] for line in run.validations], measured),
        Curve("training, mean of 20", steps, smooth(run.training_bits_per_byte)),
    ]
    loss = smooth([line["loss"] for line in run.steps])
    return {
        "loss": over_steps("Training loss", "loss, nats per token, mean of 20", loss),
        "validation_bits_per_byte": Chart("Validation", "step", "bits per byte", curves),
        "learning_rate": over_steps("Learning rate", "learning rate", [line["learning_rate"] for line in run.steps]),
        "grad_norm": over_steps("Gradient norm", "gradient norm", [line["grad_norm"] for line in run.steps]),
    }
