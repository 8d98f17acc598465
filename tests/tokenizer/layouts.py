"""Files of tokenizers laid out as those of published models, a small vocabulary in each; and hard texts."""

import functools
import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from hypothesis import strategies as st

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


def ranks_of(tokenizer: Tokenizer) -> bytes:
    import base64

    outside = set(tokenizer.special.values())
    return b"".join(
        base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokenizer.tokens) if i not in outside
    )
