"""Proposals: whatever the texts and the machine, a recipe that loads, fits, and says what it was planned to say."""

import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.artifacts import read_manifest
from groundup.building import build
from groundup.corpus.settings import CorpusSettings
from groundup.errors import DataError, ResourceError, SettingsError
from groundup.model.presets import PRESETS
from groundup.plan.hardware import Machine, this_machine
from groundup.recipe import Recipe
from groundup.tools.new import BYTES_PER_PARAMETER, PARAMETERS_PER_TOKEN, Proposal, propose, to_toml
from groundup.tools.survey import Survey, survey

LAPTOP = Machine("2 CPU cores, 16 GB", True, 16_000_000_000, 200e9, 4.0, 300, True)
SERVER = Machine("NVIDIA H200", False, 141_000_000_000, 989e12, 0.25, 512, False)
WORDS = (
    "once",
    "upon",
    "a",
    "time",
    "there",
    "lived",
    "an",
    "old",
    "king",
    "who",
    "had",
    "a",
    "golden",
    "apple",
    "tree",
)


def texts(number: int, words_each: int, scale: float = 1.0) -> Survey:
    """A survey of so many documents that are not alike."""
    turned = [WORDS[n % len(WORDS) :] + WORDS[: n % len(WORDS)] for n in range(number)]
    made = [" ".join((turn * (1 + words_each // len(turn)))[:words_each]) + f" {n}" for n, turn in enumerate(turned)]
    found = Survey(CorpusSettings(sources=("my-texts",)), files=_counter(number), left_out=_counter(0))
    found.texts, found.read, found.scale = made, number, scale
    return found


def _counter(number: int) -> "Counter[str]":
    return Counter({".txt": number} if number else {})


@pytest.fixture(scope="module")
def tales() -> Survey:
    return survey(("groundup:storybook",), Path())


def read_back(proposal: Proposal) -> Recipe:
    return Recipe.from_table(tomllib.loads(to_toml(proposal, "groundup new")))


@pytest.mark.parametrize("minutes", [3, 10, 600])
@pytest.mark.parametrize("machine", [LAPTOP, SERVER], ids=["laptop", "server"])
def test_the_written_recipe_is_the_planned_one_and_keeps_to_the_time(
    tales: Survey, machine: Machine, minutes: float
) -> None:
    plan = propose("tales", tales, machine, minutes=minutes)
    assert read_back(plan) == plan.recipe
    assert plan.seconds <= minutes * 60
    assert plan.recipe.pretrain.sample_prompt == "There was once a"
    assert plan.chosen.model.parameters <= PARAMETERS_PER_TOKEN * plan.chosen.unique_tokens
    assert plan.chosen.model.parameters * BYTES_PER_PARAMETER < machine.memory_bytes


def test_more_time_is_a_larger_model_or_longer_reading_until_the_text_is_used_up(tales: Survey) -> None:
    plans = [propose("tales", tales, LAPTOP, minutes=minutes) for minutes in (2, 10, 60, 600, 6000)]
    flops = [plan.chosen.model.parameters * plan.tokens for plan in plans]
    assert flops == sorted(flops)
    assert not plans[0].chosen.ends_early
    assert plans[-1].chosen.ends_early
    assert plans[-1].passes == pytest.approx(8, rel=0.1)


def test_the_estimate_of_tokens_is_near_what_the_tokenizer_then_makes(tales: Survey) -> None:
    """docs/numbers.md: 4,096 ids make 3.71 bytes a token of these tales, 1,170,000 tokens to train on."""
    plan = propose("tales", tales, LAPTOP, size=3.4e6)
    assert plan.recipe.table()["tokenizer"]["vocab_size"] == 4096
    assert plan.chosen.bytes_per_token == pytest.approx(3.71, rel=0.15)
    assert plan.chosen.unique_tokens == pytest.approx(1_170_000, rel=0.15)


@settings(max_examples=40)
@given(
    number=st.integers(20, 300),
    words_each=st.integers(30, 400),
    scale=st.floats(1, 1e6),
    minutes=st.one_of(st.none(), st.floats(0.01, 1e5)),
    size=st.one_of(st.none(), st.floats(1e5, 5e8)),
)
def test_any_texts_and_any_budget_give_a_recipe_that_reads_back(
    number: int, words_each: int, scale: float, minutes: float | None, size: float | None
) -> None:
    plan = propose("any", texts(number, words_each, scale), LAPTOP, minutes=minutes, size=size)
    assert read_back(plan) == plan.recipe
    assert plan.recipe.pretrain.steps >= 1
    assert plan.passes < 9 + plan.recipe.pretrain.batch_tokens * 4 / plan.chosen.unique_tokens
    if size is not None:
        assert size / 2.6 < plan.chosen.model.parameters < size * 2.6 or plan.chosen.model.d_model == 64


@pytest.mark.parametrize(
    "preset",
    ["gpt2", "opt-350m", "pythia-1b", "bloom-560m", "llama-7b", "llama3.1-8b", "smollm2-135m", "qwen3-30b-a3b"],
)
def test_a_preset_keeps_its_blocks_and_sizes(preset: str) -> None:
    everything = Machine("a data centre", False, 10**15, 1e18, 0.25, 512, False)
    plan = propose("big", texts(50, 400, 1e5), everything, preset=preset)
    published = PRESETS[preset]
    ours, theirs = plan.recipe.model.table(), published.model.table()
    assert {**ours, "context_length": 0} == {key: value for key, value in theirs.items() if key != "vocab_size"} | {
        "context_length": 0
    }
    assert read_back(plan) == plan.recipe
    if published.learning_rate is not None:
        assert plan.recipe.pretrain.optimizer.learning_rate == published.learning_rate


@pytest.mark.parametrize("source", ['a "quoted" folder', "Übung/日本語", "back\\slash", "tab\there", "x # y"])
def test_names_of_any_kind_come_back_from_the_recipe(source: str) -> None:
    found = texts(50, 60)
    found.corpus = CorpusSettings(sources=(source,), text_field="stor\"y'")
    found.texts = [text + ' "\\ \u2028\x7f' for text in found.texts]
    plan = propose("quoted", found, LAPTOP)
    assert read_back(plan).corpus == found.corpus


def test_texts_without_blanks_between_words_begin_with_characters() -> None:
    found = texts(3, 400)
    found.texts = [
        f"むかしむかし、あるところに、おじいさんと{n}人のおばあさんが住んでいました。" * 30 for n in range(9)
    ]
    plan = propose("mukashi", found, LAPTOP)
    assert plan.recipe.pretrain.sample_prompt == "むかしむかし、あ"


def test_what_cannot_be_is_refused_with_an_answer() -> None:
    with pytest.raises(DataError, match=r"only about [\d,]+ bytes of text to train on"):
        propose("x", texts(1, 20), LAPTOP)
    with pytest.raises(
        ResourceError, match=r"million parameters takes about \d+ GB in training .* this machine has 16"
    ):
        propose("x", texts(50, 400, 1e4), LAPTOP, size=8e9)
    with pytest.raises(SettingsError, match="no preset 'gpt3'; did you mean gpt2"):
        propose("x", texts(50, 100), LAPTOP, preset="gpt3")
    with pytest.raises(SettingsError, match="--minutes is -1"):
        propose("x", texts(50, 100), LAPTOP, minutes=-1)


def test_it_is_all_there_as_plain_values(tales: Survey) -> None:
    plan = propose("tales", tales, LAPTOP)
    table = json.loads(json.dumps(plan.table()))
    assert table["documents"] == 784
    assert table["parameters"] == plan.chosen.model.parameters
    assert Recipe.from_table(table["settings"]) == plan.recipe


def test_memory_is_counted_as_the_count_counts_it() -> None:
    from groundup.optim.memory import state_bytes
    from groundup.optim.settings import AdamW, Bfloat16

    kept = state_bytes(PRESETS["gpt2"].model, Bfloat16(), AdamW())
    assert sum(kept.values()) == BYTES_PER_PARAMETER * 124_439_808


ODD = {
    "names": {"a.jsonl": "".join(json.dumps({"text": f"ba{'lo' * (n % 7)}mi{n:x}"}) + "\n" for n in range(400))},
    "emoji": {"all.txt": "</s>".join("🦊🐻🌲🌊😀"[n % 5] * (n % 9 + 1) + "🏔️" * (n // 9) for n in range(200))},
}


@pytest.mark.parametrize("kind", ODD)
def test_a_recipe_for_odd_texts_goes_through_the_build(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for name, text in ODD[kind].items():
        (Path("texts") / name).write_text(text)
    sampled = survey(("texts",), Path())
    plan = propose(kind, sampled, LAPTOP)
    written = to_toml(plan, "groundup new")
    Path("odd.toml").write_text(written)
    changes = [
        "model.d_model=16", "model.n_layers=1", "model.n_heads=1", "model.d_ff=16", "pretrain.steps=2",
        "pretrain.schedule.warmup_steps=1", f"pretrain.batch_tokens={4 * plan.chosen.model.context_length}",
        "pretrain.device=cpu", "pretrain.precision=float32", "pretrain.compile=false", "evals.prompts=['']",
        "pretrain.sample_tokens=4",
    ]  # fmt: skip
    run = build("odd.toml", changes, say=lambda text: None).run
    told = read_manifest(run / "corpus").statistics
    assert sum(told[split]["documents"] for split in ("train", "validation", "test")) == sampled.documents
    if kind == "names":
        assert plan.chosen.model.context_length == 16
        assert "many documents are short, so none is dropped for that" in written
    else:
        assert "most have few letters, as code, tables and emoji have" in written.replace("\n# ", " ")
    assert (sampled.corpus.separator == "</s>") == ("separator =" in written) == (kind == "emoji")


def test_a_refusal_says_what_was_seen_and_dropped() -> None:
    found = texts(4, 8)
    found.tally.counts["exact duplicate"], found.read = 96, 100
    least = "with a context of 16, 256 are the least. Kept are 4 documents of 100 read. Dropped: 96 × exact duplicate"
    with pytest.raises(DataError, match=rf"only about \d+ bytes of text to train on, \d+ tokens; {least}"):
        propose("x", found, LAPTOP)


def test_what_was_typed_stays_a_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story_texts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "two\nname = 'other'"
    folder.mkdir()
    for number, text in enumerate(story_texts[:30]):
        (folder / f"{number}.txt").write_text(text)
    proposal = propose("mine", survey((str(folder),), Path()), this_machine())
    (tmp_path / "mine.toml").write_text(to_toml(proposal, f"groundup new mine --from '{folder}'"))
    assert Recipe.load(tmp_path / "mine.toml").name == "mine"
