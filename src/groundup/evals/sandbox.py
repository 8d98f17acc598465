"""Sandbox: untrusted Python runs under bubblewrap, without network, with a system it can only read, and within limits.

The program's memory and files are its own, it is nobody, and when its time is over everything it started is gone. Only
the Python of the standard library is there. `probe` looks, from inside, at which layers of isolation hold on this
machine, and refuses where one is missing.
"""

import contextlib
import dataclasses
import errno
import json
import os
import platform
import select
import shutil
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGXCPU

from groundup.errors import ResourceError

NOBODY = 65534
SHM_BYTES = 4 << 20
"""Size of /dev/shm."""


@dataclass(frozen=True)
class Limits:
    """What a program may use; beyond it a call fails, or the program ends."""

    seconds: float = 5.0
    """Of a processor's time, which is the same on a busy machine."""
    patience: float = 5.0
    """From its start to its end it may take this many times as long, as it also waits."""
    memory_bytes: int = 512 << 20
    """Address space of each of its processes."""
    processes: int = 8
    """At a time, threads among them. All together may use this many times `memory_bytes`."""
    file_bytes: int = 16 << 20
    """Size of one file."""
    tmp_bytes: int = 32 << 20
    """Of all files in /tmp; nothing can be written elsewhere but in /dev/shm."""
    output_bytes: int = 1 << 20
    """What is read of its output, or of its answers, before it is ended."""

    @property
    def resources(self) -> dict[str, int]:
        """As `resource.setrlimit` names them."""
        memory = {"RLIMIT_AS": self.memory_bytes, "RLIMIT_FSIZE": self.file_bytes, "RLIMIT_CORE": 0}
        processes = self.processes + 1  # bubblewrap's own
        return memory | {"RLIMIT_CPU": int(self.seconds) + 1, "RLIMIT_NPROC": processes, "RLIMIT_NOFILE": 64}


class Stopped(Exception):
    """A program ended, or was late, before it said what was asked: "time limit", "output limit", or how it ended."""


@dataclass
class Program:
    """A program that runs, and is spoken to through its standard input and output. Its methods raise `Stopped`."""

    process: subprocess.Popen[bytes]
    limits: Limits
    deadline: float
    unread: bytearray = field(default_factory=bytearray)
    n_read: int = 0

    def send(self, line: bytes) -> None:
        """Give it all of a line."""
        descriptor, rest = self.process.stdin.fileno(), memoryview(line)  # type: ignore[union-attr]
        while rest:
            self._wait(descriptor, select.POLLOUT)
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Stopped(self.end()) from None

    def receive(self) -> bytes:
        """Its next line, with the line end."""
        while (end := self.unread.find(b"\n") + 1) == 0:
            if not self.read():
                raise Stopped(self.end())
        line = bytes(self.unread[:end])
        del self.unread[:end]
        return line

    def read(self) -> bool:
        """Whether there was more to read, which is now in `unread`."""
        descriptor = self.process.stdout.fileno()  # type: ignore[union-attr]
        self._wait(descriptor, select.POLLIN)
        piece = os.read(descriptor, 1 << 16)
        self.unread += piece
        self.n_read += len(piece)
        if self.n_read > self.limits.output_bytes:
            raise Stopped("output limit")
        return bool(piece)

    def end(self) -> str:
        """How it ended, now that it closed its output: "exit code 0", "signal 9", "time limit"."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(max(0.0, self.deadline - time.monotonic()))
            signal = code - 128 if code > 128 else -code  # bubblewrap tells of signals as shells do
            if signal == SIGXCPU:
                return "time limit"
            return f"signal {signal}" if 0 < signal < 65 else f"exit code {code}"
        return "time limit"

    def _wait(self, descriptor: int, event: int) -> None:
        waiting = select.poll()
        waiting.register(descriptor, event)
        if not waiting.poll(max(0.0, self.deadline - time.monotonic()) * 1000):
            raise Stopped("time limit")


@dataclass(frozen=True)
class Ran:
    """What came of a program that ran by itself."""

    output: bytes
    """Standard output and errors as they came, up to the limit."""
    ending: str
    """"exit code 0", "signal 9", "time limit", "output limit"."""
    layers: tuple[str, ...]
    """What isolated it."""


@dataclass(frozen=True)
class Sandbox:
    """How programs are run on this machine: made by `probe`."""

    python: Path
    limits: Limits
    layers: tuple[str, ...] = ()
    """What isolates a program here, as it was seen from inside."""
    bubblewrap: str | None = None
    """None runs it as a bare child process: within limits of time and memory, but with all rights of who started it."""

    def run(self, program: str, given: bytes = b"") -> Ran:
        """Run a program to its end, with `given` on its standard input."""
        with self.start(program) as running:
            try:
                running.send(given)
                running.process.stdin.close()  # type: ignore[union-attr]
                while running.read():
                    pass
                ending = running.end()
            except Stopped as stopped:
                ending = str(stopped)
            return Ran(bytes(running.unread[: self.limits.output_bytes]), ending, self.layers)

    @contextlib.contextmanager
    def start(self, program: str) -> Iterator[Program]:
        """Start a program; at the end of the block, it and all that it started is killed.

        The thread that starts it must be the one that ends it: bubblewrap dies with its thread.
        """
        command = [str(self.python), "-s", "-S", "-B", "-X", "utf8", "-c", FIRST.format(self.limits.resources)]
        nobody = NOBODY if self.bubblewrap and os.getuid() == 0 else None
        environment = {} if self.bubblewrap else {"PYTHONHASHSEED": "0"}  # bubblewrap's own would be seen inside
        with contextlib.ExitStack() as stack:
            rules: list[int] = []
            if self.bubblewrap:
                if seccomp := seccomp_filter():
                    reading, writing = os.pipe()
                    stack.callback(os.close, reading)
                    with open(writing, "wb") as stream:
                        stream.write(seccomp)
                    rules = [reading]
                words = ["--seccomp", str(rules[0])] if rules else []
                command = [self.bubblewrap, *self._walls(), *words, "--", *command]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, cwd="/",
                env=environment, pass_fds=rules, start_new_session=True, user=nobody, group=nobody,
                extra_groups=None if nobody is None else [],
            )  # fmt: skip
            stack.callback(_kill, process, self.bubblewrap is None)
            os.set_blocking(process.stdin.fileno(), False)  # type: ignore[union-attr]
            running = Program(process, self.limits, time.monotonic() + self.limits.seconds * self.limits.patience)
            with contextlib.suppress(Stopped):  # which the first thing that is asked of it says again
                running.send(ascii(program).encode() + b"\n")
            yield running

    def _walls(self) -> list[str]:
        """Arguments of bubblewrap. /dev and the root would be writable without limit: both are made read-only, and
        /dev/shm has a file system of its own. The order of sets is always the same."""
        words = WALLS.format(nobody=NOBODY, tmp=self.limits.tmp_bytes, shm=SHM_BYTES).split()
        prefix = str(self.python.parent.parent)
        for place in ("/lib", "/lib64", "/etc/ld.so.cache", *([prefix] if prefix != "/usr" else [])):
            if os.path.islink(place):
                words += ["--symlink", os.readlink(place), place]
            elif os.path.exists(place):
                words += ["--ro-bind", place, place]
        return [*words, "--remount-ro", "/"]


WALLS = """
--unshare-all --unshare-user --disable-userns --assert-userns-disabled --die-with-parent --new-session --cap-drop ALL
--uid {nobody} --gid {nobody} --hostname sandbox --setenv PYTHONHASHSEED 0 --ro-bind /usr /usr --proc /proc --dev /dev
--size {shm} --tmpfs /dev/shm --remount-ro /dev --size {tmp} --tmpfs /tmp --chdir /tmp
"""

FIRST = """
import resource, sys
for name, most in {}.items():
    try:
        resource.setrlimit(getattr(resource, name), (most, most + (name == "RLIMIT_CPU")))  # first asked, then killed
    except (AttributeError, ValueError, OSError):
        pass
exec(compile(eval(sys.stdin.buffer.readline()), "<program>", "exec"))
"""
"""What Python does first: it limits itself, which it cannot take back, and becomes the program on its first line."""


def _kill(process: subprocess.Popen[bytes], with_group: bool) -> None:
    """Everything else under bubblewrap ends with it; without, the group of processes is killed."""
    process.kill()
    with contextlib.suppress(ProcessLookupError):
        if with_group:
            os.killpg(process.pid, 9)
    process.wait()
    for stream in (process.stdin, process.stdout):
        stream.close()  # type: ignore[union-attr]


def probe(limits: Limits | None = None, *, allow_unsandboxed: bool = False) -> Sandbox:
    """See what isolates a program on this machine, by running one that looks about.

    Args:
        allow_unsandboxed: where isolation is missing, run programs as bare child processes, with a warning.

    Raises:
        ResourceError: isolation is missing, with what would give it.
    """
    limits = limits or Limits()
    try:
        return _isolated(limits)
    except ResourceError as missing:
        if not allow_unsandboxed:
            raise ResourceError(
                f"generated code is not run here, for it could do all that you can do: {missing}. On a machine with "
                "nothing to lose, --allow-unsandboxed runs it all the same, within limits of time and memory only"
            ) from None
        warnings.warn(f"generated code runs with all your rights, as allowed: {missing}", stacklevel=2)
    return Sandbox(Path(sys.executable), limits, ("time limit", "resource limits"))


def _isolated(limits: Limits) -> Sandbox:
    if sys.platform != "linux":
        raise ResourceError("isolation needs Linux: use a virtual machine or a container of it")
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise ResourceError("bubblewrap is not installed: apt-get install bubblewrap, or dnf install bubblewrap")
    sandbox = Sandbox(find_python(), limits, bubblewrap=bubblewrap)
    facts = {"nobody": NOBODY, "tmp": limits.tmp_bytes, "shm": SHM_BYTES, "resources": limits.resources}
    ran = sandbox.run(f"facts = {facts}\n{LOOK}")
    try:
        seen: dict[str, bool] = json.loads(ran.output)
    except ValueError:
        words = ran.output.decode("utf-8", "replace").strip()[-300:]
        raise ResourceError(f"bubblewrap does not start ({words or ran.ending}): {_fix(words)}") from None
    if absent := [name for name, is_there in seen.items() if not is_there and name != "seccomp"]:
        raise ResourceError(
            f"bubblewrap starts, but there is no {', no '.join(absent)}: install version 0.8.0 or later"
        )
    layers = ("time limit", "no user namespaces", *(name for name, is_there in seen.items() if is_there))
    return dataclasses.replace(sandbox, layers=layers)


def _fix(words: str) -> str:
    if "nknown option" in words:
        return "install version 0.8.0 or later"
    for name, wanted in SWITCHES.items():
        with contextlib.suppress(OSError):
            now = Path("/proc/sys", name.replace(".", "/")).read_text("ascii").strip()
            if (now == "0") != (wanted == "0"):
                return f"allow user namespaces, as root: sysctl -w {name}={wanted}"
    return "allow user namespaces here; a container is started with --security-opt seccomp=unconfined for that"


SWITCHES = {
    "kernel.unprivileged_userns_clone": "1",
    "user.max_user_namespaces": "10000",
    "kernel.apparmor_restrict_unprivileged_userns": "0",
}
"""What turns user namespaces off on some systems, and the value with which they are on."""

LOOK = r"""
import json, os, resource
status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
try:
    environment = open("/proc/1/environ").read()
except OSError:  # somebody else's
    environment = ""
def size(place):
    return os.statvfs(place).f_blocks * os.statvfs(place).f_frsize
limits = {name: resource.getrlimit(getattr(resource, name)) for name in facts["resources"]}
print(json.dumps({
    "private network": [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line] == ["lo"],
    "read-only system": all(os.statvfs(place).f_flag & os.ST_RDONLY for place in ("/", "/usr", "/dev")),
    "private /tmp and /dev/shm of limited size": size("/tmp") <= facts["tmp"] and size("/dev/shm") <= facts["shm"],
    "private processes": max(int(name) for name in os.listdir("/proc") if name.isdigit()) < 16,
    "unprivileged uid": os.getuid() == facts["nobody"] and status["NoNewPrivs"] + status["CapEff"].strip("0") == "1",
    "empty environment": environment == "",
    "resource limits": all(limits[name][0] == most for name, most in facts["resources"].items()),
    "seccomp": status["Seccomp"] == "2",
}))
"""
"""The program of `probe`."""


def find_python() -> Path:
    """The Python that runs this, without its virtual environment, or else the system's.

    Raises:
        ResourceError: uid 65534, as which root runs programs, can reach neither, as what is in the home of root.
    """
    ours = Path(sys.executable).resolve()
    for each in (ours, Path("/usr/bin/python3").resolve()):
        if each.exists() and (os.getuid() != 0 or all(way.stat().st_mode & 0o001 for way in (each, *each.parents))):
            return each
    raise ResourceError(f"{ours} is closed to uid {NOBODY}, as which generated code runs: apt-get install python3")


DENIED = {
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "unshare": (272, 97), "setns": (308, 268),
}  # fmt: skip
"""System calls that answer "not permitted", by their numbers on x86_64 and aarch64 (asm/unistd.h): doors out, wide
surfaces of the kernel, and memory that no limit counts."""


def seccomp_filter() -> bytes:
    """`DENIED` as a program of the kernel's filter machine, an array of `struct sock_filter` (linux/filter.h): code,
    jump if true, jump if false, operand. Empty on processors whose numbers are not known here."""
    column = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
    if column is None:
        return b""
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    numbers = [each[column] for each in DENIED.values()]
    rows = [(load, 0, 0, 4), (equal, 1, 0, (0xC000003E, 0xC00000B7)[column]), (give, 0, 0, 0x80000000)]  # else killed
    rows += [(load, 0, 0, 0), (at_least, len(numbers) + 1, 0, 0x40000000)]  # x32, a second set of numbers
    rows += [(equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    rows += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EPERM)]  # allowed, denied
    return b"".join(struct.pack("=HBBI", *row) for row in rows)
