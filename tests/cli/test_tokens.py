"""Commands on tokenizers: shown, compared, advised, converted and extended, in words and as JSON."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from groundup.recipe import Recipe
from groundup.tokenizer.tokenizer import Tokenizer

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_tokens_show_tells_ids_bytes_and_merges_of_any_text_plainly_in_a_pipe(run: Run, built: Path) -> None:
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


def test_tokens_show_as_json_tells_all_that_there_is(run: Run, built: Path) -> None:
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


def test_tokens_show_writes_a_page_and_of_a_run_with_what_is_in_its_shards(run: Run, built: Path) -> None:
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


def test_tokens_compare_takes_several_texts_after_one_option(run: Run, built: Path) -> None:
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


def test_tokens_advise_gives_a_line_that_a_recipe_takes(run: Run, built: Path) -> None:
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


def test_tokens_convert_writes_by_the_name_of_the_target(run: Run, built: Path) -> None:
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


def test_an_extended_model_generates_is_scored_and_tells_where_it_comes_from(run: Run, built: Path) -> None:
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
