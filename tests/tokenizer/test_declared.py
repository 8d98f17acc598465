"""What the files beside a tokenizer declare is heeded, file by file, and kept where the tokenizer goes."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from groundup.errors import DataError, SettingsError, UnsupportedError
from groundup.tokenizer.declared import Roles
from groundup.tokenizer.tokenizer import Tokenizer

NAMES = ["<s>", "</s>", "<eot>", "<pad>", "[BOS]"]


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A tokenizer.json whose special tokens are the five above; by their names `<s>` opens and `</s>` closes."""
    table = tokenizer.to_hugging_face()
    merges, vocabulary = table["model"]["merges"], table["model"]["vocab"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    table["added_tokens"] = [
        {"id": len(vocabulary) + number, "content": name, **flags} for number, name in enumerate(NAMES)
    ]
    assert merges
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    return tmp_path


def template(before: str, behind: str = "") -> dict[str, Any]:
    parts = [{"SpecialToken": {"id": name, "type_id": 0}} if name else None for name in (before, behind)]
    single = [part for part in (parts[0], {"Sequence": {"id": "A", "type_id": 0}}, parts[1]) if part]
    return {"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": single}]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ("<s>", "</s>", ["</s>"])),
        ({"tokenizer_config": {"bos_token": "[BOS]", "eos_token": "<eot>"}}, ("[BOS]", "<eot>", ["<eot>"])),
        ({"tokenizer_config": {"bos_token": {"content": "[BOS]"}, "eos_token": None}}, ("[BOS]", "</s>", ["</s>"])),
        ({"special_tokens_map": {"bos_token": "</s>", "eos_token": {"content": "</s>"}}}, ("</s>", "</s>", ["</s>"])),
        ({"config": {"bos_token_id": 4, "eos_token_id": 2}}, ("[BOS]", "<eot>", ["<eot>"])),
        ({"config": {"bos_token_id": 4}, "tokenizer_config": {"bos_token": "<s>"}}, ("<s>", "</s>", ["</s>"])),
        ({"config": {"bos_token_id": -300, "eos_token_id": None}}, ("<s>", "</s>", ["</s>"])),
        ({"generation_config": {"eos_token_id": [1, 2]}}, ("<s>", "</s>", ["</s>", "<eot>"])),
        ({"config": {"eos_token_id": 2}, "tokenizer_config": {"eos_token": "</s>"}}, ("<s>", "</s>", ["<eot>"])),
        ({"post_processor": template("[BOS]")}, ("[BOS]", "</s>", ["</s>"])),
        ({"post_processor": template("", "<eot>")}, ("<s>", "<eot>", ["<eot>"])),
        ({"post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["<eot>", 2]}},
         ("<s>", "<eot>", ["<eot>"])),
    ],
)  # fmt: skip
def test_each_file_says_which_tokens_open_close_and_stop(
    folder: Path, files: dict[str, Any], expected: tuple[str, str, list[str]], tmp_path: Path
) -> None:
    table = json.loads((folder / "tokenizer.json").read_text())
    first = table["added_tokens"][0]["id"]

    def shifted(value: Any) -> Any:
        match value:
            case [*several]:
                return [shifted(each) for each in several]
            case int() if not isinstance(value, bool):
                return first + value
            case _:
                return value

    for name, content in files.items():
        if name == "post_processor":
            content = {key: shifted(value) if key in ("cls", "sep") else value for key, value in content.items()}
            (folder / "tokenizer.json").write_text(json.dumps({**table, "post_processor": content}))
        else:
            (folder / f"{name}.json").write_text(json.dumps({key: shifted(value) for key, value in content.items()}))
    read = Tokenizer.load(folder)
    opener, closer, stops = expected
    assert read.roles == Roles(read.special[opener], read.special[closer], frozenset(read.special[s] for s in stops))
    (tmp_path / "copy").mkdir()
    read.save(tmp_path / "copy")
    again = Tokenizer.load(tmp_path / "copy")
    assert (again.roles, again.digest) == (read.roles, read.digest), "kept where it goes"
    closed = [] if opener == closer else [read.closer]
    assert read.framed(read.encode("the king")) == [read.opener, *read.encode("the king"), *closed]


def test_roles_are_part_of_the_digest_and_stay_in_a_larger_vocabulary(folder: Path) -> None:
    plain = Tokenizer.load(folder)
    (folder / "tokenizer_config.json").write_text('{"bos_token": "[BOS]"}')
    other = Tokenizer.load(folder)
    assert other.digest != plain.digest
    assert other.extended(["king of"]).opener == other.opener


def test_a_tokenizer_without_an_opener_says_where_one_is_named(folder: Path) -> None:
    table = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**table, "added_tokens": []}))
    read = Tokenizer.load(folder)
    with pytest.raises(SettingsError, match="no token that opens a text: .* Name one in tokenizer_config.json"):
        read.framed([1])


def test_a_damaged_file_beside_it_is_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is damaged"):
        Tokenizer.load(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text('{"<x>": "y"}')
    with pytest.raises(DataError, match=r"added_tokens\.json gives '<x>' the id 'y'"):
        Tokenizer.load(folder)


# Tokens that were added later


@pytest.fixture
def two_files(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """GPT-2's layout, to which a program added a marker and a separator, and a pad token."""
    table = tokenizer.to_hugging_face()["model"]
    size = len(table["vocab"])
    (tmp_path / "vocab.json").write_text(json.dumps({**table["vocab"], "<|endoftext|>": size}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in table["merges"]))
    added = {"<|user|>": size + 1, "<sep>": size + 2, "[PAD]": size + 3}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
              "unk_token": "<|endoftext|>", "pad_token": "[PAD]"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("layout", ["two files", "tokenizer.json"])
def test_added_tokens_json_has_the_ids_of_transformers(two_files: Path, layout: str, tmp_path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(two_files)
    folder = two_files
    if layout == "tokenizer.json":
        folder = tmp_path / "other"
        folder.mkdir()
        added, config = two_files / "added_tokens.json", two_files / "tokenizer_config.json"
        added.rename(folder / added.name)
        config.rename(folder / config.name)
        transformers.GPT2Tokenizer.from_pretrained(two_files).backend_tokenizer.save(str(folder / "tokenizer.json"))
    ours = Tokenizer.load(folder)
    assert ours.vocab_size == len(theirs)
    assert set(ours.special) >= {"<|endoftext|>", "[PAD]"}
    for text in ("<|user|> The king", "a<sep><sep> b <|user|>", "  <sep>  ", "the <|use r|>"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.special["[PAD]"] not in ours.encode("[PAD]")


def test_a_token_without_a_row_is_refused_only_where_a_text_holds_it(two_files: Path) -> None:
    ours = Tokenizer.load(two_files)
    rows = ours.added["<|user|>"]
    ours.refuse_without_row(ours.encode("the king [PAD]"), rows)
    with pytest.raises(SettingsError, match=rf"holds '<\|user\|>' \(id {rows}\), for which this model has no row"):
        ours.refuse_without_row(ours.encode("the <|user|>"), rows)


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": [{"id": 0, "content": "x"}]},
        {"added_tokens_decoder": {"0": "x"}},
        {"additional_special_tokens": 5},
    ],
)
def test_a_file_of_another_shape_is_named(folder: Path, config: dict[str, Any]) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"tokenizer_config.json .* is not laid out as Hugging Face"):
        Tokenizer.load(folder)


def test_what_else_the_files_of_a_folder_hold_stays(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[BOS]", "chat_template": "KEEP"}))
    read = Tokenizer.load(folder)
    read.save(folder / "again.tiktoken")
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == "KEEP"
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<eot>", "model_max_length": 9}))
    read.save(other)
    assert Tokenizer.load(other).roles == read.roles
    assert json.loads((other / "tokenizer_config.json").read_text())["model_max_length"] == 9


def test_two_files_are_split_as_their_class_says_or_refused_by_its_name(two_files: Path) -> None:
    def say(**settings: object) -> None:
        (two_files / "tokenizer_config.json").write_text(json.dumps(settings))

    say(tokenizer_class="Qwen2Tokenizer", eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    theirs = transformers.AutoTokenizer.from_pretrained(two_files)
    ours = Tokenizer.load(two_files)
    for text in ("He said (king)\n\n\"King 1234 'tis cafe\u0301", "12 the\n\n(fox)"):
        assert ours.encode(text) == theirs.encode(text)
    say(tokenizer_class="CLIPTokenizerFast")
    with pytest.raises(UnsupportedError, match="its class is CLIPTokenizer, whose split is not read"):
        Tokenizer.load(two_files)
    say(tokenizer_class="GPT2Tokenizer", add_prefix_space=True)
    with pytest.raises(UnsupportedError, match="add_prefix_space = true"):
        Tokenizer.load(two_files)


def test_ordinary_tokens_that_look_special_are_not_written_as_gpt2s_files(two_files: Path, tmp_path: Path) -> None:
    ours = Tokenizer.load(two_files)
    table = ours.to_hugging_face()
    table["added_tokens"] = [token for token in table["added_tokens"] if token["content"] == "<|endoftext|>"]
    size = len(table["model"]["vocab"])
    table["model"]["vocab"] |= {"<s>": size}
    table["added_tokens"][0]["id"] = size + 1
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(UnsupportedError, match="it would be read with other special tokens: '<s>'"):
        Tokenizer.load(tmp_path / "x").save(tmp_path / "vocab.bpe")
    assert not (tmp_path / "vocab.bpe").exists()
