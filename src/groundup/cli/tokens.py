"""Commands that look at tokenizers: show, compare, advise, convert, extend."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from groundup.cli import terminal
from groundup.cli.options import AsJson, Page, example

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at tokenizers: how they cut a text, and why; which is better, and how large one should be.\n\n"
    "A tokenizer is named by its tokenizer.json, by a directory that holds one, or by a run.",
    epilog=example('groundup tokens show runs/storybook "Once upon a time"'),
)


@app.command(
    epilog=example(
        'groundup tokens show runs/storybook "Once upon a time"',
        'groundup tokens show runs/storybook "Once upon a time" --html tokens.html',
        "echo 'naïve 👩‍👩‍👧' | groundup tokens show tokenizer.json - --json",
    )
)
def show(
    tokenizer: Annotated[
        Path, typer.Argument(help="A tokenizer.json, a directory with one, or a run.", show_default=False)
    ],
    text: Annotated[
        str | None,
        typer.Argument(help="The text; without it, or with -, standard input to the last byte.", show_default=False),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file, to the last byte.")] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Recognise the special tokens in the text, else they are ordinary text.")
    ] = False,
    html: Page = None,
    as_json: AsJson = False,
) -> None:
    """Show how a text is cut into tokens: their ids and bytes, and the merges that made each pre-token."""
    from groundup.report import tokens as showing
    from groundup.tools.tokens import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    explained = showing.explain(str(tokenizer), loaded, _typed_or_read(text, file), special=special)
    if html:
        showing.write_page(explained, html, showing.uses_in(tokenizer, loaded.vocab_size))
    if as_json:
        terminal.print_json(showing.table(explained))
        return
    print(f"{explained.summary}\n")
    terminal.print_pieces(showing.token_lines(explained))
    if len(explained.ids) > showing.TOKENS_SHOWN:
        print(f"… the first {showing.TOKENS_SHOWN:,} of {len(explained.ids):,} tokens; --json has all")
    print()
    terminal.print_table(showing.token_rows(explained))
    if explained.is_of_a_library:
        print("\nHow it was cut is decided by the tokenizer's own library: its merges are not known here.")
    else:
        print("\nThe merges that made each pre-token, in the order they happened:\n")
        terminal.print_table(showing.merge_rows(explained))
    if html:
        print(f"\nWith the tree of each pre-token: {html}")


def _typed_or_read(text: str | None, file: Path | None) -> bytes:
    """The bytes of a text that was typed, of `file`, or of standard input."""
    from groundup.errors import SettingsError
    from groundup.files import reading

    if file is not None:
        if text is not None:
            raise SettingsError(f"two texts are given, {text[:40]!r} and --file {file}: give one of them")
        with reading(file) as stream:
            return stream.read()
    if text is None and sys.stdin.isatty():
        raise SettingsError("give a text: as an argument, through a pipe, or with --file FILE")
    if text is None or text == "-":
        return sys.stdin.buffer.read()
    return text.encode("utf-8", "surrogateescape")


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


@app.command(
    "compare",
    cls=_ManyTexts,
    epilog=example(
        "groundup tokens compare runs/storybook gpt2/ --text groundup:storybook groundup:shakespeare",
        "groundup tokens compare a/tokenizer.json b/tokenizer.json --text my-texts --html tokenizers.html",
    ),
)
def compare_tokenizers(
    tokenizers: Annotated[
        list[Path],
        typer.Argument(help="Two or more: a tokenizer.json, a directory with one, or a run.", show_default=False),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Files, folders or packaged corpora, as in a recipe; each is a line of the table."),
    ] = None,
    html: Page = None,
    as_json: AsJson = False,
) -> None:
    """Set tokenizers side by side on texts: how short each makes them, by file and by script, and how fast."""
    from groundup.evals import tokenizers as comparing
    from groundup.tools.tokens import load_tokenizer

    names = comparing.labels(tokenizers)
    loaded = {name: load_tokenizer(path) for name, path in zip(names, tokenizers, strict=True)}
    with terminal.watch("compare") as progress:
        found = comparing.compare(loaded, text or [], progress)
    if html:
        from groundup.report.tokenizers import write_page

        write_page(found, html)
    if as_json:
        terminal.print_json(found.table())
        return
    terminal.print_table(found.group_rows(most=comparing.SHOWN_SCRIPTS))
    print("\nAll texts:\n")
    terminal.print_table(found.fact_rows(found.groups[0]))
    print()
    for line in found.verdicts:
        print(line)
    if html:
        print(f"\nBy script and file: {html}")


@app.command(
    epilog=example(
        "groundup tokens advise my-texts",
        "groundup tokens advise groundup:storybook --size 3.4M",
        "groundup tokens advise groundup:storybook --model recipes/storybook.toml",
    )
)
def advise(
    texts: Annotated[
        list[str], typer.Argument(help="Files, folders or packaged corpora, as in a recipe.", show_default=False)
    ],
    model: Annotated[Path | None, typer.Option(help="A recipe, whose [model] is meant.", show_default=False)] = None,
    size: Annotated[
        str | None,
        typer.Option(help="About how many parameters, such as 30M; else what `new` would train here in ten minutes."),
    ] = None,
    max_vocab: Annotated[int, typer.Option(help="The largest vocabulary to measure.")] = 65_536,
    as_json: AsJson = False,
) -> None:
    """Say what vocabulary size suits texts and a model, with the curve and the reasons.

    By the rule of `groundup new`, on more text.
    """
    from groundup.plan import vocabulary
    from groundup.tools.advise import advice_lines, advise_on

    print("reading the texts", file=sys.stderr)
    with terminal.watch("measure") as progress:
        advice = advise_on(texts, recipe=model, size=size, largest=max_vocab, progress=progress)
    if as_json:
        terminal.print_json(vocabulary.table(advice))
        return
    terminal.print_table(vocabulary.rows(advice))
    print(*advice_lines(advice), sep="\n")


@app.command(
    epilog=example(
        "groundup tokens convert runs/storybook storybook.tiktoken",
        "groundup tokens convert cl100k_base.tiktoken cl100k/tokenizer.json",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="Any file of a tokenizer that is read here, or a run.")],
    target: Annotated[
        Path, typer.Argument(help="By its name: .json as Hugging Face's, .tiktoken ranks, or vocab.bpe of GPT-2's two.")
    ],
    split: Annotated[
        str | None, typer.Option(help="How ranks of an unknown name cut text: the name of a pattern, or an expression.")
    ] = None,
    special: Annotated[list[str] | None, typer.Option(help="A special token of such ranks; may be repeated.")] = None,
) -> None:
    """Write a tokenizer as another kind of file, read it again, and compare."""
    from groundup.tokenizer import formats
    from groundup.tools.tokens import load_tokenizer

    tokenizer = load_tokenizer(source, split, special or ())
    formats.convert(tokenizer.rules, tokenizer.roles, target)
    print(f"{target}: {tokenizer.vocab_size:,} ids, {len(tokenizer.special):,} of them special")


@app.command(
    epilog=example(
        'groundup tokens extend runs/storybook --add " oak" --out models/oak',
        'groundup tokens extend runs/storybook --special "<|tool|>" --out models/tool',
        "groundup tokens extend runs/storybook --from words.txt --out models/with-words",
    )
)
def extend(
    model: Annotated[
        Path, typer.Argument(help="A run, a model directory, or one as of Hugging Face.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Where the model with more tokens goes.", show_default=False)],
    add: Annotated[
        list[str] | None, typer.Option(help="A text that becomes one token wherever it stands; may be repeated.")
    ] = None,
    words: Annotated[
        Path | None, typer.Option("--from", help="A file of such texts, one a line, spaces at its ends included.")
    ] = None,
    special: Annotated[
        list[str] | None, typer.Option(help="A token that is recognised only where it is allowed; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add tokens to a trained model. Texts without them keep their ids and their scores.

    A word inside a text has a space before it, which belongs to the token: --add " photosynthesis".
    """
    from groundup.tools.tokens import extension_rows, extension_table
    from groundup.weights import extend as extending

    added = [*(add or ()), *(extending.read_tokens(words) if words else ())]
    done = extending.extend(model, out, added, special or ())
    if as_json:
        terminal.print_json({"model": str(out), **extension_table(done)})
        return
    terminal.print_table(extension_rows(done))
    before, after = done.rows
    grown = f"{before:,}, now {after:,}" if after > before else f"{before:,}, as before"
    print(f"\nRows of the model's vocabulary: {grown}\n\nTry next:")
    print(f"  {terminal.command('inspect', out)}")
    print(f"  {terminal.command('generate', out, next(iter(done.ids)))}")
