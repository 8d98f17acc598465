"""Files of tokenizers: read to the ids of the libraries they come from, written back, refused by name when damaged."""

import functools
import gzip
import json
import lzma
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext import openai_public

from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.tokenizer import formats
from groundup.tokenizer.formats import convert
from groundup.tokenizer.ranks import published_ranks
from groundup.tokenizer.split import PATTERNS
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.vocabulary import BYTE_CHARACTERS

HARD = [
    "",
    " ",
    "  two  blanks   before\ta tab \t and\n\n\nlines \r\n\r\n end \n ",
    "don't DON'T we'll I'VE it'ſ o'Clock",
    "separators\x1c\x1d\x1e\x1f\x85\u2028\u00a0nbsp\u3000wide",
    "1234567 ½ ² ٣٤ 四 12ab34  56",
    "café cafe\u0301 ﬁne Ǆ ß İ \u1e9b\u0323 \u212b \uac00 \u1100\u1161 ① ㎏ \u037e",
    "मराठी แมว 漢字 ひらがな 한국어 עברית العربية",
    "👩‍👩‍👧 🧚🏽‍♀️ \U0001f1ee\U0001f1f8",
    "<|endoftext|> and <|im_start|>user<think>why<think></think> <tool_call><tool_ca",
    "def f(x):\n        return x**2  # ^^^^^^^^                 far",
    "a" * 300,
]
ADDED_TEXT = ["<think>", "</think>", "<tool_call>", "<|endoftext|>", " " * 5, "e\u0301", "é", "a", " b", "1", "\n"]
ADDED_TEXT += ["<th", "ế", "e\u0302\u0301", "fi", "the"]
BYTE_IDS = {character: i for i, character in enumerate(BYTE_CHARACTERS.values())}
known = st.characters(exclude_categories=("Cs", "Cn")).filter(
    lambda character: unicodedata.ucd_3_2_0.category(character) != "Cn"
)
"""Characters that this Python's Unicode has: the libraries know younger letters, each up to a version of its own."""
mixed = st.lists(st.one_of(st.sampled_from(ADDED_TEXT), st.text(known, max_size=6)), max_size=12).map("".join)


@functools.lru_cache
def trained() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """A small vocabulary and its merges, learned by Hugging Face's library: bytes first, then one id a merge."""
    from importlib import resources

    packed = (resources.files("groundup.data") / "storybook.jsonl.gz").read_bytes()
    texts = [json.loads(line)["text"] for line in gzip.decompress(packed).splitlines()[:60]]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=list(BYTE_CHARACTERS.values()), show_progress=False
    )
    theirs.train_from_iterator([*texts, *HARD * 9], trainer)
    model = json.loads(theirs.to_str())["model"]
    order = list(BYTE_CHARACTERS.values()) + sorted(
        (text for text in model["vocab"] if len(text) > 1), key=lambda text: model["vocab"][text]
    )
    return {text: i for i, text in enumerate(order)}, tuple((left, right) for left, right in model["merges"])


def level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def cut(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def in_turn(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def token(i: int, content: str, *, special: bool = True, normalized: bool = False) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special}
    return {"id": i, "content": content, **flags}


def file_of(
    first: tuple[str, ...] = (),
    then: tuple[tuple[str, bool, bool], ...] = (),
    pre_tokenizer: dict[str, Any] | None = None,
    normalizer: dict[str, Any] | None = None,
    **model: Any,
) -> dict[str, Any]:
    """A tokenizer.json.

    Args:
        first: special tokens that are numbered, and stand in the vocabulary, before all others.
        then: (text, special, normalized) of those that come after, and stand in `added_tokens` alone.
    """
    vocabulary, merges = trained()
    ids = {**{text: i for i, text in enumerate(first)}, **{text: i + len(first) for text, i in vocabulary.items()}}
    added = [token(i, text) for i, text in enumerate(first)]
    added += [
        token(len(ids) + i, text, special=special, normalized=normalized)
        for i, (text, special, normalized) in enumerate(then)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer or level(True),
        "post_processor": level(True),
        "decoder": level(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": ids,
            "merges": [f"{left} {right}" for left, right in merges],
            **model,
        },
    }


def gpt2() -> dict[str, Any]:
    file = file_of(then=(("<|endoftext|>", True, False),))
    file["model"]["vocab"]["<|endoftext|>"] = file["added_tokens"][0]["id"]
    del file["model"]["type"]
    file["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return file


def llama3() -> dict[str, Any]:
    """As its file: merges as pairs, whole pieces first. Two merges are taken out, so that this matters."""
    file = file_of(
        then=(("<|begin_of_text|>", True, False), ("<|end_of_text|>", True, False), ("<|eot_id|>", True, False)),
        pre_tokenizer=in_turn(cut(PATTERNS["llama3"]), level(False)),
        ignore_merges=True,
    )
    gone = {"Ġ l", "Ġt he"} & set(file["model"]["merges"])
    file["model"]["merges"] = [merge.split(" ") for merge in file["model"]["merges"] if merge not in gone]
    assert gone
    begin = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    pair = [begin, {"Sequence": {"id": "A", "type_id": 0}}]
    whole = {"id": "<|begin_of_text|>", "ids": [file["added_tokens"][0]["id"]], "tokens": ["<|begin_of_text|>"]}
    template = {"type": "TemplateProcessing", "single": pair, "pair": pair, "special_tokens": {whole["id"]: whole}}
    template["pair"] = [*pair, {"Sequence": {"id": "B", "type_id": 1}}]
    return {**file, "post_processor": {"type": "Sequence", "processors": [level(True), template]}}


QWEN_TOKENS = (
    ("<|endoftext|>", True, False),
    ("<|im_start|>", True, False),
    ("<|im_end|>", True, False),
    ("<tool_call>", False, False),
    ("</tool_call>", False, False),
    ("<think>", False, False),
    ("</think>", False, False),
)
BLANK_RUNS = tuple((" " * n, False, True) for n in range(24, 1, -1))
NEMO = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}"
    r"\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SMOLLM_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>")
END = (("<|endoftext|>", True, False),)
LAYOUTS: dict[str, Callable[[], dict[str, Any]]] = {
    "gpt2": gpt2,
    "llama3": llama3,
    "qwen3": lambda: file_of(
        then=QWEN_TOKENS,
        pre_tokenizer=in_turn(cut(PATTERNS["qwen2"]), level(False)),
        normalizer={"type": "NFC"},
        ignore_merges=False,
    ),
    "olmo1": lambda: file_of(("<|endoftext|>", "<|padding|>"), BLANK_RUNS, level(True), {"type": "NFC"}),
    "olmo2": lambda: file_of(
        then=(("<|extra_id_0|>", False, False), *END, ("<|fim_prefix|>", True, False)),
        pre_tokenizer=in_turn(cut(PATTERNS["llama3"], "Removed", True), level(False)),
    ),
    "smollm": lambda: file_of(
        SMOLLM_TOKENS, pre_tokenizer=in_turn({"type": "Digits", "individual_digits": True}, level(True))
    ),
    "gpt-oss": lambda: file_of(then=END, pre_tokenizer=in_turn(cut(PATTERNS["o200k"]), level(False))),
    "mistral-nemo": lambda: file_of(
        ("<unk>", "<s>", "</s>", "[INST]"), (), in_turn(cut(NEMO), level(False)), ignore_merges=True
    ),
    "two forms": lambda: file_of(
        then=(*END, ("ế", False, True), ("ﬁ", False, True), ("<think>", False, False), ("k<th", False, True)),
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "NFD"}]},
    ),
    "not split": lambda: file_of(then=END, pre_tokenizer=level(False)),
    "a literal": lambda: file_of(
        then=END, pre_tokenizer=in_turn({**cut(""), "pattern": {"String": " a."}}, level(False))
    ),
    "a word of one's own": lambda: file_of(then=END, pre_tokenizer=in_turn(cut(r"\w+|[^\w\s]"), level(False))),
    "an ordinary token added": lambda: file_of(then=END, pre_tokenizer=in_turn(cut(PATTERNS["gpt2"]), level(True))),
}


def both(file: dict[str, Any], folder: Path, *, special_too: bool = False) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A file as read here, and by Hugging Face's library."""
    (folder / "tokenizer.json").write_text(json.dumps(file))
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = not special_too
    return Tokenizer.load(folder), theirs


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


# What is refused


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


def test_a_cut_or_missing_file_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    raw = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


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


def test_a_damaged_pair_of_gpt2_files_is_refused_naming_file_and_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tokenizer.to_hugging_face()["model"]
    merges = ["#version: 0.2", *(" ".join(pair) for pair in file["merges"])]
    whole = json.dumps({**file["vocab"], "<|endoftext|>": len(file["vocab"])})

    def answer(vocabulary: str, lines: list[str]) -> str:
        (tmp_path / "encoder.json").write_text(vocabulary)
        (tmp_path / "vocab.bpe").write_text("\n".join(lines))
        with pytest.raises(DataError) as caught:
            Tokenizer.load(tmp_path)
        return str(caught.value)

    assert "line 4 of vocab.bpe joins" in answer(whole, [*merges[:3], merges[1], *merges[3:]])
    assert "again, as line 2 of vocab.bpe does" in answer(whole, [*merges[:3], merges[1], *merges[3:]])
    assert "line 3 of vocab.bpe, 'h', should be two parts" in answer(whole, [*merges[:2], "h"])
    assert "the list of merges is cut short" in answer(whole, merges[:-1])
    assert "encoder.json is damaged or cut short: " in answer(whole[:200], merges)
    assert "'h' stands there twice" in answer('{"h": 1, "h": 2}', merges)


def test_a_tokenizer_that_is_not_the_one_its_manifest_names_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from groundup.artifacts import making

    with making(tmp_path / "tokenizer", "tokenizer", {}, {}) as draft:
        tokenizer.save(draft.path / "tokenizer.json")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("reserved_0", "reserved_x"))
    for named in (path, path.parent):
        with pytest.raises(DataError, match=r"damaged: the sha256 of tokenizer\.json"):
            Tokenizer.load(named)


# GPT-2's two files


@pytest.mark.parametrize("header", ["#version: 0.2\n", ""])
def test_gpt2s_merges_are_read_with_and_without_a_header(tmp_path: Path, tokenizer: Tokenizer, header: str) -> None:
    file = tokenizer.to_hugging_face()["model"]
    vocabulary = {**file["vocab"], **tokenizer.special}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text(header + "\n".join(" ".join(pair) for pair in file["merges"]) + "\n")
    (tmp_path / "vocab.json").write_text(json.dumps(dict(sorted(vocabulary.items(), key=lambda item: item[1])[:-15])))
    assert Tokenizer.load(tmp_path).merges == tokenizer.merges


# Ranks


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


def ranks_of(tokenizer: Tokenizer) -> bytes:
    import base64

    outside = set(tokenizer.special.values())
    return b"".join(
        base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokenizer.tokens) if i not in outside
    )


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


def test_what_says_itself_how_it_splits_takes_no_other_pattern(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    with pytest.raises(SettingsError, match="says itself how text is split"):
        Tokenizer.load(tmp_path, pattern="gpt2")


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


# Writing


def test_a_learned_tokenizer_keeps_its_ids_in_every_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "mine.tiktoken", "vocab.bpe"):
        tokenizer.save(tmp_path / name)
        given_too = {"pattern": tokenizer.pattern, "special": list(tokenizer.special)} if "tik" in name else {}
        again = Tokenizer.load(tmp_path / name, **given_too)  # type: ignore[arg-type]
        assert (again.tokens, again.special) == (tokenizer.tokens, tokenizer.special)
        for text in HARD:
            assert again.encode(text) == tokenizer.encode(text), (name, text)
    assert (tmp_path / "encoder.json").is_file()


def test_a_file_refuses_what_it_cannot_hold(tokenizer: Tokenizer, tmp_path: Path) -> None:
    qwen, _ = both(LAYOUTS["qwen3"](), tmp_path)
    smollm, _ = both(LAYOUTS["smollm"](), tmp_path)
    llama, _ = both(LAYOUTS["llama3"](), tmp_path)
    words = Tokenizer.of_pieces(["of words and words"], vocab_size=320, pattern="gpt2")
    for chosen, name, answer in (
        (qwen, "mine.tiktoken", "added tokens that are not special, such as '<tool_call>'"),
        (qwen, "vocab.bpe", "added tokens that are not special"),
        (smollm, "mine.tiktoken", r"rank 900 is given to a token, but is the id of <\|endoftext\|>"),
        (smollm, "vocab.bpe", "pattern is smollm, and of it gpt2 would be read"),
        (llama, "mine.tiktoken", "no merge makes 'Ġ(the|l)', but ranks would"),
        (words, "vocab.bpe", "no merge makes '.*', which is taken whole"),
        (tokenizer, "cl100k_base.tiktoken", "would be read as the published cl100k_base"),
    ):
        with pytest.raises(UnsupportedError, match=answer):
            chosen.save(tmp_path / "new" / name)
    with pytest.raises(SettingsError, match="the name should say what to write"):
        tokenizer.save(tmp_path / "tokenizer.txt")


def test_words_as_ranks_keep_their_ids(tmp_path: Path) -> None:
    """No two of these are joined to a third, so that ranks, too, take only whole pieces."""
    words = Tokenizer.of_pieces(["one or three, one or three"], vocab_size=320, pattern="gpt2")
    words.save(tmp_path / "words.json")
    convert(words.rules, words.roles, tmp_path / "words.tiktoken")
    again = Tokenizer.load(tmp_path / "words.tiktoken", pattern="gpt2", special=[*words.special])
    assert again.encode("one or three, onethree") == words.encode("one or three, onethree")


# Characters and words


@pytest.mark.parametrize("pattern", ["characters", "gpt2", "unspaced", r"\w+"])
def test_whole_pieces_are_hugging_faces_ids(pattern: str, tmp_path: Path) -> None:
    ours = Tokenizer.of_pieces(HARD, vocab_size=384, pattern=pattern)
    again, theirs = both(ours.to_hugging_face(), tmp_path)
    for text in (*HARD, "unknown wörds and 字 fall back to bytes"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids == again.encode(text)
        assert ours.decode(ids) == text


def test_whole_pieces_are_the_most_frequent_and_of_equals_the_first_by_bytes() -> None:
    ours = Tokenizer.of_pieces(["zz yy zz xx", "xx ab yy é"], vocab_size=320, pattern=r"\p{L}+")
    assert ours.tokens[256:261] == [b"xx", b"yy", b"zz", b"ab", "é".encode()]
    assert (ours.vocab_size, len(ours.special), ours.merges) == (320, 59, [])
    assert [ours.tokens[i] for i in ours.encode("zzz zz")] == [b"z", b"z", b"z", b" ", b"zz"]
    small = Tokenizer.of_pieces([chr(0x4E00 + i) * (i + 1) for i in range(100)], vocab_size=320)
    assert small.tokens[256:304] == [chr(0x4E00 + i).encode() for i in range(99, 51, -1)]
    with pytest.raises(SettingsError, match="bytes . learned tokens .* nearest: 320"):
        Tokenizer.of_pieces(["a"], vocab_size=321)


def test_ranks_and_sentencepiece_models_are_told_apart_by_content(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(ranks_of(tokenizer))
    with pytest.raises(DataError, match="ranks, tokenizer has 128,000"):
        Tokenizer.load(tmp_path)
    read = Tokenizer.load(tmp_path / "tokenizer.model", pattern="llama3", special=["<|begin_of_text|>"])
    assert read.encode("<|begin_of_text|>", frozenset({"<|begin_of_text|>"})) == [len(read.tokens) - 1]
