"""Text comes in whole characters and without stop strings, many at once; constraints hold."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import groundup
from groundup.errors import SettingsError
from groundup.generation.settings import Sampling
from groundup.generation.text import Text, Writer, stream
from groundup.model.settings import ModelConfig
from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer


def wide(config: ModelConfig) -> Transformer:
    return Transformer(config.with_vocabulary(320), seed=1).eval()


def test_a_seed_gives_one_text_and_another_seed_another(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    model = wide(llama)
    texts = [groundup.generate(model, tokenizer, "the", max_tokens=30, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_reserved_tokens_are_never_written(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    text = groundup.generate(wide(llama), tokenizer, "the", max_tokens=400, temperature=5.0, seed=2)
    assert "<|" not in text


def test_streamed_parts_put_together_the_text(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    model = wide(llama)
    parts = list(stream(model, tokenizer, "the", Sampling(max_tokens=40, temperature=1.5)))
    assert "".join(parts) == groundup.generate(model, tokenizer, "the", max_tokens=40, temperature=1.5)
    assert parts == list(groundup.generate(model, tokenizer, "the", stream=True, max_tokens=40, temperature=1.5))
    assert len(parts) > 5


def test_texts_together_are_what_each_is_alone(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    model, prompts = wide(llama), ["the", "a fox", "the"]
    together = groundup.generate(model, tokenizer, prompts, max_tokens=20, stop="e", seed=4)
    alone = [
        groundup.generate(model, tokenizer, prompt, max_tokens=20, stop="e", seed=4 + n)
        for n, prompt in enumerate(prompts)
    ]
    assert together == alone and not any("e" in text for text in together)


def test_who_stops_reading_ends_the_answer(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    writer = Writer(wide(llama), tokenizer)
    answer = writer.submit("the", Sampling(max_tokens=100))
    parts = writer.parts(answer)
    next(parts)
    parts.close()
    assert answer.ending == "cancelled" and writer.engine.is_idle and writer.engine.schedule.pages.held == 0


def test_two_readers_take_turns_and_an_abandoned_one_leaves_the_mode(llama: ModelConfig, tokenizer: Tokenizer) -> None:
    model = wide(llama).train()
    one, other = (stream(model, tokenizer, "the", Sampling(temperature=0, max_tokens=20)) for _ in range(2))
    turns = [(next(one), model.training, next(other), model.training) for _ in range(3)]
    del one, other
    assert model.training
    assert all(first == second and after and at_last for first, after, second, at_last in turns)


@pytest.mark.parametrize("text", ["naïve 👩‍🚀 café", "\N{BOM}日本語"])
def test_no_half_character_comes_however_a_text_is_cut_into_tokens(text: str) -> None:
    tokenizer = Tokenizer.learn(["low lower"], vocab_size=320)
    whole = Text(tokenizer, (), follows=True)
    parts = [whole.add([i]) for i in tokenizer.encode(text)]
    assert "".join(parts) == text and not any("\ufffd" in part for part in parts) and whole.end() == ""


def test_bytes_that_never_become_a_character_are_marked() -> None:
    tokenizer = Tokenizer.learn(["low lower"], vocab_size=320)
    ids = [tokenizer.tokens.index(bytes([byte])) for byte in b"a\xf0\x9fb\xe2\x82"]
    text = Text(tokenizer, (), follows=True)
    assert [text.add([i]) for i in ids] + [text.end()] == ["a", "", "", "\ufffdb", "", "", "\ufffd"]


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_end_the_text_however_it_is_cut(text: str, stop: list[str], data: st.DataObject) -> None:
    tokenizer = Tokenizer.learn(["low lower"], vocab_size=320)
    reader = Text(tokenizer, tuple(stop), follows=True)
    ids, shown = tokenizer.encode(text), ""
    while ids:
        size = data.draw(st.integers(1, len(ids)))
        shown += reader.add(ids[:size])
        ids = ids[size:]
        if reader.is_stopped:
            break
    shown += reader.end()
    if any(s in text for s in stop):
        assert reader.is_stopped and text.startswith(shown) and not any(s in shown for s in stop)
    else:
        assert shown == text and not reader.is_stopped


@pytest.mark.parametrize("seed", range(3))
def test_answers_fit_the_pattern_and_the_schema(llama: ModelConfig, tokenizer: Tokenizer, seed: int) -> None:
    model = wide(llama)
    text = groundup.generate(model, tokenizer, "the", regex="(ja|nein)( [a-f]{3})?[.]", max_tokens=20, seed=seed)
    assert text in {"ja.", "nein."} or (text[-5] == " " and {*text[-4:-1]} <= {*"abcdef"})
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Alan"]}, "old": {"type": "boolean"}},
        "required": ["name", "old"],
        "additionalProperties": False,
    }
    read = json.loads(
        groundup.generate(model, tokenizer, "the", json_schema=json.dumps(schema), max_tokens=40, seed=seed)
    )
    assert read["name"] in {"Ada", "Alan"} and isinstance(read["old"], bool)


@pytest.mark.parametrize(
    ("constraint", "why"),
    [
        ({"regex": "(a"}, "unclosed group"),
        ({"json_schema": "{a"}, "key must be a string"),
        ({"json_schema": '{"type": "objekt"}'}, "Invalid type"),
    ],
)
def test_a_constraint_that_is_none_is_refused(
    llama: ModelConfig, tokenizer: Tokenizer, constraint: dict[str, str], why: str
) -> None:
    with pytest.raises(SettingsError, match=why):
        groundup.generate(wide(llama), tokenizer, "the", **constraint)
