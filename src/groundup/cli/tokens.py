"""Commands that look at tokenizers: show, compare, advise, convert, extend."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from groundup.cli import terminal
from groundup.cli.options import AsJson, Page, example

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at tokenizers: how they cut a text, and why; which is better, and how large one should be.\n\n"
    "A tokenizer is named by its tokenizer.json, by a directory that holds one, or by a run.",
    epilog=example("tokens show"),
)


@app.command(epilog=example("tokens show"))
def show(
    tokenizer: Annotated[Path, Argument(help="A tokenizer.json, a directory with one, or a run.")],
    text: Annotated[str | None, Argument(help="The text; without it or with -, all of standard input.")] = None,
    file: Annotated[Path | None, Option(help="Read the text from this file, to the last byte.")] = None,
    special: Annotated[
        bool, Option("--special", help="Recognise special tokens; else they are ordinary text.")
    ] = False,
    html: Page = None,
    as_json: AsJson = False,
) -> None:
    """Show how a text is cut into tokens: their ids and bytes, and the merges that made each pre-token."""
    from groundup.report import tokens as showing
    from groundup.tools.tokens import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    explained = showing.explain(str(tokenizer), loaded, _read_text(text, file), special=special)
    if html:
        showing.write_page(explained, html, showing.uses_in(tokenizer, loaded.vocab_size))
    if as_json:
        terminal.print_json(showing.table(explained))
        return
    print(f"{explained.summary}\n")
    terminal.print_pre_tokens(showing.token_lines(explained))
    if len(explained.ids) > showing.TOKENS_SHOWN:
        print(f"… the first {showing.TOKENS_SHOWN:,} of {len(explained.ids):,} tokens; --json has all")
    merges: tuple[terminal.Block, ...] = (
        "The merges that made each pre-token, in the order they happened:", showing.merge_rows(explained)
    )  # fmt: skip
    if explained.is_of_a_library:
        merges = ("How it was cut is decided by the tokenizer's own library: its merges are not known here.",)
    page = f"With the tree of each pre-token: {html}" if html else ""
    print()
    terminal.show(showing.token_rows(explained), *merges, page)


def _read_text(text: str | None, file: Path | None) -> bytes:
    """The bytes of a text that was typed, of `file`, or of standard input."""
    from groundup.errors import SettingsError
    from groundup.files import reading

    if file is not None and text is not None:
        raise SettingsError(f"two texts are given, {text[:40]!r} and --file {file}: give one of them")
    if file is not None:
        with reading(file) as stream:
            return stream.read()
    raw = terminal.typed_or_piped(text)
    if raw is None:
        raise SettingsError("give a text: as an argument, through a pipe, or with --file FILE")
    return raw


class _ManyTexts(typer.core.TyperCommand):
    """A command in which `--text` may be followed by several files."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parts: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word
            elif option == "--text" != parts[-1]:
                parts.append("--text")
            parts.append(word)
        return super().parse_args(ctx, parts)


@app.command("compare", cls=_ManyTexts, epilog=example("tokens compare"))
def compare_tokenizers(
    tokenizers: Annotated[list[Path], Argument(help="Two or more: a tokenizer.json, a directory with one, or a run.")],
    text: Annotated[list[str] | None, Option(help="Files, folders or packaged corpora, each a row.")] = None,
    html: Page = None,
    as_json: AsJson = False,
) -> None:
    """Set tokenizers side by side on texts: how short each makes them, by file and by script, and how fast."""
    from groundup.evals import tokenizers as comparing
    from groundup.report import tokenizers as showing
    from groundup.tools.tokens import load_tokenizer

    names = comparing.labels(tokenizers)
    loaded = {name: load_tokenizer(path) for name, path in zip(names, tokenizers, strict=True)}
    with terminal.watch("compare") as progress:
        found = comparing.compare(loaded, text or [], progress)
    if html:
        showing.write_page(found, html)
    page, said = f"By script and file: {html}" if html else "", "\n".join(showing.verdicts(found))
    terminal.show(
        found.group_rows, "All texts:", found.fact_rows(found.groups[0]), said, page, instead=as_json and asdict(found)
    )


@app.command(epilog=example("tokens advise"))
def advise(
    texts: Annotated[list[str], Argument(help="Files, folders or packaged corpora, as in a recipe.")],
    model: Annotated[Path | None, Option(help="A recipe, whose [model] is meant.")] = None,
    size: Annotated[str | None, Option(help="About how many parameters, such as 30M; else as `new` chooses.")] = None,
    max_vocab: Annotated[int, Option(help="The largest vocabulary to measure.")] = 65_536,
    as_json: AsJson = False,
) -> None:
    """Say what vocabulary size suits texts and a model, with the curve and the reasons.

    By the rule of `groundup new`, on more text.
    """
    from groundup.plan import vocabulary
    from groundup.tools.advise import advise_on, reasons

    print("reading the texts", file=sys.stderr)
    with terminal.watch("measure") as progress:
        advice = advise_on(texts, recipe=model, size=size, largest=max_vocab, progress=progress)
    table = as_json and {**vocabulary.table(advice), "reasons": reasons(advice)}
    chart, why = "\n".join(vocabulary.chart(advice)), "\n".join(reasons(advice))
    recipe = f"[tokenizer]\nvocab_size = {advice.vocab_size}"
    curve = "Bytes of text per TFLOP of training:"
    terminal.show(vocabulary.rows(advice), curve, chart, why, "In a recipe:", recipe, instead=table)


@app.command(epilog=example("tokens convert"))
def convert(
    source: Annotated[Path, Argument(help="Any file of a tokenizer that is read here, or a run.")],
    target: Annotated[Path, Argument(help="By its name: Hugging Face's .json, .tiktoken ranks, or GPT-2's vocab.bpe.")],
    split: Annotated[str | None, Option(help="How unknown ranks cut text: a pattern's name, or an expression.")] = None,
    special: Annotated[list[str] | None, Option(help="A special token of such ranks; may be repeated.")] = None,
) -> None:
    """Write a tokenizer as another kind of file, read it again, and compare."""
    from groundup.tokenizer import formats
    from groundup.tools.tokens import load_tokenizer

    tokenizer = load_tokenizer(source, split, special or ())
    formats.convert(tokenizer.rules, tokenizer.roles, target)
    print(f"{target}: {tokenizer.vocab_size:,} ids, {len(tokenizer.special):,} of them special")


@app.command(epilog=example("tokens extend"))
def extend(
    model: Annotated[Path, Argument(help="A run, a model directory, or one as of Hugging Face.")],
    out: Annotated[Path, Option(help="Where the model with more tokens goes.")],
    add: Annotated[list[str] | None, Option(help="A text that becomes one token everywhere; may be repeated.")] = None,
    words: Annotated[Path | None, Option("--from", help="A file of such texts, one a line with its spaces.")] = None,
    special: Annotated[list[str] | None, Option(help="Likewise, but recognised only where it is allowed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add tokens to a trained model. Texts without them keep their ids and their scores.

    A word inside a text has a space before it, which belongs to the token: --add " photosynthesis".
    """
    from groundup.tools.tokens import extension_rows, extension_table
    from groundup.weights import extend as extending

    added = [*(add or ()), *(extending.read_tokens(words) if words else ())]
    done = extending.extend(model, out, added, special or ())
    before, after = done.rows
    grown = f"Rows of the model's vocabulary: {before:,}, {f'now {after:,}' if after > before else 'as before'}"
    then = [terminal.command("inspect", out), terminal.command("generate", out, next(iter(done.ids)))]
    table = as_json and {"model": str(out), **extension_table(done)}
    terminal.show(extension_rows(done), grown, then=then, instead=table)
