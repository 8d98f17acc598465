"""The processes that train together, as far as a checkpoint needs to know them: they exchange small values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from groundup.errors import GroundupError, PeerLost

Value = TypeVar("Value")


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Peers:
    """All ranks of a training, this one included. By default there is no other."""

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = _alone
    """Gives every rank the JSON values of all, in order of rank; `RuntimeError` when one of them is gone."""

    def all_do(self, work: Callable[[], Value], kind: type[GroundupError]) -> list[Value]:
        """Do `work`, on every rank at the same time, and return what it gave on each, in order of rank.

        Args:
            work: gives a JSON value.
            kind: the error that all raise, naming the rank, when the work of one has met a `GroundupError` or
                `OSError`. A process alone raises what it met.

        Raises:
            PeerLost: another rank was killed, hangs, or ended with a bug.

        >>> Peers().all_do(lambda: 6 * 7, GroundupError)
        [42]
        """
        value, error = None, None
        try:
            value = work()
        except Exception as failure:
            error = failure
        expected = isinstance(error, (GroundupError, OSError))
        answers = self._gathered([value, error and (str(error) or repr(error)), expected])
        if error is not None and (self.size == 1 or not expected):
            raise error
        for rank, (_, why, one_expects) in enumerate(answers):
            if why is not None:
                raise (kind if one_expects else PeerLost)(f"rank {rank}: {why}") from error
        return [answer for answer, _, _ in answers]

    def _gathered(self, value: Any) -> list[Any]:
        try:
            return self.gather(value)
        except RuntimeError as error:
            raise PeerLost(
                f"rank {self.rank} of {self.size} no longer hears the others ({error}): one was killed or hangs. Run "
                "the same command again; it goes on from the newest whole checkpoint"
            ) from error


ALONE = Peers()
