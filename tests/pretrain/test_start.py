"""Training that begins with another model's weights: the loss at step 1 is that model's own, or it is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

import groundup
from groundup.artifacts import read_manifest
from groundup.building import Built, build, examine
from groundup.errors import DamagedError, DataError, DivergedError, SettingsError
from groundup.plan.hardware import Machine
from groundup.pretrain.doctor import checks
from groundup.pretrain.doctor import run as doctor
from groundup.pretrain.doctor.checks import check_range
from groundup.pretrain.doctor.verdict import Verdict
from groundup.recipe import Recipe
from groundup.shards import open_split
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tools.new import propose, read_start, to_toml
from groundup.tools.survey import survey
from groundup.train import loader, log
from groundup.weights.extend import extend

STEPS = ["pretrain.steps=6", "pretrain.validate_every=6", "pretrain.sample_every=6", "pretrain.checkpoint_every=3"]
TRAINED = [
    "pretrain.steps=60",
    "pretrain.validate_every=60",
    "pretrain.sample_every=60",
    "pretrain.checkpoint_every=60",
]
TRAINED += ["pretrain.optimizer.learning_rate=0.03", "pretrain.schedule.warmup_steps=2"]
UNEXAMINED = "pretrain"
"""A build that ends with this stage does not ask the doctor."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """A folder with a finished run, and a recipe that goes on from it."""
    home = settle(tmp_path_factory.mktemp("start")).parent
    build(home / "tiny.toml", TRAINED, run=home / "runs" / "tiny", say=lambda text: None)
    return home


def going_on(start: Path, *overrides: str, tokenizer: Path | None = None) -> list[str]:
    settings = ["tokenizer.kind=existing", f"tokenizer.path={tokenizer or start}", f"pretrain.start={start}"]
    return [*STEPS, *settings, "model.dropout=0.0", *overrides]


def go_on(
    home: Path, start: Path, run: str, *overrides: str, tokenizer: Path | None = None, last: str | None = None
) -> Built:
    settings = going_on(start, *overrides, tokenizer=tokenizer)
    return build(home / "tiny.toml", settings, run=home / "runs" / run, last=last, say=lambda text: None)


def looked_at(home: Path, start: Path, run: str, *overrides: str, tokenizer: Path | None = None) -> dict[str, Verdict]:
    """The quick lines of the doctor, by what they checked."""
    settings = going_on(start, *overrides, tokenizer=tokenizer)
    lines = examine(home / "tiny.toml", settings, run=home / "runs" / run, only_quick=True, say=lambda text: None)
    return {line.check: line for line in lines}


def copied(model: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None], tokenizer: bool = True) -> Path:
    """A model with other weights: without its manifest, as one that another program made."""
    to.mkdir()
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, to / "model.safetensors")
    for name in ("config.json", *(["tokenizer.json"] if tokenizer else [])):
        (to / name).write_bytes((model / name).read_bytes())
    return to


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
    lines = looked_at(made, start, "ours")
    assert lines["loss at start"].finding.startswith(f"{losses(run)[0]:.3f} on the 4 rows of step 1; ")
    assert str(start) in lines["start"].finding
    assert [line for line in lines.values() if line.level == "error"] == []
    assert read_manifest(run / "model").inputs["start"] == read_manifest(start).digest
    assert "It began with the weights of another model" in (run / "report.html").read_text()
    for saved in (run / "pretrain" / "checkpoints").iterdir():
        assert read_manifest(saved).inputs["start"] == read_manifest(start).digest


def test_heads_for_further_tokens_are_drawn_beside_the_weights_that_are_taken(made: Path) -> None:
    start = made / "runs" / "tiny"
    ahead = "pretrain.loss.kind=multi_token"
    run = go_on(made, start, "ahead", ahead, tokenizer=start / "model", last=UNEXAMINED).run
    first = json.loads((run / "pretrain" / "metrics.jsonl").read_text().splitlines()[0])
    line = looked_at(made, start, "ahead", ahead, tokenizer=start / "model")["loss at start"]
    assert line.finding.startswith(f"{first['next_token']:.3f} on")
    assert first["next_token"] == pytest.approx(own_loss(start, run), rel=1e-5)
    assert first["token_2"] > 3 * first["next_token"]  # a head that was only drawn


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
    """With more rows than its tokenizer has ids, as many published models. These weights are only drawn."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **HUGGING_FACE[kind], vocab_size=333)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    Tokenizer.load(made / "runs" / "tiny" / "tokenizer").save(tmp_path / "tokenizer.json")
    run = go_on(made, tmp_path, kind, *AS_RECIPE[kind], last=UNEXAMINED).run
    assert losses(run)[0] == pytest.approx(own_loss(tmp_path, run), rel=1e-5)
    model, _ = groundup.load(run, device="cpu")
    assert model.config.vocab_size == 333
    line = looked_at(made, tmp_path, kind, *AS_RECIPE[kind])["loss at start"]
    assert (line.level, line.exit_code) == ("error", 5)
    assert (
        line.finding == f"{losses(run)[0]:.3f} on the 4 rows of step 1; a model that knows nothing has ln 333 = 5.808"
    )


def test_weights_that_belong_to_other_ids_stop_the_training_before_it_begins(made: Path, tmp_path: Path) -> None:
    def turn(weights: dict[str, torch.Tensor]) -> None:
        weights["embed.weight"] = weights["embed.weight"].roll(100, dims=0)

    model = made / "runs" / "tiny" / "model"
    start = copied(model, tmp_path / "turned", turn, tokenizer=False)
    with pytest.raises(
        DivergedError, match=r"loss at start: [\d.]+ on the 4 rows .* ln 320 = 5.768 → begin with"
    ) as told:
        go_on(made, start, "turned", tokenizer=model)
    assert told.value.exit_code == 5
    assert not (made / "runs" / "turned" / "pretrain").exists()


def test_numbers_that_are_not_finite_are_named_before_anything_is_trained(made: Path, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["blocks.0.feedforward.up.weight"][0, 3] = float("nan")

    start = copied(made / "runs" / "tiny" / "model", tmp_path / "nan", spoil)
    with pytest.raises(DataError, match=r"blocks\.0\.feedforward\.up\.weight"):
        go_on(made, start, "nan")
    assert not (made / "runs" / "nan" / "pretrain").exists()


@pytest.mark.parametrize("guard", ["rollback", "none"])
def test_a_loss_that_is_no_number_before_any_step_is_not_blamed_on_the_learning_rate(
    made: Path, tmp_path: Path, guard: str
) -> None:
    """Finite weights whose hidden states are not; the doctor says so too."""

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        weights["blocks.0.feedforward.down.weight"].fill_(3e38)

    start = copied(made / "runs" / "tiny" / "model", tmp_path / "large", enlarge)
    with pytest.raises(DivergedError) as told:
        go_on(made, start, f"large-{guard}", f"pretrain.guard.kind={guard}", last=UNEXAMINED)
    assert "No step was taken before it, so the learning rate has no part in it" in str(told.value)
    assert f"looks at the weights of {start}" in str(told.value)
    assert "Lower" not in str(told.value)
    lines = looked_at(made, start, f"large-{guard}", f"pretrain.guard.kind={guard}")
    assert lines["loss at start"].finding.startswith("nan on")
    assert {name for name, line in lines.items() if line.level == "error"} == {"loss at start"}


def test_the_doctor_tries_a_started_model_with_its_own_weights(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns, and goes on from a checkpoint, from where it begins; untouched, its loss is that of the first step."""
    start = made / "runs" / "tiny" / "model"
    monkeypatch.setattr(doctor, "estimate_cost", lambda *_: iter(()))
    tried: list[list[float]] = []

    def judge(rates: list[float], raised: list[float], untouched: list[float], *rest: Any) -> Verdict:
        tried.extend([raised, untouched])
        return check_range(rates, raised, untouched, *rest)

    monkeypatch.setattr(checks, "check_range", judge)
    settings = [*going_on(start), "pretrain.micro_batch_rows=4"]
    lines = list(examine(made / "tiny.toml", settings, run=made / "runs" / "whole", say=lambda text: None))
    seen = {line.check: line for line in lines}
    assert [line for line in lines if line.level == "error"] == []
    assert seen["resume"].finding.startswith("bit for bit the unbroken training")
    first = float(seen["loss at start"].finding.split()[0])
    assert {round(tried[0][0], 3), round(tried[1][0], 3), first} == {first}
    assert seen["overfits one batch"].finding.startswith(f"{first:.2f} to ")


def test_a_model_may_have_no_rows_for_ids_that_no_text_has(made: Path, tmp_path: Path) -> None:
    start = copied(made / "runs" / "tiny" / "model", tmp_path / "start", lambda weights: None, tokenizer=False)
    own = Tokenizer.load(made / "runs" / "tiny" / "model")
    own.extended(special=["<|pad|>"]).save(tmp_path / "tokenizer.json")
    run = go_on(made, start, "fewer", tokenizer=tmp_path / "tokenizer.json", last=UNEXAMINED).run
    assert losses(run)[0] == pytest.approx(own_loss(start, run), rel=1e-5)
    lines = looked_at(made, start, "fewer", tokenizer=tmp_path / "tokenizer.json")
    assert lines["loss at start"].finding.endswith("ln 320 = 5.768")
    assert [line for line in lines.values() if line.level == "error"] == []


def test_a_packed_id_without_a_row_is_refused_by_its_token(made: Path, tmp_path: Path) -> None:
    start = copied(made / "runs" / "tiny" / "model", tmp_path / "start", lambda weights: None, tokenizer=False)
    own = Tokenizer.load(made / "runs" / "tiny" / "model")
    own.extended([" apple for the"]).save(tmp_path / "tokenizer.json")
    with pytest.raises(
        SettingsError, match=r"a train document holds ' apple for the' \(id 320\), for which this model has no row"
    ):
        go_on(made, start, "added", tokenizer=tmp_path / "tokenizer.json")
    own.extended(["Onceupon"]).save(tmp_path / "tokenizer.json")
    with pytest.raises(
        SettingsError, match=r"the prompt 'Onceupon a' holds 'Onceupon' \(id 320\), for which this model has no row"
    ):
        go_on(made, start, "prompt", "pretrain.sample_prompt=Onceupon a", tokenizer=tmp_path / "tokenizer.json")


def test_added_tokens_of_which_a_model_knows_nothing_yet_do_not_stop_it(made: Path, tmp_path: Path) -> None:
    """The rest of the texts says whether the weights belong to the ids."""
    added = [" apple", " for the old", " queen who", " well the", " hill to", " fox went", " over the", " by the"]
    extend(made / "runs" / "tiny" / "model", tmp_path / "extended", added)

    def hide(weights: dict[str, torch.Tensor]) -> None:
        weights["embed.weight"][320 : 320 + len(added)] *= -2  # expected least where their pieces were most

    start = copied(tmp_path / "extended", tmp_path / "start", hide)
    line = looked_at(made, start, "extended")["loss at start"]
    seen = re.match(
        r"([\d.]+) on .* = 5\.951; ([\d.]+) without the tokens that were added to the vocabulary", line.finding
    )
    assert seen and float(seen[1]) > 5.951 > 5 > float(seen[2])
    assert line.level != "error"


def test_interrupted_it_goes_on_from_its_checkpoint_and_reads_the_start_no_more(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = made / "runs" / "tiny"
    whole = go_on(made, start, "whole", tokenizer=start / "model").run
    real = log.RunLog.event

    def stop_at_three(log: object, event: str, **details: object) -> None:
        real(log, event, **details)  # type: ignore[arg-type]
        if event == "saved" and details["step"] == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log.RunLog, "event", stop_at_three)
        with pytest.raises(KeyboardInterrupt):
            go_on(made, start, "cut", tokenizer=start / "model")
    for name in ("pretrain.start.load", "pretrain.start.load_model", "evals.run.load"):
        monkeypatch.setattr(f"groundup.{name}", None)
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
    assert plan.chosen.bytes_per_token == pytest.approx(packed["bytes"] / packed["tokens"], rel=0.05)
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
    with pytest.raises(SettingsError, match="and --start both set the size: give one of them"):
        propose("on", sampled, LAPTOP, start=start, preset="gpt2")
    with pytest.raises(DataError, match="no model at"):
        read_start(tmp_path / "gone")
    spoilt = tmp_path / "spoilt"
    shutil.copytree(made / "runs" / "tiny" / "model", spoilt)
    (spoilt / "manifest.json").unlink()
    weights = load_file(spoilt / "model.safetensors")
    weights["embed.weight"][3, 1] = float("nan")
    save_file(weights, spoilt / "model.safetensors")
    with pytest.raises(DataError, match=r"embed.weight holds numbers that are not finite"):
        read_start(spoilt)
    table = json.loads((spoilt / "tokenizer.json").read_text("utf-8")) | {"added_tokens": []}
    (spoilt / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(SettingsError, match="no token that opens a text"):
        read_start(spoilt)
