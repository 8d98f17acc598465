"""Duplicates, as a corpus stage asks for them: over several parts, and beside plain twins."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.compiled.words import words_of
from groundup.corpus import duplicates
from groundup.corpus.duplicates import DROPS, Standing, clusters, decide, fingerprint, shared_passages
from groundup.corpus.settings import Duplicates, Exact, HeldOut, Lines, Near, Substrings

KINDS: dict[str, Duplicates] = {
    "exact": Exact(),
    "near": Near(),
    "lines": Lines(least_bytes=12),
    "paragraphs": Lines(unit="paragraph", least_bytes=12),
    "substrings": Substrings(words=4),
}


def split(texts: Sequence[str], cuts: Sequence[int]) -> list[list[str]]:
    borders = [0, *cuts, len(texts)]
    return [list(texts[begin:end]) for begin, end in zip(borders, borders[1:], strict=False)]


def drive(folder: Path, parts: list[list[str]], kinds: Sequence[Duplicates], memory: int = 1 << 26) -> Standing:
    """All that a corpus stage does: workers write a file for each part and kind, one process decides."""
    texts = [text for part in parts for text in part]
    standing = Standing([*map(len, parts)], np.array([len(text.encode()) for text in texts], np.int64))
    for number, kind in enumerate(kinds):
        files = [folder / f"{number}-{part}.npy" for part in range(len(parts))]
        for file, part in zip(files, parts, strict=True):
            np.save(file, fingerprint(part, kind))
        decide(files, kind, standing, memory, texts.__getitem__, folder)
    return standing


def cut(texts: Sequence[str], standing: Standing) -> list[str]:
    """What is left of each text."""
    left = []
    for number, text in enumerate(texts):
        raw = bytearray(text.encode())
        for begin, end in reversed(standing.cuts_in(number)):
            del raw[begin:end]
        left.append(raw.decode())
    return left


def test_of_copies_the_first_is_kept(tmp_path: Path) -> None:
    standing = drive(tmp_path, [["a", "b", ""], [], ["b", "a", "c", "a", ""]], [Exact()])
    assert standing.kept.tolist() == [0, 1, 2, 1, 0, 5, 0, 2]
    assert [(DROPS[why].rule if why else "") for why in standing.why] == [
        "",
        "",
        "",
        *["exact.copy"] * 2,
        "",
        *["exact.copy"] * 2,
    ]


TALE = " ".join(f"word{number % 89}x{number % 97}" for number in range(300))


def test_of_near_copies_the_longest_is_kept_and_then_the_first(tmp_path: Path) -> None:
    longest = TALE + " and so on and on"
    texts = [TALE.upper(), "something else altogether", longest, TALE, longest + "", "another thing", longest.title()]
    standing = drive(tmp_path, split(texts, [3]), [Exact(), Near()])
    assert standing.kept.tolist() == [2, 1, 2, 2, 2, 5, 2]
    assert [(DROPS[why].rule if why else "") for why in standing.why.tolist()] == [
        "near.copy", "", "", "near.copy", "exact.copy", "", "near.copy",
    ]  # fmt: skip
    [batch] = clusters(standing, lambda number: f"id{number}", texts.__getitem__, 5)
    rows = batch.to_pylist()
    assert [(row["id"], row["cluster"], row["kept"]) for row in rows] == [
        (f"id{number}", 2, "id2") for number in (2, 0, 3, 6)
    ]
    assert [row["similarity"] for row in rows] == pytest.approx([1.0, 296 / 301, 296 / 301, 1.0], abs=1e-6)


def test_a_copy_of_a_copy_leads_to_the_one_that_is_kept(tmp_path: Path) -> None:
    standing = drive(tmp_path, [[TALE, TALE, TALE + " the end of it"]], [Exact(), Near()])
    assert standing.kept.tolist() == [2, 2, 2]


def test_lines_that_an_earlier_document_has_are_taken_out(tmp_path: Path) -> None:
    texts = [
        "Subscribe to our letter\nOne.\nSubscribe to our letter\n",
        "Two.\nSubscribe to our letter\n\nSubscribe to our letter",
        "Subscribe to our letter",
        "short\nline with Ä and 漢字\n",
        "line with Ä and 漢字\nshort",
    ]
    standing = drive(tmp_path, split(texts, [1, 1, 4]), [Lines(least_bytes=12)])
    assert cut(texts, standing) == [texts[0], "Two.\n\n", "", texts[3], "short"], "the first document keeps its refrain"
    paragraphs = [
        "First here\nand there\n\nSecond one here",
        "Second one here\n\nThird",
        "and there, \n\nFirst here\nand there",
    ]
    standing = drive(tmp_path, split(paragraphs, [1]), [Lines(unit="paragraph", least_bytes=12)])
    assert cut(paragraphs, standing) == [paragraphs[0], "Third", "and there, \n\n"]


def test_what_was_dropped_takes_nothing_from_others(tmp_path: Path) -> None:
    """The only copy of a line is not lost with a document that goes for another reason."""
    texts = [TALE + "\n" + "a line that stands twice", TALE + " longer\n", "a line that stands twice"]
    standing = drive(tmp_path, [texts], [Near(), Lines(least_bytes=12)])
    assert standing.kept.tolist() == [0, 0, 2]
    assert cut(texts, standing)[2] == ""
    standing = drive(
        tmp_path, [[texts[0], texts[1] + " and longer still " * 3, texts[2]]], [Near(), Lines(least_bytes=12)]
    )
    assert standing.kept.tolist() == [1, 1, 2]
    assert cut(texts, standing)[2] == texts[2]


def plain_substrings(texts: Sequence[str], words: int) -> list[str]:
    """By a suffix array over the bytes of all texts: each window of words that a smaller place begins too is cut."""
    raws = [text.encode() for text in texts]
    whole = b"\xff".join(raws)
    suffixes = sorted(range(len(whole)), key=lambda at: whole[at:])
    rank = {at: number for number, at in enumerate(suffixes)}

    def was_there(at: int, length: int) -> bool:
        """Whether a neighbour in the suffix array, with as many bytes in common, stands earlier."""
        for step in (-1, 1):
            near = rank[at] + step
            while 0 <= near < len(suffixes) and whole[suffixes[near] :][:length] == whole[at:][:length]:
                if suffixes[near] < at:
                    return True
                near += step
        return False

    left, first = [], 0
    for text, raw in zip(texts, raws, strict=True):
        _, begins, ends = words_of(text)
        gone = np.zeros(len(raw), bool)
        for begin, end in zip(begins.tolist(), ends[words - 1 :].tolist(), strict=False):
            if was_there(first + begin, end - begin):
                gone[begin:end] = True
        left.append(bytes(np.frombuffer(raw, np.uint8)[~gone]).decode())
        first += len(raw) + 1
    return left


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "b, ", "Ä", "漢"]), max_size=14).map(" ".join), max_size=6), st.data()
)
def test_substrings_are_those_of_a_suffix_array(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    words = data.draw(st.integers(2, 5))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=2)))
    standing = drive(tmp_path_factory.mktemp("parts"), split(texts, cuts), [Substrings(words=words)])
    assert cut(texts, standing) == plain_substrings(texts, words)


def test_equal_hashes_of_other_bytes_cut_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a b c d e f g h", "a b c d x y z w", "k l m n o p q r"]

    def equal(raw: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        return np.arange(len(begins), dtype=np.uint64)

    monkeypatch.setattr(duplicates, "hash_spans", equal)
    standing = drive(tmp_path, [texts], [Substrings(words=4)])
    assert cut(texts, standing) == [texts[0], " x y z w", texts[2]]


@pytest.mark.parametrize("name", KINDS)
def test_nothing_depends_on_parts_or_memory(tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(3)
    lines = [" ".join(f"w{i}" for i in random.integers(0, 40, 8)) for _ in range(60)]
    texts = ["\n\n".join(lines[i] for i in random.integers(0, 60, 6)) for _ in range(70)]
    texts += [texts[i] for i in random.integers(0, 70, 10)]
    whole = drive(tmp_path, [texts], [KINDS[name]])
    assert (whole.why > 0).any() or whole.cuts.size
    for cuts, memory in (([1, 1, 40], 1 << 26), ([33, 80], 20_000)):
        standing = drive(tmp_path, split(texts, cuts), [KINDS[name]], memory)
        assert standing.kept.tolist() == whole.kept.tolist()
        assert standing.cuts.tolist() == whole.cuts.tolist()


# --- held-out documents ---


def share(
    folder: Path, parts: list[list[str]], held_out: Sequence[int], how: HeldOut, memory: int = 1 << 26
) -> duplicates.Shared:
    texts = [text for part in parts for text in part]
    standing = Standing([*map(len, parts)], np.array([len(text) for text in texts], np.int64))
    files = [folder / f"{part}.npy" for part in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        np.save(file, fingerprint(part, how))
    return shared_passages(files, standing, np.isin(np.arange(len(texts)), held_out), how, memory, folder)


def tale(seed: int, words: int = 400) -> str:
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(0, 3000, words))


def with_changes(text: str, every: int) -> str:
    return " ".join("changed" if number % every == every - 1 else word for number, word in enumerate(text.split()))


def test_training_documents_that_hold_held_out_passages_are_found(tmp_path: Path) -> None:
    texts = [tale(seed) for seed in range(40)]
    held_out = [3, 17, 30]
    texts[5] = with_changes(texts[3], 30)  # a copy, one word in thirty changed
    texts[8] = texts[8] + " " + texts[17] + " " + tale(100, 3000)  # all of one, within a far longer text
    texts[9] = " ".join(texts[30].split()[100:140]) + " " + tale(9)  # forty words of it
    texts[12] = texts[11]  # copies among training documents alone
    texts[20] = "A short one."
    texts[21] = texts[30].upper().replace(" ", ", ")
    for cuts, memory in (([], 1 << 26), ([4, 4, 19], 8_000)):
        shared = share(tmp_path, split(texts, cuts), held_out, HeldOut(), memory)
        assert np.flatnonzero(shared.copies).tolist() == [5, 8, 21]
        assert np.flatnonzero(shared.copied).tolist() == held_out
        assert np.flatnonzero(shared.share).tolist() == [5, 8, 9, 21], "forty words are noticed, and too few"
        assert shared.share[5] == pytest.approx((30 - 13) / 30, abs=0.15)
        assert shared.share[[8, 21]] == pytest.approx(1, abs=0.05)
        assert shared.share[9] < 0.2
        assert np.flatnonzero(shared.drops(HeldOut())).tolist() == [5, 8, 21]
        assert not shared.drops(HeldOut(action="report")).any()
        splits = {"validation": np.isin(np.arange(40), [3, 17]), "test": np.arange(40) == 30}
        assert shared.statistics(HeldOut(), splits) == {
            "words": 13,
            "copies": 3,
            "dropped": 3,
            "repetitive": False,
            "documents": {"validation": 2, "test": 1},
            "copied": {"validation": 2, "test": 1},
        }


def test_any_28_words_in_common_are_noticed(tmp_path: Path) -> None:
    for seed in range(30):
        common = tale(seed, 28)
        texts = [f"{tale(1000 + seed, 70)} {common} {tale(2000 + seed, 50)}", f"{tale(seed + 3000, seed)} {common}"]
        assert share(tmp_path, [texts], [0], HeldOut(words=13)).share[1] > 0, seed


def test_texts_that_repeat_each_other_are_no_leak(tmp_path: Path) -> None:
    """Where held-out documents are as alike as training ones, hardly any would be left."""
    texts = [tale(seed, 60) + " " + tale(1000, 200) for seed in range(40)]
    shared = share(tmp_path, [texts], range(0, 40, 4), HeldOut())
    assert shared.copies.sum() == 30
    assert shared.is_repetitive
    assert not shared.drops(HeldOut()).any()


def test_texts_without_common_passages_share_nothing(tmp_path: Path) -> None:
    shared = share(tmp_path, [[], [tale(1), "", tale(2), ""], ["one", "two words"]], [0, 1, 4], HeldOut())
    assert not shared.share.any()
    assert not shared.copied.any()
    assert not shared.is_repetitive
