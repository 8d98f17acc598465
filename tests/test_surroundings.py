"""Commands in odd surroundings: no traceback, the right exit code, the same digests.

`bench/surroundings.py` has the commands and the surroundings, and runs all with all. Here each command meets one
surrounding, and in `make test-slow` four others that change from day to day, so that five days run all pairs.
"""

import runpy
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

ROOM: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "bench" / "surroundings.py"))
COMMANDS, SURROUNDINGS = list(ROOM["COMMANDS"]), list(ROOM["SURROUNDINGS"])


@pytest.fixture(scope="session")
def wrong(tmp_path_factory: pytest.TempPathFactory, finished_home: Path) -> Callable[[str, str, Path], str]:
    """What is wrong with a command in a surrounding, tried in a folder that is not there yet."""
    home = ROOM["prepare"](finished_home, tmp_path_factory.mktemp("surroundings") / "home")
    locales: list[Path] = []

    def check(command: str, name: str, place: Path) -> str:
        if ROOM["SURROUNDINGS"][name].locale and not locales:
            try:
                locales.append(ROOM["make_locales"](tmp_path_factory.mktemp("locales")))
            except OSError as error:
                pytest.skip(f"{error} (CI installs them)")
        told: str = ROOM["check"](command, name, home, place, locales[0] if locales else None)
        return told

    return check


def pairs(shift: int) -> list[tuple[str, str]]:
    """Each command once, in surroundings that other shifts do not give it."""
    return [(command, SURROUNDINGS[(number + shift) % len(SURROUNDINGS)]) for number, command in enumerate(COMMANDS)]


@pytest.mark.parametrize(("command", "name"), pairs(0))
def test_a_command_in_an_odd_surrounding(
    command: str, name: str, wrong: Callable[[str, str, Path], str], tmp_path: Path
) -> None:
    assert wrong(command, name, tmp_path / "x") == ""


def test_all_shifts_together_are_all_pairs() -> None:
    assert len({pair for shift in range(len(SURROUNDINGS)) for pair in pairs(shift)}) == 25 * 21


@pytest.mark.slow
@pytest.mark.parametrize("quarter", range(4))
def test_todays_pairs(quarter: int, wrong: Callable[[str, str, Path], str], tmp_path: Path) -> None:
    shift = 1 + (4 * date.today().toordinal() + quarter) % (len(SURROUNDINGS) - 1)
    faults = [wrong(command, name, tmp_path / command.replace(" ", "-")) for command, name in pairs(shift)]
    assert "\n\n".join(filter(None, faults)) == ""
