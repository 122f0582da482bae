"""The walking kernels, compiled and executed from PTX with their programs interleaved, against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import INTERPRETED
from ptx import PtxError, ptx_launcher
from recurrences import recurrence

from trigru.kernels import walking
from trigru.kernels.config import walking_config
from trigru.kernels.launch import using
from trigru.kernels.recurrence import Recurrence
from trigru.kernels.watch import KernelTimeout

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait"),
    pytest.mark.usefixtures("poisoned"),
]

TOLERANCE = {"ieee": 2e-6, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.5e-2}
DTYPES = {"ieee": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check(case, kind="bf16", *, arch=90, programs=None, **order):
    """programs: that walk over the tiles of each direction; None: one for each."""
    config = walking_config(case.h0.dtype, *case.h0.shape[-2:], matrix=kind != "ieee")
    launcher = ptx_launcher(arch=arch, **order)
    with using(launcher):
        got = case.run(walking, replace(config, programs=programs), precision="ieee" if kind == "ieee" else "tf32")
    errors = case.errors(got)
    assert all(launch["race_check"] and launch["cooperative"] for launch in launcher.launches)
    assert len(launcher.launches) == 2  # one forward, one backward, whatever the sizes
    assert max(errors.values()) <= TOLERANCE[kind], errors
    return [launch["grid"] for launch in launcher.launches]


@pytest.mark.parametrize(
    ("variant", "hidden_size", "batch", "rows", "direction", "kind", "arch", "programs"),
    [
        ("torch", 64, 5, "padded", "ahead", "bf16", 80, None),
        ("torch", 70, 35, "packed", "both", "ieee", 90, 4),
        ("torch", 40, 18, "packed", "reverse", "tf32", 90, None),
        ("cho", 70, 35, "packed", "both", "tf32", 80, 4),
        ("cho", 33, 18, "padded", "reverse", "fp16", 90, 2),
        ("chung", 40, 18, "packed", "ahead", "bf16", 90, 1),
        ("chung", 40, 3, "padded", "both", "ieee", 75, None),
    ],
)
def test_every_kind_of_layer(variant, hidden_size, batch, rows, direction, kind, arch, programs):
    both, reverse = direction == "both", direction == "reverse"
    kinds = {"dtype": DTYPES[kind], "packed": rows == "packed", "both": both, "reverse": reverse}
    case = recurrence(4, batch, hidden_size, variant=variant, **kinds)
    grids = check(case, kind, arch=arch, programs=programs, seed=1)
    assert {grid[1] for grid in grids} == {2 if both else 1}


@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_interleavings(variant):
    case = recurrence(3, 18, 70, variant=variant, packed=True)
    for seed in range(6):
        check(case, programs=(None, 3)[seed % 2], seed=seed, quantum=(200, 20, 1000)[seed % 3])
    check(case, seed="round-robin")


@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_one_program_starved_as_long_as_the_others_can_go_on(variant):
    case = recurrence(3, 16, 64, variant=variant)
    for program in range(2):
        check(case, starve=program)


def test_more_tiles_than_programs_are_walked_over():
    assert check(recurrence(2, 40, 96), programs=4, seed=0, resident_programs=4) == [(4, 1), (4, 1)]
    with pytest.raises(PtxError, match="6 programs, at most 4"):
        check(recurrence(2, 40, 96), seed=0, resident_programs=4)


def test_a_wait_that_expires_is_an_error_and_ends():
    case, config = recurrence(3, 16, 64), walking_config(torch.bfloat16, 16, 64)
    launcher = ptx_launcher(arch=90, seed=0, races=False)  # what a program reads that has given up is not valid

    def counters_that_never_fill(kernel, grid, args, *rest, **options):
        status = args["status_ptr"]
        status = status.index_fill(0, torch.arange(8, len(status)), -(2**20))
        launcher(kernel, grid, args | {"status_ptr": status}, *rest, **options)

    with using(counters_that_never_fill), pytest.raises(KernelTimeout, match=r"walk_torch on 2 x 1 programs"):
        case.run(walking, config, timeout=0.05)


def test_nan_stays_in_its_sequence():
    case = recurrence(3, 16, 64)
    case.h0[1, 3] = float("nan")
    with using(ptx_launcher(arch=90, seed=0)):
        got = case.run(walking, walking_config(torch.bfloat16, 16, 64))
    bad = got["output"].isnan().view(3, 16, 64)
    assert bad[:, 1].all()
    assert not bad[:, [0, *range(2, 16)]].any()


def test_an_empty_batch():
    case = recurrence(2, 1, 16)
    operands = case.operands._replace(gates_in=case.gates_in[:0], h0=case.h0[:0], steps=case.steps.padded(2, 0))
    output, reserve, _ = walking.forward(
        Recurrence("torch", False, "tf32", walking_config(torch.bfloat16, 1, 16)), operands, True
    )
    assert output.shape == (0, 16)
    assert reserve.shape == (0, 64)
