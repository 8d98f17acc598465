"""Scores: what a run has recorded, and which words name files to score."""

import json
from pathlib import Path

import pytest

from groundup.errors import DataError, SettingsError
from groundup.files import no_progress
from groundup.tools.evaluate import lines, read_score, score


def test_a_recorded_score_is_read_and_told(finished_home: Path) -> None:
    run = finished_home / "runs" / "tiny"
    recorded = read_score(run)
    assert recorded == json.loads((run / "evals" / "test.json").read_bytes())
    first, second = lines(recorded)
    assert first.startswith(f"{recorded['bits_per_byte']:.4f} bits per byte, perplexity ")
    assert next(lines(recorded | {"standard_error": 0.25})).startswith(f"{recorded['bits_per_byte']:.4f} ± 0.2500 bits")
    assert second.startswith("1 document, ") and second.endswith(f"{recorded['bytes']:,} bytes")


def test_what_has_no_score_or_names_no_file_is_answered(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run or model at"):
        read_score(tmp_path / "gone")
    with pytest.raises(SettingsError, match="name the files to score"):
        read_score(tmp_path)
    for words in (["corpus.text_field=body"], ["a.txt", "pretrain.steps=3"]):
        with pytest.raises(SettingsError, match=f"{words[-1]} is given, but no recipe"):
            score(tmp_path, words, None, no_progress)
