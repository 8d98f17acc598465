"""What can be known of an export before there is a model: refused before time is spent on training one. No torch."""

from importlib.util import find_spec

from groundup.errors import SettingsError
from groundup.export.settings import ExportSettings
from groundup.model.settings import LanguageModel, ModelConfig
from groundup.weights.names import published_kind


def refuse_impossible(settings: ExportSettings, config: ModelConfig) -> None:
    """
    Raises:
        SettingsError: a model that a format cannot say, naming the setting; libraries that are not installed.
    """
    if not isinstance(config.head, LanguageModel):
        raise SettingsError(f"model.head.kind = {config.head.kind}: only language models are exported")
    if "huggingface" in settings.to:
        published_kind(config)
    if "gguf" in settings.to:
        published_kind(config, "gguf")
    if "onnx" in settings.to:
        if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
            raise SettingsError(
                f"ONNX is written with {', '.join(missing)}, which is not installed: pip install 'groundup[onnx]'"
            )
        if config.feedforward.kind == "experts":
            raise SettingsError(
                "model.feedforward.kind = experts: each token chooses its matrices, which ONNX does not represent; "
                "export huggingface or gguf"
            )
