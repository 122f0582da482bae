"""The persistent kernels at real sizes, executed from PTX with every check on: right results, every awaited element
looked at once, and no more work a step than a written budget allows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import generated_code
from per_step import per_step_recurrence
from recurrences import recurrence

from trigru.bench.suites.work_persistent import LENGTHS, Twice, difference, floor, measure
from trigru.kernels import persistent, resident
from trigru.kernels.config import persistent_config, resident_config
from trigru.kernels.launch import using

pytestmark = generated_code

BATCH = 16
# Work of one step: longest path of a warp, barriers of a program; sm_90, H = 512, bfloat16, gates kept for backward.
BUDGET = {
    "forward_torch": (215, 4),  # two sums over warps
    "backward_torch": (239, 2),
    "forward_reset_first": (278, 6),
    "backward_reset_first": (271, 4),
}
SLACK = 1.1  # another version of Triton may need a little more


def steps_of_work(seq_len: int, variant: str, hidden_size: int, dtype: torch.dtype, arch: int):
    """The second runs of a forward and a backward launch of so many steps."""
    torch.manual_seed(0)
    case = recurrence(seq_len, BATCH, hidden_size, variant=variant, dtype=dtype)
    from ptx import ptx_launcher

    twice = Twice(ptx_launcher, arch)
    with using(twice):
        errors = case.errors(case.run(persistent, persistent_config(dtype, BATCH, hidden_size)))
    assert all(launch["race_check"] for launch in twice.first.launches)
    assert max(errors.values()) <= 1e-2, errors
    return twice.second.launches


def work_of_a_step(variant: str, hidden_size: int = 512, dtype: torch.dtype = torch.bfloat16, arch: int = 90):
    """Three steps less two, for forward and backward."""
    two, three = (steps_of_work(seq_len, variant, hidden_size, dtype, arch) for seq_len in LENGTHS)
    for less, more in zip(two, three, strict=True):
        yield more["kernel"], difference(less, more)


# "chung" runs the kernels of "cho".
@pytest.mark.parametrize("variant", ["torch", "cho", pytest.param("chung", marks=pytest.mark.slow)])
def test_work_of_a_step(variant):
    for kernel, step in work_of_a_step(variant):
        most_path, most_barriers = BUDGET[kernel]
        assert step["critical_path"] <= SLACK * most_path, kernel
        assert step["barriers"] <= SLACK * most_barriers, kernel
        assert step["global_load_bytes"] == floor(kernel, 512, BATCH, 2, 16)[0], kernel
        assert step["atomics"] == 0


@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_parts_take_one_round_where_threads_are_more_than_elements(variant):
    """By `tl.sum` "torch" has 5 barriers going back, "cho" 10, and 15 forward."""
    from ptx import ptx_launcher

    steps = {step.pop("kernel"): step for step in measure(ptx_launcher, 90, variant, torch.bfloat16, "ieee", 288, 8)}
    steps.pop("forward_torch", None)  # its four gates are more elements than threads
    assert steps
    for kernel, step in steps.items():
        assert step["barriers"] <= BUDGET[kernel][1], kernel


@pytest.mark.parametrize(
    ("variant", "hidden_size", "dtype", "arch"),
    [("torch", 512, torch.float32, 90), ("cho", 512, torch.float16, 80), ("torch", 1024, torch.bfloat16, 90)],
)
def test_real_sizes(variant, hidden_size, dtype, arch):
    assert len(steps_of_work(2, variant, hidden_size, dtype, arch)) == 2


def test_looks_at_what_comes_late_are_few_bytes():
    """A program is late by 2000 instructions; every thread that waits for it looks at that program's part alone."""
    torch.manual_seed(0)
    case = recurrence(2, BATCH, 512)
    from ptx import ptx_launcher

    launcher = ptx_launcher(90, "round-robin", behind=(3, 2000), quantum=100)
    with using(launcher):
        errors = case.errors(case.run(persistent, persistent_config(torch.bfloat16, BATCH, 512)))
    assert max(errors.values()) <= 1.5e-2, errors
    _, backward = launcher.launches
    assert backward["global_load_bytes"] <= SLACK * 5811 * 1024  # 7573 where a look in vain is repeated as a whole


def instructions_of_a_step(variant: str, options: tuple[str, ...], schedule=persistent, hidden_size: int = 512) -> int:
    """Forward and backward together, of kernels whose steps have options, amounts as flags."""
    from ptx import ptx_launcher

    config = (persistent_config if schedule is persistent else resident_config)(torch.bfloat16, BATCH, hidden_size)
    runs = []
    for seq_len in LENGTHS:
        torch.manual_seed(0)
        lengths = "lengths" in options
        drawn = [name for name in options if name != "lengths"] + ["amount"] * lengths
        case = per_step_recurrence(seq_len, BATCH, hidden_size, drawn, variant=variant, dtype=torch.bfloat16)
        given = case.per_step._replace(wants_d_begin=False)
        if given.amount is not None:
            given = given._replace(amount=given.amount > 0.5)
        if lengths:  # to the end, so that a step more is a step more
            ends = torch.full((BATCH,), seq_len)
            given = given._replace(amount=torch.ones(seq_len * BATCH, dtype=torch.bool), lengths=ends)
        twice = Twice(ptx_launcher, 90)
        with using(twice):
            replace(case, per_step=given).run(schedule, config)
        runs.append(twice.second.launches)
    return sum(difference(less, more)["instructions"] for less, more in zip(*runs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "hidden_size"), [(persistent, 512), (resident, 64), (resident, 128)], ids=["512", "64", "128"]
)
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_resets_and_lengths_take_few_instructions(variant, schedule, hidden_size):
    """A mask of lengths is an amount in flags; resident is given where sequences end, too."""
    off = instructions_of_a_step(variant, (), schedule, hidden_size)
    sets = [("reset",), ("amount",), ("reset", "amount")]
    if schedule is resident:
        sets += [("lengths",), ("reset", "lengths")]
    for options in sets:
        assert instructions_of_a_step(variant, options, schedule, hidden_size) <= 1.05 * off, options
