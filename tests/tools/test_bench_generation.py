"""How fast a model writes is measured by the engine, and against what reading its weights takes."""

import json
from pathlib import Path

import pytest
import torch

from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tools.bench_generation import bench_generation, rows
from groundup.weights.write import save


@pytest.fixture
def saved(llama: ModelConfig, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(tmp_path, llama, dict(Transformer(llama).named_parameters()), tokenizer=None)
    return tmp_path


def test_the_limit_is_that_of_reading_the_weights(saved: Path, llama: ModelConfig) -> None:
    whole, packed = bench_generation(saved), bench_generation(saved, "int8")
    matrices = sum(p.numel() for name, p in Transformer(llama).named_parameters() if p.ndim == 2)  # the head's is tied
    assert (whole.weight_bytes, packed.weight_bytes) == (4 * matrices, matrices)
    for speed in (whole, packed):
        assert speed.limit == pytest.approx(speed.bytes_per_second / speed.weight_bytes)
        assert 0 < speed.tokens_per_second[1] < speed.limit
        assert 0 < speed.first_token_seconds < speed.new_tokens / speed.tokens_per_second[1]
        assert json.loads(json.dumps(speed.table()))["limit_tokens_per_second"] == speed.limit
    assert [name for name, _ in rows(whole)][:2] == ["one request", "16 at once"]
