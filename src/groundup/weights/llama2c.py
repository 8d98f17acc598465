"""llama2.c: small Llama models in one flat file (github.com/karpathy/llama2.c)."""

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from groundup.model.settings import LanguageModel, ModelConfig, RMSNorm
from groundup.tokenizer.gguf import read_llama2c
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.layouts import LAYOUTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Header(NamedTuple):
    """The seven little-endian 32-bit numbers at the beginning of a model file."""

    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    """Negative: the head has a matrix of its own, at the end of the file."""
    context_length: int


HEADER = struct.Struct("<7i")


def is_model(path: Path) -> bool:
    """Whether a `.bin` file is llama2.c's and not a pickle: it is exactly as long as its header says."""
    if path.suffix != ".bin" or not path.is_file() or path.stat().st_size < HEADER.size:
        return False
    header = _read_header(path)
    if min(header._replace(vocab_size=abs(header.vocab_size))) < 1 or header.d_model % header.n_heads:
        return False
    return path.stat().st_size == HEADER.size + 4 * sum(math.prod(shape) for _, shape in _layout(header))


def read_config(path: Path) -> ModelConfig:
    """The config that the header describes."""
    header = _read_header(path)
    sizes = header._asdict() | {"vocab_size": abs(header.vocab_size)}
    head = LanguageModel(tied=header.vocab_size > 0)
    return ModelConfig(**sizes, norm=RMSNorm(epsilon=1e-5), head=head)


def read_weights(path: Path, dtype: "torch.dtype | None" = None) -> "dict[str, Tensor]":
    """The tensors under our names, from the first format of llama2.c's `export.py`; memory-mapped where they can be.

    There the tensors of a kind lie together for all layers, and neighbouring channels are rotated together.
    """
    import torch

    header = _read_header(path)
    flat = torch.from_numpy(np.memmap(path, np.dtype("<f4"), "c", offset=HEADER.size))
    layout = _layout(header)
    tensors: dict[str, torch.Tensor] = {}
    for (name, shape), part in zip(layout, flat.split([math.prod(shape) for _, shape in layout]), strict=True):
        if name.startswith("blocks.*"):
            tensors |= {name.replace("*", str(layer)): tensor for layer, tensor in enumerate(part.view(shape))}
        elif name != "angles":
            tensors[name] = part.view(shape)
    ours = LAYOUTS["pairs"].read(read_config(path), tensors)
    return {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in ours.items()}


def read_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer beside the model: `tok512.bin`, by the size of its vocabulary, or `tokenizer.bin`."""
    names = (f"tok{abs(_read_header(path).vocab_size)}.bin", "tokenizer.bin")
    return next((read_llama2c(path.with_name(name)) for name in names if path.with_name(name).is_file()), None)


def _read_header(path: Path) -> Header:
    with open(path, "rb") as file:
        return Header(*HEADER.unpack(file.read(HEADER.size)))


def _layout(header: Header) -> list[tuple[str, tuple[int, ...]]]:
    """Our name of each tensor in the file, in order, and its shape."""
    d_model, d_ff, d_head = header.d_model, header.d_ff, header.d_model // header.n_heads
    of_layers = {
        "attention_norm": (d_model,),
        "attention.query": (d_model, d_model),
        "attention.key": (header.n_kv_heads * d_head, d_model),
        "attention.value": (header.n_kv_heads * d_head, d_model),
        "attention.out": (d_model, d_model),
        "feedforward_norm": (d_model,),
        "feedforward.gate": (d_ff, d_model),
        "feedforward.down": (d_model, d_ff),
        "feedforward.up": (d_ff, d_model),
    }
    return [
        ("embed.weight", (abs(header.vocab_size), d_model)),
        *((f"blocks.*.{name}.weight", (header.n_layers, *shape)) for name, shape in of_layers.items()),
        ("norm.weight", (d_model,)),
        ("angles", (2, header.context_length, d_head // 2)),  # of rotary position, computed here
        *([("head.weight", (abs(header.vocab_size), d_model))] if header.vocab_size < 0 else []),
    ]
