"""Tokenizers that are read through a library have its ids, and say what cannot be known of them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from groundup.errors import DataError, UnsupportedError
from groundup.report.tokens import explain, token_lines
from groundup.tokenizer import formats
from groundup.tokenizer.tokenizer import Tokenizer

HARD = [
    "", " ", "a", "the king", "  two  blanks   before\ta tab \n\n\nlines \r\n end \n ", "don't DON'T 1234567 ½ ٣٤",
    "café cafe\u0301 ﬁne ß", "मराठी 漢字 ひらがな العربية", "👩‍👩‍👧 🧚🏽‍♀️", "<s></s><unk> and <|endoftext|>", 
    "▁under▁lines▁",
]  # fmt: skip


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, story_texts: list[str]) -> Path:
    """As Llama 2's: byte fallback, digits apart, text as it is; and a unigram one that normalises."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    like_llama = {
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    }
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(line for text in story_texts[:80] for line in text.splitlines() if line),
        model_prefix=str(folder / "tokenizer"),
        model_type=request.param,
        vocab_size=600 if request.param == "bpe" else 300,
        minloglevel=2,
        **(like_llama if request.param == "bpe" else {}),
    )
    return folder / "tokenizer.model"


def test_sentencepiece_models_have_the_librarys_ids(model: Path) -> None:
    import sentencepiece

    ours = Tokenizer.load(model)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert ours.vocab_size == theirs.GetPieceSize() == len(ours.tokens)
    assert (ours.opener, ours.closer) == (theirs.bos_id(), theirs.eos_id())
    for text in HARD:
        ids = ours.encode(text)
        assert ids == theirs.EncodeAsIds(text) == ours.encode(text.encode())
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.DecodeIds(ids)
    if theirs.IsByte(5):
        assert all(ours.decode(ours.encode(text)) == text for text in HARD if "▁" not in text)
    assert ours.encode_batch(HARD) == [ours.encode(text) for text in HARD]
    assert [piece.raw.decode() for piece in ours.explain("the king") if piece.ids] == [
        theirs.IdToPiece(i).replace("▁", " ").removeprefix(" " if n == 0 else "")
        for n, i in enumerate(theirs.EncodeAsIds("the king"))
    ]
    assert ours.encode("fox</s>the", frozenset({"</s>"})) == [*ours.encode("fox"), theirs.eos_id(), *ours.encode("the")]
    assert theirs.eos_id() not in ours.encode("fox</s>the")


def test_sentencepiece_models_come_back_the_same_and_go_nowhere_else(model: Path, tmp_path: Path) -> None:
    ours = Tokenizer.load(model)
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.digest, again.tokens) == (ours.digest, ours.tokens)
    for name in ("tokenizer.json", "mine.tiktoken"):
        with pytest.raises(UnsupportedError, match="tokenizer of sentencepiece stays one"):
            ours.save(tmp_path / name)


def test_a_damaged_sentencepiece_model_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"tokenizer\.model is damaged, or no SentencePiece model"):
        Tokenizer.load(tmp_path)


def test_without_its_library_a_sentencepiece_model_names_the_extra(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'groundup\[sentencepiece\]'"):
        Tokenizer.load(model)


# Hugging Face's


@pytest.fixture(scope="module")
def byte_fallback(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as transformers writes it: a tokenizer.json of its own kind."""
    import transformers

    folder = tmp_path_factory.mktemp("hugging-face")
    table = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (model.parent / "tokenizer_config.json").write_text(json.dumps(table))
    transformers.AutoTokenizer.from_pretrained(model.parent).save_pretrained(folder)
    (model.parent / "tokenizer_config.json").unlink()
    return folder / "tokenizer.json"


def test_a_tokenizer_json_that_is_not_byte_level_has_its_librarys_ids(byte_fallback: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError):
        formats.read(byte_fallback)
    ours = Tokenizer.load(byte_fallback)
    theirs = tokenizers.Tokenizer.from_file(str(byte_fallback))
    for text in HARD:
        if "</s>" not in text:
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
            assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text))
    assert not set(ours.encode("fox</s>the")) & set(ours.special.values()), (
        "special tokens are never read out of a text"
    )
    assert ours.special["</s>"] in ours.encode("fox</s>the", frozenset({"</s>"}))
    assert (ours.opener, ours.closer) == (ours.special["<s>"], ours.special["</s>"])
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.digest, again.encode("the king")) == (ours.digest, ours.encode("the king"))


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}]}},
        {"added_tokens": [{"id": 320, "content": "<x>", "lstrip": True, "rstrip": False, "single_word": False,
                           "normalized": False, "special": False}]},
        {"normalizer": {"type": "Lowercase"}},
    ],
)  # fmt: skip
def test_byte_level_layouts_that_are_not_represented_have_the_librarys_ids(
    tokenizer: Tokenizer, tmp_path: Path, change: dict[str, Any]
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer.to_hugging_face(), **change}))
    ours = Tokenizer.load(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*HARD, "12 345 the  <x> King"]:
        if "<|" not in text:
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_without_its_library_the_reason_and_the_extra_are_named(
    byte_fallback: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        UnsupportedError, match=r"tokenizer\.json: its model has .*pip install 'groundup\[tokenizers\]'"
    ):
        Tokenizer.load(byte_fallback)


def test_tokens_whose_texts_do_not_add_up_are_refused(tmp_path: Path) -> None:
    table = {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}, "decoder": {"type": "WordPiece"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(UnsupportedError, match="its model is WordPiece"):
        Tokenizer.load(tmp_path)


def test_how_a_library_cuts_is_shown_token_by_token(model: Path) -> None:
    ours = Tokenizer.load(model)
    explained = explain("x", ours, b"the king")
    assert explained.is_of_a_library
    assert "".join("".join(tokens) for tokens in token_lines(explained)) == "the king"
    assert ours.spelled(explained.ids[0]).startswith("▁")


def test_where_tokens_stand_and_what_comes_as_a_stream_are_those_of_the_text(model: Path) -> None:
    ours = Tokenizer.load(model)
    text = "the old king said"
    ids = ours.encode(text)
    assert "".join(ours.decode_stream(ids)) == ours.decode(ids) == text
    places = ours.offsets(text, ids)
    assert places[0, 0] == 0
    assert places[-1, 1] == len(text)
    assert "".join(text[first:last] for first, last in places) == text
    assert not ours.warm_up(), "there is nothing to load"


def test_ids_with_gaps_are_refused(byte_fallback: Path, tmp_path: Path) -> None:
    table = json.loads(byte_fallback.read_text("utf-8"))
    last = max(table["model"]["vocab"], key=lambda piece: table["model"]["vocab"][piece])
    table["model"]["vocab"][last] += 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(UnsupportedError, match="its ids have gaps: 5 of"):
        Tokenizer.load(tmp_path)
