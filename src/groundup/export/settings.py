"""Settings of exports."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from groundup.settings import Settings
from groundup.words import contradiction

Format = Literal["huggingface", "gguf", "onnx"]


class ExportSettings(Settings):
    """What is written for other programs once a model is finished.

    >>> ExportSettings.from_table({"to": "gguf", "quantize": "q8_0"}, "export").to
    ('gguf',)
    """

    to: tuple[Format, ...] = ("huggingface",)
    """The formats: huggingface (transformers, vLLM …), gguf (llama.cpp, Ollama …), onnx (onnxruntime, browsers …)."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Precision of the weights; as they are, if not set. ONNX has float32."""
    quantize: Literal["q8_0", "q4_0"] | None = None
    """Bits of a weight in GGUF: q8_0 takes 8.5, q4_0 takes 4.5."""
    shard_bytes: int = Field(default=5_000_000_000, ge=1)
    """Most bytes of one file of a Hugging Face directory, where no tensor is larger; more are written beside it."""
    licence: str | None = Field(default=None, pattern=r"^\S[^\n]*$")
    """Of the model, for its card: a name such as apache-2.0."""

    @field_validator("to", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        """One format may stand alone."""
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _choices_belong_to_a_format(self) -> Self:
        if not self.to or len({*self.to}) < len(self.to):
            raise contradiction(f"to = {', '.join(self.to) or 'nothing'}: name each format once", "to")
        if self.quantize is not None and "gguf" not in self.to:
            raise contradiction(
                f"quantize = {self.quantize}, but to = {', '.join(self.to)}: only gguf is quantized", "quantize", "to"
            )
        if self.quantize is not None and self.dtype is not None and self.to == ("gguf",):
            raise contradiction(
                f"quantize = {self.quantize} and dtype = {self.dtype} are both precisions: set one", "quantize", "dtype"
            )
        if self.dtype not in (None, "float32") and self.to == ("onnx",):
            raise contradiction(f"dtype = {self.dtype}, but onnx is written in float32: leave it out", "dtype", "to")
        return self
