"""ONNX: one file whose logits in onnxruntime are ours, for any number of rows and positions."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from groundup.errors import SettingsError
from groundup.export import check, onnx
from groundup.export.run import export
from groundup.export.settings import ExportSettings
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.write import save

SHAPES = {
    "llama": {"n_kv_heads": 2, "attention": {"qk_norm": "head"}},
    "gpt2": {
        "position": {"kind": "learned"}, "norm": {"kind": "layernorm"}, "attention": {"bias": "all"},
        "feedforward": {"kind": "gelu"}, "head": {"tied": False},
    },
    "alibi": {"position": {"kind": "alibi"}, "embedding_norm": True},
    "windows and soft caps": {"attention": {"window": 4, "soft_cap": 5.0, "windowed_layers": [True, False]}},
    "latent": {"attention": {"kind": "latent", "d_latent": 8, "d_rotary": 4}},
    "yarn": {"position": {"kind": "rotary", "scaling": {"kind": "yarn", "factor": 2.0, "trained_length": 8}}},
}  # fmt: skip
SIZES = {"vocab_size": 320, "context_length": 24, "d_model": 32, "n_layers": 2, "n_heads": 4}


def write(folder: Path, tokenizer: Tokenizer, shape: dict[str, object]) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.from_table({**SIZES, **shape}, "test")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder.mkdir()
    save(folder, model.config, dict(model.named_parameters()), tokenizer)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_onnxruntime_gives_our_logits_at_other_sizes_than_the_traced(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = write(tmp_path / "source", tokenizer, SHAPES[name])
    agreement = export(tmp_path / "source", tmp_path / "out", ExportSettings(to=("onnx",)))
    assert agreement.largest_difference < 1e-4
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"model.onnx", "tokenizer.json", "README.md", "manifest.json"}
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    for rows, length in ((1, 1), (4, 24), (2, 9)):
        ids = torch.randint(320, (rows, length))
        (theirs,) = session.run(None, {"tokens": ids.numpy()})
        np.testing.assert_allclose(theirs, model(ids).detach().numpy(), atol=1e-4, rtol=0)


def test_experts_are_refused_by_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "source", tokenizer, {"feedforward": {"kind": "experts", "n_experts": 3}})
    with pytest.raises(SettingsError, match=r"feedforward.kind = experts: .* export huggingface or gguf"):
        export(tmp_path / "source", tmp_path / "out", ExportSettings(to=("onnx",)))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_weights_that_one_file_cannot_hold_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "source", tokenizer, {})
    monkeypatch.setattr(onnx, "LARGEST", 1000)
    with pytest.raises(SettingsError, match=r"the weights take \d[\d,]+ bytes in float32; a file of ONNX holds 1,000"):
        export(tmp_path / "source", tmp_path / "out", ExportSettings(to=("onnx",)))


def test_missing_libraries_are_named_with_the_command_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None if name == "onnxscript" else json)
    with pytest.raises(SettingsError, match=r"onnxscript, which is not installed: pip install 'groundup\[onnx\]'"):
        check.refuse_impossible(ExportSettings(to=("onnx",)), ModelConfig(vocab_size=320))
