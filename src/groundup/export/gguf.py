"""GGUF: one file for llama.cpp and what stands on it, with tokenizer and chat template inside."""

from pathlib import Path

import torch
from torch import Tensor

from groundup.export.settings import ExportSettings
from groundup.export.subject import Agreement, Subject, logits_of, refuse
from groundup.tensor_files import TYPES
from groundup.weights.gguf import Quantization, read_template, read_tokenizer, write_gguf
from groundup.weights.load import read_weights
from groundup.weights.quantize import PACK, UNPACK, pack

KINDS: dict[torch.dtype, Quantization] = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def write(subject: Subject, directory: Path, settings: ExportSettings) -> Agreement:
    """Write `model.gguf` into a directory, and read it back.

    Raises:
        SettingsError: a model that no architecture of llama.cpp is like, naming the setting.
    """
    own = subject.weights["embed.weight"].dtype
    wanted = own if settings.dtype is None else getattr(torch, settings.dtype)
    file, template = directory / "model.gguf", None if subject.chat is None else subject.chat.template
    tokenizer = subject.tokenizer if subject.chat is None else subject.chat.tokenizer
    also = {"general.license": settings.licence} if settings.licence else {}
    kind = settings.quantize or KINDS.get(wanted, "f32")
    write_gguf(file, subject.config, subject.weights, tokenizer, kind=kind, template=template, metadata=also)
    config, again = read_weights(file)
    for name, weight in subject.weights.items():
        if not _is_rounded(weight.float(), again[name].float()):
            refuse("the model", f"has another {name}")
    same = read_tokenizer(file)
    if same is None or same.tokens != tokenizer.tokens or same.special != tokenizer.special:
        refuse("the tokenizer", "has other tokens")
    if read_template(file) != template:
        refuse("the chat template", "is another")
    return Agreement.between(subject.logits(), logits_of(config, again, subject.probe))


def _is_rounded(weight: Tensor, again: Tensor) -> bool:
    """Whether numbers in float32 are these, rounded to one of the types that are written."""
    for kind in PACK:
        numbers, size = TYPES[kind].numbers, TYPES[kind].size
        if weight.shape[-1] % numbers == 0:
            rounded = UNPACK[kind](pack(kind, weight, numbers).view(-1, size)).float().reshape(weight.shape)
            if torch.allclose(rounded, again, rtol=0, atol=1e-6):  # gains are kept less one: within a rounding
                return True
    return False
