"""The tasks are listed, and the items of those whose files are there are written."""

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from groundup.errors import MissingError, SettingsError
from groundup.evals.tasks import TASKS
from groundup.tools.tasks import dump, fetch_missing, list_tasks, rows


@pytest.fixture
def data(shared: Path, tmp_path: Path) -> Path:
    """A folder with the files of two tasks."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("copa/copa_val.jsonl.gz", "wikitext2/wiki.test.tokens.gz"):
        (folder / Path(name).name).write_bytes((shared / "data" / "evals" / name).read_bytes())
    return folder


def test_every_task_is_listed_with_its_source_file_and_scoring() -> None:
    listed = list_tasks([])
    assert [each.name for each in listed] == list(TASKS)
    for each in listed:
        assert "et al. " in each.about
        assert "scored" in each.about.lower()
        assert each.files and all(form["names"] for forms in each.files.values() for form in forms)
    assert rows(list_tasks(["hellaswag"]))[1] == [
        "hellaswag", "accuracy_per_character", "0.25", "0", "MIT", "hellaswag_val.jsonl"
    ]  # fmt: skip


def test_items_are_written_of_the_tasks_whose_files_are_there(data: Path, tmp_path: Path) -> None:
    written = dump([], data, tmp_path / "items")
    assert written["copa"] == 100 and written["wikitext2"] == 62
    assert "hellaswag_val.jsonl" in str(written["hellaswag"])
    assert sorted(path.name for path in (tmp_path / "items").iterdir()) == ["copa.jsonl", "wikitext2.jsonl"]
    first = json.loads((tmp_path / "items/copa.jsonl").read_text().splitlines()[0])
    assert first == {"id": "0", "text": "The man turned on the faucet therefore  water flowed from the spout."}
    pages = [json.loads(line)["text"] for line in (tmp_path / "items/wikitext2.jsonl").read_text().splitlines()]
    raw = gzip.decompress((data / "wiki.test.tokens.gz").read_bytes()).decode()
    assert all(page in raw for page in pages)


def test_a_named_task_without_its_file_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="has no hellaswag_val.jsonl: get it from"):
        dump(["hellaswag"], data, tmp_path / "items")


def test_only_what_is_missing_is_fetched(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    stub = SimpleNamespace(snapshot_download=lambda repository, **_: asked.append(repository))
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    assert fetch_missing(["copa", "hellaswag"], data) == ["hellaswag"]
    assert asked == ["Rowan/hellaswag"]
    with pytest.raises(SettingsError, match="--fetch needs the names"):
        fetch_missing([], data)
