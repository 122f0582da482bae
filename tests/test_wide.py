"""Programs of the persistent kernels with more hidden units each: compiled and executed from PTX with their programs
interleaved, against the reference; and where they are planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import INTERPRETED
from per_step import OPTIONS, per_step_recurrence
from ptx import ptx_launcher
from recurrences import recurrence

from trigru.kernels import persistent
from trigru.kernels.config import WIDE, PersistentConfig, fetches, persistent_config, sharing_config, wide_config
from trigru.kernels.launch import using
from trigru.planning import cost, invariant
from trigru.planning.candidates import candidates
from trigru.planning.devices import PRESETS
from trigru.reference import VARIANTS

executed = pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait")
several = pytest.mark.skipif(not fetches(), reason="several batch tiles are for Triton 3.7")
SLOW = pytest.mark.slow
TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # float32 multiplied in TF32


def check(case, *, arch=90, tiles=1, protocol="data", **order):
    """Against the float64 loop, with programs of 32 units both ways, and without races."""
    dtype, (batch, hidden_size) = case.h0.dtype, case.h0.shape[-2:]
    config = persistent_config(dtype, batch, hidden_size)
    config = wide_config(config, "cho", "backward", dtype, hidden_size) or replace(config, block_h=WIDE, registers=256)
    config = replace(config, tiles=tiles, protocol=protocol)
    launcher = ptx_launcher(arch=arch, strong=True, **order)
    with using(launcher):
        errors = case.errors(case.run(persistent, config))
    assert all(launch["race_check"] and launch["cooperative"] for launch in launcher.launches)
    assert {launch["grid"][0] for launch in launcher.launches} == {-(-case.h0.shape[-1] // WIDE)}
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors


@executed
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("batch", "hidden_size", "tiles", "arch", "dtype", "protocol", "options"),
    [
        (18, 64, 1, 90, torch.bfloat16, "data", {"packed": True}),
        (18, 64, 1, 80, torch.float32, "data", {"variant": "cho"}),
        (18, 96, 1, 90, torch.float16, "flags", {"variant": "chung", "both": True}),
        pytest.param(36, 64, 2, 90, torch.bfloat16, "data", {}, marks=several),
        pytest.param(36, 64, 2, 90, torch.bfloat16, "data", {"variant": "cho", "packed": True}, marks=several),
        pytest.param(40, 64, 2, 80, torch.float32, "flags", {"reverse": True}, marks=[several, SLOW]),
        pytest.param(40, 96, 3, 90, torch.float16, "data", {"both": True, "packed": True}, marks=[several, SLOW]),
        pytest.param(18, 160, 1, 90, torch.bfloat16, "data", {}, marks=SLOW),  # warps without a column
        pytest.param(33, 256, 2, 90, torch.bfloat16, "data", {"variant": "chung"}, marks=[several, SLOW]),
        pytest.param(33, 512, 2, 90, torch.bfloat16, "data", {}, marks=[several, SLOW]),
        pytest.param(33, 384, 2, 90, torch.float16, "data", {"variant": "cho"}, marks=[several, SLOW]),
        pytest.param(17, 512, 1, 80, torch.float16, "flags", {"variant": "cho"}, marks=SLOW),
        pytest.param(33, 256, 2, 90, torch.float32, "data", {"packed": True}, marks=[several, SLOW]),
        # columns that are fetched
        pytest.param(17, 384, 1, 90, torch.float32, "data", {}, marks=several),
        pytest.param(33, 384, 2, 80, torch.float32, "data", {"variant": "cho"}, marks=[several, SLOW]),
        pytest.param(
            20, 384, 1, 90, torch.float32, "flags", {"variant": "chung", "packed": True}, marks=[several, SLOW]
        ),
        pytest.param(17, 512, 1, 90, torch.float32, "data", {"both": True}, marks=[several, SLOW]),
        pytest.param(33, 512, 2, 90, torch.float32, "data", {"packed": True}, marks=[several, SLOW]),
        pytest.param(33, 768, 2, 90, torch.bfloat16, "data", {}, marks=[several, SLOW]),
        pytest.param(17, 768, 1, 80, torch.float16, "data", {"variant": "cho"}, marks=[several, SLOW]),
        pytest.param(33, 1024, 2, 90, torch.bfloat16, "flags", {"reverse": True}, marks=[several, SLOW]),
    ],
)
def test_every_kind_of_layer(batch, hidden_size, tiles, arch, dtype, protocol, options):
    case = recurrence(3, batch, hidden_size, dtype=dtype, **options)
    check(case, arch=arch, tiles=tiles, protocol=protocol, seed=1)


@executed
@several
@pytest.mark.parametrize("protocol", ["data", pytest.param("flags", marks=SLOW)])
@pytest.mark.parametrize("variant", ["torch", pytest.param("cho", marks=SLOW)])
def test_interleavings(variant, protocol):
    """Under several orders, and each program held back as long as the others can go on; one tile, and two."""
    case = recurrence(3, 33, 64, variant=variant)
    for tiles in (1, 2):
        for seed in range(3):
            check(case, tiles=tiles, protocol=protocol, seed=seed, quantum=(200, 20, 1000)[seed])
        for program in range(2):
            check(case, tiles=tiles, protocol=protocol, starve=program)


@executed
@several
@pytest.mark.slow
@pytest.mark.parametrize(("variant", "both"), [("torch", False), ("cho", True)])
def test_what_steps_do_beside_the_equations(variant, both):
    case = per_step_recurrence(3, 33, 64, OPTIONS[:-1], variant=variant, dtype=torch.bfloat16, both=both)
    for tiles in (1, 2):
        check(case, tiles=tiles, seed=0)


def planned(device, batch, hidden_size, direction, *, variant="torch", dtype=torch.bfloat16, directions=1):
    layer = cost.Layer(variant, dtype, batch, hidden_size, precision="tf32", directions=directions)
    (found,) = (c for c in candidates(PRESETS[device], layer, direction) if c.schedule == "persistent")
    return found


@several
@pytest.mark.parametrize(
    ("device", "batch", "hidden_size", "direction", "variant", "dtype", "block_h"),
    [
        ("H100", 64, 512, "backward", "torch", torch.bfloat16, 16),  # each program has a multiprocessor already
        ("H100", 128, 512, "backward", "torch", torch.bfloat16, 32),
        ("H100", 256, 512, "backward", "torch", torch.bfloat16, 32),
        ("A100", 256, 512, "backward", "cho", torch.float16, 32),
        ("H100", 256, 512, "forward", "cho", torch.float16, 32),
        ("H100", 256, 512, "forward", "torch", torch.bfloat16, 16),  # two of the usual ones a multiprocessor
        ("H100", 256, 384, "forward", "torch", torch.bfloat16, 16),  # as these
        ("H100", 256, 256, "forward", "torch", torch.float32, 16),
        ("H100", 256, 480, "forward", "torch", torch.bfloat16, 32),
        ("H100", 256, 768, "forward", "torch", torch.bfloat16, 32),
        ("H100", 256, 1024, "forward", "torch", torch.bfloat16, 16),  # too many of its columns would be fetched
        ("H100", 256, 256, "forward", "torch", torch.bfloat16, 16),  # two of the usual ones, and one launch has room
        ("H100", 1000, 256, "backward", "chung", torch.float32, 32),
        ("H100", 256, 500, "backward", "torch", torch.bfloat16, 16),  # some units would not exist
        ("H100", 256, 768, "backward", "torch", torch.bfloat16, 32),
        ("A100", 256, 512, "backward", "torch", torch.float32, 32),
        ("L4", 256, 512, "backward", "torch", torch.float32, 16),  # its L1 is too small for the columns
        ("H100", 256, 896, "backward", "torch", torch.bfloat16, 16),  # no whole pieces
    ],
)
def test_where_it_is_planned(device, batch, hidden_size, direction, variant, dtype, block_h):
    found = planned(device, batch, hidden_size, direction, variant=variant, dtype=dtype)
    assert found.obstacle is None
    assert found.config.block_h == block_h
    assert found.turns == 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_registers_are_halved_where_it_was_compiled_so(variant, direction, dtype):
    for hidden_size in range(32, 1024, 32):
        wide = wide_config(persistent_config(dtype, 64, hidden_size), variant, direction, dtype, hidden_size)
        if wide is None:
            continue
        assert hidden_size <= PersistentConfig.in_registers(dtype)
        assert (wide.fetched > 0) == (2 * hidden_size > PersistentConfig.in_registers(dtype))
        shared = sharing_config(wide, variant, direction, dtype, hidden_size)
        may = 4 * hidden_size == PersistentConfig.in_registers(dtype) and (variant == "torch" or direction == "forward")
        assert (wide.registers, None if shared is None else shared.registers) == (256, 128 if may else None)


@several
def test_a_small_gpu_whose_multiprocessors_hold_half_as_many_programs():
    """Two of them on each, or wide ones."""
    for multiprocessors, batch, direction, dtype, obstacle in (
        (20, 64, "forward", torch.bfloat16, None),
        (20, 64, "backward", torch.bfloat16, None),
        (20, 16, "backward", torch.float32, None),
        (20, 64, "forward", torch.float32, "32 programs of a batch tile must run together, 20 can"),
        (15, 64, "backward", torch.float32, "16 programs of a batch tile must run together, 15 can"),
    ):
        device = replace(PRESETS["A100"], multiprocessors=multiprocessors)
        layer = cost.Layer("torch", dtype, batch, 512, precision="tf32")
        (found,) = (c for c in candidates(device, layer, direction) if c.schedule == "persistent")
        assert found.obstacle == obstacle


def test_invariant_batches_have_the_usual_programs():
    with invariant.batch_invariant():
        assert planned("H100", 256, 512, "backward").config.block_h == 16
