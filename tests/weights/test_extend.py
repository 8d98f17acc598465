"""More tokens for a trained model: what it made of texts without them stays, and the new ones begin as their pieces."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import groundup
from groundup.artifacts import making, read_manifest
from groundup.errors import DamagedError, DataError, SettingsError
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.extend import Extended, extend, read_tokens
from groundup.weights.load import read_weights
from groundup.weights.write import save as save_model

WORDS = "the king and the little fox went over the hill to find a golden apple for the old queen who sat by the well"
LEARNED = Tokenizer.learn([WORDS], vocab_size=320)
ADDED = (" golden apple", "foxes", "Füchse 🦊", "  ", "<|tool|>")
SPECIAL = ("<|call|>", "<|tool|> of")
MORE = LEARNED.extended(ADDED, SPECIAL)
PARTS = (
    "the ",
    "king",
    " golden",
    " apple",
    "fox",
    "es",
    "F",
    "ü",
    "🦊",
    " ",
    "<|",
    "tool",
    "|>",
    "<|call|>",
    "\n",
    "é",
)

Saved = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, config: ModelConfig) -> Saved:
    """Writes a model of each shape with a tokenizer; its weights are large enough that every part matters."""

    def write(changes: dict[str, Any], tokenizer: Tokenizer = LEARNED, rows: int | None = None) -> Path:
        torch.manual_seed(0)
        table = config.with_vocabulary(rows or tokenizer.vocab_size).table()
        model = Transformer(ModelConfig.from_table({**table, **changes}, "a test"))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        with making(tmp_path / "model", "model", {}, {}) as draft:
            save_model(draft.path, model.config, dict(model.named_parameters()), tokenizer)
            draft.statistics |= {"steps": 7, "tokens": 77}
        return tmp_path / "model"

    return write


def before_and_after(source: Path, ids: int, width: int = 24) -> tuple[torch.Tensor, torch.Tensor, Transformer]:
    """What the model in `source` and the one extended from it score after the same random old ids."""
    old, _ = groundup.load(source, device="cpu")
    new, _ = groundup.load(source.with_name("extended"), device="cpu")
    tokens = torch.randint(0, ids, (3, width), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return old(tokens), new(tokens), new


# --- the tokenizer ---


@settings(max_examples=300)
@given(st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=5)), max_size=12).map("".join))
def test_texts_without_a_new_token_keep_their_ids(text: str) -> None:
    assume(not any(token in text for token in ADDED))
    assert MORE.encode(text) == LEARNED.encode(text)
    assert MORE.encode(text.encode("utf-8", "replace")) == LEARNED.encode(text.encode("utf-8", "replace"))


@settings(max_examples=300)
@given(st.lists(st.sampled_from((*PARTS, *ADDED, *SPECIAL)), max_size=12).map("".join), st.booleans())
def test_hugging_face_reads_the_same_ids_and_they_decode(text: str, allow: bool) -> None:
    theirs = tokenizers.Tokenizer.from_str(json.dumps(MORE.to_hugging_face()))
    allowed = frozenset(MORE.special) if allow else frozenset()
    if not allow:
        assume(not any(token in text for token in MORE.special))
    ids = MORE.encode(text, allowed)
    assert ids == theirs.encode(text).ids
    assert MORE.decode(ids) == text


def test_new_tokens_are_recognised_wherever_they_stand_special_ones_if_allowed() -> None:
    first = LEARNED.vocab_size
    assert MORE.added == {text: first + number for number, text in enumerate(ADDED)}
    assert MORE.encode("foxes") == [first + 1]
    assert MORE.encode("xfoxesx") == [*LEARNED.encode("x"), first + 1, *LEARNED.encode("x")]
    assert MORE.encode("<|call|>") == LEARNED.encode("<|call|>")
    assert MORE.encode("<|call|>", frozenset({"<|call|>"})) == [first + len(ADDED)]
    again = MORE.extended(["again"])
    assert again.encode("again foxes") == [MORE.vocab_size, *LEARNED.encode(" "), first + 1]


def test_a_multiple_of_64_stays_one_and_others_grow_by_what_is_new(shared: Path) -> None:
    assert MORE.vocab_size == 384
    assert "<|reserved_13|>" in MORE.special  # those of a learned vocabulary end at 12
    assert LEARNED.extended([f"token {number}" for number in range(64)]).vocab_size == 384
    assert LEARNED.extended([f"token {number}" for number in range(65)]).vocab_size == 448
    assert Tokenizer.load(shared / "data" / "tokenizers" / "gpt2").extended(["Füchse"]).vocab_size == 50258


def test_a_real_text_keeps_its_ids_but_for_the_new_tokens(shared: Path) -> None:
    gpt2 = Tokenizer.load(shared / "data" / "tokenizers" / "gpt2")
    new = [" Marcius", "MENENIUS:\n", "\n\nFirst"]
    more = gpt2.extended(new)
    text = gzip.decompress((shared / "data" / "corpora" / "tinyshakespeare.txt.gz").read_bytes()).decode()[:200_000]
    untouched = [line for line in text.splitlines() if not any(token in line for token in new)]
    assert len(untouched) > 5000
    assert more.encode_batch(untouched) == gpt2.encode_batch(untouched)
    ids = more.encode(text)
    assert more.decode(ids) == text
    assert all(ids.count(more.added[token]) > 10 for token in new)


@pytest.mark.parametrize(
    ("added", "special", "message"),
    [
        ([""], [], "an empty text cannot be a token"),
        (["fox", "fox"], [], "the token 'fox' is named twice"),
        (["<|tool|>"], ["<|tool|>"], "'<|tool|>' is named twice"),
        (["<|endoftext|>"], [], r"'<|endoftext|>' is a special token already: id 304"),
        ([], ["the"], r"'the' is a token already: id 257"),
        (["a"], [], "'a' is a token already: id 64"),
        (["é"], [], r"'é' cannot be a token: tokenizer.json writes b'\xe9', id 165, with the same characters"),
        (["\ud800"], [], "'\\ud800' cannot be a token: surrogates not allowed"),
    ],
)
def test_what_cannot_be_a_token_is_refused(added: list[str], special: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        LEARNED.extended(added, special)
    assert message in str(caught.value)


def test_an_added_token_cannot_be_added_again() -> None:
    with pytest.raises(SettingsError, match="'foxes' is an added token already: id 321"):
        MORE.extended(["foxes"])


# --- the model ---


HEADS: dict[str, dict[str, Any]] = {
    "tied": {},
    "not tied": {"head": {"tied": False}},
    "not tied, with a bias and a soft cap": {"head": {"tied": False, "bias": True, "soft_cap": 5.0}},
    "tied, with a bias": {"head": {"bias": True}},
    "tokens' vectors narrower than the model, scaled, normed": {
        "d_embedding": 8,
        "embedding_scale": 3.0,
        "embedding_norm": True,
    },
    "classes": {"head": {"kind": "classes", "n_classes": 3}},
    "a number": {"head": {"kind": "scalar"}},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rows", [320, 350], ids=["", "padded"])
def test_old_ids_keep_their_scores(save: Saved, head: str, rows: int) -> None:
    source = save(HEADS[head], rows=rows)
    extend(source, source.with_name("extended"), ADDED, SPECIAL)
    old, new, model = before_and_after(source, 320)
    assert model.config.vocab_size == 384
    scored = 320 if model.config.head.kind == "language_model" else old.shape[2]
    # float32; a product with more columns may add up in another order
    assert_close(new[..., :scored], old[..., :scored], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["tied", "not tied", "tied, with a bias"])
def test_a_new_token_scores_as_the_mean_of_its_pieces(save: Saved, head: str) -> None:
    source = save(HEADS[head])
    done = extend(source, source.with_name("extended"), ADDED, SPECIAL)
    _, scores, model = before_and_after(source, 320)
    assert model.embed is not None
    for text, number in done.ids.items():
        pieces = LEARNED.encode(text)
        assert done.pieces[text] == [LEARNED.decode([i]) for i in pieces]
        assert_close(scores[..., number], scores[..., pieces].mean(dim=-1), atol=1e-5, rtol=1e-5)
        assert_close(model.embed.weight[number], model.embed.weight[pieces].mean(dim=0))
    assert (scores[..., 320:].amax(dim=-1) <= scores[..., :320].amax(dim=-1)).all()  # so none is ever the best


@pytest.mark.slow
def test_rows_that_a_published_model_has_to_spare_are_taken_first(tmp_path: Path, shared: Path) -> None:
    """GPT-2's 50,257 ids in 50,304 rows, as some train it; and in as many rows as ids."""
    gpt2 = Tokenizer.load(shared / "data" / "tokenizers" / "gpt2")
    sizes = {"n_positions": 24, "n_embd": 8, "n_layer": 1, "n_head": 2, "initializer_range": 0.5}
    for rows, more in ((50304, 50304), (50257, 50260)):
        torch.manual_seed(0)
        source = tmp_path / str(rows) / "source"
        config = transformers.GPT2Config(vocab_size=rows, **sizes)
        transformers.GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(source)
        gpt2.save(source / "tokenizer.json")
        done = extend(source, source.with_name("extended"), [" Füchse", "🦊🦊"], ["<|tool|>"])
        assert done.ids == {" Füchse": 50257, "🦊🦊": 50258, "<|tool|>": 50259}
        assert done.rows == (rows, more)
        old, new, model = before_and_after(source, 50257)
        assert_close(new[..., :50257], old[..., :50257], atol=1e-5, rtol=1e-5)
        (_, stored), (_, before) = (
            read_weights(source.with_name("extended")),
            read_weights(source),
        )
        assert stored["embed.weight"].dtype == torch.bfloat16
        kept = [i for i in range(rows) if not 50257 <= i < 50260]
        assert torch.equal(stored["embed.weight"][kept], before["embed.weight"][kept])
        assert model.config.vocab_size == more


def test_what_an_extended_model_is_made_of_is_written_down(save: Saved) -> None:
    source = save({})
    (source / "generation.json").write_text('{"temperature": 0.25}')
    (source / "chat.json").write_text('{"layout": "text"}')
    out = source.with_name("extended")
    assert isinstance(extend(source, out, ["foxes"]), Extended)
    manifest = read_manifest(out, "model")
    assert manifest.inputs == {"base": read_manifest(source).digest}
    assert manifest.settings["extend"] == {"added": ["foxes"], "special": []}
    assert manifest.statistics["steps"] == 7
    assert json.loads((out / "generation.json").read_text()) == {"temperature": 0.25}
    assert json.loads((out / "chat.json").read_text()) == {"layout": "text"}
    model, tokenizer = groundup.load(out, device="cpu")
    assert tokenizer is not None
    assert tokenizer.added == {"foxes": 320}
    assert sum(manifest.statistics["parameters"].values()) == sum(p.numel() for p in model.parameters())
    extend(out, source.with_name("again"), special=["<|tool|>"])
    assert read_manifest(source.with_name("again")).inputs == {"base": manifest.digest}


def test_the_same_model_of_others_has_the_same_digest(tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> str:
        torch.manual_seed(seed)
        sizes = {"vocab_size": 320, "n_positions": 24, "n_embd": 8, "n_layer": 1, "n_head": 2}
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / name)
        LEARNED.save(tmp_path / name / "tokenizer.json")
        extend(tmp_path / name, tmp_path / f"{name}-extended", ["foxes"])
        return read_manifest(tmp_path / f"{name}-extended").inputs["base"]

    assert digest("a", 0) == digest("b", 0) != digest("c", 1)


def test_nothing_is_written_where_something_cannot_be_done(save: Saved, tmp_path: Path, shared: Path) -> None:
    source = save({})
    out = tmp_path / "extended"
    with pytest.raises(SettingsError, match="name the tokens to add"):
        extend(source, out)
    with pytest.raises(SettingsError, match="'the' is a token already"):
        extend(source, out, ["the"])
    with pytest.raises(SettingsError, match="model exists and is left as it is"):
        extend(source, source, ["foxes"])
    with pytest.raises(DataError, match="a tokenizer of sentencepiece cannot be extended"):
        extend(shared / "data" / "weights" / "stories260K" / "stories260K.bin", out, ["foxes"])
    with pytest.raises(DataError, match="no model at"):
        extend(tmp_path / "nothing", out, ["foxes"])
    (source / "manifest.json").unlink()
    MORE.save(source / "tokenizer.json")
    with pytest.raises(SettingsError, match="384 ids, the model rows for 320: take the tokens from .* out"):
        extend(source, out, ["fresh"])
    (source / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="model has no tokenizer: put its tokenizer.json beside config.json"):
        extend(source, out, ["foxes"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_damaged_model_is_not_extended(save: Saved) -> None:
    source = save({})
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-5] ^= 4
    (source / "model.safetensors").write_bytes(weights)
    with pytest.raises(DamagedError, match=r"sha256 of model\.safetensors"):
        extend(source, source.with_name("extended"), ["foxes"])


def test_a_file_of_tokens_has_one_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeff golden apple\r\n\nfoxes \n Füchse".encode())
    assert read_tokens(file) == [" golden apple", "foxes ", " Füchse"]
    file.write_bytes(b"foxes\n\xff")
    with pytest.raises(DataError, match=r"words\.txt is not UTF-8: invalid start byte at byte 6"):
        read_tokens(file)
    with pytest.raises(DataError, match="cannot read"):
        read_tokens(tmp_path / "nothing")
