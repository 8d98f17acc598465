"""The programs in bench/ that nobody can try here: their parts at toy size, on the CPU."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from groundup.model.settings import ModelConfig
from groundup.optim.settings import Bfloat16

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/gpu.py, which compiles nothing."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "bench")
    import gpu  # type: ignore[import-not-found]

    plain = gpu.settings_of
    monkeypatch.setattr(gpu, "settings_of", lambda *given: plain(*given[:3], False))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
    yield gpu
    del sys.modules["gpu"]


@pytest.fixture
def tiny(gpu: ModuleType) -> ModelConfig:
    sizes = {"vocab_size": 64, "d_model": 16, "n_layers": 1, "n_heads": 2}
    config: ModelConfig = gpu.gpt2("gpt2", 48).model_copy(update=sizes)
    return config


@pytest.mark.slow
def test_every_measurement_of_a_gpu_makes_a_row_of_one_table(
    gpu: ModuleType, tiny: ModelConfig, tmp_path: Path
) -> None:
    rows = [
        gpu.train_ours(tiny, 2, Bfloat16(), CPU, 0.0),
        gpu.train_hugging_face(tiny, 2, CPU, 0.0, True),
        gpu.train_hugging_face(tiny, 2, CPU, 0.0, False),
        gpu.save(tiny, 2, CPU, 2, 2),
        gpu.hold(tiny, 2, "full", CPU),
    ]
    for row in rows:
        gpu.append(tmp_path / "table.md", {"part": "toy", "what": "it"} | row)
    lines = (tmp_path / "table.md").read_text().strip().splitlines()
    assert len(lines) == 2 + len(rows)
    assert {line.count("|") for line in lines} == {11}
    assert all(0 < float(row["share of the measured peak"]) < 1 for row in rows[:3])


def test_rows_are_halved_until_a_model_fits(gpu: ModuleType, tiny: ModelConfig) -> None:
    counted = gpu.MemoryNeeds(tiny, Bfloat16(), gpu.PretrainSettings().optimizer, 8).bytes()
    assert gpu.rows_that_fit(tiny, 2 * counted) == 8
    assert gpu.rows_that_fit(tiny, 0) == 1


def test_parts_name_shapes_that_were_published(gpu: ModuleType) -> None:
    sizes = {name: gpu.gpt2(preset).parameters / 1e6 for name, preset in (("124m", "gpt2"), ("1.5b", "gpt2-xl"))}
    assert sizes == pytest.approx({"124m": 124.5, "1.5b": 1557.7}, rel=1e-3)
    for part in gpu.PARTS.values():
        assert part(CPU, 10**13)


def test_without_a_gpu_it_says_so_and_measures_nothing(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "124m"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is no GPU here that torch can use: nothing was measured"):
        gpu.main()
