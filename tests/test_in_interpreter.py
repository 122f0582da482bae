"""Runs the kernels' tests once more in Triton's interpreter, which has to be chosen before triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import INTERPRETED


@pytest.mark.skipif(INTERPRETED, reason="this is already the run in the interpreter")
def test_kernels_in_the_interpreter(request):
    files = [path for path in sorted(request.path.parent.glob("test_*.py")) if "mark.interpretable" in path.read_text()]
    # In one process, beside the other worker of this run: each more would import everything again.
    options = ["-p", "no:cacheprovider", "-n", "0", "-m", "interpretable and not slow"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout
