"""HumanEval: programs that a model wrote, and what they do when they are run (Chen et al. 2021, arXiv:2107.03374).

A program runs in one sandbox and answers calls by value; the tests run in a second one, where they call a stub. The
verdict is the tests', so nothing that a program does to its own process, an object equal to everything or an early end,
can make it pass. Where a program fails, the problem's own solution is tried: if it fails too, the tests are at fault,
and nothing is known.
"""

import contextlib
import dataclasses
import errno
import inspect
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from groundup.evals import inside
from groundup.evals.benchmarks import Files
from groundup.evals.items import Item, Writing
from groundup.evals.sandbox import Program, Sandbox, Stopped, probe
from groundup.machine import available_cores

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""What ends a function that a model writes (Chen et al. 2021, section 2.1)."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool | None
    """None: the tests themselves failed, or could not be run."""
    reason: str
    """"passed", "wrong value", "exception", "memory", "forbidden", "time limit", "output limit", "signal 11",
    "exit code 1"; or "broken tests", "no sandbox"."""
    words: str = ""
    """Of the error, if there was one."""


def humaneval(files: Files) -> Iterator[Item]:
    """HumanEval (Chen et al. 2021, arXiv:2107.03374): a function's head and what it is to do; the model writes the
    rest. Scored by running it against the problem's tests, in a sandbox; needs bubblewrap.
    """
    yield from map(problem_item, files.open("humaneval").records)


def problem_item(row: Mapping[str, str]) -> Item:
    """An item of a record of the benchmark's file."""
    solution = (row["canonical_solution"],)
    return Item(
        row["task_id"], Writing(row["prompt"], solution, STOP, stop_in_chat=(), max_tokens=1024, data=dict(row))
    )


def program_of(item: Item, answer: str) -> str:
    """The program that an answer makes: the prompt continued, up to a stop; or, where a conversation's answer shows
    code between fences, that code, below the prompt's imports and helpers."""
    problem = _problem(item)
    fenced = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    if fenced is None:
        ends = [end for stop in STOP if (end := answer.find(stop)) >= 0]
        return problem["prompt"] + answer[: min(ends, default=None)]
    code = fenced[1]
    definition = rf"^def {problem['entry_point']}\b"
    if not re.search(definition, code, re.MULTILINE):
        return problem["prompt"] + code
    return re.split(definition, problem["prompt"], maxsplit=1, flags=re.MULTILINE)[0] + code


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k programs passes, of n of which so many did: 1 - C(n-c, k) /
    C(n, k) (Chen et al. 2021, eq. 1), as a product, which neither overflows nor rounds.

    >>> pass_at_k(5, 2, 1), pass_at_k(5, 2, 4)
    (0.4, 1.0)
    """
    assert 0 <= passed <= n and 1 <= k <= n
    return 1.0 - math.prod((n - passed - taken) / (n - taken) for taken in range(k))


@dataclass(frozen=True)
class Grader:
    """Runs programs, several at once."""

    sandbox: Sandbox

    def check(self, item: Item, answers: Sequence[str]) -> dict[str, float]:
        """Metrics of a problem by the answers that a model wrote."""
        return metrics([self.grade(item, program_of(item, answer)) for answer in answers])

    def grade_all(self, programs: Sequence[tuple[Item, str]]) -> list[Outcome]:
        """Outcomes of many programs, over all cores."""
        with ThreadPoolExecutor(2 * available_cores()) as pool:  # half of the time a program's walls are waited for
            return list(pool.map(lambda each: self.grade(*each), programs))

    def grade(self, item: Item, program: str) -> Outcome:
        """Run a program against the problem's tests."""
        problem = _problem(item)
        try:
            return self._run(problem, program)
        except Unfinished as ended:
            with contextlib.suppress(Unfinished):
                if self._run(problem, problem["prompt"] + problem["canonical_solution"]).passed:
                    return ended.outcome
            return Outcome(None, "broken tests", ended.outcome.words)

    def _run(self, problem: dict[str, str], program: str) -> Outcome:
        """
        Raises:
            Unfinished: one of the two came to an end before there was a verdict.
        """
        source, name = inspect.getsource(inside), problem["entry_point"]
        parts = (problem[part] for part in ("prompt", "canonical_solution", "test", "entry_point"))
        candidate = f"{source}\nanswer_calls({program!a}, {name!a})\n"
        tests = f"{source}\nrun_tests({', '.join(map(ascii, parts))})\n"
        longer = dataclasses.replace(self.sandbox.limits, seconds=2 * self.sandbox.limits.seconds)
        patient = dataclasses.replace(self.sandbox, limits=longer)
        try:
            with self.sandbox.start(candidate) as answering, patient.start(tests) as asking:
                for each in (answering, asking):
                    if (line := each.receive()) != b"ready None\n":
                        return Outcome(None, "no sandbox", line.decode("utf-8", "replace").strip())
                return _converse(answering, asking)
        except (Stopped, OSError) as error:
            return Outcome(None, "no sandbox", str(error))


class Unfinished(Exception):
    """There was no verdict, and `outcome` says what there is instead."""

    def __init__(self, reason: str, words: str = "") -> None:
        super().__init__(reason)
        self.outcome = Outcome(False, reason, words)


def _converse(answering: Program, asking: Program) -> Outcome:
    """Carry calls to the candidate and values back, until the tests say a verdict, or one of the two ends."""
    while True:
        try:
            line = asking.receive()
            if not line.startswith(b"call "):
                return _outcome(line.decode("ascii"))
        except (Stopped, ValueError, LookupError, TypeError) as error:
            raise Unfinished("wrong value", f"with what it gave, the tests came to no end: {error}") from None
        try:
            answering.send(line)
            answer = answering.receive()
        except Stopped as stopped:
            raise Unfinished(str(stopped)) from None
        with contextlib.suppress(Stopped):  # which is seen when it is read
            asking.send(answer)


def _outcome(verdict: str) -> Outcome:
    kind, _, text = verdict.rstrip("\n").partition(" ")
    if kind == "passed":
        return Outcome(True, "passed")
    name, words, number = inside.decode(text)
    words = f"{name}: {words}"[:400]
    if kind == "broken":
        return Outcome(None, "broken tests", words)
    if kind == "failed":
        return Outcome(False, "wrong value", words)
    if name == "MemoryError":
        return Outcome(False, "memory", words)
    return Outcome(False, "forbidden" if number in FORBIDDEN else "exception", words)


FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EAGAIN, errno.EFBIG, errno.ENOSPC, errno.EROFS, errno.EMFILE)
"""Errors of a system call that the sandbox or a limit refused."""


def metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """pass@k of one problem for k = 1, 10 and 100, as far as there are programs of which something is known, and the
    share of each reason among all; empty where nothing is known."""
    known = [each.passed for each in outcomes if each.passed is not None]
    if not known:
        return {}
    chances = {f"pass@{k}": pass_at_k(len(known), sum(known), k) for k in (1, 10, 100) if k <= len(known)}
    return chances | {reason: n / len(outcomes) for reason, n in Counter(each.reason for each in outcomes).items()}


def _problem(item: Item) -> dict[str, str]:
    assert isinstance(item.ask, Writing)
    return dict(item.ask.data)


@cache
def default_grader() -> Grader:
    """The grader of `check_answers`; raises where programs cannot be isolated."""
    return Grader(probe())


def check_answers(item: Item, answers: Sequence[str]) -> dict[str, float]:
    """`Grader.check`, in the sandbox that this machine has."""
    return default_grader().check(item, answers)
