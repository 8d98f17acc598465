"""The report of a run: one HTML file that needs nothing else.

It answers in this order: what is it, how good is it, what did it cost, can I trust it; then each stage in turn.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from groundup.artifacts import COMMANDS, read_manifest
from groundup.corpus.document import SPLITS
from groundup.evals.heldout import measurement_of
from groundup.files import canonical_json, write_text
from groundup.pages.assets import bundle
from groundup.report import facts
from groundup.report.charts import Bar, Line, bars, line_chart, smooth
from groundup.report.facts import Run
from groundup.report.page import (
    contents,
    data,
    emphasised,
    figure,
    number,
    page,
    sample,
    scientific,
    section,
    sentence,
    table,
    text,
)
from groundup.report.watch import frozen
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.words import byte_size, duration, plural

SCRIPTS = ("chart.js", "heat.js", "board.js", "frozen.js")
FLAT = 0.005
"""A rise of validation by less than this share is called none."""


def write_report(directory: Path) -> Path:
    """Write `report.html` of a finished run, and say where it is.

    Raises:
        DataError: when the run is not finished, or damaged.
    """
    run = facts.read(directory)
    tokenizer = Tokenizer.load(directory / "tokenizer")
    sections = {
        "What it writes": _samples(run),
        "Corpus": _corpus(run),
        "Tokenizer": _tokenizer(run, tokenizer),
        "Shards": _shards(run, tokenizer),
        "Model": _model(run),
        "Training": _training(run),
        "Evaluation": _evaluation(run),
        "What was built from what": _chain(run),
        "What happened during training": _events(run),
        "Recipe": [
            sentence("With every setting as it ran. Beside the same sources, it builds this model again."),
            f"<pre>{text((directory / 'recipe.toml').read_text(encoding='utf-8'))}</pre>",
        ],
    }
    body = [_head(run), contents(sections), *(section(title, *parts) for title, parts in sections.items())]
    script = bundle(*SCRIPTS) if run.steps else ""
    write_text(directory / "report.html", page(run.name, "\n".join(body), _mark(directory), script))
    return directory / "report.html"


def shown(directory: Path) -> str:
    """Digest of the directories that the page tells of."""
    digests = {name: read_manifest(directory / name).digest for name in COMMANDS}
    return hashlib.sha256(canonical_json(digests)).hexdigest()


def is_up_to_date(directory: Path) -> bool:
    """Whether there is a page, and it says that it shows just what is there."""
    target = directory / "report.html"
    return target.is_file() and f"<!-- {_mark(directory)} -->" in target.read_text(encoding="utf-8")[:400]


def _mark(directory: Path) -> str:
    return f"shows {shown(directory)}"


# The four questions


def _head(run: Run) -> str:
    blocks = {
        "What is it?": _what(run),
        "How good is it?": _how_good(run),
        "What did it cost?": _cost(run),
        "Can I trust it?": _trust(run),
    }
    answers = "".join(section(question, *parts) for question, parts in blocks.items())
    return f'<header><h1>{text(run.name)}</h1></header><div class="answers">{answers}</div>'


def _what(run: Run) -> list[str]:
    corpus, model = run.manifests["corpus"], run.manifests["model"]
    shape, packed = model.settings["model"], run.manifests["shards"].statistics
    documents = sum(corpus.statistics[split]["documents"] for split in SPLITS)
    kept = sum(corpus.statistics[split]["bytes"] for split in SPLITS)
    window = shape["context_length"] * packed["train"]["bytes"] / packed["train"]["tokens"]
    named = corpus.settings["sources"]
    sources = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
    return [
        sentence(
            f"A language model of **{run.parameters:,} parameters**: a Transformer of {shape['n_layers']} layers, each "
            f"{shape['d_model']} wide. It knows {packed['vocab_size']:,} tokens (pieces of words) and looks back over "
            f"at most {shape['context_length']:,} of them, about {window:,.0f} bytes of text."
        ),
        sentence(
            f"It was built from **{documents:,} documents** ({byte_size(kept)} of text) out of {sources}. "
            "It continues a text; it was not taught to answer or to follow instructions."
        ),
    ]


def _how_good(run: Run) -> list[str]:
    test = run.test
    error = f" ± {test['standard_error']:.3f}" if test["standard_error"] is not None else ""
    parts = [
        sentence(
            f"**{test['bits_per_byte']:.3f}{error} bits per byte** on {plural(test['documents'], 'document')} that it "
            f"never saw; less is better. Used as a compressor, it would store them in "
            f"{test['bits_per_byte'] / 8:.0%} of their size, its own not counted."
        )
    ]
    if test["perplexity"] is not None:
        parts.append(
            sentence(
                f"At each token it is as unsure as if it had to choose among **{test['perplexity']:,.1f}** equally "
                "likely ones (its perplexity)."
            )
        )
    return [*parts, *_baselines(run)]


def _baselines(run: Run) -> list[str]:
    own, known = run.test["bits_per_byte"], run.test.get("baselines")
    if known is None:
        return [sentence(f"{_older(run)} for what plainer ways need for the same documents.")]
    plainer = {"frequencies of tokens": known["unigram"], "xz -9": known["xz"], "the bytes as they are": 8.0}
    rows = [Bar("this model", own, f"{own:.2f}", own=True)]
    rows += [Bar(name, value, f"{value:.2f}") for name, value in sorted(plainer.items(), key=lambda pair: pair[1])]
    caption = (
        f"Bits per byte for the same test documents: the model needs {_compared(own, known['xz'])} the compressor xz, "
        "which may look back over all of them, and "
        f"{_compared(own, known['unigram'])} a model that only knows how often each token occurs."
    )
    return [figure(bars(rows), caption)]


def _compared(value: float, other: float) -> str:
    return f"{abs(1 - value / other):.0%} {'less' if value < other else 'more'} than"


def _older(run: Run) -> str:
    """The beginning of a sentence about what the evaluation of an older version did not record."""
    return (
        f"The evaluation was made by an older version of groundup: remove {run.directory / 'evals'} and build again "
        "(the model stays)"
    )


def _cost(run: Run) -> list[str]:
    model = run.manifests["model"].statistics
    train = run.manifests["shards"].statistics["train"]["tokens"]
    spent = {COMMANDS[name]: manifest.made["seconds"] for name, manifest in run.manifests.items()}
    parts = [
        sentence(
            f"**{duration(run.seconds)}** for everything on {run.manifests['model'].made['machine']}. The model takes "
            f"**{byte_size(run.model_bytes)}** on disk."
        ),
        sentence(
            f"Training read {model['tokens']:,} tokens, the training text {model['tokens'] / train:.1f} times over, "
            f"and took **{scientific(model['training_flops'])}** arithmetic operations{_speed(run)}."
        ),
    ]
    longest = max(spent, key=lambda stage: spent[stage])
    caption = f"Time by stage: {longest} took {spent[longest] / (run.seconds or 1):.0%}."
    rows = [Bar(stage, seconds, duration(seconds), own=stage == longest) for stage, seconds in spent.items()]
    return [*parts, figure(bars(rows), caption)]


def _speed(run: Run) -> str:
    if not run.steps or not run.steps[-1]["seconds"]:
        return ""
    model, seconds = run.manifests["model"].statistics, run.steps[-1]["seconds"]
    return (
        f", at {model['tokens'] / seconds:,.0f} tokens and {model['training_flops'] / seconds / 1e9:,.0f} billion "
        "operations a second"
    )


GOOD, CARE, OPEN = "good", "care", "open"
"""What a line about trust says: it holds; take care; it was not looked at. Also the classes of the style sheet."""
SIGNS = {GOOD: "✓", CARE: "!", OPEN: "?"}


def _trust(run: Run) -> list[str]:
    lines = [_digests(run), _held_out(run), _sure(run), by_heart(run), _interruptions(run), _bad_steps(run)]
    cut = run.manifests["corpus"].settings["max_document_bytes"]
    lines += [
        (OPEN, "**One training seed**: how far another one would move the number was not measured."),
        (
            OPEN,
            "**Near duplicates** were not looked for, nor passages that documents share: a test document may resemble "
            f"a training document. Parts of one document longer than {cut:,} bytes may lie on both sides.",
        ),
        (OPEN, "**Whether what it writes is true, fair or harmless** was not measured. Expect that it is not."),
    ]
    items = "".join(
        f'<li class="{kind}"><i>{SIGNS[kind]}</i><span>{emphasised(line)}</span></li>' for kind, line in lines
    )
    return [f'<ul class="trust">{items}</ul>']


def _digests(run: Run) -> tuple[str, str]:
    broken = [
        f"{name} was made from another {given}"
        for name, manifest in run.manifests.items()
        for given, digest in manifest.inputs.items()
        if given in run.manifests and run.manifests[given].digest != digest
    ]
    if broken:
        return CARE, f"**The chain does not hold**: {'; '.join(broken)}. Build again with --replace."
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return GOOD, (
        "**The chain holds**: every byte of every stage has the digest that was recorded, and each stage was made from "
        f"the ones that are here. Checked when this page was written, {now} UTC."
    )


def _held_out(run: Run) -> tuple[str, str]:
    duplicates = run.manifests["corpus"].statistics["dropped"].get("exact duplicate", 0)
    removed = f"{plural(duplicates, 'exact duplicate')} dropped" if duplicates else "there was no exact duplicate"
    start = run.manifests["model"].inputs.get("start")
    if start is not None:
        return CARE, (
            f"**It began with the weights of another model** ({start[:12]}), which may have been trained on the test "
            f"documents: {plural(run.test['documents'], 'document')}, none of them, letter for letter, among those "
            f"that it was trained on here: {removed}."
        )
    return GOOD, (
        f"**Tested on text that it was not trained on**: {plural(run.test['documents'], 'document')}, set aside by "
        "the digest of their text before anything was learned, and read once, at the end. Letter for letter, none is "
        f"among the training documents: {removed}."
    )


def _sure(run: Run) -> tuple[str, str]:
    test = run.test
    if test["standard_error"] is None:
        return CARE, "**One test document** gives no standard error: the number may be luck. Add text."
    few = test["documents"] < 30
    return CARE if few else GOOD, (
        f"**Standard error {test['standard_error']:.3f}**: with other documents of the same kind the number would "
        f"mostly lie between {test['bits_per_byte'] - 2 * test['standard_error']:.2f} and "
        f"{test['bits_per_byte'] + 2 * test['standard_error']:.2f}."
        + (f" From {test['documents']} documents, this error is rough itself." if few else "")
    )


def by_heart(run: Run) -> tuple[str, str]:
    """Whether validation says that the model was learning the training text by heart."""
    if len(run.validations) < 2:
        return OPEN, "**Learning by heart**: validation was measured less than twice, so its course is not known."
    bits = [line["validation_bits_per_byte"] for line in run.validations]
    lowest = min(range(len(bits)), key=lambda i: bits[i])
    step = run.validations[lowest]["step"]
    if bits[-1] > bits[lowest] * (1 + FLAT):
        return CARE, (
            f"**Learning by heart**: validation was lowest at step {step:,} ({bits[lowest]:.3f} bits per byte) and "
            f"rose to {bits[-1]:.3f} by the end. Fewer steps, or more text, would serve better."
        )
    course = "was still falling at the end" if bits[-2] > bits[-1] * (1 + FLAT) else "was level at the end"
    went = "fell" if bits[-1] < bits[0] else "went"
    return GOOD, (
        f"**No harm from learning by heart**: validation {went} from {bits[0]:.3f} to {bits[-1]:.3f} bits per byte "
        f"and {course}."
    )


def _interruptions(run: Run) -> tuple[str, str]:
    kinds = [event.get("event") for event in run.events]
    refused = [str(event.get("checkpoint")) for event in run.events if event.get("event") == "checkpoint refused"]
    if refused:
        return CARE, (
            f"**A checkpoint was refused** ({', '.join(refused)}): training went on from an older one. The files of "
            "that disk are worth a look; what happened during training is below."
        )
    if not kinds:
        return OPEN, "**The log of events is gone**: whether training was interrupted is not known."
    changes = changed_settings(run.events)
    if changes:
        told = "; ".join(f"{name} {old} → {new} from step {step:,} on" for step, name, old, new in changes)
        return CARE, (
            f"**Settings were changed while it trained**: {told}. One run with these settings from the beginning would "
            "give other numbers."
        )
    resumed = kinds.count("resumed")
    if resumed:
        threads = list(dict.fromkeys(str(event["threads"]) for event in run.events if "threads" in event))
        otherwise = f" but for the last digits: it had {' and then '.join(threads)} threads" if len(threads) > 1 else ""
        return GOOD, (
            f"**Interrupted {plural(resumed, 'time')}** and resumed from a checkpoint, which gives the numbers of a "
            f"run that never stopped{otherwise}."
        )
    return GOOD, "**Not interrupted**: training ran in one go, and no checkpoint was refused."


def _bad_steps(run: Run) -> tuple[str, str]:
    """What the guard did, if there was one."""
    guard = run.manifests["model"].settings["pretrain"].get("guard", {}).get("kind", "none")
    kinds = [event.get("event") for event in run.events]
    skipped, back = kinds.count("step skipped"), kinds.count("rolled back")
    overflowed = sum(int(event.get("steps", 0)) for event in run.events if event.get("event") == "overflow")
    scale = f" Gradients overflowed float16 in {plural(overflowed, 'step')}, which is its way." if overflowed else ""
    if back or skipped:
        jumps = [event.get("rows", [0, 0]) for event in run.events if event.get("event") == "rolled back"]
        rows = sum(last - first for first, last in jumps)
        gone = f", went back {plural(back, 'time')} and jumped over {plural(rows, 'row')}" if back else ""
        return CARE, (
            f"**The guard left out {plural(skipped, 'step')}**{gone}: a loss or gradient was no number, or far above "
            f"the last ones. Which rows and documents they read is told below, under what happened.{scale}"
        )
    if guard == "none":
        return OPEN, f"**Bad steps** were not looked for: the run had no guard.{scale}"
    return GOOD, f"**No step had to be left out**: no loss or gradient was far above those before it.{scale}"


def changed_settings(events: Iterable[dict[str, Any]]) -> list[tuple[int, str, str, str]]:
    """Step, name, value before and value after of what was changed under way, and not taken back by a later resume."""
    changes: list[tuple[int, str, str, str]] = []
    for event in events:
        step = event.get("step", 0)
        if event.get("event") in ("started", "resumed"):
            changes = [change for change in changes if change[0] < step]
        elif event.get("event") == "settings changed":
            changed = event.get("changed", {}).items()
            changes += [(step, name, json.dumps(old), json.dumps(new)) for name, (old, new) in changed]
    return changes


# The sections


def _samples(run: Run) -> list[str]:
    return [
        sentence("Sampled once with these seeds, not chosen. The prompt is bold; the model wrote the rest."),
        *(sample(drawn["prompt"], drawn["text"], f"seed {drawn['seed']}") for drawn in run.samples),
    ]


def _corpus(run: Run) -> list[str]:
    counted = run.manifests["corpus"].statistics
    read, by_length = counted["read"], counted["documents_by_bytes"]
    rows = [
        (split, *(f"{counted[split][key]:,}" for key in ("documents", "bytes", "characters", "words")))
        for split in SPLITS
    ]
    commonest = max(by_length, key=lambda name: by_length[name])
    parts = [
        sentence(
            "Raw files become clean documents, each kept once; some are held out, to validate during training and to "
            f"test after it. Here {plural(read['documents'], 'document')} ({byte_size(read['bytes'])} of text) were "
            f"read from {plural(read['files'], 'file')}."
        ),
        table(["split", "documents", "bytes", "characters", "words"], rows),
        figure(
            bars(Bar(name, count, f"{count:,}") for name, count in by_length.items()),
            f"Documents by bytes of text: {by_length[commonest]:,} of {sum(by_length.values()):,} are in the fullest "
            f"class ({commonest}). Short ones teach beginnings and endings, long ones coherence.",
        ),
    ]
    if counted["dropped"]:
        parts.append(table(["dropped because", "documents"], counted["dropped"].items()))
    else:
        parts.append(sentence("Nothing was dropped."))
    if counted["left_out"]:
        parts.append(table(["files left out, by suffix", "files"], counted["left_out"].items()))
    return parts


def _tokenizer(run: Run, tokenizer: Tokenizer) -> list[str]:
    made, packed = run.manifests["tokenizer"].statistics, run.manifests["shards"].statistics
    tokens, special = tokenizer.tokens, set(tokenizer.special.values())
    ordinary = [token for i, token in enumerate(tokens) if i not in special]
    longest = sorted(ordinary, key=len, reverse=True)[:12]
    how = (
        "It starts from single bytes and joins the pair that stands side by side most often, again and again "
        "(byte-level BPE)."
        if tokenizer.merges
        else "Its pieces are taken whole: no merges."
    )
    made_of = f"256 bytes, {made['merges']:,} merges" if tokenizer.merges else f"{len(ordinary):,} pieces"
    return [
        sentence(f"A model reads numbers: the tokenizer cuts text into pieces and numbers them. {how}"),
        sentence(
            f"It has {made['vocab_size']:,} tokens: {made_of} and {made['special']} special "
            f"ones; split pattern {made['split']}. {packed['ids_never_used']:,} do not occur in the corpus."
        ),
        table(
            [],
            [
                ("first merges", _tokens([left + right for left, right in tokenizer.merges[:16]])),
                ("most used", _tokens([tokens[i] for i in packed["most_used"]])),
                ("longest", _tokens(longest)),
            ],
        ),
    ]


def _tokens(tokens: Iterable[bytes]) -> str:
    return "  ".join(token.decode("utf-8", "replace").replace(" ", "␣").replace("\n", "⏎") for token in tokens)


def _shards(run: Run, tokenizer: Tokenizer) -> list[str]:
    packed, context = run.manifests["shards"].statistics, run.manifests["model"].settings["model"]["context_length"]
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
    rows_each = packed["train"]["tokens"] / packed["train"]["documents"] / context
    filled = (
        f"A document fills {rows_each:,.1f} rows on average."
        if rows_each > 1
        else f"A row holds {1 / rows_each:,.1f} documents on average."
    )
    parts = [
        sentence(
            "All documents are written as one stream of token numbers, which training reads in rows of the context "
            f"length: {context:,} tokens here. {filled} A token never looks into another document of its row."
        ),
        table(["split", "documents", "tokens", "bytes a token", "tokens a document", "rows"], rows),
    ]
    uses = [(rank, count) for rank, count in packed.get("uses_by_rank", []) if count]
    if not uses:
        return [
            *parts,
            sentence("How often each token occurs was not recorded: packed by an older version of groundup."),
        ]
    total = sum(packed[split]["tokens"] for split in SPLITS)
    commonest = _tokens([tokenizer.tokens[packed["most_used"][0]]])
    rarest = uses[-1]
    curve = Line("", [rank for rank, _ in uses], [count for _, count in uses])
    return [
        *parts,
        figure(
            line_chart([curve], "rank of the token", "occurrences", logarithmic=True),
            f"How often tokens occur, from the commonest on: {commonest!r} is {uses[0][1] / total:.1%} of all, the "
            f"token of rank {rarest[0]:,} occurs {plural(rarest[1], 'time')}. Language falls in a nearly straight line "
            "here; a tail that drops to a few occurrences holds tokens that can hardly be learned.",
        ),
    ]


def _model(run: Run) -> list[str]:
    made = run.manifests["model"].statistics
    parameters, flops = made["parameters"], made["forward_flops_per_token"]
    rows = [
        (part, f"{parameters.get(part, 0):,}", f"{flops.get(part, 0):,}")
        for part in dict.fromkeys([*parameters, *flops])
    ]
    total = ("together", f"{sum(parameters.values()):,}", f"{sum(flops.values()):,}")
    return [
        sentence(
            "The model turns the tokens so far into a probability for each possible next one. Its parameters are the "
            "numbers that training adjusts; each token passes all layers, which is where the arithmetic goes. A tied "
            "head has no parameters of its own."
        ),
        table(["part", "parameters", "operations a token, forward"], [*rows, total]),
    ]


def _training(run: Run) -> list[str]:
    if not run.steps:
        return [sentence("The metrics of this run are gone.")]
    settings = run.manifests["model"].settings["pretrain"]
    return [
        sentence(
            "The model reads rows of training text, guesses each next token, and every step moves its parameters a "
            "little towards what came. "
            f"Here {len(run.steps):,} steps of {'up to ' if settings.get('batch_ramp') else ''}"
            f"{settings['batch_tokens']:,} tokens in {settings['precision']} on "
            f"{settings['device']}, seed {settings['seed']}."
        ),
        '<div id="training-board"></div>',
        _loss_figure(run),
        _validation_figure(run),
        _rate_figure(run),
        _gradient_figure(run, settings["clip"]),
        *_task_figures(run),
        '<div id="training-more"></div>',
        data("training-data", frozen(run.directory)),
        "<h3>The same prompt during the run</h3>",
        *_written(run),
    ]


def _loss_figure(run: Run) -> str:
    x, loss = [line["step"] for line in run.steps], [line["loss"] for line in run.steps]
    smoothed = smooth(loss, 20)
    return figure(
        line_chart(
            [Line("each step", x, loss, faint=True), Line("mean of 20", x, smoothed)], "step", "loss, nats per token"
        ),
        f"Training loss **fell from {loss[0]:.2f} to {smoothed[-1]:.2f}**. Fast at first, then ever more slowly, is as "
        "it should be. Thin: each step; thick: a running mean."
        if smoothed[-1] < loss[0]
        else f"Training loss **did not fall**: {loss[0]:.2f} at first, {smoothed[-1]:.2f} at the end.",
        "loss",
    )


def _validation_figure(run: Run) -> str:
    if not run.validations:
        return sentence("Validation was not measured.")
    first = run.validations[0]["step"]
    smoothed = smooth(run.training_bits_per_byte, 20)
    training = [(line["step"], bits) for line, bits in zip(run.steps, smoothed, strict=True) if line["step"] >= first]
    measured = [line["validation_bits_per_byte"] for line in run.validations]
    gap = measured[-1] - smoothed[-1]
    passed = (
        run.manifests["shards"].statistics["train"]["tokens"]
        / run.manifests["model"].settings["pretrain"]["batch_tokens"]
    )
    passes = (
        f" Each {passed:,.0f} steps the training text begins anew: where training drops there, it remembers."
        if passed < len(run.steps)
        else ""
    )
    return figure(
        line_chart(
            [
                Line("validation", [line["step"] for line in run.validations], measured),
                Line("training, mean of 20", [step for step, _ in training], [bits for _, bits in training], series=1),
            ],
            "step",
            "bits per byte",
        ),
        f"{by_heart(run)[1]} At the end it is {abs(gap):.2f} {'above' if gap > 0 else 'below'} training.{passes} If "
        "validation rises while training falls on, the model is learning the corpus by heart.",
        "validation_bits_per_byte",
    )


def _rate_figure(run: Run) -> str:
    x, rate = [line["step"] for line in run.steps], [line["learning_rate"] for line in run.steps]
    peak = max(range(len(rate)), key=lambda i: rate[i])
    after = (
        f"then down to {_small(rate[-1])}, so that the model can settle" if rate[-1] < rate[peak] else "and no lower"
    )
    return figure(
        line_chart([Line("", x, rate)], "step", "learning rate"),
        f"How far a step goes: up to {_small(rate[peak])} at step {x[peak]:,}, so that the beginning does no damage, "
        f"{after}.",
        "learning_rate",
    )


def _small(value: float) -> str:
    return scientific(value) if 0 < value < 0.001 else f"{value:g}"


def _gradient_figure(run: Run, clip: float | None) -> str:
    x, norm = [line["step"] for line in run.steps], [line["grad_norm"] for line in run.steps]
    highest = max(range(len(norm)), key=lambda i: norm[i])
    clipped = (
        f" {sum(value > clip for value in norm):,} of {len(norm):,} steps were clipped at {clip:g}." if clip else ""
    )
    return figure(
        line_chart([Line("", x, norm)], "step", "gradient norm"),
        f"How strongly the data pull at the parameters: mostly about {statistics.median(norm):.2g}, at most "
        f"{norm[highest]:.2g} at step {x[highest]:,}.{clipped} Spikes that do not come back down mean trouble.",
        "grad_norm",
    )


def _task_figures(run: Run) -> list[str]:
    """What was measured on a schedule, one curve for each task; of one with several numbers they share a picture."""
    drawn: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in run.metrics:
        for name, value in line.items():
            measurement = measurement_of(name)
            if measurement is not None and isinstance(value, float):
                drawn.setdefault(measurement.title, {}).setdefault(name, []).append((line["step"], value))
    return [
        figure(
            line_chart(
                [
                    Line(name.replace("_", " "), [step for step, _ in points], [value for _, value in points], series=i)
                    for i, (name, points) in enumerate(curves.items())
                ],
                "step",
                task,
            ),
            f"On the validation documents, {task}: at the end "
            + ", ".join(f"{name.replace('_', ' ')} {points[-1][1]:.3f}" for name, points in curves.items())
            + ".",
        )
        for task, curves in drawn.items()
    ]


def _written(run: Run) -> list[str]:
    samples = [line for line in run.metrics if "sample" in line]
    return [
        f"<details{' open' if number in (0, len(samples) - 1) else ''}><summary>step {line['step']:,}</summary>"
        f"<blockquote>{text(line['sample'])}</blockquote></details>"
        for number, line in enumerate(samples)
    ]


def _evaluation(run: Run) -> list[str]:
    test = run.test
    rows = [
        ("bits per byte", f"{test['bits_per_byte']:.4f}"),
        ("standard error over documents", number(test["standard_error"], ".4f")),
        ("perplexity of a token", number(test["perplexity"], ".2f")),
        ("documents", f"{test['documents']:,}"),
        ("tokens", f"{test['tokens']:,}"),
        ("bytes", f"{test['bytes']:,}"),
    ]
    parts = [
        sentence(
            "On the test documents, read once, after every choice. Bits per byte is −Σ log2 p over all tokens, "
            "the closing <|endoftext|> included, in windows of the context length that do not overlap, divided by the "
            "UTF-8 bytes of the cleaned text. It does not depend on the tokenizer, so models with different "
            "vocabularies can be compared."
        ),
        table([], rows),
    ]
    if len(run.documents) < 2:
        return parts
    each = sorted((line["bits"] / line["bytes"], line["id"]) for line in run.documents)
    (best, easy), (worst, hard) = each[0], each[-1]
    return [
        *parts,
        sentence(
            f"The easiest test document ({easy}…) needs {best:.2f} bits per byte, the hardest ({hard}…) {worst:.2f}, "
            f"the one in the middle {each[len(each) // 2][0]:.2f}."
        ),
    ]


def _chain(run: Run) -> list[str]:
    rows = [
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
    commands = dict.fromkeys(manifest.made["command"] for manifest in run.manifests.values())
    return [
        sentence(
            "Each stage names what it read by digest (sha256), so a change anywhere shows further down. "
            "groundup build checks every byte against these digests."
        ),
        table(["stage", "time", "made from", "digest", "at (UTC)", "with"], rows),
        sentence("Commands:"),
        *(f"<pre>{text(command)}</pre>" for command in commands),
    ]


def _events(run: Run) -> list[str]:
    def details(event: dict[str, Any]) -> str:
        told = {key: value for key, value in event.items() if key not in ("at", "event", "documents")}
        if "worst" in told:
            told["worst"] = "; ".join(map(_named, told["worst"]))
        changed = told.pop("changed", {})
        parts = [f"{key} {value}" for key, value in told.items()]
        return ", ".join(parts + [f"{name} {old} → {new}" for name, (old, new) in changed.items()])

    rows = [(event.get("at", ""), event.get("event", ""), details(event)) for event in run.events]
    return [
        sentence("Starts, saves, interruptions and what the guard did, as they were logged."),
        table(["at (UTC)", "event", "details"], rows),
    ]


def _named(row: dict[str, Any]) -> str:
    """One of the worst rows of a step that was left out."""
    sources = ", ".join(f"{document.get('number')} ({document.get('source')})" for document in row.get("documents", []))
    return f"row {row.get('row')} with loss {row.get('loss') or row.get('loss_was')} of documents {sources}"
