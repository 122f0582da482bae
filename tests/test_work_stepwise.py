"""The stepwise kernels at a real size, executed from PTX with every check on: right results, and no more work a step
than a written budget allows."""

from __future__ import annotations

import pytest
import torch
from cases import assert_as_reference, layer
from conftest import INTERPRETED

from trigru.bench.suites import work
from trigru.kernels.launch import using

HIDDEN_SIZE, BATCH = 256, 32
SLACK = 1.2  # Triton 3.5 and 3.8 need some 12 % more than 3.6 and 3.7

# Work of one step in bfloat16: longest path of a warp, bytes loaded, barriers of a program.
BUDGET = {
    "sm_90": {
        ("forward_step", "torch"): (1895, 610_304, 29),
        ("bptt_step", "torch"): (1845, 917_504, 35),
        ("reset_update_step", "cho"): (1328, 458_752, 23),
        ("candidate_step", "cho"): (832, 344_064, 21),
        ("bptt_step", "cho"): (1391, 622_592, 25),
        ("bptt_reset_step", "cho"): (777, 327_680, 19),
    },
    "sm_80": {
        ("forward_step", "torch"): (2009, 610_304, 29),
        ("bptt_step", "torch"): (1933, 917_504, 35),
        ("reset_update_step", "cho"): (1403, 458_752, 23),
        ("candidate_step", "cho"): (882, 344_064, 21),
        ("bptt_step", "cho"): (1445, 622_592, 25),
        ("bptt_reset_step", "cho"): (813, 327_680, 19),
    },
}


@pytest.mark.skipif(INTERPRETED, reason="executes compiled kernels")
@pytest.mark.parametrize("arch", [90, pytest.param(80, marks=pytest.mark.slow)])
# "chung" runs the kernels of "cho".
@pytest.mark.parametrize("variant", ["torch", "cho", pytest.param("chung", marks=pytest.mark.slow)])
def test_results_and_work_of_a_step(variant, arch):
    from ptx import ptx_launcher

    launcher = ptx_launcher(arch)  # races and bounds are checked
    case = layer(work.SEQ_LEN, BATCH, 16, HIDDEN_SIZE, dtype=torch.bfloat16, variant=variant)
    with using(launcher):
        assert_as_reference(case, schedule="stepwise")
    assert all(entry["race_check"] for entry in launcher.launches)
    rows = work.of_launches(launcher.launches, work.SEQ_LEN, variant, "bf16", HIDDEN_SIZE, BATCH)
    assert len(rows) == (2 if variant == "torch" else 4)
    for row in rows:
        path, loaded, barriers = BUDGET[row.target][row.kernel, "torch" if variant == "torch" else "cho"]
        assert row.path <= SLACK * path, row
        assert row.load_floor <= row.load_bytes <= SLACK * loaded, row
        assert row.store_bytes == row.store_floor, row
        assert row.barriers <= SLACK * barriers, row


def test_floor_by_hand():
    """H 64, B 32 in bfloat16 with tiles of 32 x 16: two tiles each way."""
    units = 64 * 32
    weights, state = 2 * 3 * 64 * 64 * 2, 2 * units * 2
    loads, stores = work.floor("forward_step", "torch", 2, 64, 32, (32, 16))
    assert loads == weights + state + 3 * units * 2 + units * 4 + 2 * 64 * 2
    assert stores == 5 * units * 2 + units * 4


def test_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(work, "__file__", str(tmp_path / "bench" / "suites" / "work.py"))
    with pytest.raises(SystemExit, match="runs from a checkout"):
        work.measure_stepwise(90, "torch", "bf16", 16, 1)
