"""Watching runs in a real browser: going on, dead, many, hostile, cut back, deleted; and the server coming back."""

import fcntl
import itertools
import json
import math
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from groundup.errors import DataError
from groundup.files import write_text
from groundup.pages import app as pages
from groundup.report import watch
from groundup.report.facts import differing_settings
from groundup.report.watch import Runs, WatchedRun

HOSTILE = "<img src=x onerror=document.title='owned'>"
NAMES = [HOSTILE, "‮gnorw si siht‬ שלום", "👩‍👩‍👧 run", "a" * 250, "'\";--&amp;", "..%2f..%2fetc"]


Serving = Callable[[Path], str]


def line(step: int, **values: Any) -> dict[str, Any]:
    loss = 2 + 3 / step
    return {"step": step, "loss": loss, "grad_norm": 1 / step, "learning_rate": 1e-3, "tokens": 64 * step,
            "seconds": step / 4, "flops": 10**9 * step, **values}  # fmt: skip


def make(directory: Path, steps: int, recipe: str = 'name = "x"\n', events: tuple[str, ...] = ("started",)) -> Path:
    """A run as far as its training left it."""
    (directory / "pretrain").mkdir(parents=True)
    (directory / "recipe.toml").write_text(recipe)
    add(directory, [line(step) for step in range(1, steps + 1)])
    log = [{"at": f"2026-01-01T00:00:0{n}Z", "event": event, "step": n} for n, event in enumerate(events)]
    (directory / "pretrain" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log))
    return directory


def add(directory: Path, lines: list[dict[str, Any]]) -> None:
    with open(directory / "pretrain" / "metrics.jsonl", "a") as stream:
        stream.writelines(json.dumps(each) + "\n" for each in lines)


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Serves folders from a thread; the address."""
    started = []

    def start(place: Path) -> str:
        server, listening = pages.server(watch.make_app(Runs([place]))), pages.listen(0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        started.append((server, thread))
        return pages.address(listening)

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A page that may say nothing in the console, neither of errors nor of its policy."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(600_000)  # milliseconds; a bound on a hang
    tab = context.new_page()
    heard: list[str] = []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    yield tab
    context.close()
    assert [said for said in heard if "ERR_CONNECTION_REFUSED" not in said] == []


def card(tab: Any, title: str) -> Any:
    return tab.locator(".card", has=tab.get_by_role("heading", name=title, exact=True))


def test_a_run_that_goes_on_is_drawn_as_it_goes(serving: Serving, tab: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "going", 20)
    with open(run / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1 on here\n")
        lock.flush()
        tab.goto(serving(tmp_path))
        tab.get_by_text("running · step 20, 1,280 tokens, 5 s").wait_for()
        before = card(tab, "Training loss").locator("path.line").first.get_attribute("d")
        add(run, [line(step, loss=9.0) for step in range(21, 41)])
        add(
            run,
            [
                {"step": 40, "validation_bits_per_byte": 1.25, "tokens": 2560},
                {"step": 40, "sample": "Once <b>upon</b>"},
            ],
        )
        tab.get_by_text("running · step 40").wait_for()
        assert card(tab, "Training loss").locator("path.line").first.get_attribute("d") != before
        assert (
            card(tab, "Training loss").locator("svg.chart").get_attribute("aria-label")
            == "Training loss over step: going 9"
        )
        card(tab, "Validation").wait_for()
        assert tab.locator("blockquote").inner_text() == "Once <b>upon</b>"
        assert tab.title() == "1 running: watch"
        new = make(tmp_path / "later", 5)  # begins while the page is open
        tab.locator(".runs .name", has_text=new.name).wait_for()


def test_ten_runs_and_hostile_names_have_their_own_lines_and_stay_text(
    serving: Serving, tab: Any, tmp_path: Path
) -> None:
    names = [*NAMES, "b", "c", "d", "e"]
    for number, name in enumerate(names):
        run = make(
            tmp_path / name, 30, f'name = "x"\n[pretrain]\nsteps = {number}\nsame = 1\nprompt = {json.dumps(HOSTILE)}\n'
        )
        add(run, [{"step": 31, "sample": HOSTILE, "tokens": 1}, line(32, **{HOSTILE: 1.0})])
    tab.goto(serving(tmp_path))
    tab.locator(".runs li").nth(9).wait_for()
    listed = tab.locator(".runs .name").all_text_contents()
    assert sorted(listed) == sorted(names)
    for box in tab.locator(".runs input").all():
        box.check()
    tab.locator(".settings th").nth(10).wait_for()
    loss = card(tab, "Training loss")
    styles = loss.locator("path.line:not(.faint)").evaluate_all("all => all.map(e => e.getAttribute('class'))")
    assert len(styles) == len(set(styles)) == 10
    assert tab.locator(".settings td:first-child").all_text_contents() == ["pretrain.steps"]
    assert card(tab, HOSTILE).count() == 1
    assert tab.title() == "groundup: watch"
    assert tab.locator("img").count() == 0
    tab.locator(".runs input").first.uncheck()
    tab.locator(".settings th").nth(10).wait_for(state="detached")


def test_dragging_zooms_and_the_address_keeps_what_is_looked_at(serving: Serving, tab: Any, tmp_path: Path) -> None:
    make(tmp_path / "a", 1000)
    address = serving(tmp_path)
    tab.goto(address)
    drawing = card(tab, "Training loss").locator("svg.chart")
    box = drawing.bounding_box()
    tab.mouse.move(box["x"] + 200, box["y"] + 100)
    assert "step" in card(tab, "Training loss").locator(".reading").inner_text()
    tab.mouse.down()
    tab.mouse.move(box["x"] + 300, box["y"] + 100)
    tab.mouse.up()
    tab.get_by_role("button", name="Show all").wait_for()
    low, high = (float(re.search(rf"{end}=([\d.]+)", tab.url)[1]) for end in ("low", "high"))  # type: ignore[index]
    plot = box["width"] - 70
    assert low == pytest.approx(1 + 999 * (200 - 58) / plot, abs=2)
    assert high == pytest.approx(1 + 999 * (300 - 58) / plot, abs=2)
    card(tab, "Gradient norm").get_by_role("button", name="log").click()
    tab.locator("select").select_option("tokens")
    tab.get_by_label("log", exact=True).check()
    assert "logs=grad_norm" in tab.url
    kept = tab.url
    tab.goto("about:blank")
    tab.goto(kept)
    tab.get_by_role("heading", name="Training loss").wait_for()
    assert tab.locator("select").input_value() == "tokens"
    assert card(tab, "Gradient norm").get_by_role("button").get_attribute("aria-pressed") == "true"
    tab.goto(address + "#low=NaN&axis=evil&runs=../../etc&logs=constructor&smoothing=1e9")
    tab.reload()
    tab.locator(".runs li").wait_for()


@pytest.mark.slow
def test_a_file_cut_back_and_a_deleted_run(serving: Serving, tab: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "a", 50)
    tab.goto(serving(tmp_path))
    tab.get_by_text("step 50,").wait_for()
    write_text(run / "pretrain" / "metrics.jsonl", "".join(json.dumps(line(step)) + "\n" for step in range(1, 31)))
    tab.get_by_text("step 30,").wait_for()
    add(run, [line(31, loss=math.nan), {"step": 32, "loss": None}, line(33)])
    tab.get_by_text("step 33,").wait_for()
    d = card(tab, "Training loss").locator("path.line").last.get_attribute("d")
    assert d.count("M") == 2  # the curve is broken where there is no number
    shutil.rmtree(run)
    tab.get_by_text("deleted").wait_for()
    assert card(tab, "Training loss").is_visible()


@pytest.mark.slow
def test_the_page_waits_for_a_server_that_went_away(watching: Any, tab: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "a", 10)
    address, process = watching(tmp_path)
    tab.goto(address)
    tab.get_by_text("step 10,").wait_for()
    process.terminate()
    assert process.wait(timeout=600) == 0
    tab.get_by_role("status").get_by_text("No answer").wait_for()
    assert card(tab, "Training loss").is_visible()
    add(run, [line(11)])
    again, _ = watching(tmp_path, port=int(address.rstrip("/").rpartition(":")[2]))
    assert again == address
    tab.get_by_text("step 11,").wait_for()
    tab.locator(".notice").wait_for(state="hidden")


def test_ranks_have_bars_where_a_run_has_them(serving: Serving, tab: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "a", 10)
    tab.goto(serving(tmp_path))
    card(tab, "Training loss").wait_for()
    assert tab.locator(".ranks").is_hidden()
    times = {"computing": [4.0, 6.0], "collectives": [6.0, 4.0], "waiting": [2.0, 0.0], "bytes": [8e6, 8e6]}
    add(run, [{"step": 10, "ranks": times}])
    tab.locator(".ranks tbody tr").nth(1).wait_for()
    widths = tab.locator(".stack").first.locator("i").evaluate_all("all => all.map(e => e.clientWidth)")
    assert [width / sum(widths) for width in widths] == pytest.approx([0.4, 0.4, 0.2], abs=0.02)
    assert tab.locator(".ranks tr").nth(2).locator("td").all_inner_texts()[2:] == [
        "1.00 s", "60%", "40%", "0%", "800.0 kB",
    ]  # fmt: skip


def test_health_is_a_map_of_layers_over_time(serving: Serving, tab: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "a", 10)
    write_text(
        run / "pretrain" / "health.jsonl",
        "".join(
            json.dumps(
                {"step": step, "layers": [{"gradient_norm": 1.0}, {"gradient_norm": step}, {"gradient_norm": None}]}
            )
            + "\n"
            for step in (1, 2, 3)
        ),
    )
    tab.goto(serving(tmp_path))
    canvas = card(tab, "gradient norm").locator("canvas")
    canvas.wait_for()
    cells = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    size = canvas.evaluate("c => [c.width, c.height]")
    assert size == [3, 3]
    light = [[sum(cells[4 * (3 * layer + t) :][:3]) for t in range(3)] for layer in range(3)]
    assert light[0][0] == light[0][1] == light[0][2] == light[1][0]
    assert light[1][0] < light[1][1] < light[1][2]
    assert cells[4 * 6 + 3] == 0  # nothing where there is no number


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_fits_and_can_be_read(
    serving: Serving, browser: Any, too_faint: str, tmp_path: Path, width: int, scheme: str
) -> None:
    make(tmp_path / "a", 100, events=("started", "resumed", "diverged"))
    make(tmp_path / "b", 50, 'name = "x"\n[pretrain]\nsteps = 1\n')
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(serving(tmp_path))
    tab.locator(".settings td").first.wait_for()
    card(tab, "Training loss").locator("svg.chart").hover()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(too_faint) == []
    context.close()


def test_the_state_of_a_run_is_known(tmp_path: Path) -> None:
    def state(run: Path) -> str:
        return str(WatchedRun(run, "x").status()["state"])

    assert state(make(tmp_path / "stopped", 3, events=("started", "saved", "stopped"))) == "stopped"
    assert state(make(tmp_path / "diverged", 3, events=("started", "diverged"))) == "diverged"
    killed = make(tmp_path / "killed", 3)
    (killed / "lock").write_text("process 1 on here, since then\n")
    assert state(killed) == "killed"
    assert state(make(tmp_path / "waiting", 0, events=())) == "waiting"
    assert state(tmp_path / "nothing") == "gone"
    finished = make(tmp_path / "finished", 3)
    (finished / "model").mkdir()
    (finished / "model" / "manifest.json").write_text("{}")
    assert state(finished) == "finished"
    with open(killed / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state(killed) == "running"


def test_a_lock_that_was_let_go_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "killed", 3)
    (run / "lock").write_text("process 1 on here, since then\n")
    tried: list[Path] = []
    real = watch.lock_note
    monkeypatch.setattr(watch, "lock_note", lambda directory: tried.append(directory) or real(directory))
    watched = WatchedRun(run, "x")
    assert [watched.status()["state"] for _ in range(3)] == ["killed"] * 3
    assert len(tried) == 1
    (run / "lock").write_text("process 2 on here, since now\n")
    watched.status()
    assert len(tried) == 2


def test_a_run_without_a_new_line_for_long_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "a", 3)
    with open(run / "lock", "w") as lock:
        lock.write("process 1\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert WatchedRun(run, "x").status()["state"] == "running"
        later = time.time() + 1000
        monkeypatch.setattr(time, "time", lambda: later)
        assert WatchedRun(run, "x").status()["state"] == "quiet"


def test_runs_are_found_in_folders_and_known_by_the_same_id(tmp_path: Path) -> None:
    make(tmp_path / "runs" / "a", 1)
    make(tmp_path / "runs" / "sweep" / "b", 1)
    make(tmp_path / "runs" / "a" / "inner", 1)
    (tmp_path / "runs" / "notes").mkdir()
    runs = Runs([tmp_path / "runs"])
    assert [run.name for run in runs.all()] == ["a", "sweep/b"]
    assert [run.id for run in Runs([tmp_path / "runs" / "a"]).all()] == [runs.all()[0].id]
    assert runs.find("0" * 12) is None
    with pytest.raises(DataError, match="no run or folder of runs at .*nowhere"):
        Runs([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"recipe.toml is a file; name a run"):
        Runs([tmp_path / "runs" / "a" / "recipe.toml"])


def test_settings_that_differ_are_listed_and_a_broken_recipe_is_none(tmp_path: Path) -> None:
    first = make(tmp_path / "a", 1, "[pretrain]\nseed = 0\nsteps = 1\n")
    second = make(tmp_path / "b", 1, "[pretrain]\nseed = 0\nsteps = 2\nclip = 1.0\n")
    broken = make(tmp_path / "c", 1, "no toml")
    one, two, none = (WatchedRun(run, run.name).recipe() for run in (first, second, broken))
    assert differing_settings([one, two]) == {"pretrain.clip": [None, 1.0], "pretrain.steps": [1, 2]}
    assert differing_settings([one, none])["pretrain.steps"] == [1, None]
    assert differing_settings([]) == {}


def test_answers_are_json_without_nan_and_unchanged_ones_are_short(serving: Serving, tmp_path: Path) -> None:
    run = make(tmp_path / "a", 3)
    add(run, [line(4, loss=math.nan, sample="\ud800"), {"step": 5, "sample": "\ud800"}])
    address = serving(tmp_path)

    def get(path: str) -> Any:
        with urllib.request.urlopen(address + path) as answer:
            return json.loads(answer.read(), parse_constant=lambda name: pytest.fail(name))

    id = get("api/runs")["runs"][0]["id"]
    answer = get(f"api/curves/{id}")
    assert answer["metrics"]["loss"]["mean"][3] is None
    assert get(f"api/curves/{id}?since={answer['version']}") == {"id": id, "version": answer["version"]}
    assert get(f"api/more/{id}")["samples"][0]["text"] == "?"
    assert get(f"api/differences?ids={id},x,../..")["ids"] == [id]


@pytest.mark.slow
def test_a_million_steps_are_drawn_while_they_are_read(
    serving: Serving, tab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path / "long", 0)
    with open(run / "pretrain" / "metrics.jsonl", "w") as stream:
        for step in range(1, 1_000_001):
            stream.write(
                f'{{"step": {step}, "loss": {2 + 3 / step:.6f}, "tokens": {64 * step}, "seconds": {step / 4}}}\n'
            )
    read, drawn, asked = WatchedRun.read, threading.Event(), itertools.count()

    def read_on(run: WatchedRun) -> None:
        if next(asked) == 0:
            read(run, seconds=0.0)  # one portion
        elif drawn.is_set():
            read(run)

    monkeypatch.setattr(WatchedRun, "read", read_on)
    tab.goto(serving(tmp_path))
    card(tab, "Training loss").locator("path.line").first.wait_for()
    assert tab.get_by_text("step 1M,").count() == 0
    drawn.set()
    tab.get_by_text("step 1M,").wait_for()
    points = card(tab, "Training loss").locator("path.line").first.get_attribute("d")
    assert len(points) < 100_000
