"""What a step does beside the equations, in the resident kernels: in Triton's interpreter, and executed from PTX."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import TOLERANCE
from conftest import INTERPRETED
from per_step import OPTIONS, per_step_recurrence
from recurrences import recurrence

import trigru
from trigru.kernels import persistent, resident, stepwise, tile_words
from trigru.kernels.config import StepwiseConfig, persistent_config, resident_config
from trigru.kernels.launch import using
from trigru.kernels.offline import Recorder, specialise_launch, target_of
from trigru.kernels.recurrence import PerStep

pytestmark = [pytest.mark.interpretable, pytest.mark.usefixtures("poisoned")]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="compiled code runs the same functions, in a selection above")

SETS = [("reset",), ("reset", "fresh"), ("decay",), ("amount",), ("dropped",), ("zoneout",), ("clip",), OPTIONS]
# T, B, H: one step, hidden units that are added (19) or masked (24), sequences that fill no tile, two tiles of them
SIZES = [(4, 3, 16), (1, 3, 5), (2, 17, 19), (5, 3, 24)]


def run(case):
    """The case's results."""
    return case.run(resident, resident_config(case.h0.dtype, *case.h0.shape[-2:]), precision="ieee")


def assert_as_the_loop(case):
    """Within what rounding explains."""
    errors = case.errors(run(case))
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors


# Every option with every variant, in one dtype or the other; compiled and with all options in both.
CASES = [
    pytest.param(options, variant, dtype, marks=[] if options == OPTIONS or (i + j + k) % 2 else pytest.mark.slow)
    for i, options in enumerate(SETS)
    for j, variant in enumerate(trigru.VARIANTS)
    for k, dtype in enumerate([torch.float32, torch.bfloat16])
]


@pytest.mark.parametrize(("options", "variant", "dtype"), CASES, ids=str)
def test_each_option_and_all(on_cpu, options, variant, dtype):
    """Sizes, directions of time and the operands' shapes take turns."""
    turn = SETS.index(options) + trigru.VARIANTS.index(variant) + (dtype == torch.bfloat16)
    if not INTERPRETED and (options != OPTIONS or (turn + (variant == "cho")) % 2):
        pytest.skip("compiled in a selection")
    case = per_step_recurrence(
        *SIZES[0 if dtype == torch.bfloat16 and "clip" in options else turn % 4],  # of more, some are near the clip
        options,
        by_unit=turn % 2 == 0,
        fresh_once=turn % 4 == 1,
        flags=turn % 3 == 1,
        variant=variant,
        dtype=dtype,
        reverse=turn % 4 > 1,
        both=turn % 3 == 2,
    )
    with on_cpu():
        assert_as_the_loop(case)


@interpreted
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_a_reset_lets_nothing_pass(variant):
    """Not even NaN: of the state before it in values, of what comes behind it in derivatives."""
    case = per_step_recurrence(4, 3, 16, ("reset", "fresh", "decay"), variant=variant, by_unit=True)
    reset = case.per_step.reset.view(4, 3)
    reset[:] = False
    reset[0, 0] = reset[2, 1] = True
    clean = run(case)
    case.h0[0] = float("nan")
    case.gates_in.view(4, 3, 48)[1, 1] = float("nan")
    before = run(case)
    case.gates_in.view(4, 3, 48)[1, 1] = 0.0
    case.grad_output.view(4, 3, 16)[2, 1] = float("nan")
    behind = run(case)
    for name in clean.keys() - {"d_b_hn"}:  # a sum over all rows
        was, now, later = (results[name].unflatten(0, (-1, 3)) for results in (clean, before, behind))
        assert torch.equal(now[:, 0], was[:, 0]), name
        assert torch.equal(now[2:, 1], was[2:, 1]), name
        assert later[:2].isfinite().all(), name
    assert before["output"].unflatten(0, (4, 3))[1, 1].isnan().all()
    assert behind["d_gates"].unflatten(0, (4, 3))[2, 1].isnan().any()
    assert (clean["d_h0"][0] == 0).all()


@interpreted
@pytest.mark.parametrize("by_unit", [False, True], ids=["rows", "units"])
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_an_amount_of_zero_carries_the_state_bit_for_bit(variant, by_unit):
    """And nothing else of such a step counts, forward or backward."""
    case = per_step_recurrence(4, 3, 16, ("amount",), variant=variant, dtype=torch.bfloat16, by_unit=by_unit)
    amount = case.per_step.amount.view(4, 3, -1)
    amount[2] = 0
    clean = run(case)
    case.gates_in.view(4, 3, 48)[2] = float("nan")
    got = run(case)
    assert all(torch.equal(got[name], clean[name]) for name in got)
    output = got["output"].view(4, 3, 16)
    carried = (amount == 0).expand_as(output)
    assert torch.equal(output[carried], torch.cat([case.h0[None], output[:-1]])[carried])


@interpreted
@pytest.mark.parametrize("schedule", [resident, stepwise], ids=["resident", "stepwise"])
@pytest.mark.parametrize(("variant", "by_unit"), [("torch", False), ("cho", True), ("chung", False)])
def test_flags_are_amounts_of_zero_and_one(schedule, variant, by_unit):
    config = resident_config(torch.float32, 3, 16) if schedule is resident else StepwiseConfig(16, 16, 16)
    case = per_step_recurrence(4, 3, 16, OPTIONS, variant=variant, by_unit=by_unit)
    results = []
    for amount in ((case.per_step.amount > 0.5).to(torch.float32), case.per_step.amount > 0.5):
        given = replace(case, per_step=case.per_step._replace(amount=amount))
        results.append(given.run(schedule, config, precision="ieee"))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize(
    ("variant", "options", "way", "size"),
    [
        ("torch", ("reset", "fresh", "amount"), {"both": True}, (3, 18, 16)),
        ("chung", ("reset", "amount"), {"reverse": True}, (3, 3, 24)),
        pytest.param("cho", ("reset", "amount"), {}, (1, 17, 32), marks=pytest.mark.slow),
        pytest.param("cho", ("reset",), {"both": True}, (3, 17, 16), marks=pytest.mark.slow),
        pytest.param("chung", ("amount",), {"reverse": True}, (4, 5, 19), marks=pytest.mark.slow),
    ],
)
def test_flags_in_words(on_cpu, monkeypatch, variant, options, way, size):
    """As by themselves, bit for bit; but compiled, the derivative by a state may be rounded once where it was twice.
    And NaN in what does not count reaches nothing."""
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    case = per_step_recurrence(*size, options, flags=True, fresh_once=True, variant=variant, dtype=dtype, **way)
    with on_cpu():
        assert_as_the_loop(case)
        if case.per_step.amount is not None:
            case = replace(case, per_step=case.per_step._replace(lengths=torch.full(size[1:2], size[0])))
            case.gates_in[~case.per_step.amount] = float("nan")
        words = run(case)
        with monkeypatch.context() as patched:
            patched.setattr(tile_words, "arguments", lambda *_: {})
            apart = run(case)
    exact = {"rtol": 0, "atol": 0}
    for name, x in words.items():
        torch.testing.assert_close(x, apart[name], **exact if INTERPRETED or name == "output" else {})


@pytest.mark.skipif(INTERPRETED, reason="about compiled code")
@pytest.mark.parametrize("schedule", ["resident", "persistent"])
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_what_is_absent_is_no_code(variant, schedule):
    module, config = {"resident": (resident, resident_config), "persistent": (persistent, persistent_config)}[schedule]
    case = recurrence(2, 16, 32, variant=variant, both=True)
    launches = []
    for per_step in (None, PerStep()):
        recorder = Recorder()
        with using(recorder):
            replace(case, per_step=per_step).run(module, config(torch.bfloat16, 16, 32))
        launches.append([specialise_launch(launch, target_of("sm_90")).key for launch in recorder.launches])
    assert launches[0] == launches[1]


def test_packed_sequences_have_none():
    with pytest.raises(ValueError, match="per_step: expected padded sequences"):
        run(replace(recurrence(3, 3, 16, packed=True), per_step=PerStep(clip=1.0)))
