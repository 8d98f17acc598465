"""Models from Hugging Face directories give Hugging Face's logits; ours come back; the rest is refused by name."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.testing import assert_close

import groundup
from groundup import pretrained
from groundup.errors import DataError, SettingsError
from groundup.files import making
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer

FLOAT32 = 1e-4  # the tolerance the project promises

GPT2 = {"vocab_size": 90, "n_positions": 20, "n_embd": 24, "n_layer": 3, "n_head": 4}
LLAMA = {
    "vocab_size": 90,
    "max_position_embeddings": 20,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
}
SHAPES: list[tuple[str, dict[str, object]]] = [
    ("gpt2", {}),
    ("gpt2", {"n_inner": 50, "activation_function": "gelu", "tie_word_embeddings": False}),
    ("gpt2", {"n_embd": 30, "n_head": 3, "layer_norm_epsilon": 1e-3, "activation_function": "gelu_pytorch_tanh"}),
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 1e-3}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1, "head_dim": 10}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
]


def hugging_face(kind: str, changes: dict[str, object]) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2, **changes}))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases and gains too
    return model.eval()


@pytest.mark.parametrize(("kind", "changes"), SHAPES)
def test_logits_equal_hugging_faces(tmp_path: Path, kind: str, changes: dict[str, object]) -> None:
    theirs = hugging_face(kind, changes)
    theirs.save_pretrained(tmp_path)
    ours, tokenizer = groundup.load(tmp_path, device="cpu")
    assert tokenizer is None
    tokens = torch.randint(0, 90, (2, 20))
    with torch.no_grad():
        assert_close(ours(tokens), theirs(tokens).logits, atol=FLOAT32, rtol=0)


def test_published_layout_without_prefix_and_in_several_files(tmp_path: Path) -> None:
    theirs = hugging_face("gpt2", {})
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    sharded, _ = groundup.load(tmp_path, device="cpu")
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    bare = {name.removeprefix("transformer."): t.contiguous() for name, t in theirs.state_dict().items()}
    bare.pop("lm_head.weight")
    bare["h.0.attn.bias"] = torch.ones(1, 1, 20, 20)  # the mask that GPT-2's published file carries
    save_file(bare, tmp_path / "model.safetensors")
    published, _ = groundup.load(tmp_path, device="cpu")
    tokens = torch.randint(0, 90, (1, 20))
    assert torch.equal(sharded(tokens), published(tokens))


def test_the_tokenizer_beside_the_model_is_loaded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    hugging_face("llama", {"vocab_size": 320}).save_pretrained(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    _, loaded = groundup.load(tmp_path, device="cpu")
    assert loaded is not None
    assert loaded.encode("the king") == tokenizer.encode("the king")


def test_a_tokenizer_that_is_not_represented_is_left_out_with_a_warning(tmp_path: Path) -> None:
    hugging_face("llama", {}).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.warns(UserWarning, match="without its tokenizer.*Unigram"):
        _, loaded = groundup.load(tmp_path, device="cpu")
    assert loaded is None


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    hugging_face("llama", {}).save_pretrained(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(SettingsError, match="320 ids, the model 90: they do not belong together"):
        groundup.load(tmp_path, device="cpu")


def test_dtype_is_as_asked(tmp_path: Path) -> None:
    hugging_face("gpt2", {}).save_pretrained(tmp_path)
    for dtype in ("bfloat16", torch.bfloat16):
        model, _ = groundup.load(tmp_path, device="cpu", dtype=dtype)
        assert next(model.parameters()).dtype == torch.bfloat16
    with pytest.raises(SettingsError, match="dtype 'float33'"):
        groundup.load(tmp_path, device="cpu", dtype="float33")


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type = 'linear'",
        ),
        (
            "llama",
            {"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 8},
            "n_kv_heads = 2 does not divide",
        ),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(
    tmp_path: Path, kind: str, changes: dict[str, object], named: str
) -> None:
    base = {"model_type": kind, **(GPT2 if kind == "gpt2" else LLAMA), **changes}
    (tmp_path / "config.json").write_text(json.dumps(base))
    with pytest.raises(DataError, match=named):
        groundup.load(tmp_path, device="cpu")


def test_our_own_directory_comes_back_the_same(
    tmp_path: Path, model: Transformer, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    wide = Transformer(config.with_vocabulary(320)).eval()
    with making(tmp_path / "model", "model", {}, {}) as draft:
        pretrained.save(draft.path, wide.config, dict(wide.named_parameters()), tokenizer)
    again, same = groundup.load(tmp_path / "model", device="cpu")
    tokens = torch.randint(0, 320, (1, 24))
    assert torch.equal(again(tokens), wide(tokens))
    assert again.config == wide.config
    assert same is not None
    assert same.tokens == tokenizer.tokens


def test_damage_and_pickles_are_refused(tmp_path: Path, llama: ModelConfig) -> None:
    model = Transformer(llama)
    with making(tmp_path / "model", "model", {}, {}) as draft:
        pretrained.save(draft.path, llama, dict(model.named_parameters()), None)
    weights = tmp_path / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 4
    weights.write_bytes(raw)
    with pytest.raises(DataError, match="sha256 of model.safetensors"):
        groundup.load(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    weights.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        groundup.load(tmp_path / "model")
    weights.write_bytes(b"\x80\x04\x95 a pickle")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        groundup.load(tmp_path / "model")
    weights.rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin, a pickle"):
        groundup.load(tmp_path / "model")
    with pytest.raises(DataError, match="is a pickle"):
        groundup.load(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(DataError, match="no model at"):
        groundup.load(tmp_path / "nothing")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    theirs = hugging_face("llama", {})
    theirs.save_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**table, "intermediate_size": 41}))
    with pytest.raises(DataError, match=r"feedforward\.gate\.weight is \(40, 24\), not \(41, 24\)"):
        groundup.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**table, "num_hidden_layers": 4}))
    with pytest.raises(DataError, match=r"missing blocks\.3\.attention_norm\.weight"):
        groundup.load(tmp_path)
