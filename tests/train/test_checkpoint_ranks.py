"""Four processes save together, in any layout, and any other layout loads it; what fails for one fails for all."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from groundup.artifacts import read_manifest, verify
from groundup.errors import DataError, PeerLost
from groundup.tools import checkpoints, inspect
from groundup.train import checkpoint
from groundup.train.checkpoint import Kept, Saver
from groundup.train.peers import Peers
from groundup.train.pieces import read_whole, stored_pieces

RANKS = 4
Tensors = dict[str, Tensor]


def whole_tensors() -> Tensors:
    """Sizes that divide over nothing, a tensor of one number, an empty one, one of integers."""
    draw = torch.Generator().manual_seed(3)
    shapes = {"column.weight": (7, 6), "column.bias": (7,), "row.weight": (6, 7), "row.bias": (6,), "few": (3, 5)}
    random = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return {**random, "step": torch.tensor(3.0), "empty": torch.empty(0, 4), "count": torch.arange(5)}


def named(tensors: Tensors) -> Tensors:
    """As a checkpoint names weights."""
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def replicate(whole: Tensors) -> Tensors:
    return dict(whole)


def shard(whole: Tensors) -> Tensors:
    """Rows over all ranks, of which some have none."""
    mesh = init_device_mesh("cpu", (RANKS,))
    return {name: distribute_tensor(each, mesh, [Shard(0)]) if each.ndim else each for name, each in whole.items()}


def two_axes(whole: Tensors) -> Tensors:
    """Each tensor is cut in another way over a mesh of two axes."""
    mesh, rows, columns, both = init_device_mesh("cpu", (2, 2)), Shard(0), Shard(1), Replicate()
    placements = {"column.weight": [rows, columns], "column.bias": [both, rows], "row.weight": [columns, rows],
                  "row.bias": [rows, rows], "few": [both, columns], "empty": [rows, columns],
                  "count": [rows, both], "step": [both, both]}  # fmt: skip
    return {name: distribute_tensor(whole[name], mesh, cut) for name, cut in placements.items()}


def sharded_over_tensor(whole: Tensors) -> Tensors:
    """FSDP2 over tensor parallelism, as torch does them to a model."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = nn.Sequential(OrderedDict(column=nn.Linear(6, 7), row=nn.Linear(7, 6)))
    model.load_state_dict({name: whole[name] for name in model.state_dict()})
    parallelize_module(model, mesh["tp"], {"column": ColwiseParallel(), "row": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    return {**whole, **dict(model.named_parameters())}


def stages(whole: Tensors) -> Tensors:
    """Half of the tensors are on each half of the ranks, which cut them by rows."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    own = sorted(whole)[mesh.get_local_rank("pp") :: 2]
    return {name: distribute_tensor(whole[name], mesh["dp"], [Shard(0)]) if whole[name].ndim else whole[name]
            for name in own}  # fmt: skip


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    each.__name__: each for each in (replicate, shard, two_axes, sharded_over_tensor, stages)
}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(local(one[name]), local(two[name])) for name in one)


def never(directory: Path, why: str) -> None:
    raise AssertionError(f"{directory} was refused: {why}")


# What each of the processes does


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(minutes=2))
    group = dist.new_group(backend="gloo")

    def gather(value: Any) -> list[Any]:
        answers: list[Any] = [None] * RANKS
        dist.all_gather_object(answers, json.dumps(value), group=group)
        return [json.loads(answer) for answer in answers]

    peers = Peers(rank, RANKS, gather)
    load_each_from_each(folder, peers)
    fail_together(folder / "failing", peers)
    pass_over_together(folder / "failing", peers)
    lose_one(folder / "killed", peers)


def load_each_from_each(folder: Path, peers: Peers) -> None:
    whole = whole_tensors()
    for name, layout in LAYOUTS.items():
        with Saver(folder / name, Kept(1), {}, {}, most_failures=1, tell=lambda *_, **__: None, peers=peers) as saver:
            saver.save(named(layout(whole)), {"step": 1, "from": name}, {"step": 1})
            copied = saver._snapshot.wait()
            assert bool(copied) == (name != "replicate" or peers.rank == 0), "who writes nothing copies nothing"
    for source in ("alone", *LAYOUTS):
        for layout in LAYOUTS.values():
            into = layout({name: torch.zeros_like(each) for name, each in whole.items()})
            loaded = checkpoint.load_newest(folder / source, named(into), {}, {}, never, peers=peers)
            assert loaded is not None
            assert loaded.state == {"step": 1, "from": source}
            assert same(into, layout(whole)), f"{layout} from {source}"


def fail_together(folder: Path, peers: Peers) -> None:
    """A full disk for rank 2 only: the save fails for all, the one before is left, the next one succeeds."""
    told: list[tuple[str, int]] = []
    write = checkpoint.write_tensors

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Saver(folder, Kept(2), {}, {}, most_failures=3, peers=peers,
               tell=lambda event, _, **details: told.append((event, details["step"]))) as saver:  # fmt: skip
        for step in (1, 2, 3):
            if step == 2 and peers.rank == 2:
                checkpoint.write_tensors = full
            saver.save(numbered(step), {"step": step}, {})
            saver._thread.submit(lambda: None).result()  # it has been written
            saver.poll()
            assert (("saved", step) in told) is False, "ranks would see it at other steps"
            saver.wait()
            checkpoint.write_tensors = write
            assert len(saver._failures) == (step == 2)
            peers.gather(None)  # rank 0 has cleared away
            if step == 2:
                why = str(saver._failures[0])
                assert why.startswith(f"rank 2: no room to write {folder / 'step-00000002'}"), why
                assert [path.name for path in folder.iterdir()] == ["step-00000001"]
                verify(folder / "step-00000001")
            peers.gather(None)  # nobody is writing while others look
    assert told == ([("saved", 1), ("save failed", 2), ("saved", 3)] if peers.rank == 0 else [])


def numbered(step: int) -> Tensors:
    return shard({"model.w": torch.full((10, 3), float(step)), "optimizer.w.step": torch.tensor(float(step))})


def pass_over_together(folder: Path, peers: Peers) -> None:
    """A bit that rank 3 wrote is another now, or one rank cannot read: no rank takes that checkpoint."""
    if peers.rank == 0:
        newest = sorted((folder / "step-00000003").glob("*.safetensors"))[-1]
        raw = bytearray(newest.read_bytes())
        raw[-1] ^= 1
        newest.write_bytes(raw)
    into, refused = numbered(0), []
    loaded = checkpoint.load_newest(
        folder, into, {}, {}, lambda path, why: refused.append((path.name, why)), peers=peers
    )
    assert loaded is not None
    assert loaded.state == {"step": 1}
    assert same(into, numbered(1))
    assert [name for name, _ in refused] == ["step-00000003"]
    assert "the sha256 of" in refused[0][1]
    other = {**into, "model.w": torch.zeros(10, 4)} if peers.rank == 1 else into
    with pytest.raises(DataError, match=r"rank 1: .* model.w is \[10, 3\] there, \[10, 4\] here"):
        checkpoint.load_newest(folder, other, {}, {}, lambda path, why: None, peers=peers)


def lose_one(folder: Path, peers: Peers) -> None:
    """Rank 3 is killed while it writes; the others end, and what was saved before stays."""
    saver = Saver(folder, Kept(1), {}, {}, most_failures=9, tell=lambda *_, **__: None, peers=peers)
    with pytest.raises(PeerLost, match="no longer hears the others"), saver:
        saver.save(numbered(0), {"step": 0}, {})
        saver.save(numbered(1) | shard({"optimizer.w.average": torch.arange(5)}), {"step": 1}, {})
        saver.wait()
        if peers.rank == 3:
            checkpoint.write_tensors = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        saver.save(numbered(2), {"step": 2}, {})


# What is seen from outside


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes have left, of which the last was killed."""
    folder = tmp_path_factory.mktemp("ranks")
    checkpoint.save(folder / "alone", named(whole_tensors()), {"step": 1, "from": "alone"}, {}, {})
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), folder]) for rank in range(RANKS)]
    try:
        assert [rank.wait() for rank in ranks] == [0, 0, 0, -signal.SIGKILL]
    finally:
        for rank in ranks:
            rank.kill()
    return folder


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs torch's gloo"),
]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_process_reads_what_four_have_saved(folder: Path, layout: str) -> None:
    """By `load_newest`, tensor by tensor, and by torch.distributed.checkpoint."""
    whole, directory = named(whole_tensors()), folder / layout / "step-00000001"
    into = {name: torch.zeros_like(each) for name, each in whole.items()}
    assert checkpoint.load_newest(folder / layout, into, {}, {}, never) is not None
    assert same(into, whole)
    assert same({name: read_whole(pieces) for name, pieces in stored_pieces(directory).items()}, whole)
    into = {name: torch.zeros_like(each) for name, each in whole.items()}
    state_dict_loader.load(into, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=True)
    assert same(into, whole)


def test_each_element_is_written_once(folder: Path) -> None:
    for layout in LAYOUTS:
        elements = 0
        for path in (folder / layout / "step-00000001").glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                elements += sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (it is no dict)
        assert elements == sum(each.numel() for each in whole_tensors().values()), layout
    index = json.loads((folder / "stages" / "step-00000001" / checkpoint.INDEX).read_text())
    assert index["weight_map"].keys() == named(whole_tensors()).keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_commands_read_what_four_have_saved(folder: Path, layout: str) -> None:
    (row,) = checkpoints.list_checkpoints(folder / layout)
    assert row.damage == []
    found = checkpoints.diff(folder / "alone", folder / layout)
    assert {each.name: each.change for each in found.tensors} == dict.fromkeys(whole_tensors(), 0)
    facts = inspect.inspect(folder / layout / "step-00000001").facts
    whole = whole_tensors().values()
    assert (facts["tensors"], facts["numbers"]) == (len(whole), sum(each.numel() for each in whole))


def test_equal_copies_make_the_files_of_one_process(folder: Path) -> None:
    one, four = (read_manifest(folder / name / "step-00000001").files for name in ("alone", "replicate"))
    assert {**one, "state.json": None} == {**four, "state.json": None}, "only where it is from differs"


def test_a_rank_killed_while_saving_leaves_the_checkpoint_before(folder: Path) -> None:
    average = torch.zeros(5, dtype=torch.int64)
    into = {"model.w": torch.zeros(10, 3), "optimizer.w.step": torch.zeros(()), "optimizer.w.average": average}
    loaded = checkpoint.load_newest(folder / "killed", into, {}, {}, never)
    assert loaded is not None
    assert loaded.state == {"step": 1}
    assert into["optimizer.w.step"] == 1 == into["model.w"].mean()
    assert torch.equal(average, torch.arange(5)), "what is new since the save before is saved as well"
    assert [path.name for path in (folder / "killed").iterdir()] == ["step-00000001"]


if __name__ == "__main__":
    run(int(sys.argv[1]), Path(sys.argv[2]))
