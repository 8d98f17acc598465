"""Files of tensors: what they say is compared with the bytes that are there, and only named errors come of it."""

import random
import struct
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import groundup
from groundup.errors import DamagedError, GroundupError, UnsupportedError
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tensor_files import read_gguf_file, read_safetensors, write_gguf_file
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.gguf import write_gguf
from groundup.weights.write import save

ENTRIES: dict[str, Any] = {
    "general.architecture": "llama",
    "a.bool": True,
    "a.number": 7,
    "a.large": 1 << 40,
    "a.fraction": 1e-5,
    "a.texts": ["one", "", "naïve ▁"],
    "a.numbers": [3, -1],
    "a.empty": [],
}
TENSORS = {"one": ("F32", (3, 5)), "two": ("Q8_0", (2, 64)), "three": ("F16", (7,))}


def numbers(name: str) -> np.ndarray:
    sizes = {"one": 60, "two": 136, "three": 14}
    return np.frombuffer(random.Random(name).randbytes(sizes[name]), np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_gguf_file(tmp_path / "model.gguf", ENTRIES, TENSORS, numbers)
    return tmp_path / "model.gguf"


def test_what_is_written_is_read(file: Path) -> None:
    read = read_gguf_file(file)
    plain = {
        key: list(value) if not isinstance(value, str | int | float) else value for key, value in read.metadata.items()
    }
    assert plain == ENTRIES
    assert {name: (tensor.type, tensor.shape) for name, tensor in read.tensors.items()} == TENSORS
    assert all(np.array_equal(tensor.raw, numbers(name)) for name, tensor in read.tensors.items())
    assert [path.name for path in file.parent.iterdir()] == ["model.gguf"]


# --- GGUF: each fault by its name ---


def entry(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int = 0, at: int = 0, n_dimensions: int | None = None) -> bytes:
    n = len(shape) if n_dimensions is None else n_dimensions
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", n) + sizes + struct.pack("<IQ", kind, at)


def gguf_of(entries: list[bytes], tensors: list[bytes], data: int = 4096, version: int = 3) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries + tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


FAULTS: dict[str, tuple[bytes, type[GroundupError], str]] = {
    "empty": (b"", DamagedError, "it has 0 bytes"),
    "another magic": (b"GGML" + bytes(40), DamagedError, "does not begin with GGUF"),
    "version 1": (gguf_of([], [], version=1), UnsupportedError, "version 1"),
    "big-endian": (gguf_of([], [], version=3 << 24), UnsupportedError, "big-endian"),
    "tensor beyond the end": (
        gguf_of([], [tensor("w", [64, 64])]),
        DamagedError,
        r"w should end at byte 16,4\d\d of 4,1",
    ),
    "2**62 tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), DamagedError, "number of tensors is 4,611,6"),
    "2**40 entries": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), DamagedError, "number of entries is 1,099,5"),
    "bad alignment": (
        gguf_of([entry("general.alignment", 4, struct.pack("<I", 33))], [tensor("w", [4])]),
        DamagedError,
        "general.alignment is 33; it should be a power of two",
    ),
    "misaligned tensor": (
        gguf_of([], [tensor("w", [4], at=8)]),
        DamagedError,
        "w lies at 8, which is no multiple of 32",
    ),
    "duplicate key": (
        gguf_of([entry("a", 7, b"\1"), entry("a", 7, b"\0")], []),
        DamagedError,
        "is 'a'; each should have",
    ),
    "duplicate tensor": (gguf_of([], [tensor("w", [4]), tensor("w", [4], at=32)]), DamagedError, "is 'w'; each should"),
    "255 dimensions": (gguf_of([], [tensor("w", [4], n_dimensions=255)]), DamagedError, "w has 255 dimensions"),
    "no dimensions": (gguf_of([], [tensor("w", [])]), DamagedError, "w has 0 dimensions"),
    "a row of zero": (gguf_of([], [tensor("w", [0, 4])]), DamagedError, r"w has the shape \(4, 0\)"),
    "overflowing shape": (gguf_of([], [tensor("w", [1 << 62, 4])]), DamagedError, "w should end at byte 73,786,"),
    "half a block": (gguf_of([], [tensor("w", [33], kind=8)]), DamagedError, "rows in Q8_0 are multiples of 32"),
    "overlap": (
        gguf_of([], [tensor("a", [16]), tensor("b", [16], at=32)]),
        DamagedError,
        "b lies at 32, which is within another tensor",
    ),
    "huge text": (gguf_of([entry("a", 8, struct.pack("<Q", 1 << 40))], []), DamagedError, "a should have 1,099,5"),
    "huge name": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 50), DamagedError, "the name of an entry should have"),
    "huge list": (
        gguf_of([entry("a", 9, struct.pack("<IQ", 4, 1 << 61))], []),
        DamagedError,
        "a should have 9,223,372,036,854,775,808 bytes",
    ),
    "huge list of texts": (
        gguf_of([entry("a", 9, struct.pack("<IQ", 8, 1 << 60))], []),
        DamagedError,
        "a should have 1,152,921,504,606,846,976 texts, but the file ends after 5",
    ),
    "list of lists": (gguf_of([entry("a", 9, struct.pack("<IQ", 9, 1))], []), DamagedError, "of lists"),
    "unknown type of entry": (gguf_of([entry("a", 13, b"")], []), DamagedError, "a is of type 13, which there is not"),
    "unknown type of tensor": (gguf_of([], [tensor("w", [4], kind=99)]), DamagedError, "w is of type 99"),
    "Q4_K": (
        gguf_of([], [tensor("w", [256], kind=12)]),
        UnsupportedError,
        "w is in Q4_K, which is not read here: ask for",
    ),
    "a part": (gguf_of([entry("split.count", 2, b"\3\0")], []), UnsupportedError, "one of several files: join them"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_gguf_file_is_named(tmp_path: Path, fault: str) -> None:
    raw, error, named = FAULTS[fault]
    (tmp_path / "model.gguf").write_bytes(raw)
    with pytest.raises(error, match=named):
        read_gguf_file(tmp_path / "model.gguf")


def test_a_gguf_file_that_is_cut_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for size in range(len(whole) - 31):  # the last tensor's padding is not read
        file.write_bytes(whole[:size])
        with pytest.raises(DamagedError, match=r"model\.gguf is no whole GGUF file: "):
            read_gguf_file(file)


# --- safetensors: likewise ---


def safetensors_of(header: str, data: int = 64, length: int | None = None) -> bytes:
    raw = header.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


W = '{"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}'
UNSAFE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "header has 0 bytes; the file has 0"),
    "header beyond the end": (safetensors_of("{}", length=1 << 40), "header has 1,099,511,627,776 bytes"),
    "header of over 100 MB": (safetensors_of("{}", length=100_000_001), "header has 100,000,001 bytes"),
    "no JSON": (safetensors_of("{what"), "Expecting property name"),
    "nested too deep": (safetensors_of("[" * 100_000), "recursion"),
    "another shape of JSON": (safetensors_of("[1, 2]"), "no JSON object"),
    "cut": (safetensors_of(W + "}", data=60), r"lies at 0 to 64 of 60 bytes"),
    "wrong size": (safetensors_of(W.replace("[4, 4]", "[4, 5]") + "}"), r"F32 of shape \[4, 5\], lies at 0 to 64"),
    "overflowing shape": (safetensors_of(W.replace("[4, 4]", f"[{1 << 62}, {1 << 62}]") + "}"), "lies at 0 to 64"),
    "negative": (safetensors_of(W.replace("[0, 64]", "[-64, 0]") + "}"), "should be whole numbers from 0"),
    "fraction": (safetensors_of(W.replace("[4, 4]", "[4.0, 4]") + "}"), "should be whole numbers from 0"),
    "unknown dtype": (safetensors_of(W.replace("F32", "F33") + "}"), "F33"),
    "duplicate name": (safetensors_of(W + W.replace("{", ",", 1) + "}"), "a name is there twice"),
    "overlap": (safetensors_of(W + ', "v": {"dtype": "U8", "shape": [2], "data_offsets": [63, 65]}}', data=65),
                "v lies within another tensor"),
    "100,000 tensors": (
        safetensors_of(
            "{" + ",".join(f'"{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(100_000)) + "}"
        ),
        "more than 65,536 tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", UNSAFE)
def test_a_fault_in_a_safetensors_file_is_named(tmp_path: Path, fault: str) -> None:
    raw, named = UNSAFE[fault]
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(DamagedError, match=f"model.safetensors is not a whole safetensors file: .*({named})"):
        read_safetensors(tmp_path / "model.safetensors")


def test_what_the_library_writes_is_read_alike(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.zeros(0, 2), "d": torch.tensor(True)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = read_safetensors(tmp_path / "x.safetensors")
    assert {name: each.shape for name, each in read.items()} == {name: tuple(t.shape) for name, t in tensors.items()}
    assert read["a"].raw.tobytes() == tensors["a"].numpy().tobytes()


# --- mutated headers ---

Mutation = Callable[[random.Random, bytearray, int], None]


def overwrite(rng: random.Random, raw: bytearray, at: int) -> None:
    raw[at] = rng.randrange(256)


def flip(rng: random.Random, raw: bytearray, at: int) -> None:
    raw[at] ^= 1 << rng.randrange(8)


def write_extreme(rng: random.Random, raw: bytearray, at: int) -> None:
    value = rng.choice([0, 1, 2, 8, 9, 12, 30, 255, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1, len(raw)])
    size = rng.choice([4, 8])
    raw[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def delete(rng: random.Random, raw: bytearray, at: int) -> None:
    del raw[at : at + rng.randrange(1, 20)]


def insert(rng: random.Random, raw: bytearray, at: int) -> None:
    raw[at:at] = rng.randbytes(rng.randrange(1, 20))


def repeat(rng: random.Random, raw: bytearray, at: int) -> None:
    size = rng.randrange(1, 64)
    raw[at : at + size] = raw[at // 2 : at // 2 + size]


def write_digits(rng: random.Random, raw: bytearray, at: int) -> None:
    raw[at : at + 3] = str(rng.choice([-1, 0, 64, 999, 10**12, 1 << 63])).encode()


def cut(rng: random.Random, raw: bytearray, at: int) -> None:
    del raw[rng.randrange(len(raw)) :]


MUTATIONS: tuple[Mutation, ...] = (overwrite, flip, write_extreme, delete, insert, repeat, write_digits, cut)


def mutants(whole: bytes, header: int, seed: int, count: int) -> Iterator[bytes]:
    """Files with one to four changes in the header, of so many bytes."""
    rng = random.Random(seed)
    for _ in range(count):
        raw = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            if len(raw) > header:
                rng.choice(MUTATIONS)(rng, raw, rng.randrange(header))
        yield bytes(raw)


def load_once(path: Path) -> tuple[str, int]:
    """The name of the error that came, or "none", and the most bytes that Python held at a time."""
    tracemalloc.start()
    try:
        groundup.load(path, device="cpu")
        outcome = "none"
    except GroundupError as error:
        outcome = type(error).__name__ if len(str(error)) < 2000 else "an endless message"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return outcome, peak


def load_all(path: Path, file: Path, mutated: Iterator[bytes]) -> dict[str, int]:
    """How often each error came; no other than ours may, nor may Python hold twice the file."""
    outcomes: dict[str, int] = {}
    for number, raw in enumerate(mutated):
        file.write_bytes(raw)
        outcome, peak = load_once(path)
        if peak >= 2 * FILE_BYTES:  # by the file, or by another thread of this process meanwhile
            peak = min(peak, *(load_once(path)[1] for _ in range(3)))
        assert peak < 2 * FILE_BYTES, (number, outcome)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


FILE_BYTES = 450_000  # of the whole files below, about


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [pytest.param(1, id="quick"), pytest.param(2, marks=pytest.mark.slow, id="10,000")])
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_mutated_headers_give_named_errors_or_a_model(tmp_path: Path, kind: str, seed: int) -> None:
    sizes = {"vocab_size": 320, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 128}
    config = ModelConfig.from_table({**sizes, "head": {"tied": False}})
    weights = {name: parameter.detach() for name, parameter in Transformer(config, seed=0).named_parameters()}
    tokenizer = Tokenizer.learn("low lower lowest", vocab_size=320)
    if kind == "gguf":
        path = file = tmp_path / "model.gguf"
        write_gguf(file, config, weights, tokenizer, kind="f32")
        header = file.stat().st_size - sum(each.raw.size for each in read_gguf_file(file).tensors.values())
    else:
        path, file = tmp_path, tmp_path / "model.safetensors"
        save(tmp_path, config, weights, tokenizer)
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    whole = file.read_bytes()
    assert len(whole) > FILE_BYTES
    groundup.load(path, device="cpu")  # imports what there is to import
    with warnings.catch_warnings():
        outcomes = load_all(path, file, mutants(whole, header, seed, 300 if seed == 1 else 10_000))
    assert "an endless message" not in outcomes
    assert outcomes["DamagedError"] > sum(outcomes.values()) // 2, outcomes
