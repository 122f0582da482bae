"""Several layers in one launch: the kernels, compiled and executed from PTX with their programs interleaved, against
the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import INTERPRETED, generated_code
from ptx import PtxError, ptx_launcher
from stacks import stack

from trigru.kernels import stacked
from trigru.kernels.config import stacked_config
from trigru.kernels.launch import using
from trigru.kernels.persistent import exchanging_by
from trigru.kernels.recurrence import Recurrence
from trigru.kernels.watch import KernelTimeout

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait"),
    pytest.mark.usefixtures("poisoned"),
    generated_code,
]

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # float32 multiplied in TF32
slow = pytest.mark.slow


def check(case, *, arch=90, config=(), **order):
    launcher = ptx_launcher(arch=arch, strong=True, **order)
    with using(launcher):
        errors = case.errors(case.run(**dict(config)))
    assert all(launch["race_check"] and launch["cooperative"] for launch in launcher.launches)
    assert max(errors.values()) <= TOLERANCE[case.layers.h0.dtype], errors
    return launcher.launches


@pytest.mark.parametrize(
    ("variant", "layers", "hidden_size", "arch", "dtype", "options"),
    [
        ("torch", 3, 64, 80, torch.bfloat16, {"dropout": 0.25}),
        ("cho", 2, 40, 90, torch.float16, {"reverse": True}),
        ("chung", 3, 40, 90, torch.float32, {"dropout": 0.5, "bias": False}),
        pytest.param("torch", 2, 128, 90, torch.float16, {"reverse": True, "bias": False}, marks=slow),
        pytest.param("torch", 2, 40, 80, torch.float32, {"dropout": 0.5}, marks=slow),
        pytest.param("cho", 5, 48, 80, torch.bfloat16, {"dropout": 0.25}, marks=slow),
        pytest.param("torch", 5, 48, 90, torch.bfloat16, {}, marks=slow),
    ],
)
def test_every_kind_of_stack(variant, layers, hidden_size, arch, dtype, options):
    batch = 5 if layers == 2 else 18
    check(stack(layers, 3, batch, hidden_size, variant=variant, dtype=dtype, **options), arch=arch, seed=1)


@slow
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_the_largest_hidden_size(variant):
    check(stack(2, 2, 3, 512, variant=variant, dropout=0.25), max_instructions=10**9)


@pytest.mark.parametrize("variant", ["torch", "chung"])
@pytest.mark.parametrize(("layers", "seeds"), [(3, 3), pytest.param(3, 40, marks=slow), pytest.param(5, 8, marks=slow)])
def test_interleavings(variant, layers, seeds):
    case = stack(layers, 3, 3, 32, variant=variant, dropout=0.25)
    for seed in range(seeds):
        check(case, seed=seed, quantum=(200, 20, 1000)[seed % 3])


@pytest.mark.parametrize(("variant", "layers"), [("torch", 2), pytest.param("cho", 3, marks=slow)])
def test_one_program_starved_as_long_as_the_others_can_go_on(variant, layers):
    """A layer's below and above its own, too: two programs a layer."""
    case = stack(layers, 3, 3, 32, variant=variant)
    for program in range(2 * layers):
        check(case, starve=program)


def test_nan_and_infinity_come_out_where_the_reference_has_them():
    """Nothing of one sequence reaches another, and the rows of zeros reach none."""
    case = stack(2, 3, 4, 32)
    case.layers.h0.view(torch.int16)[1, 1, 3] = -1  # the reserved pattern itself, in the upper layer
    case.layers.gates_in[2, 5] = float("nan")
    case.layers.h0[0, 3] = float("inf")
    with using(ptx_launcher(arch=90, seed=0)):
        got = case.run()
    below, above = got["states"].view(3, 4, 32).isfinite(), got["output"].view(3, 4, 32).isfinite()
    assert below[:, :2].all()
    assert above[:, 0].all()
    assert not above[0, 1].any()
    assert not below[1:, 2].any()
    assert not above[1:, 2].any()


@pytest.mark.parametrize(
    ("waiting", "grid"),
    [("stacked_torch", (1, 2)), ("stacked_back_torch", (2, 1))],
    ids=["a program of each layer", "the upper layer"],
)
def test_a_wait_that_expires_is_an_error_and_ends(waiting, grid):
    """What the others wait for never runs."""
    case = stack(2, 2, 3, 32)
    launcher = ptx_launcher(arch=90, seed=0)

    def without_some(kernel, given, *args, **options):
        launcher(kernel, grid if kernel.__name__ == waiting else given, *args, **options)

    with using(without_some), pytest.raises(KernelTimeout, match=rf"{waiting} on \d"):
        case.run(timeout=0.05)


def test_batches_that_do_not_fit_at_once_take_turns():
    case = stack(2, 2, 40, 32)  # three tiles of two layers
    launches = check(case, config={"tiles_at_once": 5}, seed=3, resident_programs=8)
    assert [launch["grid"] for launch in launches] == [(2, 4), (2, 2)] * 2
    with using(ptx_launcher(arch=90, resident_programs=11)), pytest.raises(PtxError, match="12 programs, at most 11"):
        case.run()


def test_what_it_does_not_run_is_refused():
    case = stack(2, 2, 3, 32)
    config = stacked_config(torch.bfloat16, 3, 32)
    with pytest.raises(ValueError, match="by protocol \"data\", got padded sequences by protocol 'flags'"):
        stacked.forward(Recurrence("torch", False, "ieee", replace(config, protocol="flags")), case.layers)
    with exchanging_by("flags"), pytest.raises(ValueError, match="'flags'"):
        stacked.forward(Recurrence("torch", False, "ieee", config), case.layers)
    wide = stack(2, 2, 3, 12)
    with pytest.raises(ValueError, match="several layers in a launch: it adds no hidden units"):
        stacked.forward(Recurrence("torch", False, "ieee", config), wide.layers)
    exact = stack(2, 2, 3, 32, dtype=torch.float32)
    with pytest.raises(ValueError, match="float32 without TF32"):
        stacked.forward(Recurrence("torch", False, "ieee", config), exact.layers)


def test_an_empty_batch():
    case = stack(2, 2, 1, 32)
    nothing = {name: getattr(case.layers, name) for name in ("gates_in", "states", "output", "reserve")}
    nothing = {name: x[..., :0, :] for name, x in nothing.items()}
    layers = case.layers._replace(h0=case.layers.h0[:, :0], steps=type(case.layers.steps).padded(2, 0), **nothing)
    stacked.forward(Recurrence("torch", False, "ieee", stacked_config(torch.bfloat16, 1, 32)), layers)
