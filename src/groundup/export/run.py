"""Export a model: write it in the formats asked for, read each back, compare, and only then give it its name."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from groundup.artifacts import Draft, making
from groundup.errors import SettingsError
from groundup.export import gguf, huggingface, onnx
from groundup.export.card import read_facts, write_card
from groundup.export.check import refuse_impossible
from groundup.export.settings import ExportSettings
from groundup.export.subject import Agreement, Subject
from groundup.files import Progress, no_progress, write_text
from groundup.weights.files import digest_of, model_directory


def export(source: Path, out: Path, settings: ExportSettings, progress: Progress = no_progress) -> Agreement:
    """Write a model for other programs, in one format; how far what was read back is from it.

    Args:
        source: a model directory, a run, or a Hugging Face directory, with its tokenizer; every byte is checked.
        out: the directory that is made, all at once; it must not be there.
        settings: name the format.
        progress: is called with how far it is.

    Raises:
        SettingsError: `out` is there, or several formats are named; what `refuse_impossible` refuses.
        DataError: a model that cannot be read, or has no tokenizer.
        ResourceError: disk full, or a directory that may not be written.

    >>> import tempfile
    >>> from groundup.model.settings import ModelConfig
    >>> from groundup.model.transformer import Transformer
    >>> from groundup.tokenizer.tokenizer import Tokenizer
    >>> from groundup.weights.load import load
    >>> from groundup.weights.write import save
    >>> model = Transformer(ModelConfig(vocab_size=320, d_model=16, n_layers=1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, out = Path(folder, "model"), Path(folder, "out")
    ...     source.mkdir()
    ...     save(source, model.config, dict(model.named_parameters()), Tokenizer.learn("low lower", vocab_size=320))
    ...     agreement = export(source, out, ExportSettings(to=("huggingface",)))
    ...     again, tokenizer = load(out)
    >>> agreement.words
    'the same logits at 128 positions'
    """
    if out.exists():
        raise SettingsError(f"{out} exists and is left as it is: choose another --out, or move it away")
    if len(settings.to) > 1:
        raise SettingsError(f"to = {', '.join(settings.to)}: one format goes into one directory")
    digest, model = digest_of(source), model_directory(source)
    with making(out, "export", settings.table(), {"model": digest}) as draft:
        return write(model, settings, draft, {settings.to[0]: draft.path}, progress)[settings.to[0]]


def export_run(run: Path, settings: ExportSettings, inputs: Mapping[str, str], progress: Progress) -> None:
    """Write the model of a run into its `export/`, each format into a folder of its name."""
    with making(run / "export", "export", settings.table(), inputs) as draft:
        folders: dict[str, Path] = {form: draft.path / form for form in settings.to}
        for folder in folders.values():
            folder.mkdir()
        write(run / "model", settings, draft, folders, progress)


def write(
    model: Path, settings: ExportSettings, draft: Draft, folders: Mapping[str, Path], progress: Progress
) -> dict[str, Agreement]:
    """Write a model in each format, with its card, into its folder; note in the draft how far what is read back is."""
    progress(0, len(folders) + 1, f"reading {model}")
    subject, facts = Subject.read(model), read_facts(model)
    refuse_impossible(settings, subject.config)
    read_back = {}
    for number, (form, folder) in enumerate(folders.items(), 1):
        progress(number, len(folders) + 1, f"writing {form}, and reading it back")
        read_back[form] = FORMATS[form](subject, folder, settings)
        write_text(folder / "README.md", write_card(subject, facts, form, settings))
    draft.statistics["read_back"] = {form: {**asdict(each), "words": each.words} for form, each in read_back.items()}
    return read_back


FORMATS: dict[str, Callable[[Subject, Path, ExportSettings], Agreement]] = {
    "gguf": gguf.write,
    "huggingface": huggingface.write,
    "onnx": onnx.write,
}
"""Each writes into a directory, reads back, and says how far that is from the model."""
