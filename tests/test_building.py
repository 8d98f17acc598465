"""The whole chain, in process: what is made, what is shared, what is refused, and that it never changes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import groundup
from groundup.artifacts import COMMANDS, read_manifest, verify, write_manifest
from groundup.batch import Batch
from groundup.building import Built, build
from groundup.errors import DamagedError, DataError, DivergedError, MissingError, SettingsError
from groundup.model.settings import ModelConfig
from groundup.optim.settings import Float32
from groundup.pretrain.before import check_fits
from groundup.pretrain.settings import MultiToken, NextToken, PretrainSettings
from groundup.pretrain.setup import make_loss, set_up, training_flops_per_token
from groundup.recipe import Recipe
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tools.inspect import inspect
from groundup.train import log


@pytest.fixture
def home(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(recipe.parent)
    return recipe.parent


@pytest.fixture
def finished(finished_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder that has the finished run, to be changed."""
    home = Path(shutil.copytree(finished_home, tmp_path / "home"))
    monkeypatch.chdir(home)
    return home


def quietly(*arguments: object, **options: object) -> Built:
    return build("tiny.toml", *arguments, **options, say=lambda text: None)  # type: ignore[arg-type]


def what(built: Built) -> dict[str, str]:
    return {row.stage: row.what for row in built.rows}


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_every_file_of_a_run_has_the_mode_that_open_gives(finished_home: Path, tmp_path: Path) -> None:
    (tmp_path / "opened").write_text("")
    files = [path for path in (finished_home / "runs").rglob("*") if path.is_file()]
    assert {"model.safetensors", "train.parquet", "train.npy", "lock", "metrics.jsonl"} <= {path.name for path in files}
    wanted = (tmp_path / "opened").stat().st_mode
    assert [path for path in files if path.stat().st_mode != wanted] == []


def test_a_build_makes_everything_once_and_then_nothing(home: Path) -> None:
    first = quietly()
    assert set(what(first).values()) == {"made"}
    assert [row.stage for row in first.rows] == ["corpus", "tokenizer", "pack", "pretrain", "eval", "report"]
    second = quietly()
    assert set(what(second).values()) == {"up to date"}
    assert [row.digest for row in first.rows] == [row.digest for row in second.rows]
    model, tokenizer = groundup.load("runs/tiny", device="cpu")
    assert tokenizer is not None
    assert groundup.generate(model, tokenizer, "Tale", max_tokens=5)
    for name in ("metrics.jsonl", "events.jsonl", "checkpoints"):
        assert (home / "runs" / "tiny" / "pretrain" / name).exists()
    assert Recipe.load(home / "runs" / "tiny" / "recipe.toml").pretrain.steps == 40


def test_every_stage_names_its_inputs_by_digest(finished: Path) -> None:
    run = finished / "runs" / "tiny"
    digests = {name: read_manifest(run / name).digest for name in COMMANDS}
    for name, inputs in {
        "tokenizer": ["corpus"],
        "shards": ["corpus", "tokenizer"],
        "model": ["shards", "tokenizer"],
        "evals": ["model", "shards"],
    }.items():
        assert read_manifest(run / name).inputs == {given: digests[given] for given in inputs}
    assert len(read_manifest(run / "corpus").inputs) == 40  # one for each file


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_recipe_twice_gives_the_same_losses_and_weights(home: Path, precision: str) -> None:
    changes = [f"pretrain.precision={precision}", "pretrain.steps=20"]
    runs = [quietly(changes, run=f"runs/{name}").run for name in ("one", "two")]
    assert losses(runs[0]) == losses(runs[1])
    assert len(losses(runs[0])) == 20
    digests = [read_manifest(run / "model").digest for run in runs]
    assert digests[0] == digests[1]


BLOCKS = {
    "experts": ["model.feedforward.kind=experts", "model.feedforward.n_experts=3"],
    "latent": ["model.attention.kind=latent", "model.attention.d_latent=8", "model.attention.d_rotary=4"],
    "multi_token": ["pretrain.loss.kind=multi_token", "pretrain.loss.extra_tokens=2"],
    "parallel, alibi": ["model.block.kind=parallel", "model.position.kind=alibi"],
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_other_blocks_train_stop_and_go_on_to_the_same_weights(home: Path, kind: str) -> None:
    changes = [*BLOCKS[kind], "pretrain.steps=20"]
    whole = quietly(changes, run="runs/whole").run
    real = log.RunLog.event

    def stop_at_ten(log: object, event: str, **details: object) -> None:
        real(log, event, **details)  # type: ignore[arg-type]
        if event == "saved" and details["step"] == 10:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log.RunLog, "event", stop_at_ten)
        with pytest.raises(KeyboardInterrupt):
            quietly(changes, run="runs/cut")
    cut = quietly(changes, run="runs/cut").run
    assert losses(cut) == losses(whole)
    assert read_manifest(cut / "model").digest == read_manifest(whole / "model").digest
    model, tokenizer = groundup.load(cut, device="cpu")
    assert tokenizer is not None
    assert groundup.generate(model, tokenizer, "Tale", max_tokens=5)


def test_parts_of_the_loss_are_in_the_metrics(home: Path) -> None:
    """What is minimised is their weighted sum."""
    run = quietly([*BLOCKS["experts"], *BLOCKS["multi_token"], "pretrain.loss.weight=0.5", "pretrain.steps=10"]).run
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    for line in (line for line in lines if "loss" in line):
        further = 0.5 * (line["token_2"] + line["token_3"]) / 2
        assert line["loss"] == pytest.approx(line["next_token"] + further + line["auxiliary"], rel=1e-5)


def test_counted_training_flops_are_those_of_the_step(home: Path) -> None:
    """Forward and backward of the loss itself, by torch's counter; float32 losses compute logits twice."""
    for loss in (NextToken(), MultiToken(extra_tokens=2)):
        settings = PretrainSettings(loss=loss, precision=Float32(), device="cpu")
        config = ModelConfig(vocab_size=320, context_length=16, d_model=16, n_layers=2, n_heads=2)
        model = set_up(config, settings, torch.device("cpu")).model.bfloat16()
        tokens = torch.arange(32).view(2, 16)
        one = torch.ones(2, 16)
        batch = Batch(tokens, tokens, one, torch.arange(16).expand(2, 16), torch.zeros(2, 16, dtype=torch.long))
        with FlopCounterMode(display=False) as counter:
            make_loss(settings)(model, batch)[0].backward()
        assert counter.get_total_flops() == 32 * training_flops_per_token(config, loss)


def test_stages_one_by_one_are_the_build(finished: Path) -> None:
    whole = quietly()
    for stage in ("corpus", "tokenizer", "pack", "pretrain", "eval", "report"):
        alone = quietly(run="elsewhere/alone", only=stage)
        assert what(alone)[stage] == "made"
    for name in COMMANDS:
        assert read_manifest(alone.run / name).digest == read_manifest(whole.run / name).digest


def test_a_stage_whose_inputs_are_missing_says_what_to_run(home: Path) -> None:
    with pytest.raises(SettingsError, match="which pack needs: run `groundup corpus RECIPE"):
        quietly(only="pack")


def test_changed_settings_under_a_finished_run_are_refused_with_the_list(finished: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        quietly(["pretrain.steps=20", "model.d_ff=48"])
    told = str(caught.value)
    assert "model.d_ff: 32 → 48" in told
    assert "pretrain.steps: 40 → 20" in told
    assert "stale: pretrain (its settings changed)" in told
    assert "stale: eval (model will be another)" in told
    assert "--run runs/tiny-2" in told
    assert "--replace" in told
    assert what(quietly())["pretrain"] == "up to date"  # nothing was touched


def test_beside_it_what_fits_is_shared_and_the_training_is_its_own(finished: Path) -> None:
    first = quietly()
    assert set(what(first).values()) == {"up to date"}
    beside = quietly(["pretrain.steps=20"], run="runs/tiny-2")
    assert what(beside) == {
        "corpus": "from runs/tiny",
        "tokenizer": "from runs/tiny",
        "pack": "from runs/tiny",
        "pretrain": "made",
        "eval": "made",
        "report": "made",
    }
    assert (first.run / "shards" / "train.npy").samefile(beside.run / "shards" / "train.npy")
    assert len(losses(beside.run)) == 20


def test_replace_makes_stale_stages_again(finished: Path) -> None:
    again = quietly(["tokenizer.vocab_size=384"], replace=True)
    assert what(again) == {"corpus": "up to date"} | dict.fromkeys(
        ("tokenizer", "pack", "pretrain", "eval", "report"), "made"
    )
    assert len(losses(again.run)) == 40


def test_a_changed_source_makes_everything_stale_and_is_named(finished: Path) -> None:
    (finished / "tales" / "07.txt").write_text("Another tale of a king and a fox that went over the hill. " * 4)
    with pytest.raises(SettingsError, match=r"stale: corpus \(made from other inputs: tales/07\.txt was .* is .*"):
        quietly()


def test_a_begun_training_takes_a_lower_learning_rate_but_no_other_seed(home: Path) -> None:
    with pytest.raises(DivergedError):
        quietly(["pretrain.optimizer.learning_rate=1e9", "pretrain.clip=1e9", "pretrain.optimizer.epsilon=1e-30"])
    with pytest.raises(SettingsError, match=r"pretrain.seed: 0 → 1\n(.*\n)*  stale: pretrain \(its settings changed\)"):
        quietly(["pretrain.seed=1"])
    assert what(quietly())["pretrain"] == "made"


def test_a_divergence_says_where_and_what_to_do(home: Path) -> None:
    with pytest.raises(DivergedError, match="training diverged. Lower pretrain.optimizer.learning_rate"):
        quietly(["pretrain.optimizer.learning_rate=1e9", "pretrain.clip=1e9", "pretrain.optimizer.epsilon=1e-30"])


@pytest.mark.parametrize("directory", list(COMMANDS))
def test_one_flipped_bit_anywhere_is_refused_by_digest(finished: Path, directory: str) -> None:
    run = finished / "runs" / "tiny"
    for name in read_manifest(run / directory).files:
        path = run / directory / name
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 16
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"the sha256 of .*--replace"):
            quietly()
        raw[len(raw) // 2] ^= 16
        path.write_bytes(raw)
    assert set(what(quietly()).values()) == {"up to date"}
    (run / directory / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is damaged.*--replace"):
        quietly()
    assert what(quietly(replace=True))[COMMANDS[directory]] == "made"


def test_another_tokenizer_is_refused_before_the_first_batch(home: Path) -> None:
    """Fault B7 of shards."""
    run = quietly(only="corpus").run
    quietly(only="tokenizer")
    quietly(only="pack")
    packed = read_manifest(run / "tokenizer").digest
    manifest = read_manifest(run / "tokenizer")
    write_manifest(run / "tokenizer", replace(manifest, statistics={**manifest.statistics, "split": "another"}))
    stands = read_manifest(run / "tokenizer").digest
    tiny = Recipe.load(home / "tiny.toml")
    with pytest.raises(SettingsError, match=f"pack .* tokenizer was {packed[:8]}…, is {stands[:8]}…"):
        quietly()
    with pytest.raises(SettingsError, match=f"packed with tokenizer {packed[:8]}…, .* has {stands[:8]}…"):
        check_fits(tiny.model, run, None, [])


def test_another_tokenizer_beside_a_model_is_refused(finished: Path) -> None:
    """Fault B7 of a model, with as many ids as its own has."""
    Tokenizer.learn(["of quite other words"], vocab_size=320).save(finished / "runs" / "tiny" / "model")
    with pytest.raises(DamagedError, match=r"tokenizer\.json"):
        groundup.load("runs/tiny", device="cpu")


def test_ids_beyond_the_vocabulary_are_refused_before_the_first_batch(home: Path) -> None:
    run = quietly(only="corpus").run
    quietly(only="tokenizer")
    quietly(only="pack")
    ids = np.load(run / "shards" / "validation.npy")
    ids[7] = 320
    np.save(run / "shards" / "validation.npy", ids)
    tiny = Recipe.load(home / "tiny.toml")
    with pytest.raises(DamagedError, match=r"validation\.npy holds id 320 at position 7; the vocabulary has 320 ids"):
        check_fits(tiny.model, run, None, [])


def test_a_tokenizer_from_elsewhere_is_refused(finished: Path) -> None:
    run = finished / "runs" / "tiny"
    other = quietly(["tokenizer.vocab_size=384"], run="runs/other").run
    shutil.rmtree(run / "tokenizer")
    shutil.copytree(other / "tokenizer", run / "tokenizer")
    with pytest.raises(SettingsError, match=r"stale: tokenizer \(its settings changed\)"):
        quietly()
    shutil.rmtree(run / "tokenizer")
    with pytest.raises(SettingsError, match=r"stale: pack \(tokenizer is gone\)"):
        quietly()


@pytest.mark.parametrize(
    ("override", "error", "answer"),
    [
        ("corpus.sources=['nowhere']", DataError, "source nowhere is missing"),
        (
            "evals.prompts=['the king and the little fox went over the hill']",
            SettingsError,
            "has .* tokens; model.context",
        ),
        ("pretrain.sample_prompt=ABCDEFGHIJKLMNOPQ", SettingsError, "has 18 tokens; model.context_length is 16"),
        ("tokenizer={kind='existing', path='nowhere'}", DataError, "nowhere"),
    ],
)
def test_settings_that_contradict_the_data_are_refused(
    home: Path, override: str, error: type[Exception], answer: str
) -> None:
    with pytest.raises(error, match=answer):
        quietly([override])


def test_a_context_longer_than_the_corpus_is_refused(home: Path) -> None:
    with pytest.raises(SettingsError, match="the training documents have only .* tokens together"):
        quietly(["model.context_length=100000", "pretrain.batch_tokens=100000"])


def test_an_existing_tokenizer_is_taken_over(finished: Path) -> None:
    first = finished / "runs" / "tiny"
    second = quietly(["tokenizer={kind='existing', path='runs/tiny/tokenizer'}"], run="runs/second").run
    assert read_manifest(second / "shards").files == read_manifest(first / "shards").files


@pytest.mark.parametrize("kind", ["characters", "words", "ranks", "sentencepiece"])
def test_a_model_is_built_and_writes_with_every_kind_of_tokenizer(home: Path, kind: str) -> None:
    if kind == "sentencepiece":
        import sentencepiece

        text = " ".join(path.read_text() for path in sorted((home / "tales").rglob("*.txt")))
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(text.split(".")),
            model_prefix="sp",
            vocab_size=300,
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    else:
        Tokenizer.learn(["the king and the fox"], vocab_size=320).save(Path("own.tiktoken"))
    given = {
        "characters": "{kind='characters', vocab_size=320}",
        "words": "{kind='words', vocab_size=384}",
        "ranks": "{kind='existing', path='own.tiktoken', split='gpt2', special=['<|endoftext|>']}",
        "sentencepiece": "{kind='existing', path='sp.model'}",
    }[kind]
    changes = [f"tokenizer={given}", "pretrain.steps=4", "pretrain.sample_prompt=Tale"]
    built = quietly(changes)
    assert set(what(quietly(changes)).values()) == {"up to date"}
    kept = "tokenizer.model" if kind == "sentencepiece" else "tokenizer.json"
    assert (built.run / "tokenizer" / kept).is_file() and (built.run / "model" / kept).is_file()
    model, tokenizer = groundup.load(built.run, device="cpu")
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode("the fox")) == "the fox"
    assert groundup.generate(model, tokenizer, "the fox", max_tokens=5)


def test_precision_is_timed_once_written_down_and_kept(home: Path) -> None:
    text = Path("tiny.toml").read_text().replace('precision = "float32"\n', "").replace('device = "cpu"\n', "")
    Path("tiny.toml").write_text(text)
    said: list[str] = []
    run = build("tiny.toml", say=said.append).run
    chosen = Recipe.load(run / "recipe.toml").pretrain
    assert chosen.precision is not None
    assert chosen.device is not None
    assert any(f"using {chosen.precision.kind}" in line for line in said)
    assert set(what(quietly()).values()) == {"up to date"}  # though the user's recipe leaves both open


def test_replace_checks_before_it_throws_away(finished: Path) -> None:
    before = read_manifest(finished / "runs" / "tiny" / "model").digest
    for override in ("pretrain.sample_prompt=ABCDEFGHIJKLMNOPQ", "pretrain.batch_tokens=100"):
        with pytest.raises(SettingsError):
            quietly([override], replace=True)
    assert read_manifest(Path("runs/tiny/model")).digest == before
    assert set(what(quietly()).values()) == {"up to date"}


def test_replacing_one_stage_leaves_the_later_ones_for_whoever_asks(finished: Path) -> None:
    quietly(["tokenizer.vocab_size=384"], replace=True, only="tokenizer")
    assert Path("runs/tiny/model/model.safetensors").is_file()
    with pytest.raises(SettingsError, match="stale: pack"):
        quietly(["tokenizer.vocab_size=384"])


def test_a_character_that_splits_lines_elsewhere_does_not_split_a_log(home: Path) -> None:
    run = quietly(["pretrain.sample_prompt='a\u2028b\u0085c'", "pretrain.steps=20"], run="runs/odd").run
    assert "a\u2028b" in (run / "report.html").read_text()


def test_files_of_a_persons_own_are_never_replaced(home: Path) -> None:
    (home / "mine" / "corpus").mkdir(parents=True)
    (home / "mine" / "corpus" / "poem.txt").write_text("mine")
    with pytest.raises(SettingsError, match="holds other files"):
        quietly(run="mine")
    (home / "mine" / "lock").write_text("")
    with pytest.raises(SettingsError, match="corpus is in the way"):
        quietly(run="mine")
    assert (home / "mine" / "corpus" / "poem.txt").read_text() == "mine"


def test_nothing_of_ones_own_is_replaced_by_a_shared_stage(finished: Path) -> None:
    second = finished / "runs" / "second"
    (second / "corpus").mkdir(parents=True)
    (second / "lock").write_text("")
    (second / "corpus" / "poem.txt").write_text("mine")
    with pytest.raises(SettingsError, match="corpus is in the way"):
        quietly(run="runs/second")
    assert (second / "corpus" / "poem.txt").read_text() == "mine"


def test_odd_lines_and_lost_files_of_a_run_end_in_no_traceback(finished: Path) -> None:
    run = finished / "runs" / "tiny"
    (run / "pretrain" / "events.jsonl").write_text('[1]\n"x"\nnull\n{}\n')
    (run / "report.html").unlink()
    (run / "lock").unlink()
    assert what(quietly())["report"] == "made"
    (run / "recipe.toml").write_text("= junk")
    quietly()
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "evals")
    (run / "pretrain" / "metrics.jsonl").unlink()
    assert what(quietly())["pretrain"] == "made"
    assert read_manifest(run / "model").statistics["validation_bits_per_byte"] > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [("pretrain.seed=5", "another pretrain.seed"), ("tokenizer.split=cl100k", "tokenizer [0-9a-f]{8}…, this run has")],
)
def test_a_checkpoint_of_another_run_is_not_taken(home: Path, change: str, named: str) -> None:
    """Fault B7 of a checkpoint; test_another_tokenizer_is_refused_before_the_first_batch has it of shards."""
    other = quietly([change], run="runs/other", last="pretrain").run
    run = Path("runs/tiny")
    for stage in ("corpus", "tokenizer", "pack"):
        quietly(only=stage)
    shutil.copytree(other / "pretrain" / "checkpoints", run / "pretrain" / "checkpoints")
    said: list[str] = []
    with pytest.raises(DataError, match=r"can be used \(.*\); remove that folder"):
        build("tiny.toml", say=said.append)
    assert any(re.search(f"was written by a run with .*{named}", line) for line in said), said
    with pytest.raises(DataError, match=r"can be used \(.*\); remove that folder"):
        quietly()  # it does not begin anew by itself
    shutil.rmtree(run / "pretrain" / "checkpoints")
    assert len(losses(quietly().run)) == 40


def test_a_foreign_directory_is_not_touched(home: Path) -> None:
    (home / "precious").mkdir()
    (home / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="holds other files and is not a run"):
        quietly(run="precious")
    assert [path.name for path in (home / "precious").iterdir()] == ["thesis.txt"]


def test_a_run_without_its_texts_goes_on_with_the_corpus_as_it_was_made(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = quietly(last="pack").run
    elsewhere = tmp_path_factory.mktemp("machine")
    shutil.copytree(run, elsewhere / "mine")
    monkeypatch.chdir(elsewhere)
    said: list[str] = []
    assert what(build("mine/recipe.toml", run="mine", only="pretrain", say=said.append))["pretrain"] == "made"
    assert said.count("the sources tales are not here: the corpus is taken as it was made") == 1
    assert what(build("mine/recipe.toml", run="mine", only="eval", say=said.append))["eval"] == "made"
    with pytest.raises(DataError, match="source tales is missing"):
        build("mine/recipe.toml", ["corpus.max_document_bytes=2000"], run="mine", replace=True)
    (elsewhere / "tales").mkdir()  # a folder without a text is no other corpus
    assert what(build("mine/recipe.toml", run="mine", only="pretrain", say=said.append))["corpus"] == "up to date"
    (elsewhere / "tales" / "00.txt").write_text("Another tale")
    with pytest.raises(SettingsError, match=r"stale: corpus \(made from other inputs: tales/00.txt was .* is "):
        build("mine/recipe.toml", run="mine", say=said.append)


def test_of_several_sources_those_that_are_here_are_compared(home: Path) -> None:
    (home / "more.txt").write_text("More of the fox and the king who went over the hill to the well. " * 4)
    changes = ["corpus.sources=['tales', 'more.txt']"]
    quietly(changes, only="corpus")
    (home / "tales").rename(home / "away")
    assert what(quietly(changes, only="corpus"))["corpus"] == "up to date"
    (home / "more.txt").write_text("Something else")
    with pytest.raises(SettingsError, match=r"stale: corpus \(made from other inputs: more.txt was .* is .*…\)"):
        quietly(changes, only="corpus")


def test_a_run_without_the_tokenizer_that_it_took_over_goes_on(home: Path) -> None:
    Tokenizer.learn(["the king and the fox"], vocab_size=320).save(Path("own.json"))
    changes = ["tokenizer={kind='existing', path='own.json'}"]
    quietly(changes, only="corpus")
    quietly(changes, only="tokenizer")
    Path("own.json").unlink()
    said: list[str] = []
    assert what(build("tiny.toml", changes, only="tokenizer", say=said.append))["tokenizer"] == "up to date"
    assert said == ["the tokenizer own.json is not here: it is taken as it was made"]


def test_what_was_dropped_outlives_a_corpus_that_came_to_nothing(home: Path) -> None:
    for path in (home / "tales").iterdir():
        path.write_bytes("Größe".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"0 documents left of 40.*each with its reason, is in runs/tiny/corpus.dropped"
    ):
        quietly(only="corpus")
    kept = pq.read_table("runs/tiny/corpus.dropped/documents.parquet").to_pylist()
    assert {row["reason"] for row in kept} == {"not utf-8: invalid start byte at byte 2"}
    assert not Path("runs/tiny/corpus").exists()
    inspect(Path("runs/tiny"))
    for number, path in enumerate(sorted((home / "tales").iterdir())):
        path.write_text(f"Tale {number} of the king and the fox. " * 4)
    assert what(quietly(only="corpus"))["corpus"] == "made"
    assert not Path("runs/tiny/corpus.dropped").exists()


def test_everything_left_out_is_said(home: Path) -> None:
    (home / "tales" / "torn.txt").symlink_to("gone.txt")
    (home / "tales" / "b.png").write_bytes(b"PNG")
    (home / "tales" / "c.jsonl").write_text('{"text": "' + "A king in a file of lines. </s>" * 9 + '", "score": NaN}')
    said: list[str] = []
    run = build("tiny.toml", only="corpus", say=said.append).run
    assert said == [
        "left out: 1 × .png (tales/b.png), 1 × link that leads nowhere (tales/torn.txt)",
        "fields left out of the metadata, as they are no JSON that can be written: 1 × score",
        "tales/c.jsonl holds </s> 9 times; it is read as ordinary text: each line of a .jsonl is one document: take it "
        "out of the lines",
    ]
    statistics = read_manifest(run / "corpus").statistics
    assert statistics["left_out"] == {".png": 1, "link that leads nowhere": 1}
    assert inspect(run / "corpus").facts["left_out"] == statistics["left_out"]


def test_nothing_is_thrown_away_that_cannot_be_made_again(home: Path) -> None:
    quietly()
    shutil.rmtree(home / "runs" / "tiny" / "corpus")
    with pytest.raises(SettingsError, match="does not have the result of corpus yet, which pretrain needs"):
        quietly(only="pretrain", replace=True)
    (home / "tales").rename(home / "elsewhere")
    with pytest.raises(MissingError, match="source tales is missing"):
        quietly(replace=True)
    for stage in ("tokenizer", "shards", "model", "evals"):
        verify(home / "runs" / "tiny" / stage)


def test_a_run_beside_a_moved_one_takes_its_corpus_without_the_texts(home: Path) -> None:
    quietly(only="corpus")
    (home / "tales").rename(home / "elsewhere")
    said: list[str] = []
    built = build(home / "tiny.toml", run=home / "runs" / "other", only="corpus", say=said.append)
    assert built.rows[0].what == f"from {home / 'runs' / 'tiny'}"
    assert "what" in said[-1]
    assert "is not here: it is taken as it was made" in said[-1]
