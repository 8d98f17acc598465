"""Ranks that die, hang, lag, differ or are told to stop. Each case is a program of its own: this file, run."""

import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from groundup.errors import DataError, GroundupError, SavedAndStopped
from groundup.parallel.settings import ParallelSettings
from groundup.processes.agent import ranks_that_fit, run_ranks
from groundup.processes.watch import Watch, by_rank, compare, slow_ranks

PATIENCE = 6
"""Seconds after which a rank has hung, here."""

# What the ranks do


def add_one(number: int) -> int:
    """A step of a training: every rank adds its share."""
    shares = torch.tensor(float(number)), torch.tensor(1.0 / dist.get_world_size())
    dist.all_reduce(shares[1])
    return round(float(sum(shares)))


def read(path: Path) -> int:
    return int(path.read_text()) if path.exists() else 0


def count(folder: Path, goal: int, *rest: Any) -> int:
    """Count, saving each number; what was saved is gone on from."""
    *_, progress = rest
    number = read(folder / "saved")
    (folder / f"process-{dist.get_rank()}").write_text(str(os.getpid()))
    while number < goal:
        number = add_one(number)
        time.sleep(0.02)
        if dist.get_rank() == 0:
            with open(folder / "log", "a") as log:
                log.write(f"{number}\n")
            (folder / "new").write_text(str(number))
            (folder / "new").replace(folder / "saved")
        progress(number, goal, "counting")
    return number


def count_watched(folder: Path, goal: int, *rest: Any) -> int:
    """As `count`, where nobody is waited for too long."""
    with Watch(folder, PATIENCE):
        return count(folder, goal, *rest)


def fail(folder: Path, how: str, *_: Any) -> None:
    """Rank 1 meets an error that the others only notice."""
    if dist.get_rank() == 1:
        raise KeyError("a slip") if how == "bug" else DataError("no tales here: bring some")
    dist.barrier()


def differ(folder: Path, what: str, *_: Any) -> None:
    compare({"torch": "2.13", what: "abc" if dist.get_rank() < 2 else "xyz"})


def stop(folder: Path, asked: str, *_: Any) -> None:
    """Steps until a signal came to any rank; saving takes rank 1 longer."""
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
    (folder / f"ready-{dist.get_rank()}").touch()
    for step in itertools.count():
        votes = torch.tensor(float(len(signals)))
        dist.all_reduce(votes)
        time.sleep(0.02)
        if votes:
            time.sleep(1.5 * dist.get_rank())
            (folder / f"saved-{dist.get_rank()}").write_text(f"{len(signals)}")
            raise SavedAndStopped(f"saved step {step}")


def hang(folder: Path, how: str, *_: Any) -> None:
    """Rank 1 hangs at step 5."""
    with Watch(folder, PATIENCE) as watch:
        for step in range(1, 10):
            watch.mark(step, "step")
            add_one(step)
            time.sleep(0.4)  # more than the time between two looks
            if step == 5 and dist.get_rank() == 1:
                hang_here(how)


def hang_here(how: str) -> None:
    while how == "loops":
        pass
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.recv(torch.zeros(1), 0)  # what rank 0 never sends


def lag(folder: Path, *_: Any) -> str:
    """Rank 1 computes longer than the others; what of 20 steps' time is said by rank."""
    with Watch(folder, 60) as watch:
        for step in range(20):
            time.sleep(0.05 * (dist.get_rank() == 1))
            add_one(step)
        readings: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(readings, watch.meter.read())
    table = by_rank(readings)
    return f"{slow_ranks(table['computing'])} {table}"


def place(folder: Path, *rest: Any) -> str:
    device, ranks, _ = rest
    return f"{device} {ranks} {add_one(1)} {torch.get_num_threads()}"


def main(case: str, folder: str, ranks: int, *words: str) -> int:
    """Run a case on so many ranks; words with an equals sign are settings, others arguments."""
    settings = {name: int(value) for name, _, value in (word.partition("=") for word in words if "=" in word)}
    arguments = [int(word) if word.isdigit() else word for word in words if "=" not in word]
    parallel = ParallelSettings.model_validate({"timeout_seconds": 60} | settings)
    try:
        print(run_ranks(globals()[case], (Path(folder), *arguments), ranks, parallel), flush=True)
    except GroundupError as error:
        print(f"groundup: {error}", file=sys.stderr)
        return error.exit_code
    return 0


# What must hold


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    def begin(case: str, ranks: int, *words: str, before: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        command = [*before, sys.executable, __file__, case, str(tmp_path), str(ranks), *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


@pytest.fixture
def run(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., tuple[int, str, str]]:
    """The exit code of a case, and what it wrote."""

    def whole(*words: Any, **more: Any) -> tuple[int, str, str]:
        process = start(*words, **more)
        out, err = process.communicate()
        return process.returncode, out, err

    return whole


def wait_for(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.02)


def runs(process: int) -> bool:
    """Whether it has not ended; one that nobody asked after has."""
    status = Path(f"/proc/{process}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_ranks_that_differ_are_refused_by_name(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("differ", 3, "the shards")
    assert code == 2
    assert err.strip() == (
        "groundup: ranks differ in the shards: rank 0 has abc, rank 2 has xyz. Start all of them from the same recipe, "
        "code and shards"
    )


@pytest.mark.slow
def test_an_error_is_told_once_and_not_tried_again(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("fail", 2, "missing")
    assert (code, err) == (3, "groundup: no tales here: bring some\n")
    code, _, err = run("fail", 2, "bug")
    assert code == 1
    assert "rank 1 on" in err and "KeyError: 'a slip'" in err and "in fail" in err
    assert "started again" not in err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_ranks_go_on_from_what_was_saved(
    seed: int, start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    """One rank or all of them, anywhere, three times; every number is reached in order, and the last one printed."""
    draw, process = random.Random(seed), start("count", 2, "90", "restarts=3")
    for goal in sorted(draw.sample(range(5, 80), 3)):
        wait_for(lambda goal=goal: read(tmp_path / "saved") >= goal or process.poll() is not None)
        for rank in draw.choice([[0], [1], [0, 1]]):
            os.kill(int((tmp_path / f"process-{rank}").read_text()), signal.SIGKILL)
        killed_at = read(tmp_path / "saved")
        wait_for(lambda past=killed_at + 1: read(tmp_path / "saved") > past or process.poll() is not None)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out.count("was ended by SIGKILL: all ranks are started again") == 3 and out.endswith("90\n")
    numbers = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert all(later - earlier in (0, 1) for earlier, later in itertools.pairwise(numbers)), "none left out"


@pytest.mark.slow
def test_ranks_that_die_too_often_end_the_run(start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    process = start("count", 2, "100000", "restarts=0")
    wait_for(lambda: read(tmp_path / "saved") > 3)
    os.kill(int((tmp_path / "process-1").read_text()), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 4
    assert err.startswith("groundup: rank 1 was ended by SIGKILL, after 0 new starts (parallel.restarts)")
    other = int((tmp_path / "process-0").read_text())
    assert not Path(f"/proc/{other}").exists(), "no process is left behind"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_once(
    number: signal.Signals, start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    """Also Ctrl-C, which a terminal sends to all processes in its foreground; all have saved before the first ends."""
    process = start("stop", 2, "-", before=("setsid",))
    wait_for(lambda: all((tmp_path / f"ready-{rank}").exists() for rank in range(2)))
    os.killpg(process.pid, number)
    _, err = process.communicate()
    assert (process.returncode, err.startswith("groundup: saved step")) == (75, True)
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in range(2)] == ["1", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("loops", "rank 1 (machine {}, process {}) has hung at step 5 (step): it computes"),
        ("stopped", "rank 1 (machine {}, process {}) has hung at step 5 (step): it does not answer"),
        ("waits", "rank 1 (machine {}, process {}) has hung at step 5 (step): it waits, too, and is behind"),
    ],
)
def test_a_hung_rank_is_named_with_every_stack(
    how: str, why: str, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, err = run("hang", 2, how)
    assert code == 4
    before, _, after = why.partition("(machine {}, process {})")
    assert err.startswith(f"groundup: {before}") and after in err and "parallel.timeout_seconds (now 6)" in err
    stacks = [(tmp_path / "stacks" / f"rank-{rank}.txt").read_text() for rank in range(2)]
    assert "in add_one" in stacks[0]
    assert "in hang_here" in stacks[1] or how == "stopped", "a process that is stopped cannot write"


@pytest.mark.slow
def test_a_slow_rank_is_named(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("lag", 3)
    slow, _, table = out.partition(" ")
    measured = eval(table)
    assert (code, slow) == (0, "[1]")
    assert measured["computing"][1] > 1.0 > measured["waiting"][1], "20 steps of 0.05 s"
    assert measured["waiting"][0] > 0.5 < measured["waiting"][2]
    assert measured["bytes"] == [pytest.approx(20 * 4 * 2 * 2 / 3)] * 3, "a float32 all-reduced over 3 ranks, 20 times"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, to hide the network")
@pytest.mark.parametrize(
    ("hosts", "missing"), [("127.0.0.1 localhost", "::1/128"), ("::1 localhost nobody", "127.0.0.1/8")]
)
def test_ranks_need_no_network(
    hosts: str, missing: str, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """A machine with its loopback alone: by the older protocol, its name unknown; and by IPv6."""
    (tmp_path / "hosts").write_text(hosts + "\n")
    alone = f"mount --bind {tmp_path}/hosts /etc/hosts && ip link set lo up; ip addr del {missing} dev lo"
    inside = ("unshare", "-rnum", "sh", "-c", f'{alone}; hostname nobody && exec "$@"', "sh")
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs to make a network namespace")
    code, out, err = run("place", 2, before=inside)
    assert code == 0, err
    assert out.startswith("cpu 2 2 ")


@pytest.fixture
def two_nodes() -> Iterator[tuple[str, str]]:
    """Two network namespaces, 10.9.0.1 and 10.9.0.2, and the link between them."""
    names = tuple(f"groundup-{os.getpid()}-{node}" for node in (1, 2))
    one, two = names
    commands = [
        f"ip netns add {one}",
        f"ip netns add {two}",
        f"ip link add wire netns {one} type veth peer name wire netns {two}",
        *(f"ip -n {name} addr add 10.9.0.{node}/24 dev wire" for node, name in enumerate(names, 1)),
        *(f"ip -n {name} link set {link} up" for name in names for link in ("lo", "wire")),
    ]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"needs to make network namespaces: {done.stderr.strip()}")
        yield one, two
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip, to make two nodes")
def test_a_cut_network_ends_the_run_and_a_healed_one_goes_on(two_nodes: tuple[str, str], tmp_path: Path) -> None:
    def begin(goal: int, run_id: str) -> list["subprocess.Popen[str]"]:
        return [begin_node(node, name, goal, run_id) for node, name in enumerate(two_nodes, 1)]

    def begin_node(node: int, name: str, goal: int, run_id: str) -> "subprocess.Popen[str]":
        line = (
            f"ip netns exec {name} {sys.executable} -m torch.distributed.run --nnodes=2 --nproc-per-node=1 "
            f"--rdzv-backend=c10d --rdzv-endpoint=10.9.0.1:29400 --rdzv-id={run_id} --local-addr=10.9.0.{node} "
            f"--rdzv-conf=read_timeout=20,is_host={int(node == 1)} --max-restarts=0 "
            f"{__file__} count_watched {tmp_path} 2 {goal}"
        )
        around = os.environ | {"GLOO_SOCKET_IFNAME": "wire"}
        return subprocess.Popen(line.split(), env=around, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = begin(1_000_000, "first")
    wait_for(lambda: read(tmp_path / "saved") > 20 or any(node.poll() is not None for node in first))
    assert read(tmp_path / "saved") > 20, [node.communicate() for node in first]
    subprocess.run(["ip", "-n", two_nodes[1], "link", "set", "wire", "down"], check=True)
    ranks = [int((tmp_path / f"process-{rank}").read_text()) for rank in range(2)]
    wait_for(lambda: not any(runs(rank) for rank in ranks))
    for node in first:
        node.kill()  # torchrun itself goes on trying to reach the other one
    told = [node.communicate()[1] for node in first]
    for text in told:
        assert re.search("rank 1 .* has hung|lost the connection|has not reached the first rank", text), text
    saved = read(tmp_path / "saved")
    subprocess.run(["ip", "-n", two_nodes[1], "link", "set", "wire", "up"], check=True)
    second = begin(saved + 10, "second")
    out = [node.communicate()[0] for node in second]
    assert [node.returncode for node in second] == [0, 0]
    assert out[0].endswith(f"{saved + 10}\n") or out[1].endswith(f"{saved + 10}\n")


def test_what_is_left_of_the_ranks_is_used_as_far_as_it_fits() -> None:
    assert [ranks_that_fit(ParallelSettings(tensor=4, elastic=True), left) for left in (16, 15, 8, 5)] == [16, 12, 8, 4]
    assert ranks_that_fit(ParallelSettings(tensor=4), 15) == 15, "and is then refused"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
