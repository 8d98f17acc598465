"""The score of a model: on files named by a person, or as its run recorded it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from groundup.artifacts import verify
from groundup.corpus.settings import CorpusSettings
from groundup.errors import SettingsError
from groundup.evals.settings import FilesRead
from groundup.files import Progress, require_path
from groundup.recipe import Recipe
from groundup.words import plural

HOW_FILES_ARE_READ = tuple(
    f"corpus.{name}" for name in ("text_field", "encoding", "html", "separator", "unicode", "whitespace")
)


def read_score(run: Path) -> dict[str, Any]:
    """The score on the test documents that a run has recorded.

    Raises:
        DataError: nothing there, or damaged.
        SettingsError: no score is recorded.
    """
    require_path(run, "run or model")
    if not (run / "evals" / "test.json").is_file():
        raise SettingsError(f"name the files to score: `groundup eval {run} FILE`, or a recipe for its test documents")
    verify(run / "evals", "evals")
    score: dict[str, Any] = json.loads((run / "evals" / "test.json").read_bytes())
    return score


def score(target: Path, words: Sequence[str], device: str | None, progress: Progress) -> dict[str, Any]:
    """Score files with the model of `target`.

    Args:
        target: a run or a model directory.
        words: files and folders, and settings that say how they are read, such as `corpus.text_field=body`.

    Raises:
        SettingsError: no files, or other settings than these.
    """
    from groundup.evals.run import score_files
    from groundup.evals.score import table_of
    from groundup.weights.load import load_with_tokenizer

    settings = [word for word in words if "=" in word and not Path(word).exists()]
    files = tuple(word for word in words if word not in settings)
    others = [word for word in settings if not word.startswith(HOW_FILES_ARE_READ)]
    if others or not files:
        raise SettingsError(
            f"{(others or settings)[0]} is given, but no recipe: with {target}, name files to score and, if need "
            "be, how they are read, such as corpus.text_field=body"
        )
    model, tokenizer = load_with_tokenizer(target, device)
    own = target / "recipe.toml"
    read = FilesRead(corpus=Recipe.load(own).corpus if own.is_file() else CorpusSettings(sources=files))
    return table_of(score_files(model, tokenizer, files, read.override(settings).corpus, progress))


def score_documents(target: Path, corpus: Path, out: Path, device: str | None, progress: Progress) -> int:
    """Write a corpus whose documents carry what the model of `target` makes of them; the number of documents."""
    from groundup.corpus.document import SPLITS
    from groundup.evals.corpora import score_corpus
    from groundup.weights.files import digest_of
    from groundup.weights.load import load_with_tokenizer

    verify(corpus, "corpus", digest_up_to=0)  # before a model is loaded
    model, tokenizer = load_with_tokenizer(target, device)
    manifest = score_corpus(model, tokenizer, digest_of(target), corpus, out, progress=progress)
    return sum(manifest.statistics[split]["documents"] for split in SPLITS)


def lines(score: dict[str, Any]) -> Iterator[str]:
    error = "" if score["standard_error"] is None else f" ± {score['standard_error']:.4f}"
    perplexity = "infinite perplexity" if score["perplexity"] is None else f"perplexity {score['perplexity']:.2f}"
    yield f"{score['bits_per_byte']:.4f}{error} bits per byte, {perplexity} a token"
    yield ", ".join(plural(score[noun + "s"], noun) for noun in ("document", "token", "byte"))
