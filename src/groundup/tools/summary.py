"""The summary of a build: a row for each stage, the score, and the samples."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groundup.artifacts import COMMANDS, is_made, read_manifest
from groundup.building import Built
from groundup.corpus.document import SPLITS

Statistics = Mapping[str, Any]


def stage_rows(built: Built) -> list[tuple[str, ...]]:
    """Header and rows: each stage, how long it took, what it read and wrote."""
    made = [name for name in (*COMMANDS, "export") if is_made(built.run / name)]
    facts = {name: read_manifest(built.run / name).statistics for name in made}
    rows: list[tuple[str, ...]] = [("stage", "time", "in", "out", "digest")]
    for row in built.rows:
        took = f"{row.seconds:.1f} s" if row.what == "made" else row.what
        rows.append((row.stage, took, *_in_and_out(row.stage, facts, built.run), row.digest[:12]))
    return rows


def _in_and_out(stage: str, facts: dict[str, Statistics], run: Path) -> tuple[str, str]:
    """The input and the output of a stage, in a few words."""

    def total(name: str, key: str) -> int:
        return sum(int(facts[name][split][key]) for split in SPLITS)

    match stage:
        case "corpus":
            read = facts["corpus"]["read"]
            kept = f"{total('corpus', 'documents'):,} documents, {total('corpus', 'bytes') / 1e6:.1f} MB"
            return f"{read['documents']:,} documents, {read['bytes'] / 1e6:.1f} MB", kept
        case "tokenizer":
            return f"{facts['corpus']['train']['documents']:,} documents", f"{facts['tokenizer']['vocab_size']:,} ids"
        case "pack":
            tokens = total("shards", "tokens")
            packed = f"{tokens:,} tokens, {total('shards', 'bytes') / tokens:.2f} bytes each"
            return f"{total('corpus', 'documents'):,} documents", packed
        case "pretrain":
            model = facts["model"]
            size = f"{sum(model['parameters'].values()) / 1e6:.1f} M parameters"
            validation = f"{model['validation_bits_per_byte']:.3f} bits per byte (validation)"
            return f"{model['tokens']:,} tokens", f"{size}, {validation}"
        case "eval":
            test = facts["evals"]["test"]
            return f"{test['documents']:,} documents", f"{test['bits_per_byte']:.3f} bits per byte (test)"
        case "export":
            return "the model", ", ".join(facts["export"]["read_back"])
        case _:
            return "all of the above", str(run / "report.html")


def score_line(run: Path) -> str:
    test = read_manifest(run / "evals").statistics["test"]
    error = "" if test["standard_error"] is None else f" ± {test['standard_error']:.3f}"
    return f"{test['bits_per_byte']:.3f}{error} bits per byte on {test['documents']} documents it never saw"


def read_samples(run: Path) -> list[dict[str, str]]:
    samples: list[dict[str, str]] = json.loads((run / "evals" / "samples.json").read_bytes())
    return samples
