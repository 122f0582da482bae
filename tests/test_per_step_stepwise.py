"""What a step does beside the equations, in the stepwise and the walking kernels, against the float64 loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from conftest import INTERPRETED
from per_step import OPTIONS, per_step_recurrence
from recurrences import recurrence

import trigru
from trigru.kernels import stepwise, walking
from trigru.kernels.config import StepwiseConfig, walking_config
from trigru.kernels.launch import using
from trigru.kernels.recurrence import PerStep

pytestmark = [pytest.mark.interpretable, pytest.mark.usefixtures("poisoned")]

CONFIG = StepwiseConfig(block_h=16, block_b=16, block_k=16)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# Each option with every variant, and by turns in every other way (of these the numbers have no common divisor).
CHOSEN = [("reset",), ("reset", "fresh"), ("decay",), ("amount",), ("dropped",), ("zoneout",), ("clip",), OPTIONS]
EACH = [(options, variant) for options in CHOSEN for variant in trigru.VARIANTS]
# T, B, H: one step; more sequences than a tile has, more hidden units
SIZES = [(2, 18, 7), (1, 3, 16), (2, 2, 19), (3, 3, 8)]
WAYS = [
    {"reverse": True},
    {"by_unit": True},
    {"by_unit": True, "both": True},
    {"fresh_once": True, "flags": True},
    {"both": True, "fresh_once": True},
]
DTYPES = [torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.float32, torch.bfloat16, torch.float32]
CASES = [
    pytest.param(
        *each,
        size,
        way,
        torch.float32 if "clip" in each[0] else dtype,  # rounded numbers may lie on its other side
        marks=[] if (i % 4 == 0 if INTERPRETED else i == len(EACH) - 1) else pytest.mark.slow,
    )
    for i, (each, size, way, dtype) in enumerate(zip(EACH, cycle(SIZES), cycle(WAYS), cycle(DTYPES), strict=False))
]


def run_stepwise(case):
    """What comes out, in the interpreter or from PTX."""
    if INTERPRETED:
        return case.run(stepwise, CONFIG, precision="ieee")
    from ptx import ptx_launcher

    launcher = ptx_launcher(arch=90)
    with using(launcher):
        got = case.run(stepwise, CONFIG, precision="ieee")
    assert all(launch["race_check"] for launch in launcher.launches)
    return got


def check(case, got, tolerance):
    """All of it."""
    assert got.keys() == case.expected.keys()
    assert ("begins" in got) == case.per_step.carries
    errors = case.errors(got)
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize(("options", "variant", "size", "way", "dtype"), CASES, ids=str)
def test_every_option(options, variant, size, way, dtype):
    case = per_step_recurrence(*size, options, variant=variant, dtype=dtype, **way)
    check(case, run_stepwise(case), TOLERANCE[dtype])


def by_step(case, x):
    """(T, B, ...) of rows of all steps."""
    return x.view(case.steps.seq_len, case.steps.batch, *x.shape[1:])


def same(first, second):
    """Whether they are finite, and the same bit for bit."""
    return bool(first.isfinite().all()) and torch.equal(first, second)


@pytest.mark.parametrize("variant", trigru.VARIANTS if INTERPRETED else ["chung"])
def test_nan_does_not_pass_a_reset(variant):
    """Of one sequence the second step of four is NaN, and the third begins anew; so does another, at its first."""
    case = per_step_recurrence(4, 3, 8, ("reset", "fresh", "decay"), variant=variant)
    reset = by_step(case, case.per_step.reset)
    reset[:] = False
    reset[2, 1] = reset[0, 2] = True
    clean = run_stepwise(case)
    by_step(case, case.gates_in)[1, 1, 5] = float("nan")
    case.h0[2, 4] = float("inf")
    got = run_stepwise(case)
    assert by_step(case, got["output"])[1, 1].isnan().any()
    for name in ("output", "begins", "d_gates", "d_begin"):
        mine, other = by_step(case, got[name]), by_step(case, clean[name])
        assert same(mine[:, [0, 2]], other[:, [0, 2]]), name
        assert same(mine[2:, 1], other[2:, 1]), name
    assert same(got["d_h0"][[0, 2]], clean["d_h0"][[0, 2]])
    assert not got["d_h0"][2].any()


@pytest.mark.parametrize(
    ("variant", "by_unit", "flags"),
    [("torch", False, False), ("cho", True, False), ("chung", False, True), ("torch", True, True)][
        :: 1 if INTERPRETED else 2
    ],
)
def test_where_a_state_is_carried_on_nothing_else_counts(variant, by_unit, flags):
    """A whole sequence's, bit for bit, NaN or not; clip does not change it either."""
    case = per_step_recurrence(3, 4, 8, ("amount", "clip"), by_unit=by_unit, flags=flags, variant=variant)
    case.h0[3] *= 9
    amount, gates_in = by_step(case, case.per_step.amount), by_step(case, case.gates_in)
    amount[1:, 1] = amount[:2, 3] = 0
    clean = run_stepwise(case)
    gates_in[1:, 1] = float("nan")
    gates_in[:2, 3] = float("inf")
    got = run_stepwise(case)
    for name, x in got.items():
        assert same(x, clean[name]), name
    output, d_gates = by_step(case, got["output"]), by_step(case, got["d_gates"])
    assert torch.equal(output[:2, 3], case.h0[3].expand(2, -1))
    assert torch.equal(output[1:, 1], output[0, 1].expand(2, -1))
    assert not d_gates[1:, 1].any()
    assert not d_gates[:2, 3].any()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait")
@pytest.mark.parametrize(
    ("variant", "way", "kind", "arch", "programs"),
    [
        ("torch", {"both": True, "by_unit": True}, "ieee", 90, 2),
        ("cho", {"reverse": True, "fresh_once": True}, "bf16", 80, None),
        ("chung", {"by_unit": True, "flags": True}, "tf32", 90, 1),
        pytest.param("cho", {"both": True}, "ieee", 75, 3, marks=pytest.mark.slow),
        pytest.param("torch", {"reverse": True}, "bf16", 90, None, marks=pytest.mark.slow),
    ],
)
def test_walking(variant, way, kind, arch, programs):
    from ptx import ptx_launcher

    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    options = OPTIONS if kind == "ieee" else OPTIONS[:-1]  # without clip: see CASES
    case = per_step_recurrence(3, 18, 40, options, variant=variant, dtype=dtype, **way)
    config = replace(walking_config(dtype, 18, 40, matrix=kind != "ieee"), programs=programs)
    launcher = ptx_launcher(arch=arch, seed=len(variant), quantum=20)
    with using(launcher):
        got = case.run(walking, config, precision="ieee" if kind == "ieee" else "tf32")
    assert all(launch["race_check"] for launch in launcher.launches)
    assert [launch["kernel"] == "masks_kernel" for launch in launcher.launches] == [True, False, True, False]
    check(case, got, {"ieee": 2e-6, "tf32": 3e-3, "bf16": 3e-2}[kind])


@pytest.mark.skipif(INTERPRETED, reason="about compiled code")
@pytest.mark.parametrize("schedule", [stepwise, walking], ids=["stepwise", "walking"])
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_what_is_absent_is_no_code(schedule, variant):
    from trigru.kernels.offline import Recorder, specialise_launch, target_of

    case, config = recurrence(2, 16, 32, variant=variant, both=True), walking_config(torch.bfloat16, 16, 32)
    keys = []
    for per_step in (None, PerStep()):
        recorder = Recorder()
        with using(recorder):
            replace(case, per_step=per_step).run(schedule, config)
        launches = recorder.launches
        assert all(launch.args[name] is None for launch in launches for name in launch.args if name in ABSENT)
        keys.append([specialise_launch(launch, target_of("sm_90")).key for launch in launches])
    assert keys[0] == keys[1]


ABSENT = {f"{name}_ptr" for name in (*OPTIONS, "begins", "d_begin")} | {"clip"}


@pytest.mark.parametrize("schedule", [stepwise, walking], ids=["stepwise", "walking"])
def test_what_cannot_be(schedule):
    case, config = recurrence(2, 3, 16, packed=True), walking_config(torch.bfloat16, 3, 16)
    with pytest.raises(ValueError, match="per_step: expected padded sequences"):
        replace(case, per_step=PerStep(clip=1.0)).run(schedule, config)
    case = recurrence(2, 3, 16)
    with pytest.raises(ValueError, match="begins: expected a tensor, got NoneType"):
        replace(case, per_step=PerStep(decay=torch.ones(6, dtype=torch.bfloat16))).run(schedule, config)
    with pytest.raises(ValueError, match="begins: expected None, got Tensor"):
        replace(case, per_step=PerStep(clip=1.0, begins=torch.ones(6, 16))).run(schedule, config)
