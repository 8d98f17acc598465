"""Advice works: every command that is proposed, after a success or in an error, is tried on the very thing at hand."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import Result
from typer.testing import CliRunner

from groundup.cli.app import app
from groundup.errors import GroundupError
from groundup.recipe import Recipe
from groundup.shards import open_split
from groundup.tokenizer.tokenizer import Tokenizer

FILLED_IN = {
    "RECIPE.toml": "tiny.toml", "RECIPE": "tiny.toml", "FILE...": "tales/00.txt", "FILE_OR_FOLDER": "tales",
    "FILE": "tales/00.txt", "FOLDER": "tales", "TEXTS": "tales", "NAME": "fresh", "runs/a": "runs/tiny",
    "runs/b": "runs/other",
}  # fmt: skip
"""What stands for the words in capitals of a proposed command."""


@pytest.fixture
def home(finished_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipe, its texts and two finished runs; the working directory."""
    shutil.copytree(finished_home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    shutil.copytree("runs/tiny", "runs/other")
    monkeypatch.setattr("sys.argv", ["groundup"])
    return tmp_path / "home"


def run(words: list[str]) -> Result:
    return CliRunner().invoke(app, words, input="The king\n")


def proposed(said: str) -> list[list[str]]:
    """The commands of groundup in a text: in backticks, after `Next:` or `Try next:`, and after `Go on with:`."""
    quoted = re.findall(r"`groundup ([^`]+)`", said)
    lines = re.findall(r"^ +(?:python -m )?groundup (.+?)(?: {2,}\(.*\))?$", said, re.M)
    after = re.findall(
        r"(?:Try next|RECIPE|[Ww]rite|scored?|with|on|the texts to learn from): groundup (.+)$", said, re.M
    )
    return [shlex.split(text) for text in dict.fromkeys([*quoted, *lines, *after])]


def follow(words: list[str]) -> None:
    """Do as proposed; what is in capitals stands for something of one's own."""
    filled = [FILLED_IN.get(word, word) for word in words]
    done = run(filled)
    assert done.exit_code == 0, f"groundup {shlex.join(filled)}\n{done.output}\n{done.exception!r}"


# After a success


def test_what_a_build_proposes_works(home: Path) -> None:
    said = run(["build", "tiny.toml", "pretrain.steps=2", "--run", "runs/again"])
    assert said.exit_code == 0, said.exception
    commands = [words for words in proposed(said.output) if "Try next" in said.output]
    assert [words[0] for words in commands] == ["chat", "generate", "new"]
    for words in commands:
        follow(words)
    (page,) = re.findall(r"open (\S+) in a browser", said.output)
    assert Path(page).is_file()


@pytest.mark.parametrize(
    ("command", "follows"),
    [
        (["new", "mine", "--from", "tales"], ["build", "chat"]),
        (["doctor", "tiny.toml", "--quick"], ["build"]),
        (["tokens", "extend", "runs/tiny", "--add", " queenly", "--out", "more"], ["inspect", "generate"]),
        (["checkpoint", "average", "runs/tiny", "--out", "mean"], ["eval", "generate"]),
        (
            ["sweep", "tiny.toml", "pretrain.optimizer.learning_rate=0.001,0.002", "pretrain.validate_every=2",
             "pretrain.sample_every=2", "--steps", "2"],
            ["build", "build"],
        ),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_what_a_command_proposes_works(home: Path, command: list[str], follows: list[str]) -> None:
    said = run(command)
    assert said.exit_code == 0, said.exception
    assert [words[0] for words in proposed(said.output)] == follows
    smaller = ["pretrain.steps=30", "pretrain.validate_every=30"]
    for words in proposed(said.output):
        if words[:2] == ["build", "mine.toml"]:
            words += [*smaller, "model.n_layers=1", "model.d_model=16", "model.n_heads=1", "model.d_ff=16"]
        follow(words)


# What inspect proposes


def foreign(place: Path, of: type[transformers.PreTrainedModel], config: transformers.PretrainedConfig) -> Path:
    torch.manual_seed(0)
    of(config).save_pretrained(place)
    return place


def gpt2(place: Path) -> Path:
    sizes = transformers.GPT2Config(vocab_size=320, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    return foreign(place, transformers.GPT2LMHeadModel, sizes)


def tokenized(place: Path) -> Path:
    Tokenizer.load("runs/tiny/tokenizer").save(gpt2(place) / "tokenizer.json")
    return place


def without_an_opener(place: Path) -> Path:
    table = Tokenizer.load("runs/tiny/tokenizer").to_hugging_face() | {"added_tokens": []}
    (gpt2(place) / "tokenizer.json").write_text(json.dumps(table))
    return place


def of_another_model(place: Path) -> Path:
    Tokenizer.learn(["the king"], vocab_size=320).extended(["x"] * 0).save(gpt2(place) / "tokenizer.json")
    table = json.loads((place / "config.json").read_text()) | {"vocab_size": 100}
    torch.manual_seed(0)
    return foreign(place, transformers.GPT2LMHeadModel, transformers.GPT2Config(**table))


def with_nan(place: Path) -> Path:
    model = transformers.GPT2LMHeadModel.from_pretrained(tokenized(place))
    with torch.no_grad():
        model.transformer.wte.weight[3, 1] = float("nan")
    model.save_pretrained(place)
    return place


def sentencepiece(place: Path) -> Path:
    """In a directory with its model."""
    import sentencepiece as library

    sizes = transformers.LlamaConfig(vocab_size=300, max_position_embeddings=32, hidden_size=8, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=8)  # fmt: skip
    foreign(place, transformers.LlamaForCausalLM, sizes)
    library.SentencePieceTrainer.Train(
        sentence_iterator=(path.read_text() for path in sorted(Path("tales").iterdir())), vocab_size=300,
        model_prefix=str(place / "tokenizer"), model_type="bpe", byte_fallback=True, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return place


def unfinished(place: Path) -> Path:
    run(["pack", "tiny.toml", "--run", str(place)])
    run(["corpus", "tiny.toml", "--run", str(place)])
    return place


def damaged(place: Path) -> Path:
    shutil.copytree("runs/tiny", place)
    with open(place / "shards" / "train.npy", "r+b") as stream:
        stream.seek(-3, 2)
        stream.write(b"\xff")
    return place


def moved(place: Path) -> Path:
    """A run whose texts are not where its recipe names them, and which is not finished."""
    shutil.copytree("runs/tiny", place)
    shutil.rmtree(place / "evals")
    Path("tales").rename("tales-elsewhere")
    return place


def only_tensors(place: Path) -> Path:
    gpt2(place.parent / "whole")
    return place.parent / "whole" / "model.safetensors"


def pickled(place: Path) -> Path:
    (gpt2(place) / "model.safetensors").unlink()
    torch.save({}, place / "pytorch_model.bin")
    return place


def copied_from(path: str) -> Callable[[Path], Path]:
    return lambda place: Path(path)


THINGS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "a run": (copied_from("runs/tiny"), ["generate", "chat", "eval", "report"]),
    "runs": (copied_from("runs"), ["inspect"]),
    "a corpus": (copied_from("runs/tiny/corpus"), ["build"]),
    "a tokenizer": (copied_from("runs/tiny/tokenizer"), ["in a recipe"]),
    "a tokenizer.json": (copied_from("runs/tiny/tokenizer/tokenizer.json"), ["in a recipe"]),
    "shards": (copied_from("runs/tiny/shards"), ["build"]),
    "ids": (copied_from("runs/tiny/shards/train.npy"), ["build"]),
    "a model": (copied_from("runs/tiny/model"), ["generate", "eval"]),
    "weights": (copied_from("runs/tiny/model/model.safetensors"), ["generate", "eval"]),
    "an evaluation": (copied_from("runs/tiny/evals"), ["report"]),
    "checkpoints": (copied_from("runs/tiny/pretrain/checkpoints"), ["inspect"]),
    "a checkpoint": (copied_from("runs/tiny/pretrain/checkpoints/step-00000040"), ["build"]),
    "documents": (copied_from("runs/tiny/corpus/train.parquet"), ["build"]),
    "metrics": (copied_from("runs/tiny/pretrain/metrics.jsonl"), ["generate", "chat", "eval", "report"]),
    "a recipe": (copied_from("tiny.toml"), ["build"]),
    "an unfinished run": (unfinished, ["build"]),
    "a damaged run": (damaged, ["build"]),
    "a run without its texts": (moved, ["build"]),
    "a foreign model": (tokenized, ["generate", "eval"]),
    "a foreign model without a tokenizer": (gpt2, ["in Python"]),
    "a foreign model without an opener": (without_an_opener, ["generate"]),
    "a foreign model with another's tokenizer": (of_another_model, []),
    "a foreign model with a NaN": (with_nan, []),
    "a foreign model in a pickle": (pickled, []),
    "a model with SentencePiece": (sentencepiece, ["generate", "eval"]),
    "foreign weights": (only_tensors, ["inspect"]),
}


@pytest.mark.parametrize("thing", THINGS)
def test_what_inspect_proposes_works_on_what_it_sees(home: Path, thing: str) -> None:
    make, expected = THINGS[thing]
    path = make(home / "thing")
    path = path.relative_to(home) if path.is_absolute() else path
    said = run(["inspect", str(path), "--json"])
    found = json.loads(said.output)
    assert [line.split(": ")[0] if line.startswith("in ") else line.split()[1] for line in found["next"]] == expected
    for line in found["next"]:
        if line.startswith("groundup "):
            follow(shlex.split(line.removeprefix("groundup ")))
        elif line.startswith("in Python: "):
            exec(line.removeprefix("in Python: "), {"groundup": __import__("groundup")})
        elif line.startswith("in a recipe: "):
            Path("other.toml").write_text(
                'name = "x"\ncorpus = { sources = ["tales"] }\n' + line.removeprefix("in a recipe: ") + "\n"
            )
            Recipe.load(Path("other.toml"))
            follow(["doctor", "other.toml", "--quick", "model.context_length=16", "pretrain.batch_tokens=64",
                    "model.d_model=16", "model.n_heads=2", "model.n_layers=1"])  # fmt: skip


# What errors propose


@dataclass(frozen=True)
class Mistake:
    """A command that fails, and the commands that its message proposes."""

    words: list[str]
    proposes: list[str]
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    """What a person does between reading and following."""


def cut_short(file: str = "shards/train.npy") -> None:
    with open(Path("runs/tiny") / file, "r+b") as stream:
        stream.truncate(200)


def jsonl_with_a_body() -> None:
    Path("letters.jsonl").write_text(json.dumps({"body": "the king and the fox"}) + "\n")


def another_size(place: str = "larger.toml") -> None:
    text = Path("tiny.toml").read_text().replace("d_model = 16", "d_model = 32")
    Path(place).write_text(text.replace("[pretrain]", '[pretrain]\nstart = "runs/tiny"'))


def remove(*places: str) -> Callable[[], None]:
    def act() -> None:
        for place in places:
            shutil.rmtree(place) if Path(place).is_dir() else Path(place).unlink()

    return act


def chatml_without_its_tokens() -> None:
    (without_an_opener(Path("thing")) / "chat.json").write_text('{"layout": "chatml"}')


MISTAKES = {
    "a layout whose tokens are not there": Mistake(["chat", "thing"], ["tokens"], before=chatml_without_its_tokens),
    "a recipe where a model is wanted": Mistake(["generate", "tiny.toml"], ["build"]),
    "a recipe where a tokenizer is wanted": Mistake(["tokens", "show", "tiny.toml", "x"], ["tokenizer"]),
    "a run where a recipe is wanted": Mistake(["build", "runs/tiny"], ["inspect"]),
    "a stage whose inputs are not made": Mistake(["pretrain", "tiny.toml", "--run", "runs/x"], ["corpus", "build"]),
    "texts that are not named": Mistake(["new", "mine"], ["new"]),
    "shards that are cut short": Mistake(["bench", "runs/tiny", "--steps", "1"], ["build"], before=cut_short),
    "a stage that is damaged": Mistake(["build", "tiny.toml"], ["build"], before=cut_short),
    "a model that is cut short": Mistake(
        ["generate", "runs/tiny"], ["build"], before=lambda: cut_short("model/config.json")
    ),
    "a damaged run to report": Mistake(
        ["report", "runs/tiny"], ["build"], before=lambda: cut_short("evals/test.json")
    ),
    "one run to compare": Mistake(["compare", "runs/tiny"], ["compare"]),
    "one tokenizer to compare": Mistake(["tokens", "compare", "runs/tiny", "--text", "tales"], ["tokens"]),
    "a task that is not there": Mistake(["tasks", "hellswag"], ["tasks"]),
    "no files to score": Mistake(["eval", "runs/tiny/model"], ["eval"]),
    "a report of what is not finished": Mistake(
        ["report", "runs/tiny"], ["build"], before=remove("runs/tiny/evals")
    ),
    "a start of another size": Mistake(["pretrain", "larger.toml", "--run", "runs/l"], ["new"],
        before=lambda: (another_size(), run(["pack", "larger.toml", "--run", "runs/l"]),
                        [run([stage, "larger.toml", "--run", "runs/l"]) for stage in ("corpus", "tokenizer", "pack")])),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_an_error_proposes_works(home: Path, mistake: str) -> None:
    each = MISTAKES[mistake]
    each.before()
    failed = run(each.words)
    assert isinstance(failed.exception, GroundupError), failed.output
    commands = proposed(str(failed.exception))
    assert [words[0] for words in commands] == each.proposes, str(failed.exception)
    each.after()
    for words in commands:
        follow(words)


def test_a_changed_recipe_is_built_beside_or_in_place(home: Path) -> None:
    failed = run(["build", "tiny.toml", "pretrain.steps=30"])
    (beside,) = re.findall(r"--run (\S+) \(", str(failed.exception))
    follow(["build", "tiny.toml", "pretrain.steps=30", "--run", beside])
    follow(["build", "tiny.toml", "pretrain.steps=30", "--replace"])


def test_damaged_shards_are_made_again_as_the_message_says(home: Path) -> None:
    damaged(home / "x")
    shutil.rmtree("runs/tiny")
    (home / "x").rename("runs/tiny")
    failed = run(["eval", "tiny.toml"])
    assert "--replace" in str(failed.exception)
    follow(["build", "tiny.toml", "--replace"])


def test_the_field_that_an_error_names_can_be_set_where_files_are_scored(home: Path) -> None:
    jsonl_with_a_body()
    failed = run(["eval", "runs/tiny", "letters.jsonl", "corpus.text_field=words"])
    assert "fields: body (set corpus.text_field)" in str(failed.exception)
    follow(["eval", "runs/tiny", "letters.jsonl", "corpus.text_field=body"])
    follow(["eval", "runs/tiny/model", "letters.jsonl", "corpus.text_field=body"])
    refused = run(["eval", "runs/tiny/model", "letters.jsonl", "pretrain.steps=3"])
    assert "such as corpus.text_field=body" in str(refused.exception)


def test_shards_of_another_tokenizer_are_packed_again_as_the_message_says(home: Path) -> None:
    """The remedy of everything that opens shards."""
    with pytest.raises(GroundupError) as caught:
        (Path("runs/tiny/shards/train.npy")).write_bytes(b"")
        open_split(Path("runs/tiny/shards"), "train")
    (words,) = proposed(str(caught.value))
    follow(words)
    open_split(Path("runs/tiny/shards"), "train")


def test_a_recipe_of_new_names_a_help_that_is_there(home: Path) -> None:
    run(["new", "mine", "--from", "tales"])
    commands = proposed(Path("mine.toml").read_text("utf-8"))
    assert ["pretrain", "--help"] in commands
    follow(["pretrain", "--help"])


def test_every_command_in_a_message_is_tried_here() -> None:
    """Each place in the code that proposes a command in backticks belongs to a test above, by the command's name."""
    root = Path(__file__).parents[1] / "src" / "groundup"
    places = {
        (file.relative_to(root).as_posix(), command)
        for file in (*root.rglob("*.py"), root / "pages" / "templates" / "recipe.toml")
        for line in file.read_text("utf-8").splitlines()
        if file.suffix == ".toml" or not line.lstrip().startswith(('"""', "#"))
        for command in re.findall(r"`groundup ([a-z]+)", line)
    }
    assert places == TRIED


TRIED = {
    ("cli/tokens.py", "new"),  # of its rule
    ("evals/tokenizers.py", "tokens"),
    ("weights/files.py", "build"),
    ("pretrain/run.py", "doctor"),
    ("pretrain/settings.py", "new"),
    ("pretrain/start.py", "new"),
    ("evals/tasks.py", "tasks"),
    ("corpus/contamination.py", "tasks"),  # of its files: tests/tools/test_tasks.py
    ("cli/stages.py", "tasks"),
    ("tools/examined.py", "eval"),
    ("pretrain/run.py", "eval"),
    ("tools/evaluate.py", "eval"),
    ("pages/templates/recipe.toml", "pretrain"),
    ("tools/tokens.py", "tokenizer"),
    ("building.py", "build"),
    ("report/compare.py", "compare"),
    ("report/facts.py", "build"),
    ("files.py", "inspect"),
    ("shards.py", "pack"),
    ("tokenizer/chat.py", "tokens"),
}
