"""ONNX: one file that computes logits of ids, for onnxruntime and whatever stands on it. B rows, T positions."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundup.errors import SettingsError, UnsupportedError
from groundup.export.settings import ExportSettings
from groundup.export.subject import Agreement, Subject
from groundup.model.equation import weighted_values
from groundup.model.transformer import Transformer
from groundup.weights.load import build

LARGEST = 2_000_000_000
"""Bytes of weights that one file can hold: its format, protobuf, ends at 2 GiB."""


def write(subject: Subject, directory: Path, settings: ExportSettings) -> Agreement:
    """Write `model.onnx` and the tokenizer into a directory, and compare onnxruntime's logits.

    Raises:
        SettingsError: a model that one file cannot hold.
        UnsupportedError: a block that ONNX does not represent.
    """
    import onnxruntime

    size = 4 * sum(weight.numel() for weight in subject.weights.values())
    if size > LARGEST:
        raise SettingsError(f"the weights take {size:,} bytes in float32; a file of ONNX holds {LARGEST:,}: take gguf")
    model = build(subject.config, {name: weight.float() for name, weight in subject.weights.items()}, "the export")
    file = directory / "model.onnx"
    _trace(_Logits(model.eval()), file, subject.config.context_length)
    subject.tokenizer.save(directory)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    ours = subject.logits()
    for rows, length in ((2, 3), (1, 1), (1, subject.probe.shape[1])):  # of which none was traced
        ids = subject.probe[:, :length].expand(rows, -1)
        theirs = torch.from_numpy(session.run(None, {"tokens": ids.numpy()})[0])
        agreement = Agreement.between(ours[:, :length].expand(rows, -1, -1), theirs)
        agreement.refuse_unequal(ours.abs().max().item(), f"the model, with {rows} × {length} ids,")
    return agreement


class _Logits(nn.Module):
    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens, attend=attend)
        return logits


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, layer: int, window: int | None, dropout: object, **options: Any
) -> Tensor:
    """`Causal` in operations that onnxruntime has: each position reads itself and all before it."""
    index = torch.arange(q.shape[2])
    distance = index[:, None] - index
    readable = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return weighted_values(q, k, v, torch.where(readable, 0.0, float("-inf")), distance, **options)


def _trace(module: nn.Module, file: Path, context_length: int) -> None:
    """Write the file for any number of rows, and of positions up to the context."""
    any_size = torch.export.Dim.DYNAMIC
    example = torch.zeros(3, min(5, context_length), dtype=torch.long)
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, (example,), dynamo=True, verbose=False, input_names=["tokens"], output_names=["logits"],
                dynamic_shapes=({0: any_size, 1: any_size},),
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise UnsupportedError(f"torch cannot write this model as ONNX: {str(error).splitlines()[0]}") from error
    finally:
        logger.setLevel(before)
    assert program is not None
    program.save(file, external_data=False)
