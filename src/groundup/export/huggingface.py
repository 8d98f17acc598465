"""A Hugging Face directory: what transformers, vLLM and most other programs load."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.errors import SettingsError
from groundup.export.settings import ExportSettings
from groundup.export.subject import Agreement, Subject, logits_of, refuse
from groundup.files import write_json
from groundup.tokenizer.chat import load as load_chat
from groundup.tokenizer.declared import read_table
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.files import config_table
from groundup.weights.load import read_weights
from groundup.weights.names import published_kind, to_published, write_config
from groundup.weights.write import write_tensors

CLASSES = {
    "bloom": "BloomForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gptj": "GPTJForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "opt": "OPTForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Architecture → the class of transformers that runs it, by which other programs, too, choose theirs."""
KEPT = ("special_tokens_map.json", "added_tokens.json", "tokenizer.json", "tokenizer.model")
"""Files of the model's directory that go along as they are; the tokenizer's holds more than is read here."""


def write(subject: Subject, directory: Path, settings: ExportSettings) -> Agreement:
    """Write config, weights, tokenizer, chat template and how to sample into a directory, and read them back.

    Raises:
        SettingsError: an architecture that no published one has, naming the setting; numbers too large for `dtype`.
    """
    own = config_table(subject.directory).get("model_type") if subject.directory.is_dir() else None
    kind = str(own) if own in CLASSES else published_kind(subject.config)
    wanted = None if settings.dtype is None else getattr(torch, settings.dtype)
    weights = {name: weight if wanted is None else weight.to(wanted) for name, weight in subject.weights.items()}
    if large := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise SettingsError(f"{large[0]} has numbers too large for {settings.dtype}: take bfloat16")
    dtype = str(weights["embed.weight"].dtype).removeprefix("torch.")
    config = {**write_config(kind, subject.config), "architectures": [CLASSES[kind]], "torch_dtype": dtype}
    roles = subject.tokenizer.roles
    write_json(directory / "config.json", config | {"bos_token_id": roles.opener, "eos_token_id": roles.closer})
    write_shards(directory, to_published(kind, subject.config, weights), settings.shard_bytes)
    _write_tokenizer(subject, directory)
    return _read_back(subject, weights, directory)


def write_shards(directory: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    """Write `model.safetensors`; where that would have more bytes, several files and the index of them."""
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        write_tensors(directory / "model.safetensors", shards[0])
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(directory / file, shard)
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if shard and sum(each.nbytes for each in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def _write_tokenizer(subject: Subject, directory: Path) -> None:
    """The tokenizer's file, and what other programs look up beside it; a Hugging Face directory's own say stays."""
    source = subject.directory
    tokenizer = subject.tokenizer if subject.chat is None else subject.chat.tokenizer
    config: dict[str, Any] = {"model_max_length": subject.config.context_length, "clean_up_tokenization_spaces": False}
    if tokenizer.rules.suffix == ".json":  # else it is that of the architecture
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    names = {i: text for text, i in tokenizer.special.items()}
    for role, i in (("bos_token", tokenizer.roles.opener), ("eos_token", tokenizer.roles.closer)):
        config |= {role: names[i]} if i in names else {}
    if subject.chat is not None:
        config |= {**subject.chat.tokens, "chat_template": subject.chat.template}
    write_json(directory / "tokenizer_config.json", config | read_table(source / "tokenizer_config.json"))
    generation = generation_config(subject.sampling) | {
        "bos_token_id": tokenizer.roles.opener,
        "eos_token_id": sorted(tokenizer.roles.stops) or None,
        "pad_token_id": tokenizer.roles.closer,
    }
    write_json(directory / "generation_config.json", generation | read_table(source / "generation_config.json"))
    kept = [name for name in KEPT if (source / name).is_file()]
    for name in kept:
        shutil.copyfile(source / name, directory / name)
    if f"tokenizer{tokenizer.rules.suffix}" not in kept:
        tokenizer.save(directory)


def generation_config(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """How transformers samples as the table of a `generation.json` says.

    >>> generation_config({"max_tokens": 200, "temperature": 0.0, "stop": ["END"]})
    {'do_sample': False, 'max_new_tokens': 200, 'stop_strings': ['END']}
    """
    temperature = sampling.get("temperature", 1.0)
    names = {"max_tokens": "max_new_tokens", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p",
             "min_p": "min_p", "repetition_penalty": "repetition_penalty", "stop": "stop_strings"}  # fmt: skip
    given = {"do_sample": temperature > 0} | ({"top_k": 0} if temperature else {})  # theirs is 50 where it is left out
    given |= {names[name]: value for name, value in sampling.items() if name in names and value not in (None, [])}
    return {name: value for name, value in given.items() if temperature or name != "temperature"}


def _read_back(subject: Subject, weights: Mapping[str, Tensor], directory: Path) -> Agreement:
    """
    Raises:
        DamagedError: what was written reads as something else.
    """
    config, again = read_weights(directory)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.digest != subject.tokenizer.digest:
        refuse("the tokenizer", "encodes otherwise")
    chat = load_chat(directory, tokenizer)
    if (chat and chat.template) != (subject.chat and subject.chat.template):
        refuse("the chat template", "is another")
    for name, weight in weights.items():  # Gemma keeps gains less one: within a rounding
        if name not in again or not torch.allclose(again[name].float(), weight.float(), rtol=0, atol=1e-6):
            refuse("the model", f"has another {name}")
    logits, expected = logits_of(config, again, subject.probe), subject.logits(weights)
    Agreement.between(expected, logits).refuse_unequal(expected.abs().max().item(), "the model")
    return Agreement.between(subject.logits(), logits)
