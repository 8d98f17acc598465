"""Models from Hugging Face directories give Hugging Face's logits; ours come back; the rest is refused by name."""

import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import groundup
from groundup.artifacts import making
from groundup.corpus.settings import CorpusSettings
from groundup.errors import DataError, DivergedError, SettingsError
from groundup.evals.run import score_files
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.files import not_finite
from groundup.weights.gguf import write_gguf
from groundup.weights.write import save

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


def hugging_face(kind: str, changes: dict[str, object]) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    sizes = GPT2 if kind == "gpt2" else LLAMA
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **changes})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


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
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
    with pytest.warns(UserWarning, match="without its tokenizer.*tokenizer.json: its model is WordPiece"):
        _, loaded = groundup.load(tmp_path, device="cpu")
    assert loaded is None


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    hugging_face("llama", {}).save_pretrained(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(
        SettingsError, match="304 ids besides special and added tokens, the model rows for 90: they do not belong"
    ):
        groundup.load(tmp_path, device="cpu")


def test_dtype_is_as_asked(tmp_path: Path) -> None:
    hugging_face("gpt2", {}).save_pretrained(tmp_path)
    for dtype in ("bfloat16", torch.bfloat16):
        model, _ = groundup.load(tmp_path, device="cpu", dtype=dtype)
        assert next(model.parameters()).dtype == torch.bfloat16
    with pytest.raises(SettingsError, match="dtype 'float33'"):
        groundup.load(tmp_path, device="cpu", dtype="float33")


def test_our_own_directory_comes_back_the_same(
    tmp_path: Path, model: Transformer, config: ModelConfig, tokenizer: Tokenizer
) -> None:
    wide = Transformer(config.with_vocabulary(320)).eval()
    with making(tmp_path / "model", "model", {}, {}) as draft:
        save(draft.path, wide.config, dict(wide.named_parameters()), tokenizer)
    again, same = groundup.load(tmp_path / "model", device="cpu")
    tokens = torch.randint(0, 320, (1, 24))
    assert torch.equal(again(tokens), wide(tokens))
    assert again.config == wide.config
    assert same is not None
    assert same.tokens == tokenizer.tokens


def test_damage_and_pickles_are_refused(tmp_path: Path, llama: ModelConfig) -> None:
    model = Transformer(llama)
    with making(tmp_path / "model", "model", {}, {}) as draft:
        save(draft.path, llama, dict(model.named_parameters()), None)
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


STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


def llama2c_text(tokenizer: Path, ids: list[int]) -> str:
    """The text of `ids` by llama2.c's `tokenizer.bin`: a score, a length and the text of each token."""
    raw = tokenizer.read_bytes()
    tokens, offset = [], 4  # after the length of the longest
    while offset < len(raw):
        (length,) = struct.unpack_from("<i", raw, offset + 4)
        text = raw[offset + 8 : offset + 8 + length]
        byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", text)
        tokens.append(bytes.fromhex(byte[1].decode()) if byte else text)
        offset += 8 + length
    return b"".join(tokens[number] for number in ids).decode().removeprefix(" ")


def test_llama2c_files_are_read(shared: Path) -> None:
    """A model by others, trained on stories: its greedy continuation is the one that its authors show."""
    folder = shared / "data" / "weights" / "stories260K"
    model, tokenizer = groundup.load(folder / "stories260K.bin", device="cpu")
    assert tokenizer is not None and tokenizer.opener == 1
    (ids,) = groundup.Engine(model).generate([[1]], max_tokens=60, temperature=0.0)
    assert llama2c_text(folder / "tok512.bin", ids).startswith(STORY)
    text = tokenizer.decode(ids)
    assert text.startswith(STORY)
    assert ids[: len(tokenizer.encode(text))] == tokenizer.encode(text)


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_files_of_ours_come_back(tmp_path: Path, tied: bool) -> None:
    """Written here by the format's description, from Hugging Face's weights, which are in the other channel order."""
    theirs = hugging_face("llama", {"tie_word_embeddings": tied, "rms_norm_eps": 1e-5})
    theirs.save_pretrained(tmp_path)
    expected, _ = groundup.load(tmp_path, device="cpu")
    weights = {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}

    def by_pairs(weight: np.ndarray) -> np.ndarray:
        heads = weight.reshape(-1, 2, 3, 24)  # a head of 6 channels: two halves of three
        return heads.transpose(0, 2, 1, 3)

    layers = [f"model.layers.{layer}." for layer in range(3)]
    parts = [weights["model.embed_tokens.weight"]]
    parts += [weights[layer + "input_layernorm.weight"] for layer in layers]
    for name, change in (("q", by_pairs), ("k", by_pairs), ("v", np.asarray), ("o", np.asarray)):
        parts += [change(weights[f"{layer}self_attn.{name}_proj.weight"]) for layer in layers]
    parts += [weights[layer + "post_attention_layernorm.weight"] for layer in layers]
    for name in ("gate", "down", "up"):
        parts += [weights[f"{layer}mlp.{name}_proj.weight"] for layer in layers]
    parts += [weights["model.norm.weight"], np.zeros(2 * 20 * 3, np.float32)]
    parts += [] if tied else [weights["lm_head.weight"]]
    header = np.array([24, 40, 3, 4, 2, 90 if tied else -90, 20], "<i4")
    file = tmp_path / "tiny.bin"
    file.write_bytes(header.tobytes() + b"".join(np.ascontiguousarray(part, "<f4").tobytes() for part in parts))
    model, _ = groundup.load(file, device="cpu")
    tokens = torch.randint(0, 90, (2, 20))
    torch.testing.assert_close(model(tokens), expected(tokens), atol=1e-5, rtol=0)
    sizes = (8, 8, 1, 4, 3, 5, 16)  # three key/value heads for four
    floats = 5 * 8 + 8 + 8 * 8 + 2 * 6 * 8 + 8 * 8 + 8 + 3 * 8 * 8 + 8 + 2 * 16 * 1
    (tmp_path / "odd.bin").write_bytes(np.array(sizes, "<i4").tobytes() + bytes(4 * floats))
    with pytest.raises(DataError, match="odd.bin describes a model that cannot be: n_kv_heads = 3 does not divide"):
        groundup.load(tmp_path / "odd.bin")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match="a file of llama2.c that is not whole"):
        groundup.load(file)


# Numbers that are none


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, dtype: torch.dtype, bad: float) -> None:
    largest = torch.finfo(dtype).max
    held = {"fine": torch.tensor([[largest, -largest, 0.0]] * 5, dtype=dtype), "ids": torch.full((3,), -1)}
    save_file(held, tmp_path / "fine.safetensors")
    assert list(not_finite(tmp_path / "fine.safetensors")) == []
    spoilt = held["fine"].clone()
    spoilt[4, 1] = bad
    save_file({**held, "spoilt": spoilt, "empty": torch.zeros(0, dtype=dtype)}, tmp_path / "bad.safetensors")
    assert list(not_finite(tmp_path / "bad.safetensors")) == ["spoilt"]


def test_scores_that_are_no_numbers_are_named_where_the_weights_are_finite(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    theirs = hugging_face("gpt2", {"vocab_size": 320})
    with torch.no_grad():
        theirs.transformer.h[0].mlp.c_fc.weight.fill_(3e38)
    theirs.save_pretrained(tmp_path)
    model, _ = groundup.load(tmp_path, device="cpu")
    with pytest.raises(DivergedError, match="scores for the next token are not finite numbers"):
        groundup.generate(model, tokenizer, "the king", max_tokens=3)
    (tmp_path / "a.txt").write_text("the king and the fox")
    with pytest.raises(DivergedError, match=r"not finite numbers \(NaN or Inf\) to 1 of 1 document"):
        score_files(model, tokenizer, (str(tmp_path / "a.txt"),), CorpusSettings(sources=("x",)))


def test_a_model_with_a_nan_is_refused_on_loading_by_the_name_in_its_file(tmp_path: Path) -> None:
    theirs = hugging_face("gpt2", {})
    with torch.no_grad():
        theirs.transformer.h[0].mlp.c_fc.weight[3, 2] = math.nan
    theirs.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"h\.0\.mlp\.c_fc\.weight holds numbers that are not finite"):
        groundup.load(tmp_path, device="cpu")


def test_buffers_that_nothing_reads_may_hold_anything(tmp_path: Path) -> None:
    theirs = hugging_face("gpt2", {})
    theirs.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    held["transformer.h.0.attn.masked_bias"] = torch.tensor(-math.inf)
    save_file(held, tmp_path / "model.safetensors")
    groundup.load(tmp_path, device="cpu")


def test_float8_knows_nan_too(tmp_path: Path) -> None:
    for dtype, nan in ((torch.float8_e4m3fn, 0x7F), (torch.float8_e5m2, 0x7E)):
        raw = torch.arange(0, 0x78, dtype=torch.uint8)
        save_file({"fine": raw.view(dtype)}, tmp_path / "fine.safetensors")
        save_file({"bad": torch.tensor([1, nan], dtype=torch.uint8).view(dtype)}, tmp_path / "bad.safetensors")
        assert list(not_finite(tmp_path / "fine.safetensors")) == []
        assert list(not_finite(tmp_path / "bad.safetensors")) == ["bad"]


MEASURE = """
import sys
from pathlib import Path
import torch
from groundup.weights.load import load_model

def own_bytes():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024

load_model(sys.argv[1], device="cpu")
before = own_bytes()
model = load_model(sys.argv[2], device="cpu")
model(torch.tensor([[1, 2, 3]]))
print(own_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system does not say what memory is mapped")
@pytest.mark.parametrize("kind", ["ours", "gguf"])
def test_weights_stay_in_the_file_until_they_are_used(tmp_path: Path, kind: str) -> None:
    """Memory of the process's own grows by far less than the weights take; GGUF's queries and keys are reordered."""
    for name, d_ff in (("small", 64), ("large", 60_000)):
        model = Transformer(ModelConfig(vocab_size=320, d_model=64, n_layers=2, n_heads=2, d_ff=d_ff), seed=0)
        weights = dict(model.named_parameters())
        if kind == "gguf":
            write_gguf(tmp_path / name, model.config, weights, None, kind="f32")
        else:
            (tmp_path / name).mkdir()
            save(tmp_path / name, model.config, weights, None)
    size = sum(weight.numel() * 4 for weight in weights.values())
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert size > 90e6 and grown < size / 4
