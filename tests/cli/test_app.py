"""The command line: quick help, true examples, and for every mistake a paragraph and its exit code."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from groundup.cli.app import app

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def names(group: Any, before: str = "") -> Iterator[str]:
    """Of all its commands; a group's own before those of its members."""
    for name, command in group.commands.items():
        yield before + name
        if hasattr(command, "commands"):
            yield from names(command, f"{before}{name} ")


COMMANDS = list(names(typer.main.get_command(app)))


@pytest.fixture(scope="module")
def modules_of_the_libraries() -> int:
    """How many modules are loaded for the libraries that the command line stands on."""
    code = "import sys, typer, pydantic; pydantic.BaseModel; print(len(sys.modules))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_has_an_example_and_loads_little_more_than_its_libraries(
    command: str | None, modules_of_the_libraries: int
) -> None:
    """No torch. Its seconds are in docs/numbers.md; modules are counted the same on a busy machine."""
    arguments = [] if command is None else command.split()
    code = (
        f"import sys; sys.argv = ['groundup', *{arguments!r}, '--help']\n"
        "from groundup.cli import app as cli\ntry: cli.main()\nfinally: print('torch' in sys.modules, len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    *_, with_torch, modules = done.stdout.split()
    assert with_torch == "False"
    assert int(modules) < 1.6 * modules_of_the_libraries
    assert "groundup build recipes/storybook.toml" in done.stdout if command is None else "Example:" in done.stdout


def test_examples_in_help_are_commands_that_parse(run: Run) -> None:
    for command in COMMANDS:
        text = run(*command.split(), "--help").stdout
        shown = text[text.index("Example:") :].split("Settings:")[0]
        examples = [line.strip() for line in shown.splitlines()[1:] if line.strip()]
        assert examples
        for example in examples:
            words = shlex.split(example.split(" | ")[-1])
            called = ["groundup", *command.split()]
            assert words[: len(called)] == called
            done = run(*words[1:], "--help")
            assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "runs/tiny", "-", "max_tokens=12", "seed=3"], 0),
        (["build", "tiny.toml", "pretrain.stepz=3"], 2),
        (["tokens", "show", "runs/tiny", "--file", "gone.txt"], 3),
    ],
)
def test_a_process_of_its_own_prints_and_ends_as_the_tests_here_say(
    run: Run, run_apart: Run, built: Path, arguments: list[object], code: int
) -> None:
    apart = run_apart(*arguments, cwd=built, stdin="Tale 3 漢\n")
    here = run(*arguments, cwd=built, stdin="Tale 3 漢\n")
    assert (apart.returncode, apart.stdout, apart.stderr) == (here.returncode, here.stdout, here.stderr)
    assert here.returncode == code


@pytest.mark.parametrize(
    "command",
    ["new", "inspect", "corpus", "tokenizer", "pack", "compare", "tasks", "tokens", "tokens compare", "tokens advise"],
)
def test_commands_that_need_no_torch_import_none(built: Path, command: str) -> None:
    arguments = {
        "new": ["light", "--from", "tales"],
        "inspect": ["runs/tiny"],
        "compare": ["runs/tiny", "runs/tiny2"],
        "tasks": [],
        "tokens": ["show", "runs/tiny", "the king"],
        "tokens compare": ["runs/tiny", "other.json", "--text", "tales"],
        "tokens advise": ["tales"],
    }
    if not (built / "runs" / "tiny2").exists():
        shutil.copytree(built / "runs" / "tiny", built / "runs" / "tiny2")
    words = [*command.split(), *arguments.get(command, ["tiny.toml", "--run", "runs/light"])]
    code = (
        f"import sys; sys.argv = ['groundup', *{words!r}]\n"
        "from groundup.cli import app as cli\ntry: cli.main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=built, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("False\n"), done.stderr


def test_the_shell_completes_commands_and_options(built: Path) -> None:
    def completed(line: str) -> list[str]:
        done = subprocess.run(
            [Path(sys.executable).with_name("groundup")], cwd=built, capture_output=True, text=True, check=False,
            env={**os.environ, "_GROUNDUP_COMPLETE": "complete_bash", "COMP_WORDS": line,
                 "COMP_CWORD": str(len(line.split()) - 1)},
        )  # fmt: skip
        return done.stdout.split()

    assert completed("groundup ge") == ["generate"]
    assert completed("groundup chat runs/tiny te") == ["temperature="]
    assert "--device" in completed("groundup chat --de")
    assert "smollm2-135m" in completed("groundup new x --preset smol")


MISTAKES: list[tuple[list[str], int, str]] = [
    (["build", "missing.toml"], 3, "no recipe file missing.toml; recipes there: "),
    (["build", "tiny.toml", "pretrain.stepz=3"], 2, "unknown setting pretrain.stepz; did you mean steps?"),
    (["build", "tiny.toml", "pretrain.steps=many"], 2, "pretrain.steps is 'many'; it should be a valid integer"),
    (["build", "tiny.toml", "tokenizer.vocab_size=256"], 2, "nearest: 320"),
    (["build", "tiny.toml", "model.n_heads=3"], 2, "n_heads = 3 does not divide d_model = 16"),
    (["build", "tiny.toml", "corpus.sources=['gone']", "--run", "x1"], 3, "source gone is missing: looked at"),
    (["build", "tiny.toml", "corpus.sources=['empty']", "--run", "x2"], 3, "has no readable file"),
    (["build", "tiny.toml", "corpus.sources=['latin']", "--run", "x3"], 3, "not utf-8"),
    (
        ["build", "tiny.toml", "model.context_length=64000", "pretrain.batch_tokens=64000", "--run", "x4"],
        2,
        "have only",
    ),
    (["build", "tiny.toml", "pretrain.steps=41"], 2, "pretrain.steps: 40 → 41"),
    (["pack", "tiny.toml", "--run", "x5"], 2, "run `groundup corpus RECIPE --run x5` first"),
    (["build", "tiny.toml", "stray"], 2, "is not of the form dotted.key=value"),
    (["bild"], 2, "bild"),
    (["new", "fresh"], 2, "name the texts to learn from"),
    (["new", "fresh", "--from", "gone"], 3, "source gone is missing: looked at"),
    (["new", "fresh", "--from", "weights.pt"], 3, "nothing here reads '.pt' files"),
    (["new", "fresh", "--from", "empty"], 3, "has no readable file"),
    (["new", "fresh", "--from", "tales", "--size", "huge"], 2, "--size is 'huge'; it should be a number of parameters"),
    (["new", "fresh", "--from", "tales", "--minutes", "0"], 2, "--minutes is 0"),
    (["new", "fresh", "--from", "tales", "--preset", "gpt9"], 2, "no preset 'gpt9'; did you mean gpt2"),
    (["new", "fresh", "--from", "tales", "--size", "1M", "--preset", "gpt2"], 2, "both set the size"),
    (["new", "fresh", "--from", "tales", "--start", "gone"], 3, "no model at gone"),
    (["sweep", "tiny.toml"], 2, "nothing is swept: give a setting several values, such as pretrain.optimizer"),
    (["sweep", "tiny.toml", "model.d_model=16,32", "--run", "runs/tiny"], 2, "runs/tiny is a run, not a sweep"),
    (["bench", "tales"], 2, "tales is neither a recipe nor a run with shards"),
    (["report", "runs/tiny", "pretrain.steps=3"], 2, "runs/tiny is a run, which is reported as it is"),
    (["report", "runs/tinny"], 3, "no run at runs/tinny; did you mean runs/tiny"),
    (["eval", "runs/tiny", "--replace"], 2, "--run and --replace go with a recipe"),
    (["eval", "tiny.toml", "--device", "cpu"], 2, "set pretrain.device=cpu"),
    (["new", "../up", "--from", "tales"], 2, "'../up' cannot be the name of a folder in runs/"),
    (["new", "tiny", "--from", "tales"], 2, "tiny.toml exists and is left as it is"),
    (["chat", "nothing"], 3, "no model at nothing"),
    (["generate", "runs/tiny", "--samples", "0"], 2, "samples"),
    (["generate", "nothing"], 3, "no model at nothing"),
    (["generate", "runs/tiny", "temperature=-1"], 2, "temperature is -1"),
    (["generate", "runs/tiny", "temprature=1"], 2, "unknown setting temprature; did you mean temperature?"),
    (["generate", "runs/tiny", "--max-tokens", "x"], 2, "max_tokens is 'x'"),
    (["chat", "runs/tiny", "--top-k=x"], 2, "top_k is 'x'"),
    (["generate", "runs/tiny", "--loud"], 2, "no option --loud"),
    (["generate", "runs/tiny", "the", "king"], 2, "two prompts are given, 'the' and 'king': put one in quotes"),
    (["chat", "runs/tiny", "hello"], 2, "'hello' is not of the form key=value"),
    (["generate", "runs/tiny", "--device", "toaster"], 2, "device 'toaster'"),
    (["build", "tiny.toml", "pretrain.device=toaster", "--run", "x6"], 2, "device 'toaster'"),
    (["generate", "weights.pt"], 3, "is a pickle"),
    (["eval", "runs/tiny", "nowhere.txt"], 3, "source nowhere.txt is missing"),
    (["eval", "runs/tiny", "weights.pt"], 3, "nothing here reads '.pt' files"),
    (["report", "empty"], 3, "has no result of corpus"),
    (["compare", "runs/tiny"], 2, "name two or more different runs"),
    (["compare", "runs/tiny", "empty"], 3, "empty has no result of corpus"),
    (
        ["compare", "runs/tiny", "damaged"],
        3,
        "Make it again: `groundup build damaged/recipe.toml --run damaged --replace`",
    ),
    (["compare", "runs/tiny", "runs/gone"], 3, "no run at runs/gone"),
    (["build", "tiny.toml", "--run", "weights.pt"], 2, "weights.pt"),
    (["build", "weights.pt/x.toml"], 3, "no recipe file"),
    (["build", "tiny.toml", f"name={'x' * 300}"], 2, "at most 100 characters"),
    (["build", "tiny.toml", "--run", "x" * 300], 2, "cannot be made: File name too long"),
    (["generate", "runs/tiny", "--device", "meta"], 2, "device 'meta'"),
    (["generate", "runs/tiny", f"seed={1 << 64}"], 2, "seed is"),
    (["eval", "damaged"], 3, "is damaged"),
    (["build", "tiny"], 3, "no recipe file tiny; did you mean tiny.toml?"),
    (
        ["build", "runs/tiny"],
        3,
        "it is a run; `groundup inspect runs/tiny` says how to go on with it",
    ),
    (["build", "empty"], 3, "no recipe file empty: it is a folder"),
    (["build", "wrong.toml"], 2, "line 3: unknown setting corpus.sourcez; did you mean sources?"),
    (["build", "tiny.toml", "pretrain.schedule.warmup_steps=40"], 2, "but there are only 40 steps"),
    (["build", "tiny.toml", "corpus.sources=['${HOME}/x']", "--run", "x7"], 3, "filled in from the environment"),
    (["generate", "tiny.toml"], 2, "tiny.toml is a recipe; name what `groundup build tiny.toml` makes of it"),
    (["generate", "tiny"], 3, "no model at tiny; did you mean runs/tiny?"),
    (["eval", "runs/tinny"], 3, "no run or model at runs/tinny; did you mean runs/tiny?"),
    (["inspect", "tiny.tml"], 3, "no file or folder at tiny.tml; did you mean tiny.toml?"),
    (["inspect", "weights.pt"], 0, "a pickle, which can run any program"),
    (["inspect", "damaged"], 3, "damaged is not whole:\n  evals: test.json has 2 bytes"),
    (["eval", "runs/tiny", "evals.batch_rows=3"], 2, "evals.batch_rows=3 is given, but no recipe"),
    (["tokens"], 2, "Look at tokenizers"),
    (["tokens", "shwo"], 2, "show"),
    (["tokens", "compare", "runs/tiny", "--text", "tales"], 2, "nothing to compare runs/tiny with"),
    (["tokens", "compare", "--text", "tales", "runs/tiny", "other.json"], 2, "Missing argument"),
    (["tokens", "compare", "runs/tiny", "other.json"], 2, "name texts to compare them on: --text FILE"),
    (["tokens", "compare", "runs/tiny", "other.json", "--text"], 2, "'--text' requires an argument"),
    (["tokens", "compare", "runs/tiny", "gone.json", "--text", "tales"], 3, "no tokenizer at gone.json"),
    (["tokens", "compare", "runs/tiny", "other.json", "--text", "gone"], 3, "source gone is missing"),
    (["tokens", "compare", "runs/tiny", "other.json", "--text", "tales", "--html", "tales"], 2, "tales is a folder"),
    (["tokens", "advise", "gone"], 3, "source gone is missing"),
    (["tokens", "advise", "tales", "--size", "big"], 2, "--size is 'big'"),
    (["tokens", "advise", "tales", "--size", "1M", "--model", "tiny.toml"], 2, "give one of them"),
    (["tokens", "advise", "tales", "--model", "gone.toml"], 3, "no recipe file gone.toml"),
    (["tokens", "advise", "tales", "--max-vocab", "100"], 2, "the largest vocabulary is 100; sizes from 512"),
    (["tokens", "show", "tinny", "text"], 3, "no tokenizer at tinny; did you mean runs/tiny?"),
    (
        ["tokens", "show", "tiny.toml", "text"],
        2,
        "tiny.toml is a recipe; name what `groundup tokenizer tiny.toml` makes",
    ),
    (["tokens", "show", "empty", "text"], 3, "cannot read empty/tokenizer.json"),
    (["tokens", "show", "weights.pt", "text"], 3, "is not a tokenizer that can be read here"),
    (["tokens", "show", "runs/tiny", "a", "--file", "tales/00.txt"], 2, "two texts are given"),
    (["tokens", "show", "runs/tiny", "a", "--html", "empty"], 2, "empty is a folder; the page needs a file"),
    (["tokens", "show", "runs/tiny", "--file", "gone.txt"], 3, "cannot read gone.txt"),
    (["build", "tiny.toml", "a\x1b[31m=1"], 2, r"unknown setting a\x1b[31m"),
]


@pytest.mark.parametrize(("arguments", "code", "answer"), MISTAKES, ids=lambda value: None)
def test_a_mistake_is_answered_with_a_paragraph_and_its_code(
    run: Run, built: Path, arguments: list[str], code: int, answer: str
) -> None:
    (built / "empty").mkdir(exist_ok=True)
    (built / "latin").mkdir(exist_ok=True)
    (built / "latin" / "a.txt").write_bytes("über ".encode("latin-1") * 100)
    (built / "wrong.toml").write_text("name = 'wrong'\n[corpus]\nsourcez = ['tales']\n")
    (built / "weights.pt").write_bytes(b"\x80\x04\x95")
    if not (built / "damaged").exists():
        shutil.copytree(built / "runs" / "tiny", built / "damaged")
        (built / "damaged" / "evals" / "test.json").write_text("{}")
    done = run(*arguments, cwd=built)
    assert answer in done.stderr + done.stdout
    assert done.returncode == code
    assert "Traceback" not in done.stderr
