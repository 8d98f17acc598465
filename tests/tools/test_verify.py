"""Verify: what a recipe is shrunk to, and what is said of a layout that is equal, unequal, or impossible."""

import math
from pathlib import Path

import pytest

from groundup.errors import SettingsError
from groundup.model.presets import PRESETS
from groundup.model.settings import ModelConfig
from groundup.parallel.settings import AXES, ParallelSettings
from groundup.pretrain.settings import PretrainSettings
from groundup.tools.shrink import MOST_RANKS, Trial, shrink
from groundup.tools.verify import Difference, Stepping, Verdict, first_unequal, layout_words, likely, places, verify

RECIPE = Path(__file__).parents[2] / "recipes" / "storybook.toml"
LLAMA = {"vocab_size": 128256, "context_length": 8192, "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8,
         "d_ff": 14336}  # fmt: skip


def shrunk(model: dict, parallel: dict, **settings: object) -> Trial:
    layout = ParallelSettings.from_table(parallel)
    config, pretrain = ModelConfig.from_table(model), PretrainSettings.from_table(settings)
    return shrink(config, pretrain, layout, layout.fewest_ranks)[0]


def test_a_shrunk_model_divides_over_ranks_just_where_the_model_does() -> None:
    for tensor in (2, 4, 8):
        trial = shrunk(LLAMA | {"vocab_size": 50257, "n_layers": 33}, {"tensor": tensor, "pipeline": 8 // tensor})
        small, n = trial.model, 8 // tensor
        assert trial.ranks == 8 and small.parameters < 300_000
        assert small.n_heads % tensor == 0 and small.kv_heads % tensor == 0 and small.n_heads > small.kv_heads
        assert small.d_ff % tensor == 0 and small.vocab_size % tensor != 0
        assert n == 1 or small.n_layers % n != 0
        assert small.context_length % tensor == 0


def test_more_ranks_than_key_value_heads_stay_more() -> None:
    trial = shrunk(LLAMA | {"n_kv_heads": 2}, {"tensor": 4})
    assert trial.model.kv_heads < 4 <= trial.model.n_heads


def test_kinds_and_their_relations_are_kept() -> None:
    trial = shrunk(
        LLAMA
        | {
            "position": {"kind": "rotary", "fraction": 0.25},
            "attention": {"kind": "grouped_query", "window": 1024, "windowed_layers": [True, False], "soft_cap": 50.0},
            "feedforward": {"kind": "experts", "n_experts": 64, "n_active": 6, "n_shared": 2},
            "head": {"kind": "language_model", "tied": False},
        },
        {"expert": 4, "tensor": 2},
        loss={"kind": "multi_token", "extra_tokens": 1},
        optimizer="muon",
    )
    small = trial.model
    assert small.attention.window is not None and small.attention.window < small.context_length
    assert small.attention.windowed_layers == (True, False) and small.attention.soft_cap == 50.0
    assert small.feedforward.n_experts % 4 == 0 and 1 < small.feedforward.n_active < small.feedforward.n_experts
    assert not small.head.tied and small.rotary_width < small.head_width
    assert trial.settings.optimizer.kind == "muon" and trial.settings.loss.kind == "multi_token"


def test_a_large_layout_is_tried_on_at_most_eight_ranks_and_says_so() -> None:
    layout = ParallelSettings(shard=64, tensor=8, pipeline=4, replicate=2)
    trial, said = shrink(ModelConfig.from_table(LLAMA), PretrainSettings(), layout, 64 * 8 * 4 * 2)
    sizes = {axis: getattr(trial.parallel, axis) for axis in AXES}
    assert trial.ranks == math.prod(sizes.values()) == MOST_RANKS
    assert sizes == {"pipeline": 2, "replicate": 1, "shard": 2, "context": 1, "tensor": 2}
    assert said == ["pipeline 4 is tried as 2", "replicate 2 is tried as 1", "shard 64 is tried as 2",
                    "tensor 8 is tried as 2"]  # fmt: skip


def test_a_shrunk_recipe_is_a_function_of_the_recipe() -> None:
    assert shrunk(LLAMA, {"tensor": 2}) == shrunk(LLAMA, {"tensor": 2})


def test_every_published_shape_shrinks() -> None:
    for preset in PRESETS.values():
        model = preset.model.model_copy(update={"vocab_size": 50257})
        small = shrink(model, PretrainSettings(), ParallelSettings(tensor=2, pipeline=2), 4)[0].model
        assert small.parameters < 500_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["parallel.tensor=16"], "each rank needs a head"),
        (["parallel.pipeline=64"], "as many layers"),
        (["parallel.expert=2"], "no experts"),
        ([], "of one rank"),
    ],
)
def test_what_cannot_be_is_refused_with_the_recipes_own_numbers(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        verify(RECIPE, words)


def verdict_of(*differences: Difference) -> Verdict:
    trial = shrunk(LLAMA, {"tensor": 2, "pipeline": 4})
    found: dict[Stepping, list[Difference]] = {"recipe": [], "sgd": list(differences)}
    return Verdict(trial, [], found)


def test_the_first_step_that_is_unequal_is_shown_by_module_with_what_is_likely_wrong() -> None:
    quarter = [Difference(1, "gradient", f"blocks.{layer}.norm.weight", 0.1 * (1 + layer), 0.25) for layer in range(2)]
    verdict = verdict_of(Difference(2, "loss", "", 0.5, 1.5), *quarter, Difference(1, "loss", "", 1e-15, 1.0))
    assert places(verdict)[1:] == [("gradient", "blocks.*.norm.weight", "2.0e-01", "0.25")]
    assert "1/4" in likely(verdict) and "pipeline" in likely(verdict)
    with pytest.raises(SettingsError):
        verdict.refuse_unequal()


def test_what_is_likely_wrong_follows_from_what_differs() -> None:
    assert "twice" in likely(verdict_of(Difference(1, "gradient", "a", 1.0, 2.0))).replace("2 times", "twice")
    assert "forward" in likely(
        verdict_of(Difference(1, "loss", "", 1.0, 2.0), Difference(1, "gradient", "a", 1.0, 2.0))
    )
    assert "norm" in likely(verdict_of(Difference(1, "gradient norm", "", 1.0, 2.0)))
    assert "optimizer" in likely(verdict_of(Difference(1, "weight", "a", 1.0, 2.0)))


def test_what_is_no_number_is_unequal() -> None:
    nan = Difference(3, "loss", "", math.nan, math.nan)
    assert first_unequal([nan, Difference(1, "loss", "", 1e-16, 1.0)], 1e-10) == [nan]
    assert not verdict_of(nan).is_equal


@pytest.mark.slow
def test_two_ranks_train_a_recipe_as_one_does() -> None:
    seen: list[str] = []
    words = ["parallel.tensor=2", "pretrain.average=ema", "model.dropout=0.1"]
    verdict = verify(RECIPE, words, progress=lambda done, total, what: seen.append(f"{done}/{total} {what}"))
    assert verdict.is_equal and verdict.table()["equal"], verdict.table()["unequal"]
    assert layout_words(verdict) == "equal to one process: 2 ranks, tensor 2"
    assert seen[-1] == "19/20 step 5 on 2 ranks, sgd"
    assert verdict.table()["largest_differences"]["recipe"]["average"] < 1e-10
