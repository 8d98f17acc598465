"""Checkpoints: what is saved is what is loaded; damage is passed over, and said."""

import shutil
from pathlib import Path

import pytest
import torch

from groundup import checkpoint
from groundup.errors import DataError, ResourceError
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.optim.optimizer import make_optimizer
from groundup.optim.precision import Masters
from groundup.optim.settings import AdamW


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


def same(one: tuple[Masters, torch.optim.Optimizer], two: tuple[Masters, torch.optim.Optimizer]) -> bool:
    first, second = (checkpoint.tensors_of(masters.copies, optimizer) for masters, optimizer in (one, two))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def never(directory: Path, why: str) -> None:
    raise AssertionError(f"{directory} was refused: {why}")


def save_three(folder: Path, config: ModelConfig) -> list[tuple[Masters, torch.optim.Optimizer]]:
    made = []
    for number in (1, 2, 3):
        masters, optimizer = trained(config, seed=number)
        checkpoint.save(folder, masters.copies, optimizer, {"step": number * 10, "tokens": number}, {}, {}, keep=2)
        made.append((masters, optimizer))
    return made


def test_everything_comes_back_bit_for_bit(tmp_path: Path, config: ModelConfig) -> None:
    made = save_three(tmp_path, config)
    fresh = trained(config, seed=9, steps=0)
    state = checkpoint.load_newest(tmp_path, fresh[0].copies, fresh[1], {}, {}, never)
    assert state == {"step": 30, "tokens": 3}
    assert same(made[2], fresh)


def test_only_the_newest_are_kept(tmp_path: Path, llama: ModelConfig) -> None:
    save_three(tmp_path, llama)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-00000020", "step-00000030"]


def test_nothing_to_load_is_none(tmp_path: Path, llama: ModelConfig) -> None:
    fresh = trained(llama, steps=0)
    assert checkpoint.load_newest(tmp_path / "none", fresh[0].copies, fresh[1], {}, {}, never) is None


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, llama: ModelConfig, damage: object, name: str
) -> None:
    made = save_three(tmp_path, llama)
    damage(tmp_path / "step-00000030" / name)  # type: ignore[operator]
    refused = []
    fresh = trained(llama, seed=9, steps=0)
    state = checkpoint.load_newest(
        tmp_path, fresh[0].copies, fresh[1], {}, {}, lambda path, why: refused.append((path.name, why))
    )
    assert state is not None
    assert state["step"] == 20
    assert same(made[1], fresh)
    assert [name for name, _ in refused] == ["step-00000030"]
    flip(tmp_path / "step-00000020" / "state.json")
    with pytest.raises(DataError, match="none of the 1 checkpoints"):
        checkpoint.load_newest(tmp_path, fresh[0].copies, fresh[1], {}, {}, lambda path, why: None)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, llama: ModelConfig, gpt2: ModelConfig) -> None:
    save_three(tmp_path, llama)
    other = trained(gpt2, steps=0)
    why = []
    with pytest.raises(DataError, match="none of the 2"):
        checkpoint.load_newest(tmp_path, other[0].copies, other[1], {}, {}, lambda path, reason: why.append(reason))
    assert "does not fit this model" in why[0]


def test_a_checkpoint_of_a_run_with_another_tokenizer_is_refused_with_both_digests(
    tmp_path: Path, llama: ModelConfig
) -> None:
    masters, optimizer = trained(llama)
    settings = {"pretrain": {"seed": 1}}
    checkpoint.save(tmp_path, masters.copies, optimizer, {"step": 1}, settings, {"tokenizer": "9f3c1111aa"}, keep=2)
    for other, inputs, why in (
        (settings, {"tokenizer": "41d02222bb"}, "tokenizer 9f3c1111…, this run has 41d02222…"),
        ({"pretrain": {"seed": 2}}, {"tokenizer": "9f3c1111aa"}, "another pretrain.seed"),
    ):
        with pytest.raises(DataError, match=f"none of the 1 .* was written by a run with {why}"):
            checkpoint.load_newest(tmp_path, masters.copies, optimizer, other, inputs, lambda path, reason: None)


def test_a_checkpoint_holds_no_pickle(tmp_path: Path, llama: ModelConfig) -> None:
    save_three(tmp_path, llama)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert path.suffix in {".json", ".safetensors"}, path
            assert not path.read_bytes().startswith(b"\x80"), path


def test_a_full_disk_keeps_the_checkpoint_that_was_there(small_disk: Path, llama: ModelConfig) -> None:
    big = llama.model_copy(update={"d_model": 64, "d_ff": 128})
    masters, optimizer = trained(big)
    size = sum(tensor.nbytes for tensor in checkpoint.tensors_of(masters.copies, optimizer).values())
    assert 600_000 < size < 1_000_000, "one fits on the disk, two do not"
    checkpoint.save(small_disk, masters.copies, optimizer, {"step": 1}, {}, {}, keep=2)
    with pytest.raises(ResourceError, match="no room to write .*step-00000002"):
        checkpoint.save(small_disk, masters.copies, optimizer, {"step": 2}, {}, {}, keep=2)
    fresh = trained(big, seed=5, steps=0)
    state = checkpoint.load_newest(small_disk, fresh[0].copies, fresh[1], {}, {}, never)
    assert state == {"step": 1}
    shutil.rmtree(small_disk / "step-00000001")
