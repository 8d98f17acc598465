"""Sweeps: every point is the run that its settings alone would make; what was done is not done again."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundup.artifacts import read_manifest
from groundup.building import build
from groundup.errors import DivergedError, SavedAndStopped, SettingsError
from groundup.pretrain import run as pretrain_run
from groundup.report.sweep import Swept, Trained
from groundup.tools import sweep as sweeping
from groundup.tools.sweep import sweep
from groundup.train import log

RATE = "pretrain.optimizer.learning_rate"
SHORT = [
    "pretrain.steps=18", "pretrain.validate_every=100", "pretrain.sample_every=100", "pretrain.checkpoint_every=100",
    "pretrain.schedule.warmup_steps=1", "model.dropout=0.0",
    "pretrain.seed=1",  # by which the best rate leads after 2, 6 and 18 steps
]  # fmt: skip
QUIET: Callable[[str], None] = lambda text: None  # noqa: E731


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    return settle(tmp_path_factory.mktemp("sweep")).parent


NINE = [*SHORT, f"{RATE}=1e-5..1e-1:log:9"]


@pytest.fixture(scope="module")
def grid(home: Path) -> Swept:
    """Nine rates, all trained to the end."""
    return sweep(home / "tiny.toml", NINE, run=home / "runs" / "grid", say=QUIET)


def bits(point: Trained) -> float:
    return point.measured[-1].validation_bits_per_byte


def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None]]:
    """Notes what is trained from now on: the point, and the step that it is to pause after."""
    seen: list[tuple[str, int | None]] = []
    real = pretrain_run.pretrain

    def note(*arguments: Any) -> None:
        run, until = arguments[2], arguments[-1]
        seen.append((run.name, until))
        real(*arguments)

    monkeypatch.setattr(pretrain_run, "pretrain", note)
    return seen


def test_a_point_is_the_run_that_its_settings_make(home: Path) -> None:
    run = home / "runs" / "three"
    found = sweep(home / "tiny.toml", [*SHORT, f"{RATE}=1e-4..1.0:log:3"], run=run, say=QUIET)
    assert [bits(point) for point in found.points] == sorted(bits(point) for point in found.points)
    best = found.points[0]
    assert found.best == best.name
    alone = build(home / "tiny.toml", found.overrides, run=home / "runs" / "alone", last="pretrain", say=QUIET).run
    assert read_manifest(alone / "model").digest == read_manifest(run / best.name / "model").digest
    assert read_manifest(alone / "model").statistics["validation_bits_per_byte"] == bits(best)
    shards = [other / "shards" / "train.npy" for other in (alone, *(run / point.name for point in found.points))]
    assert len({file.stat().st_ino for file in shards[1:]}) == 1, "text and tokens are made once"


@pytest.mark.slow
def test_halving_finds_the_best_of_the_grid_in_fewer_steps(
    home: Path, grid: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained(monkeypatch)
    run = home / "runs" / "halving"
    found = sweep(home / "tiny.toml", NINE, halving=True, run=run, say=QUIET)
    assert found.rungs == (2, 6, 18)
    assert [until for _, until in seen] == [2] * 9 + [6] * 3 + [None]
    assert found.best == grid.best
    assert bits(found.points[0]) == bits(grid.points[0]), "paused twice, the training is the same"
    assert [len(point.measured) for point in found.points] == [3, 2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.slow
def test_stopped_in_a_training_and_killed_after_one_it_does_only_what_is_left(
    home: Path, grid: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = home / "runs" / "stopped"
    real = log.RunLog.event
    saved: list[str] = []

    def interrupt(log: Any, event: str, **details: Any) -> None:
        real(log, event, **details)
        saved.append(event)
        if event == "saved" and saved.count("saved") in (3, 10):  # the third point at its rung; one that went on
            raise SavedAndStopped("stopped")

    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(log.RunLog, "event", interrupt)
            with pytest.raises(SavedAndStopped):
                sweep(home / "tiny.toml", NINE, halving=True, run=run, say=QUIET)
    seen = trained(monkeypatch)
    found = sweep(home / "tiny.toml", NINE, halving=True, run=run, say=QUIET)
    assert 0 < len(seen) < 13
    assert found.best == grid.best
    assert bits(found.points[0]) == bits(grid.points[0])
    seen.clear()
    assert sweep(home / "tiny.toml", NINE, halving=True, run=run, say=QUIET) == found
    assert seen == []


def test_two_settings_are_drawn_together_and_points_can_be_added(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = home / "runs" / "two"
    words = [*SHORT, f"{RATE}=0.001,0.01", "model.d_ff=16,32"]
    assert len(sweep(home / "tiny.toml", words, run=run, say=QUIET).points) == 4
    seen = trained(monkeypatch)
    words[-2] = f"{RATE}=0.001,0.003,0.01"
    found = sweep(home / "tiny.toml", words, run=run, say=QUIET)
    assert sorted(name for name, _ in seen) == ["learning_rate=0.003,d_ff=16", "learning_rate=0.003,d_ff=32"]
    page = (run / "sweep.html").read_text()
    charts = re.findall(r'<figure data-chart><script type="application/json">(.+?)</script>', page, re.S)
    assert [sum(len(curve["y"]) for curve in json.loads(chart)["curves"]) for chart in charts] == [6]
    assert all(f"{bits(point):.4f}" in page for point in found.points)
    for change, told in (
        ([*SHORT[1:], "pretrain.steps=12", *words[-2:]], "settings: .*steps=18.* → .*steps=12"),
        ([*SHORT, f"{RATE}=0.003,0.01", words[-1]], "without learning_rate=0.001,d_ff=16, learning_rate=0.001,d_ff=32"),
    ):
        with pytest.raises(SettingsError, match=rf"holds another sweep:\n  {told}"):
            sweep(home / "tiny.toml", change, run=run, say=QUIET)


def test_a_point_that_diverges_is_a_result(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, run = [*SHORT, f"{RATE}=1e-3,1e38"], home / "runs" / "diverges"
    found = sweep(home / "tiny.toml", words, run=run, say=QUIET)
    assert [bool(point.diverged) for point in found.points] == [False, True]
    assert found.best == "learning_rate=0.001"
    seen = trained(monkeypatch)
    sweep(home / "tiny.toml", words, run=run, say=QUIET)
    assert seen == []
    with pytest.raises(DivergedError, match="every point of the sweep diverged"):
        sweep(home / "tiny.toml", [*SHORT, f"{RATE}=1e37,1e38"], run=home / "runs" / "all", say=QUIET)
    assert "Every point diverged" in (home / "runs" / "all" / "sweep.html").read_text()


def test_what_the_first_point_finds_fastest_all_have(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (home / "tiny.toml").read_text().replace('precision = "float32"\n', "")
    (home / "open.toml").write_text(text)
    found = sweep(home / "open.toml", [*SHORT, "pretrain.seed=1,2"], run=home / "runs" / "open", say=QUIET)
    made = [read_manifest(home / "runs" / "open" / point.name / "model").settings for point in found.points]
    assert made[0]["pretrain"]["precision"]["kind"] == found.chosen["pretrain.precision"]
    assert made[0]["pretrain"]["precision"] == made[1]["pretrain"]["precision"]


MISTAKES = [
    ([], "nothing is swept: give a setting several values, such as pretrain.optimizer.learning_rate=1e-4..1e-2:log:8"),
    ([f"{RATE}=1e-3"], "nothing is swept"),
    ([f"{RATE}=1e-4..1e-2"], "is not a range: write FIRST..LAST:log:HOW_MANY"),
    ([f"{RATE}=1e-4..1e-2:ln:8"], "is not a range"),
    ([f"{RATE}=1e-4..1e-2:log:1"], "is one value"),
    ([f"{RATE}=0..1e-2:log:3"], "has both ends above 0"),
    ([f"{RATE}=1e-3,1e-3"], "names 0.001 twice"),
    ([f"{RATE}=1e-4,1e-3", f"{RATE}=1e-2,1e-1"], "is given twice"),
    ([f"{RATE}=1e-4..1e-2:log:99999"], "at most 1,000"),
    (["pretrain.optimizer.learning_rat=1e-4,1e-3"], "unknown setting .*; did you mean learning_rate?"),
    (["model.n_heads=2,3"], "n_heads = 3 does not divide d_model = 16"),
    (["stray"], "is not of the form key=values"),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES)
def test_a_sweep_that_cannot_be_is_refused_with_an_example(home: Path, words: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        sweep(home / "tiny.toml", words, run=home / "runs" / "never", say=QUIET)
    assert not (home / "runs" / "never").exists()


def test_halving_that_cannot_be_is_refused(home: Path, tmp_path: Path) -> None:
    for words, told in (
        ([f"{RATE}=1e-3,1e-2"], "keeps the best third of the points, but there are 2"),
        (["pretrain.steps=10,20,30"], "but pretrain.steps is swept"),
        ([f"{RATE}=1,2,3", "pretrain.schedule.warmup_steps=30"], "within the 29 of the warm-up"),
    ):
        with pytest.raises(SettingsError, match=told):
            sweep(home / "tiny.toml", words, halving=True, run=home / "runs" / "never", say=QUIET)
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(SettingsError, match="is a run, not a sweep"):
        sweep(home / "tiny.toml", [f"{RATE}=1,2"], run=tmp_path, say=QUIET)


def test_a_swept_kind_keeps_the_settings_that_are_given_after_it(home: Path) -> None:
    words = ["model.norm.kind=rmsnorm,layernorm", "model.norm.epsilon=0.5"]
    loaded = sweeping.plan(home / "tiny.toml", words).points
    assert [(each.recipe.model.norm.kind, each.recipe.model.norm.epsilon) for each in loaded.values()] == [
        ("rmsnorm", 0.5),
        ("layernorm", 0.5),
    ]


def test_a_damaged_record_is_told(home: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"points": 3}))
    with pytest.raises(Exception, match=r"sweep\.json is damaged"):
        sweep(home / "tiny.toml", [f"{RATE}=1,2"], run=tmp_path, say=QUIET)
