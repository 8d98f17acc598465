"""Speed: counted tokens over real time, each part of a step where it belongs, the trace a trace."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from groundup.batch import Batch
from groundup.building import build
from groundup.errors import SettingsError
from groundup.model.settings import ModelConfig
from groundup.optim.settings import Autocast, Bfloat16, Float32
from groundup.pretrain import setup
from groundup.pretrain import speed as speeds
from groundup.pretrain.settings import PretrainSettings
from groundup.pretrain.setup import set_up, training_flops_per_token
from groundup.pretrain.speed import matmul_peak, measure_speed, peak_dtype, settle, time_steps
from groundup.tools import bench as benching
from groundup.tools.bench import bench

CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=320, context_length=16, d_model=16, n_layers=1, n_heads=2)
SETTINGS = PretrainSettings(batch_tokens=64, micro_batch_rows=2, precision=Float32(), device="cpu")


class Clock:
    """In the place of the module `time`: a reading takes a microsecond, and what is slow adds its seconds itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speeds, "time", clock)
    monkeypatch.setattr(speeds, "matmul_peak", lambda *_: 1e9)
    return clock


def rows(clock: Clock | None = None, seconds: float = 0.0) -> Iterator[Batch]:
    tokens = torch.arange(64).view(4, 16)
    position, document = torch.arange(16).expand(4, 16), torch.zeros(4, 16, dtype=torch.long)
    while True:
        if clock is not None:
            clock.now += seconds
        yield Batch(tokens, tokens, torch.ones(4, 16), position, document)


def test_tokens_a_second_are_those_of_the_clock(clock: Clock) -> None:
    slow = rows(clock, 0.03)
    taken, tokens = time_steps(set_up(CONFIG, SETTINGS, CPU), SETTINGS, slow, seconds=0.0, steps=6)
    assert (len(taken), tokens) == (6, 64)
    assert taken == pytest.approx([0.03] * 6, abs=1e-4)
    taken, _ = time_steps(set_up(CONFIG, SETTINGS, CPU), SETTINGS, rows(clock, 0.03), seconds=0.2)
    assert len(taken) == 7  # 0.21 s


def test_each_part_of_a_step_is_where_its_time_goes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowed down one after the other. Two micro-batches, so forward comes twice."""
    real = setup.make_loss

    def slow(*given):  # type: ignore[no-untyped-def]
        loss = real(*given)

        def waiting(model, batch):  # type: ignore[no-untyped-def]
            clock.now += 0.05
            return loss(model, batch)

        return waiting

    nothing = dict.fromkeys(("data", "forward", "backward", "clip", "optimizer", "rest"), 0.0)
    data = measure_speed(CONFIG, SETTINGS, rows(clock, 0.1), CPU, steps=3).parts
    assert list(data) == list(nothing)
    assert all(seconds > 0 for seconds in data.values())
    assert data == pytest.approx(nothing | {"data": 0.1}, abs=1e-4)
    monkeypatch.setattr(setup, "make_loss", slow)
    forward = measure_speed(CONFIG, SETTINGS, rows(), CPU, steps=3).parts
    assert forward == pytest.approx(nothing | {"forward": 0.1}, abs=1e-4)


def test_the_share_of_the_peak_follows_from_the_counted_matmuls() -> None:
    speed = measure_speed(CONFIG, SETTINGS, rows(), CPU, steps=4)
    assert speed.slowest <= speed.tokens_per_second <= speed.fastest
    assert speed.flops_per_token == training_flops_per_token(CONFIG, SETTINGS.loss)
    assert speed.share_of_peak == speed.tokens_per_second * speed.flops_per_token / speed.peak_flops
    assert 0 < speed.share_of_peak < 1
    assert speed.peak_bytes > 50e6  # torch alone takes more
    assert json.loads(json.dumps(speed.table()))["steps"] == 4


def test_the_peak_is_that_of_the_fastest_matmul(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the large square one runs at 2 GFLOP/s and those of the model's shapes at half of it."""
    clock = Clock()
    monkeypatch.setattr(speeds, "time", clock)
    square = speeds.SQUARE_ON_CPU

    def matmul(x: torch.Tensor, weight: torch.Tensor) -> None:
        flops = 2 * x.shape[0] * x.shape[1] * weight.shape[0]
        clock.now += flops / (2e9 if x.shape[0] == square else 1e9)

    monkeypatch.setattr(speeds, "linear", matmul)
    assert matmul_peak(CONFIG, SETTINGS, CPU, seconds=0.05) == pytest.approx(2e9, rel=1e-3)
    assert [peak_dtype(kind) for kind in (Float32(), Bfloat16(), Autocast())] == [
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    ]


@pytest.mark.parametrize(
    ("float32", "bfloat16", "compiled", "chosen"),
    [
        (100.0, 50.0, 120.0, (Float32(), True)),
        (100.0, 300.0, 310.0, (Bfloat16(), True)),
        (100.0, 300.0, 290.0, (Bfloat16(), False)),
        (100.0, 9e9, 0.0, (Bfloat16(), False)),  # done before anything would be compiled: it is not tried
    ],
)
def test_what_is_fastest_is_chosen(
    float32: float, bfloat16: float, compiled: float, chosen: tuple[object, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def timed(model: ModelConfig, trial: PretrainSettings, *_: object) -> float:
        assert trial.precision is not None
        tried.append((trial.precision, trial.compile))
        return compiled if trial.compile else {"float32": float32, "bfloat16": bfloat16}[trial.precision.kind]

    monkeypatch.setattr(speeds, "tokens_per_second", timed)
    monkeypatch.setattr(speeds, "why_not_compiled", lambda *_: None)
    asked = PretrainSettings(batch_tokens=64, micro_batch_rows=2, steps=100_000_000)
    settled, told = settle(CONFIG, asked, Path(), CPU)
    assert (settled.precision, settled.compile) == chosen
    assert tried == [(Float32(), False), (Bfloat16(), False), *([(chosen[0], True)] if compiled else [])]
    assert len(told) == len(tried) - 1
    set_already = asked.model_copy(update={"precision": Autocast(), "compile": False})
    assert settle(CONFIG, set_already, Path(), CPU)[0] == set_already.model_copy(update={"device": "cpu"})
    assert len(tried) == len(told) + 1  # nothing was timed for it


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    return settle(tmp_path_factory.mktemp("bench")).parent


@pytest.fixture
def quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(benching, "SECONDS", 10.0)


@pytest.mark.usefixtures("quick")
def test_a_recipe_is_measured_on_its_own_rows_which_its_build_then_takes() -> None:
    told: list[str] = []
    trace = Path("trace.json.gz")
    measured = bench(Path("tiny.toml"), ["pretrain.precision=bfloat16"], steps=3, trace=trace, say=told.append)
    assert told == ["text and tokens are kept in runs/tiny-bench, where builds find them"]
    assert measured.speed.batch_tokens == 64
    assert measured.speed.machine["precision"] == "bfloat16"
    assert not Path("runs/tiny-bench/pretrain").exists()
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)
    assert 0 < len(measured.speed.operations) <= 10
    made = build("tiny.toml", last="pack", say=told.append)
    assert {row.what for row in made.rows} == {"from runs/tiny-bench"}
    run = bench(Path("runs/tiny"), ["model.d_ff=64"], steps=3)
    assert run.speed.flops_per_token > measured.speed.flops_per_token
    with pytest.raises(SettingsError, match=r"tokenizer\.vocab_size is set, but the shards in runs/tiny are made"):
        bench(Path("runs/tiny"), ["tokenizer.vocab_size=384"])


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_measured_is_refused(home: Path) -> None:
    with pytest.raises(SettingsError, match="tales is neither a recipe nor a run with shards"):
        bench(Path("tales"))
    with pytest.raises(SettingsError, match="--trace nowhere/trace.json cannot be written"):
        bench(Path("tiny.toml"), trace=Path("nowhere/trace.json"))
    Path("runs/mine-bench/model").mkdir(parents=True)
    with pytest.raises(SettingsError, match="runs/mine-bench is a run of its own"):
        bench(Path("tiny.toml"), ["name=mine"])
