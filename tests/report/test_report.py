"""The report: one file, nothing fetched, nothing a hostile name can run, true sentences, and it looks right."""

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundup.artifacts import making, read_manifest
from groundup.building import build
from groundup.errors import DamagedError, DataError
from groundup.pages.assets import bundle
from groundup.report import facts
from groundup.report.facts import smooth
from groundup.report.run import SCRIPTS, is_up_to_date, write_report

HOSTILE = "<img src=x onerror=document.title='owned'>"
Look = Callable[[Path, int, str], None]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    recipe = settle(tmp_path_factory.mktemp("home"))
    (recipe.parent / "tales" / "evil.txt").write_text("<script>document.title = 'owned'</script> & the king. " * 5)
    settings = ["evals.prompts=['<img src=x onerror=alert(1)>']", "model.context_length=32", "corpus.test_share=0.2"]
    return build(recipe, settings, run=recipe.parent / "tiny", say=lambda text: None).run / "report.html"


@pytest.fixture
def run(page: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(page.parent, tmp_path / "tiny"))


def words(run: Path) -> str:
    """What the page says, without its tags."""
    return re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", "", write_report(run).read_text(), flags=re.DOTALL)


def test_nothing_is_fetched_and_nothing_runs_but_our_own_script(page: Path) -> None:
    text = page.read_text()
    *data, script = re.findall(r"<script\b.*?</script>", text, re.DOTALL)
    assert all(each.startswith('<script type="application/json"') for each in data)
    assert all(each.count("<") == 2 for each in data)
    assert len(data) == 2
    assert script == f'<script type="module">{bundle(*SCRIPTS)}</script>'
    for each in (*data, script):
        text = text.replace(each, "")
    assert not re.search(r"""<[a-z][^>]*\b(src|href)\s*=(?!"#)|url\(|@import|https?://|<script|<img""", text)
    digest = base64.b64encode(hashlib.sha256(bundle(*SCRIPTS).encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_the_four_questions_come_first_and_every_stage_has_a_section(page: Path) -> None:
    titles = re.findall("<h2>(.*?)</h2>", page.read_text())
    assert titles == [
        "What is it?", "How good is it?", "What did it cost?", "Can I trust it?", "What it writes", "Corpus",
        "Tokenizer", "Shards", "Model", "Training", "Evaluation", "What was built from what",
        "What happened during training", "Recipe",
    ]  # fmt: skip


def test_it_has_all_that_was_promised(page: Path) -> None:
    text = page.read_text()
    for part in (
        "bits per byte", "seed 0", "learning rate", "gradient norm", "loss, nats per token", "for everything",
        "torch 2.", "groundup 0.", "The same prompt during the run", "bytes a token", "first merges",
        "batch_tokens = 64", "xz -9", "The chain holds", "Not interrupted", "occurrences", "The easiest test document",
    ):  # fmt: skip
        assert part in text, part
    assert len(re.findall("<figure[ >]", text)) == 8
    assert text.count("<figcaption>") == 8


def test_every_figure_says_what_to_see_in_it(page: Path) -> None:
    captions = re.findall("<figcaption>(.*?)</figcaption>", page.read_text(), re.DOTALL)
    assert all(re.search(r"\d", caption) for caption in captions)


def test_its_numbers_are_those_of_the_run(page: Path) -> None:
    run = facts.read(page.parent)
    text = re.sub("<[^>]*>", "", page.read_text())
    test = json.loads((page.parent / "evals" / "test.json").read_text())
    assert f"{test['bits_per_byte']:.3f} ± {test['standard_error']:.3f} bits per byte" in text
    assert f"{test['bits_per_byte'] / test['baselines']['unigram'] - 1:.0%} more than a model that only knows" in text
    shards = np.load(page.parent / "shards" / "train.npy")
    usage = np.bincount(np.concatenate([np.load(path)[:-1] for path in _ids(page.parent)]), minlength=320)
    assert [uses for _, uses in run.manifests["shards"].statistics["uses_by_rank"]] == [
        int(np.sort(usage)[-rank]) for rank in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    ]
    first = run.steps[0]["loss"] / math.log(2) * len(shards) / run.manifests["shards"].statistics["train"]["bytes"]
    assert run.training_bits_per_byte[0] == pytest.approx(first)


def _ids(run: Path) -> list[Path]:
    return [run / "shards" / f"{split}.npy" for split in ("train", "validation", "test")]


def test_training_in_bits_per_byte_is_the_next_token_alone(page: Path) -> None:
    run = facts.read(page.parent)
    plain, with_more = {"step": 1, "loss": 3.0}, {"step": 2, "loss": 5.0, "next_token": 3.0, "token_2": 4.0}
    first, second = facts.Run(**{**vars_of(run), "metrics": [plain, with_more]}).training_bits_per_byte
    assert first == second > 0


@pytest.mark.parametrize(
    "settings",
    [
        ["pretrain.steps=1", "corpus.test_share=0.0001", "pretrain.validate_every=1000"],
        ["pretrain.steps=3", "pretrain.loss.kind=multi_token", "pretrain.validate_every=1", "pretrain.clip=1e9"],
    ],
)
def test_small_and_unusual_runs_have_a_page_too(recipe: Path, settings: list[str]) -> None:
    run = build(recipe, settings, run=recipe.parent / "run", say=lambda text: None).run
    assert "None" not in words(run)
    assert "nan" not in words(run).lower().split()


def test_each_test_document_is_recorded_under_the_id_that_it_has_in_the_corpus(page: Path) -> None:
    from groundup.corpus.document import read_batches

    run = facts.read(page.parent)
    rows = [row for batch in read_batches(page.parent / "corpus" / "test.parquet") for row in batch.to_pylist()]
    assert [line["id"] for line in run.documents] == [row["id"][:16] for row in rows]
    assert [line["bytes"] for line in run.documents] == [len(row["text"].encode()) for row in rows]
    total = sum(line["bits"] for line in run.documents) / sum(line["bytes"] for line in run.documents)
    assert total == pytest.approx(run.test["bits_per_byte"], abs=1e-4)  # bits are written to three decimals


@pytest.mark.parametrize(
    ("validation", "kind", "said"),
    [
        ([3.0, 2.0, 1.5], "ok", "fell from 3.000 to 1.500 bits per byte and was still falling at the end"),
        ([3.0, 2.0, 1.999], "ok", "was level at the end"),
        ([3.0, 2.0, 2.5], "warning", "lowest at step 20 (2.000 bits per byte) and rose to 2.500"),
        ([3.0], "open", "less than twice"),
    ],
)
def test_the_course_of_validation_is_in_words(run: Path, validation: list[float], kind: str, said: str) -> None:
    steps = [line for line in facts.read(run).steps if "validation_bits_per_byte" not in line]
    measured = [{"step": 10 * n, "validation_bits_per_byte": bits} for n, bits in enumerate(validation, start=1)]
    lines = [json.dumps(line) + "\n" for line in (*steps, *measured)]
    (run / "pretrain" / "metrics.jsonl").write_text("".join(lines))
    (verdict,) = re.findall(
        r'<li class="(\w+)"><i>.</i><span><b>(?:No o|O)verfitting</b>(.*?)</span>',
        write_report(run).read_text(),
        re.DOTALL,
    )
    assert verdict[0] == kind
    assert said in verdict[1]


def vars_of(run: facts.Run) -> Mapping[str, Any]:
    return {name: getattr(run, name) for name in facts.Run.__dataclass_fields__}


def test_an_interruption_and_a_refused_checkpoint_are_reported(run: Path) -> None:
    with open(run / "pretrain" / "events.jsonl", "a") as stream:
        stream.write('{"event": "resumed", "step": 20, "threads": 1}\n')
    assert "Interrupted 1 time and resumed from a checkpoint, which gives the numbers of a run that never" in words(run)
    with open(run / "pretrain" / "events.jsonl", "a") as stream:
        stream.write('{"event": "resumed", "step": 30, "threads": 64}\n')
    assert re.search("Interrupted 2 times.* but for the last digits: it had .* and then 64 threads", words(run))
    with open(run / "pretrain" / "events.jsonl", "a") as stream:
        stream.write('{"event": "checkpoint refused", "checkpoint": "step-00000020", "why": "x"}\n')
    assert "A checkpoint was refused (step-00000020)" in words(run)


def test_what_the_guard_did_is_reported_with_rows_and_documents(run: Path) -> None:
    assert "No step had to be left out" in words(run)
    skipped = {
        "event": "step skipped",
        "step": 7,
        "seen": "the loss is nan",
        "rows": [28, 32],
        "worst": [
            {"row": 29, "loss": None, "loss_was": "nan", "documents": [{"number": 3, "source": "tales/evil.txt"}]}
        ],
        "documents": [3, 4],
    }
    back = {"event": "rolled back", "step": 9, "to": 4, "rows": [16, 36]}
    with open(run / "pretrain" / "events.jsonl", "a") as log:
        log.writelines(json.dumps(event) + "\n" for event in (skipped, back))
    metrics = run / "pretrain" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    bad = next(line for line in lines if line["step"] == 7)
    bad |= {"accepted": False, "loss": None, "loss_was": "nan", "grad_norm": None}
    lines.append({"step": 20, "next_token_accuracy": 0.25, "tokens": 1})
    lines.append({"step": 40, "next_token_accuracy": 0.5, "tokens": 2})
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = words(run)
    assert "The guard left out 1 step, went back 1 time and jumped over 20 rows" in said
    assert "row 29 with loss nan of documents 3 (tales/evil.txt)" in said
    assert '"mean":[0.25,0.5]' in write_report(run).read_text()


def test_a_stage_from_elsewhere_breaks_the_chain(run: Path) -> None:
    before = read_manifest(run / "evals")
    shutil.copytree(run / "evals", run.parent / "evals")
    with making(run / "evals", "evals", before.settings, {**before.inputs, "model": "0" * 64}) as draft:
        for name in before.files:
            shutil.copy(run.parent / "evals" / name, draft.path)
        draft.statistics |= before.statistics
    assert "The chain does not hold: evals was made from another model" in words(run)


def test_damage_is_refused_and_the_page_that_was_there_is_kept(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    before = (run / "report.html").read_text()
    with pytest.raises(DamagedError, match=r"model.safetensors"):
        write_report(run)
    assert (run / "report.html").read_text() == before


def test_a_run_without_its_logs_still_has_a_page(run: Path) -> None:
    shutil.rmtree(run / "pretrain")
    text = words(run)
    assert "The metrics of this run are gone." in text
    assert "The log of events is gone" in text


def test_the_page_knows_whether_it_is_up_to_date(run: Path) -> None:
    assert is_up_to_date(run)
    before = read_manifest(run / "evals")
    shutil.rmtree(run / "evals")
    with making(run / "evals", "evals", before.settings, before.inputs) as draft:
        (draft.path / "other").write_text("other")
    assert not is_up_to_date(run)


def test_no_page_of_what_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run at"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no result of corpus, tokenizer, pack, pretrain, eval yet"):
        write_report(tmp_path)


def test_smoothing_is_the_mean_of_the_last() -> None:
    assert smooth([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]


def test_its_training_is_the_live_page_frozen(run: Path, browser: Any) -> None:
    """With health as a run has it, a hostile name, and an event that would end a script."""
    run = run.rename(run.parent / HOSTILE)
    (run / "pretrain" / "health.jsonl").write_text('{"step": 10, "layers": [{"norm": 1.0}, {"norm": 2.0}]}\n')
    with open(run / "pretrain" / "events.jsonl", "a") as stream:
        stream.write('{"event": "</script><script>document.title = \'owned\'</script>", "step": 20}\n')
    page = write_report(run)
    context = browser.new_context()
    tab = context.new_page()
    heard: list[str] = []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.goto(page.as_uri())
    assert tab.locator("figure[data-metric] svg.chart").count() == 4
    assert tab.locator("figure[data-metric] figcaption").count() == 4
    headings = tab.locator("#training .card h3").all_text_contents()
    assert headings == ["Training loss", "Validation", "Learning rate", "Gradient norm", "Speed", "Memory", "norm"]
    label = tab.locator("#training svg.chart").first.get_attribute("aria-label")
    loss = facts.read(run).steps[-1]["loss"]
    assert label == f"Training loss over step: {HOSTILE} {loss:.4g}"
    assert tab.locator("#training svg.mark").count() == 0
    for axis, last in (("tokens", r"2,\d00"), ("flops", r"[\d.]+M"), ("seconds", r"[\d.]+ s")):
        tab.locator("#training select").select_option(axis)
        assert re.fullmatch(last, tab.locator("#training svg.chart text.middle").last.text_content())
    assert tab.title() == f"{HOSTILE}: groundup"
    assert tab.locator("h1").inner_text() == HOSTILE
    assert tab.locator("img").count() == 0
    assert heard == []
    context.close()


def test_without_scripts_its_curves_are_tables(page: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("figure[data-metric] table").count() == 4
    steps, losses = zip(
        *(row.split("\t") for row in tab.locator("figure table").nth(1).inner_text().split("\n")[1:]), strict=True
    )
    run = facts.read(page.parent)
    assert (steps[0], steps[-1]) == ("1", "40")
    assert float(losses[-1]) == pytest.approx(smooth([line["loss"] for line in run.steps])[-1], rel=1e-5)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_real_browser_it_fits_and_can_be_read(page: Path, look: Look, width: int, scheme: str) -> None:
    look(page, width, scheme)


def test_paper_shows_all_of_it(page: Path, print_out: Callable[[Path], None]) -> None:
    print_out(page)
