"""llama2.c: small Llama models in one flat file, and their tokenizer in another (github.com/karpathy/llama2.c)."""

import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from groundup.model.names import turned_by_pairs
from groundup.model.settings import LanguageModel, ModelConfig, RMSNorm

HEADER = np.dtype("<i4"), 7
"""d_model, d_ff, n_layers, n_heads, n_kv_heads, vocab_size (negative: the head is not tied), context_length."""


def is_model(path: Path) -> bool:
    """Whether a `.bin` file is llama2.c's and not a pickle: it is exactly as long as its header says."""
    if not path.is_file() or path.suffix != ".bin":
        return False
    header = np.fromfile(path, *HEADER)
    if len(header) < HEADER[1] or not (header[[0, 1, 2, 3, 4, 6]] > 0).all() or header[0] % header[3]:
        return False
    return path.stat().st_size == header.nbytes + 4 * sum(math.prod(shape) for _, shape in _layout(header))


def read_model(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and the tensors under our names, from the first format of llama2.c's `export.py`.

    A tensor of the same kind lies there for all layers together. Channels are turned by neighbouring pairs.
    """
    header = np.fromfile(path, *HEADER)
    d_model, d_ff, n_layers, n_heads, n_kv_heads, vocab_size, context_length = (int(size) for size in header)
    config = ModelConfig(
        vocab_size=abs(vocab_size),
        context_length=context_length,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        norm=RMSNorm(epsilon=1e-5),
        head=LanguageModel(tied=vocab_size > 0),
    )
    flat = torch.from_numpy(np.fromfile(path, np.dtype("<f4"), offset=header.nbytes))
    layout = _layout(header)
    tensors: dict[str, Tensor] = {}
    for (name, shape), part in zip(layout, flat.split([math.prod(shape) for _, shape in layout]), strict=True):
        if name.startswith("blocks.*"):
            tensors |= {name.replace("*", str(layer)): of_layer for layer, of_layer in enumerate(part.view(shape))}
        elif name != "angles":
            tensors[name] = part.view(shape)
    return config, turned_by_pairs(config, tensors)


def _layout(header: "np.ndarray[tuple[int], np.dtype[np.int32]]") -> list[tuple[str, tuple[int, ...]]]:
    """Our name of each tensor in the file, in order, and its shape."""
    d_model, d_ff, n_layers, n_heads, n_kv_heads, vocab_size, context_length = (int(size) for size in header)
    d_key = n_kv_heads * (d_model // n_heads)
    of_layers = {
        "attention_norm": (d_model,),
        "attention.query": (d_model, d_model),
        "attention.key": (d_key, d_model),
        "attention.value": (d_key, d_model),
        "attention.out": (d_model, d_model),
        "feedforward_norm": (d_model,),
        "feedforward.gate": (d_ff, d_model),
        "feedforward.down": (d_model, d_ff),
        "feedforward.up": (d_ff, d_model),
    }
    return [
        ("embed.weight", (abs(vocab_size), d_model)),
        *((f"blocks.*.{name}.weight", (n_layers, *shape)) for name, shape in of_layers.items()),
        ("norm.weight", (d_model,)),
        ("angles", (2, context_length, d_model // n_heads // 2)),  # of rotary position, computed here
        *([("head.weight", (abs(vocab_size), d_model))] if vocab_size < 0 else []),
    ]


def decode(tokenizer: Path, ids: Iterable[int]) -> str:
    """The text of `ids` by llama2.c's `tokenizer.bin`, without the blank that stands before its first word.

    The file has of each piece a score, a length, and its text; a byte of its own is written there as `<0x0A>`.
    """
    raw = tokenizer.read_bytes()
    pieces, place = [], 4  # after the length of the longest
    while place < len(raw):
        (length,) = struct.unpack_from("<i", raw, place + 4)
        text = raw[place + 8 : place + 8 + length]
        byte = re.fullmatch(rb"<0x([0-9A-F]{2})>", text)
        pieces.append(bytes.fromhex(byte[1].decode()) if byte else text)
        place += 8 + length
    return b"".join(pieces[number] for number in ids).decode(errors="replace").removeprefix(" ")
