"""docs/nn-gru.md: every row's last cell names tests; every test that it or docs/options.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "nn-gru.md"
NAMED = re.compile(r"`((?:fakecuda/)?test_\w+\.py)::(test_\w+)`")


def rows():
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] != "feature" and set(line) - set("|-"):
            yield cells


def test_each_cell_for_trigru_names_a_test():
    found = list(rows())
    assert len(found) > 40
    assert all(len(cells) == 4 for cells in found)
    assert [cells[0] for cells in found if not NAMED.search(cells[-1])] == []


@pytest.mark.parametrize("page", ["nn-gru.md", "options.md"])
def test_each_named_test_exists(page):
    named = set(NAMED.findall(PAGE.with_name(page).read_text(encoding="utf-8")))
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if not (TESTS / file).is_file() or f"def {name}(" not in (TESTS / file).read_text(encoding="utf-8")
    ]
    assert missing == []
