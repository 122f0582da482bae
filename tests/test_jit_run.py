"""Every kernel through Triton's own launch, `JITFunction.run`, with a driver written in Python: no compiler and no CUDA
tensors are needed (tests/fakecuda runs all of the way, and needs both)."""

from __future__ import annotations

import pytest
import torch
from conftest import INTERPRETED
from fakecuda import driver_only
from recurrences import recurrence

from trigru.kernels import launch, persistent, resident, stepwise
from trigru.kernels.config import persistent_config, resident_config, stepwise_config

pytestmark = pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter does not launch")

HALF = torch.float16
SCHEDULES = {
    "stepwise": (stepwise, stepwise_config),
    "resident": (resident, resident_config),
    "persistent": (persistent, persistent_config),
}
KERNELS = {
    ("stepwise", "torch"): {"forward_step", "bptt_step"},
    ("stepwise", "cho"): {"reset_update_step", "candidate_step", "bptt_step", "bptt_reset_step"},
    ("resident", "torch"): {"forward_kernel", "bptt_kernel"},
    ("resident", "cho"): {"forward_kernel", "bptt_kernel"},
    ("persistent", "torch"): {"forward_torch", "backward_torch"},
    ("persistent", "cho"): {"forward_reset_first", "backward_reset_first"},
}


def run(schedule="persistent", variant="torch", packed=False, batch=3, **options):
    """The largest relative error, and the launches."""
    module, config = SCHEDULES[schedule]
    case = recurrence(3, batch, 48, variant=variant, dtype=HALF, packed=packed, reverse=packed)
    with driver_only.active() as launches:
        got = case.run(module, config(HALF, batch, 48), **options)
    return max(case.errors(got).values()), launches


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("schedule", "variant"), KERNELS)
def test_every_kernel(schedule, variant, packed):
    error, launches = run(schedule, variant, packed)
    assert error <= 2e-3
    assert {launched["kernel"] for launched in launches} == KERNELS[schedule, variant]
    assert {launched["cooperative"] for launched in launches} == {schedule == "persistent"}


def test_a_second_run_launches_what_was_compiled(monkeypatch):
    run("stepwise")
    monkeypatch.setattr(driver_only.Driver, "load_binary", None)
    error, _ = run("stepwise")
    assert error <= 2e-3


def test_a_misspelt_option(monkeypatch):
    monkeypatch.setattr(launch, "COOPERATIVE", {"launch_cooperative": True})
    with pytest.raises(KeyError, match="launch_cooperative"):
        run()


def test_more_programs_than_fit():
    with pytest.raises(RuntimeError, match="too many blocks in cooperative launch"):
        run(batch=16 * 400)
