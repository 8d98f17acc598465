"""The errors a person can cause or must act on, each with the exit code the command line ends in."""

import re

SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Stand-ins for bytes that are not UTF-8, which no file, JSON or terminal can hold."""


class GroundupError(Exception):
    """An error whose message is an answer: the thing, what it was, what it should be, the next step. The command line
    prints it, and ends in its `exit_code`.

    >>> from groundup import ModelConfig
    >>> try:
    ...     ModelConfig(n_heads=3, d_model=64)
    ... except GroundupError as error:
    ...     print(type(error).__name__, error.exit_code, error)
    SettingsError 2 ModelConfig:
      n_heads = 3 does not divide d_model = 64; nearest number of heads: 2, nearest width: 63; or set d_head
    """

    exit_code = 1


class SettingsError(GroundupError, ValueError):
    """Settings or usage that cannot work: unknown names, wrong types, values that contradict each other or the data."""

    exit_code = 2


class DataError(GroundupError):
    """A source that is missing, empty or unreadable; an artifact that is damaged, foreign or a pickle."""

    exit_code = 3


class MissingError(DataError):
    """Something that a recipe names is not there."""


class DamagedError(DataError):
    """An artifact of ours whose bytes are not the ones that were written."""


class UnsupportedError(DataError):
    """Something well-formed that the blocks and formats here do not represent."""


class ResourceError(GroundupError):
    """The machine said no: disk full, read-only, lock held, out of memory."""

    exit_code = 4


class PeerLost(ResourceError):
    """Another process of the same training was killed, hangs, or ended with a bug: this one cannot go on alone."""


class DivergedError(GroundupError):
    """Training produced a loss or gradient that is not a finite number."""

    exit_code = 5


class SavedAndStopped(GroundupError):
    """Work was interrupted after saving; the same command goes on from there."""

    exit_code = 75


class Paused(SavedAndStopped):
    """Work that came to the step at which it was asked to pause, and saved."""


def escaped(text: str) -> str:
    r"""
    >>> escaped("\udce9“🦊")
    '\\xe9\\u201c\\U0001f98a'
    """
    return "".join(
        f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c.encode("ascii", "backslashreplace").decode()
        for c in text
    )


def refuse_not_utf8(path: object) -> None:
    """
    Raises:
        SettingsError: a path with bytes that are not UTF-8, which neither JSON nor the libraries of weights can hold.
    """
    if SURROGATE.search(str(path)):
        raise SettingsError(f"{escaped(str(path))} is not UTF-8, and cannot be used as a path here: rename it")
