"""Several batch tiles in a program of the persistent kernels, compiled and executed from PTX with their programs
interleaved, against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import INTERPRETED, generated_code
from per_step import OPTIONS, per_step_recurrence
from ptx import ptx_launcher
from recurrences import recurrence
from test_exchange_mutations import mutated  # noqa: F401
from test_late_stores import outcome

from trigru.kernels import persistent
from trigru.kernels.config import fetches, persistent_config, sharing_config
from trigru.kernels.launch import using
from trigru.kernels.watch import KernelTimeout
from trigru.planning import cost, invariant
from trigru.planning.candidates import candidates
from trigru.planning.devices import PRESETS
from trigru.reference import VARIANTS

pytestmark = [
    pytest.mark.skipif(not fetches(), reason="several batch tiles are for Triton 3.7"),
    pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait"),
    pytest.mark.usefixtures("poisoned"),
]

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # float32 multiplied in TF32
SLOW = pytest.mark.slow
LATE = [pytest.param(*x, marks=SLOW) for x in (("torch", "flags"), ("cho", "data"), ("cho", "flags"))]


def run(case, tiles, *, arch=90, protocol="data", config=None, **order):
    """The case's results, checked for races, and the grids of its launches. config: in place of the usual one."""
    config = replace(config or persistent_config(case.h0.dtype, *case.h0.shape[-2:]), protocol=protocol, tiles=tiles)
    launcher = ptx_launcher(arch=arch, strong=True, **order)
    with using(launcher):
        got = case.run(persistent, config)
    assert all(launch["race_check"] and launch["cooperative"] for launch in launcher.launches)
    return got, [launch["grid"] for launch in launcher.launches]


def check(case, tiles, **how):
    """Against the float64 loop."""
    got, grids = run(case, tiles, **how)
    errors = case.errors(got)
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors
    return grids


@pytest.mark.parametrize(
    ("tiles", "batch", "hidden_size", "dtype", "protocol", "options"),
    [
        (2, 36, 32, torch.bfloat16, "data", {"variant": "cho"}),
        pytest.param(3, 20, 40, torch.float16, "flags", {"variant": "chung", "packed": True}, marks=SLOW),
        pytest.param(2, 40, 40, torch.float32, "data", {"variant": "cho", "both": True, "packed": True}, marks=SLOW),
        pytest.param(3, 70, 19, torch.bfloat16, "flags", {"variant": "chung", "both": True}, marks=SLOW),
        pytest.param(2, 33, 512, torch.bfloat16, "data", {"variant": "chung"}, marks=SLOW),
        (2, 36, 32, torch.bfloat16, "data", {}),  # the second program has one tile, a quarter of it
        (2, 20, 40, torch.bfloat16, "flags", {"packed": True, "reverse": True}),
        pytest.param(3, 40, 32, torch.float16, "data", {"both": True}, marks=SLOW),
        pytest.param(8, 18, 40, torch.float32, "data", {"reverse": True}, marks=SLOW),  # more than there are
        pytest.param(3, 70, 48, torch.float16, "flags", {}, marks=SLOW),
        pytest.param(2, 40, 19, torch.bfloat16, "data", {"packed": True}, marks=SLOW),  # rows that no 16-byte load fits
        pytest.param(2, 40, 40, torch.float32, "flags", {"both": True, "packed": True}, marks=SLOW),
        pytest.param(2, 40, 320, torch.bfloat16, "data", {"packed": True}, marks=SLOW),
        pytest.param(2, 33, 512, torch.bfloat16, "data", {}, marks=SLOW),
    ],
)
def test_every_kind_of_layer(tiles, batch, hidden_size, dtype, protocol, options):
    case = recurrence(3, batch, hidden_size, dtype=dtype, **options)
    grids = check(case, tiles, arch=80 if dtype == torch.float32 else 90, protocol=protocol, seed=1)
    groups = -(-batch // (16 * tiles)) * (2 if "both" in options else 1)
    assert grids == [(-(-hidden_size // 16), groups)] * 2


@pytest.mark.parametrize(
    ("tiles", "batch", "hidden_size", "dtype", "protocol", "options"),
    [
        (1, 17, 256, torch.float32, "data", {"reverse": True}),
        pytest.param(2, 33, 512, torch.bfloat16, "data", {}, marks=SLOW),
        pytest.param(3, 40, 384, torch.float16, "flags", {"packed": True}, marks=SLOW),  # columns that do not exist
        pytest.param(1, 17, 384, torch.bfloat16, "data", {"both": True}, marks=SLOW),
        pytest.param(2, 33, 256, torch.float32, "flags", {"both": True, "packed": True}, marks=SLOW),
    ],
)
def test_programs_of_half_the_warps(tiles, batch, hidden_size, dtype, protocol, options):
    """Forward of "torch" has them, two on a multiprocessor."""
    usual = persistent_config(dtype, batch, hidden_size)
    half = sharing_config(usual, "torch", "forward", dtype, hidden_size)
    assert half.num_warps == 4
    assert (usual.on_a_multiprocessor, half.on_a_multiprocessor) == (1, 2)
    case = recurrence(2, batch, hidden_size, dtype=dtype, **options)
    check(case, tiles, arch=80 if dtype == torch.float32 else 90, protocol=protocol, config=half, seed=1)


@pytest.mark.slow
def test_one_step():
    check(recurrence(1, 33, 32), 3, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["data", "flags"])
@pytest.mark.parametrize("both", [False, True])
def test_interleavings(protocol, both):
    """Under several orders, and each program held back as long as the others can go on."""
    case = recurrence(3, 35, 32, both=both)
    for seed in range(2):
        check(case, 2 + seed % 2, protocol=protocol, seed=seed, quantum=(200, 20)[seed])
    for program in (0, 3):
        check(case, 2, protocol=protocol, starve=program)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["data", "flags"])
@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_many_interleavings(variant, protocol):
    case = recurrence(4, 33, 48, variant=variant)
    for seed in range(30):
        check(case, 2 + seed % 3, protocol=protocol, seed=seed, quantum=(200, 20, 1000)[seed % 3])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_forward_gives_the_bits_of_one_tile_a_program(variant):
    """The running state stays in float32."""
    case = recurrence(4, 40, 48, variant=variant)
    one, several = (run(case, tiles, seed=0)[0] for tiles in (1, 3))
    assert torch.equal(one["output"], several["output"])


@pytest.mark.parametrize(
    ("variant", "protocol", "both"),
    [
        pytest.param("torch", "data", False, marks=SLOW),
        pytest.param("torch", "flags", True, marks=SLOW),
        pytest.param("cho", "data", True, marks=SLOW),
        pytest.param("chung", "flags", False, marks=SLOW),
    ],
)
def test_what_steps_do_beside_the_equations(variant, protocol, both):
    case = per_step_recurrence(3, 33, 32, OPTIONS[:-1], variant=variant, dtype=torch.bfloat16, both=both)
    check(case, 2, protocol=protocol, seed=0)


@pytest.mark.slow
def test_turns_of_launches_of_several_tiles():
    case = recurrence(2, 70, 32)
    config = replace(persistent_config(case.h0.dtype, 70, 32), tiles=2, tiles_at_once=2)
    launcher = ptx_launcher(arch=90, seed=3, resident_programs=4)
    with using(launcher):
        errors = case.errors(case.run(persistent, config))
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors
    assert [launch["grid"] for launch in launcher.launches] == [(2, 2), (2, 1)] * 2


@pytest.mark.parametrize("protocol", ["data", pytest.param("flags", marks=SLOW)])
def test_a_wait_that_expires_is_an_error_and_ends(protocol):
    case = recurrence(3, 33, 32)
    config = replace(persistent_config(case.h0.dtype, 33, 32), protocol=protocol, tiles=2)
    launcher = ptx_launcher(arch=90, seed=0, races=protocol == "data")

    def without_the_last_program(kernel, grid, *args, **options):
        launcher(kernel, (grid[0] - 1, grid[1]), *args, **options)

    with using(without_the_last_program), pytest.raises(KernelTimeout, match=r"forward_torch on \d"):
        case.run(persistent, config, timeout=0.05)


@pytest.mark.parametrize(("variant", "protocol"), [("torch", "data"), *LATE])
def test_stores_that_are_seen_late(variant, protocol):
    assert outcome(persistent, protocol, variant=variant, batch=33, seeds=1, tiles=2) == "right"


@pytest.mark.parametrize(
    ("protocol", "old", "new"),
    [
        # Quick with one tile a program: test_late_stores.py.
        pytest.param("data", '"@!p bra DONE;"', '"bra DONE;"', marks=SLOW),
        pytest.param("flags", "setp.ge.s32 p, t, $2;", "setp.ge.s32 p, t, 0;", marks=SLOW),
        pytest.param("flags", 'sem="release"', 'sem="relaxed"', marks=SLOW),
    ],
    ids=["wait", "wait for a counter", "release"],
)
def test_a_step_of_a_protocol_left_out_gives_wrong_numbers(mutated, protocol, old, new):  # noqa: F811
    schedule = mutated("exchange", old, new)
    assert outcome(schedule, protocol, batch=33, seeds=4, races=False, tiles=2) == "wrong"


@pytest.mark.slow
def test_the_memory_of_the_running_states_read_too_early(mutated):  # noqa: F811
    """Where another program's tile is the next one, a thread may load what another stores; a barrier is between."""
    schedule = mutated("persistent_forward", "tl.where(count == 1, last, h)", "h")
    assert outcome(schedule, "data", batch=16, seeds=1, tiles=2) in ("wrong", "error")


@generated_code
@pytest.mark.parametrize("device", ["A100", "H100", "L4"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_launch_has_room_for_every_batch(device, directions, direction):
    there = PRESETS[device].multiprocessors
    for hidden_size in (32, 256, 512, 768):
        for batch in (16, 200, 256, 1000):
            layer = cost.Layer("torch", torch.bfloat16, batch, hidden_size, directions=directions)
            (found,) = (c for c in candidates(PRESETS[device], layer, direction) if c.schedule == "persistent")
            programs, groups = found.config.grid(hidden_size, batch)
            at_once = there * found.config.on_a_multiprocessor
            if found.obstacle is None and programs * directions <= at_once:
                assert found.turns == 1
                assert programs * groups * directions <= at_once


def test_a_batch_of_256_takes_little_longer_than_one_of_64_by_the_model():
    def seconds(batch, direction="forward"):
        layer = cost.Layer("torch", torch.bfloat16, batch, 512)
        found = candidates(PRESETS["H100"], layer, direction)
        assert found[0].schedule == "persistent"
        return found[0].seconds

    assert seconds(256) <= 1.6 * seconds(64)
    assert seconds(256, "backward") <= 1.6 * seconds(64, "backward")


def test_invariant_batches_take_turns():
    layer = cost.Layer("torch", torch.bfloat16, 256, 512)
    with invariant.batch_invariant():
        (found,) = (c for c in candidates(PRESETS["H100"], layer) if c.schedule == "persistent")
    assert found.config.tiles == 1
    assert found.turns == 4


def test_what_would_spill_takes_turns():
    """By why_one_tile, forward is planned by itself."""
    for device, dtype, hidden_size, direction, several in (
        ("H100", torch.bfloat16, 1024, "backward", True),
        ("B200", torch.bfloat16, 768, "backward", True),
        ("B200", torch.bfloat16, 1024, "backward", False),
        ("B200", torch.bfloat16, 1024, "forward", True),
        ("H100", torch.float32, 896, "forward", True),
        ("H100", torch.float32, 1024, "forward", True),
    ):
        layer = cost.Layer("cho", dtype, 256, hidden_size, precision="tf32")
        (found,) = (c for c in candidates(PRESETS[device], layer, direction) if c.schedule == "persistent")
        assert (found.config.tiles > 1) == several
        assert (found.turns == 1) == several
