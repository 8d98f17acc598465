"""Every published architecture gives the logits of Hugging Face, at once and token by token; or is refused by name."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

import groundup
from groundup.errors import DataError, SettingsError
from groundup.files import write_json
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.weights.names import (
    architectures,
    from_published,
    published_kind,
    read_config,
    to_published,
    write_config,
)
from groundup.weights.write import write_tensors

FLOAT32 = 1e-4  # the tolerance the project promises
LENGTH = 23

GPT2 = {"vocab_size": 90, "n_positions": 24, "n_embd": 36, "n_layer": 3, "n_head": 4}
LLAMA = {
    "vocab_size": 90,
    "max_position_embeddings": 24,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 50,
}
NEOX = {
    "vocab_size": 90,
    "max_position_embeddings": 24,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 50,
}
OPT = {**{key: NEOX[key] for key in NEOX if key != "intermediate_size"}, "ffn_dim": 50}
BASE: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gptj": {**GPT2, "rotary_dim": 4},
    "opt": OPT,
    "gpt_neox": NEOX,
    "bloom": {"vocab_size": 90, "hidden_size": 36, "n_layer": 3, "n_head": 4},
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": {**LLAMA, "num_local_experts": 5},
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 10},
    "olmo2": LLAMA,
    "gemma2": {**LLAMA, "head_dim": 10},
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 3.0, "original_max_position_embeddings": 8}
CHANGES: dict[str, list[dict[str, Any]]] = {
    "gpt2": [
        {},
        {"n_inner": 50, "activation_function": "gelu", "tie_word_embeddings": False},
        {"n_embd": 30, "n_head": 3, "layer_norm_epsilon": 1e-3, "activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "relu", "n_layer": 1},
    ],
    "gptj": [
        {},
        {"rotary_dim": 8, "n_head": 3, "n_inner": 31},
        {"rotary_dim": 2, "tie_word_embeddings": True, "activation_function": "gelu"},
        {"n_embd": 40, "n_head": 5, "rotary_dim": 8, "layer_norm_epsilon": 1e-3},
    ],
    "opt": [
        {},
        {"do_layer_norm_before": False, "word_embed_proj_dim": 20},  # OPT-350M
        {"enable_bias": False, "activation_function": "gelu", "tie_word_embeddings": False},
        {"word_embed_proj_dim": 50, "num_attention_heads": 2},
    ],
    "gpt_neox": [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
        {"use_parallel_residual": False, "num_attention_heads": 2, "hidden_act": "gelu_new"},
        {"attention_bias": False, "rotary_pct": 1.0, "rotary_emb_base": 100, "tie_word_embeddings": True},
        {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.67}, "layer_norm_eps": 1e-3},
        {"rotary_emb_base": 100, "rope_theta": 7.0},
    ],
    "bloom": [
        {},
        {"n_head": 3, "layer_norm_epsilon": 1e-3},
        {"n_head": 12, "tie_word_embeddings": False},
        {"n_head": 1, "n_layer": 1},
    ],
    "llama": [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 6, "rms_norm_eps": 1e-3},
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1, "head_dim": 10},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "hidden_act": "gelu"},
        {"rope_parameters": LINEAR},
        {"rope_parameters": DYNAMIC},
        {"rope_parameters": LLAMA3, "head_dim": 16},
        {"rope_parameters": YARN, "head_dim": 16},
        {"rope_parameters": {**YARN, "beta_fast": 8, "beta_slow": 2, "attention_factor": 1.3}},
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}, "head_dim": 22},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 300.0},
        {"rope_scaling": {**YARN, "factor": 2.0}, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
    ],
    "mistral": [
        {},
        {"sliding_window": 5},
        {"sliding_window": None, "head_dim": 8, "tie_word_embeddings": True},
    ],
    "mixtral": [
        {},
        {"num_experts_per_tok": 1, "sliding_window": 6},
        {"num_local_experts": 3, "num_experts_per_tok": 3, "tie_word_embeddings": True},
        {"num_local_experts": 1, "num_experts_per_tok": 1},
    ],
    "qwen2": [
        {},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        {
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ],
    "qwen3": [
        {},
        {"attention_bias": True, "num_key_value_heads": 3},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "tie_word_embeddings": True},
        {"rope_parameters": YARN},
    ],
    "olmo2": [
        {},
        {"attention_bias": True, "num_key_value_heads": 6},
        {"num_key_value_heads": 1, "rms_norm_eps": 1e-3, "tie_word_embeddings": True},
    ],
    "gemma2": [
        {},
        {"sliding_window": 5, "query_pre_attn_scalar": 20, "attention_bias": True},
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 3, "num_hidden_layers": 4},
    ],
}
ALL = [pytest.param(kind, changes, id=f"{kind}-{n}") for kind in CHANGES for n, changes in enumerate(CHANGES[kind])]


def hugging_face(kind: str, changes: dict[str, Any]) -> transformers.PreTrainedModel:
    """A random model of theirs, its weights large enough that every part matters."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **copy.deepcopy({**BASE[kind], **changes}))
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.float().eval()


@pytest.mark.parametrize(("kind", "changes"), ALL)
def test_logits_equal_hugging_faces(
    tmp_path: Path, kind: str, changes: dict[str, Any], in_steps: Callable[..., Tensor]
) -> None:
    theirs = hugging_face(kind, changes)
    theirs.save_pretrained(tmp_path)
    ours, _ = groundup.load(tmp_path, device="cpu")
    tokens = torch.randint(0, 90, (2, LENGTH))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert_close(ours(tokens), expected, atol=FLOAT32, rtol=0)
    assert_close(in_steps(ours, tokens, [5] + [1] * (LENGTH - 5)), expected, atol=FLOAT32, rtol=0)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(("kind", "changes"), ALL)
def test_what_is_written_as_published_comes_back_and_gives_the_same_logits(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    """Read here, our weights bit for bit and our config; read by Hugging Face, our logits."""
    theirs = transformers.AutoConfig.for_model(kind, **copy.deepcopy({**BASE[kind], **changes})).to_dict()
    config = read_config({**theirs, "model_type": kind})
    torch.manual_seed(0)
    ours = Transformer(config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter).clamp(-4, 4) * 0.1)
    weights = {name: parameter.detach() for name, parameter in ours.named_parameters()}
    back = from_published(kind, config, to_published(kind, config, weights))
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(back[name], weight), name
    write_json(tmp_path / "config.json", write_config(kind, config))
    write_tensors(tmp_path / "model.safetensors", to_published(kind, config, weights))
    again, _ = groundup.load(tmp_path, device="cpu")
    assert write_config(kind, again.config) == write_config(kind, config)
    tokens = torch.randint(0, 90, (2, LENGTH))
    published = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        assert torch.equal(again(tokens), ours(tokens))
        assert_close(ours(tokens), published.eval()(tokens).logits, atol=FLOAT32, rtol=0)


UNWRITABLE: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"position": {"kind": "alibi"}}, "as llama: model.position.kind is 'alibi', there 'rotary'$"),
    ("llama", {"attention": {"qk_norm": "head"}}, "model.attention.qk_norm is 'head', there 'none'"),
    ("llama", {"embedding_scale": 3.0}, "model.embedding_scale is 3.0, there None"),
    (
        "llama",
        {"position": {"kind": "rotary", "scaling": {"kind": "ntk"}}},
        "model.position.scaling.kind is 'ntk', there 'none'",
    ),
    ("llama", {"feedforward": {"kind": "relu"}}, "model.feedforward.kind is 'relu', there 'swiglu'"),
    (
        "gpt2",
        {"position": {"kind": "learned", "offset": 2}, "norm": {"kind": "layernorm"}},
        "model.feedforward.kind is 'swiglu', there 'gelu'",
    ),
    ("mixtral", {}, "model.feedforward.kind is 'swiglu', there 'experts'"),
]


@pytest.mark.parametrize(("kind", "changes", "named"), UNWRITABLE)
def test_what_an_architecture_cannot_have_is_refused_by_name(kind: str, changes: dict[str, Any], named: str) -> None:
    config = ModelConfig.from_table({"vocab_size": 90, "d_model": 24, "n_layers": 1, "n_heads": 2, **changes})
    with pytest.raises(SettingsError, match=named):
        write_config(kind, config)


def test_every_name_map_is_compared() -> None:
    assert set(CHANGES) == set(architectures())


@pytest.mark.parametrize("kind", CHANGES)
def test_the_kind_that_a_model_is_written_as_says_all_of_it(kind: str) -> None:
    config = read_config({"model_type": kind, **BASE[kind]})
    chosen = published_kind(config)
    assert write_config(chosen, config)["model_type"] == chosen
    known = list(architectures())
    assert known.index(chosen) <= known.index(kind)


def test_a_model_that_no_published_architecture_has_is_refused_with_what_the_nearest_lacks() -> None:
    config = ModelConfig.from_table({"vocab_size": 90, "d_model": 24, "n_heads": 2, "embedding_scale": 3.0})
    with pytest.raises(SettingsError, match=r"as llama: model\.embedding_scale is 3\.0, there None$"):
        published_kind(config)


@pytest.mark.parametrize("kind", CHANGES)
def test_names_without_their_prefix_are_read_too(tmp_path: Path, kind: str) -> None:
    hugging_face(kind, {}).save_pretrained(tmp_path)
    with_prefix, _ = groundup.load(tmp_path, device="cpu")
    file = tmp_path / "model.safetensors"
    bare = {name.removeprefix(architectures()[kind].prefix): tensor for name, tensor in load_file(file).items()}
    save_file(bare, file)
    without, _ = groundup.load(tmp_path, device="cpu")
    tokens = torch.randint(0, 90, (1, LENGTH))
    assert_close(without(tokens), with_prefix(tokens), atol=1e-6, rtol=0)  # the file's alignment may change the kernel


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"activation_function": "quick_gelu"}, "activation_function = 'quick_gelu'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
    ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm = True"),
    ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = False"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm = True"),
    ("gpt_neox", {"rotary_pct": 0.2}, "of a head's 16 is 3"),
    ("gptj", {"rotary_dim": 3}, "rotary_dim = 3; it should be an even number"),
    ("llama", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
    ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type = 'longrope'"),
    ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate = False"),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ("llama", {"num_key_value_heads": 4}, "n_kv_heads = 4 does not divide"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"hidden_size": "36"}, "hidden_size = '36'; it should be a whole number from 1"),
    ("qwen2", {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 3}, "'chunked_attention'"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("mamba", {}, "model_type 'mamba'; known are groundup, gpt2"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types = .*; only .. is represented here"),
    ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact = True"),
    ("gemma2", {"layer_types": ["full_attention"]}, "it should name each of the 3 layers"),
    (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": None, "layer_types": ["sliding_attention"] * 3},
        "not set",
    ),
    ("gpt2", {"hidden_size": 48}, "hidden_size = 48 and n_embd = 36, which are the same"),
    ("gpt_neox", {"num_attention_heads": 0}, "num_attention_heads = 0; it should be a whole number from 1"),
    ("gptj", {"rotary_dim": 12}, "rotary_dim = 12; it should be an even number of a head's 9 channels"),
    ("gptj", {"rotary_dim": 0}, "rotary_dim = 0; it should be a whole number"),
    ("gemma2", {"query_pre_attn_scalar": -4}, "query_pre_attn_scalar = -4; it should be a number above 0"),
    ("llama", {"hidden_act": ["silu"]}, "hidden_act = .'silu'."),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling = 'linear'; it should be a table"),
    ("llama", {"rope_theta": 10**400}, "rope_theta = 1000"),
    ("llama", {"rms_norm_eps": 0.0}, "rms_norm_eps = 0.0; it should be a number above 0"),
    ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings = None; known here: True, False"),
    ("mistral", {"sliding_window": 0}, "sliding_window = 0; it should be a whole number"),
    ("llama", {"vocab_size": 10**14}, "no model.safetensors"),
]


@pytest.mark.parametrize(("kind", "changes", "named"), REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(
    tmp_path: Path, kind: str, changes: dict[str, Any], named: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **BASE.get(kind, {}), **changes}))
    with pytest.raises(DataError, match=named):
        groundup.load(tmp_path, device="cpu")


@pytest.mark.parametrize("kind", CHANGES)
def test_what_is_left_out_of_the_config_is_as_in_their_class(kind: str) -> None:
    """Old files say only what differs from the defaults of their time; these are still the class's."""
    sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "ffn_dim", "intermediate_size", "hidden_size")
    sizes += ("max_position_embeddings", "num_hidden_layers", "num_attention_heads")
    said = {name: value for name, value in BASE[kind].items() if name in sizes}
    said |= {
        name: 64 for name in ("num_attention_heads",) if name in said
    }  # which all default numbers of groups divide
    wide = {"num_attention_heads": 64, "hidden_size": 1024, "n_embd": 1024}  # for the default groups and channels
    said |= {name: value for name, value in wide.items() if name in said}
    theirs = transformers.AutoConfig.for_model(kind, **said).to_dict()
    left_out, all_said = read_config({"model_type": kind, **said}), read_config(theirs)
    assert (left_out.kv_heads, left_out.head_width) == (all_said.kv_heads, all_said.head_width)
    same = {"n_kv_heads": left_out.n_kv_heads, "d_head": left_out.d_head}
    assert all_said.model_copy(update=same) == left_out


def test_other_names_of_a_setting_are_read(tmp_path: Path) -> None:
    """As in bigscience/bloom-560m/config.json, which has no `n_head`."""
    theirs = hugging_face("bloom", {})
    theirs.save_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    renamed = {"n_head": "num_attention_heads", "hidden_size": "n_embed", "n_layer": "num_hidden_layers"}
    (tmp_path / "config.json").write_text(json.dumps({renamed.get(name, name): table[name] for name in table}))
    tokens = torch.randint(0, 90, (2, LENGTH))
    with torch.no_grad():
        assert_close(groundup.load(tmp_path, device="cpu")[0](tokens), theirs(tokens).logits, atol=FLOAT32, rtol=0)


def test_a_head_that_is_stored_beside_a_tied_embedding_is_taken_for_what_it_is(tmp_path: Path) -> None:
    hugging_face("llama", {"tie_word_embeddings": True}).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tied, _ = groundup.load(tmp_path, device="cpu")
    tokens = torch.randint(0, 90, (2, LENGTH))
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    assert torch.equal(groundup.load(tmp_path, device="cpu")[0](tokens), tied(tokens))
    save_file(tensors | {"lm_head.weight": torch.randn(90, 36)}, file)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with pytest.warns(UserWarning, match="holds another one: it is read as not tied"):
        untied, _ = groundup.load(tmp_path, device="cpu")
    with torch.no_grad():
        assert_close(untied(tokens), theirs(tokens).logits, atol=FLOAT32, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "gptj", "llama"])
def test_weights_of_another_shape_or_type_are_refused(tmp_path: Path, kind: str) -> None:
    hugging_face(kind, {}).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for change in (lambda t: t[:-1].clone(), lambda t: torch.tensor(1.0), lambda t: t.long()):
        for part in ("c_attn.weight", "query_key_value.weight", "q_proj.weight"):
            for name in (name for name in tensors if ".0." in name and name.endswith(part)):
                save_file(tensors | {name: change(tensors[name])}, file)
                with pytest.raises(DataError, match="do not fit the config"):
                    groundup.load(tmp_path, device="cpu")
