"""What fails on one rank has failed on all of them."""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from groundup.errors import DamagedError, DataError, PeerLost, ResourceError
from groundup.train.peers import ALONE, Peers


def ranks(count: int) -> list[Peers]:
    """So many ranks, each to be used by a thread of its own."""
    meeting, said = threading.Barrier(count, timeout=60), [None] * count

    def gather(rank: int, value: Any) -> list[Any]:
        said[rank] = value
        meeting.wait()
        answers = list(said)
        meeting.wait()
        return answers

    return [Peers(rank, count, lambda value, rank=rank: gather(rank, value)) for rank in range(count)]


def outcomes(work: Callable[[int], Any]) -> list[Any]:
    """What `work` of its rank gave or raised on each of three."""

    def one(peers: Peers) -> Any:
        try:
            return peers.all_do(lambda: work(peers.rank), DataError)
        except Exception as error:
            return error

    with ThreadPoolExecutor(3) as threads:
        return list(threads.map(one, ranks(3)))


def test_every_rank_gets_the_answers_of_all_in_order() -> None:
    assert outcomes(lambda rank: rank * 10) == [[0, 10, 20]] * 3


@pytest.mark.parametrize("error", [DamagedError("it is cut"), OSError(errno.EIO, "it is cut")])
def test_what_one_rank_meets_all_raise_in_the_same_words(error: Exception) -> None:
    def work(rank: int) -> None:
        if rank:
            raise error

    raised = outcomes(work)
    assert [type(each) for each in raised] == [DataError] * 3
    assert {str(each) for each in raised} == {f"rank 1: {error}"}


def test_a_bug_on_one_rank_ends_the_others_and_keeps_its_traceback() -> None:
    def work(rank: int) -> None:
        if rank == 1:
            raise KeyError("name")

    raised = outcomes(work)
    assert [type(each) for each in raised] == [PeerLost, KeyError, PeerLost]
    assert "rank 1: 'name'" in str(raised[0])


def test_a_rank_that_no_longer_hears_the_others_says_so() -> None:
    def gather(value: Any) -> list[Any]:
        raise RuntimeError("connection closed by peer")

    with pytest.raises(PeerLost, match=r"rank 1 of 2 no longer hears the others \(connection closed by peer\).*again"):
        Peers(1, 2, gather).all_do(lambda: 1, ResourceError)


def test_a_process_alone_raises_what_it_met() -> None:
    def work() -> None:
        raise DamagedError("it is cut")

    with pytest.raises(DamagedError, match="^it is cut$"):
        ALONE.all_do(work, ResourceError)
