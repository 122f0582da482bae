"""These tests compile kernels, which Triton cannot do in a process that runs its interpreter."""

from pathlib import Path

import pytest
import triton


def pytest_collection_modifyitems(items):
    if triton.knobs.runtime.interpret:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="TRITON_INTERPRET=1 is in force"))
