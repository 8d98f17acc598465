"""Rank files are read to tiktoken's ids, written back, and refused by line when damaged."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext import openai_public

from groundup.errors import DataError, SettingsError
from groundup.tokenizer.formats import convert
from groundup.tokenizer.ranks import published_ranks
from groundup.tokenizer.tokenizer import Tokenizer

from .layouts import HARD, both, mixed, ranks_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module", params=["r50k_base", "cl100k_base", "o200k_base"])
def published(request: pytest.FixtureRequest, shared: Path, folder: Path) -> tuple[Tokenizer, tiktoken.Encoding, Path]:
    """A published vocabulary, read here and by tiktoken, whose own module says how text is split."""
    path = shared / "data" / "tokenizers" / f"{request.param}.tiktoken.xz"
    plain = folder / f"{request.param}.tiktoken"
    plain.write_bytes(lzma.decompress(path.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: load_tiktoken_bpe(str(plain)))
        theirs = tiktoken.Encoding(**getattr(openai_public, request.param)())
    return Tokenizer.load(path), theirs, plain


def test_ranks_are_read_to_tiktokens_ids_in_many_languages(
    published: tuple[Tokenizer, tiktoken.Encoding, Path], universal: list[str]
) -> None:
    ours, theirs, _ = published
    assert ours.vocab_size == theirs.n_vocab
    for text in universal:
        assert ours.encode(text) == theirs.encode_ordinary(text), text[:80]


@given(raw=st.one_of(st.binary(max_size=120), mixed.map(str.encode), mixed.map(lambda t: t.encode() + b"\xff \n\xc3")))
@settings(max_examples=300)
def test_ranks_are_read_to_tiktokens_ids_on_any_bytes(
    published: tuple[Tokenizer, tiktoken.Encoding, Path], raw: bytes
) -> None:
    ours, theirs, _ = published
    ids = ours.encode(raw)
    assert ids == theirs._encode_bytes(raw)
    assert ours.decode_bytes(ids) == raw


def test_special_tokens_of_ranks_are_tiktokens(published: tuple[Tokenizer, tiktoken.Encoding, Path]) -> None:
    ours, theirs, _ = published
    assert theirs._special_tokens.items() <= ours.special.items()
    assert all(text == f"<|reserved_{i}|>" for text, i in ours.special.items() - theirs._special_tokens.items())
    text = "a".join(theirs.special_tokens_set)
    assert ours.encode(text, frozenset(theirs.special_tokens_set)) == theirs.encode(text, allowed_special="all")


def test_ranks_are_written_as_they_were_read(
    published: tuple[Tokenizer, tiktoken.Encoding, Path], tmp_path: Path
) -> None:
    ours, _, plain = published
    if ours.vocab_size > 60_000:
        pytest.skip("the smallest suffices: a minute otherwise")
    ours.save(tmp_path / plain.name)
    assert (tmp_path / plain.name).read_bytes() == plain.read_bytes()


@pytest.mark.slow
def test_ranks_become_a_tokenizer_json_and_gpt2s_files_of_the_same_ids(
    published: tuple[Tokenizer, tiktoken.Encoding, Path], tmp_path: Path
) -> None:
    ours, theirs, _ = published
    if ours.vocab_size > 60_000:
        pytest.skip("the smallest suffices")
    convert(ours.rules, ours.roles, tmp_path / "tokenizer.json")
    json_of, hugging = both(json.loads((tmp_path / "tokenizer.json").read_text()), tmp_path)
    convert(ours.rules, ours.roles, tmp_path / "vocab.bpe")
    bpe = Tokenizer.load(tmp_path / "vocab.bpe")
    for text in HARD:
        expected = theirs.encode_ordinary(text)
        assert json_of.encode(text) == hugging.encode(text).ids == bpe.encode(text) == expected


@pytest.mark.parametrize("name", sorted(set(published_ranks()) - {"qwen", "tokenizer", "gpt2"}))
def test_what_goes_with_published_ranks_is_what_tiktoken_says(name: str) -> None:
    called: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda _, expected_hash: called.append(expected_hash))
        theirs = getattr(openai_public, name)()
    known = published_ranks()[name]
    assert called == [known.sha256]
    reserved = {f"<|reserved_{i}|>": i for i in range(max(known.special.values()))}
    assert known.special.items() <= theirs["special_tokens"].items() <= {**reserved, **known.special}.items()


def test_ranks_of_an_unknown_name_ask_for_what_they_lack(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "mine.tiktoken.gz"
    path.write_bytes(gzip.compress(ranks_of(tokenizer)))
    with pytest.raises(SettingsError, match=r'none of gpt2, .*say so with split = "cl100k"'):
        Tokenizer.load(path)
    read = Tokenizer.load(path, pattern="gpt2", special=list(tokenizer.special))
    assert (read.tokens, read.special) == (tokenizer.tokens, tokenizer.special)
    for text in HARD:
        assert read.encode(text) == tokenizer.encode(text)
    with pytest.raises(SettingsError, match="unknown split pattern 'cl100'"):
        Tokenizer.load(path, pattern="cl100")


RANK_DAMAGE: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "no base64": (lambda lines: [*lines[:300], b"!!! 300", *lines[301:]], r"line 301, '!!! 300', should be a token in"),
    "no rank": (lambda lines: [*lines[:-1], lines[-1].split()[0]], r"line \d+, .*, should be"),
    "a negative rank": (lambda lines: [lines[0].replace(b" 0", b" -1"), *lines[1:]], "line 1, .*should be"),
    "a token twice": (
        lambda lines: [*lines, lines[0].split()[0] + b" 9999"],
        "a rank to b'!' again, as line 1 does",
    ),
    "a rank twice": (lambda lines: [*lines, b"IHp6eg== 5"], r"rank 5 is given twice, in lines 6 and \d+"),
    "a line lost": (lambda lines: [*lines[:270], *lines[271:]], "its ranks have gaps: .* no line has rank 270"),
    "a byte lost": (lambda lines: lines[1:], "no rank for the byte 0x21"),
    "empty": (lambda lines: [], "no rank for the byte 0x00"),
}


@pytest.mark.parametrize("what", RANK_DAMAGE)
def test_damaged_ranks_are_refused_naming_the_line(tokenizer: Tokenizer, tmp_path: Path, what: str) -> None:
    change, answer = RANK_DAMAGE[what]
    lines = ranks_of(tokenizer).splitlines()
    (tmp_path / "mine.tiktoken").write_bytes(b"\n".join(change(lines)))
    with pytest.raises(DataError, match=answer) as caught:
        Tokenizer.load(tmp_path / "mine.tiktoken", pattern="gpt2")
    assert "mine.tiktoken" in str(caught.value)


def test_published_ranks_that_are_cut_or_changed_are_refused(
    published: tuple[Tokenizer, tiktoken.Encoding, Path], tmp_path: Path
) -> None:
    _, _, plain = published
    lines = plain.read_bytes().splitlines(keepends=True)
    path = tmp_path / plain.name
    path.write_bytes(b"".join(lines[:1000]))
    with pytest.raises(DataError, match=f"it has 1,000 ranks, {plain.stem} has"):
        Tokenizer.load(path)
    path.write_bytes(b"".join([*lines[:-1], b"/v7+/v7+/v4= " + lines[-1].split()[1] + b"\n"]))
    with pytest.raises(DataError, match=f"its sha256 is not that of {plain.stem}"):
        Tokenizer.load(path)
    (tmp_path / f"{plain.name}.xz").write_bytes(lzma.compress(plain.read_bytes()[:5000])[:-40])
    with pytest.raises(DataError, match="damaged or cut short"):
        Tokenizer.load(tmp_path / f"{plain.name}.xz")


def test_words_as_ranks_keep_their_ids(tmp_path: Path) -> None:
    """No two of these are joined to a third, so that ranks, too, take only whole pre-tokens."""
    words = Tokenizer.of_pieces(["one or three, one or three"], vocab_size=320, pattern="gpt2")
    words.save(tmp_path / "words.json")
    convert(words.rules, words.roles, tmp_path / "words.tiktoken")
    again = Tokenizer.load(tmp_path / "words.tiktoken", pattern="gpt2", special=[*words.special])
    assert again.encode("one or three, onethree") == words.encode("one or three, onethree")
