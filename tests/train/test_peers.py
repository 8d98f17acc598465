"""What fails on one rank has failed on all of them."""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from groundup.errors import DamagedError, DataError, PeerLost, ResourceError
from groundup.train import checkpoint
from groundup.train.peers import ALONE, Peers
from groundup.train.pieces import Piece


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


def test_a_rank_that_does_not_see_the_directory_of_the_first_is_told_so(tmp_path: Path) -> None:
    def save(peers: Peers) -> str:
        piece = Piece((3, 2), (peers.rank, 0), torch.ones(1, 2))
        with pytest.raises(ResourceError) as raised:
            checkpoint.save(tmp_path / f"node-{peers.rank // 2}", {"w": piece}, {"step": 1}, {}, {}, peers=peers)
        return str(raised.value)

    with ThreadPoolExecutor(3) as threads:
        (why,) = set(threads.map(save, ranks(3)))
    assert why.startswith(f"rank 2: {tmp_path}/node-1/")
    assert "was made by rank 0 and is not here: put the run where all see the same files" in why
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_pieces_that_are_not_the_whole_are_no_checkpoint(tmp_path: Path) -> None:
    """What a rank that is not told of its peers would write."""
    with pytest.raises(ValueError, match="the pieces of 1 ranks do not make up the whole of w"):
        checkpoint.save(tmp_path, {"w": Piece((3, 2), (0, 0), torch.ones(1, 2))}, {"step": 1}, {}, {})
    assert not any(tmp_path.iterdir())


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
