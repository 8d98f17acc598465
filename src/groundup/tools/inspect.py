"""Inspect a file or a directory: what it is, what made it, from what, whether it is whole, and what to do next.

Everything is read without torch: of weights the headers, of pickles only the name.
"""

import json
import math
import shlex
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.artifacts import COMMANDS, Manifest, damage, is_made, lock_note, read_manifest
from groundup.corpus.document import SPLITS
from groundup.corpus.settings import path_of
from groundup.corpus.sources import find, is_readable
from groundup.errors import DamagedError, DataError, GroundupError, SettingsError
from groundup.files import PICKLES, Progress, no_progress, require_path
from groundup.model.settings import ModelConfig
from groundup.recipe import Recipe
from groundup.shards import open_split
from groundup.tensor_files import is_gguf, read_safetensors
from groundup.tokenizer.settings import Existing
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights import llama2c
from groundup.weights.files import (
    config_of,
    config_table,
    layout_of,
    not_finite_weights,
    pickles_in,
    tokenizer_of,
    weight_files,
)
from groundup.words import plural

KNOWN = (
    "runs, corpora, tokenizers, shards, models, checkpoints and evaluations of groundup, recipes (.toml), Hugging Face "
    "model directories, .safetensors, tokenizer.json, tokenizer.model, GPT-2's encoder.json with vocab.bpe, "
    "*.tiktoken, GGUF files, llama2.c's .bin"
)
Facts = Mapping[str, Any]
"""JSON values, in the order of a first reader's questions."""


@dataclass
class Findings:
    """The facts about one path."""

    path: Path
    what: str
    facts: dict[str, Any] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    """Commands."""

    @contextmanager
    def noting_errors(self, fact: str = "") -> Iterator[None]:
        """Note an error of reading as damage; one about what is whole, but of no use here, as this `fact`."""
        try:
            yield
        except GroundupError as error:
            if fact and not isinstance(error, (DamagedError, SettingsError)):
                self.facts[fact] = str(error)
            else:
                self.damage.append(str(error))
        except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:  # well-formed, but wrong
            self.damage.append(f"what is written in {self.path} is not as it should be: {error!r}")

    def add_part(self, path: Path, progress: Progress) -> "Findings":
        """Inspect a directory below this one; its damage is this one's."""
        part = inspect(path, progress)
        self.damage += [f"{path.relative_to(self.path)}: {why}" for why in part.damage]
        return part

    @property
    def summary(self) -> str:
        is_stale = any(ANOTHER in text for text in self.facts.get("inputs", {}).values())
        parts = [
            "damaged" if self.damage else "whole",
            "made from what is no longer there" if is_stale else "",
            f"step {self.facts['step']}" if "step" in self.facts else "",
            self.facts.get("made", ""),
            self.facts.get("digest", "")[:12],
        ]
        return ", ".join(filter(None, parts))

    def refuse_damage(self) -> None:
        """
        Raises:
            DataError: naming all damage, and what to do.
        """
        if self.damage:
            then = f"\nTry next: {self.next[0]}" if self.next else ""
            raise DataError("\n  ".join([f"{self.path} is not whole:", *self.damage]) + then)


def inspect(path: Path, progress: Progress = no_progress) -> Findings:
    """Inspect what is at `path`. A file of an artifact, a model or a training stands for the whole.

    Raises:
        DataError: nothing is there, or nothing that is known here.
    """
    require_path(path, "file or folder")
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{path} is empty")
    try:
        path = _whole_of(path)
        for recognises, what, describe in FOLDERS if path.is_dir() else FILES if path.is_file() else ():
            if recognises(path):
                findings = Findings(path, what)
                describe(findings, progress)
                return findings
        raise DataError(f"{path} is {_unknown(path)}. Known here: {KNOWN}")
    except PermissionError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from None


def _whole_of(path: Path) -> Path:
    """The directory that a part of an artifact, a model or a run's training stands for; else the path itself."""
    if path.is_file() and (is_made(path.parent) or path.name == "config.json" or _is_training(path.parent)):
        path = path.parent
    return path.parent if _is_training(path) else path


def _is_training(path: Path) -> bool:
    return path.name == "pretrain" and _is_run(path.parent)


def _unknown(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not files:
        return "an empty folder" if path.is_dir() else "a pipe, socket or device"
    what = f"a folder of {plural(len(files), 'file')}"
    if path.is_file():
        what = f"a file of {plural(path.stat().st_size, 'byte')}"
    if any(map(is_readable, files)):
        what += "; to learn from its text, name it in a recipe: [corpus] sources = [...]"
    return what


def _command(*words: object) -> str:
    return f"groundup {shlex.join(map(str, words))}"


# --- runs and artifacts ---


def _describe_run(findings: Findings, progress: Progress) -> None:
    run, facts = findings.path, findings.facts
    missing = _missing_stages(run)
    note, is_held = lock_note(run)
    findings.what = "a run that is not finished" if missing else "a finished run"
    if is_held:
        findings.what += f", at work now: {note}"
    elif note:
        facts["lock"] = f"left by {note}, which ended without taking it away, as a killed process does; it is free"
    facts["stages"] = {}
    for stage, command in COMMANDS.items():
        part = None if command in missing else findings.add_part(run / stage, progress)
        facts["stages"][command] = part.summary if part else "not made yet"
        facts |= {name: part.facts[name] for name in ("parameters", "bits_per_byte") if part and name in part.facts}
    if is_made(run / "export"):
        facts["stages"]["export"] = findings.add_part(run / "export", progress).summary
    replace = " --replace" if findings.damage else ""  # a damaged checkpoint needs none: the one before is taken
    for step in _steps(run / "pretrain" / "checkpoints")[-1:]:
        facts["newest_checkpoint"] = f"{step.name}, {findings.add_part(step, progress).summary}"
    facts["report"] = str(run / "report.html") if (run / "report.html").is_file() else "not written yet"
    with findings.noting_errors():
        facts |= _recipe_facts(Recipe.load(run / "recipe.toml"))
    if is_held:
        findings.next = ["wait for it to end"]
    elif missing or findings.damage:
        findings.next = [_go_on(run) + replace]
    else:
        findings.next = [*_uses_of(run, [_command("chat", run)]), _command("report", run)]


def _uses_of(model: Path, others: Iterable[str] = ()) -> list[str]:
    """Commands for a whole model with its tokenizer."""
    return [_command("generate", model, "Once upon a time"), *others, _command("eval", model, "FILE")]


def _missing_stages(run: Path) -> list[str]:
    return [command for stage, command in COMMANDS.items() if not is_made(run / stage)]


def _go_on(run: Path) -> str:
    """The command that goes on with a run: with its own copy of the recipe, if that finds the sources from here; else
    with the recipe that it was begun with."""
    copy = run / "recipe.toml"
    with suppress(GroundupError):
        corpus = Recipe.load(copy).corpus
        if is_made(run / "corpus") or find(corpus, run):  # a corpus that is made needs its sources no more
            return _command("build", copy, "--run", run)
    return _command("build", "RECIPE", "--run", run)


def _describe_runs(findings: Findings, progress: Progress) -> None:
    """The digests are not compared here, which would take long for many."""
    runs = _runs_in(findings.path)
    findings.what += f": {len(runs):,}"
    states = {}
    for run in runs:
        missing = _missing_stages(run)
        state = f"not finished, without {', '.join(missing)}" if missing else "finished"
        states[run.name] = "at work now" if lock_note(run)[1] else state
    findings.facts["runs"] = states
    findings.next = [_command("inspect", runs[0])]


def _describe_artifact(findings: Findings, progress: Progress) -> None:
    path = findings.path
    try:
        manifest = read_manifest(path)
    except DataError as error:
        findings.damage.append(str(error))
        findings.facts["files"] = sorted(file.name for file in path.iterdir())
        return
    findings.what = ARTIFACTS.get(manifest.kind, f"an artifact of kind {manifest.kind!r}")
    findings.facts |= _origin(path, manifest)
    findings.damage += damage(path, manifest, progress=progress)
    count = f"{plural(len(manifest.files), 'file')}, {sum(size for size, _ in manifest.files.values()):,} bytes"
    state = "damaged, see below" if findings.damage else "every byte is as it was written"
    findings.facts["files"] = f"{count}; {state}"
    with findings.noting_errors():
        findings.facts |= _artifact_facts(path, manifest)
    is_checkpoint = manifest.kind == "checkpoint"
    run = path.parents[2] if is_checkpoint and len(path.parents) > 2 else path.parent
    match manifest.kind:
        case _ if findings.damage:
            findings.next = [_go_on(run) + ("" if is_checkpoint else " --replace")]  # the checkpoint before is taken
        case "corpus" | "shards" | "checkpoint":
            findings.next = [_go_on(run)]
        case "tokenizer":
            findings.next = [_as_existing(path)]
        case "model":
            findings.next = _uses_of(path)
        case "evals":
            findings.next = [_command("report", run)]
        case "export" if (path / "config.json").is_file():
            findings.next = _uses_of(path)


def _origin(path: Path, manifest: Manifest) -> Facts:
    made, names = manifest.made, list(manifest.inputs)
    versions = [f"{name} {made[name]}" for name in ("torch", "python") if made.get(name)]
    more = {"…": f"{len(names) - 5:,} more"} if len(names) > 5 else {}
    return {
        "made": f"{made.get('at', 'at an unknown time')} in {made.get('seconds', 0):,.1f} s",
        "by": ", ".join([f"groundup {made.get('code', '?')}", *versions]),
        "on": made.get("machine", "an unknown machine"),
        "command": made.get("command", "unknown"),
        "digest": manifest.digest,
        "inputs": {name: _input_state(path, name, manifest.inputs[name]) for name in names[:5]} | more,
    }


ANOTHER = "but another stands there now"


def _input_state(path: Path, name: str, digest: str) -> str:
    """Whether what stands beside an artifact is what it was made from; a checkpoint stands deeper in its run."""
    beside = next((run / name for run in path.parents[:3] if is_made(run / name)), None)
    if beside is None:
        return digest[:12]
    with suppress(DataError):
        if read_manifest(beside).digest == digest:
            return f"{digest[:12]}, which stands there"
    return f"{digest[:12]}, {ANOTHER}"


def _artifact_facts(path: Path, manifest: Manifest) -> Facts:
    """What was counted as it was made, and what its files hold."""
    facts = {name: value for name, value in manifest.statistics.items() if not isinstance(value, list)}
    match manifest.kind:
        case "tokenizer":
            facts |= _tokenizer_facts(Tokenizer.load(path))
        case "shards":
            for split in SPLITS:
                open_split(path, split, facts["vocab_size"])  # every id is below it
        case "model":
            config = config_of(path)
            facts |= {**_config_facts(config), **_tensor_facts([path / "model.safetensors"], "parameters")}
            facts |= _made_of_others(manifest)
        case "checkpoint":
            steps = manifest.settings.get("pretrain", {}).get("steps", 0)
            facts |= {"step": f"{facts['step']:,} of {steps:,}", **_tensor_facts(sorted(path.glob("*.safetensors")))}
        case "evals":
            facts |= facts.pop("test")
        case "export":
            facts["read_back"] = {form: each["words"] for form, each in facts["read_back"].items()}
    return facts


def _made_of_others(manifest: Manifest) -> Facts:
    """The models that a model was made of without training."""
    match manifest.settings:
        case {"extend": {"added": added, "special": special}}:
            new = [*added, *special]
            first = ", ".join(json.dumps(text, ensure_ascii=False) for text in new[:5])
            more = f" and {len(new) - 5:,} more" if len(new) > 5 else ""
            return {"extended": f"from the model {manifest.inputs['base'][:12]}, by {first}{more}; not trained since"}
        case {"import": {"source": source}}:
            return {"imported": f"from {source}, {manifest.inputs['source'][:12]}"}
        case {"average": _}:
            names = [Path(name).name for name in manifest.inputs if name != "tokenizer"]
            return {"averaged": f"the mean of the weights of {', '.join(names)}"}
    return {}


def _describe_checkpoints(findings: Findings, progress: Progress) -> None:
    steps = _steps(findings.path)
    findings.what += f": {len(steps)}"
    findings.facts["checkpoints"] = {step.name: findings.add_part(step, progress).summary for step in steps}
    if refused := sorted(other.name for other in findings.path.glob("*.refused")):
        findings.facts["passed_over"] = refused
    findings.next = [_command("inspect", steps[-1])]


def _steps(checkpoints: Path) -> list[Path]:
    return sorted(step for step in checkpoints.glob("step-*") if step.name.removeprefix("step-").isdigit())


def _describe_recipe(findings: Findings, progress: Progress) -> None:
    recipe = Recipe.load(findings.path)  # its own errors name the line
    findings.facts |= _recipe_facts(recipe)
    try:
        files = find(recipe.corpus, findings.path.parent).files
        size = sum(file.stat().st_size for _, file in files)
        findings.facts["sources"] = (
            f"{', '.join(map(path_of, recipe.corpus.sources))}: {plural(len(files), 'file')}, {size:,} bytes"
        )
    except DataError as error:
        findings.facts["sources"] = str(error)
    findings.next = [_command("build", findings.path)]


# --- models, tokenizers and files of any origin ---


def _describe_hugging_face(findings: Findings, progress: Progress) -> None:
    path, facts = findings.path, findings.facts
    config, tokenizer = None, None
    files: list[Path] = []
    with findings.noting_errors("architecture"):
        facts["model_type"] = config_table(path).get("model_type")
        config = config_of(path)
        facts |= {"architecture": "known here", **_config_facts(config)}
    with findings.noting_errors("weights"):
        if files := weight_files(path):
            facts |= _tensor_facts(files, "parameters")
        else:
            pickles = [f"only in {pickle.name}, a pickle, {HARM}" for pickle in pickles_in(path)] or ["none"]
            facts["weights"] = f"{pickles[0]}; ask for model.safetensors"
        if files and config and not findings.damage:
            findings.damage += [f"{name} holds NaN or Inf" for name in not_finite_weights(path)]
    facts["tokenizer"] = "none"
    with findings.noting_errors("tokenizer"):
        if tokenizer := tokenizer_of(path, config or ModelConfig()):
            facts["tokenizer"] = _tokenizer_facts(tokenizer)
    if files and config and not findings.damage:
        uses = _uses_of(path) if tokenizer else [_in_python(path)]
        findings.next = uses if tokenizer is None or tokenizer.roles.opener is not None else uses[:1]


def _in_python(path: Path) -> str:
    return f'in Python: model, _ = groundup.load("{path}")'


def _as_existing(path: Path) -> str:
    return f'in a recipe: tokenizer = {{ kind = "existing", path = "{path}" }}'


def _describe_tokenizer(findings: Findings, progress: Progress) -> None:
    place = findings.path.parent if findings.path.name in GPT2_FILES else findings.path
    with findings.noting_errors():
        findings.facts |= _tokenizer_facts(Tokenizer.load(place))
        if findings.facts["opens_a_text"] != "nothing":
            findings.next = [_as_existing(place)]


def _describe_safetensors(findings: Findings, progress: Progress) -> None:
    path = findings.path
    with findings.noting_errors():
        findings.facts |= _tensor_facts([path], first=5)
    if (path.parent / "config.json").is_file():
        findings.next = [_command("inspect", path.parent)]


def _describe_model_file(findings: Findings, progress: Progress) -> None:
    path, facts, tokenizer = findings.path, findings.facts, None
    with findings.noting_errors("architecture"):
        config = config_of(path)
        facts |= {"architecture": "known here", **_config_facts(config), "parameters": config.parameters}
        facts["tokenizer"] = "none"
        with findings.noting_errors("tokenizer"):
            if tokenizer := tokenizer_of(path, config):
                facts["tokenizer"] = _tokenizer_facts(tokenizer)
        facts["chat"] = layout_of(path, tokenizer)["layout"] if tokenizer else "none"
        findings.next = [_command("import", path), *_uses_of(path)] if tokenizer else [_in_python(path)]


def _describe_pickle(findings: Findings, progress: Progress) -> None:
    findings.facts["bytes"] = findings.path.stat().st_size
    if findings.path.suffix == ".bin":
        findings.facts["or"] = "a file of llama2.c that is not whole: its length is not what its header says"
    findings.next = ["ask whoever made it for safetensors"]


# --- facts that several of them share ---


def _recipe_facts(recipe: Recipe) -> Facts:
    tokenizer, pretrain = recipe.tokenizer, recipe.pretrain
    context = recipe.model.context_length
    tokens = pretrain.tokens(context)
    up_to = "" if pretrain.batch_ramp is None else "up to "
    if isinstance(tokenizer, Existing):
        ids = f"taken from {tokenizer.path}"
    else:
        ids = f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids"
    return {
        "name": recipe.name,
        "tokenizer": ids,
        **_config_facts(recipe.model),
        "training": f"{pretrain.steps:,} steps of {up_to}{pretrain.batch_tokens:,} tokens: {tokens:,}",
    }


def _config_facts(config: ModelConfig) -> Facts:
    names = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff")
    sizes = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    parts = ("position", "norm", "attention", "feedforward", "block", "head")
    return {"sizes": sizes, "blocks": ", ".join(getattr(config, part).kind for part in parts)}


def _tensor_facts(files: Iterable[Path], numbers: str = "numbers", first: int = 0) -> Facts:
    """Read off the headers; the tensors themselves are not read.

    Args:
        numbers: what the numbers in them are called.
        first: how many tensors are named.

    Raises:
        DamagedError: a file that is missing or not whole.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    count = 0
    for file in files:
        try:
            for name, part in read_safetensors(file).items():
                shapes[name], types[name] = part.shape, part.type
                count += math.prod(part.shape)  # of a checkpoint of many ranks, a tensor may lie in many files
        except FileNotFoundError:
            raise DamagedError(f"{file.name} is missing") from None
    return {
        "tensors": len(shapes),
        numbers: count,
        "types": ", ".join(f"{tensors} × {name}" for name, tensors in Counter(types.values()).items()),
        **({"first": {name: str(list(shape)) for name, shape in list(shapes.items())[:first]}} if first else {}),
    }


def _tokenizer_facts(tokenizer: Tokenizer) -> Facts:
    roles = tokenizer.roles

    def spelled(i: int | None) -> str:
        return "nothing" if i is None else tokenizer.spelled(i) if i < tokenizer.vocab_size else f"id {i:,}"

    longer = " ".join(token.decode("utf-8", "replace").strip() for token in tokenizer.tokens[256:] if len(token) > 3)
    return {
        "vocab_size": tokenizer.vocab_size,
        "merges": len(tokenizer.merges),
        "special": [*tokenizer.special][:3],
        "opens_a_text": spelled(roles.opener),
        "closes_it": spelled(roles.closer),
        "ends_an_answer": [spelled(i) for i in sorted(roles.stops)],
        "split": tokenizer.pattern,
        "first_longer_tokens": " ".join(longer.split()[:8]),
    }


# --- how each is recognised ---


def _has_tokenizer(path: Path) -> bool:
    return any((path / name).is_file() for name in TOKENIZER_FILES)


def _is_run(path: Path) -> bool:
    begun = (path / "lock").is_file() or any(is_made(path / stage) for stage in COMMANDS)
    return begun and not is_made(path)


def _runs_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and _is_run(path)]


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as stream:
        begins = stream.read(2)
    if begins == b"PK" and zipfile.is_zipfile(path):  # torch.save packs its pickle so
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    return path.suffix.lower() in PICKLES or (begins[:1] == b"\x80" and begins[1:] in b"\x02\x03\x04\x05")


ARTIFACTS = {
    "corpus": "a corpus of clean documents",
    "tokenizer": "a tokenizer",
    "shards": "documents as one stream of token ids (shards)",
    "model": "a model",
    "evals": "an evaluation on the test documents",
    "export": "a model exported for other programs",
    "checkpoint": "a checkpoint, from which training goes on",
}
"""What each kind of artifact is."""
GPT2_FILES = ("encoder.json", "vocab.bpe", "vocab.json", "merges.txt", "encoder.json.gz", "vocab.bpe.gz")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", *GPT2_FILES)

Kinds = tuple[tuple[Callable[[Path], bool], str, Callable[[Findings, Progress], None]], ...]
HARM = "which can run any program when it is loaded"
FOLDERS: Kinds = (
    (_is_run, "a run", _describe_run),
    (is_made, "an artifact of groundup", _describe_artifact),
    (lambda path: bool(_steps(path)), "the checkpoints of a run", _describe_checkpoints),
    (lambda path: bool(_runs_in(path)), "a folder of runs", _describe_runs),
    (lambda path: (path / "config.json").is_file(), "a model directory as of Hugging Face", _describe_hugging_face),
    (_has_tokenizer, "a tokenizer", _describe_tokenizer),
)
FILES: Kinds = (
    (lambda path: path.name in TOKENIZER_FILES or ".tiktoken" in path.suffixes, "a tokenizer", _describe_tokenizer),
    (llama2c.is_model, "a model of llama2.c", _describe_model_file),
    (is_gguf, "a model in GGUF, for llama.cpp", _describe_model_file),
    # before pickles: its first bytes, a length, may look like those of one
    (lambda path: path.suffix == ".safetensors", "a file of tensors (safetensors)", _describe_safetensors),
    (_is_pickle, f"a pickle, {HARM}; nothing of it was loaded", _describe_pickle),
    (lambda path: path.suffix == ".toml", "a recipe", _describe_recipe),
)
"""How a path is recognised, what it is, and what describes it; the first that recognises it does."""
