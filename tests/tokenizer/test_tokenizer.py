"""The tokenizer: nothing lost, and the ids of the libraries that others use."""

import functools
import json
import lzma
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from groundup.errors import SettingsError, UnsupportedError
from groundup.tokenizer import tokenizer as room
from groundup.tokenizer.byte_level import ByteLevel
from groundup.tokenizer.split import PATTERNS
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.vocabulary import BYTE_CHARACTERS

HARD = [
    "",
    " ",
    "  two  blanks  ",
    "don't DON'T we'll I'VE",
    "tabs\tand\nlines\r\n\r\nand\x1cseparators\x1d\x1e\x1f\x85\u2028",
    "1234567 ½ ² ٣٤ 四",
    "naïve café ﬁne Ǆ ß İ",
    "मराठी แมว 漢字 ひらがな 한국어 עברית العربية",
    "👩‍👩‍👧 🧚🏽‍♀️ \U0001f1ee\U0001f1f8",
    "<|endoftext|> and <|im_start|>",
    "zero\u200bwidth\u200djoin\ufeffbom\u00a0nbsp",
    "def f(x):\n    return x**2  # ^^^^^^^^",
    "a" * 300,
]


@pytest.fixture(scope="module", params=["gpt2", "cl100k"])
def learned(request: pytest.FixtureRequest, story_texts: list[str]) -> Tokenizer:
    return Tokenizer.learn([*story_texts[:150], *HARD], vocab_size=1024, pattern=request.param)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, tiktoken.Encoding]:
    """GPT-2's vocabulary, read here and by tiktoken."""
    shared = Path(os.environ.get("GROUNDUP_SHARED", Path(__file__).parents[3] / "shared"))
    folder = shared / "data" / "tokenizers"
    if not folder.is_dir():
        pytest.skip(f"needs GPT-2's published vocabulary under {folder}")
    ranks = tmp_path_factory.mktemp("ranks") / "r50k_base.tiktoken"
    ranks.write_bytes(lzma.decompress((folder / "r50k_base.tiktoken.xz").read_bytes()))
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=PATTERNS["gpt2"],
        mergeable_ranks=load_tiktoken_bpe(str(ranks)),
        special_tokens={"<|endoftext|>": 50256},
    )
    return Tokenizer.load(folder / "gpt2"), encoding


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_every_byte_string_comes_back(tokenizer: Tokenizer, raw: bytes) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode(raw)) == raw


@given(st.text(max_size=200))
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(max_size=200))
@settings(max_examples=300)
def test_gpt2_ids_equal_tiktokens_on_any_text(published: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    ours, theirs = published
    assert ours.encode(text) == theirs.encode_ordinary(text)


@given(raw=st.one_of(st.binary(max_size=120), st.text(max_size=40).map(lambda t: t.encode() + b"\xff tail\n\n \xc3")))
@settings(max_examples=300)
def test_gpt2_ids_equal_tiktokens_on_any_bytes(published: tuple[Tokenizer, tiktoken.Encoding], raw: bytes) -> None:
    ours, theirs = published
    assert ours.encode(raw) == theirs._encode_bytes(raw)
    assert ours.decode_bytes(ours.encode(raw)) == raw


def test_gpt2_ids_equal_tiktokens_on_many_languages(
    published: tuple[Tokenizer, tiktoken.Encoding], universal: list[str]
) -> None:
    ours, theirs = published
    for text in universal:
        assert ours.encode(text) == theirs.encode_ordinary(text), text[:80]


def test_gpt2_ids_equal_tiktokens_on_a_real_corpus(
    published: tuple[Tokenizer, tiktoken.Encoding], story_texts: list[str]
) -> None:
    ours, theirs = published
    assert ours.encode_batch(story_texts) == theirs.encode_ordinary_batch(story_texts)


def test_gpt2_vocabulary_is_the_published_one(published: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    ours, _ = published
    assert (ours.vocab_size, len(ours.merges), ours.opener) == (50257, 50000, 50256)
    assert ours.encode("Hello world") == [15496, 995]
    assert ours.encode("a<|endoftext|>", frozenset({"<|endoftext|>"})) == [64, 50256]


def test_lone_surrogates_are_encoded_as_tiktoken_does(published: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    ours, theirs = published
    for text in ("\ud800", "a\udcff b", "\ud83d\ude00"):
        assert ours.encode(text) == theirs.encode_ordinary(text)


def hugging_face(tokenizer: Tokenizer, folder: Path) -> tokenizers.Tokenizer:
    tokenizer.save(folder / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return theirs


@pytest.mark.parametrize("text", HARD)
def test_hugging_face_reads_our_file_to_the_same_ids(learned: Tokenizer, tmp_path: Path, text: str) -> None:
    theirs = hugging_face(learned, tmp_path)
    assert theirs.encode(text).ids == learned.encode(text)
    assert theirs.decode(learned.encode(text)) == text
    assert theirs.get_vocab_size() == learned.vocab_size


def test_hugging_face_reads_our_file_to_the_same_ids_on_random_text(learned: Tokenizer, tmp_path: Path) -> None:
    theirs = hugging_face(learned, tmp_path)
    draw = random.Random(0)
    alphabet = "ab C\n\t '1²é漢👩.\u200d\u00a0\x1c-—"
    texts = ["".join(draw.choices(alphabet, k=draw.randrange(60))) for _ in range(500)]
    assert [found.ids for found in theirs.encode_batch(texts)] == learned.encode_batch(texts)


def test_hugging_face_learns_the_same_merges(learned: Tokenizer, story_texts: list[str]) -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS[learned.pattern]), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([cut, level])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1024 - 16, initial_alphabet=list(BYTE_CHARACTERS.values()), show_progress=False
    )
    theirs.train_from_iterator([*story_texts[:150], *HARD], trainer)
    merges = json.loads(theirs.to_str())["model"]["merges"]
    ours = learned.to_hugging_face()["model"]["merges"]
    assert [tuple(pair) for pair in merges] == [tuple(pair) for pair in ours]


def test_our_file_comes_back_the_same(learned: Tokenizer, tmp_path: Path) -> None:
    learned.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path)
    assert (again.tokens, again.merges, again.special) == (learned.tokens, learned.merges, learned.special)
    assert again.pattern == learned.pattern


def test_learned_vocabulary_is_bytes_then_merges_then_special(learned: Tokenizer) -> None:
    assert learned.vocab_size == 1024
    assert learned.tokens[:256] == [bytes([byte]) for byte in BYTE_CHARACTERS]
    assert [learned.tokens[256 + i] for i in range(3)] == [left + right for left, right in learned.merges[:3]]
    assert list(learned.special)[:4] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|reserved_0|>"]
    assert sorted(learned.special.values()) == list(range(1008, 1024))


def test_special_text_is_ordinary_text_unless_allowed(learned: Tokenizer) -> None:
    text = "a<|endoftext|><|im_start|>"
    assert not set(learned.encode(text)) & set(learned.special.values())
    ids = learned.encode(text, frozenset({"<|im_start|>"}))
    assert ids[-1] == learned.special["<|im_start|>"]
    assert learned.decode(ids) == text
    with pytest.raises(SettingsError, match=r"not special tokens of this tokenizer: <\|no\|>"):
        learned.encode(text, frozenset({"<|no|>"}))


def test_a_corpus_that_runs_out_of_pairs_fills_up_with_reserved_ids() -> None:
    tokenizer = Tokenizer.learn(["ab ab"], vocab_size=4096)
    assert tokenizer.merges == [(b"a", b"b"), (b" ", b"ab")]
    assert tokenizer.vocab_size == 320
    assert len(tokenizer.special) == 320 - 256 - 2


@pytest.mark.parametrize(("size", "nearest"), [(100, 320), (271, 320), (1000, 1024), (-5, 320)])
def test_impossible_vocabulary_sizes_name_the_nearest(size: int, nearest: int) -> None:
    with pytest.raises(SettingsError, match=f"nearest: {nearest}"):
        Tokenizer.learn(["a"], vocab_size=size)


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for wrong in (-1, 320):
        with pytest.raises(ValueError, match="0 to 319"):
            tokenizer.decode([wrong])


def test_learning_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    import subprocess

    code = (
        "from groundup.tokenizer.tokenizer import Tokenizer\n"
        "print(Tokenizer.learn(['the fox and the king went over the hill to the well'], vocab_size=320).merges)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


@given(text=st.text(max_size=60))
def test_offsets_are_hugging_faces(learned: Tokenizer, tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    ids = learned.encode(text)
    theirs = hugging_face(learned, tmp_path_factory.mktemp("json")).encode(text)
    assert learned.offsets(text, ids).tolist() == [list(span) for span in theirs.offsets]


@given(raw=st.binary(max_size=60))
def test_offsets_of_bytes_are_where_each_token_stands(tokenizer: Tokenizer, raw: bytes) -> None:
    ids = tokenizer.encode(raw)
    spans = tokenizer.offsets(raw, ids).tolist()
    assert [raw[first:last] for first, last in spans] == [tokenizer.tokens[i] for i in ids]


def test_offsets_of_another_text_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnsupportedError, match="do not decode to this very text"):
        tokenizer.offsets("the king", tokenizer.encode("the kings"))


@given(st.lists(st.text(max_size=20)))
def test_streams_and_batches_decode_to_the_same_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    batch = tokenizer.encode_batch(texts)
    assert tokenizer.decode_batch(batch) == texts
    assert ["".join(tokenizer.decode_stream(ids)) for ids in batch] == texts


# The calls of other programs


@pytest.mark.parametrize("pattern", PATTERNS)
@given(st.lists(st.text(st.sampled_from("ab \n\r\t'slt.!/1\u00a0éÉ漢の\u0301ก"), max_size=12), max_size=8))
def test_a_stream_has_the_ids_of_the_whole(pattern: str, texts: list[str]) -> None:
    streaming = streamers(pattern)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHARACTERS_AT_ONCE", 3)
        assert list(streaming.encode_iterable(texts)) == streaming.encode("".join(texts))
        allowed = frozenset({"<|endoftext|>"})
        marked = [*texts, "<|endof", "text|>", *texts]
        assert list(streaming.encode_iterable(marked, allowed)) == streaming.encode("".join(marked), allowed)


@functools.cache
def streamers(pattern: str) -> Tokenizer:
    """With an added token and a normaliser, which a cut could also break."""
    texts = ["a lsab 'll b.\n\nab !/ the 漢の ab", "é\n\nÉ\n\n漢\n\na \n \nB\n\n\n" * 9, "!\n\n/b\n\n's 1\n\n" * 9]
    learned = Tokenizer.learn(texts, vocab_size=320, pattern=pattern)
    tokens, pairs, added = learned.tokens, learned.rules.pairs, {"<|reserved_3|>": 300}
    return Tokenizer(ByteLevel(tokens, pairs, learned.special, pattern, normalizer="NFC", added=added))


def test_a_stream_is_encoded_as_it_comes(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHARACTERS_AT_ONCE", 100)
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield "the king and the fox\n"

    stream = tokenizer.encode_iterable(lines())
    next(stream)
    assert read < 20, "the rest is not read before it is needed"


def test_a_plain_vocabulary_has_the_size_and_the_special_tokens_that_are_asked_for() -> None:
    texts = ["low lower<|sep|>lowest " * 3, "newest<|sep|>widest"]
    learned = Tokenizer.learn(texts, vocab_size=271, special=["<|sep|>", "<|end|>"])
    assert (learned.vocab_size, learned.special) == (271, {"<|sep|>": 269, "<|end|>": 270})
    assert not any(b"|" in token and len(token) > 1 for token in learned.tokens[:269]), "not learned in pieces"
    apart = [part for text in texts for part in text.split("<|sep|>")]
    assert learned.merges == Tokenizer.learn(apart, vocab_size=320).merges[:13]
    assert Tokenizer.learn("low low", vocab_size=9999, special=[]).vocab_size == 259, "as many as there are"
    with pytest.raises(SettingsError, match="at least 256 bytes and each special token once"):
        Tokenizer.learn(texts, vocab_size=257, special=["a", "b"])


def test_a_string_is_one_text_to_learn_from_and_other_things_are_refused() -> None:
    assert (
        Tokenizer.learn("low lower lowest", vocab_size=320).merges
        == Tokenizer.learn(["low lower lowest"], vocab_size=320).merges
    )
    assert Tokenizer.of_pieces("né né", vocab_size=320).tokens[256] == "é".encode()
    with pytest.raises(SettingsError, match=r"a document to learn from is b'low'; it should be a string"):
        Tokenizer.learn([b"low"], vocab_size=320)  # type: ignore[list-item]


def test_special_tokens_are_allowed_by_name_or_all_at_once(tokenizer: Tokenizer) -> None:
    text = "the <|im_start|>king<|endoftext|>"
    every = tokenizer.encode(text, "all")
    assert every == tokenizer.encode(text, ["<|im_start|>", "<|endoftext|>"])
    assert every == tokenizer.encode_batch([text], "all")[0] == list(tokenizer.encode_iterable([text], "all"))
    with pytest.raises(SettingsError, match="allowed is '<|endoftext|>'; it should be \"all\", or names"):
        tokenizer.encode(text, "<|endoftext|>")  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_stream_of_lines_in_any_script_has_the_ids_of_the_whole(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CHARACTERS_AT_ONCE", 50)
    for text in (
        "Король сказал:\n\nДа.\n\nОн пошёл домой.\n\n",
        "KING OF\n\nTHE A \n \n's\n\nÉ\n",
        "王曰。\n\n是，他\n回家了\n",
    ):
        learned = Tokenizer.learn(text * 20, vocab_size=320, pattern=pattern)
        lines = (text * 30).splitlines(keepends=True)
        assert list(learned.encode_iterable(lines)) == learned.encode(text * 30)


def test_what_is_no_text_is_refused_in_words(tokenizer: Tokenizer) -> None:
    for wrong in (None, ["a"], 5):
        with pytest.raises(SettingsError, match="it should be a string or bytes"):
            tokenizer.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"a text to encode is b'low'; it should be a string"):
        list(tokenizer.encode_iterable([b"low"]))  # type: ignore[list-item]
    with pytest.raises(SettingsError, match="the documents to learn from are 5"):
        Tokenizer.learn(5, vocab_size=320)  # type: ignore[arg-type]
    for special in ("<|sep|>", [5]):
        with pytest.raises(SettingsError, match="it should be a list of texts"):
            Tokenizer.learn("abc", vocab_size=320, special=special)  # type: ignore[arg-type]


def test_a_special_token_that_a_file_would_write_as_another_is_refused(tmp_path: Path) -> None:
    for text in ("|", "a", "é", "Ġ"):
        with pytest.raises(SettingsError, match="cannot be a special token: a token of the vocabulary is written so"):
            Tokenizer.learn("abc ab", vocab_size=300, special=["<|sep|>", text])
    learned = Tokenizer.learn("abc\nab\n", vocab_size=300, special=["\n"])
    learned.save(tmp_path)
    assert Tokenizer.load(tmp_path).special == learned.special


def test_whole_pre_tokens_are_the_most_frequent_and_of_equals_the_first_by_bytes() -> None:
    ours = Tokenizer.of_pieces(["zz yy zz xx", "xx ab yy é"], vocab_size=320, pattern=r"\p{L}+")
    assert ours.tokens[256:261] == [b"xx", b"yy", b"zz", b"ab", "é".encode()]
    assert (ours.vocab_size, len(ours.special), ours.merges) == (320, 59, [])
    assert [ours.tokens[i] for i in ours.encode("zzz zz")] == [b"z", b"z", b"z", b" ", b"zz"]
    small = Tokenizer.of_pieces([chr(0x4E00 + i) * (i + 1) for i in range(100)], vocab_size=320)
    assert small.tokens[256:304] == [chr(0x4E00 + i).encode() for i in range(99, 51, -1)]
    with pytest.raises(SettingsError, match="bytes . learned tokens .* nearest: 320"):
        Tokenizer.of_pieces(["a"], vocab_size=321)
