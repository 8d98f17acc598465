"""The sandbox: what programs try in it fails within its limits, and leaves the machine as it was."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from groundup.errors import ResourceError
from groundup.evals import sandbox as module
from groundup.evals.sandbox import Limits, Ran, Sandbox, probe

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")

LIMITS = Limits(seconds=1.5, memory_bytes=(512 << 20) + (os.getpid() << 12))
"""Their memory tells the processes of this test from others."""


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return probe(LIMITS)


def processes_left() -> list[str]:
    """Command lines of what still runs of these tests' programs."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text())
        except OSError:
            continue
    return [line for line in lines if str(LIMITS.memory_bytes) in line]


def end_of_all() -> bool:
    """Whether all are gone; the kernel takes a moment."""
    deadline = time.monotonic() + 5
    while processes_left() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not processes_left()


def test_a_program_runs_and_the_result_tells_what_isolated_it(sandbox: Sandbox) -> None:
    ran = sandbox.run("import sys; print(sys.stdin.read()[::-1])", b"abc")
    assert (ran.output, ran.ending) == (b"cba\n", "exit code 0")
    assert {"private network", "read-only system", "unprivileged uid", "resource limits"} <= set(ran.layers)


@pytest.mark.parametrize(
    ("attempt", "ending", "words"),
    [
        ("while True: pass", "time limit", b""),
        ("while True: print('x' * 99)", "output limit", b""),
        ("bytes(2 << 30)", "exit code 1", b"MemoryError"),
        ("open('/tmp/x', 'wb').write(bytes(64 << 20))", "exit code 1", b"File too large"),
        ("for n in range(9): open(f'/tmp/{n}', 'wb').write(bytes(8 << 20))", "exit code 1", b"No space left"),
        ("open('/dev/shm/x', 'wb').write(bytes(8 << 20))", "exit code 1", b"No space left"),
        ("open('/x', 'wb')", "exit code 1", b"Read-only"),
        ("open('/dev/x', 'wb')", "exit code 1", b"Read-only"),
        ("open('/usr/x', 'wb')", "exit code 1", b"Read-only"),
        ("open('/etc/shadow')", "exit code 1", b"No such file"),
        ("import os; os.memfd_create('x')", "exit code 1", b"not permitted"),
        ("import socket; socket.socket()", "exit code 1", b"not permitted"),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))", "exit code 1", b"limit"),
        ("import os; os.setuid(0)", "exit code 1", b"Invalid argument"),
        ("import os\nwhile True: os.fork()", "time limit", b"unavailable"),
        ("import os\nwhile True:\n try: os.fork()\n except OSError: pass", "time limit", b""),
        ("import os, signal; os.kill(os.getppid(), 9); os.kill(1, 9); print('alive')", "exit code 0", b"alive"),
        ("import ctypes; print(ctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0))", "exit code 0", b"-1"),
        ("import os; os._exit(7)", "exit code 7", b""),
        ("import os; os.abort()", "signal 6", b""),
    ],
)  # fmt: skip
def test_what_a_program_must_not_do_fails_within_its_limit(
    sandbox: Sandbox, attempt: str, ending: str, words: bytes
) -> None:
    start = time.monotonic()
    ran = sandbox.run(attempt)
    assert time.monotonic() - start < LIMITS.seconds * LIMITS.patience + 2  # it is cut off: a bound on a hang
    assert words in ran.output
    assert ran.ending == ending or "unavailable" in str(words)  # whose first process may end before its last
    assert len(ran.output) <= LIMITS.output_bytes
    assert end_of_all()


def test_nothing_of_a_program_outlives_it_whatever_session_it_is_in(sandbox: Sandbox) -> None:
    escape = (
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)\n"
        "        print('away', flush=True); time.sleep(60)\n"
        "    os._exit(0)\n"
    )
    with sandbox.start(escape + "time.sleep(60)") as running:
        assert running.receive() == b"away\n"
        assert processes_left()
    assert end_of_all()
    assert sandbox.run(escape).ending == "exit code 0"  # the first process ends by itself
    assert end_of_all()


def test_neither_our_environment_nor_our_processes_are_seen(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_SOMEBODY", "9f3c41d0")
    look = (
        "import glob\n"
        "for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):\n"
        "    try: print(open(path).read())\n"
        "    except OSError: pass\n"
    )
    output = sandbox.run(look).output
    assert b"resource.setrlimit" in output  # its own
    assert b"9f3c41d0" not in output and b"pytest" not in output
    subprocess.run([sys.executable, "-c", "import os; assert os.environ['KEY_OF_SOMEBODY']"], check=True)


def test_the_machine_is_not_reached_over_the_network_even_without_seccomp(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
        assert b"not permitted" in sandbox.run(connect).output
        monkeypatch.setattr(module, "seccomp_filter", lambda: b"")
        assert "seccomp" not in probe(LIMITS).layers
        assert b"refused" in sandbox.run(connect).output


def test_what_a_program_is_asked_and_answers_are_lines(sandbox: Sandbox) -> None:
    with sandbox.start("import sys\nfor line in sys.stdin: print(len(line) - 1, flush=True)") as running:
        for size in (3, 300_000, 0):
            running.send(b"x" * size + b"\n")
            assert running.receive() == b"%d\n" % size


def test_a_program_that_does_not_read_is_late(sandbox: Sandbox) -> None:
    with sandbox.start("import time; time.sleep(60)") as running, pytest.raises(module.Stopped, match="time limit"):
        running.send(bytes(1 << 20))


def test_programs_see_the_same_order_of_sets(sandbox: Sandbox) -> None:
    shown = {sandbox.run("print({str(n) for n in range(99)})").output for _ in range(3)}
    assert len(shown) == 1


# Where isolation is missing


def test_without_bubblewrap_nothing_runs_and_the_refusal_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(Sandbox, "run", lambda *given: pytest.fail("a program was run"))
    with pytest.raises(ResourceError, match="apt-get install bubblewrap.*--allow-unsandboxed"):
        probe()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo bwrap: setting up uid map: Permission denied; exit 1", "uid map: Permission denied.*user namespaces"),
        ("echo bwrap: Unknown option --disable-userns; exit 1", "install version 0.8.0"),
    ],
)
def test_a_bubblewrap_that_does_not_isolate_is_refused(
    script: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Path("/tmp", f"bwrap-{os.getpid()}")  # where uid 65534 reaches it
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(fake))
    try:
        with pytest.raises(ResourceError, match=words):
            probe()
    finally:
        fake.unlink()


def test_one_that_only_runs_the_program_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bubblewrap that left out every wall."""
    monkeypatch.setattr(Sandbox, "_walls", lambda self: ["--bind", "/", "/", "--dev-bind", "/dev", "/dev"])
    with pytest.raises(ResourceError, match="no private network, no read-only system"):
        probe()


def test_bare_programs_are_run_where_that_was_allowed_and_the_result_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="with all your rights"):
        bare = probe(LIMITS, allow_unsandboxed=True)
    assert bare.run("print(1)") == Ran(b"1\n", "exit code 0", ("time limit", "resource limits"))
    assert bare.run("while True: pass").ending == "time limit"
    assert b"MemoryError" in bare.run("bytes(2 << 30)").output
    assert bare.run("import os; print(dict(os.environ))").output.count(b":") <= 2  # LC_CTYPE, which Python sets
    assert end_of_all()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_has_the_same_layers(sandbox: Sandbox) -> None:
    source = Path(__file__).parents[2] / "src"
    if (
        not all(way.stat().st_mode & 0o001 for way in (source, *source.parents))
        or not Path("/usr/bin/python3").exists()
    ):
        pytest.skip("needs a system's Python, and sources that others can read")
    program = "from groundup.evals.sandbox import probe; print(*probe().layers, sep='; ')"
    ran = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", program], user=12345, group=12345, extra_groups=[], cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(source)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stdout.strip() == "; ".join(sandbox.layers), ran.stderr
