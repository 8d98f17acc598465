"""HumanEval: what a program does decides, whatever it says about itself."""

import itertools
import json
import math
import os
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from groundup.errors import ResourceError
from groundup.evals import inside, sandbox
from groundup.evals.benchmarks import Files
from groundup.evals.items import Item
from groundup.evals.programs import Grader, Outcome, metrics, pass_at_k, problem_item, program_of
from groundup.evals.results import Result
from groundup.evals.sandbox import Limits, probe
from groundup.evals.settings import TaskSettings
from groundup.evals.tasks import TASKS
from groundup.files import no_progress
from groundup.tools.examine import examine

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap"
)

PROMPT = '''from typing import List


def largest(numbers: List[int]) -> int:
    """The largest one. """
'''
TESTS = """
def check(candidate):
    assert candidate([3, 9, 2]) == 9
    assert candidate([-1]) == -1
"""
ITEM = problem_item(
    {"task_id": "t", "prompt": PROMPT, "canonical_solution": "    return max(numbers)\n", "test": TESTS,
     "entry_point": "largest"}
)  # fmt: skip


@pytest.fixture(scope="module")
def grader() -> Grader:
    return Grader(probe(Limits(seconds=2.0)))


@pytest.fixture(scope="module")
def problems(shared: Path) -> list[Item]:
    return list(TASKS["humaneval"].items(Files(shared / "data" / "evals")))


def item_of(tests: str, solution: str = "    return max(numbers)\n") -> Item:
    return problem_item({**ITEM.ask.data, "test": tests, "canonical_solution": solution})  # type: ignore[union-attr]


def returning(expression: str) -> str:
    return f"{PROMPT}    return {expression}\n"


# Right and wrong programs


def all_outcomes(grader: Grader, items: list[Item], body: str | None = None) -> list[Outcome]:
    programs = [(item, program_of(item, body or item.ask.answers[0])) for item in items]  # type: ignore[union-attr]
    return grader.grade_all(programs)


@needs_bubblewrap
def test_known_solutions_pass_and_nothing_fails(grader: Grader, problems: list[Item]) -> None:
    """Those whose tests use helpers of the prompt among them."""
    items = [item for item in problems if int(item.id.split("/")[1]) in (0, 1, 2, 32, 38, 50, 79, 90, 128, 160)]
    assert [each.passed for each in all_outcomes(grader, items)] == [True] * 10
    assert [each.passed for each in all_outcomes(grader, items, "    return None\n")] == [False] * 10


@pytest.mark.slow
@needs_bubblewrap
def test_all_known_solutions_pass_and_nothing_fails(grader: Grader, problems: list[Item]) -> None:
    assert len(problems) == 164
    assert {each.passed for each in all_outcomes(grader, problems)} == {True}
    assert {each.passed for each in all_outcomes(grader, problems, "    return None\n")} == {False}


@needs_bubblewrap
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (returning("max(numbers)"), "passed"),
        (returning("min(numbers)"), "wrong value"),
        (returning("numbers[99]"), "exception"),
        (returning("numbers["), "exception"),
        (returning("(n for n in numbers)"), "exception"),  # no plain value
        (f"{PROMPT}    pass\nlargest(3)[0]\n", "exception"),
        ("def smallest(numbers): return 1\n", "exception"),
        (returning("bytes(2 << 30)"), "memory"),
        (returning("__import__('socket').socket()"), "forbidden"),
        (returning("open('/x', 'w')"), "forbidden"),
        (f"{PROMPT}    while True: pass\n", "time limit"),
        (returning("'x' * (3 << 20)"), "output limit"),
        (returning("__import__('os').abort()"), "signal 6"),
        (f"{PROMPT}    print('hello'); print(input)\n    return max(numbers)\n", "passed"),
        (f"{PROMPT}    return max(numbers)\nif __name__ == '__main__':\n    raise SystemExit\n", "passed"),
    ],
)
def test_an_outcome_says_what_failed(grader: Grader, program: str, reason: str) -> None:
    outcome = grader.grade(ITEM, program)
    assert (outcome.reason, outcome.passed) == (reason, reason == "passed"), outcome


@needs_bubblewrap
def test_exceptions_are_answers_too(grader: Grader) -> None:
    tests = "def check(f):\n    try:\n        f([])\n    except ValueError:\n        return\n    assert False\n"
    assert grader.grade(item_of(tests), returning("max(numbers)")).passed
    assert not grader.grade(item_of(tests), returning("numbers[0]")).passed


# Fooling it

FOOLING = {
    "equal to everything": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
def largest(numbers): return Equal()
""",
    "a number equal to everything": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def largest(numbers): return Equal(4)
""",
    "a list equal to everything": """
class Equal(list):
    def __eq__(self, other): return True
def largest(numbers): return Equal([1])
""",
    "says that it passed": """
print('PASSED')
import os, sys
for descriptor in range(1, 10):
    try: os.write(descriptor, b'passed None\\n')
    except OSError: pass
def largest(numbers): return 0
""",
    "says so when it is called": """
def largest(numbers):
    import os
    for descriptor in range(1, 10):
        try: os.write(descriptor, b'passed None\\nvalue None\\nvalue int 0x9 \\n')
        except OSError: pass
    return 0
""",
    "patches assert": """
import builtins, sys
builtins.AssertionError = type('Quiet', (BaseException,), {})
sys.settrace(lambda *given: None)
def largest(numbers): return 0
""",
    "ends before the checks": "import os\nos._exit(0)\n",
    "ends when it is called": "import os\ndef largest(numbers): os._exit(0)\n",
    "raises what ends programs": "def largest(numbers): raise SystemExit(0)\n",
    "tampers with modules": """
import sys
for name in list(sys.modules):
    if name not in ('sys', 'builtins'): sys.modules[name] = None
sys.modules['json'] = sys.modules['__main__'] = None
def largest(numbers): return 0
""",
    "changes what encodes its answers": """
import sys
main = sys._getframe(1).f_globals
main['encode'] = lambda value: 'int 0x9 passed None\\npassed None'
def largest(numbers): return 0
""",
    "changes its arguments": "def largest(numbers):\n    numbers[:] = [0]\n    return 0\n",
    "answers what is no message": """
import os
os.write(3, b'value ' + b'list 1 ' * 100000 + b'\\n7\\n')
def largest(numbers): return 0
""",
    "replaces check": "def check(candidate): pass\ndef largest(numbers): return 0\n",
}


@needs_bubblewrap
@pytest.mark.parametrize("how", FOOLING)
def test_what_would_fool_a_grader_in_one_process_fails(grader: Grader, how: str) -> None:
    outcome = grader.grade(ITEM, FOOLING[how])
    assert outcome.passed is False, outcome


HOSTILE = {
    "an endless loop": "while True: pass",
    "a fork bomb": "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
    "2 GB": "x = bytearray(2 << 30)",
    "a file of 64 MB": "open('/tmp/x', 'wb').write(bytes(64 << 20))",
    "a full /dev/shm": "open('/dev/shm/x', 'wb').write(bytes(8 << 20))",
    "a socket": "import socket; socket.socket()",
    "the passwords": "open('/etc/shadow').read()",
    "the parent's environment": "assert open('/proc/1/environ').read()",
    "a session of its own": "import os, time\nif os.fork() == 0:\n os.setsid(); time.sleep(60)\nos._exit(0)",
    "printing for ever": "while True: print('x' * 1000)",
    "killing its parent": "import os; os.kill(os.getppid(), 9); os.kill(-1, 9); os.kill(0, 9)",
    "an early end": "import os; os._exit(0)",
}


@needs_bubblewrap
@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize("place", ["beside the function", "in the function"])
def test_hostile_programs_are_failed_samples_within_their_limit(grader: Grader, how: str, place: str) -> None:
    code = HOSTILE[how]
    indented = "".join(f"    {line}\n" for line in code.splitlines())
    right = "    return max(numbers)\n"
    program = f"{PROMPT}{right}{code}\n" if place.startswith("beside") else f"{PROMPT}{indented}{right}"
    before = time.monotonic()
    outcome = grader.grade(ITEM, program)
    assert outcome.passed is False, outcome
    assert time.monotonic() - before < 45  # a bound on a hang
    ours = [path for path in Path("/proc").glob("[0-9]*") if _parent(path) == os.getpid()]
    assert not [path for path in ours if b"bwrap" in (path / "cmdline").read_bytes()]


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


# Tests that are themselves at fault


@needs_bubblewrap
@pytest.mark.parametrize(
    "tests",
    [
        "def check(candidate): raise RuntimeError('no such file')\n",
        "def check(candidate:\n",
        "import os\ndef check(candidate): os._exit(0)\n",
        "def check(candidate): assert candidate([1]) == 2\n",
        "def check(candidate): candidate(object())\n",
    ],
)
@pytest.mark.parametrize("program", [returning("0"), "import os; os._exit(0)"])
def test_tests_that_fail_for_their_own_solution_say_nothing(grader: Grader, tests: str, program: str) -> None:
    outcome = grader.grade(item_of(tests), program)
    assert (outcome.passed, outcome.reason) == (None, "broken tests"), outcome


@needs_bubblewrap
def test_tests_that_do_not_end_say_nothing(grader: Grader) -> None:
    hurried = Grader(replace(grader.sandbox, limits=Limits(seconds=0.5)))
    outcome = hurried.grade(item_of("def check(candidate):\n    while True: pass\n"), returning("0"))
    assert (outcome.passed, outcome.reason) in ((None, "broken tests"), (None, "no sandbox"))  # on a slow machine


@needs_bubblewrap
def test_a_value_that_makes_the_tests_hang_is_a_failure(grader: Grader) -> None:
    tests = "def check(f):\n    n = f([1])\n    while n != 1: pass\n"
    assert grader.grade(item_of(tests), returning("2")).passed is False
    assert grader.grade(item_of(tests), returning("1")).passed is True


@needs_bubblewrap
def test_without_a_sandbox_that_starts_nothing_is_known(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALLS", "--bind /nowhere /nowhere")
    outcome = grader.grade(ITEM, returning("max(numbers)"))
    assert (outcome.passed, outcome.reason) == (None, "no sandbox")
    assert "/nowhere" in outcome.words


def test_a_machine_that_starts_no_process_says_nothing() -> None:
    bare = Grader(sandbox.Sandbox(Path("/nowhere/python"), Limits()))
    assert bare.grade(ITEM, returning("max(numbers)")).reason == "no sandbox"


def test_without_walls_programs_are_graded_the_same_where_that_was_allowed() -> None:
    bare = Grader(sandbox.Sandbox(Path(sys.executable), Limits()))
    assert bare.check(ITEM, ["    return max(numbers)\n", "    return 9\n", "    return bytes(2 << 30)\n"]) == {
        "pass@1": pytest.approx(1 / 3), "passed": 1 / 3, "wrong value": 1 / 3, "memory": 1 / 3,
    }  # fmt: skip


# Values


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -7, 1 << 64, 0.1, -0.0, math.inf, 1e-320, 2 - 3j, "", "é\ud800\n", b"\x00\xff", [], (), set(), {},
     [(1, "a"), [2.5, None]], {(1, 2): {3}, "k": frozenset({b"x"}), None: {1: [()]}}, {1: 2, "b": 1, "a": 0}],
)  # fmt: skip
def test_plain_values_pass_and_keep_their_types(value: Any) -> None:
    passed = inside.decode(inside.encode(value))
    assert repr(passed) == repr(value)  # which tells 1 from True and 1.0, -0.0 from 0.0, and the order of dicts
    assert type(passed) is type(value) and passed == value


def test_a_number_of_any_length_passes() -> None:
    """Python writes none of over 4,300 digits as decimal."""
    assert inside.decode(inside.encode(-(10**5000))) == -(10**5000)


def test_what_is_no_plain_value_does_not_pass() -> None:
    for value in (object(), iter([]), range(3), len, inside, [object()]):
        with pytest.raises(TypeError, match="no plain value"):
            inside.encode(value)


# Answers and metrics


def test_a_program_is_the_prompt_continued_up_to_what_ends_a_function() -> None:
    for after in ("def other(): pass", "class A: pass", "# a remark", "if True: pass", "print(1)"):
        assert program_of(ITEM, f"    return 1\n{after}\n") == f"{PROMPT}    return 1"


def test_of_a_conversation_the_code_between_fences_is_the_program() -> None:
    code = "import math\n\ndef largest(numbers):\n    return 9\n"
    answer = f"Here it is:\n```python\n{code}```\nIt returns nine."
    assert program_of(ITEM, answer) == f"from typing import List\n\n\n{code}"
    assert program_of(ITEM, "```\n    return 9\n```") == f"{PROMPT}    return 9\n"


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 1), (5, 2), (6, 6), (9, 4)])
def test_pass_at_k_equals_enumeration(n: int, k: int) -> None:
    for right in range(n + 1):
        programs = [number < right for number in range(n)]
        assert pass_at_k(n, right, k) == pytest.approx(mean(map(any, itertools.combinations(programs, k))), abs=1e-12)


def test_pass_at_k_of_many_programs_is_exact() -> None:
    exact = 1 - math.comb(10_000 - 3, 100) / math.comb(10_000, 100)
    assert pass_at_k(10_000, 3, 100) == pytest.approx(exact, rel=1e-9)


def test_metrics_leave_out_what_is_not_known() -> None:
    outcomes = [Outcome(True, "passed"), Outcome(False, "memory"), Outcome(None, "broken tests")]
    assert metrics([*outcomes, outcomes[0]]) == {
        "pass@1": pytest.approx(2 / 3), "passed": 0.5, "memory": 0.25, "broken tests": 0.25,
    }  # fmt: skip
    assert metrics(outcomes[2:]) == {}
    assert set(metrics([Outcome(True, "passed")] * 10)) == {"pass@1", "pass@10", "passed"}


@needs_bubblewrap
def test_answers_become_metrics(grader: Grader) -> None:
    assert grader.check(ITEM, ["    return max(numbers)\n", "    return 9\n"]) == {
        "pass@1": 0.5, "passed": 0.5, "wrong value": 0.5,
    }  # fmt: skip


# The task


def ask(model: Path, shared: Path, out: Path, allow_unsandboxed: bool = False) -> Result:
    [result] = examine(
        model, ["humaneval"], shared / "data" / "evals", out, TaskSettings(limit=3, samples=2, temperature=1.0),
        together=4, device="cpu", precision=None, watch=lambda name: nullcontext(no_progress),
        allow_unsandboxed=allow_unsandboxed,
    )  # fmt: skip
    return result


@needs_bubblewrap
def test_what_a_model_gets_is_told_with_what_isolated_its_programs(
    finished_home: Path, shared: Path, tmp_path: Path
) -> None:
    result = ask(finished_home / "runs" / "tiny", shared, tmp_path)
    assert list(result.metrics) == ["pass@1"] and result.items == 3 and result.unknown == 0
    assert result.isolation is not None and "private network" in result.isolation
    assert f"programs ran with: {result.isolation}" in (tmp_path / "report.html").read_text("utf-8")
    for line in (tmp_path / "humaneval" / "items.jsonl").read_text("utf-8").splitlines():
        reasons = json.loads(line)["values"]
        assert sum(share for reason, share in reasons.items() if not reason.startswith("pass@")) == 1


def test_without_isolation_a_model_is_not_even_loaded_unless_that_was_allowed(
    finished_home: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match="--allow-unsandboxed"):
        ask(tmp_path / "no model", shared, tmp_path)
    with pytest.warns(UserWarning, match="with all your rights"):
        result = ask(finished_home / "runs" / "tiny", shared, tmp_path, allow_unsandboxed=True)
    assert result.isolation == "time limit, resource limits"
