"""Checkpoints: what is saved is what is loaded; damage is passed over, and said."""

import json
import random
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from groundup.artifacts import hold
from groundup.errors import DataError, ResourceError
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.masters import Masters
from groundup.optim.optimizer import make_optimizer
from groundup.optim.settings import AdamW
from groundup.train import checkpoint
from groundup.train.checkpoint import Kept, Saver
from groundup.train.preemption import AskedToStop
from groundup.weights.write import write_tensors


def trained(config: ModelConfig, seed: int = 0, steps: int = 2) -> tuple[Masters, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Transformer(config)
    masters = Masters(model, torch.bfloat16)
    optimizer = make_optimizer(masters.copies.items(), AdamW())
    for _ in range(steps):
        model(torch.randint(0, 97, (2, 8))).float().logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return masters, optimizer


def tensors(made: tuple[Masters, torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    masters, optimizer = made
    return checkpoint.tensors_of(masters.copies, optimizer)


def load(folder: Path, into: tuple[Masters, torch.optim.Optimizer], **more: Any) -> dict[str, Any] | None:
    """The state of the newest checkpoint, whose tensors are now in `into`."""
    given = {"settings": {}, "inputs": {}, "refused": never, **more}
    loaded = checkpoint.load_newest(folder, tensors(into), **given)
    return loaded.state if loaded else None


def same(one: tuple[Masters, torch.optim.Optimizer], two: tuple[Masters, torch.optim.Optimizer]) -> bool:
    first, second = tensors(one), tensors(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def never(directory: Path, why: str) -> None:
    raise AssertionError(f"{directory} was refused: {why}")


def save_three(folder: Path, config: ModelConfig) -> list[tuple[Masters, torch.optim.Optimizer]]:
    made = []
    for number in (1, 2, 3):
        made.append(trained(config, seed=number))
        checkpoint.save(folder, tensors(made[-1]), {"step": number * 10, "tokens": number}, {}, {})
    return made


def test_everything_comes_back_bit_for_bit(tmp_path: Path, config: ModelConfig) -> None:
    made = save_three(tmp_path, config)
    fresh = trained(config, seed=9, steps=0)
    assert load(tmp_path, fresh) == {"step": 30, "tokens": 3}
    assert same(made[2], fresh)


def test_weights_whose_state_would_be_lost_are_refused(llama: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(llama)
    optimizer = make_optimizer(model.named_parameters(), AdamW())
    named = dict(model.named_parameters())
    n_states = len(optimizer.state)
    with pytest.raises(ValueError, match=r"does not hold embed.weight, .* and 2. more; .*dict\(model.named_parameters"):
        checkpoint.tensors_of(model.state_dict(), optimizer)
    with pytest.raises(ValueError, match=r"does not hold further; "):
        checkpoint.tensors_of({**named, "further": torch.zeros(3)}, optimizer)
    assert len(optimizer.state) == n_states, "a look-up adds nothing"
    norm = named.pop("norm.weight")
    with pytest.raises(ValueError, match=r"holds tensors that have no name among the weights, of shape \(32,\)"):
        checkpoint.tensors_of(named, optimizer)
    stray = torch.zeros(7)
    optimizer.state[stray]["average"] = stray
    with pytest.raises(ValueError, match=r"of shape \(7,\)"):
        checkpoint.tensors_of({**named, "norm.weight": norm}, optimizer)


def test_a_torch_optimizers_state_is_taken_as_far_as_there_is_any() -> None:
    moved, frozen = torch.zeros(2, requires_grad=True), torch.zeros(3)
    optimizer = torch.optim.SGD([moved, frozen], lr=0.1, momentum=0.9)
    named = {"moved": moved, "frozen": frozen}
    assert set(checkpoint.tensors_of(named, optimizer)) == {"model.moved", "model.frozen"}
    moved.sum().backward()
    optimizer.step()
    assert torch.equal(checkpoint.tensors_of(named, optimizer)["optimizer.moved.momentum_buffer"], torch.ones(2))


def test_nothing_to_load_is_none(tmp_path: Path, llama: ModelConfig) -> None:
    fresh = trained(llama, steps=0)
    assert load(tmp_path / "none", fresh) is None


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.INDEX, "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, llama: ModelConfig, damage: object, name: str
) -> None:
    made = save_three(tmp_path, llama)
    damage(tmp_path / "step-00000030" / name)  # type: ignore[operator]
    refused = []
    fresh = trained(llama, seed=9, steps=0)
    assert load(tmp_path, fresh, refused=lambda path, why: refused.append(path.name)) == {"step": 20, "tokens": 2}
    assert same(made[1], fresh)
    assert refused == ["step-00000030"]
    for step in (10, 20):
        flip(tmp_path / f"step-{step:08d}" / "state.json")
    with pytest.raises(DataError, match="none of the 2 checkpoints"):
        load(tmp_path, fresh, refused=lambda path, why: None)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, llama: ModelConfig, gpt2: ModelConfig) -> None:
    save_three(tmp_path, llama)
    other = trained(gpt2, steps=0)
    why = []
    with pytest.raises(DataError, match="none of the 3"):
        load(tmp_path, other, refused=lambda path, reason: why.append(reason))
    assert "does not fit this model" in why[0]


def test_a_checkpoint_of_a_run_with_another_tokenizer_is_refused_with_both_digests(
    tmp_path: Path, llama: ModelConfig
) -> None:
    made = trained(llama)
    settings = {"pretrain": {"seed": 1}}
    checkpoint.save(tmp_path, tensors(made), {"step": 1}, settings, {"tokenizer": "9f3c1111aa"})
    for other, inputs, why in (
        (settings, {"tokenizer": "41d02222bb"}, "tokenizer 9f3c1111…, this run has 41d02222…"),
        ({"pretrain": {"seed": 2}}, {"tokenizer": "9f3c1111aa"}, "another pretrain.seed"),
    ):
        with pytest.raises(DataError, match=f"none of the 1 .* was written by a run with {why}"):
            load(tmp_path, made, settings=other, inputs=inputs, refused=lambda path, reason: None)


def test_a_checkpoint_holds_no_pickle(tmp_path: Path, llama: ModelConfig) -> None:
    save_three(tmp_path, llama)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert path.suffix in {".json", ".safetensors"}, path
            assert not path.read_bytes().startswith(b"\x80"), path


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_another_reader_finds_the_same_tensors(tmp_path: Path, config: ModelConfig) -> None:
    """The safetensors library's own, torch.distributed.checkpoint's, and as its index says."""
    made = save_three(tmp_path, config)
    read = load_file(tmp_path / "step-00000030" / checkpoint.WEIGHTS)
    meant = tensors(made[2])
    sharded = {name: torch.empty_like(tensor) for name, tensor in meant.items()}
    storage = HuggingFaceStorageReader(str(tmp_path / "step-00000030"))
    state_dict_loader.load(dict(sharded), storage_reader=storage, no_dist=True)
    assert all(torch.equal(sharded[name], meant[name]) for name in meant)
    assert read.keys() == meant.keys()
    assert all(torch.equal(read[name], meant[name]) for name in meant)
    index = json.loads((tmp_path / "step-00000030" / checkpoint.INDEX).read_text())
    assert index["weight_map"].keys() == meant.keys()


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_tensors_of_every_type_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    given = {name: torch.arange(count).reshape(shape).to(dtype) for name, count, shape in
             (("b", 6, (2, 3)), ("a", 1, ()), ("c", 5, (5,)), ("empty", 0, (0, 4)))}  # fmt: skip
    checkpoint.save(tmp_path, {**given, "other": torch.tensor([1.5])}, {"step": 1}, {}, {})
    read = {name: torch.empty_like(tensor) for name, tensor in given.items()}
    assert checkpoint.load_newest(tmp_path, read, {}, {}, never) is not None
    assert all(torch.equal(read[name], given[name]) for name in read)


def test_a_byte_flipped_anywhere_is_noticed(tmp_path: Path) -> None:
    """Fault C5, at 200 places of all files: the checkpoint is passed over, and the one before it loaded."""
    settings, inputs = {"model": {"d_model": 32}}, {"shards": "ab"}
    for step in (1, 2):
        given = {"model.w": torch.full((40,), float(step)), "optimizer.w.step": torch.tensor(float(step))}
        checkpoint.save(tmp_path, given, {"step": step, "tokens": 8}, settings, inputs, {"loss": 0.5})
    newest = tmp_path / "step-00000002"
    files = sorted(newest.iterdir())
    assert {path.name for path in files} == {checkpoint.WEIGHTS, checkpoint.INDEX, "state.json", "manifest.json"}
    draw = random.Random(0)
    for number in range(200):
        path = files[number % len(files)]
        whole = path.read_bytes()
        raw = bytearray(whole)
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
        into, refused = {"model.w": torch.zeros(40), "optimizer.w.step": torch.zeros(())}, []
        loaded = checkpoint.load_newest(tmp_path, into, settings, inputs, lambda path, why, to=refused: to.append(path))
        assert loaded is not None
        assert loaded.state["step"] == 1 == into["optimizer.w.step"] == into["model.w"].mean()
        assert refused == [newest]
        newest.with_name("step-00000002.refused").rename(newest)
        path.write_bytes(whole)


def test_a_signal_while_a_checkpoint_is_read_says_nothing_of_the_checkpoint(
    tmp_path: Path, llama: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise AskedToStop("SIGTERM")

    save_three(tmp_path, llama)
    monkeypatch.setattr(checkpoint, "read_pieces", interrupted)
    with pytest.raises(AskedToStop):
        load(tmp_path, trained(llama, steps=0))
    assert len(checkpoint.list_checkpoints(tmp_path)) == 3


def test_settings_that_may_change_are_told_and_others_refused(tmp_path: Path, llama: ModelConfig) -> None:
    made = trained(llama)
    before = {"pretrain": {"steps": 10, "seed": 1}}
    checkpoint.save(tmp_path, tensors(made), {"step": 1}, before, {})
    longer = {"pretrain": {"steps": 20, "seed": 1}}
    loaded = checkpoint.load_newest(tmp_path, tensors(made), longer, {}, never, lambda name: name == "pretrain.steps")
    assert loaded is not None
    assert loaded.changed == {"pretrain.steps": (10, 20)}
    other = {"pretrain": {"steps": 20, "seed": 2}}
    with pytest.raises(DataError, match="another pretrain.seed"):
        checkpoint.load_newest(
            tmp_path, tensors(made), other, {}, lambda path, why: None, lambda name: name == "pretrain.steps"
        )


def test_killed_while_a_step_was_written_anew_the_old_one_is_found(tmp_path: Path, llama: ModelConfig) -> None:
    made = save_three(tmp_path, llama)
    (tmp_path / "step-00000030").rename(tmp_path / ".step-00000030.old")  # and not yet renamed what replaces it
    (tmp_path / ".step-00000030.partial").mkdir()
    (tmp_path / "step-00000010").rename(tmp_path / ".step-00000010.removed")
    fresh = trained(llama, seed=9, steps=0)
    assert load(tmp_path, fresh) == {"step": 30, "tokens": 3}
    assert same(made[2], fresh)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000020", "step-00000030"]


class Told(list[tuple[str, dict[str, Any]]]):
    """Collects what a Saver tells."""

    def __call__(self, event: str, sentence: str, **details: Any) -> None:
        self.append((event, details))

    def events(self) -> list[tuple[str, int]]:
        return [(event, details["step"]) for event, details in self]


def saver(folder: Path, told: Told, *, newest: int = 2, failures: int = 3, **kept: Any) -> Saver:
    return Saver(folder, Kept(newest, **kept), {}, {}, most_failures=failures, tell=told)


def test_a_save_holds_what_was_there_when_it_was_asked_for(
    tmp_path: Path, llama: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training goes on while the thread writes; a second save waits for the first."""
    go_on = threading.Event()
    slow = slowed(monkeypatch, go_on)
    made, told = trained(llama), Told()
    meant = {name: tensor.clone() for name, tensor in tensors(made).items()}
    with saver(tmp_path, told) as writing:
        writing.save(tensors(made), {"step": 1}, {})
        assert slow.wait(600)
        for tensor in tensors(made).values():
            tensor.fill_(7)
        writing.poll()
        assert told == []
        wait = writing.wait
        monkeypatch.setattr(writing, "wait", lambda: (go_on.set(), wait()))  # the second save has come to wait
        writing.save(tensors(made), {"step": 2}, {"validation_bits_per_byte": 1.5})
        assert told.events() == [("saved", 1)]
    assert told.events() == [("saved", 1), ("saved", 2)]
    assert "waited_seconds" in told[1][1]
    first, second = (load_file(tmp_path / f"step-0000000{step}" / checkpoint.WEIGHTS) for step in (1, 2))
    assert all(torch.equal(first[name], meant[name]) for name in meant)
    assert all((tensor == 7).all() for tensor in second.values())
    assert checkpoint.bits_of(checkpoint.list_checkpoints(tmp_path)) == {1: None, 2: 1.5}
    assert not any(thread.name.startswith(checkpoint.THREAD) for thread in threading.enumerate()), (
        "nobody is left behind"
    )


def slowed(monkeypatch: pytest.MonkeyPatch, go_on: threading.Event) -> threading.Event:
    """Lets no save end before `go_on`; the event that is set when one has begun."""
    begun, save = threading.Event(), checkpoint.save

    def waiting(*arguments: Any) -> Path:
        begun.set()
        assert go_on.wait(600)
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", waiting)
    return begun


def test_what_a_process_killed_just_after_a_save_left_is_removed(tmp_path: Path, llama: ModelConfig) -> None:
    """The next process may have nothing left to save."""
    made = tensors(trained(llama))
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, made, {"step": step}, {}, {}, {})
    with saver(tmp_path, Told(), newest=2, every_steps=20):
        assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path)] == [20, 30, 40]
    with saver(tmp_path / "not yet", Told()):
        assert checkpoint.list_checkpoints(tmp_path / "not yet") == []


def test_what_ends_the_training_is_not_hidden_by_a_save_that_fails(tmp_path: Path, llama: ModelConfig) -> None:
    made, told = trained(llama), Told()
    (tmp_path / "step-00000001").mkdir()  # in the way
    with pytest.raises(KeyError, match="the news"), saver(tmp_path, told, failures=1) as writing:
        writing.save(tensors(made), {"step": 1}, {})
        raise KeyError("the news")
    assert told.events() == [("save failed", 1)]


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        ({"newest": 2}, [50, 60]),
        ({"newest": 1, "every_steps": 30}, [30, 60]),
        ({"newest": 1, "best": True}, [20, 60]),
        ({"newest": 2, "every_steps": 40, "best": True}, [20, 40, 50, 60]),
    ],
)
def test_those_stay_that_are_to_be_kept(tmp_path: Path, kept: dict[str, Any], left: list[int]) -> None:
    bits = {10: 2.0, 20: 1.5, 30: 1.9, 40: 1.8, 50: None, 60: 1.7}
    with saver(tmp_path, Told(), **kept) as writing:
        for step, value in bits.items():
            writing.save({"model.w": torch.ones(3)}, {"step": step}, {"validation_bits_per_byte": value})
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path)] == left


def test_a_checkpoint_that_is_being_read_is_not_removed(tmp_path: Path) -> None:
    """Fault C24."""
    with saver(tmp_path, Told(), newest=1) as writing:
        writing.save({"model.w": torch.ones(3)}, {"step": 1}, {})
        writing.wait()
        with hold(tmp_path / "step-00000001"):
            writing.save({"model.w": torch.ones(3)}, {"step": 2}, {})
            writing.wait()
            assert len(checkpoint.list_checkpoints(tmp_path)) == 2
        writing.save({"model.w": torch.ones(3)}, {"step": 3}, {})
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000003"]
    with pytest.raises(DataError, match="no manifest"), hold(tmp_path / "step-00000001"):
        pass


def test_what_does_not_read_back_as_it_was_meant_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a bit on the way: the old checkpoint stays, the new one is not there."""

    def losing(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        write_tensors(path, tensors, metadata)
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)

    told = Told()
    with saver(tmp_path, told, newest=1) as writing:
        writing.save({"model.w": torch.ones(3)}, {"step": 1}, {})
        writing.wait()
        monkeypatch.setattr(checkpoint, "write_tensors", losing)
        writing.save({"model.w": torch.ones(3)}, {"step": 2}, {})
        writing.wait()
    assert told.events() == [("saved", 1), ("save failed", 2)]
    assert "reads back as something else" in told[1][1]["why"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_full_disk_is_told_and_tried_again_until_the_bound(small_disk: Path, llama: ModelConfig) -> None:
    """Fault C8: the checkpoint that was there stays, and once there is room the next save succeeds."""
    made = trained(llama.model_copy(update={"d_model": 64, "d_ff": 128}))
    size = sum(tensor.nbytes for tensor in tensors(made).values())
    assert 600_000 < size < 1_000_000, "one fits on the disk, two do not"
    told = Told()
    given_up = "2 checkpoints in a row could not be written, the newest whole one is step-00000001: no room"
    with pytest.raises(ResourceError, match=given_up), saver(small_disk, told, failures=2) as writing:
        for step in (1, 2, 3):
            writing.save(tensors(made), {"step": step}, {})
    assert told.events() == [("saved", 1), ("save failed", 2), ("save failed", 3)]
    assert "no room to write" in told[1][1]["why"]
    assert load(small_disk, trained(llama.model_copy(update={"d_model": 64, "d_ff": 128}), steps=0)) == {"step": 1}
    with saver(small_disk, told, failures=2) as writing:
        writing.save(tensors(made), {"step": 4}, {})
        with pytest.raises(ResourceError, match="the last checkpoint could not be written"):
            writing.wait(last=True)
        subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
        writing.save(tensors(made), {"step": 5}, {})
        writing.wait(last=True)
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        writing.save(tensors(made), {"step": 6}, {})
        writing.wait()
    assert told.events()[3:] == [("save failed", 4), ("saved", 5), ("save failed", 6)]
    assert "Read-only" in told[-1][1]["why"]
    assert [path.name for path in checkpoint.list_checkpoints(small_disk)] == ["step-00000001", "step-00000005"]
