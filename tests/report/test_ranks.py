"""What is said of the ranks of a training, from lines written by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundup.parallel.settings import ParallelSettings
from groundup.report.ranks import bubble
from groundup.report.run import write_report
from groundup.report.watch import WatchedRun

PIPELINE = """
[model]
context_length = 64
[pretrain]
batch_tokens = 5120
micro_batch_rows = 4
[parallel]
pipeline = 5
shard = 4
tensor = 2
schedule = { kind = "interleaved", stages = 2 }
"""


def line(step: int, computing: list[float], collectives: list[float], sent: float = 5e6) -> dict[str, Any]:
    waiting = [each - min(collectives) for each in collectives]
    times = {"computing": computing, "collectives": collectives, "waiting": waiting, "bytes": [sent] * len(computing)}
    return {"step": step, "ranks": times}


def write(run: Path, lines: list[Any], slow: tuple[tuple[int, int], ...] = (), recipe: str = "") -> Path:
    """Add to a run, or begin one; `slow`: steps and ranks of events."""
    (run / "pretrain").mkdir(parents=True, exist_ok=True)
    events = [{"at": "", "event": "slow rank", "step": step, "rank": rank} for step, rank in slow]
    for name, rows in (("metrics", lines), ("events", events)):
        with open(run / "pretrain" / f"{name}.jsonl", "a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    if recipe:
        (run / "recipe.toml").write_text(recipe)
    return run


def summary(run: Path) -> Any:
    watched = WatchedRun(run, "x")
    watched.read()
    return watched.curves_between("step", None, None, 100, False)["ranks"]


TWO = [line(10, [4.0, 6.0], [6.0, 4.0]), line(20, [8.0, 12.0], [12.0, 8.0])]


def test_two_ranks_have_their_means_of_a_step(tmp_path: Path) -> None:
    shown = summary(write(tmp_path, TWO, slow=((20, 1),), recipe="[parallel]\nshard = 2\n"))
    assert shown["words"][0].startswith("2 ranks: shard 2. Means of a step over 20 steps")
    assert len(shown["words"]) == 1
    first, second = shown["rows"]
    assert first == {
        "name": "0",
        "slow": False,
        "widths": [40.0, 40.0, 20.0],
        "cells": ["1.50 s", "40%", "40%", "20%", "500.0 kB"],
    }
    assert (second["name"], second["slow"], second["widths"]) == ("1, slow 1 time", True, [60.0, 40.0, 0.0])


def test_after_a_change_of_their_number_only_the_ranks_that_go_on_count(tmp_path: Path) -> None:
    four = line(10, [1.0, 1.0, 1.0, 9.0], [9.0, 9.0, 9.0, 1.0])
    shown = summary(write(tmp_path, [four, line(20, [5.0, 5.0], [5.0, 5.0])], slow=((10, 1),)))
    assert [(row["name"], row["widths"]) for row in shown["rows"]] == [
        ("0", [50.0, 50.0, 0.0]),
        ("1", [50.0, 50.0, 0.0]),
    ]


def test_of_forty_ranks_the_fastest_the_middle_and_the_slowest_are_shown(tmp_path: Path) -> None:
    computing = [5 + rank / 10 for rank in range(40)]
    lines = [line(10, computing, [10 - each for each in computing])]
    shown = summary(write(tmp_path, lines, slow=((10, 3), (10, 3)), recipe=PIPELINE))
    names = [row["name"] for row in shown["rows"]]
    assert names == ["0", "3, slow 2 times", *map(str, range(11, 40))]  # the one in the middle is among the slowest 30
    layout, idle, rest = shown["words"]
    assert layout.startswith("40 ranks: pipeline 5 × shard 4 × tensor 2.")
    assert "with 5 micro-batches a step, the pipeline's ranks are idle for 29%" in idle  # 4 / (2 · 5 + 4)
    assert rest.endswith("the other 9 compute for 0.51 to 0.6 s a step.")


def test_bubbles_are_those_of_the_paper() -> None:
    def of(**settings: Any) -> float | None:
        return bubble(ParallelSettings.from_table({"pipeline": 4, **settings}), micro_batches=8)

    assert of(schedule="gpipe") == of(schedule="1f1b") == pytest.approx((3 / 8) / (1 + 3 / 8))
    assert of(schedule={"kind": "interleaved", "stages": 3}) == pytest.approx((3 / 24) / (1 + 3 / 24))
    assert of(schedule="zero_bubble") is None
    assert of(pipeline=1) is None


@pytest.mark.parametrize(
    "lines",
    [
        [{"step": 1, "loss": 2.0}],
        [
            {"step": 10, "ranks": None},
            {"step": 20, "ranks": {"computing": [1.0]}},
            {**TWO[0], "step": "x"},
        ],
        [line(10, [], [0.0]), line(10, [1.0], [1.0, 2.0]), line(10, [float("nan")], [1.0])],
    ],
)
def test_without_lines_of_ranks_there_is_nothing(tmp_path: Path, lines: list[Any]) -> None:
    assert summary(write(tmp_path, lines)) is None


def test_the_report_has_a_section_where_a_run_has_ranks(
    finished_home: Path,
    tmp_path: Path,
    browser: Any,
    look: Callable[[Path, int, str], None],
    print_out: Callable[[Path], None],
) -> None:
    run = Path(shutil.copytree(finished_home / "runs" / "tiny", tmp_path / "tiny"))
    assert 'id="ranks"' not in write_report(run).read_text()
    page = write_report(write(run, TWO, slow=((20, 1),)))
    tab = browser.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("nav a[href='#ranks']").count() == 1
    widths = tab.locator("#ranks .stack").first.locator("i").evaluate_all("all => all.map(e => e.clientWidth)")
    assert [width / sum(widths) for width in widths] == pytest.approx([0.4, 0.4, 0.2], abs=0.01)
    assert tab.locator("#ranks td b").all_inner_texts() == ["1, slow 1 time"]
    tab.close()
    look(page, 390, "dark")
    print_out(page)
