"""Keys that come more than once, beside a dictionary, in memory and on disk."""

from pathlib import Path

import numpy as np
import pytest

from groundup.corpus.repeats import BYTES_OF_PAIR, repeats


@pytest.mark.parametrize("different", [3, 100, 100_000])
@pytest.mark.parametrize("room", [20, 300, 100_000])
def test_each_later_value_comes_once_with_the_least_of_its_key(tmp_path: Path, different: int, room: int) -> None:
    random = np.random.default_rng(0)
    keys = random.integers(0, 1 << 64, different, np.uint64)[random.integers(0, different, 700)]
    values = np.arange(700)
    cuts = np.sort(random.integers(0, 700, 5))
    keyed = zip(np.split(keys, cuts), np.split(values, cuts), strict=True)
    first = dict(zip(keys[::-1].tolist(), values[::-1].tolist(), strict=True))
    wanted = {
        (first[key], value) for key, value in zip(keys.tolist(), values.tolist(), strict=True) if first[key] < value
    }
    pairs = [pair for arrays in repeats(keyed, room * BYTES_OF_PAIR, tmp_path) for pair in np.array(arrays).T.tolist()]
    assert len(pairs) == len(wanted)
    assert set(map(tuple, pairs)) == wanted
    assert not any(tmp_path.iterdir()), "what was on disk is gone"
