"""GGUF of an export: tokenizer and template inside, weights rounded as told, and the error of the logits told."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from groundup.errors import DamagedError, SettingsError
from groundup.export import gguf as exporting
from groundup.export.run import export
from groundup.export.settings import ExportSettings
from groundup.export.subject import Subject
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.chat import CHATML, CHATML_TEMPLATE
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.files import chat_of
from groundup.weights.load import load_with_tokenizer, read_weights
from groundup.weights.write import save

MESSAGES = [{"role": "user", "content": "the king </s> <|im_end|>"}, {"role": "assistant", "content": "the fox"}]


@pytest.fixture
def source(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "context_length": 24, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96}
    model = Transformer(ModelConfig.from_table(sizes, "test"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    source = tmp_path / "source"
    source.mkdir()
    save(source, model.config, dict(model.named_parameters()), tokenizer)
    (source / "chat.json").write_text(json.dumps(CHATML))
    return source


@pytest.mark.parametrize("form", ["float32", "float16", "bfloat16", "q8_0", "q4_0"])
def test_weights_are_the_rounded_ones_and_the_error_of_the_logits_is_told(form: str, source: Path) -> None:
    how = {"quantize": form} if form.startswith("q") else {"dtype": form}
    out = source.with_name("out")
    agreement = export(source, out, ExportSettings.from_table({"to": "gguf", "licence": "mit", **how}, "test"))
    model, tokenizer = load_with_tokenizer(source, "cpu")
    again, same = load_with_tokenizer(out / "model.gguf", "cpu")
    ids = Subject.read(source).probe
    assert ids.shape == (1, 24) and len({*ids[0].tolist()}) > 5
    difference = (model(ids) - again(ids)).abs()
    assert agreement.largest_difference == pytest.approx(difference.max().item(), rel=1e-3, abs=1e-6)
    bounds = {"float32": 0, "float16": 0.02, "bfloat16": 0.2, "q8_0": 0.2, "q4_0": 3}
    assert agreement.largest_difference <= bounds[form] and ("same logits" in agreement.words) == (form == "float32")
    assert same.digest == tokenizer.digest and [*same.special] == [*tokenizer.special]


def test_another_programs_reader_finds_template_tokenizer_and_licence(source: Path) -> None:
    export(source, source.with_name("out"), ExportSettings(to=("gguf",), quantize="q8_0", licence="mit"))
    assert {path.name for path in source.with_name("out").iterdir()} == {"model.gguf", "README.md", "manifest.json"}
    reader = gguf.GGUFReader(source.with_name("out") / "model.gguf")
    assert reader.fields["tokenizer.chat_template"].contents() == CHATML_TEMPLATE
    assert reader.fields["general.license"].contents() == "mit"
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 320
    _, weights = read_weights(source)
    stored = {tensor.name: tensor for tensor in reader.tensors}["blk.0.ffn_down.weight"]
    assert stored.tensor_type == gguf.GGMLQuantizationType.Q8_0
    theirs = gguf.quants.quantize(weights["blocks.0.feedforward.down.weight"].numpy(), stored.tensor_type)
    np.testing.assert_array_equal(stored.data.reshape(theirs.shape), theirs)


def test_a_model_is_talked_to_from_gguf_as_before(source: Path) -> None:
    out = source.with_name("out")
    export(source, out, ExportSettings(to=("gguf",)))
    before, after = chat_of(source), chat_of(out / "model.gguf")
    assert before is not None and after is not None
    assert before.render(MESSAGES) == after.render(MESSAGES)
    assert before.tokenizer.roles == after.tokenizer.roles
    back = source.with_name("back")
    export(out / "model.gguf", back, ExportSettings())
    (_, weights), (_, again) = read_weights(source), read_weights(back)
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)


def test_what_was_not_rounded_but_changed_is_not_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rightly = exporting.read_weights
    monkeypatch.setattr(
        exporting, "read_weights",
        lambda file: (rightly(file)[0], {name: w.roll(1, 0) for name, w in rightly(file)[1].items()}),
    )  # fmt: skip
    with pytest.raises(DamagedError, match="the model, read back, has another"):
        export(source, source.with_name("out"), ExportSettings(to=("gguf",), quantize="q8_0"))
    assert not source.with_name("out").exists()


def test_a_model_that_llama_cpp_does_not_know_is_refused_by_its_setting(source: Path, tokenizer: Tokenizer) -> None:
    shutil.rmtree(source)
    source.mkdir()
    sizes = {"vocab_size": 320, "context_length": 24, "d_model": 64, "n_layers": 1, "n_heads": 4}
    config = ModelConfig.from_table({**sizes, "position": {"kind": "sinusoidal"}}, "test")
    save(source, config, dict(Transformer(config).named_parameters()), tokenizer)
    with pytest.raises(SettingsError, match="position"):
        export(source, source.with_name("out"), ExportSettings(to=("gguf",)))
