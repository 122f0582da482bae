"""Runs the kernels' tests once more in Triton's interpreter, which has to be chosen before triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import INTERPRETED


@pytest.mark.skipif(INTERPRETED, reason="this is already the run in the interpreter")
def test_kernels_in_the_interpreter(request):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-m",
        "interpretable and not slow",
        str(request.path.parent),
    ]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout
