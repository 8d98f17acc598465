"""The card of an exported model, README.md: what it learned from, how, how good it is, and how to use it.

Everything is read off the manifests of the run that made it; what they do not say is said to be unknown.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from groundup.artifacts import Manifest, is_made, read_manifest
from groundup.corpus.document import SPLITS, read_batches
from groundup.export.settings import ExportSettings
from groundup.export.subject import Subject
from groundup.words import byte_size, duration, plural

LICENCES = ("licence", "license")
"""Fields of a .jsonl line that name the licence of its text."""


@dataclass(frozen=True)
class Facts:
    """What is written down about a model."""

    name: str
    made: Mapping[str, Manifest] = field(default_factory=dict)
    """Stage → its manifest, of the stages that this very model was made from or measured by."""
    licences: Mapping[str, int] = field(default_factory=dict)
    """Licence → training documents that name it."""


def read_facts(model: Path) -> Facts:
    """What the manifests beside a model directory say of it."""
    model = model.resolve()
    name = model.parent.name if model.name == "model" else model.stem if model.is_file() else model.name
    if not is_made(model):
        return Facts(name)
    own = read_manifest(model)
    there = {stage: read_manifest(model.parent / stage) for stage in ("corpus", "tokenizer", "shards", "evals")
             if is_made(model.parent / stage)}  # fmt: skip
    made = {stage: there[stage] for stage in ("shards", "tokenizer") if _is_input(stage, there, own)}
    if "shards" in made and _is_input("corpus", there, made["shards"]):
        made["corpus"] = there["corpus"]
    if "evals" in there and there["evals"].inputs.get("model") == own.digest:
        made["evals"] = there["evals"]
    licences: Counter[str] = Counter()
    if "corpus" in made:
        for batch in read_batches(model.parent / "corpus" / "train.parquet", ["metadata"]):
            fields = map(json.loads, batch.column("metadata").to_pylist())
            licences.update(next((str(each[name]) for name in LICENCES if each.get(name)), "") for each in fields)
    return Facts(name, {"model": own, **made}, dict(licences.most_common()))


def _is_input(stage: str, there: Mapping[str, Manifest], of: Manifest) -> bool:
    return stage in there and of.inputs.get(stage) == there[stage].digest


def write_card(subject: Subject, facts: Facts, form: str, settings: ExportSettings) -> str:
    """The text of README.md, with the header that the Hugging Face hub reads."""
    head = ["---", *([f"license: {settings.licence}"] if settings.licence else []), "pipeline_tag: text-generation"]
    head += ["library_name: transformers"] if form == "huggingface" else []
    sections = {
        "Use": _use(subject, form, settings),
        "Data": _data(facts),
        "Tokenizer": _tokenizer(subject),
        "Training": _training(facts),
        "Evaluation": _evaluation(facts),
        "Licence": [f"{settings.licence}." if settings.licence else "Not stated: ask whoever gave you this model."],
        "Origin": _origin(subject, facts),
    }
    parts = [*head, "tags: [groundup]", "---", "", f"# {facts.name}", "", *_what(subject)]
    for title, lines in sections.items():
        parts += ["", f"## {title}", "", *lines]
    return "\n".join(parts) + "\n"


def _what(subject: Subject) -> Iterator[str]:
    config = subject.config
    parameters = sum(weight.numel() for weight in subject.weights.values())
    yield (
        f"A language model of {parameters:,} parameters: {plural(config.n_layers, 'layer')} of width {config.d_model:,}"
        f", a vocabulary of {config.vocab_size:,} rows, a context of {config.context_length:,} tokens."
    )
    taught = "answers in turns" if subject.chat else "continues text, and was not taught to answer"
    yield f"It {taught}. It was built with groundup."


def _use(subject: Subject, form: str, settings: ExportSettings) -> Iterator[str]:
    opener = subject.tokenizer.roles.opener
    prompt = ("" if opener is None else subject.tokenizer.tokens[opener].decode()) + "Once upon a time"
    match form:
        case "huggingface":
            inputs = f'tokenizer({prompt!r}, return_tensors="pt", add_special_tokens=False)'
            if subject.chat:
                said = '[{"role": "user", "content": "Hello!"}]'
                inputs = (
                    f'tokenizer.apply_chat_template({said}, add_generation_prompt=True, return_tensors="pt", '
                    "return_dict=True)"
                )
            yield from (
                "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
                'model = AutoModelForCausalLM.from_pretrained(".")', 'tokenizer = AutoTokenizer.from_pretrained(".")',
                f"ids = {inputs}", "print(tokenizer.decode(model.generate(**ids)[0]))", "```",
            )  # fmt: skip
        case "gguf":
            yield "With llama.cpp and what stands on it: `llama-cli -m model.gguf -p 'Once upon a time'`."
            if settings.quantize:
                yield f"Its weights are quantized ({settings.quantize})."
        case _:
            yield (
                "With onnxruntime: `tokens`, int64 ids of shape (rows, positions), in; `logits`, float32 scores of "
                f"shape (rows, positions, {subject.config.vocab_size:,}), out. A text begins with the id {opener}."
            )


def _data(facts: Facts) -> Iterator[str]:
    if "corpus" not in facts.made:
        yield "What it learned from is not recorded beside it."
        return
    corpus = facts.made["corpus"]
    counts = (f"{split} {plural(of['documents'], 'document')}, {byte_size(of['bytes'])}"
              for split in SPLITS for of in [corpus.statistics[split]])  # fmt: skip
    yield f"Cleaned text, by split: {'; '.join(counts)}. The test documents were never trained on."
    sources = [f"`{name}` (sha256 {digest[:12]}…)" for name, digest in corpus.inputs.items()]
    more = f" and {len(sources) - 10:,} more" if len(sources) > 10 else ""
    yield f"Read from {', '.join(sources[:10])}{more}."
    named = [f"{licence or 'not named'} ({plural(number, 'document')})" for licence, number in facts.licences.items()]
    if {*facts.licences} <= {""}:
        yield "The licences of the texts are not recorded."
    else:
        yield f"Licences of the training documents, as they name them: {'; '.join(named[:10])}."


def _tokenizer(subject: Subject) -> Iterator[str]:
    tokenizer = subject.tokenizer
    yield (
        f"{tokenizer.vocab_size:,} ids, of which {len(tokenizer.special):,} are special; text is split as `"
        f"{tokenizer.pattern}` does. Digest {tokenizer.digest[:12]}…."
    )


def _training(facts: Facts) -> Iterator[str]:
    model = facts.made.get("model")
    statistics = model.statistics if model else {}
    if model is None or "tokens" not in statistics:
        yield "How it was trained is not recorded beside it."
        return
    flops = statistics.get("training_flops")
    cost = f", {flops:.3g} floating-point operations" if flops else ""
    yield f"{statistics['tokens']:,} tokens in {plural(statistics['steps'], 'step')}{cost}."
    settings = model.settings.get("pretrain", {})
    if settings:
        how = ", ".join(settings[name]["kind"] for name in ("optimizer", "schedule", "precision") if name in settings)
        yield f"Batches of {settings['batch_tokens']:,} tokens; {how}; seed {settings['seed']}."
    if model.made.get("machine"):
        yield f"On {model.made['machine']}, in {duration(model.made.get('seconds', 0.0))}."


def _evaluation(facts: Facts) -> Iterator[str]:
    if "evals" not in facts.made:
        yield "No score of this model is recorded beside it."
        return
    test = facts.made["evals"].statistics["test"]
    error = "" if test["standard_error"] is None else f" ± {test['standard_error']:.4f} (one standard error)"
    yield (
        f"{test['bits_per_byte']:.4f}{error} bits per byte on {plural(test['documents'], 'document')} of its corpus "
        f"that it never saw ({plural(test['tokens'], 'token')}, {plural(test['bytes'], 'byte')})."
    )
    for name, value in test.get("baselines", {}).items():
        yield f"For comparison, {name}: {value:.4f} bits per byte."


def _origin(subject: Subject, facts: Facts) -> Iterator[str]:
    model = facts.made.get("model")
    if model is None:
        yield f"Read from `{subject.directory.name}`, which is no directory of groundup's and has no manifest."
        return
    yield f"Digest of the model {model.digest}; groundup {model.made.get('code', '?')}, {model.made.get('at', '?')}."
    for name, digest in model.inputs.items():
        yield f"Made from {name} {digest[:12]}…."
