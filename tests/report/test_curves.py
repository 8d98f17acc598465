"""Curves of growing files: at any width they are those of all lines, whatever was cut, broken or half-written."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.report.curves import (
    MAX_EVENTS,
    MAX_MEASUREMENTS,
    MAX_METRICS,
    MAX_SAMPLES,
    MAX_TEXT,
    SPEED,
    Curves,
    EventLog,
    HealthMaps,
    Tail,
)


def line(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "tokens": 64 * step, "seconds": 0.5 * step, "flops": 10**12 * step, **values}


def write(path: Path, lines: list[dict[str, Any]], mode: str = "w") -> None:
    with open(path, mode) as stream:
        stream.writelines(json.dumps(each) + "\n" for each in lines)


def read_all(path: Path) -> Curves:
    curves = Curves(path)
    while curves.read():
        pass
    return curves


def between(curves: Curves, axis: Any = "step", low: float | None = None, high: float | None = None, width: int = 4000,
         logarithmic: bool = False) -> dict[str, Any]:  # fmt: skip
    return curves.between(axis, low, high, width, logarithmic)


def test_a_short_run_is_drawn_point_by_point(tmp_path: Path) -> None:
    lines = [line(step, loss=3 / step) for step in range(1, 51)]
    lines.insert(20, {"step": 20, "validation_bits_per_byte": 1.5, "tokens": 20 * 64})
    write(tmp_path / "m", lines)
    drawn = between(read_all(tmp_path / "m"))
    assert drawn["loss"]["x"] == list(range(1, 51))
    assert drawn["loss"]["mean"] == pytest.approx([3 / step for step in range(1, 51)], rel=1e-5)
    assert drawn["validation_bits_per_byte"] == {"x": [20], "mean": [1.5]}
    assert set(drawn[SPEED]["mean"]) == {128}
    assert between(read_all(tmp_path / "m"), "seconds")["validation_bits_per_byte"]["x"] == [
        10
    ]  # of the step before it
    assert between(read_all(tmp_path / "m"), "flops", low=4e12, high=5e12)["loss"]["x"] == [3e12, 4e12, 5e12, 6e12]


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(10, 40), st.integers(1, 300))
def test_a_point_has_the_least_the_greatest_and_the_mean_of_its_lines(
    tmp_path_factory: pytest.TempPathFactory, seed: int, width: int, n_lines: int
) -> None:
    path, chance = tmp_path_factory.mktemp("curves") / "m", random.Random(seed)
    loss = [chance.gauss(0, 1) for _ in range(n_lines)]
    curves, at = Curves(path), 0
    while at < n_lines:  # arriving in parts of any size
        part = chance.randint(1, 90)
        write(path, [line(i + 1, loss=loss[i]) for i in range(at, min(at + part, n_lines))], "a")
        at += part
        while curves.read():
            pass
    assert curves.lines == n_lines
    groups: dict[int, list[float]] = {}
    for i, value in enumerate(loss):
        groups.setdefault(i if n_lines <= width else min(i * width // (n_lines - 1), width - 1), []).append(value)
    drawn = between(curves, width=width)["loss"]
    assert drawn["mean"] == pytest.approx([sum(group) / len(group) for group in groups.values()], rel=1e-4, abs=1e-6)
    assert drawn.get("low", drawn["mean"]) == pytest.approx([min(group) for group in groups.values()], rel=1e-5)
    assert drawn.get("high", drawn["mean"]) == pytest.approx([max(group) for group in groups.values()], rel=1e-5)


def test_a_very_long_run_is_thinned_evenly_and_keeps_extremes_and_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundup.report.curves.MAX_LINES", 256)
    loss = [math.sin(step) + step / 100 for step in range(4000)]
    spikes = [100.0 if step % 50 == 7 else 1.0 for step in range(4000)]
    curves = Curves(tmp_path / "m")
    for at in range(0, 4000, 20):
        steps = range(at, at + 20)
        write(tmp_path / "m", [line(step, loss=loss[step], grad_norm=spikes[step]) for step in steps], "a")
        write(tmp_path / "m", [{"step": at + 19, "validation_bits_per_byte": 1.0 + at}], "a")
        while curves.read():
            pass
        assert curves.lines <= 256
    drawn = between(curves)
    assert (drawn["loss"]["x"][0], drawn["loss"]["x"][-1]) == (0, 3999)
    assert (min(drawn["loss"]["mean"]), max(drawn["loss"]["mean"])) == pytest.approx((loss[1], max(loss)), abs=2)
    assert max(np.diff(drawn["loss"]["x"])) <= 128
    whole = between(curves, width=10)
    assert (min(whole["loss"]["low"]), max(whole["loss"]["high"])) == pytest.approx((min(loss), max(loss)), rel=1e-5)
    assert max(whole["grad_norm"]["high"]) == 100
    assert np.mean(whole["grad_norm"]["mean"]) == pytest.approx(np.mean(spikes), rel=0.1)
    validations = whole["validation_bits_per_byte"]
    assert (min(validations["low"]), max(validations["high"])) == (1.0, 3981.0)
    assert curves.last_x["step"] == 3999


def test_what_is_looked_at_closely_is_drawn_line_by_line(tmp_path: Path) -> None:
    write(tmp_path / "m", [line(step, loss=math.sin(step), seconds=step) for step in range(1, 5001)])
    curves = read_all(tmp_path / "m")
    near = between(curves, low=3000, high=3010, width=100)["loss"]
    assert near["x"] == list(range(2999, 3012))
    assert near["mean"] == pytest.approx([math.sin(step) for step in near["x"]], rel=1e-5)
    assert set(between(curves, low=3000, high=3010)[SPEED]["mean"]) == {64}


values = st.one_of(
    st.floats(), st.integers(-(2**60), 2**60), st.none(), st.booleans(), st.text(max_size=5), st.just([1]), st.just({})
)


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.sampled_from(["loss", "sample", "x"]), values), min_size=1, max_size=40))
def test_a_number_is_a_point_null_is_a_gap_and_other_values_are_nothing(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("curves") / "m"
    write(path, [{**values, "step": step} for step, values in enumerate(lines)])
    drawn = between(read_all(path))
    for name in ("loss", "x"):
        expected = {}
        for step, values in enumerate(lines):
            value = values.get(name, "")
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                with np.errstate(over="ignore"):
                    usable = value is not None and np.isfinite(np.float32(value))
                expected[step] = pytest.approx(value, rel=1e-5, abs=1e-40) if usable else None
        assert drawn.get(name, {"x": []})["x"] == list(expected)
        assert drawn.get(name, {"mean": []})["mean"] == list(expected.values())


def test_nan_and_null_are_gaps_and_what_is_no_line_says_nothing(tmp_path: Path) -> None:
    text = (
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\nnonsense\n[1]\n{"step": 3, "loss": null}\n\xff\n'
        '{"step": 4, "loss": 1e999}\n{"step": 5, "loss": 1e39}\n{"step": 6, "loss": "nan"}\n{"step": 7, "loss": 1.0}\n'
        '{"step": 8, "loss"'
    )
    (tmp_path / "m").write_text(text, encoding="latin-1")
    drawn = between(read_all(tmp_path / "m"))
    assert drawn["loss"] == {"x": [1, 2, 3, 4, 5, 7], "mean": [2.0, None, None, None, None, 1.0]}
    json.dumps(drawn, allow_nan=False)


def test_a_whole_number_beyond_all_floats_is_a_gap(tmp_path: Path) -> None:
    write(tmp_path / "m", [line(1, loss=10**400), line(2)])
    assert between(read_all(tmp_path / "m"))["loss"]["mean"] == [None, 1.0]


def test_a_line_that_is_being_written_is_read_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    curves = read_all(path)
    assert between(curves)["loss"]["x"] == [1]
    with open(path, "a") as stream:
        stream.write('ss": 3.0}\n')
    while curves.read():
        pass
    assert between(curves)["loss"]["mean"] == [2.0, 3.0]


@pytest.mark.parametrize("how", ["renamed", "rewritten", "emptied"])
def test_a_file_that_was_cut_back_is_read_anew(tmp_path: Path, how: str) -> None:
    path = tmp_path / "m"
    write(path, [line(step, loss=float(step)) for step in range(1, 101)])
    curves = read_all(path)
    cut = [line(step, loss=float(step)) for step in range(1, 41)]
    new = [line(step, loss=-1.0) for step in range(41, 41 if how == "emptied" else 200)]
    if how == "renamed":  # as RunLog.cut_after does, and it is longer already when it is looked at again
        write(tmp_path / "other", cut + new)
        (tmp_path / "other").replace(path)
    else:
        write(path, cut + new)
    while curves.read():
        pass
    assert curves.tail.generation == 1
    assert between(curves)["loss"]["x"][-1] == (40 if how == "emptied" else 199)
    assert curves.lines == len(cut + new)


def test_what_was_read_of_a_deleted_run_stays(tmp_path: Path) -> None:
    write(tmp_path / "m", [line(1), line(2)])
    curves = read_all(tmp_path / "m")
    (tmp_path / "m").unlink()
    assert not curves.read()
    assert between(curves)["loss"]["mean"] == [1.0, 1.0]


def test_memory_is_bounded_by_names_and_samples(tmp_path: Path) -> None:
    write(tmp_path / "m", [{f"metric {i}": 1.0 for i in range(500)}, {"sample": "x" * 10**4, "step": 1}] * 210)
    curves = read_all(tmp_path / "m")
    assert len(curves.metrics) == MAX_METRICS
    assert len(curves.samples) == MAX_SAMPLES
    assert all(len(sample["text"]) <= MAX_TEXT + 1 for sample in curves.samples)


def test_a_line_without_end_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"x" * 1000 + b'\n{"step": 1}\n')
    tail, lines = Tail(path), b""
    for _ in range(30):
        lines += tail.read(limit=100)[1]
    assert lines.endswith(b'{"step": 1}\n')


def test_speed_is_never_negative_whatever_the_clock_does(tmp_path: Path) -> None:
    seconds = [1.0, 2.0, 1.0, 1.0, 3600.0, 3601.0]
    write(tmp_path / "m", [line(step, seconds=at) for step, at in enumerate(seconds, start=1)])
    speeds = between(read_all(tmp_path / "m"))[SPEED]
    assert all(speed > 0 for speed in speeds["mean"])
    assert len(speeds["mean"]) == 3


def test_on_a_logarithmic_axis_points_are_spread_evenly(tmp_path: Path) -> None:
    write(tmp_path / "m", [line(step) for step in range(10_001)])
    x = between(read_all(tmp_path / "m"), width=40, logarithmic=True)["loss"]["x"]
    assert x[0] > 0
    assert len(x) <= 40
    assert sum(at <= 100 for at in x) == pytest.approx(len(x) / 2, abs=5)


def test_steps_have_positions_on_every_axis(tmp_path: Path) -> None:
    write(tmp_path / "m", [line(step) for step in range(10, 21)])
    assert read_all(tmp_path / "m").interpolated("seconds", [10, 15, 20, 99, 1]) == [5.0, 7.5, 10.0, None, None]
    assert Curves(tmp_path / "nothing").interpolated("step", [1]) == [None]


def test_events_are_plain_and_the_latest(tmp_path: Path) -> None:
    write(tmp_path / "e", [{"event": "saved", "step": n, "rows": [1, 2], "z": math.nan} for n in range(1200)])
    log = EventLog(tmp_path / "e")
    log.read()
    assert len(log.events) == MAX_EVENTS
    assert log.events[-1] == {"event": "saved", "step": 1199, "rows": "[1, 2]", "z": None}
    json.dumps(log.events, allow_nan=False)


def test_every_number_of_a_layer_is_a_map_thinned_when_there_are_many(tmp_path: Path) -> None:
    lines = [{"step": n, "layers": [{"norm": n, "name": "x"}, {"norm": math.nan, "dead": 0.5}]} for n in range(2000)]
    write(tmp_path / "h", [{"step": "x"}, {"layers": 3}, *lines])
    log = HealthMaps(tmp_path / "h")
    log.read()
    assert set(log.maps) == {"norm", "dead"}
    assert len(log.steps) <= MAX_MEASUREMENTS
    assert [column[0] for column in log.maps["norm"]] == log.steps
    assert set(np.diff(log.steps)) == {4}
    assert {tuple(column) for column in log.maps["dead"]} == {(None, 0.5)}
    assert {column[1] for column in log.maps["norm"]} == {None}
