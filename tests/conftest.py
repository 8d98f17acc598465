"""What several test files need: the shared data, a small model, a small corpus and tokenizer."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as drawing
from torch import Tensor

from groundup.building import build
from groundup.generation.cache import PagedCache
from groundup.generation.schedule import Scheduled, Work
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer

torch.set_num_threads(1)  # small tensors; and test files run side by side
os.environ["OMP_NUM_THREADS"] = "1"  # likewise in the processes that tests start
drawing.register_profile("any machine", drawing.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
drawing.load_profile("any machine")  # however busy it is
SHARED = Path(os.environ.get("GROUNDUP_SHARED", Path(__file__).parents[2] / "shared"))
WORDS = "the king and the little fox went over the hill to find a golden apple for the old queen who sat by the well"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real corpora and vocabularies that do not belong to the project; CI has them."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data under {SHARED}, which is not here (set GROUNDUP_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def in_steps() -> Callable[[Transformer, Tensor, Sequence[int]], Tensor]:
    """The logits of rows of tokens as generation computes them: so many of each row at once, after what is in the pages
    of a cache, which lie in turn."""

    @torch.no_grad()
    def read(model: Transformer, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        rows, total = tokens.shape
        cache = PagedCache.empty(model.config, rows * (-(-total // 4)), 4, torch.device("cpu"), torch.float32)
        requests = [Scheduled([], pages=[*range(row, cache.keys.shape[1] - 1, rows)]) for row in range(rows)]
        logits, held = [], 0
        for length in lengths:
            cut = slice(held, held + length)
            works = [Work(request, held, ids[cut]) for request, ids in zip(requests, tokens.tolist(), strict=True)]
            position = torch.arange(held, held + length).repeat(rows)[:, None]
            step = model(tokens[:, cut].reshape(-1, 1), position, cache.attend(works))
            logits.append(step.view(rows, length, -1))
            held += length
        return torch.cat(logits, dim=1)

    return read


@pytest.fixture
def llama() -> ModelConfig:
    """Llama's shape, tiny: rotary, RMSNorm, SwiGLU, grouped heads, QK-norm."""
    return ModelConfig.from_table(
        {
            "vocab_size": 97,
            "context_length": 24,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "d_ff": 48,
            "attention": {"qk_norm": "head"},
        }
    )


@pytest.fixture
def gpt2() -> ModelConfig:
    """GPT-2's shape, tiny: learned positions, LayerNorm, GELU, multi-head, biases."""
    return ModelConfig.from_table(
        {
            "vocab_size": 97,
            "context_length": 24,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "position": {"kind": "learned"},
            "norm": {"kind": "layernorm"},
            "attention": {"bias": "all"},
            "feedforward": {"kind": "gelu"},
        }
    )


@pytest.fixture(params=["llama", "gpt2"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Both shapes, one after the other."""
    chosen: ModelConfig = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def model(config: ModelConfig) -> Transformer:
    """A model of each shape, its weights large enough that every part matters."""
    torch.manual_seed(0)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def shapes_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions as they are outside of the test run, which checks the annotations of shapes before the code can."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


WHOLE_COMMANDS = {
    "cli",
    "pretrain",
    "report",
    "tools",
    "test_advice.py",
    "test_building.py",
    "test_docs.py",
    "test_recipes.py",
}
"""Tests of whole builds and commands, by room or file. Checking shapes takes a quarter of their time; each part is
checked in the tests of its own room, and whole builds where a fixture of a file or of the session makes them."""


@pytest.fixture(autouse=True)
def _as_a_user_runs_it(request: pytest.FixtureRequest) -> None:
    """Whole commands check no shapes, as in a process of their own."""
    if request.path.relative_to(Path(__file__).parent).parts[0] in WHOLE_COMMANDS:
        request.getfixturevalue("shapes_unchecked")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.learn([WORDS], vocab_size=320)


@pytest.fixture(scope="session")
def story_texts() -> list[str]:
    """The documents of the storybook that comes with the package."""
    packed = (resources.files("groundup.data") / "storybook.jsonl.gz").read_bytes()
    return [json.loads(line)["text"] for line in gzip.decompress(packed).splitlines()]


TINY = """
name = "tiny"

[corpus]
sources = ["tales"]

[tokenizer]
vocab_size = 320

[model]
context_length = 16
d_model = 16
n_layers = 1
n_heads = 2
d_ff = 32
dropout = 0.1

[pretrain]
steps = 40
batch_tokens = 64
micro_batch_rows = 3
device = "cpu"
precision = "float32"
validate_every = 20
sample_every = 20
sample_tokens = 8
checkpoint_every = 10

[evals]
prompts = ["Tale", ""]
sampling = { max_tokens = 8 }
"""


@pytest.fixture(scope="session")
def settle() -> Callable[[Path], Path]:
    """Writes a recipe that builds in seconds, and beside it the forty short tales it reads."""

    def write(home: Path) -> Path:
        (home / "tales").mkdir()
        words = WORDS.split()
        for number in range(40):
            turned = words[number % len(words) :] + words[: number % len(words)]
            (home / "tales" / f"{number:02}.txt").write_text(f"Tale {number}. " + " ".join(turned * 4) + ".\n")
        (home / "tiny.toml").write_text(TINY)
        return home / "tiny.toml"

    return write


@pytest.fixture
def recipe(tmp_path: Path, settle: Callable[[Path], Path]) -> Path:
    """That recipe, in a folder of its own."""
    return settle(tmp_path)


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """A folder with that recipe and its finished run, runs/tiny; only to be read or copied."""
    recipe = settle(tmp_path_factory.mktemp("finished"))
    build(recipe, run=recipe.parent / "runs" / "tiny", say=lambda text: None)
    return recipe.parent


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a small file system: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="session")
def watching() -> Iterator[Callable[..., tuple[str, subprocess.Popen[str]]]]:
    """Starts `groundup watch` on folders; its address and its process."""
    started: list[subprocess.Popen[str]] = []

    def start(*places: Path, port: int = 0) -> tuple[str, subprocess.Popen[str]]:
        command = [sys.executable, "-m", "groundup", "watch", *map(str, places), "--port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://\S+/", said)
        assert found, said + process.stdout.read()
        return found[0], process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One for all tests of a process: playwright allows no second one beside it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (CI installs it)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        opened = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()
