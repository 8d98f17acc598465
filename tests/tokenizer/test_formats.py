"""Files of tokenizers: read to the ids of the libraries they come from, written back, refused by name when damaged."""

import json
from pathlib import Path

import pytest

from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.tokenizer.tokenizer import Tokenizer

from .layouts import HARD, LAYOUTS, both, ranks_of

# What is refused


def test_a_cut_or_missing_file_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    raw = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


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


def test_what_says_itself_how_it_splits_takes_no_other_pattern(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    with pytest.raises(SettingsError, match="says itself how text is split"):
        Tokenizer.load(tmp_path, pattern="gpt2")


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


def test_ranks_and_sentencepiece_models_are_told_apart_by_content(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(ranks_of(tokenizer))
    with pytest.raises(DataError, match="ranks, tokenizer has 128,000"):
        Tokenizer.load(tmp_path)
    read = Tokenizer.load(tmp_path / "tokenizer.model", pattern="llama3", special=["<|begin_of_text|>"])
    assert read.encode("<|begin_of_text|>", frozenset({"<|begin_of_text|>"})) == [len(read.tokens) - 1]
