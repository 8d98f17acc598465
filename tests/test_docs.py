"""The pages: what they show runs, what they name is there, and the site made of them stands by itself."""

import ast
import builtins
import contextlib
import doctest
import fnmatch
import functools
import gzip
import importlib
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import groundup
from groundup import errors
from groundup.building import build
from groundup.cli.app import app
from groundup.errors import SettingsError
from groundup.evals.heldout import MEASUREMENTS
from groundup.recipe import Recipe
from groundup.settings import read_toml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced or indented block of a page."""

    page: Path
    line: int
    """Of its first line, counted from 1."""
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    found = []
    for match in re.finditer(
        r"^```(\w*)[^\n]*\n(.*?)^```$|(?<=\n\n)((?: {4}[^\n]*\n|\n)+)", page.read_text(), re.M | re.S
    ):
        indented = match[3] is not None
        line = match.string.count("\n", 0, match.start(3 if indented else 2)) + 1
        found.append(Block(page, line, "" if indented else match[1], match[3] if indented else match[2]))
    return found


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


def in_language(language: str) -> list[Block]:
    return [block for block in ALL_BLOCKS if block.language == language]


def pages_with(found: list[Block]) -> list[Path]:
    return sorted({block.page for block in found})


def name_of(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


# What the code says, the pages of reference say


REFERENCE = runpy.run_path(str(DOCS / "reference.py"))


@pytest.mark.parametrize("name", REFERENCE["PAGES"])
def test_the_pages_of_reference_are_those_of_the_code(name: str) -> None:
    assert (DOCS / "reference" / f"{name}.md").read_text() == REFERENCE["PAGES"][name](), "run `make docs`"


def test_the_json_schema_in_the_repository_is_that_of_the_recipe() -> None:
    written = json.loads(Path("recipes/recipe.schema.json").read_text())
    assert written == REFERENCE["json_schema"](Recipe), "run `make docs`"


def test_the_tour_says_how_many_lines_it_has() -> None:
    page = (DOCS / "tour.md").read_text()
    lines = runpy.run_path(str(DOCS / "hooks.py"))["lines_of_files_shown"](page)
    assert f"The core is {lines:,} lines" in page, "run `make docs`"


def test_every_setting_and_every_option_says_what_it_means() -> None:
    for name in ("recipe", "commands"):
        lines = (DOCS / "reference" / f"{name}.md").read_text().splitlines()
        for line, below in zip(lines, lines[1:], strict=False):
            assert not line.endswith("<br>") or below.strip(), line


PUBLIC = {
    f"{module}.{name}": getattr(importlib.import_module(f"groundup.{module}"), name)
    for module, names in REFERENCE["PUBLIC"].items()
    for name in names
}


def functions_of(thing: Any) -> dict[str, Callable[..., Any]]:
    """What can be called of a public name, or read as a property: by the name of the method, or an empty one."""
    if not inspect.isclass(thing):
        return {"": thing}
    own = {name: vars(thing)[name] for name in vars(thing) if name in ("__init__", "__call__") or name[0] != "_"}
    for name, member in own.items():
        own[name] = (
            getattr(member, "__func__", None) or getattr(member, "fget", None) or getattr(member, "func", member)
        )
    return {name: member for name, member in own.items() if inspect.isfunction(member) and member.__doc__ is not None}


def docstrings_of(thing: Any) -> list[str]:
    return [inspect.cleandoc(part.__doc__ or "") for part in dict.fromkeys([thing, *functions_of(thing).values()])]


def examples_in(docstrings: list[str]) -> str:
    parser = doctest.DocTestParser()
    return "".join(example.source for docstring in docstrings for example in parser.get_examples(docstring))


def test_what_is_public_is_told_with_all_its_members() -> None:
    page = (DOCS / "reference" / "api.md").read_text()
    assert {name for name in groundup.__all__ if not any(path.endswith(f".{name}") for path in PUBLIC)} == set()
    for path, thing in PUBLIC.items():
        assert f"### `{thing.__name__}`\n" in page, path
        for name, member in inspect.getmembers_static(thing) if inspect.isclass(thing) else ():
            is_told = inspect.isroutine(member) or isinstance(member, (property, functools.cached_property))
            if name in vars(thing) and name[0] != "_" and is_told:
                assert f"#### `{thing.__name__}.{name}`\n" in page, path
                assert inspect.cleandoc(member.__doc__ or ""), f"{path}.{name} says nothing"


def test_the_docstring_of_a_public_name_tells_every_argument_and_no_other() -> None:
    for path, thing in PUBLIC.items():
        assert thing.__doc__, path
        for name, function in functions_of(thing).items():
            said = inspect.cleandoc(function.__doc__ or "") + (inspect.cleandoc(thing.__doc__) if "__" in name else "")
            taken = inspect.signature(function).parameters
            for parameter in taken.values():
                if parameter.name not in ("self", "cls") and parameter.kind not in (
                    parameter.VAR_POSITIONAL,
                    parameter.VAR_KEYWORD,
                ):
                    word = rf"(?<![A-Za-z]){parameter.name}(?![A-Za-z])"
                    assert re.search(word, said, re.I), f"{path} {name} does not say what {parameter.name} is"
            for section in re.findall(r"^Args:\n((?: +.*\n?)+)", inspect.cleandoc(function.__doc__ or ""), re.M):
                told = {word for line in re.findall(r"^ {4}(\w[\w, ]*):", section, re.M) for word in line.split(", ")}
                assert told <= taken.keys(), f"{path} {name} tells of {told - taken.keys()}, which it does not take"


def test_every_error_that_a_public_docstring_names_is_one() -> None:
    for path, thing in PUBLIC.items():
        for docstring in docstrings_of(thing):
            for section in re.findall(r"^Raises:\n((?: +.*\n?)+)", docstring, re.M):
                for name in re.findall(r"^ {4}(\w+):", section, re.M):
                    assert hasattr(errors, name) or hasattr(builtins, name), f"{path}: {name}"


def test_every_public_name_has_an_example() -> None:
    """Of its own, or, of what a function returns, that function's; an error has that of all errors. A method is used by
    an example of its class. `--doctest-modules` runs them."""
    shown = {path.rpartition(".")[2] for path, thing in PUBLIC.items() if examples_in(docstrings_of(thing))}
    for path, thing in PUBLIC.items():
        examples = examples_in(docstrings_of(thing))
        returned_by = set(re.findall(r"`(\w+)`", thing.__doc__ or "")) & shown
        is_error = inspect.isclass(thing) and issubclass(thing, errors.GroundupError)
        assert examples or returned_by or is_error, path
        for name in functions_of(thing) if examples else ():
            if name.isidentifier() and "__" not in name and name != "forward":
                assert f".{name}" in examples, f"no example of {path} uses {name}"


def test_code_beside_the_words_is_the_code() -> None:
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    for page in PAGES:
        hooks["expand"](page.read_text())
    shown = hooks["expand"]("before\n<!-- code: train/fit.py Step accumulate -->\nafter")
    source = (ROOT / "src" / "groundup" / "train" / "fit.py").read_text().splitlines()
    first = next(number for number, line in enumerate(source) if line.startswith("def accumulate"))
    assert f'linenums="{first + 1}"' in shown
    assert f"    {source[first + 1]}" in shown
    assert '"""' in shown
    assert "@dataclass" in shown, "decorators belong to a class"


@pytest.mark.parametrize(
    ("mark", "answer"),
    [("train/fit.py nothing", "nothing of train/fit.py"), ("train/fitt.py fit", "train/fitt.py, which is not")],
)
def test_a_page_that_shows_code_that_is_gone_fails(mark: str, answer: str) -> None:
    expand = runpy.run_path(str(DOCS / "hooks.py"))["expand"]
    with pytest.raises(Exception, match=answer):
        expand(f"<!-- code: {mark} -->")


def test_every_test_that_a_page_names_is_there() -> None:
    there = {
        name for file in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    for page in PAGES:
        assert set(re.findall(r"`(test_\w+_\w+)`", page.read_text())) <= there, name_of(page)
        missing = [
            file for file in re.findall(r"\btests/[\w/]+\.py\b", page.read_text()) if not (ROOT / file).is_file()
        ]
        assert not missing, name_of(page)


# Python and TOML in the pages


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """A folder that has what the pages speak of: recipes, texts, and finished runs, all tiny."""
    home = tmp_path_factory.mktemp("pages")
    settle(home).unlink()
    (home / "tales").rename(home / "my-texts")
    for name in ("mine", "my-model"):
        recipe = {"name": name, "corpus": {"sources": ["my-texts"]}, "tokenizer": {"vocab_size": 320}}
        (home / f"{name}.toml").write_text(Recipe.from_table(recipe).override(SMALL).to_toml())
    for name in ("another-book.txt", "some-other-file.txt"):
        (home / name).write_text((home / "my-texts" / "00.txt").read_text() * 9)
    with gzip.open(home / "diaries.jsonl.gz", "wt") as diaries:
        diaries.write(json.dumps({"text": (home / "my-texts" / "01.txt").read_text()}) + "\n")
    shutil.copytree(home / "my-texts", home / "letters")
    shutil.copytree(ROOT / "recipes", home / "recipes")
    with contextlib.chdir(home):
        build("mine.toml", say=lambda text: None)
    for name in ("storybook", "my-model"):
        shutil.copytree(home / "runs" / "mine", home / "runs" / name)
    shutil.copytree(home / "runs" / "mine" / "tokenizer", home / "tokenizers" / "mine")
    return home


SMALL = [
    "tokenizer.vocab_size=320",
    "corpus.test_share=0.2",
    "model.context_length=64",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.d_ff=32",
    "pretrain.steps=3",
    "pretrain.schedule.warmup_steps=1",
    "pretrain.batch_tokens=64",
    "pretrain.device=cpu",
    "pretrain.precision=float32",
    "evals.sampling.max_tokens=8",
]
"""What makes any recipe one of seconds."""


@pytest.fixture
def folder(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, to work in."""
    shutil.copytree(built, tmp_path / "pages")
    monkeypatch.chdir(tmp_path / "pages")
    return tmp_path / "pages"


CLAIM = re.compile(r"^\s*print\(.*\)  # (.*)$", re.M)
"""A comment behind a `print` is what is printed; … stands for anything."""


@pytest.mark.parametrize("page", pages_with(in_language("python")), ids=name_of)
def test_python_in_a_page_runs_and_prints_what_it_says(page: Path, folder: Path) -> None:
    printed: dict[int, str] = {}

    def record(*values: object, **_: object) -> None:
        printed[sys._getframe(1).f_lineno] = " ".join(map(str, values))

    names: dict[str, Any] = {"__name__": "page", "print": record}
    for block in blocks(page):
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, name_of(page), "exec")
            exec(code, names)
    wrong = []
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if claim := CLAIM.search(line):
            expected = re.sub(r"([\[\]?*])", r"[\1]", claim[1]).replace("…", "*")
            if not fnmatch.fnmatchcase(printed.get(number, "nothing"), expected):
                wrong.append(f"{name_of(page)}:{number} prints {printed.get(number, 'nothing')}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("block", in_language("python"), ids=str)
def test_something_is_checked_of_the_python_in_a_page(block: Block) -> None:
    """By a value behind a `print`, or by an assertion that a reader sees too."""
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Call)}
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(block.text)))
    assert CLAIM.search(block.text) or asserts or "torch.testing.assert_close" in calls


@pytest.mark.parametrize("block", in_language("toml"), ids=str)
def test_recipes_in_a_page_load(block: Block, tmp_path: Path) -> None:
    (tmp_path / "page.toml").write_text(block.text)
    table = read_toml(tmp_path / "page.toml")
    if "name" in table:
        Recipe.load(tmp_path / "page.toml")
    else:  # a part: the rest is filled in
        Recipe.from_table({"name": "x", "corpus": {"sources": ["x"]}, "tokenizer": {"vocab_size": 320}} | table)


# Commands in the pages


@dataclass(frozen=True)
class Command:
    """One documented call of groundup."""

    where: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.where} {shlex.join(self.words)}"


def commands_in(text: str, where: str, first: int = 1) -> Iterator[Command]:
    """Calls of groundup in lines of shell, also behind a pipe or an `until`."""
    for number, line in enumerate(text.splitlines(), start=first):
        line = line.removeprefix("$ ")
        if not re.match(r"\s*(\w+ .*[|] |until )?(\.venv/bin/)?groundup ", line):
            continue
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        call: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";|&<>()"):
                if call and Path(call[0]).name == "groundup":
                    yield Command(f"{where}:{number}", call[1:])
                call = []
            elif word != "until":
                call.append(word)


def shown_in(block: Block) -> Iterator[tuple[Command, str]]:
    """The calls of a block of shell, each with what the page shows of its answer, which only a `console` has."""
    if block.language != "console":
        yield from ((call, "") for call in commands_in(block.text, name_of(block.page), block.line))
        return
    for call in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.M):
        line = block.line + block.text.count("\n", 0, call.start())
        yield from ((command, call[2]) for command in commands_in(call[1], name_of(block.page), line))


def documented() -> Iterator[Command]:
    for block in ALL_BLOCKS:
        if block.language in ("", "sh", "console"):
            yield from (command for command, _ in shown_in(block))
    for recipe in sorted((ROOT / "recipes").glob("*.toml")):
        for number, line in enumerate(recipe.read_text().splitlines(), start=1):
            if header := re.match(r"# +(?:command +)?(groundup \w.*?)(  |$)", line):
                yield from commands_in(header[1], name_of(recipe), number)
    yield from in_help(typer.main.get_command(app), "groundup")


def in_help(group: typer.core.TyperGroup, called: str) -> Iterator[Command]:
    """The examples of a group's commands, and of the groups among them."""
    for name, command in group.commands.items():
        yield from commands_in(command.epilog or "", f"{called} {name} --help")
        if isinstance(command, typer.core.TyperGroup):
            yield from in_help(command, f"{called} {name}")


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command's name and what its function would be given."""
    command = typer.main.get_command(app)
    context = command.make_context("groundup", [word for word in words if word != "--debug"])
    called = []
    while isinstance(command, typer.core.TyperGroup):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
        called.append(name)
    return " ".join(called), context.params


@pytest.mark.parametrize("command", list(documented()), ids=str)
def test_a_documented_command_line_is_one_that_groundup_takes(command: Command) -> None:
    try:
        _, given = parse(command.words)
    except typer._click.exceptions.ClickException as error:
        pytest.fail(f"{command.where}: {error.format_message()}")
    settings = [word for word in given.get("overrides") or given.get("rest") or () if "=" in word]
    file = ROOT / str(given.get("recipe") or given.get("target"))
    mine = {"name": "mine", "corpus": {"sources": ["x"]}, "tokenizer": {"vocab_size": 4096}}
    recipe = Recipe.load(file) if file.suffix == ".toml" and file.is_file() else Recipe.from_table(mine)
    try:
        recipe.override(settings)
    except SettingsError as error:
        pytest.fail(f"{command.where}: {error}")


RUN = {
    "README.md": SMALL,
    "docs/how-to/own-data.md": SMALL,
    "docs/how-to/own-tokenizer.md": [setting for setting in SMALL if not setting.startswith("tokenizer.")],
    "docs/how-to/add-tokens.md": SMALL,
    "docs/how-to/resume.md": SMALL,
    "docs/how-to/smaller-machine.md": SMALL,
    "docs/how-to/bigger-machine.md": SMALL,
    "docs/settings-and-files.md": SMALL,
}
"""Pages whose commands are run, one after the other, and what is added to those that take a recipe. Of a `console`
those are run whose answer the page shows, and the answer has lines with the same labels."""
LABEL = re.compile(r"^(\w[\w ]*?)(?= {2,}\S)", re.M)


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_do_what_it_says(page: str, folder: Path) -> None:
    """In a folder with the texts, and with the recipes that the page itself shows or makes."""
    for name in ("mine", "my-model"):
        shutil.rmtree(folder / "runs" / name)
    for block in blocks(ROOT / page):
        table = re.search(r'^name = "(.*)"', block.text)
        if block.language == "toml" and table:
            (folder / f"{table[1]}.toml").write_text(block.text)
        for command, answer in shown_in(block) if block.language in ("", "console") else ():
            if block.language == "console" and not answer:
                continue
            name, given = parse(command.words)
            if name == "watch":
                continue  # serves until it is stopped: tests/report/test_watch.py starts it, and stops it
            if name in ("verify", "rehearse"):
                continue  # tests/tools/ runs them, once for all
            if given.get("tasks") or given.get("suite"):
                continue  # benchmarks do not come with the project: tests/tools/test_examine.py asks some
            if name == "new":
                (folder / f"{given['name']}.toml").unlink(missing_ok=True)
            smaller = RUN[page] if "overrides" in given and command.words[1].endswith(".toml") else []
            done = CliRunner().invoke(app, [*command.words, *smaller], input="The king\n")
            assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception}"
            assert set(LABEL.findall(answer)) <= set(LABEL.findall(done.output)), f"{command}\n{done.output}"


# What else the pages state


def block_with(page: str, beginning: str) -> Block:
    (found,) = (block for block in blocks(DOCS / page) if block.text.startswith(beginning))
    return found


def test_the_floors_of_the_page_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = [layer.replace("groundup.", "") for layer in contracts[0]["layers"]]
    assert block_with("architecture.md", "cli\n").text.splitlines() == checked


def test_the_rooms_and_exit_codes_of_the_page_are_those_of_the_code() -> None:
    page = (DOCS / "architecture.md").read_text()
    rooms = re.findall(r"^[|][^|]*[|] `(\w+)(?:/|\.py)` [|]", page, re.M)
    there = {
        path.stem for path in (ROOT / "src" / "groundup").iterdir() if path.stem[0] not in "_." and path.stem != "data"
    }
    assert sorted(rooms) == sorted(there)
    codes = {name: int(code) for code, name in re.findall(r"^[|] (\d+) [|].*[|] `(\w+)` [|]$", page, re.M)}
    assert codes == {error.__name__: error.exit_code for error in errors.GroundupError.__subclasses__()}


def test_where_to_look_names_modules_that_are_there() -> None:
    page = (DOCS / "architecture.md").read_text()
    section = page.partition("## Where to look\n")[2].partition("\n## ")[0]
    questions = re.findall(r"^[|] (.*\?) [|] (.*) [|]$", section, re.M)
    assert len(questions) >= 5
    for question, answer in questions:
        modules = re.findall(r"`([^`]+)`", answer)
        assert modules and all((ROOT / "src" / "groundup" / module).is_file() for module in modules), question


FILE = re.compile(r"[\w-]+(?:\.[\w-]+)*\.(?:json|jsonl|toml|parquet|html|safetensors)\b")


@pytest.mark.parametrize(
    ("page", "beginning"),
    [
        ("architecture.md", "runs/NAME/"),
        ("corpus.md", "corpus/"),
        ("evaluation.md", "evals/"),
        ("model.md", "model/"),
        ("training.md", "pretrain/"),
    ],
)
def test_the_files_that_a_page_lists_are_those_of_a_run(page: str, beginning: str, built: Path) -> None:
    listed = set(FILE.findall(block_with(page, beginning).text))
    directory = built / "runs" / "mine" / beginning.replace("runs/NAME/", "")
    there = {file.name for file in directory.rglob("*") if file.is_file()}
    of_some_runs = {"clusters.parquet", "contaminated.jsonl", "diverged.json", "health.jsonl"}
    assert listed - of_some_runs <= there
    if beginning != "runs/NAME/":  # which leaves out what is inside, and says so
        assert {name for name in there if FILE.fullmatch(name)} <= listed


def test_the_lines_of_metrics_that_a_page_shows_have_the_fields_of_a_run(built: Path) -> None:
    written = [json.loads(line) for line in (built / "runs/mine/pretrain/metrics.jsonl").read_text().splitlines()]
    fields = {field for row in written for field in row} | MEASUREMENTS.keys()
    for line in block_with("training.md", '{"step": 1, "loss"').text.splitlines():
        assert json.loads(line).keys() <= fields, line


def test_a_build_that_no_longer_fits_ends_as_the_page_says(folder: Path) -> None:
    done = CliRunner().invoke(app, ["build", "mine.toml", "pretrain.steps=4"])
    shown = block_with("recipe.md", "groundup: runs/mine was built").text
    assert str(done.exception) + "\n" == shown.removeprefix("groundup: ").replace("1000 → 2000", "3 → 4")


def test_an_unknown_setting_is_named_as_the_page_says(folder: Path) -> None:
    tables = '[corpus]\nsources = ["my-texts"]\n[tokenizer]\nvocab_size = 320\n[pretrain]\n'
    Path("my-model.toml").write_text(f'name = "my-model"\n\n\n{tables}stepz = 500\n')
    done = CliRunner().invoke(app, ["build", "my-model.toml"])
    shown = block_with("settings-and-files.md", "groundup: my-model.toml").text
    assert str(done.exception).splitlines()[:2] == shown.removeprefix("groundup: ").splitlines()


# Links


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as code hosts and the site give them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_and_anchor_of_a_page_resolves(page: Path) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}, which is not there"
        assert target.is_relative_to(DOCS) or not page.is_relative_to(DOCS), f"{link} is not part of the site"
        assert not anchor or anchor in anchors(target), f"{name_of(page)} links to {link}: no such heading"


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", place],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return place


def test_the_site_is_built_without_a_warning_and_has_the_code_beside_the_words(site: Path) -> None:
    assert {page.relative_to(site).with_suffix(".md") for page in site.rglob("*.html")} >= {
        page.relative_to(DOCS) for page in DOCS.rglob("*.md")
    }
    tour = (site / "tour.html").read_text()
    assert "<!-- code:" not in tour
    assert tour.count('<details class="code"') > 20
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
def test_on_a_phone_and_a_desk_the_site_fits_asks_nobody_and_is_searched(site: Path, browser: Any) -> None:
    """From disk, without a server."""
    heard: list[str] = []
    asked: list[str] = []
    for width, pages in ((1280, [DOCS / "index.md"]), (390, list(DOCS.rglob("*.md")))):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        for page in pages:
            tab.goto((site / page.relative_to(DOCS)).with_suffix(".html").as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"{name_of(page)} at {width}"
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.keyboard.press("/")
    tab.keyboard.type("warmup_steps")
    tab.wait_for_selector(".md-search-result__link")
    assert heard == []
    assert [url for url in asked if not url.startswith((site.as_uri(), "about:", "data:", "blob:"))] == []
