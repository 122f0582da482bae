"""These tests need the fake device, which has to be there before torch is: pytest -p fakecuda.plugin tests/fakecuda."""

from __future__ import annotations

from pathlib import Path

import pytest

import fakecuda


def pytest_collection_modifyitems(items):
    if not fakecuda.installed():
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="runs with pytest -p fakecuda.plugin"))


@pytest.fixture(autouse=True)
def _fresh():
    """Nothing left of an earlier test; a problem that could not be raised where it was noticed fails this one."""
    if not fakecuda.installed():
        yield
        return
    import torch

    before = dict(fakecuda.options)
    fakecuda.launches.clear()
    fakecuda.problems()
    yield
    fakecuda.options.clear()
    fakecuda.options.update(before)
    torch.cuda.synchronize()
    assert not fakecuda.problems()
