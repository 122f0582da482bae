"""The persistent kernels, compiled and executed from PTX with their programs interleaved, against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import INTERPRETED, generated_code
from ptx import PtxError, ptx_launcher
from recurrences import recurrence

from trigru import reference
from trigru.kernels import persistent
from trigru.kernels.config import PersistentConfig, fetches, persistent_config
from trigru.kernels.errors import DoesNotFit
from trigru.kernels.launch import using
from trigru.kernels.recurrence import Recurrence
from trigru.kernels.steps import Steps
from trigru.kernels.watch import KernelTimeout
from trigru.layer import Weights
from trigru.planning import cost, plan
from trigru.planning.candidates import candidates
from trigru.planning.devices import PRESETS
from trigru.reference import VARIANTS
from trigru.schedules import fused
from trigru.schedules.part import Part, Run, Upstream

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait"),
    pytest.mark.usefixtures("poisoned"),
]

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # float32 multiplied in TF32


PROTOCOLS = ("data", "flags")


def check(case, *, arch=90, protocol="data", **order):
    config = replace(persistent_config(case.h0.dtype, *case.h0.shape[-2:]), protocol=protocol)
    launcher = ptx_launcher(arch=arch, strong=True, **order)
    with using(launcher):
        errors = case.errors(case.run(persistent, config))
    assert all(launch["race_check"] and launch["cooperative"] for launch in launcher.launches)
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("variant", "hidden_size", "rows", "reverse", "arch", "dtype"),
    [
        ("torch", 64, "padded", False, 80, torch.bfloat16),
        ("cho", 40, "packed", False, 90, torch.bfloat16),
        ("chung", 40, "padded", True, 90, torch.float32),
        ("torch", 40, "packed", True, 90, torch.float16),
        ("torch", 19, "packed", False, 90, torch.bfloat16),  # rows that no 16-byte load fits
        ("chung", 19, "packed", True, 80, torch.float32),
    ],
)
def test_every_kind_of_layer(variant, hidden_size, rows, reverse, arch, dtype, protocol):
    batch = 16 if hidden_size == 64 else 18
    case = recurrence(4, batch, hidden_size, variant=variant, dtype=dtype, reverse=reverse, packed=rows == "packed")
    check(case, arch=arch, protocol=protocol, seed=1)


@pytest.mark.parametrize(
    ("variant", "hidden_size", "packed", "arch", "dtype", "protocol"),
    [
        ("torch", 288, False, 90, torch.bfloat16, "data"),
        ("cho", 300, True, 80, torch.float16, "flags"),
        ("chung", 160, True, 90, torch.float32, "data"),
    ],
)
def test_tiles_with_fewer_elements_than_threads(variant, hidden_size, packed, arch, dtype, protocol):
    config = persistent_config(dtype, 7, hidden_size)
    assert config.block_h * config.block_b < 32 * config.num_warps
    case = recurrence(3, 7, hidden_size, variant=variant, dtype=dtype, packed=packed)
    check(case, arch=arch, protocol=protocol, seed=1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_interleavings(variant, protocol):
    case = recurrence(3, 3, 48, variant=variant)  # forward and backward: two launches a seed
    for seed in range(34):
        check(case, protocol=protocol, seed=seed, quantum=(200, 20, 1000)[seed % 3])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_one_program_starved_as_long_as_the_others_can_go_on(variant, protocol):
    case = recurrence(4, 16, 64, variant=variant)
    for program in range(4):
        check(case, protocol=protocol, starve=program)
    check(case, protocol=protocol, seed="round-robin")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("variant", "hidden_size", "packed", "arch", "dtype"),
    [("torch", 40, True, 90, torch.bfloat16), ("cho", 40, False, 80, torch.float32)],
)
def test_both_directions_at_once(variant, hidden_size, packed, arch, dtype, protocol):
    """Under several orders, and each direction's programs held back as long as the other's can go on."""
    case = recurrence(3, 18, hidden_size, variant=variant, dtype=dtype, packed=packed, both=True)
    for seed in range(3):
        check(case, arch=arch, protocol=protocol, seed=seed, quantum=(200, 20, 1000)[seed])
    for program in (0, 3):  # of the first direction, and of the second
        check(case, arch=arch, protocol=protocol, starve=program)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_nan_and_infinity_come_out_where_the_reference_has_them(variant, protocol):
    case = recurrence(3, 16, 64, variant=variant)
    case.gates_in.view(torch.int16)[0, 128] = -1  # the reserved pattern itself
    case.h0.view(torch.int16)[1, 3] = -1
    case.gates_in[17, 5] = float("inf")
    with using(ptx_launcher(arch=90, seed=0)):
        got = case.run(persistent, PersistentConfig(num_warps=2, protocol=protocol))
    bad = got["output"].isnan().view(3, 16, 64)
    assert bad[0, 0].sum() == 1
    assert bad[0, 1].all()
    assert bad[1:, :2].all()
    assert not bad[:, 2:].any()
    assert not got["output"][34:].isnan().any()
    assert got["d_gates"].isnan().any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("hidden_size", [64, 19])
def test_a_wait_that_expires_is_an_error_and_ends(hidden_size, protocol):
    case = recurrence(3, 16, hidden_size)
    config = replace(persistent_config(case.h0.dtype, 16, hidden_size), protocol=protocol)
    # What a program reads that has given up waiting for a counter is a race, and its results are not valid.
    launcher = ptx_launcher(arch=90, seed=0, races=protocol == "data")

    def without_the_last_program(kernel, grid, *args, **options):
        launcher(kernel, (grid[0] - 1, grid[1]), *args, **options)

    with using(without_the_last_program), pytest.raises(KernelTimeout, match=r"forward_torch on \d"):
        case.run(persistent, config, timeout=0.05)


def test_more_programs_than_the_device_holds_are_refused():
    case = recurrence(2, 16, 64)
    with using(ptx_launcher(arch=90, resident_programs=3)), pytest.raises(PtxError, match="4 programs, at most 3"):
        case.run(persistent, PersistentConfig(num_warps=2))


@pytest.mark.parametrize("variant", VARIANTS[:2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_that_do_not_fit_at_once_take_turns(variant, packed, protocol):
    case = recurrence(3, 40, 48, variant=variant, packed=packed)
    launcher = ptx_launcher(arch=90, seed=2, resident_programs=3)  # those of one batch tile
    with using(launcher):
        config = PersistentConfig(num_warps=2, tiles_at_once=1, protocol=protocol)
        errors = case.errors(case.run(persistent, config))
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors
    assert [launch["grid"] for launch in launcher.launches] == [(3, 1)] * 6
    with using(ptx_launcher(arch=90, resident_programs=3)), pytest.raises(PtxError, match="9 programs, at most 3"):
        case.run(persistent, PersistentConfig(num_warps=2))


def test_the_last_turn_has_the_tiles_that_are_left():
    case = recurrence(2, 40, 32)
    launcher = ptx_launcher(arch=90, seed=3, resident_programs=4)
    with using(launcher):
        errors = case.errors(case.run(persistent, PersistentConfig(num_warps=2, tiles_at_once=2)))
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors
    assert [launch["grid"] for launch in launcher.launches] == [(2, 2), (2, 1)] * 2


def test_tiles_of_both_directions_take_turns_together():
    case = recurrence(2, 40, 32, both=True)  # three tiles, twice
    launcher = ptx_launcher(arch=90, seed=3, resident_programs=8)
    with using(launcher):
        errors = case.errors(case.run(persistent, PersistentConfig(num_warps=2, tiles_at_once=4)))
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors
    assert [launch["grid"] for launch in launcher.launches] == [(2, 4), (2, 2)] * 2


@generated_code
@pytest.mark.parametrize("device", ["A100", "H100", "L4"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("hidden_size", [32, 512, 768])
def test_a_planned_launch_is_never_larger_than_the_device(device, hidden_size, directions):
    layer = cost.Layer("torch", torch.bfloat16, 256, hidden_size, directions=directions)
    (planned,) = [c for c in candidates(PRESETS[device], layer) if c.schedule == "persistent"]
    programs, tiles = planned.config.grid(hidden_size, 256)
    assert planned.obstacle is None
    registers = planned.config.registers * 32 * planned.config.num_warps  # of which a thread has 255 at most
    assert programs * planned.config.tiles_at_once <= PRESETS[device].multiprocessors * (65536 // registers)
    assert planned.turns == -(-tiles * directions // planned.config.tiles_at_once)


@generated_code
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 1024), (torch.float32, 512)])
def test_the_largest_sizes_that_are_planned(dtype, most):
    if fetches():
        most *= 2
    for hidden_size, why in ((most, None), (most - 1, None), (most + 8, f"above hidden_size {most}")):
        layer = cost.Layer("torch", dtype, 16, hidden_size, precision="tf32")
        (planned,) = [c for c in candidates(PRESETS["H100"], layer) if c.schedule == "persistent"]
        assert (planned.obstacle is None) == (why is None)
        assert why is None or why in planned.obstacle


def test_amd_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    layer = cost.Layer("torch", torch.bfloat16, 16, 512)
    (planned,) = [c for c in candidates(PRESETS["H100"], layer) if c.schedule == "persistent"]
    assert "NVIDIA" in planned.obstacle


def test_a_state_that_no_wide_load_fits_is_copied():
    case = recurrence(2, 16, 64)
    odd = torch.empty(16 * 64 + 1, dtype=case.h0.dtype)[1:].view(16, 64).copy_(case.h0)
    assert odd.data_ptr() % 16
    for protocol in PROTOCOLS:
        check(replace(case, h0=odd), protocol=protocol, seed=0)


def refuses_cooperation(kernel, grid, *args, cooperative, **options):
    if cooperative:
        raise DoesNotFit("Triton Error [CUDA]: too many blocks in cooperative launch")
    return ptx_launcher(arch=90)(kernel, grid, *args, cooperative=cooperative, **options)


def test_where_programs_do_not_fit_auto_takes_a_schedule_that_does_not_wait(monkeypatch):
    monkeypatch.setattr(plan, "_SHARED", set())
    x, h0 = torch.randn(3, 2, 8).bfloat16(), torch.randn(2, 32).bfloat16()
    weights = Weights(torch.randn(96, 8).bfloat16(), torch.randn(96, 32).bfloat16() / 6, None, None)
    chosen = plan.Choice("persistent", "the fastest", PersistentConfig(num_warps=2))
    part = Part(chosen, "torch", False)
    states, gates = torch.empty(6, 32).bfloat16(), torch.empty(6, 128).bfloat16()
    run = Run(x, h0, Steps.padded(3, 2), states, gates, torch.empty_like(h0))
    with using(refuses_cooperation):
        with pytest.warns(RuntimeWarning, match=r"'persistent' does not fit on cpu, '(stepwise|resident)' runs"):
            fused.forward(part, [weights], run)
        want, _ = reference.gru(*(t.double() for t in (x, h0, *weights[:2])), None, None, variant="torch")
        assert (run.output.double() - want.flatten(0, 1)).norm() <= 1.5e-2 * want.norm()
        upstream = Upstream(run.output.view(3, 2, 32), None, (True,) * 4 + (False,) * 3)
        with pytest.warns(RuntimeWarning, match="does not fit"):
            grads = fused.backward(part, [weights], run, upstream)
        assert all(grad.isfinite().all() for grad in (grads.input, grads.h0, *grads.weights[:2]))
        named = part._replace(choice=replace(chosen, reason="asked for by name"))
        with pytest.raises(DoesNotFit, match="too many blocks"):
            fused.forward(named, [weights], run)
    assert x.device in plan._SHARED


def test_auto_does_not_plan_to_wait_where_programs_did_not_fit():
    layer = cost.Layer("torch", torch.bfloat16, 16, 512)
    first = plan.planned("auto", PRESETS["H100"], layer, "forward", shared=False)
    then = plan.planned("auto", PRESETS["H100"], layer, "forward", shared=True)
    assert (first.schedule, then.schedule) == ("persistent", "stepwise")
    assert "did not fit" in then.reason


def test_exact_float32_is_refused():
    case = recurrence(2, 16, 64, dtype=torch.float32)
    with pytest.raises(ValueError, match='"tf32" only'):
        case.run(persistent, PersistentConfig(num_warps=4), precision="ieee")


def test_an_empty_batch():
    case = recurrence(2, 1, 16)
    operands = case.operands._replace(gates_in=case.gates_in[:0], h0=case.h0[:0], steps=Steps.padded(2, 0))
    output, reserve, _ = persistent.forward(Recurrence("torch", False, "tf32", PersistentConfig()), operands, True)
    assert output.shape == (0, 16)
    assert reserve.shape == (0, 64)


def test_a_protocol_for_all_launches_of_a_block():
    case = recurrence(2, 16, 32)
    launcher = ptx_launcher(arch=90, seed=0)
    with using(launcher), persistent.exchanging_by("flags"):
        errors = case.errors(case.run(persistent, PersistentConfig(num_warps=2)))
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors
    assert all(launch["atomics"] > 0 for launch in launcher.launches)  # one for each program and exchange; "data" none
