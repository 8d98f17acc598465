"""The package as others get it: light to import, its floors kept, its wheel whole."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import groundup

ROOT = Path(__file__).parents[1]


def in_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "module", ["groundup", "groundup.recipe", "groundup.cli.app", "groundup.shards", "groundup.corpus.refine"]
)
def test_rooms_below_the_mathematics_and_the_recipe_import_no_torch(module: str) -> None:
    assert in_fresh_process(f"import sys, {module}; print('torch' in sys.modules)") == "False"


def test_help_of_watch_imports_neither_torch_nor_a_web_server() -> None:
    code = "import sys; from groundup.cli.app import app; app(['watch', '--help'], standalone_mode=False)"
    told = in_fresh_process(f"{code}; print([name for name in ('torch', 'fastapi', 'numpy') if name in sys.modules])")
    assert "ssh -L 8470:localhost:8470 MACHINE" in told
    assert told.endswith("[]")


def test_public_names_are_there_and_documented() -> None:
    for name in groundup.__all__:
        assert getattr(groundup, name).__doc__, name
        assert not (ROOT / "src" / "groundup" / f"{name}.py").exists(), "no public name is a module's name"
        assert not (ROOT / "src" / "groundup" / name).is_dir()
    with pytest.raises(AttributeError, match="groundup has no 'nothing'; it has Engine"):
        groundup.nothing  # noqa: B018


def test_importing_does_nothing() -> None:
    assert (
        in_fresh_process("import groundup, sys; print(len([m for m in sys.modules if m.startswith('groundup')]))")
        == "1"
    )


def test_room_inits_hold_a_docstring_and_nothing_else() -> None:
    import ast

    for path in (ROOT / "src" / "groundup").glob("*/__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_nothing_reads_the_environment_or_a_pickle() -> None:
    for path in (ROOT / "src" / "groundup").rglob("*.py"):
        text = path.read_text()
        for forbidden in ("os.environ", "getenv", "import pickle", "torch.load(", "allow_pickle=True", "import yaml"):
            assert forbidden not in text, f"{path} has {forbidden}"


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_first_stages_need(tmp_path: Path) -> None:
    """Built, installed elsewhere, run in an empty directory; dependencies are this environment's."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others))
    work = tmp_path / "empty"
    work.mkdir()
    (work / "mine.toml").write_text(
        'name = "mine"\n[corpus]\nsources = ["groundup:storybook"]\n[tokenizer]\nvocab_size = 512\n'
    )
    for stage in ("corpus", "tokenizer", "pack"):
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / "groundup", stage, "mine.toml"],
            cwd=work, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [python, "-c", "import groundup; print(groundup.__file__)"],
        cwd=work,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in where.stdout, "the wheel, not the checkout, was run"
    assert (work / "runs" / "mine" / "shards" / "train.npy").stat().st_size > 1_000_000
