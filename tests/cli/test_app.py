"""The command line: quick help, true examples, and for every mistake a paragraph and its exit code."""

import importlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from groundup import __main__ as entrance
from groundup.cli.app import app, main
from groundup.cli.help import describe, describe_table
from groundup.cli.stages import TABLES
from groundup.recipe import Recipe
from groundup.tokenizer.tokenizer import Tokenizer


def names(group: Any, before: str = "") -> Iterator[str]:
    """Of all its commands; a group's own before those of its members."""
    for name, command in group.commands.items():
        yield before + name
        if hasattr(command, "commands"):
            yield from names(command, f"{before}{name} ")


COMMANDS = list(names(typer.main.get_command(app)))
Done = subprocess.CompletedProcess[str]


def run(*arguments: object, cwd: Path | None = None, stdin: str = "") -> Done:
    """What the command prints and how it ends, without the seconds that a process of its own takes to begin."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", [entrance.__file__, *map(str, arguments)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setenv("COLUMNS", "200")
            patch.setattr("groundup.cli.terminal.SECONDS_BETWEEN_LINES", float("inf"))  # how far it is
            patch.chdir(cwd or Path())
            main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    told = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return Done(arguments, int(ended.value.code or 0), *told)


def run_apart(*arguments: object, cwd: Path | None = None, stdin: str | None = None) -> Done:
    """The same, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "groundup", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """A folder with a finished run."""
    home = settle(tmp_path_factory.mktemp("home")).parent
    done = run_apart("build", "tiny.toml", cwd=home)
    assert done.returncode == 0, done.stderr
    Tokenizer.learn(["the fox"], vocab_size=320).save(home / "other.json")
    return home


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


def test_help_lists_the_settings_of_the_recipes_own_tables() -> None:
    for name, (room, kind) in TABLES.items():
        annotation = getattr(importlib.import_module(room), kind)
        expected = [row for row in describe(Recipe) if row[0].startswith(f"{name}.")]
        assert list(describe_table(name, annotation)) == expected


def test_examples_in_help_are_commands_that_parse() -> None:
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


def test_a_build_tells_stages_quality_samples_and_what_to_try(built: Path) -> None:
    done = run("build", "tiny.toml", cwd=built)
    assert done.returncode == 0
    for word in (
        "corpus",
        "tokenizer",
        "pack",
        "pretrain",
        "eval",
        "report",
        "up to date",
        "bits per byte",
        "“Tale",
        "Try next:",
        "generate runs/tiny",
    ):
        assert word in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "runs/tiny", "-", "max_tokens=12", "seed=3"], 0),
        (["build", "tiny.toml", "pretrain.stepz=3"], 2),
        (["tokens", "show", "runs/tiny", "--file", "gone.txt"], 3),
    ],
)
def test_a_process_of_its_own_prints_and_ends_as_the_tests_here_say(
    built: Path, arguments: list[object], code: int
) -> None:
    apart = run_apart(*arguments, cwd=built, stdin="Tale 3 漢\n")
    here = run(*arguments, cwd=built, stdin="Tale 3 漢\n")
    assert (apart.returncode, apart.stdout, apart.stderr) == (here.returncode, here.stdout, here.stderr)
    assert here.returncode == code


def test_eval_on_the_recipe_and_on_any_file(built: Path) -> None:
    of_recipe = run("eval", "tiny.toml", "--json", cwd=built)
    assert json.loads(of_recipe.stdout) == json.loads((built / "runs" / "tiny" / "evals" / "test.json").read_text())
    on_file = run("eval", "runs/tiny", "tales/03.txt", "tales/04.txt", "--json", cwd=built)
    result = json.loads(on_file.stdout)
    assert result["documents"] == 2
    assert result["bytes"] == sum(len((built / "tales" / f"0{n}.txt").read_text().strip()) for n in (3, 4))
    assert "bits per byte" in run("eval", "runs/tiny", cwd=built).stdout
    assert "name the files to score" in run("eval", "runs/tiny/model", cwd=built).stderr


def test_generate_continues_prompts_from_argument_and_pipe(built: Path) -> None:
    options = ["max_tokens=12", "seed=3"]
    argument = run("generate", "runs/tiny", "Tale 3", *options, cwd=built)
    piped = run("generate", "runs/tiny", "-", *options, cwd=built, stdin="Tale 3\n")
    assert argument.stdout == piped.stdout
    assert argument.stdout.startswith("Tale 3")
    stopped = run("generate", "runs/tiny", "Tale 3", *options, 'stop=" "', cwd=built)
    assert len(stopped.stdout) <= len(argument.stdout)


def test_several_samples_have_seeds_of_their_own_and_json_says_the_same(built: Path) -> None:
    options = ["Tale 3", "max_tokens=12", "seed=3"]
    plain = run("generate", "runs/tiny", *options, "--samples", 2, cwd=built).stdout
    lines = run("generate", "runs/tiny", *options, "--samples", 2, "--json", "--probabilities", cwd=built).stdout
    told = [json.loads(line) for line in lines.splitlines()]
    assert [sample["seed"] for sample in told] == [3, 4]
    assert plain == "\n".join(f"[seed {sample['seed']}]\n{sample['prompt']}{sample['text']}\n" for sample in told)
    for token in told[0]["tokens"]:
        shares = [token["probability"], *(other["probability"] for other in token["instead"])]
        assert min(shares) >= 0
        assert sum(shares) <= 1 + 1e-6
        assert token["id"] not in [other["id"] for other in token["instead"]]
    table = run("generate", "runs/tiny", *options, "--probabilities", cwd=built).stdout
    assert f"{told[0]['tokens'][0]['probability']:.1%}" in table


def test_a_conversation_through_a_pipe_is_plain(built: Path) -> None:
    done = run("chat", "runs/tiny", "max_tokens=5", cwd=built, stdin="Tale 3\n/text\n")
    reply, text = done.stdout.split("\n")[:2]
    assert text == f"Tale 3{reply}"
    assert done.stderr == ""


@pytest.mark.slow
def test_from_texts_to_a_conversation_in_three_commands(built: Path) -> None:
    """As a new user would; the recipe made here is the proposed one, in seconds."""
    new = run("new", "own", "--from", "tales", "--minutes", "0.05", cwd=built)
    assert new.returncode == 0, new.stderr
    for word in ("40 .txt: 40 documents", "100.0% Latin", "Wrote own.toml", "build own.toml", "chat runs/own"):
        assert word in new.stdout
    assert run("build", "own.toml", cwd=built).returncode == 0
    assert run("chat", "runs/own", cwd=built, stdin="Tale 3\n").stdout.strip()
    assert run("new", "own", "--from", "tales", cwd=built).returncode == 2


def test_new_says_what_it_leaves_out_and_as_json_the_same(built: Path) -> None:
    folder = built / "mixed"
    shutil.copytree(built / "tales", folder)
    for name, content in {"a.png": b"\x89PNG", "b.zip": b"PK", "c.txt": b"", "d.md": b"\xc3\x28" * 60}.items():
        (folder / name).write_bytes(content)
    shutil.copy(folder / "00.txt", folder / "copy.txt")
    plain = run("new", "mixed", "--from", "mixed", cwd=built).stdout
    left_out = "1 × .png (mixed/a.png), 1 × .zip (mixed/b.zip): read are .txt, .md, .jsonl"
    for word in (left_out, "1 × empty", "1 × exact duplicate", "1 × not utf-8 (mixed/d.md: invalid continuation byte"):
        assert word in plain
    told = json.loads(run("new", "mixed2", "--from", "mixed", "--json", cwd=built).stdout)
    assert told["left_out"] == {".png": 1, ".zip": 1}
    assert told["documents"] == 40
    assert (built / told["recipe"]).is_file()


def test_tokens_show_tells_ids_bytes_and_merges_of_any_text_plainly_in_a_pipe(built: Path) -> None:
    text = "the king \x1b[31m \u202e漢\n"
    (built / "hostile.txt").write_text(text)
    named = [run("tokens", "show", path, text, cwd=built) for path in
             ("runs/tiny", "runs/tiny/model", "runs/tiny/tokenizer", "runs/tiny/tokenizer/tokenizer.json")]  # fmt: skip
    piped = run("tokens", "show", "runs/tiny", "-", cwd=built, stdin=text)
    read = run("tokens", "show", "runs/tiny", "--file", "hostile.txt", cwd=built)
    assert {done.stdout for done in (*named, piped, read)} == {named[0].stdout}
    assert all(character.isprintable() or character == "\n" for character in named[0].stdout)
    tokenizer = Tokenizer.load(built / "runs" / "tiny" / "tokenizer")
    ids = tokenizer.encode(text)
    rows = re.findall(r"^ +(\d+) +([\d,]+)  ", named[0].stdout, re.M)
    assert [int(i) for _, i in rows][: len(ids)] == ids
    for word in (f"{len(ids)} tokens for {len(text.encode())} bytes", "│t¦he│", "h + e = he", r"\x1b¦[│3¦1│m", r"\xe6"):
        assert word in named[0].stdout


def test_tokens_show_as_json_tells_all_that_there_is(built: Path) -> None:
    raw = "Tale 3 of the old king's 漢字. ".encode() * 100 + b"\xff\x00<|endoftext|>"
    (built / "long.txt").write_bytes(raw)
    tokenizer = Tokenizer.load(built / "runs" / "tiny" / "tokenizer")
    for options, allowed in (([], frozenset()), (["--special"], frozenset({"<|endoftext|>"}))):
        told = json.loads(
            run("tokens", "show", "runs/tiny", "--file", "long.txt", "--json", *options, cwd=built).stdout
        )
        assert told["ids"] == tokenizer.encode(raw, allowed)
        assert told["tokens"] == len(told["ids"])
        assert told["bytes"] == len(raw)
        assert b"".join(bytes.fromhex(piece["bytes"]) for piece in told["pieces"]) == raw
        assert [token["id"] for piece in told["pieces"] for token in piece["tokens"]] == told["ids"]
        assert [piece["begin"] for piece in told["pieces"]][:3] == [0, 4, 6]
        assert all((piece["text"] or "").encode() in (b"", bytes.fromhex(piece["bytes"])) for piece in told["pieces"])
    assert told["pieces"][-1]["kind"] == "special"
    plain = run("tokens", "show", "runs/tiny", "--file", "long.txt", cwd=built).stdout
    assert f"the first 400 of {len(tokenizer.encode(raw)):,} tokens" in plain
    assert plain.count("\n") < 200


def test_tokens_show_writes_a_page_and_of_a_run_with_what_is_in_its_shards(built: Path) -> None:
    done = run("tokens", "show", "runs/tiny", "the king", "--html", "pages/tokens.html", cwd=built)
    assert done.stdout.endswith("With the tree of each pre-token: pages/tokens.html\n")
    assert " times in the shards" in (built / "pages" / "tokens.html").read_text()
    told = run("tokens", "show", "runs/tiny/tokenizer", "the king", "--html", "pages/2.html", "--json", cwd=built)
    assert json.loads(told.stdout)["tokens"] == 4
    assert "in the shards" not in (built / "pages" / "2.html").read_text()


def test_tokens_show_on_a_terminal_has_colours_and_bars(built: Path) -> None:
    controller, terminal = os.openpty()
    subprocess.run(
        [sys.executable, "-m", "groundup", "tokens", "show", "runs/tiny", "the king"], cwd=built, stdout=terminal,
        check=True, env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
    )  # fmt: skip
    os.close(terminal)
    shown = os.read(controller, 1 << 16).decode()
    os.close(controller)
    coloured = re.findall(r"\x1b\[[\d;]*48;2;([\d;]+)m([^\x1b]*)\x1b\[0m", shown)
    tokenizer = Tokenizer.load(built / "runs" / "tiny" / "tokenizer")
    assert [text for _, text in coloured] == [tokenizer.decode([i]) for i in tokenizer.encode("the king")]
    assert all(one != other for (one, _), (other, _) in itertools.pairwise(coloured))
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).count("│") == 3


def test_tokens_compare_takes_several_texts_after_one_option(built: Path) -> None:
    apart = run("tokens", "compare", "runs/tiny", "other.json", "--text", "tales", "--text", "tales/00.txt", cwd=built)
    page = built / "tokenizers.html"
    together = run(
        "tokens", "compare", "runs/tiny", "other.json", "--text", "tales", "tales/00.txt", "--html", page, cwd=built
    )
    assert apart.returncode == together.returncode == 0, together.stderr
    table = [re.split("  +", line) for line in together.stdout.splitlines()[1:4]]
    assert [row[0] for row in table] == ["all texts", "tales", "tales/00.txt"]
    assert [row[1] for row in table] == ["41", "40", "1"]
    assert [line.split("  ")[0] for line in apart.stdout.splitlines()[:4]] == ["", "all texts", "tales", "tales/00.txt"]
    assert "other.json needs" in together.stdout and "than tiny on all texts" in together.stdout
    assert page.is_file()
    told = json.loads(
        run("tokens", "compare", "runs/tiny", "other.json", "--text", "tales", "--json", cwd=built).stdout
    )
    tokenizer = Tokenizer.load(built / "runs" / "tiny" / "tokenizer")
    texts = [path.read_text() for path in (built / "tales").glob("*.txt")]
    assert told["groups"][0]["by"][0]["tokens"] == sum(len(tokenizer.encode(text)) for text in texts)


def test_tokens_advise_gives_a_line_that_a_recipe_takes(built: Path) -> None:
    done = run("tokens", "advise", "tales", "--model", "tiny.toml", cwd=built)
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    told = json.loads(run("tokens", "advise", "tales", "--model", "tiny.toml", "--json", cwd=built).stdout)
    assert line == f"vocab_size = {told['vocab_size']}"
    assert (
        Recipe.load(built / "tiny.toml", [f"tokenizer.{line.replace(' ', '')}"]).tokenizer.vocab_size
        == told["vocab_size"]
    )
    assert told["model"]["d_model"] == 16
    sized = run("tokens", "advise", "tales", "--size", "1M", "--max-vocab", "512", "--json", cwd=built)
    assert max(size["vocab_size"] for size in json.loads(sized.stdout)["sizes"]) <= 512


def test_tokens_convert_writes_by_the_name_of_the_target(built: Path) -> None:
    done = run("tokens", "convert", "runs/tiny", "tiny.tiktoken", cwd=built)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tiny.tiktoken: 320 ids, 16 of them special" in done.stdout
    bare = run("tokens", "convert", "tiny.tiktoken", "again/tokenizer.json", cwd=built)
    assert bare.returncode == 2
    back = ["tokens", "convert", "tiny.tiktoken", "again.json", "--split", "gpt2"]
    tokenizer = Tokenizer.load(built / "runs" / "tiny" / "tokenizer")
    done = run(*back, *(part for name in tokenizer.special for part in ("--special", name)), cwd=built)
    assert done.returncode == 0, done.stderr
    assert Tokenizer.load(built / "again.json").tokens == tokenizer.tokens


def test_an_extended_model_generates_is_scored_and_tells_where_it_comes_from(built: Path) -> None:
    (built / "words.txt").write_text(" golden apple\n\n fox went\n")
    arguments = [
        "tokens",
        "extend",
        "runs/tiny",
        "--from",
        "words.txt",
        "--special",
        "<|tool|>",
        "--out",
        "models/more",
    ]
    done = run(*arguments, cwd=built)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r'^" golden apple" +320 +" g', done.stdout, re.M), done.stdout
    assert "320, now 384" in done.stdout
    digest = json.loads(run("inspect", "runs/tiny/model", "--json", cwd=built).stdout)["facts"]["digest"]
    told = run("inspect", "models/more", cwd=built).stdout
    assert f'from the model {digest[:12]}, by " golden apple", " fox went", "<|tool|>"; not trained since' in told
    assert run("generate", "models/more", "the golden apple", "max_tokens=5", cwd=built).returncode == 0
    assert "bits per byte" in run("eval", "models/more", "tales/00.txt", cwd=built).stdout
    again = run(*arguments, cwd=built)
    assert again.returncode == 2
    assert "models/more exists and is left as it is: choose another --out" in again.stderr
    more = run("tokens", "extend", "models/more", "--add", "<|more|>", "--out", "models/still", "--json", cwd=built)
    added = json.loads(more.stdout)
    assert added["tokens"]["<|more|>"]["id"] == 384
    assert "".join(added["tokens"]["<|more|>"]["before"]) == "<|more|>"
    assert added["rows"] == [384, 448]


@pytest.mark.parametrize(
    "command", ["new", "inspect", "corpus", "tokenizer", "pack", "compare", "tokens", "tokens compare", "tokens advise"]
)
def test_commands_that_need_no_torch_import_none(built: Path, command: str) -> None:
    arguments = {
        "new": ["light", "--from", "tales"],
        "inspect": ["runs/tiny"],
        "compare": ["runs/tiny", "runs/tiny2"],
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


def test_debug_shows_the_traceback_in_any_place(built: Path) -> None:
    for words in (["--debug", "build", "missing.toml"], ["build", "missing.toml", "--debug"]):
        done = run(*words, cwd=built)
        assert done.returncode == 3
        assert "Traceback" in done.stderr
        assert done.stderr.endswith("recipes there: " + ", ".join(sorted(p.name for p in built.glob("*.toml"))) + "\n")


def test_on_windows_it_says_where_it_runs_instead() -> None:
    code = "import sys\nfrom groundup.cli import app as cli\nsys.platform = 'win32'\ncli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "run it under WSL 2" in done.stderr


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


def test_a_closed_pipe_is_no_error(built: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m groundup generate runs/tiny max_tokens=400 | head -c 5", shell=True, cwd=built,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""


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
    built: Path, arguments: list[str], code: int, answer: str
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


def test_a_full_disk_ends_in_4_and_the_run_can_go_on(built: Path, small_disk: Path) -> None:
    full = run("build", "tiny.toml", "model.d_model=64", "model.d_ff=512", "--run", small_disk / "run", cwd=built)
    assert full.returncode == 4
    assert "disk: " in full.stderr and "needed for checkpoints and model" in full.stderr  # said before the first step
    assert not list((small_disk / "run").rglob("*.partial"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = run("build", "tiny.toml", "model.d_model=64", "model.d_ff=512", "--run", small_disk / "run", cwd=built)
    assert again.returncode == 0, again.stderr


def test_a_read_only_place_ends_in_4(built: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = run("build", "tiny.toml", "--run", small_disk / "run", cwd=built)
    assert done.returncode == 4
    assert "cannot write" in done.stderr
    assert "Read-only" in done.stderr
