"""A launch says what Slurm and torchrun need; its line, run on two "nodes" of this machine, builds the recipe."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from groundup.artifacts import is_made
from groundup.errors import SettingsError
from groundup.tools.launch import Launch


def test_the_layout_is_checked_before_anything_is_written(recipe: Path) -> None:
    with pytest.raises(SettingsError, match=r"tensor 3 = 15 ranks, but there are 16: start 15"):
        Launch(recipe, ["parallel.tensor=3"], nodes=2, ranks_per_node=8)
    job = Launch(recipe, ["parallel.tensor=16"], nodes=2, ranks_per_node=8)
    assert job.layout == "16 ranks on 2 nodes: tensor 16"
    assert "parallel.tensor = 16 spans nodes of 8 ranks" in job.warning
    assert Launch(recipe, ["parallel.tensor=4"], 2, 8).warning == ""


def test_an_elastic_training_goes_on_with_the_fewest_nodes_that_fit(recipe: Path) -> None:
    words = ["parallel.tensor=4", "parallel.pipeline=4", "parallel.elastic=true"]
    job = Launch(recipe, words, nodes=6, ranks_per_node=8)
    assert job.fewest_nodes == 2
    assert "--nnodes=2:6 " in job.line("n", "1")
    assert "#SBATCH --nodes=2-6\n" in job.slurm("", 1) and "#SBATCH --no-kill\n" in job.slurm("", 1)
    assert "--nnodes=6 " in Launch(recipe, words[:2], 6, 8).line("n", "1")


BIN = {
    "scontrol": '[ "$1" = show ] && echo node7 && echo node8 || echo "scontrol $*" >> "$LOG"',
    "srun": 'trap "sleep 0.3; echo saved >> $LOG; exit 1" TERM; echo "srun $*" >> "$LOG"; '
    'for i in $(seq "$TENTHS"); do sleep 0.1; done; exit "$CODE"',
}
"""Slurm's programs, as far as a script needs them."""


@pytest.mark.parametrize(
    ("code", "preempted", "ends", "requeued"),
    [("0", False, 0, False), ("3", False, 3, False), ("75", False, 75, True), ("0", True, 75, True)],
)
def test_a_job_that_saved_is_queued_again(
    code: str, preempted: bool, ends: int, requeued: bool, recipe: Path, tmp_path: Path
) -> None:
    """The script, with stand-ins for Slurm: it waits until the ranks have saved."""
    script, log = tmp_path / "tiny.sbatch", tmp_path / "log"
    script.write_text(Launch(recipe, ["model.dropout=0.0"], 2, 4).slurm("groundup launch tiny.toml", 1.5))
    assert "#SBATCH --time=1:30:00\n" in script.read_text() and "--gpus" not in script.read_text(), "its device is cpu"
    for name, text in BIN.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    around = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "CODE": code}
    around |= {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "42", "TENTHS": "100" if preempted else "1"}
    assert not subprocess.run(["bash", "-n", script], check=True, capture_output=True).stderr
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    job = subprocess.Popen(["bash", script], env=around)
    while not log.exists():
        assert job.poll() is None
    if preempted:
        job.terminate()
    assert job.wait() == ends
    lines = log.read_text().splitlines()
    assert "--nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=node7:29400 --rdzv-id=42-0" in lines[0]
    assert lines[0].endswith("model.dropout=0.0 --ranks 8")
    assert lines[1:] == ["saved"] * preempted + ["scontrol requeue 42"] * requeued


@pytest.mark.slow
def test_the_line_run_on_two_nodes_builds_the_recipe(recipe: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    line = Launch(recipe, ["parallel.restarts=0"], 2, 1).line("localhost", "here", sys.executable)
    line = line.replace(":29400", f":{port}").replace("-m groundup", "--local-addr=localhost -m groundup")
    nodes = [
        subprocess.Popen(["sh", "-c", line], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [node.communicate() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    assert is_made(tmp_path / "runs" / "tiny" / "model")
    assert [("report" in out) for out, _ in ends].count(True) == 1, "the first rank speaks for all"
