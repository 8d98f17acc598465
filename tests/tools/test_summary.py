"""The summary of a build says what the artifacts recorded."""

from pathlib import Path

from groundup.artifacts import COMMANDS, read_manifest
from groundup.building import build
from groundup.tools.summary import read_samples, score_line, stage_rows


def test_each_stage_has_a_row_with_its_time_and_digest(finished_home: Path) -> None:
    run = finished_home / "runs" / "tiny"
    built = build(finished_home / "tiny.toml", run=run, say=lambda text: None)
    head, *rows = stage_rows(built)
    assert head == ("stage", "time", "in", "out", "digest")
    assert [row[0] for row in rows] == [*COMMANDS.values(), "report"]
    assert [row[-1] for row in rows[:-1]] == [read_manifest(run / name).digest[:12] for name in COMMANDS]
    assert {row[1] for row in rows} == {"up to date"}


def test_the_score_and_the_samples_are_those_of_the_evaluation(finished_home: Path) -> None:
    run = finished_home / "runs" / "tiny"
    test = read_manifest(run / "evals").statistics["test"]
    assert score_line(run).startswith(f"{test['bits_per_byte']:.3f} bits per byte on {test['documents']} documents")
    assert [sample["seed"] for sample in read_samples(run)] == list(range(len(read_samples(run))))
