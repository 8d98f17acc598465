"""Written models: the files of a directory, and who may read them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundup.model.transformer import Transformer
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.weights.write import save


@pytest.fixture(params=[0o022, 0o077], ids=["022", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_get_the_permissions_that_the_umask_asks_for(
    umask: int, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save(tmp_path, model.config, dict(model.named_parameters()), tokenizer)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json"), 0o666 & ~umask)
