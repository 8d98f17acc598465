"""Runs side by side: the differences are those that were made, and no more is claimed than was measured."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from groundup.building import build
from groundup.errors import DataError, SettingsError
from groundup.evals.score import score
from groundup.pages.assets import bundle
from groundup.report import facts
from groundup.report.compare import SCRIPTS, compare, default_page, paired_difference, read_all, write_page
from groundup.shards import open_split
from groundup.weights.load import load


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, settle: Callable[[Path], Path]) -> Path:
    """Runs of one corpus (base, short), of another tokenizer (words), of more texts (more), of others (other)."""
    recipe = settle(tmp_path_factory.mktemp("home"))
    home = recipe.parent
    for name, count in (("more", 20), ("other", 40)):
        (home / name).mkdir()
        for number in range(count):
            (home / name / f"{number}.txt").write_text(f"Once upon a time, Tale {number} of {name}: the queen. " * 9)
    for name, settings in {
        "base": [],
        "short": ["pretrain.steps=20", "pretrain.seed=1"],
        "words": ["tokenizer.vocab_size=384", "pretrain.batch_tokens=128"],
        "more": ["corpus.sources=['tales', 'more']"],
        "other": ["corpus.sources=['other']"],
    }.items():
        settings = ["corpus.test_share=0.3", *settings]
        build(recipe, settings, run=home / "runs" / name, say=lambda text: None)
    return home


def runs(home: Path, *names: str) -> list[facts.Run]:
    return read_all([home / "runs" / name for name in names])


def test_the_settings_that_differ_are_those_that_were_changed(home: Path) -> None:
    comparison = compare(runs(home, "base", "short", "words"))
    assert comparison.settings == {
        "pretrain.batch_tokens": [64, 64, 128],
        "pretrain.seed": [0, 1, 0],
        "pretrain.steps": [40, 20, 40],
        "tokenizer.vocab_size": [320, 320, 384],
    }


def test_the_stages_that_are_the_very_same_are_named(home: Path) -> None:
    comparison = compare(runs(home, "base", "short"))
    same = {name for name, stage in comparison.stages.items() if stage.same}
    assert same == {"corpus", "tokenizer", "shards"}


@pytest.mark.parametrize("second", ["short", "words"])
def test_the_paired_difference_is_that_of_the_models_document_by_document(home: Path, second: str) -> None:
    scores = []
    for name in ("base", second):
        model, _ = load(home / "runs" / name, device="cpu")
        scores.append(score(model, open_split(home / "runs" / name / "shards", "test")))
    sizes = open_split(home / "runs" / "base" / "shards", "test").n_bytes
    bits = scores[1].document_bits - scores[0].document_bits
    mean = bits.sum() / sizes.sum()
    error = math.sqrt(len(bits) / (len(bits) - 1) * ((bits - mean * sizes) ** 2).sum()) / sizes.sum()
    pair = compare(runs(home, "base", second)).differences[0]
    assert pair.documents == len(sizes) > 5
    assert pair.difference == pytest.approx(scores[1].bits_per_byte - scores[0].bits_per_byte, abs=1e-4)
    assert pair.difference == pytest.approx(mean, abs=1e-4)  # bits are recorded to three decimals
    assert pair.standard_error == pytest.approx(error, rel=1e-2)
    less = "less" if mean < 0 else "more"
    beyond = "beyond" if abs(mean) >= 2 * error else "within"
    assert f"bits per byte {less} than base on the same {len(sizes)} test documents" in pair.says
    assert f"{beyond} the noise" in pair.says


def recorded(path: Path, bits: list[float], ids: str = "abcdefgh") -> facts.Run:
    """A run of which only the test documents matter, of 100 bytes each."""
    lines = [{"id": name, "bytes": 100, "bits": value} for name, value in zip(ids, bits, strict=False)]
    return facts.Run(path, {}, {}, [], [], [], lines)


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ([190, 191, 189, 190], "b needs 0.1000 bits per byte less than a"),
        ([190, 191, 189, 190], "standard error of 0.0041: beyond the noise"),  # √(4/3 · (0 + 1 + 1 + 0)) / 400
        ([190, 191, 189, 190], "though they are few"),
        ([180, 240, 150, 260], "within the noise"),
        ([200, 200, 200, 200], "need exactly as many bits"),
        ([150], "on the 1 test documents that both were tested on (of 4 and 1"),
    ],
)
def test_the_words_follow_the_numbers(bits: list[float], said: str) -> None:
    pair = paired_difference(recorded(Path("a"), [200.0] * 4), recorded(Path("b"), bits), "a", "b")
    assert said in pair.says


def test_other_test_documents_are_not_compared(home: Path) -> None:
    comparison = compare(runs(home, "base", "more", "other"))
    some, none = comparison.differences
    base, more = (facts.read(home / "runs" / name) for name in ("base", "more"))
    common = {line["id"] for line in base.documents} & {line["id"] for line in more.documents}
    assert some.documents == len(common) < len(more.documents)
    assert "overall scores are of different documents and cannot be compared" in some.says
    assert none.documents == 0
    assert "their scores cannot be compared" in none.says
    assert none.difference is None


def test_other_tokenizers_and_single_seeds_are_noted(home: Path) -> None:
    assert any("tokenizers differ" in note for note in compare(runs(home, "base", "words")).notes)
    notes = compare(runs(home, "base", "short")).notes
    assert not any("tokenizers differ" in note for note in notes)
    assert any("another seed" in note for note in notes)


def test_it_is_json_and_a_table_of_equal_rows(home: Path) -> None:
    comparison = compare(runs(home, "base", "short", "words"))
    assert json.loads(json.dumps(asdict(comparison), allow_nan=False)) == asdict(comparison)
    assert {len(row) for row in comparison.rows} == {4}
    assert len(comparison.verdicts) == 4


def test_runs_of_one_name_are_labelled_by_their_paths(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs" / "short", tmp_path / "base")
    comparison = compare(read_all([home / "runs" / "base", tmp_path / "base"]))
    assert comparison.runs == [str(home / "runs" / "base"), str(tmp_path / "base")]


def test_what_is_no_finished_run_is_answered(home: Path, tmp_path: Path) -> None:
    base = home / "runs" / "base"
    with pytest.raises(SettingsError, match="name two or more different runs"):
        read_all([base])
    with pytest.raises(SettingsError, match="name two or more different runs"):
        read_all([base, base / ".." / "base"])
    with pytest.raises(DataError, match=r"no run at .*nowhere"):
        read_all([base, tmp_path / "nowhere"])
    with pytest.raises(DataError, match="has no result of"):
        read_all([base, base / "model"])
    damaged = Path(shutil.copytree(base, tmp_path / "damaged"))
    (damaged / "evals" / "documents.jsonl").write_text("")
    with pytest.raises(DataError, match=r"documents.jsonl"):
        read_all([base, damaged])
    shutil.copytree(base, tmp_path / "no recipe")
    (tmp_path / "no recipe" / "recipe.toml").write_text("= 3")
    with pytest.raises(DataError, match="Build the run again with its recipe"):
        read_all([base, tmp_path / "no recipe"])


@pytest.fixture(scope="module")
def page(home: Path) -> Path:
    chosen = runs(home, "base", "short", "words", "more")
    target = default_page(chosen)
    write_page(chosen, compare(chosen), target)
    assert target == home / "runs" / "compare-base-short-words-more.html"
    return target


def test_curves_and_samples_of_all_runs_are_on_the_page(page: Path, browser: Any) -> None:
    assert page.read_text().count("<blockquote>") == 2 * 4
    tab = browser.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("#training-board .legend bdi").all_text_contents() == ["base", "short", "words", "more"]
    for axis in ("step", "tokens", "time"):
        tab.locator("select").select_option(label=axis)
        for number, name in enumerate(("Validation", "Training")):
            drawing = tab.locator("svg.chart").nth(number)
            label = drawing.get_attribute("aria-label")
            assert re.fullmatch(rf"{name} over {axis}: base \d.+, short \d.+, words \d.+, more \d.+", label), label
            assert drawing.locator("path.line:not(.faint)").count() == 4
    tab.close()


def test_runs_are_compared_where_the_shortest_ends(home: Path, tmp_path: Path) -> None:
    chosen = runs(home, "base", "short")
    write_page(chosen, compare(chosen), tmp_path / "page.html")
    text = re.sub("<.*?>", "", (tmp_path / "page.html").read_text())
    assert re.search(r"Validation after 1,280 tokens, as far as all go: base [\d.]+, short [\d.]+\.", text)
    assert re.search(r"Training after [\d.]+ .*, as far as all go: base [\d.]+, short [\d.]+\.", text)


def test_without_scripts_curves_are_tables(page: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("#training-board th").all_text_contents() == ["step", "base", "short", "words", "more"] * 2
    context.close()


def test_the_page_goes_where_it_is_wanted(home: Path, tmp_path: Path) -> None:
    chosen = runs(home, "base", "short")
    write_page(chosen, compare(chosen), tmp_path / "new" / "folder" / "page.html")
    assert (tmp_path / "new" / "folder" / "page.html").is_file()
    with pytest.raises(SettingsError, match="is a folder; the page needs a file"):
        write_page(chosen, compare(chosen), tmp_path)


def test_a_hostile_name_is_escaped(home: Path, tmp_path: Path) -> None:
    named = Path(shutil.copytree(home / "runs" / "short", tmp_path / "<script>alert(1)"))
    chosen = read_all([home / "runs" / "base", named])
    write_page(chosen, compare(chosen), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text().replace(f'<script type="module">{bundle(*SCRIPTS)}</script>', "")
    assert text.count("<script") == text.count('<script type="application/json" id="training-data">') == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_real_browser_it_fits_and_can_be_read(
    page: Path, look: Callable[[Path, int, str], None], width: int, scheme: str
) -> None:
    look(page, width, scheme)


def test_paper_shows_all_of_it(page: Path, print_out: Callable[[Path], None]) -> None:
    print_out(page)


def test_it_needs_no_torch(home: Path) -> None:
    code = (
        "import sys; sys.argv = ['groundup', 'compare', 'runs/base', 'runs/short']\n"
        "from groundup.cli import app as cli\ntry: cli.main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=False)
    assert done.stdout.rstrip().endswith("False"), done.stderr
    assert (home / "runs" / "compare-base-short.html").is_file()
    assert "With curves and samples: runs/compare-base-short.html" in done.stdout
