"""Tokenizers side by side: counts worked by hand, and those of tiktoken; what is claimed is what was counted."""

import json
import lzma
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from tiktoken.load import load_tiktoken_bpe

from groundup.errors import DataError, SettingsError
from groundup.evals import tokenizers as comparing
from groundup.evals.statistics import interval, ratio
from groundup.evals.tokenizers import compare, labels
from groundup.report.tokenizers import verdicts
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.split import PATTERNS
from groundup.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def low() -> Tokenizer:
    """Knows `low`, ` low`, and the letters."""
    return Tokenizer.learn(["low low low low"], vocab_size=320)


@pytest.fixture(scope="module")
def letters(low: Tokenizer) -> Tokenizer:
    return Tokenizer.of_merges([], "gpt2")


def group(found: comparing.Comparison, name: str) -> comparing.Group:
    return next(each for each in found.groups if each.name == name)


def test_counts_are_those_worked_by_hand(low: Tokenizer, letters: Tokenizer, tmp_path: Path) -> None:
    """`low low é low` is low, ␣low, ␣, two bytes of é, ␣low: six tokens of thirteen letters in fourteen bytes."""
    (tmp_path / "a.txt").write_text("low low é low")
    found = compare({"low": low, "letters": letters}, [str(tmp_path / "a.txt")])
    (whole,) = found.groups
    assert (whole.documents, whole.bytes, whole.characters, whole.words) == (1, 14, 13, 4)
    ours, plain = whole.by
    assert (ours.tokens, plain.tokens) == (6, 14)
    assert ours.bytes_per_token == 14 / 6 and ours.characters_per_token == 13 / 6 and ours.tokens_per_word == 1.5
    assert ours.whole_words == 0.75 and plain.whole_words == 0
    assert ours.parts_of_characters == 2 / 6 and plain.parts_of_characters == 2 / 14
    # ␣low twice, four others once: 2 × log2(6/2) + 4 × log2(6/1) bits
    assert ours.entropy_bits_per_byte == pytest.approx((2 * math.log2(3) + 4 * math.log2(6)) / 14)
    assert ours.ids_used == 5 / (low.vocab_size - len(low.special))
    assert len(found.never_used[0]) == low.vocab_size - 5
    assert plain.ratio == 14 / 6 and plain.ratio_interval is None and ours.ratio == 1
    assert found.same_vocabulary == [True, False]
    json.dumps(asdict(found))
    assert "letters needs 133% more tokens (1 document: too few to rule out chance) than low on all texts." in verdicts(
        found
    )


def test_tokens_are_as_many_as_tiktoken_makes(shared: Path, low: Tokenizer, tmp_path: Path) -> None:
    folder = shared / "data" / "tokenizers"
    ranks = tmp_path / "r50k_base.tiktoken"
    ranks.write_bytes(lzma.decompress((folder / "r50k_base.tiktoken.xz").read_bytes()))
    theirs = tiktoken.Encoding(
        "gpt2", pat_str=PATTERNS["gpt2"], mergeable_ranks=load_tiktoken_bpe(str(ranks)), special_tokens={}
    )
    texts = [
        "Once upon a time, 1234 foxes.",
        "Жила-была лиса. " * 9,
        "むかしむかし、あるところに",
        "<|endoftext|> \n\n a",
    ]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    found = compare({"low": low, "gpt2": Tokenizer.load(folder / "gpt2")}, [str(tmp_path)])
    used = Counter(i for text in texts for i in theirs.encode_ordinary(text))
    fact = found.groups[0].by[1]
    assert fact.tokens == used.total()
    assert fact.ids_used == len(used) / 50256
    assert set(found.never_used[1]) == set(range(50257)) - used.keys()
    cyrillic = group(found, "Cyrillic").by[1]
    assert cyrillic.tokens == len(theirs.encode_ordinary(texts[1]))
    parts = sum(b"\xef\xbf\xbd" in theirs.decode([i]).encode() for i in theirs.encode_ordinary(texts[1]))
    assert cyrillic.parts_of_characters == parts / cyrillic.tokens


def test_files_and_scripts_are_groups_and_add_up(low: Tokenizer, letters: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_text("low lower lowest")
    (tmp_path / "rest").mkdir()
    (tmp_path / "rest" / "ru.txt").write_text("Жила-была лиса")
    (tmp_path / "rest" / "ja.txt").write_text("むかし漢字")
    (tmp_path / "rest" / "zh.txt").write_text("漢字漢字")
    (tmp_path / "rest" / "blank.txt").write_text(" \n")
    (tmp_path / "rest" / "broken.txt").write_bytes(b"low \xff")
    sources = [str(tmp_path / "latin.txt"), str(tmp_path / "rest")]
    found = compare({"low": low, "letters": letters}, sources)
    names = [each.name for each in found.groups]
    assert names[0] == "all texts" and set(names[1:3]) == set(sources)
    assert set(names[3:]) == {"Latin", "Cyrillic", "Japanese", "Han"}
    for kind in ("source", "script"):
        parts = [each for each in found.groups if each.kind == kind]
        for key in ("documents", "bytes", "characters", "words"):
            assert sum(getattr(each, key) for each in parts) == getattr(found.groups[0], key)
        assert sum(each.by[0].tokens for each in parts) == found.groups[0].by[0].tokens
    assert group(found, "Han").by[0].tokens_per_word is None  # no spaces between words: nothing is said
    assert group(found, "Han").by[0].parts_of_characters == 1
    assert group(found, "Cyrillic").by[0].tokens_per_word is not None
    assert list(found.left_out.values()) == [1]
    said = " ".join(verdicts(found))
    assert "low hardly knows" in said and "Han" in said and "Latin" not in said.split("hardly knows")[1]
    assert f"left out: 1 × {tmp_path / 'rest'}: not utf-8" in said
    head, *rows = found.group_rows
    assert [row[0] for row in rows] == names and len(head) == len(rows[0]) == 6
    facts = {label: shown for label, *shown in found.fact_rows(found.groups[0])}
    assert facts["ids"] == [f"{low.vocab_size}", f"{letters.vocab_size}"]
    assert facts["bytes a token"] == [f"{counted.bytes_per_token:.3f}" for counted in found.groups[0].by]


def test_the_interval_is_that_of_the_linearised_error_where_documents_are_many() -> None:
    random = np.random.default_rng(1)
    below = random.integers(50, 500, 800)
    above = (below * random.normal(0.8, 0.1, 800)).astype(np.int64)
    value, error = ratio(above.astype(np.float64), below)
    ends = interval(above, below)
    assert ends is not None and ends == interval(above, below)
    assert ends == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.15 * error)
    assert interval(above[:9], below[:9]) is None
    assert interval(below, below) == (1.0, 1.0)


def test_a_difference_that_may_be_chance_is_not_claimed(tmp_path: Path) -> None:
    texts = ["ab ab ab ab ab", "cd cd cd cd cd"] * 10
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    one = Tokenizer.learn(["ab ab"], vocab_size=320)
    other = Tokenizer.learn(["cd cd"], vocab_size=320)
    found = compare({"one": one, "other": other}, [str(tmp_path / "texts.jsonl")])
    (said,) = verdicts(found)
    assert said.startswith("other needs as many tokens, as far as these texts can tell (95% interval of the ratio")
    ends = found.groups[0].by[1].ratio_interval
    assert ends is not None
    low, high = ends
    assert low < 1 < high


def test_the_same_vocabulary_is_told_with_how_often_ids_agree(low: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "low low"}\n{"text": "1 low 234"}')
    twin = Tokenizer(
        ByteLevel(low.tokens, low.rules.pairs, low.special, r"\S")
    )  # cuts each character off, so no merge is used
    found = compare({"low": low, "same": low, "twin": twin}, [str(tmp_path / "texts.jsonl")])
    assert found.same_ids == [1, 1, 0] and found.same_vocabulary == [True, True, True]
    assert verdicts(found)[:2] == [
        "same and low have the same vocabulary, and give the same ids on every document.",
        "twin and low have the same vocabulary, and give the same ids on 0.0% of the documents.",
    ]


def test_labels_are_short_while_they_tell_apart(tmp_path: Path) -> None:
    assert labels([Path("runs/a/tokenizer"), Path("b/tokenizer.json"), Path("gpt2")]) == ["a", "b", "gpt2"]
    assert labels([Path("x/a"), Path("y/a")]) == ["x/a", "y/a"]


def test_long_sources_are_cut_and_told(
    low: Tokenizer, letters: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "MOST_BYTES", 20)
    monkeypatch.setattr(comparing, "BATCH_BYTES", 15)
    (tmp_path / "t.jsonl").write_text("\n".join('{"text": "low lower low"}' for _ in range(9)))
    found = compare({"low": low, "letters": letters}, [str(tmp_path / "t.jsonl")])
    assert found.groups[0].documents == 2
    assert f"{tmp_path / 't.jsonl'}: only the first 0 MB were read." in verdicts(found)


def test_what_cannot_be_compared_is_refused(low: Tokenizer, letters: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nothing to compare gpt2 with: name two or more different tokenizers"):
        labels([Path("gpt2")])
    with pytest.raises(SettingsError, match="nothing to compare gpt2 with"):
        labels([Path("gpt2"), Path("gpt2")])
    both = {"low": low, "letters": letters}
    with pytest.raises(SettingsError, match="name texts to compare them on: --text FILE"):
        compare(both, [])
    with pytest.raises(DataError, match="source gone.txt is missing"):
        compare(both, ["gone.txt"])
    (tmp_path / "blank.txt").write_text(" \n ")
    with pytest.raises(DataError, match="blank.txt has no text to compare on. Left out: nothing"):
        compare(both, [str(tmp_path / "blank.txt")])
