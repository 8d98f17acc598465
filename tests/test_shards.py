"""Shards: the stream holds every document, and damage is refused."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundup.artifacts import making, verify
from groundup.corpus.document import SPLITS, Document, DocumentWriter
from groundup.errors import DamagedError, SettingsError
from groundup.shards import check_ids, open_split, pack, refuse_another_tokenizer, stream_of
from groundup.tokenizer.declared import Roles
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.train.loader import cut

TEXTS = ["the king", "and the little fox", "", "über den hügel"]


@pytest.fixture
def packed(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    for split, texts in {"train": TEXTS, "validation": TEXTS[:1], "test": TEXTS[1:2]}.items():
        writer = DocumentWriter(tmp_path / "corpus" / f"{split}.parquet")
        for text in texts:
            writer.write(Document(text, "here"))
        writer.close()
    with making(tmp_path / "shards", "shards", {}, {}) as draft:
        pack(tmp_path / "corpus", tokenizer, draft)
    return tmp_path / "shards"


def test_each_document_is_opened_by_end_of_text_and_the_stream_is_closed_by_one(
    packed: Path, tokenizer: Tokenizer
) -> None:
    tokens = open_split(packed, "train")
    assert tokens.ids.dtype == np.uint16
    for number, text in enumerate(TEXTS):
        document = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]]
        assert document.tolist() == [tokenizer.opener, *tokenizer.encode(text)]
        assert tokens.n_bytes[number] == len(text.encode())
    assert tokens.ids[tokens.offsets[-1] :].tolist() == [tokenizer.opener]


def test_a_stream_in_memory_is_the_packed_one(packed: Path, tokenizer: Tokenizer) -> None:
    packed_stream = open_split(packed, "train")
    stream = stream_of([(text, len(text.encode())) for text in TEXTS], tokenizer)
    assert stream.ids.tolist() == packed_stream.ids.tolist()
    assert stream.offsets.tolist() == packed_stream.offsets.tolist()


def test_statistics_count_what_is_there(packed: Path) -> None:
    statistics = verify(packed, "shards").statistics
    tokens = open_split(packed, "train")
    assert statistics["train"] == {
        "documents": len(TEXTS),
        "tokens": len(tokens.ids),
        "bytes": sum(len(text.encode()) for text in TEXTS),
    }


def _save(path: Path, numbers: object) -> None:
    np.save(path, np.asarray(numbers), allow_pickle=True)


def _flip(path: Path, place: int, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut by two ids": (
        lambda shards: _save(shards / "train.npy", np.load(shards / "train.npy")[:-2]),
        r"train\.npy has .* ids, but train\.offsets\.npy and train\.bytes\.npy name 4 documents and",
    ),
    "cut in the middle of an id": (
        lambda shards: (shards / "train.npy").write_bytes((shards / "train.npy").read_bytes()[:-7]),
        r"train\.npy is damaged",
    ),
    "cut in its header": (
        lambda shards: (shards / "train.npy").write_bytes((shards / "train.npy").read_bytes()[:20]),
        r"train\.npy is damaged",
    ),
    "of no length": (
        lambda shards: (shards / "train.npy").write_bytes(b""),
        r"train\.npy is damaged: the file is empty",
    ),
    "gone": (lambda shards: (shards / "train.offsets.npy").unlink(), r"train\.offsets\.npy is missing"),
    "of another type": (
        lambda shards: _save(shards / "train.npy", np.load(shards / "train.npy").astype(np.float32)),
        r"train\.npy is 1-dimensional float32; it should be a row of uint16 or uint32",
    ),
    "a square": (
        lambda shards: _save(shards / "train.bytes.npy", np.zeros((2, 2), np.int64)),
        "is 2-dimensional int64",
    ),
    "a pickle": (lambda shards: _save(shards / "train.npy", np.array([{"a": 1}], object)), r"train\.npy is damaged"),
    "offsets that go back": (
        lambda shards: _save(shards / "train.offsets.npy", np.load(shards / "train.offsets.npy")[[0, 2, 1, 3, 4]]),
        "the three do not fit each other",
    ),
    "an id too large": (
        lambda shards: _flip(shards / "train.npy", 128 + 2 * 3 + 1, 7),
        r"train\.npy holds id 3[23],[0-9]+ at position 3; the vocabulary has 320 ids, 0 to 319",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_shards_are_refused_naming_file_and_remedy(packed: Path, what: str) -> None:
    damage, answer = DAMAGE[what]
    damage(packed)
    with pytest.raises(DamagedError, match=answer) as caught:
        open_split(packed, "train", 320)
    assert "groundup pack RECIPE --replace" in str(caught.value)
    with pytest.raises(DamagedError, match=r"is damaged: .*train\."):
        verify(packed, "shards")


def test_any_flipped_bit_names_its_file(packed: Path) -> None:
    for path in sorted(packed.glob("*.npy")):
        _flip(path, path.stat().st_size - 3, 0)
        with pytest.raises(DamagedError, match=rf"the sha256 of {path.name} is not"):
            verify(packed, "shards")
        _flip(path, path.stat().st_size - 3, 0)
    verify(packed, "shards")


def test_the_first_wrong_id_is_found_in_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.shards.IDS_AT_ONCE", 10)
    for place in range(25):
        ids = np.zeros(25, np.uint16)
        ids[place:] = 7
        check_ids(tmp_path, ids, 8)
        with pytest.raises(DamagedError, match=f"holds id 7 at position {place};"):
            check_ids(tmp_path, ids, 7)


def test_shards_of_another_tokenizer_are_refused_with_both_digests(tmp_path: Path) -> None:
    with making(tmp_path / "shards", "shards", {}, {"tokenizer": "9f3c1111aaaa"}):
        pass
    refuse_another_tokenizer(tmp_path / "shards", "9f3c1111aaaa", "it")
    with pytest.raises(SettingsError, match=r"shards was packed with tokenizer 9f3c1111…, it has 41d02222…"):
        refuse_another_tokenizer(tmp_path / "shards", "41d02222bbbb", "it")


def test_a_closer_of_its_own_ends_each_document_and_is_followed_by_no_target(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    closing = tokenizer.extended(special=["</s>"])
    closing.roles = Roles(closing.opener, closing.special["</s>"], frozenset({closing.special["</s>"]}))
    texts = ["the king", "a fox", "an old hill"]
    corpus = tmp_path / "corpus"
    for split in SPLITS:
        writer = DocumentWriter(corpus / f"{split}.parquet")
        for text in texts:
            writer.write(Document(text, "x"))
        writer.close()
    with making(tmp_path / "shards", "shards", {}, {}) as draft:
        pack(corpus, closing, draft)
    packed = open_split(tmp_path / "shards", "train")
    expected = [[closing.opener, *closing.encode(text), closing.closer] for text in texts]
    assert packed.ids.tolist() == [*itertools.chain(*expected), closing.opener]
    assert packed.closer == closing.closer
    assert packed.ids.tolist() == stream_of([(text, len(text)) for text in texts], closing).ids.tolist()
    batch = cut(packed, np.array([0]), len(packed.ids) - 1)
    assert packed.targets(3) == int(batch.weight.sum()) == sum(len(document) - 1 for document in expected)
    assert closing.opener not in batch.targets[batch.weight > 0].tolist()
    first, last = int(packed.offsets[1]), int(packed.offsets[2])
    assert packed.text_ids(first, last).tolist() == closing.encode(texts[1])


def test_optimised_python_packs_the_same_shards(packed: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Nothing that has to be done stands in an assert, which `python -O` leaves out."""
    tokenizer.save(tmp_path / "tokenizer.json")
    code = (
        "import sys; from pathlib import Path\n"
        "from groundup.artifacts import making\n"
        "from groundup.shards import pack\n"
        "from groundup.tokenizer.tokenizer import Tokenizer\n"
        "home = Path(sys.argv[1])\n"
        "with making(home / 'again', 'shards', {}, {}) as draft:\n"
        "    pack(home / 'corpus', Tokenizer.load(home / 'tokenizer.json'), draft)\n"
    )
    subprocess.run([sys.executable, "-O", "-c", code, tmp_path], check=True)
    assert verify(tmp_path / "again").files == verify(packed).files
