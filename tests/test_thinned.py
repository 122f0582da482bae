"""What the test command takes of tests of many combinations."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from thinned import ONE_IN, Thinning


@pytest.mark.parametrize("sizes", [(2, 2, 3, 3, 2), (3, 3, 4), (12,), (4, 3), (2, 10), (3, 2, 2, 2)])
@pytest.mark.parametrize("each", [2, 3, 4])
def test_every_value_of_every_parameter_comes_up(sizes, each, monkeypatch):
    monkeypatch.setitem(ONE_IN, "test_some.py", {"test_one": each})
    thinning = Thinning()
    combinations = list(itertools.product(*map(range, sizes)))
    kept = [values for values in combinations if not thinning.leaves("test_some.py", "test_one")]
    assert len(combinations) / each - each < len(kept) < len(combinations) / each + each
    if math.prod(sizes) >= 4 * each:
        for i, size in enumerate(sizes[:-1] or ()):
            assert {values[i] for values in kept} == set(range(size))
    assert not thinning.leaves("test_some.py", "test_another")


def test_they_exist():
    for file, tests in ONE_IN.items():
        text = (Path(__file__).parent / file).read_text(encoding="utf-8")
        for test in tests:
            assert f"def {test}(" in text, (file, test)
