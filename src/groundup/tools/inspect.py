"""What a file or a directory is, what made it, from what, whether it is whole, and what to do with it next.

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
from groundup.files import PICKLES, Progress, no_progress, read_lines, refuse_nothing, sha256_of_file
from groundup.model.settings import ModelConfig
from groundup.recipe import Recipe
from groundup.shards import open_split
from groundup.tokenizer.settings import Existing
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights import llama2c
from groundup.weights.files import not_finite_weights, pickles_in, tokenizer_of, weight_files
from groundup.weights.names import ARCHITECTURES, read_config, refusing_contradictions

KNOWN = (
    "runs, corpora, tokenizers, shards, models, checkpoints and evaluations of groundup, recipes (.toml), Hugging Face "
    "model directories, .safetensors, tokenizer.json, tokenizer.model, GPT-2's encoder.json with vocab.bpe, "
    "*.tiktoken, llama2.c's .bin, .npy, .parquet, metrics.jsonl"
)
MISWRITTEN = (KeyError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What reading a file ends in that is well-formed but does not hold what it should."""


@dataclass
class Findings:
    """What is known of one path."""

    path: Path
    what: str
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values, in the order of a first reader's questions."""
    damage: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    """Commands."""

    def add(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Take over facts; where they cannot be read, why not is part of the damage, and the rest is still told."""
        try:
            self.facts |= describe()
        except GroundupError as error:
            self.damage.append(str(error))
        except MISWRITTEN as error:
            self.add_miswritten(error)

    def add_miswritten(self, error: Exception) -> None:
        self.damage.append(f"what is written in {self.path} is not as it should be: {error!r}")

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
    refuse_nothing(path, "file or folder")
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{path} is empty")
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is {_unknown(path)}. Known here: {KNOWN}")
    try:
        for recognises, describe in FOLDERS if path.is_dir() else FILES:
            if recognises(path):
                found = Findings(path, "")
                try:
                    describe(found, progress)
                except GroundupError:
                    raise
                except MISWRITTEN as error:
                    found.add_miswritten(error)
                return found
        raise DataError(f"{path} is {_unknown(path)}. Known here: {KNOWN}")
    except PermissionError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from None


def _unknown(path: Path) -> str:
    learn = "; to learn from it, name it in a recipe: [corpus] sources = [...]"
    if path.is_file():
        size = f"{path.stat().st_size:,} bytes"
        return (
            f"a file of text, {size}{learn}" if reader_of(path) else f"a file of {size} that is none of what is known"
        )
    if not path.is_dir():
        return "a pipe, socket or device"
    files = [file for file in path.rglob("*") if file.is_file()]
    if not files:
        return "an empty folder"
    suffixes = Counter(file.suffix or "(no suffix)" for file in files).most_common(5)
    told = ", ".join(f"{count} {suffix}" for suffix, count in suffixes)
    return f"a folder of {len(files):,} files ({told}){learn if any(map(reader_of, files)) else ''}"


# --- ours ---


def _run(found: Findings, progress: Progress) -> None:
    run = found.path
    note, held = lock_note(run)
    made = [stage for stage in COMMANDS if is_made(run / stage)]
    missing = [command for stage, command in COMMANDS.items() if stage not in made]
    state = "a finished run" if not missing else "a run that is not finished"
    found.what = f"{state}, at work now: {note}" if held else state
    if note and not held:
        found.facts["lock"] = (
            f"left by {note}, which ended without taking it away, as a killed process does; it holds nobody up"
        )
    stages: dict[str, Any] = {}
    score: dict[str, Any] = {}
    for stage, command in COMMANDS.items():
        stages[command] = "not made yet"
        if stage in made:
            part = inspect(run / stage, progress)
            found.damage += [f"{stage}: {why}" for why in part.damage]
            stages[command] = _in_short(part.facts, part.damage)
            score |= {name: part.facts[name] for name in ("parameters", "bits_per_byte") if name in part.facts}
    found.facts |= {"stages": stages, **score}
    replace = " --replace" if found.damage else ""  # a damaged checkpoint needs none: the one before is taken
    checkpoints = run / "pretrain" / "checkpoints"
    if checkpoints.is_dir():
        newest = _newest(checkpoints)
        found.facts["newest_checkpoint"] = newest.name if newest else "none"
        if newest:
            part = inspect(newest, progress)
            found.damage += [f"{newest.relative_to(run)}: {why}" for why in part.damage]
            found.facts["newest_checkpoint"] = f"{newest.name}, {_in_short(part.facts, part.damage)}"
    found.facts["report"] = str(run / "report.html") if (run / "report.html").is_file() else "not written yet"
    try:
        found.facts |= _of_recipe(Recipe.load(run / "recipe.toml"))
    except GroundupError as error:
        found.damage.append(f"recipe.toml, which a build writes anew: {error}")
    go_on = _go_on(run) + replace
    if held:
        found.next = ["wait for it to end"]
    elif missing or found.damage:
        found.next = [go_on]
    else:
        found.next = [
            _command("generate", run, "Once upon a time"),
            _command("chat", run),
            _command("eval", run, "FILE"),
            _command("report", run),
        ]


def _go_on(run: Path) -> str:
    """The command that goes on with a run: with its own copy of the recipe, if that finds the sources from here; else
    with the recipe that it was begun with."""
    copy = run / "recipe.toml"
    try:
        corpus = Recipe.load(copy).corpus
        if not is_made(run / "corpus"):  # a corpus that is made needs its sources no more
            find(corpus, copy.parent)
        return _command("build", copy, "--run", run)
    except GroundupError:
        return _command("build", "RECIPE", "--run", run)


def _command(*words: object) -> str:
    return f"groundup {shlex.join(map(str, words))}"


def _in_short(facts: Mapping[str, Any], damage: list[str]) -> str:
    stale = any(ANOTHER in text for text in facts.get("inputs", {}).values())
    parts = [
        "damaged" if damage else "whole",
        "made from what is no longer there" if stale else "",
        f"step {facts['step']}" if "step" in facts else "",
        facts.get("made", ""),
        facts.get("digest", "")[:12],
    ]
    return ", ".join(part for part in parts if part)


def _runs(found: Findings, progress: Progress) -> None:
    """The digests are not compared here, which would take long for many."""
    runs = [path for path in sorted(found.path.iterdir()) if path.is_dir() and _is_run(path)]
    found.what = f"a folder of runs: {len(runs):,}"
    told = {}
    for run in runs:
        missing = [command for stage, command in COMMANDS.items() if not is_made(run / stage)]
        state = f"not finished, without {', '.join(missing)}" if missing else "finished"
        told[run.name] = "at work now" if lock_note(run)[1] else state
    found.facts["runs"] = told
    found.next = [_command("inspect", runs[0])]


def _artifact(found: Findings, progress: Progress) -> None:
    path = found.path
    found.what = "an artifact of groundup"
    try:
        manifest = read_manifest(path)
    except DataError as error:
        found.damage.append(str(error))
        found.facts["files"] = sorted(file.name for file in path.iterdir())
        return
    what, describe, then = KINDS.get(manifest.kind, (f"an artifact of kind {manifest.kind!r}", None, ()))
    found.what = what
    found.facts |= _origin(path, manifest)
    found.damage += damage(path, manifest, progress=progress)
    size = sum(size for size, _ in manifest.files.values())
    count = f"{len(manifest.files)} files, {size:,} bytes"
    found.facts["files"] = f"{count}; {'damaged, see below' if found.damage else 'every byte is as it was written'}"
    if describe is not None:
        found.add(lambda: describe(path, manifest))
    run = path.parents[2] if manifest.kind == "checkpoint" and len(path.parents) > 2 else path.parent
    if found.damage:
        replace = "" if manifest.kind == "checkpoint" else " --replace"  # of checkpoints, the one before is taken
        found.next = [_go_on(run) + replace]
    else:
        named = {"path": shlex.quote(str(path)), "run": shlex.quote(str(run)), "build": _go_on(run)}
        found.next = [line.format(**named) for line in then]


def _origin(path: Path, manifest: Manifest) -> dict[str, Any]:
    made = manifest.made
    versions = [f"groundup {made.get('code', '?')}"]
    versions += [f"{name} {made[name]}" for name in ("torch", "python") if made.get(name)]
    facts: dict[str, Any] = {
        "made": f"{made.get('at', 'at an unknown time')} in {made.get('seconds', 0):,.1f} s",
        "by": ", ".join(versions),
        "on": made.get("machine", "an unknown machine"),
        "command": made.get("command", "unknown"),
        "digest": manifest.digest,
    }
    names = list(manifest.inputs)
    facts["inputs"] = {name: _stands(path, name, manifest.inputs[name]) for name in names[:5]}
    if len(names) > 5:
        facts["inputs"]["…"] = f"{len(names) - 5:,} more"
    return facts


ANOTHER = "but another stands there now"


def _stands(path: Path, name: str, digest: str) -> str:
    """Whether what stands beside an artifact is what it was made from; a checkpoint stands deeper in its run."""
    for run in (path.parent, *path.parents[1:3]):
        if is_made(run / name):
            try:
                now = read_manifest(run / name).digest
            except DataError:
                return f"{digest[:12]}, {ANOTHER}, and it is damaged"
            if now == digest:
                return f"{digest[:12]}, which stands there"
            return f"{digest[:12]}, {ANOTHER} ({now[:12]})"
    return digest[:12]


def _corpus(path: Path, manifest: Manifest) -> dict[str, Any]:
    told = manifest.statistics
    return {
        "documents": {split: told[split]["documents"] for split in SPLITS},
        "bytes": {split: told[split]["bytes"] for split in SPLITS},
        "read": told["read"],
        "dropped": told["dropped"] or "nothing",
        "left_out": told["left_out"] or "nothing",
    }


def _tokenizer(path: Path, manifest: Manifest) -> dict[str, Any]:
    return _of_tokenizer(path)


def _shards(path: Path, manifest: Manifest) -> dict[str, Any]:
    told = manifest.statistics
    for split in SPLITS:
        open_split(path, split, told["vocab_size"])
    return {
        "tokens": {split: told[split]["tokens"] for split in SPLITS},
        "documents": {split: told[split]["documents"] for split in SPLITS},
        "bytes_per_token": round(sum(told[s]["bytes"] for s in SPLITS) / sum(told[s]["tokens"] for s in SPLITS), 3),
        "vocab_size": f"{told['vocab_size']:,}, and every id is below it",
    }


def _model(path: Path, manifest: Manifest) -> dict[str, Any]:
    config = ModelConfig.from_table(json.loads((path / "config.json").read_bytes())["model"], str(path / "config.json"))
    told = manifest.statistics
    facts = {
        **_of_config(config),
        **_of_tensors([path / "model.safetensors"], "parameters"),
        "trained": {name: told[name] for name in ("steps", "tokens") if name in told},
    }
    if "extend" in manifest.settings:
        new = [*manifest.settings["extend"]["added"], *manifest.settings["extend"]["special"]]
        shown = ", ".join(json.dumps(text, ensure_ascii=False) for text in new[:5])
        more = f" and {len(new) - 5:,} more" if len(new) > 5 else ""
        facts["extended"] = f"from the model {manifest.inputs['base'][:12]}, by {shown}{more}; not trained since"
    elif "average" in manifest.settings:
        names = [Path(name).name for name in manifest.inputs if name != "tokenizer"]
        facts["averaged"] = f"the mean of the weights of {', '.join(names)}"
    else:
        facts["validation_bits_per_byte"] = told.get("validation_bits_per_byte")
    return facts


def _evals(path: Path, manifest: Manifest) -> dict[str, Any]:
    return dict(manifest.statistics["test"])


def _checkpoint(path: Path, manifest: Manifest) -> dict[str, Any]:
    state = json.loads((path / "state.json").read_bytes())
    steps = manifest.settings.get("pretrain", {}).get("steps")
    return {
        "step": f"{state['step']:,} of {steps:,}" if steps else state["step"],
        "tokens": state["tokens"],
        "training_seconds": state["seconds"],
        **_of_tensors(sorted(path.glob("*.safetensors"))),
        "holds": "weights in float32, the optimizer's state, and where the data was",
    }


def _checkpoints(found: Findings, progress: Progress) -> None:
    steps = _steps(found.path)
    newest = _newest(found.path)
    found.what = f"the checkpoints of a run: {len(steps)}"
    told = {}
    for step in steps:
        part = inspect(step, progress)
        found.damage += [f"{step.name}: {why}" for why in part.damage]
        told[step.name] = _in_short(part.facts, part.damage)
    found.facts["checkpoints"] = told
    refused = sorted(other.name for other in found.path.glob("*.refused"))
    if refused:
        found.facts["passed_over"] = refused
    if newest:
        found.next = [_command("inspect", newest)]


def _steps(checkpoints: Path) -> list[Path]:
    return sorted(step for step in checkpoints.glob("step-*") if step.name.removeprefix("step-").isdigit())


def _newest(checkpoints: Path) -> Path | None:
    return next(reversed(_steps(checkpoints)), None)


def _left_behind(found: Findings, progress: Progress) -> None:
    found.what = "the documents that a corpus stage dropped before it ended with an error, each with its reason"
    found.facts["files"] = sorted(file.name for file in found.path.rglob("*") if file.is_file())
    found.next = [_command("inspect", file) for file in sorted(found.path.rglob("*.parquet"))[:1]]


def _partial(found: Findings, progress: Progress) -> None:
    found.what = "the unfinished beginning of an artifact; a process writes it now, or was killed"
    found.facts["files"] = sorted(file.name for file in found.path.rglob("*") if file.is_file())
    found.next = ["run the command that was making it again: what was begun is removed, and made anew"]


def _recipe(found: Findings, progress: Progress) -> None:
    path = found.path
    found.what = "a recipe"
    recipe = Recipe.load(path)  # its own errors name the line
    found.facts |= _of_recipe(recipe)
    try:
        files = find(recipe.corpus, path.parent).files
        size = sum(file.stat().st_size for _, file in files)
        found.facts["sources"] = f"{', '.join(recipe.corpus.sources)}: {len(files):,} files, {size:,} bytes"
    except DataError as error:
        found.facts["sources"] = str(error)
    found.next = [_command("build", path)]


# --- others' ---


def _hugging_face(found: Findings, progress: Progress) -> None:
    path = found.path
    found.what = "a model directory as of Hugging Face"
    config: ModelConfig | None = None
    try:
        table = json.loads((path / "config.json").read_bytes())
        if not isinstance(table, dict):
            raise ValueError(f"it holds a JSON {type(table).__name__}, not an object")
        kind = table.get("model_type")
        found.facts["model_type"] = kind
        if isinstance(kind, str) and kind in ARCHITECTURES:
            with refusing_contradictions(path / "config.json"):
                config = read_config(table)
            found.facts |= {"architecture": "known here", **_of_config(config)}
        else:
            found.facts["architecture"] = f"not known here; known are {', '.join(ARCHITECTURES)}"
    except (ValueError, AttributeError, RecursionError) as error:
        found.damage.append(f"config.json is damaged: {error}")
    except DataError as error:
        found.facts["architecture"] = f"known here, but not this one: {error}"
    files: list[Path] = []
    try:
        files = weight_files(path)
    except DamagedError as error:
        found.damage.append(str(error))
    if files:
        found.add(lambda: _of_tensors(files, "parameters"))
        if config is not None and not found.damage:
            found.damage += [f"{name} holds NaN or Inf" for name in not_finite_weights(path)]
    elif not found.damage:
        pickles = pickles_in(path)
        why = f"only in {pickles[0].name}, a pickle, which can run any program when it is loaded" if pickles else "none"
        found.facts["weights"] = f"{why}; ask for model.safetensors"
    tokenizer: Tokenizer | None = None
    loads = config is not None and bool(files)
    found.facts["tokenizer"] = "none"
    if _has_tokenizer(path):
        try:
            tokenizer = tokenizer_of(path, config or ModelConfig())
            found.facts["tokenizer"] = _of_tokenizer(path)
        except GroundupError as error:
            found.facts["tokenizer"] = f"cannot be used: {error}"
            loads = loads and isinstance(error, UnsupportedError)  # which loading leaves out
    if loads and not found.damage:
        if tokenizer is None:
            found.next = [f'in Python: model, _ = groundup.load("{path}")']
        else:
            found.next = [_command("generate", path, "Once upon a time")]
            found.next += [_command("eval", path, "FILE")] if tokenizer.roles.opener is not None else []


def _tokenizer_alone(found: Findings, progress: Progress) -> None:
    folder = found.path if found.path.is_dir() else found.path.parent
    found.what = "a tokenizer"
    place = folder if found.path.name in GPT2_FILES else found.path
    found.add(lambda: _of_tokenizer(place))
    if not found.damage and found.facts["opens_a_text"] != "nothing":
        found.next = [f'in a recipe: tokenizer = {{ kind = "existing", path = "{place}" }}']


def _safetensors(found: Findings, progress: Progress) -> None:
    found.what = "a file of tensors (safetensors)"
    found.add(lambda: _of_tensors([found.path], first=5))
    _beside(found)
    if (found.path.parent / "config.json").is_file():
        found.next = [_command("inspect", found.path.parent)]


def _llama2c(found: Findings, progress: Progress) -> None:
    found.what = "a model of llama2.c"
    found.add(lambda: _of_config(llama2c.read_config(found.path)))
    found.facts["parameters"] = llama2c.count_parameters(found.path)
    found.next = [f'in Python: model, _ = groundup.load("{found.path}")']


def _pickle(found: Findings, progress: Progress) -> None:
    found.what = "a pickle, which can run any program when it is loaded; nothing of it was loaded"
    found.facts["bytes"] = found.path.stat().st_size
    if found.path.suffix == ".bin":
        found.facts["or"] = "a file of llama2.c that is not whole: its length is not what its header says"
    found.next = ["ask whoever made it for safetensors"]


def _numbers(found: Findings, progress: Progress) -> None:
    path = found.path
    found.what = "a NumPy file"
    _beside(found)
    try:
        numbers = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        found.damage.append(f"{path} is damaged, or holds a pickle, which is not opened: {error}")
        return
    found.facts |= {"type": str(numbers.dtype), "shape": list(numbers.shape)}
    if numbers.size and numbers.dtype.kind in "iu":
        found.facts |= {"least": int(numbers.min()), "largest": int(numbers.max())}
    if is_made(path.parent) and path.name.count(".") == 1:
        found.what = f"the {path.stem} ids of shards"
    found.next = [_command("inspect", path.parent)] if is_made(path.parent) else []


def _parquet(found: Findings, progress: Progress) -> None:
    path = found.path
    found.what = "a parquet file"
    _beside(found)
    try:
        with pq.ParquetFile(path) as file:
            found.facts |= {"rows": file.metadata.num_rows, "columns": file.schema_arrow.names}
    except (OSError, pa.ArrowException) as error:
        found.damage.append(f"{path} is damaged: {error}")
        return
    if "text" not in found.facts["columns"]:
        return
    found.what = "a parquet file of documents"
    columns = [name for name in ("text", "source", "reason") if name in found.facts["columns"]]
    try:
        first = next((row for batch in read_batches(path, columns) for row in batch.to_pylist()), None)
        done = 0
        for batch in read_batches(path, ["text"]):  # every page against its checksum
            done += batch.num_rows
            progress(done, found.facts["rows"], path.name)
        found.facts["pages"] = "every checksum holds"
    except DataError as error:
        found.damage.append(str(error))
        return
    if first:
        begins = {name: first[name] for name in columns[1:] if first[name]}
        found.facts["first_document"] = {**begins, "text": " ".join(first["text"][:200].split())}


def _metrics(found: Findings, progress: Progress) -> None:
    found.what = "the metrics of a training run, a line of JSON for each measurement"
    lines = read_lines(found.path)
    found.facts["lines"] = len(lines)
    for name in ("step", "tokens", "loss", "validation_bits_per_byte", "learning_rate", "seconds", "sample"):
        values = [line[name] for line in lines if name in line]
        if values:
            found.facts[f"last_{name}"] = values[-1]


# --- facts that several of them share ---


def _of_recipe(recipe: Recipe) -> dict[str, Any]:
    tokenizer = recipe.tokenizer
    context = recipe.model.context_length
    tokens = recipe.pretrain.rows_before(recipe.pretrain.steps, context) * context
    up_to = "" if recipe.pretrain.batch_ramp is None else "up to "
    taken = (
        f"taken from {tokenizer.path}"
        if isinstance(tokenizer, Existing)
        else f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids"
    )
    return {
        "name": recipe.name,
        "tokenizer": taken,
        **_of_config(recipe.model),
        "training": f"{recipe.pretrain.steps:,} steps of {up_to}{recipe.pretrain.batch_tokens:,} tokens: {tokens:,}",
    }


def _of_config(config: ModelConfig) -> dict[str, Any]:
    names = ("vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff")
    sizes = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    parts = ("position", "norm", "attention", "feedforward", "block", "head")
    return {"sizes": sizes, "blocks": ", ".join(getattr(config, part).kind for part in parts)}


def _of_tensors(files: Iterable[Path], numbers: str = "numbers", first: int = 0) -> dict[str, Any]:
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
    facts: dict[str, Any] = {
        "tensors": len(shapes),
        numbers: sum(math.prod(shape) for shape in shapes.values()),
        "types": ", ".join(f"{count} × {name}" for name, count in types.items()),
    }
    if first:
        facts["first"] = {name: str(shape) for name, shape in list(shapes.items())[:first]}
    return facts


def _of_tokenizer(path: Path) -> dict[str, Any]:
    tokenizer = Tokenizer.load(path)
    sample = " ".join(token.decode("utf-8", "replace").strip() for token in tokenizer.tokens[256:] if len(token) > 3)
    return {
        "vocab_size": tokenizer.vocab_size,
        "merges": len(tokenizer.merges),
        "special": [*tokenizer.special][:3],
        **_roles(tokenizer),
        "split": tokenizer.pattern,
        "first_longer_tokens": " ".join(sample.split()[:8]),
    }


def _roles(tokenizer: Tokenizer) -> dict[str, Any]:
    def spelled(i: int | None) -> str:
        return "nothing" if i is None else tokenizer.spelled(i) if i < tokenizer.vocab_size else f"id {i:,}"

    roles = tokenizer.roles
    return {
        "opens_a_text": spelled(roles.opener),
        "closes_it": spelled(roles.closer),
        "ends_an_answer": [spelled(i) for i in sorted(roles.stops)],
    }


def _has_tokenizer(path: Path) -> bool:
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", *GPT2_FILES))


def _beside(found: Findings) -> None:
    """What the manifest above a file says of it."""
    for directory in found.path.resolve().parents[:2]:
        if not is_made(directory):
            continue
        try:
            name = found.path.resolve().relative_to(directory).as_posix()
            manifest = read_manifest(directory)
        except DataError as error:
            found.damage.append(str(error))
            return
        if name in manifest.files:
            whole = manifest.files[name][1] == sha256_of_file(found.path)
            found.facts["manifest"] = (
                f"of kind {manifest.kind}; {'every byte as written' if whole else 'not these bytes'}"
            )
            found.damage += [] if whole else [f"the sha256 of {name} is not the one that was written"]
            return


def _is_run(path: Path) -> bool:
    begun = (path / "lock").is_file() or any(is_made(path / stage) for stage in COMMANDS)
    return begun and not is_made(path)


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as stream:
        begins = stream.read(2)
    zipped = begins == b"PK" and zipfile.is_zipfile(path)  # torch.save packs its pickle so
    if zipped:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    return path.suffix.lower() in PICKLES or (begins[:1] == b"\x80" and begins[1:] in b"\x02\x03\x04\x05")


def _is_metrics(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return False
    with open(path, "rb") as stream:
        return b'"step"' in stream.readline(1 << 16)


def _named(*names: str) -> Callable[[Path], bool]:
    return lambda path: path.name in names


def _ends(suffix: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix == suffix


def _folder_of(found: Findings, progress: Progress) -> None:
    whole = inspect(found.path.parent, progress)
    found.what, found.facts, found.damage, found.next = whole.what, whole.facts, whole.damage, whole.next
    found.path = whole.path


KINDS: dict[str, tuple[str, Callable[[Path, Manifest], dict[str, Any]] | None, tuple[str, ...]]] = {
    "corpus": ("a corpus of clean documents", _corpus, ("{build}",)),
    "tokenizer": ("a tokenizer", _tokenizer, ('in a recipe: tokenizer = {{ kind = "existing", path = "{path}" }}',)),
    "shards": ("documents as one stream of token ids (shards)", _shards, ("{build}",)),
    "model": ("a model", _model, ('groundup generate {path} "Once upon a time"', "groundup eval {path} FILE")),
    "evals": ("an evaluation on the test documents", _evals, ("groundup report {run}",)),
    "checkpoint": ("a checkpoint, from which training goes on", _checkpoint, ("{build}",)),
}
"""Kind of artifact → what it is, its facts, what can be done with it."""

GPT2_FILES = ("encoder.json", "vocab.bpe", "vocab.json", "merges.txt", "encoder.json.gz", "vocab.bpe.gz")
Describe = Callable[[Findings, Progress], None]

FOLDERS: tuple[tuple[Callable[[Path], bool], Describe], ...] = (
    (lambda path: path.name.endswith(".partial"), _partial),
    (lambda path: path.name == "corpus.dropped", _left_behind),
    (lambda path: path.name == "pretrain" and _is_run(path.parent), _folder_of),
    (_is_run, _run),
    (is_made, _artifact),
    (lambda path: bool(_steps(path)), _checkpoints),
    (lambda path: any(_is_run(inner) for inner in path.iterdir() if inner.is_dir()), _runs),
    (lambda path: (path / "config.json").is_file(), _hugging_face),
    (_has_tokenizer, _tokenizer_alone),
)
FILES: tuple[tuple[Callable[[Path], bool], Describe], ...] = (
    (_named("manifest.json", "config.json", "state.json"), _folder_of),
    (_named("tokenizer.json", "tokenizer.model", *GPT2_FILES), _tokenizer_alone),
    (lambda path: ".tiktoken" in path.suffixes, _tokenizer_alone),
    (llama2c.is_model, _llama2c),
    (_ends(".safetensors"), _safetensors),  # before pickles: its first bytes, a length, may look like those of one
    (_ends(".npy"), _numbers),
    (_ends(".parquet"), _parquet),
    (_is_pickle, _pickle),
    (_ends(".toml"), _recipe),
    (_is_metrics, _metrics),
)
"""The first that recognises a path describes it."""
