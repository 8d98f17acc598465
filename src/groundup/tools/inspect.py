"""Inspect a file or a directory: what it is, what made it, from what, whether it is whole, and what to do next.

Everything is read without torch: of weights the headers, of pickles only the name.
"""

import json
import math
import shlex
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from groundup.artifacts import COMMANDS, Manifest, damage, is_made, lock_note, read_manifest
from groundup.corpus.document import SPLITS, read_batches
from groundup.corpus.sources import find, reader_of
from groundup.errors import DamagedError, DataError, GroundupError, UnsupportedError
from groundup.files import PICKLES, Progress, no_progress, read_lines, require_path, sha256_of_file
from groundup.model.settings import ModelConfig
from groundup.recipe import Recipe
from groundup.shards import open_split
from groundup.tokenizer.settings import Existing
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights import llama2c
from groundup.weights.files import config_of, config_table, not_finite_weights, pickles_in, tokenizer_of, weight_files
from groundup.words import plural

KNOWN = (
    "runs, corpora, tokenizers, shards, models, checkpoints and evaluations of groundup, recipes (.toml), Hugging Face "
    "model directories, .safetensors, tokenizer.json, tokenizer.model, GPT-2's encoder.json with vocab.bpe, "
    "*.tiktoken, llama2.c's .bin, .npy, .parquet, metrics.jsonl"
)
MISWRITTEN = (KeyError, ValueError, TypeError, AttributeError, ArithmeticError)
"""Errors of reading a file that is well-formed but does not hold what it should."""
Facts = Mapping[str, Any]
Artifact = tuple[str, Callable[[Path, Manifest], Facts], tuple[str, ...]]


@dataclass
class Findings:
    """The facts about one path."""

    path: Path
    what: str
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values, in the order of a first reader's questions."""
    damage: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    """Commands."""

    def add(self, read: Callable[[], Facts]) -> None:
        """Add facts; an error of reading them is noted as damage."""
        try:
            self.facts |= read()
        except GroundupError as error:
            self.damage.append(str(error))
        except MISWRITTEN as error:
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
        return ", ".join(part for part in parts if part)

    def refuse_damage(self) -> None:
        """
        Raises:
            DataError: naming all damage, and what to do.
        """
        if self.damage:
            then = f"\nTry next: {self.next[0]}" if self.next else ""
            raise DataError("\n  ".join([f"{self.path} is not whole:", *self.damage]) + then)


def inspect(path: Path, progress: Progress = no_progress) -> Findings:
    """
    Raises:
        DataError: nothing is there, or nothing that is known here.
    """
    require_path(path, "file or folder")
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{path} is empty")
    try:
        kinds = FOLDERS if path.is_dir() else FILES if path.is_file() else ()
        for recognises, what, describe in kinds:
            if recognises(path):
                findings = Findings(path, what)
                try:
                    describe(findings, progress)
                except GroundupError:
                    raise
                except MISWRITTEN as error:
                    findings.damage.append(f"what is written in {path} is not as it should be: {error!r}")
                return findings
        raise DataError(f"{path} is {_unknown(path)}. Known here: {KNOWN}")
    except PermissionError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from None


def _unknown(path: Path) -> str:
    learn = "; to learn from it, name it in a recipe: [corpus] sources = [...]"
    if path.is_file():
        size = f"{path.stat().st_size:,} bytes"
        return f"a file of text, {size}{learn}" if reader_of(path) else f"a file of {size} that is none of these"
    if not path.is_dir():
        return "a pipe, socket or device"
    files = [file for file in path.rglob("*") if file.is_file()]
    suffixes = Counter(file.suffix or "(no suffix)" for file in files).most_common(5)
    counts = ", ".join(f"{count} {suffix}" for suffix, count in suffixes)
    folder = f"a folder of {len(files):,} files ({counts}){learn if any(map(reader_of, files)) else ''}"
    return folder if files else "an empty folder"


def _command(*words: object) -> str:
    return f"groundup {shlex.join(map(str, words))}"


# --- runs and artifacts ---


def _describe_run(findings: Findings, progress: Progress) -> None:
    run = findings.path
    note, is_held = lock_note(run)
    missing = _missing_stages(run)
    if missing:
        findings.what = "a run that is not finished"
    if is_held:
        findings.what += f", at work now: {note}"
    elif note:
        findings.facts["lock"] = (
            f"left by {note}, which ended without taking it away, as a killed process does; it holds nobody up"
        )
    stages: dict[str, str] = {}
    score: dict[str, Any] = {}
    for stage, command in COMMANDS.items():
        if command in missing:
            stages[command] = "not made yet"
            continue
        part = findings.add_part(run / stage, progress)
        stages[command] = part.summary
        score |= {name: part.facts[name] for name in ("parameters", "bits_per_byte") if name in part.facts}
    findings.facts |= {"stages": stages, **score}
    replace = " --replace" if findings.damage else ""  # a damaged checkpoint needs none: the one before is taken
    checkpoints = run / "pretrain" / "checkpoints"
    if checkpoints.is_dir():
        findings.facts["newest_checkpoint"] = "none"
        for step in _steps(checkpoints)[-1:]:
            findings.facts["newest_checkpoint"] = f"{step.name}, {findings.add_part(step, progress).summary}"
    findings.facts["report"] = str(run / "report.html") if (run / "report.html").is_file() else "not written yet"
    try:
        findings.facts |= _recipe_facts(Recipe.load(run / "recipe.toml"))
    except GroundupError as error:
        findings.damage.append(f"recipe.toml, which a build writes anew: {error}")
    if is_held:
        findings.next = ["wait for it to end"]
    elif missing or findings.damage:
        findings.next = [_go_on(run) + replace]
    else:
        prompt, file = ("generate", run, "Once upon a time"), ("eval", run, "FILE")
        findings.next = [_command(*words) for words in (prompt, ("chat", run), file, ("report", run))]


def _missing_stages(run: Path) -> list[str]:
    return [command for stage, command in COMMANDS.items() if not is_made(run / stage)]


def _go_on(run: Path) -> str:
    """The command that goes on with a run: with its own copy of the recipe, if that finds the sources from here; else
    with the recipe that it was begun with."""
    copy = run / "recipe.toml"
    try:
        corpus = Recipe.load(copy).corpus
        if not is_made(run / "corpus"):  # a corpus that is made needs its sources no more
            find(corpus, copy.parent)
    except GroundupError:
        return _command("build", "RECIPE", "--run", run)
    return _command("build", copy, "--run", run)


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
    other: Artifact = (f"an artifact of kind {manifest.kind!r}", lambda path, manifest: {}, ())
    findings.what, read, then = ARTIFACTS.get(manifest.kind, other)
    findings.facts |= _origin(path, manifest)
    findings.damage += damage(path, manifest, progress=progress)
    count = f"{len(manifest.files)} files, {sum(size for size, _ in manifest.files.values()):,} bytes"
    state = "damaged, see below" if findings.damage else "every byte is as it was written"
    findings.facts["files"] = f"{count}; {state}"
    findings.add(lambda: read(path, manifest))
    is_checkpoint = manifest.kind == "checkpoint"
    run = path.parents[2] if is_checkpoint and len(path.parents) > 2 else path.parent
    if findings.damage:
        findings.next = [_go_on(run) + ("" if is_checkpoint else " --replace")]  # the checkpoint before is taken
    else:
        names = {"path": shlex.quote(str(path)), "run": shlex.quote(str(run)), "build": _go_on(run)}
        findings.next = [line.format(**names) for line in then]


def _origin(path: Path, manifest: Manifest) -> dict[str, Any]:
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
    try:
        now = read_manifest(beside).digest
    except DataError:
        return f"{digest[:12]}, {ANOTHER}, and it is damaged"
    return f"{digest[:12]}, which stands there" if now == digest else f"{digest[:12]}, {ANOTHER} ({now[:12]})"


def _corpus_facts(path: Path, manifest: Manifest) -> Facts:
    statistics = manifest.statistics
    return {
        "documents": {split: statistics[split]["documents"] for split in SPLITS},
        "bytes": {split: statistics[split]["bytes"] for split in SPLITS},
        "read": statistics["read"],
        "dropped": statistics["dropped"] or "nothing",
        "left_out": statistics["left_out"] or "nothing",
    }


def _shards_facts(path: Path, manifest: Manifest) -> Facts:
    statistics = manifest.statistics
    for split in SPLITS:
        open_split(path, split, statistics["vocab_size"])
    tokens, documents, n_bytes = (
        {split: statistics[split][key] for split in SPLITS} for key in ("tokens", "documents", "bytes")
    )
    return {
        "tokens": tokens,
        "documents": documents,
        "bytes_per_token": round(sum(n_bytes.values()) / sum(tokens.values()), 3),
        "vocab_size": f"{statistics['vocab_size']:,}, and every id is below it",
    }


def _model_facts(path: Path, manifest: Manifest) -> Facts:
    file, statistics = path / "config.json", manifest.statistics
    facts = {
        **_config_facts(ModelConfig.from_table(json.loads(file.read_bytes())["model"], str(file))),
        **_tensor_facts([path / "model.safetensors"], "parameters"),
        "trained": {name: statistics[name] for name in ("steps", "tokens") if name in statistics},
    }
    if "extend" in manifest.settings:
        new = [*manifest.settings["extend"]["added"], *manifest.settings["extend"]["special"]]
        first = ", ".join(json.dumps(text, ensure_ascii=False) for text in new[:5])
        more = f" and {len(new) - 5:,} more" if len(new) > 5 else ""
        facts["extended"] = f"from the model {manifest.inputs['base'][:12]}, by {first}{more}; not trained since"
    elif "average" in manifest.settings:
        names = [Path(name).name for name in manifest.inputs if name != "tokenizer"]
        facts["averaged"] = f"the mean of the weights of {', '.join(names)}"
    else:
        facts["validation_bits_per_byte"] = statistics.get("validation_bits_per_byte")
    return facts


def _checkpoint_facts(path: Path, manifest: Manifest) -> Facts:
    state = json.loads((path / "state.json").read_bytes())
    steps = manifest.settings.get("pretrain", {}).get("steps")
    return {
        "step": f"{state['step']:,} of {steps:,}" if steps else state["step"],
        "tokens": state["tokens"],
        "training_seconds": state["seconds"],
        **_tensor_facts(sorted(path.glob("*.safetensors"))),
        "holds": "weights in float32, the optimizer's state, and where the data was",
    }


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
        findings.facts["sources"] = f"{', '.join(recipe.corpus.sources)}: {plural(len(files), 'file')}, {size:,} bytes"
    except DataError as error:
        findings.facts["sources"] = str(error)
    findings.next = [_command("build", findings.path)]


def _describe_folder_of(findings: Findings, progress: Progress) -> None:
    """A file or folder that belongs to the directory above it, which is described instead."""
    whole = inspect(findings.path.parent, progress)
    findings.__dict__.update(vars(whole))


# --- models, tokenizers and files of any origin ---


def _describe_hugging_face(findings: Findings, progress: Progress) -> None:
    path = findings.path
    config = _published_config(findings)
    files: list[Path] = []
    try:
        files = weight_files(path)
    except DamagedError as error:
        findings.damage.append(str(error))
    if files:
        findings.add(lambda: _tensor_facts(files, "parameters"))
        if config is not None and not findings.damage:
            findings.damage += [f"{name} holds NaN or Inf" for name in not_finite_weights(path)]
    elif not findings.damage:
        pickles = pickles_in(path)
        why = f"only in {pickles[0].name}, a pickle, which can run any program when it is loaded" if pickles else "none"
        findings.facts["weights"] = f"{why}; ask for model.safetensors"
    loads, tokenizer = config is not None and bool(files), None
    findings.facts["tokenizer"] = "none"
    if _has_tokenizer(path):
        try:
            tokenizer = tokenizer_of(path, config or ModelConfig())
            findings.facts["tokenizer"] = _tokenizer_facts(path)
        except GroundupError as error:
            findings.facts["tokenizer"] = f"cannot be used: {error}"
            loads = loads and isinstance(error, UnsupportedError)  # which loading leaves out
    if not loads or findings.damage:
        return
    if tokenizer is None:
        findings.next = [f'in Python: model, _ = groundup.load("{path}")']
    else:
        findings.next = [_command("generate", path, "Once upon a time")]
        findings.next += [_command("eval", path, "FILE")] if tokenizer.roles.opener is not None else []


def _published_config(findings: Findings) -> ModelConfig | None:
    """The config of a Hugging Face directory, where its architecture is known here; the facts are added."""
    try:
        findings.facts["model_type"] = config_table(findings.path).get("model_type")
        config = config_of(findings.path)
    except DamagedError as error:
        findings.damage.append(str(error))
        return None
    except DataError as error:
        findings.facts["architecture"] = str(error)
        return None
    findings.facts |= {"architecture": "known here", **_config_facts(config)}
    return config


def _describe_tokenizer(findings: Findings, progress: Progress) -> None:
    place = findings.path.parent if findings.path.name in GPT2_FILES else findings.path
    findings.add(lambda: _tokenizer_facts(place))
    if not findings.damage and findings.facts["opens_a_text"] != "nothing":
        findings.next = [f'in a recipe: tokenizer = {{ kind = "existing", path = "{place}" }}']


def _describe_safetensors(findings: Findings, progress: Progress) -> None:
    path = findings.path
    findings.add(lambda: _tensor_facts([path], first=5))
    findings.add(lambda: _manifest_facts(path))
    if (path.parent / "config.json").is_file():
        findings.next = [_command("inspect", path.parent)]


def _describe_llama2c(findings: Findings, progress: Progress) -> None:
    path = findings.path
    findings.add(lambda: _config_facts(llama2c.read_config(path)))
    findings.facts["parameters"] = llama2c.count_parameters(path)
    findings.next = [f'in Python: model, _ = groundup.load("{path}")']


def _describe_pickle(findings: Findings, progress: Progress) -> None:
    findings.facts["bytes"] = findings.path.stat().st_size
    if findings.path.suffix == ".bin":
        findings.facts["or"] = "a file of llama2.c that is not whole: its length is not what its header says"
    findings.next = ["ask whoever made it for safetensors"]


def _describe_numpy(findings: Findings, progress: Progress) -> None:
    path = findings.path
    findings.add(lambda: _manifest_facts(path))
    try:
        numbers = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        findings.damage.append(f"{path} is damaged, or holds a pickle, which is not opened: {error}")
        return
    findings.facts |= {"type": str(numbers.dtype), "shape": list(numbers.shape)}
    if numbers.size and numbers.dtype.kind in "iu":
        findings.facts |= {"least": int(numbers.min()), "largest": int(numbers.max())}
    if is_made(path.parent):
        findings.what = f"the {path.stem} ids of shards" if path.name.count(".") == 1 else findings.what
        findings.next = [_command("inspect", path.parent)]


def _describe_parquet(findings: Findings, progress: Progress) -> None:
    path = findings.path
    findings.add(lambda: _manifest_facts(path))
    try:
        with pq.ParquetFile(path) as file:
            rows, columns = file.metadata.num_rows, file.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        findings.damage.append(f"{path} is damaged: {error}")
        return
    findings.facts |= {"rows": rows, "columns": columns}
    if "text" in columns:
        findings.what += " of documents"
        findings.add(lambda: _document_facts(path, rows, columns, progress))


def _document_facts(path: Path, rows: int, columns: list[str], progress: Progress) -> Facts:
    first: list[dict[str, Any]] = []
    done = 0
    for batch in read_batches(path, [name for name in ("source", "reason", "text") if name in columns]):
        first = first or batch.slice(0, 1).to_pylist()
        done += batch.num_rows
        progress(done, rows, path.name)
    facts: dict[str, Any] = {"pages": "every checksum holds"}
    for document in first:
        text = " ".join(document.pop("text")[:200].split())
        facts["first_document"] = {name: value for name, value in document.items() if value} | {"text": text}
    return facts


def _describe_metrics(findings: Findings, progress: Progress) -> None:
    lines = read_lines(findings.path)
    findings.facts["lines"] = len(lines)
    for name in ("step", "tokens", "loss", "validation_bits_per_byte", "learning_rate", "seconds", "sample"):
        if values := [line[name] for line in lines if name in line]:
            findings.facts[f"last_{name}"] = values[-1]


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
    shapes: dict[str, list[int]] = {}
    types: Counter[str] = Counter()
    for file in files:
        if not file.is_file():
            raise DamagedError(f"{file.name} is missing")
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is no dict)
                    part = tensors.get_slice(name)
                    shapes[name] = part.get_shape()
                    types[part.get_dtype()] += 1
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedError(f"{file.name} is not a whole safetensors file: {error}") from None
    return {
        "tensors": len(shapes),
        numbers: sum(math.prod(shape) for shape in shapes.values()),
        "types": ", ".join(f"{count} × {name}" for name, count in types.items()),
        **({"first": {name: str(shape) for name, shape in list(shapes.items())[:first]}} if first else {}),
    }


def _tokenizer_facts(path: Path) -> Facts:
    tokenizer = Tokenizer.load(path)
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


def _manifest_facts(path: Path) -> Facts:
    """Whether a file is the one that the manifest above it names.

    Raises:
        DataError: it is another, or the manifest is damaged.
    """
    file = path.resolve()
    directory = next((above for above in file.parents[:2] if is_made(above)), None)
    manifest = read_manifest(directory) if directory else None
    name = file.relative_to(directory).as_posix() if directory else ""
    if manifest is None or name not in manifest.files:
        return {}
    if manifest.files[name][1] != sha256_of_file(path):
        raise DamagedError(f"the sha256 of {name} is not the one that was written")
    return {"manifest": f"of kind {manifest.kind}; every byte as written"}


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


def _is_metrics(path: Path) -> bool:
    with open(path, "rb") as stream:
        return path.suffix == ".jsonl" and b'"step"' in stream.readline(1 << 16)


ARTIFACTS: dict[str, Artifact] = {
    "corpus": ("a corpus of clean documents", _corpus_facts, ("{build}",)),
    "tokenizer": (
        "a tokenizer",
        lambda path, manifest: _tokenizer_facts(path),
        ('in a recipe: tokenizer = {{ kind = "existing", path = "{path}" }}',),
    ),
    "shards": ("documents as one stream of token ids (shards)", _shards_facts, ("{build}",)),
    "model": ("a model", _model_facts, ('groundup generate {path} "Once upon a time"', "groundup eval {path} FILE")),
    "evals": (
        "an evaluation on the test documents",
        lambda path, manifest: manifest.statistics["test"],
        ("groundup report {run}",),
    ),
    "checkpoint": ("a checkpoint, from which training goes on", _checkpoint_facts, ("{build}",)),
}
"""Kind of artifact → what it is, its facts, what can be done with it."""
GPT2_FILES = ("encoder.json", "vocab.bpe", "vocab.json", "merges.txt", "encoder.json.gz", "vocab.bpe.gz")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", *GPT2_FILES)

Kinds = tuple[tuple[Callable[[Path], bool], str, Callable[[Findings, Progress], None]], ...]
PICKLE = "a pickle, which can run any program when it is loaded; nothing of it was loaded"
FOLDERS: Kinds = (
    (lambda path: path.name == "pretrain" and _is_run(path.parent), "", _describe_folder_of),
    (_is_run, "a finished run", _describe_run),
    (is_made, "an artifact of groundup", _describe_artifact),
    (lambda path: bool(_steps(path)), "the checkpoints of a run", _describe_checkpoints),
    (lambda path: bool(_runs_in(path)), "a folder of runs", _describe_runs),
    (lambda path: (path / "config.json").is_file(), "a model directory as of Hugging Face", _describe_hugging_face),
    (_has_tokenizer, "a tokenizer", _describe_tokenizer),
)
FILES: Kinds = (
    (lambda path: path.name in ("manifest.json", "config.json", "state.json"), "", _describe_folder_of),
    (lambda path: path.name in TOKENIZER_FILES or ".tiktoken" in path.suffixes, "a tokenizer", _describe_tokenizer),
    (llama2c.is_model, "a model of llama2.c", _describe_llama2c),
    # before pickles: its first bytes, a length, may look like those of one
    (lambda path: path.suffix == ".safetensors", "a file of tensors (safetensors)", _describe_safetensors),
    (lambda path: path.suffix == ".npy", "a NumPy file", _describe_numpy),
    (lambda path: path.suffix == ".parquet", "a parquet file", _describe_parquet),
    (_is_pickle, PICKLE, _describe_pickle),
    (lambda path: path.suffix == ".toml", "a recipe", _describe_recipe),
    (_is_metrics, "the metrics of a training run, a line of JSON for each measurement", _describe_metrics),
)
"""How a path is recognised, what it is, and what describes it; the first that recognises it does."""
