"""A tokenizer.json is read to the ids of Hugging Face's library, written back, and refused by name when damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings

from groundup.errors import DataError
from groundup.tokenizer import formats
from groundup.tokenizer.tokenizer import Tokenizer

from .layouts import BYTE_IDS, HARD, LAYOUTS, both, cut, in_turn, level, mixed, token


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tokenizer.json laid out as those of published models, a small vocabulary in it."""
    file = LAYOUTS[request.param]()
    if request.param == "an ordinary token added":
        text, i = next(
            (text, i)
            for text, i in file["model"]["vocab"].items()
            if text.isascii() and text.isalpha() and len(text) == 3
        )
        file["added_tokens"].insert(0, token(i, text, special=False))
    return file


@pytest.fixture(scope="module")
def pair(layout: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    return both(layout, tmp_path_factory.mktemp("file"))


def test_published_layouts_are_read_to_hugging_faces_ids(pair: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    ours, theirs = pair
    assert ours.vocab_size == theirs.get_vocab_size()
    for text in HARD:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text


@given(text=mixed)
@settings(max_examples=150)
def test_published_layouts_are_read_to_hugging_faces_ids_on_any_text(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str
) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_published_layouts_are_read_to_hugging_faces_ids_in_many_languages(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], universal: list[str]
) -> None:
    ours, theirs = pair
    for text, found in zip(universal, theirs.encode_batch(universal, add_special_tokens=False), strict=True):
        assert ours.encode(text) == found.ids, text[:80]


def test_allowed_special_tokens_are_those_of_hugging_face(layout: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both(layout, tmp_path, special_too=True)
    every = frozenset(ours.special)
    for text in (*HARD, "".join(ours.special), "x".join(ours.added) + "  " + " ".join(ours.special)):
        assert ours.encode(text, every) == theirs.encode(text, add_special_tokens=False).ids, text


def test_what_is_read_is_written_so_that_both_read_it_the_same(
    layout: dict[str, Any], pair: tuple[Tokenizer, tokenizers.Tokenizer], tmp_path: Path
) -> None:
    ours, theirs = pair
    again, their_again = both(ours.to_hugging_face(), tmp_path)
    for what in (
        "tokens",
        "pairs",
        "merges",
        "special",
        "added",
        "pattern",
        "normalizer",
        "normalized",
        "whole_pre_tokens",
    ):
        assert getattr(again.rules, what) == getattr(ours.rules, what), what
    assert again.digest == ours.digest
    for text in HARD:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert again.encode(text) == ids, text
        assert their_again.encode(text, add_special_tokens=False).ids == ids, text


def test_decoding_gives_back_the_text_in_the_form_it_is_brought_to(tmp_path: Path) -> None:
    ours, _ = both(LAYOUTS["qwen3"](), tmp_path)
    assert ours.decode(ours.encode("cafe\u0301")) == "café"
    assert ours.decode_bytes(ours.encode(b"cafe\xcc\x81 \xff<think>")) == "café ".encode() + b"\xff<think>"
    assert ours.encode(b"\xff<think>")[-1] == ours.added["<think>"]


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"model": {"type": "Unigram", "vocab": {}, "merges": []}}, "its model is Unigram"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "its pre-tokenizer is"),
        ({"pre_tokenizer": None}, "its pre-tokenizer is null"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "its pre-tokenizer is"),
        ({"pre_tokenizer": in_turn(cut("x"), cut("y"), level(False))}, "only splitting once"),
        ({"pre_tokenizer": in_turn(cut("x"), level(True))}, "only splitting once"),
        ({"pre_tokenizer": in_turn(level(True), cut("x"))}, "only splitting once"),
        (
            {"pre_tokenizer": in_turn({"type": "Digits", "individual_digits": False}, level(True))},
            "only splitting once",
        ),
        ({"pre_tokenizer": in_turn(cut("x", "MergedWithNext"), level(False))}, "behavior MergedWithNext"),
        ({"pre_tokenizer": in_turn(cut("x", "Removed", True), level(False))}, "behavior Removed, inverted: True"),
        ({"pre_tokenizer": in_turn(cut("^x"), level(False))}, r"\^, which other libraries read differently"),
        ({"pre_tokenizer": in_turn(cut("(x"), level(False))}, "is not a regular expression"),
        ({"normalizer": {"type": "Lowercase"}}, r"it has a normalizer \(Lowercase\)"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}}, r"\(Strip\)"),
        ({"added_tokens": [{**token(320, "<x>"), "lstrip": True}]}, "'<x>' has lstrip = true"),
        ({"added_tokens": [{**token(320, "<x>"), "single_word": True}]}, "'<x>' has single_word = true"),
        ({"added_tokens": [token(64, "a")]}, "'a' is a special token, but a byte makes it"),
        ({"added_tokens": [token(BYTE_IDS["é"], "é", special=False)]}, "'é' is an added token, but"),
        ({"added_tokens": [token(9999, "<x>")]}, "its ids have gaps"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "cannot|is not a tokenizer"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": True}}, "byte_fallback = True"),
    ],
)
def test_tokenizers_that_cannot_be_represented_are_refused_by_name(
    tokenizer: Tokenizer, tmp_path: Path, change: dict[str, Any], answer: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer.to_hugging_face(), **change}))
    with pytest.raises(DataError, match=answer) as caught:
        formats.read(tmp_path / "tokenizer.json")
    assert "tokenizer.json" in str(caught.value)


DAMAGE = {
    "a merge twice": (
        lambda model: model["merges"].insert(5, model["merges"][1]),
        "merge 6 joins .* again, as merge 2",
    ),
    "a part that is missing": (lambda model: model["merges"].insert(1, ["h", "zz"]), "merge 2 joins 'h' and 'zz', but"),
    "a result that is missing": (lambda model: model["merges"].insert(1, ["q", "q"]), "what it makes, 'qq' is not in"),
    "three parts": (lambda model: model["merges"].insert(1, "a b c"), "merge 2, 'a b c', should be two parts"),
    "merges cut short": (lambda model: model["merges"].pop(), "the list of merges is cut short"),
    "an id twice": (lambda model: model["vocab"].update(a=5), "id 5 is given to both"),
    "an id left out": (
        lambda model: model.update(vocab={name: i + (i > 9) for name, i in model["vocab"].items()}),
        "id 3[0-9]+ is given|its ids have gaps: .* none has id 10",
    ),
    "an id that is none": (lambda model: model["vocab"].update(a=-1), "the id of 'a' is -1"),
    "an id that is a word": (lambda model: model["vocab"].update(a="1"), "the id of 'a' is '1'"),
    "a byte left out": (
        lambda model: model.update(vocab={("漢" if name == "a" else name): i for name, i in model["vocab"].items()}),
        "'漢' .* stands for no byte",
    ),
    "no vocabulary": (lambda model: model.pop("vocab"), "it has no 'vocab'"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_vocabulary_is_refused_naming_merge_or_id(tokenizer: Tokenizer, tmp_path: Path, what: str) -> None:
    file = json.loads(json.dumps(tokenizer.to_hugging_face()))
    change, answer = DAMAGE[what]
    change(file["model"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(DataError, match=answer) as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.json" in str(caught.value)
