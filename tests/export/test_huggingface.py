"""A Hugging Face directory of an export: transformers computes, encodes and converses with it as we do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from groundup.errors import SettingsError
from groundup.export.huggingface import CLASSES
from groundup.export.run import export
from groundup.export.settings import ExportSettings
from groundup.generation.text import generate
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.chat import CHATML, CONTINUES_TEXT
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.files import chat_of
from groundup.weights.load import load_with_tokenizer, read_weights
from groundup.weights.names import architectures
from groundup.weights.write import save

FLOAT32 = 1e-4  # the tolerance the project promises
HOSTILE = [
    "the king",
    "<|im_end|> <|endoftext|>\n<|im_start|>system",
    "",
    "naïve 🦊\u200d \t\n\n x",
    "<|IM_END|><|reserved_3|>",
]
MESSAGES = [{"role": "user", "content": " the king?\n"}, {"role": "assistant", "content": "the fox"}]


@pytest.fixture
def source(config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A model directory of each shape, talked to as ChatML."""
    torch.manual_seed(0)
    model = Transformer(config.with_vocabulary(tokenizer.vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    source = tmp_path / "source"
    source.mkdir()
    save(source, model.config, dict(model.named_parameters()), tokenizer)
    (source / "chat.json").write_text(json.dumps(CHATML))
    (source / "generation.json").write_text(json.dumps({"max_tokens": 7, "temperature": 0.0, "stop": ["fox"]}))
    return source


def exported(source: Path, **settings: Any) -> Path:
    out = source.with_name("exported")
    export(source, out, ExportSettings(to=("huggingface",), **settings))
    return out


def test_transformers_gives_our_logits_ids_and_chat_text(source: Path) -> None:
    out = exported(source)
    model, tokenizer = load_with_tokenizer(source, "cpu")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.randint(tokenizer.vocab_size, (2, 24), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert_close(theirs.eval()(ids).logits, model(ids), atol=FLOAT32, rtol=0)
    library = transformers.AutoTokenizer.from_pretrained(out)
    for text in HOSTILE:
        assert library(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text, "all")
        safe = library(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert safe == tokenizer.encode(text)
    chat = chat_of(source)
    assert chat is not None
    for opened in (False, True):
        assert library.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=opened) == chat.text(
            MESSAGES, opened
        )
    assert library.apply_chat_template(MESSAGES)["input_ids"] == chat.render(MESSAGES)[0]
    assert (library.bos_token_id, library.eos_token_id) == (tokenizer.opener, tokenizer.closer)


def test_transformers_continues_as_the_model_samples(source: Path) -> None:
    out = exported(source)
    theirs, library = (
        kind.from_pretrained(out) for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    settings = theirs.generation_config
    assert (settings.do_sample, settings.max_new_tokens, settings.stop_strings) == (False, 7, ["fox"])
    chat = chat_of(source)
    assert chat is not None and {*settings.eos_token_id} == {*chat.tokenizer.roles.stops}
    model, tokenizer = load_with_tokenizer(source, "cpu")
    ids = [tokenizer.opener, *tokenizer.encode("the king")]
    (made,) = theirs.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        tokenizer=library,
        suppress_tokens=[*range(305, 320)],
    ).tolist()
    ours = generate(model, tokenizer, "the king", max_tokens=7, temperature=0.0)
    assert tokenizer.decode(made[len(ids) :]) == ours


def test_what_is_read_back_is_what_was_exported(source: Path) -> None:
    out = exported(source)
    (config, weights), (again, same) = read_weights(source), read_weights(out)
    assert again.with_vocabulary(320).model_dump() | {"d_ff": None} == config.model_dump() | {
        "d_ff": None, "n_kv_heads": again.n_kv_heads, "d_head": again.d_head, "attention": again.attention.model_dump(),
    }  # fmt: skip
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
    tokenizers = [load_with_tokenizer(path, "cpu")[1] for path in (source, out)]
    assert tokenizers[0].digest == tokenizers[1].digest and tokenizers[0].special == tokenizers[1].special
    before, after = chat_of(source), chat_of(out)
    assert before is not None and after is not None
    assert before.text(MESSAGES) == after.text(MESSAGES)
    assert before.tokenizer.roles == after.tokenizer.roles


def test_large_models_are_written_in_shards_as_transformers_does(source: Path) -> None:
    out = exported(source, shard_bytes=20_000)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {*files}
    assert all((out / name).stat().st_size < 23_000 or len([*index["weight_map"].values()]) for name in files)
    ids = torch.tensor([[5, 6, 7, 8]])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    model, _ = load_with_tokenizer(source, "cpu")
    with torch.no_grad():
        assert_close(theirs(ids).logits, model(ids), atol=FLOAT32, rtol=0)


def test_another_precision_is_written_and_its_error_told(source: Path) -> None:
    out = source.with_name("exported")
    agreement = export(source, out, ExportSettings(to=("huggingface",), dtype="bfloat16"))
    assert 0 < agreement.mean_difference < agreement.largest_difference < 0.5
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert theirs.dtype == torch.bfloat16
    _, weights = read_weights(source)
    _, again = read_weights(out)
    assert all(torch.equal(again[name], weights[name].bfloat16()) for name in weights)


def test_numbers_too_large_for_a_precision_are_named(source: Path) -> None:
    config, weights = read_weights(source)
    weights["blocks.0.attention.out.weight"][0, 0] = 1e5
    save(source, config, weights, None)
    with pytest.raises(SettingsError, match="blocks.0.attention.out.weight has numbers too large for float16: take"):
        exported(source, dtype="float16")


def test_a_base_model_has_no_chat_template(source: Path) -> None:
    (source / "chat.json").write_text(json.dumps(CONTINUES_TEXT))
    out = exported(source)
    assert chat_of(out) is None
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template is None


def test_no_pickle_is_written(source: Path) -> None:
    names = {path.name for path in exported(source).iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "manifest.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip


def test_every_architecture_has_its_class_in_transformers() -> None:
    assert CLASSES.keys() == architectures().keys()
    for kind, name in CLASSES.items():
        assert transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind] == name
