"""The Colab notebook: committed without results, and, where Jupyter is installed, valid and executed on the CPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "trigru_on_colab.ipynb"
REASON = "{} comes with the extra notebook"


def test_no_results_are_committed():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason=REASON.format("nbformat"))
    nbclient = pytest.importorskip("nbclient", reason=REASON.format("nbclient"))
    pytest.importorskip("ipykernel", reason=REASON.format("ipykernel"))
    for package in ("aeon", "matplotlib", "tqdm"):
        pytest.importorskip(package, reason=f"{package}: the notebook installs the extras demo and bench")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    monkeypatch.setenv("TRIGRU_NOTEBOOK", "tiny")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()

    shown = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [output.get("text", "") for output in cell.outputs]
            images = ["image/png" for output in cell.outputs if "image/png" in output.get("data", {})]
            shown[cell.source.splitlines()[0]] = "".join([*texts, *images])
    assert "\nSchedules on cpu" in shown["!trigru info"]
    assert " are within what rounding explains." in shown["!trigru check --quick"]
    assert "nn.GRU" in shown["!trigru bench {BENCH_SIZE} --out out/bench"]
    assert list((tmp_path / "out" / "bench").glob("*.jsonl"))
    assert "schedule 'eager', variant 'torch', torch.float32 on cpu" in shown["import torch"]
    assert "gradients against the float64 reference" in shown["!trigru demo --epochs {EPOCHS} --out out/demo.png"]
    assert "image/png" in shown['Image("out/demo.png")']
