"""The report of a run: one HTML file that needs nothing else.

It answers in this order: what is it, how good is it, what did it cost, can I trust it; then each stage in turn.
"""

import html
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from groundup.corpus.document import SPLITS
from groundup.files import Manifest, read_lines, read_manifest, verify, write_text
from groundup.report.charts import Line, bar_chart, line_chart, smooth
from groundup.tokenizer.tokenizer import Tokenizer

STAGES = {"corpus": "corpus", "tokenizer": "tokenizer", "shards": "pack", "model": "pretrain", "evals": "eval"}
"""Directory of each stage → its command."""


def write_report(run: Path, digest: str) -> bool:
    """Write `run/report.html`, unless it carries this digest of what it shows. Returns whether it wrote."""
    target = run / "report.html"
    mark = f"<!-- shows {digest} -->"
    if target.is_file() and mark in target.read_text(encoding="utf-8")[:400]:
        return False
    manifests = {name: read_manifest(run / name, name) for name in STAGES}
    verify(run / "evals")
    body = "\n".join(
        [
            _head(run, manifests),
            _chain(manifests),
            _samples(json.loads((run / "evals" / "samples.json").read_text())),
            _training(read_lines(run / "pretrain" / "metrics.jsonl"), manifests["model"]),
            _evaluation(manifests["evals"]),
            _corpus(manifests["corpus"]),
            _tokenizer(manifests["tokenizer"], manifests["shards"], Tokenizer.load(run / "tokenizer")),
            _model(manifests["model"]),
            _events(read_lines(run / "pretrain" / "events.jsonl")),
            _recipe((run / "recipe.toml").read_text(encoding="utf-8")),
        ]
    )
    style = (resources.files("groundup.report") / "style.css").read_text(encoding="utf-8")
    write_text(
        target,
        f'<!doctype html>\n{mark}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(run.name)}: groundup</title>"
        f"<style>{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n",
    )
    return True


def _text(value: object) -> str:
    return html.escape(str(value))


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{''.join(parts)}</section>"


def _sentence(text: str) -> str:
    return f"<p>{_text(text)}</p>"


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{_text(caption)}</figcaption></figure>"


def duration(seconds: float) -> str:
    """
    >>> duration(3.21), duration(421), duration(7300)
    ('3.2 s', '7 min 1 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _head(run: Path, manifests: Mapping[str, Manifest]) -> str:
    model, test = manifests["model"].statistics, manifests["evals"].statistics["test"]
    parameters = sum(model["parameters"].values())
    documents = sum(manifests["corpus"].statistics[split]["documents"] for split in SPLITS)
    size = sum(manifests["corpus"].statistics[split]["bytes"] for split in SPLITS)
    train = manifests["shards"].statistics["train"]["tokens"]
    seconds = sum(manifest.made["seconds"] for manifest in manifests.values())
    error = f" ± {test['standard_error']:.3f}" if test["standard_error"] is not None else ""
    cards = {
        "bits per byte on unseen documents": f"{test['bits_per_byte']:.3f}{error}",
        "perplexity of a token": _number(test["perplexity"], ".1f"),
        "parameters": f"{parameters:,}",
        "tokens trained on": f"{model['tokens']:,} ({model['tokens'] / train:.1f} × the corpus)",
        "time for everything": duration(seconds),
        "arithmetic of training": f"{model['training_flops']:.2e} FLOP",
    }
    drawn = "".join(f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for name, value in cards.items())
    return (
        f"<header><h1>{_text(run.name)}</h1>"
        + _sentence(
            f"A language model of {parameters / 1e6:.1f} million parameters, built from {documents:,} documents "
            f"({size / 1e6:.1f} MB of text) on {manifests['model'].made['machine']}. It continues text; it was not "
            "taught to converse."
        )
        + f'<div class="cards">{drawn}</div></header>'
    )


def _chain(manifests: Mapping[str, Manifest]) -> str:
    rows = [
        (
            STAGES[name],
            duration(manifest.made["seconds"]),
            ", ".join(f"{key} {digest[:8]}" for key, digest in manifest.inputs.items()) or "–",
            manifest.digest[:12],
            manifest.made["at"].replace("T", " ")[:16],
            f"groundup {manifest.made['code']}"
            + (f", torch {manifest.made['torch']}" if manifest.made["torch"] else ""),
        )
        for name, manifest in manifests.items()
    ]
    commands = dict.fromkeys(manifest.made["command"] for manifest in manifests.values())
    return _section(
        "What was built from what",
        _sentence(
            "Each stage names what it read by digest (sha256), so a change anywhere shows further down. "
            "groundup build checks every byte against these digests."
        ),
        _table(["stage", "time", "made from", "digest", "at (UTC)", "with"], rows),
        _sentence("Commands:"),
        "".join(f"<pre>{_text(command)}</pre>" for command in commands),
    )


def _samples(samples: list[dict[str, Any]]) -> str:
    parts = [
        f"<blockquote><b>{_text(sample['prompt'])}</b>{_text(sample['text'])} <small>seed {sample['seed']}</small>"
        "</blockquote>"
        for sample in samples
    ]
    return _section(
        "What it writes",
        _sentence("Sampled once with these seeds, not chosen. The prompt is bold."),
        *parts,
    )


def _training(lines: list[dict[str, Any]], model: Manifest) -> str:
    steps = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation_bits_per_byte" in line]
    samples = [line for line in lines if "sample" in line]
    if not steps:
        return _section("Training", _sentence("The metrics of this run are gone."))
    x = [line["step"] for line in steps]
    loss = [line["loss"] for line in steps]
    settings = model.settings["pretrain"]
    seconds = steps[-1]["seconds"]
    parts = [
        _sentence(
            f"{len(steps):,} steps of {settings['batch_tokens']:,} tokens in {settings['precision']} on "
            f"{settings['device']}, seed {settings['seed']}; {model.statistics['tokens'] / seconds:,.0f} tokens/s, "
            f"{model.statistics['training_flops'] / seconds / 1e9:,.0f} GFLOP/s."
        ),
        _figure(
            line_chart(
                [Line("each step", x, loss, faint=True), Line("mean of 20", x, smooth(loss, 20))],
                "step",
                "loss, nats per token",
            ),
            "Training loss should fall fast, then ever more slowly. Thin: each step; thick: the mean of the last 20.",
        ),
        _figure(
            line_chart(
                [
                    Line(
                        "validation",
                        [line["step"] for line in validations],
                        [line["validation_bits_per_byte"] for line in validations],
                    )
                ],
                "step",
                "bits per byte",
            ),
            "On validation documents, which are never trained on. If this rises while the training loss falls, the "
            "model is learning the corpus by heart.",
        ),
        _figure(
            line_chart([Line("", x, [line["learning_rate"] for line in steps])], "step", "learning rate"),
            "Warm-up, then half a cosine down.",
        ),
        _figure(
            line_chart([Line("", x, [line["grad_norm"] for line in steps])], "step", "gradient norm"),
            f"Before clipping at {settings['clip']}. Spikes that do not come back down mean trouble.",
        ),
    ]
    written = "".join(
        f"<details{' open' if number in (0, len(samples) - 1) else ''}><summary>step {sample['step']:,}</summary>"
        f"<blockquote>{_text(sample['sample'])}</blockquote></details>"
        for number, sample in enumerate(samples)
    )
    return _section("Training", *parts, "<h3>The same prompt during the run</h3>", written)


def _evaluation(evals: Manifest) -> str:
    test = evals.statistics["test"]
    rows = [
        ("bits per byte", f"{test['bits_per_byte']:.4f}"),
        ("standard error over documents", _number(test["standard_error"], ".4f")),
        ("perplexity of a token", _number(test["perplexity"], ".2f")),
        ("documents", f"{test['documents']:,}"),
        ("tokens", f"{test['tokens']:,}"),
        ("bytes", f"{test['bytes']:,}"),
    ]
    return _section(
        "Evaluation",
        _sentence(
            "On the test documents, read once, after every choice. Bits per byte is −Σ log2 p over all tokens, "
            "the closing <|endoftext|> included, in windows of the context length that do not overlap, divided by the "
            "UTF-8 bytes of the cleaned text. It does not depend on the tokenizer, so models with different "
            "vocabularies can be compared."
        ),
        _table(["", ""], rows),
    )


def _corpus(corpus: Manifest) -> str:
    statistics = corpus.statistics
    rows = [
        (split, *(f"{statistics[split][key]:,}" for key in ("documents", "bytes", "characters", "words")))
        for split in SPLITS
    ]
    read = statistics["read"]
    parts = [
        _sentence(
            f"{read['documents']:,} documents read from {read['files']:,} files, {read['bytes']:,} bytes of text."
        ),
        _table(["split", "documents", "bytes", "characters", "words"], rows),
        _figure(
            bar_chart(statistics["documents_by_bytes"], "documents by length"),
            "Documents kept, by bytes of text. Short ones teach beginnings and endings, long ones coherence.",
        ),
    ]
    if statistics["dropped"]:
        parts.append(_table(["dropped because", "documents"], statistics["dropped"].items()))
    else:
        parts.append(_sentence("Nothing was dropped."))
    if statistics["left_out"]:
        parts.append(_table(["files left out, by suffix", "files"], statistics["left_out"].items()))
    return _section("Corpus", *parts)


def _tokenizer(made: Manifest, shards: Manifest, tokenizer: Tokenizer) -> str:
    statistics, packed = made.statistics, shards.statistics
    rows = [
        (split, f"{packed[split]['tokens']:,}", f"{packed[split]['bytes'] / packed[split]['tokens']:.2f}")
        for split in SPLITS
    ]
    tokens, special = tokenizer.tokens, set(tokenizer.special.values())
    ordinary = [token for i, token in enumerate(tokens) if i not in special]
    longest = sorted(ordinary, key=len, reverse=True)[:12]
    return _section(
        "Tokenizer",
        _sentence(
            f"Byte-level BPE: {statistics['vocab_size']:,} ids, of them 256 bytes, {statistics['merges']:,} merges and "
            f"{statistics['special']} special tokens; split pattern {statistics['split']}. "
            f"{packed['ids_never_used']:,} ids do not occur in the corpus."
        ),
        _table(["split", "tokens", "bytes per token"], rows),
        _table(
            ["", "tokens"],
            [
                ("first merges", _tokens([left + right for left, right in tokenizer.merges[:16]])),
                ("most used", _tokens([tokens[i] for i in packed["most_used"]])),
                ("longest", _tokens(longest)),
            ],
        ),
    )


def _tokens(tokens: Iterable[bytes]) -> str:
    return "  ".join(token.decode("utf-8", "replace").replace(" ", "␣").replace("\n", "⏎") for token in tokens)


def _model(model: Manifest) -> str:
    parameters, flops = model.statistics["parameters"], model.statistics["forward_flops_per_token"]
    rows = [
        (part, f"{parameters.get(part, 0):,}", f"{flops.get(part, 0):,}")
        for part in dict.fromkeys([*parameters, *flops])
    ]
    total = ("together", f"{sum(parameters.values()):,}", f"{sum(flops.values()):,}")
    return _section(
        "Model",
        _sentence("Where the parameters are, and where the arithmetic goes. A tied head has no parameters of its own."),
        _table(["part", "parameters", "forward FLOPs per token"], [*rows, total]),
    )


def _events(events: list[dict[str, Any]]) -> str:
    rows = [
        (
            event.get("at", ""),
            event.get("event", ""),
            ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("at", "event")),
        )
        for event in events
    ]
    return _section("What happened during training", _table(["at", "event", ""], rows))


def _recipe(recipe: str) -> str:
    return _section(
        "Recipe",
        _sentence("With every setting as it ran. Beside the same sources, it builds this model again."),
        f"<pre>{_text(recipe)}</pre>",
    )
