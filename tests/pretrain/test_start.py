"""Training that begins with another model's weights: the loss at step 1 is that model's own, or it is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

import groundup
from groundup import loader
from groundup.corpus.survey import survey
from groundup.errors import DamagedError, DataError, SettingsError
from groundup.files import read_manifest
from groundup.plan.hardware import Machine
from groundup.pretrain import run as pretrain_run
from groundup.propose import propose, read_start, to_toml
from groundup.recipe import Built, Recipe, build
from groundup.shards import open_split
from groundup.tokenizer.tokenizer import Tokenizer

STEPS = ["pretrain.steps=6", "pretrain.validate_every=6", "pretrain.sample_every=6", "pretrain.checkpoint_every=3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """A folder with a finished run, and a recipe that goes on from it."""
    home = settle(tmp_path_factory.mktemp("start")).parent
    build(home / "tiny.toml", STEPS, run=home / "runs" / "tiny", say=lambda text: None)
    return home


def go_on(home: Path, start: Path, run: str, *overrides: str, tokenizer: Path | None = None) -> Built:
    return build(
        home / "tiny.toml",
        [
            *STEPS,
            "tokenizer.kind=existing",
            f"tokenizer.path={tokenizer or start}",
            f"pretrain.start={start}",
            "model.dropout=0.0",
            *overrides,
        ],
        run=home / "runs" / run,
        say=lambda text: None,
    )


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@torch.no_grad()
def own_loss(start: Path, run: Path) -> float:
    """Of the model in `start`, on the rows of the run's first step: each row's documents apart, one by one."""
    model, _ = groundup.load(start, device="cpu")
    pretrain = Recipe.load(run / "recipe.toml").pretrain
    batch = loader.rows(open_split(run / "shards", "train"), 16, pretrain.seed, 0, pretrain.batch_tokens // 16)
    summed = 0.0
    for tokens, targets, document in zip(batch.tokens, batch.targets, batch.document, strict=True):
        for number in document.unique():
            of_it = document == number
            summed += cross_entropy(model(tokens[of_it][None])[0], targets[of_it], reduction="sum").item()
    return summed / batch.weight.sum().item()


def test_the_first_loss_is_that_of_the_model_that_it_starts_from(made: Path) -> None:
    start = made / "runs" / "tiny" / "model"
    run = go_on(made, start, "ours").run
    assert losses(run)[0] == pytest.approx(own_loss(start, run), rel=1e-5)  # float32, another order of sums
    assert losses(run)[0] < losses(made / "runs" / "tiny")[0]
    assert read_manifest(run / "model").inputs["start"] == read_manifest(start).digest
    assert "It began with the weights of another model" in (run / "report.html").read_text()
    for saved in (run / "pretrain" / "checkpoints").iterdir():
        assert read_manifest(saved).inputs["start"] == read_manifest(start).digest


def test_heads_for_further_tokens_are_drawn_beside_the_weights_that_are_taken(made: Path) -> None:
    start = made / "runs" / "tiny"
    run = go_on(made, start, "ahead", "pretrain.loss.kind=multi_token", tokenizer=start / "model").run
    first = json.loads((run / "pretrain" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["next_token"] == pytest.approx(own_loss(start, run), rel=1e-5)
    assert first["token_2"] > 5  # ln 320 = 5.8: a head that was only drawn


HUGGING_FACE = {
    "gpt2": {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "tie_word_embeddings": True},
    "llama": {
        "max_position_embeddings": 64,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "tie_word_embeddings": False,
    },
}
AS_RECIPE = {
    "gpt2": [
        "model.d_ff=64", "model.position=learned", "model.norm.kind=layernorm", "model.attention.bias=all",
        "model.feedforward.kind=gelu", "model.feedforward.approximate=tanh", "model.n_kv_heads=2",
    ],
    "llama": ["model.d_ff=24", "model.n_kv_heads=1", "model.head.tied=false", "model.norm.epsilon=1e-6"],
}  # fmt: skip


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_a_model_of_hugging_face_goes_on_from_its_own_loss(made: Path, tmp_path: Path, kind: str) -> None:
    """With more rows than its tokenizer has ids, as many published models."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **HUGGING_FACE[kind], vocab_size=333)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    Tokenizer.load(made / "runs" / "tiny" / "tokenizer").save(tmp_path / "tokenizer.json")
    run = go_on(made, tmp_path, kind, *AS_RECIPE[kind]).run
    assert losses(run)[0] == pytest.approx(own_loss(tmp_path, run), rel=1e-5)
    model, _ = groundup.load(run, device="cpu")
    assert model.config.vocab_size == 333


def test_interrupted_it_goes_on_from_its_checkpoint_and_reads_the_start_no_more(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = made / "runs" / "tiny"
    whole = go_on(made, start, "whole", tokenizer=start / "model").run
    real = pretrain_run.RunLog.event

    def stop_at_three(log: object, event: str, **details: object) -> None:
        real(log, event, **details)  # type: ignore[arg-type]
        if event == "saved" and details["step"] == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain_run.RunLog, "event", stop_at_three)
        with pytest.raises(KeyboardInterrupt):
            go_on(made, start, "cut", tokenizer=start / "model")
    monkeypatch.setattr("groundup.pretrained.load", None)
    with pytest.raises(TypeError):  # only the evaluation after it loads a model: the one just trained
        go_on(made, start, "cut", tokenizer=start / "model")
    assert losses(made / "runs" / "cut") == losses(whole)
    assert read_manifest(made / "runs" / "cut" / "model").digest == read_manifest(whole / "model").digest


def test_a_model_of_another_shape_is_refused_with_what_differs(made: Path) -> None:
    start = made / "runs" / "tiny" / "model"
    with pytest.raises(SettingsError) as refused:
        go_on(made, start, "shape", "model.n_heads=4", "model.head.tied=false")
    told = str(refused.value)
    assert "model.n_heads: 4 in the recipe, 2 there" in told
    assert "model.head.tied: false in the recipe, true there" in told
    assert f"groundup new NAME --from TEXTS --start {start}" in told
    assert not (made / "runs" / "shape" / "pretrain").exists(), "the mended recipe is not a changed one"


def test_what_no_weight_depends_on_may_differ(made: Path) -> None:
    start = made / "runs" / "tiny" / "model"
    assert go_on(made, start, "shorter", "model.context_length=32", "model.n_kv_heads=2", "model.dropout=0.2").run


def test_another_tokenizer_than_the_models_own_is_refused(made: Path) -> None:
    start = made / "runs" / "tiny" / "model"
    with pytest.raises(SettingsError, match=r"\(384 ids, .*is not that of the model in .*\(320 ids"):
        build(
            made / "tiny.toml",
            [*STEPS, "tokenizer.vocab_size=384", f"pretrain.start={start}"],
            run=made / "runs" / "other",
            say=lambda text: None,
        )


def test_a_model_that_is_missing_or_damaged_is_refused(made: Path, tmp_path: Path) -> None:
    tokenizer = made / "runs" / "tiny" / "model"
    with pytest.raises(DataError, match="model nowhere is missing: looked at"):
        go_on(made, Path("nowhere"), "gone", tokenizer=tokenizer)
    damaged = tmp_path / "model"
    damaged.mkdir()
    for file in tokenizer.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    with pytest.raises(DamagedError, match="model"):
        go_on(made, damaged, "damaged", tokenizer=tokenizer)


LAPTOP = Machine("2 CPU cores, 16 GB", True, 16_000_000_000, 200e9, 4.0, 300, True)


def test_new_writes_a_recipe_that_goes_on_from_the_model(made: Path) -> None:
    start = read_start(made / "runs" / "tiny")
    sampled = survey((str(made / "tales"),), Path())
    plan = propose("on", sampled, LAPTOP, start=start)
    text = to_toml(plan, "groundup new on --from tales --start runs/tiny")
    (made / "on.toml").write_text(text)
    recipe = Recipe.load(made / "on.toml")
    assert recipe == plan.recipe
    assert "arXiv:2403.08763" in text
    assert recipe.model.with_vocabulary(320) == start.model
    packed = read_manifest(made / "runs" / "tiny" / "shards").statistics["train"]
    assert plan.bytes_per_token == pytest.approx(packed["bytes"] / packed["tokens"], rel=0.05)
    new = propose("new", sampled, LAPTOP, minutes=10, size=1e4).recipe.pretrain
    assert recipe.pretrain.optimizer.learning_rate < new.optimizer.learning_rate
    assert 1 <= (recipe.pretrain.schedule.warmup_steps or 0) <= recipe.pretrain.steps / 50
    short = ["pretrain.steps=2", "pretrain.schedule.warmup_steps=1", "pretrain.sample_prompt=Tale", "model.dropout=0.0"]
    short += ["evals.prompts=['']", "evals.sampling.max_tokens=2", "pretrain.sample_tokens=2"]
    short += ["pretrain.device=cpu", "pretrain.precision=float32"]
    run = build(made / "on.toml", short, run=made / "runs" / "on", say=lambda text: None).run
    assert losses(run)[0] == pytest.approx(own_loss(made / "runs" / "tiny", run), rel=1e-5)


def test_new_does_not_go_on_from_what_it_cannot(made: Path, tmp_path: Path) -> None:
    start, sampled = read_start(made / "runs" / "tiny"), survey((str(made / "tales"),), Path())
    with pytest.raises(SettingsError, match="has a size of its own: leave --size and --preset out"):
        propose("on", sampled, LAPTOP, start=start, preset="gpt2")
    with pytest.raises(DataError, match="no model at"):
        read_start(tmp_path / "gone")
