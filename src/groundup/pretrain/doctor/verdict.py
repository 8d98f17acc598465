"""A verdict: what a check found, and what to do about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from groundup.errors import DivergedError, GroundupError


@dataclass(frozen=True)
class Verdict:
    """The result of one check."""

    check: str
    finding: str
    level: Literal["ok", "warning", "error"] = "ok"
    """A warning is unusual and may be meant; after an error a training would waste its time."""
    advice: str = ""
    error: type[GroundupError] | None = None
    """The error that `refuse_errors` raises for it."""
    group: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.finding}" + (f" → {self.advice}" if self.advice else "")

    @property
    def exit_code(self) -> int:
        """The exit code of the command if this is the first error; 0 if it is none."""
        return self.error.exit_code if self.error else 0

    def table(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**vars(self), "error": None if self.error is None else self.error.__name__, "exit_code": self.exit_code}


def ok(check: str, finding: str) -> Verdict:
    """A verdict that all is well."""
    return Verdict(check, finding)


def warning(check: str, finding: str, advice: str) -> Verdict:
    """A verdict that something is unusual."""
    return Verdict(check, finding, "warning", advice)


def error(check: str, finding: str, advice: str, kind: type[GroundupError] = DivergedError) -> Verdict:
    """A verdict that something is wrong."""
    return Verdict(check, finding, "error", advice, kind)


def judge(check: str, finding: str, *problems: tuple[object, Callable[[str, str, str], Verdict], str]) -> Verdict:
    """The verdict of the first problem that is there, or that all is well.

    Args:
        problems: whether it is there, `warning` or `error`, and the advice.

    >>> judge("loss", "9.1", (9.1 > 20, error, "begin again"), (9.1 > 5, warning, "train longer")).level
    'warning'
    """
    return next(
        (verdict(check, finding, advice) for is_there, verdict, advice in problems if is_there), ok(check, finding)
    )


def refuse_errors(verdicts: Sequence[Verdict]) -> None:
    """Refuse a training of which a verdict is an error.

    Raises:
        GroundupError: of the kind of the first error, naming all of them.
    """
    lines = "".join(f"\n  {verdict}" for verdict in verdicts if verdict.error)
    for verdict in verdicts:
        if verdict.error:
            raise verdict.error(f"the doctor refuses this training before its first step:{lines}")
