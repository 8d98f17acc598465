"""Commands on a model: prompts from everywhere, samples, conversations, pipes that close."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_generate_continues_prompts_from_argument_and_pipe(run: Run, built: Path) -> None:
    options = ["max_tokens=12", "seed=3"]
    argument = run("generate", "runs/tiny", "Tale 3", *options, cwd=built)
    piped = run("generate", "runs/tiny", "-", *options, cwd=built, stdin="Tale 3\n")
    assert argument.stdout == piped.stdout
    assert argument.stdout.startswith("Tale 3")
    stopped = run("generate", "runs/tiny", "Tale 3", *options, 'stop=" "', cwd=built)
    assert len(stopped.stdout) <= len(argument.stdout)


def test_several_samples_have_seeds_of_their_own_and_json_says_the_same(run: Run, built: Path) -> None:
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


def test_a_conversation_through_a_pipe_is_plain(run: Run, built: Path) -> None:
    done = run("chat", "runs/tiny", "max_tokens=5", cwd=built, stdin="Tale 3\n/text\n")
    reply, text = done.stdout.split("\n")[:2]
    assert text == f"Tale 3{reply}"
    assert done.stderr == ""


def test_a_closed_pipe_is_no_error(built: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m groundup generate runs/tiny max_tokens=400 | head -c 5", shell=True, cwd=built,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.stderr == b"", "five bytes need not be whole characters"
