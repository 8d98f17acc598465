"""Models in GGUF, llama.cpp's files of one model each: weights, settings, tokenizer and chat template.

`gguf.toml` has the names. Plain numbers are read where they lie in the file; those in blocks become float32.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.model.settings import Llama3Scaling, ModelConfig, Rotary
from groundup.tensor_files import GGUF, TYPES, Strings, read_gguf_file, write_gguf_file
from groundup.tokenizer import gguf as inside
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights import names
from groundup.weights.configs import FACTORS
from groundup.words import nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KEYS = {"rope.scaling.finetuned", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.freq_base",
        "rope.dimension_count", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
        "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "attention.value_length",
        "attention.head_count_kv", "expert_count", "expert_used_count", "tensor_data_layout"}  # fmt: skip
"""Keys that are heeded, or change nothing, besides those that `gguf.toml` names."""
HEADS_KEPT = ("gptneox", "olmo2")
"""Architectures that llama.cpp wants a matrix for the head of, even where it is the embedding."""


def _table(file: GGUF) -> dict[str, Any]:
    """The metadata as `gguf.toml` names it, with what the names of the tensors tell."""
    kind, known = file.metadata.get("general.architecture"), names.architectures("gguf")
    if not isinstance(kind, str) or kind not in known:
        raise UnsupportedError(f"{file.path} has general.architecture {kind!r:.60}; known are {', '.join(known)}")
    table = {key.removeprefix(f"{kind}."): value for key, value in file.metadata.items()
             if key.startswith((f"{kind}.", "groundup."))}  # fmt: skip
    kind = f"{kind}-experts" if table.get("expert_count") and f"{kind}-experts" in known else kind
    heeded = {*KEYS, *known[kind].settings}
    if unknown := [key for key in table if key not in heeded and not key.startswith("groundup.")]:
        raise UnsupportedError(f"{file.path} has {unknown[0]} of {kind}, which is not represented here")
    tensors = file.tensors
    embedding, head = tensors.get("token_embd.weight"), tensors.get("output.weight")
    if embedding is None:
        raise DataError(f"{file.path} has no token_embd.weight: it holds no whole model")
    same = head is not None and (head.type, head.shape) == (embedding.type, embedding.shape)
    query, out = (f"blk.0.attn_{part}.bias" in tensors for part in ("q", "output"))
    factors = tensors.get("rope_freqs.weight")
    if factors is not None and factors.type == "F32" and f"{FACTORS}factor" not in table:
        table[f"{FACTORS}factor"] = float(factors.raw.view(np.float32).max())
    return table | {
        "model_type": kind,
        "vocab_size": embedding.shape[0],
        "tensors.tied": head is None or (same and np.array_equal(head.raw[:4096], embedding.raw[:4096])
                                         and np.array_equal(head.raw, embedding.raw)),
        "tensors.attention_bias": "all" if query and out else "qkv" if query else "none",
        "tensors.feedforward_bias": "blk.0.ffn_up.bias" in tensors,
    }  # fmt: skip


def read_config(path: Path) -> ModelConfig:
    """The config that the metadata describes.

    Raises:
        DataError: as of `read_gguf_file`; an architecture, key or value that is not represented here, by name.
    """
    return names.read_config(_table(read_gguf_file(path)), "gguf")


def read_weights(path: Path, dtype: "torch.dtype | None" = None) -> "dict[str, Tensor]":
    """The tensors under our names; as in the file where that is a plain type, else in float32, if no `dtype` is given.

    Raises:
        DataError: as of `read_config`; tensors that do not fit it.
    """
    import torch

    from groundup.weights.quantize import UNPACK

    file = read_gguf_file(path)
    table = _table(file)
    with names.refusing_contradictions(path):
        config, kind = names.read_config(table, "gguf"), table["model_type"]
        factors = _rope_factors(config)
    stored = dict(file.tensors)
    there = stored.pop("rope_freqs.weight", None)
    same = there is None and factors is None  # as in most
    if there is not None and factors is not None:
        same = np.allclose(there.raw.view(np.float32), factors.numpy(), rtol=1e-4)
    if not same:
        raise UnsupportedError(f"{path}: rope_freqs.weight does not hold the factors of Llama 3.1's scaling")
    sizes = {name: math.prod(each.shape) for name, each in stored.items()}
    copied = sizes.get("output.weight", 0) if table["tensors.tied"] else 0
    if (held := sum(sizes.values()) - copied) != config.parameters:  # before anything is unpacked
        layers = len({name.split(".")[1] for name in sizes if name.startswith("blk.")})
        raise DataError(
            f"{path}: the weights do not fit the config: the tensors hold {held:,} numbers in {layers} layers, "
            f"a model as the metadata describes it has {config.parameters:,} in {config.n_layers}"
        )
    tensors = {}
    for name, each in stored.items():
        blocks = torch.from_numpy(each.raw).view(-1, TYPES[each.type].size)
        tensor = UNPACK[each.type](blocks).view(each.shape)
        tensors[name] = tensor if dtype is None else tensor.to(dtype)
    return names.from_published(kind, config, tensors, "gguf")


def _rope_factors(config: ModelConfig) -> "Tensor | None":
    """How many times slower each pair of channels turns by Llama 3's scaling, for `rope_freqs.weight`."""
    import torch

    from groundup.model.position import frequencies, rotary_frequencies

    position, device = config.position, torch.device("cpu")
    if not isinstance(position, Rotary) or not isinstance(position.scaling, Llama3Scaling):
        return None
    scaled, _ = rotary_frequencies(position, config.rotary_width, device)
    return frequencies(position.base, config.rotary_width, device) / scaled


def read_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer inside; None where there is none.

    Raises:
        DataError: damaged.
        UnsupportedError: a kind, or a split of text, that is not known here.
    """
    return inside.read(read_gguf_file(path).metadata, str(path))


def read_template(path: Path) -> str | None:
    """The chat template inside, in Jinja."""
    template = read_gguf_file(path).metadata.get("tokenizer.chat_template")
    return "".join(template) if isinstance(template, str | Strings) else None


# --- writing ---

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}


def write_gguf(
    path: Path,
    config: ModelConfig,
    weights: "Mapping[str, Tensor]",
    tokenizer: Tokenizer | None,
    *,
    kind: Quantization,
    template: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a file for llama.cpp, whole or not at all.

    Args:
        weights: by our names, as of `dict(model.named_parameters())`.
        kind: what matrices are kept in. Vectors, tables of positions and routers are float32; matrices whose rows are
            no multiples of a block float16; and beside `q4_0` the matrices over the vocabulary are `q8_0`.
        template: a chat template, in Jinja.
        metadata: further entries, such as `general.name`.

    Raises:
        SettingsError: a model that no architecture of llama.cpp is like, by what the nearest cannot say; numbers too
            large for `kind`; a tokenizer with more ids than the model has rows.
    """
    from groundup.weights.quantize import pack

    if kind not in FILE_TYPES:
        raise SettingsError(f"unknown quantization {kind!r}; {nearest(kind, FILE_TYPES)}")
    mapped = names.published_kind(config, "gguf")
    architecture, _, _ = mapped.partition("-")
    table = {key if key.startswith("groundup.") else f"{architecture}.{key}": value
             for key, value in names.write_config(mapped, config, "gguf").items()
             if key != "model_type" and not key.startswith("tensors.")}  # fmt: skip
    entries = {
        "general.architecture": architecture,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        **(metadata or {}),
        **table,
        **({} if tokenizer is None else inside.write(tokenizer, config.vocab_size or 0)),
        **({} if template is None else {"tokenizer.chat_template": template}),
    }
    ours = {name: weight.detach() for name, weight in weights.items() if not name.startswith("multi_token.")}
    if architecture in HEADS_KEPT:
        ours.setdefault("head.weight", ours["embed.weight"])
    tensors = names.to_published(mapped, config, ours, "gguf")
    if (factors := _rope_factors(config)) is not None:
        tensors["rope_freqs.weight"] = factors
    types = {name: _type_of(name, tuple(tensor.shape), kind.upper()) for name, tensor in tensors.items()}

    def packed(name: str) -> npt.NDArray[np.uint8]:
        try:
            raw: npt.NDArray[np.uint8] = pack(types[name], tensors[name], TYPES[types[name]].numbers).numpy()
            return raw
        except ValueError as error:
            raise SettingsError(f"{name}: {error}; write the model as bf16 or f32") from None

    write_gguf_file(path, entries, {name: (types[name], tuple(tensors[name].shape)) for name in tensors}, packed)


def _type_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1 or name == "position_embd.weight" or name.endswith("ffn_gate_inp.weight"):
        return "F32"
    if kind == "Q4_0" and name in ("token_embd.weight", "output.weight"):
        kind = "Q8_0"
    return kind if shape[-1] % TYPES[kind].numbers == 0 else "F16"
