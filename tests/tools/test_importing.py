"""Import: what `load` reads becomes a model directory of ours that holds the same; a pickle is never opened."""

import json
import pickle
from pathlib import Path

import pytest
import torch

import groundup
from groundup.artifacts import verify
from groundup.errors import DataError, SettingsError
from groundup.files import write_json
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tools.importing import import_model
from groundup.weights.configs import filled
from groundup.weights.files import digest_of
from groundup.weights.gguf import write_gguf
from groundup.weights.load import read_weights
from groundup.weights.names import to_published, write_config
from groundup.weights.write import write_tensors

TEMPLATE = "{% for message in messages %}{{ bos_token + message['content'] + eos_token }}{% endfor %}"


@pytest.fixture
def model() -> Transformer:
    return Transformer(ModelConfig(vocab_size=320, d_model=64, n_layers=2, n_heads=2, d_ff=96), seed=3).eval()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.learn("low lower lowest", vocab_size=320)


def same(ours: Transformer, theirs: Transformer) -> bool:
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    return filled(ours.config) == filled(theirs.config) and all(
        a == b and torch.equal(x, y) for (a, x), (b, y) in pairs
    )


def test_a_gguf_file_becomes_a_model_of_ours(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    source = tmp_path / "small.gguf"
    write_gguf(source, model.config, dict(model.named_parameters()), tokenizer, kind="f32", template=TEMPLATE)
    directory, manifest = import_model(source, tmp_path / "model")
    assert manifest == verify(directory, "model") and manifest.inputs == {"source": digest_of(source)}
    assert manifest.statistics["parameters"]["embed"] == 320 * 64
    again, its = groundup.load(directory, device="cpu")
    assert again.config == model.config
    assert same(again, model) and its is not None and (its.digest, its.roles) == (tokenizer.digest, tokenizer.roles)
    layout = json.loads((directory / "chat.json").read_text())
    assert layout == {"layout": "template", "template": TEMPLATE} | dict.fromkeys(
        ("bos_token", "eos_token"), "<|endoftext|>"
    )
    assert {path.name for path in directory.iterdir()} == {*manifest.files, "manifest.json"}
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "chat.json", "generation.json"}
    assert manifest.files.keys() == wanted


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16), ("q8_0", torch.float32)])
def test_weights_keep_their_precision_and_packed_ones_become_float32(
    tmp_path: Path, model: Transformer, tokenizer: Tokenizer, kind: str, dtype: torch.dtype
) -> None:
    source = tmp_path / "small.gguf"
    write_gguf(source, model.config, dict(model.named_parameters()), tokenizer, kind=kind)  # type: ignore[arg-type]
    directory, _ = import_model(source, tmp_path / "model")
    _, weights = read_weights(directory)
    assert weights["blocks.0.feedforward.up.weight"].dtype == dtype
    assert weights["norm.weight"].dtype == torch.float32
    assert same(groundup.load(directory, device="cpu")[0], groundup.load(source, device="cpu")[0])


def test_a_hugging_face_directory_becomes_a_model_of_ours(
    tmp_path: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    source = tmp_path / "theirs"
    source.mkdir()
    write_json(source / "config.json", write_config("llama", model.config))
    weights = to_published("llama", model.config, dict(model.named_parameters()))
    write_tensors(source / "model.safetensors", weights)
    tokenizer.save(source)
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}))
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "top_p": 0.9, "do_sample": True}))
    directory, _ = import_model(source, tmp_path / "model")
    again, its = groundup.load(directory, device="cpu")
    assert torch.equal(again(torch.arange(9)[None]), model(torch.arange(9)[None]))
    assert its is not None and its.roles.stops == {tokenizer.special["<|im_end|>"]}
    assert json.loads((directory / "chat.json").read_text())["template"] == TEMPLATE
    sampling = json.loads((directory / "generation.json").read_text())
    assert (sampling["temperature"], sampling["top_p"]) == (0.3, 0.9)
    twice, manifest = import_model(directory, tmp_path / "twice")
    assert manifest.files == verify(directory, "model").files and same(groundup.load(twice, device="cpu")[0], again)


def test_a_model_of_llama2c_brings_the_tokenizer_beside_it(tmp_path: Path, shared: Path) -> None:
    directory, _ = import_model(shared / "data/weights/stories260K/stories260K.bin", tmp_path / "stories")
    assert (directory / "tokenizer.model").is_file()
    written = groundup.generate(
        *groundup.load(directory, device="cpu"), "Once upon a time", max_tokens=30, temperature=0.0
    )
    assert written.startswith(", there was a little girl named Lily")


def test_what_an_import_makes_is_written_as_gguf_and_comes_back(tmp_path: Path, shared: Path) -> None:
    """A SentencePiece vocabulary, with its scores."""
    source = shared / "data/weights/stories260K/stories260K.bin"
    model, tokenizer = groundup.load(source, device="cpu")
    assert tokenizer is not None
    write_gguf(tmp_path / "x.gguf", model.config, dict(model.named_parameters()), tokenizer, kind="f32")
    again, its = groundup.load(tmp_path / "x.gguf", device="cpu")
    assert same(again, model) and its is not None
    text = "Once upon a time,  there was\na naïve 🦊."
    assert its.encode(text) == tokenizer.encode(text)
    assert (its.tokens, its.special, its.roles) == (tokenizer.tokens, tokenizer.special, tokenizer.roles)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name", ["model.pt", "model.bin", "model.gguf", "dir/pytorch_model.bin", "dir/model.safetensors"]
)
def test_a_pickle_is_refused_by_its_name_and_not_run(tmp_path: Path, model: Transformer, name: str) -> None:
    done, file = tmp_path / "done", tmp_path / name
    file.parent.mkdir(exist_ok=True)
    write_json(file.parent / "config.json", write_config("llama", model.config))
    file.write_bytes(pickle.dumps(Harmful(done)))
    with pytest.raises(
        DataError, match=rf"{file.name}.* (is|has).*(a pickle|no whole|not a whole)|{file.name}, a pickle"
    ):
        groundup.load(file.parent if name.startswith("dir") else file, device="cpu")
    with pytest.raises(DataError):
        import_model(file.parent if name.startswith("dir") else file, tmp_path / "out")
    assert not done.exists() and not (tmp_path / "out").exists()


def test_nothing_is_written_over_and_a_tokenizer_is_needed(
    tmp_path: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    source = tmp_path / "small.gguf"
    write_gguf(source, model.config, dict(model.named_parameters()), None, kind="f32")
    with pytest.raises(DataError, match=r"small\.gguf has no tokenizer in it"):
        import_model(source, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.gguf"]
    (tmp_path / "model").mkdir()
    with pytest.raises(SettingsError, match="model exists and is left as it is: choose another --out"):
        import_model(source, tmp_path / "model")
