"""Columns of W_hh that the persistent kernels fetch in every step: compiled, executed from PTX with their programs
interleaved, against the reference; what binaries need; what is planned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import INTERPRETED, generated_code
from per_step import OPTIONS, per_step_recurrence
from ptx import PtxError, ptx_launcher
from recurrences import recurrence
from test_exchange_mutations import mutated  # noqa: F401

from trigru.command import inspect, inspect_cases
from trigru.kernels import config as sizes
from trigru.kernels import fetched, persistent
from trigru.kernels.config import PersistentConfig, fetches, persistent_config, persistent_width
from trigru.kernels.launch import using
from trigru.kernels.watch import KernelTimeout
from trigru.planning import cost
from trigru.planning.candidates import DIRECTIONS, candidates
from trigru.planning.devices import PRESETS
from trigru.reference import VARIANTS

pytestmark = [
    pytest.mark.skipif(not fetches(), reason="no columns are fetched with this version of Triton"),
    pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait"),
    pytest.mark.usefixtures("poisoned"),
]

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # float32 multiplied in TF32
SLOW = pytest.mark.slow
WARPS = 2


def config_for(case, pieces: int, **fields) -> PersistentConfig:
    """As small as can be: so many pieces are fetched."""
    block_b = 8 if case.h0.shape[-2] <= 8 else 16
    return PersistentConfig(block_b=block_b, num_warps=WARPS, fetched=pieces, **fields)


def wide(pieces: int, dtype: torch.dtype) -> int:
    """hidden_size of so many pieces of two warps."""
    return pieces * PersistentConfig(num_warps=WARPS).piece(dtype)


def check(case, pieces, *, arch=90, protocol="data", tiles=1, **order):
    launcher = ptx_launcher(arch=arch, strong=True, **order)
    with using(launcher):
        errors = case.errors(case.run(persistent, config_for(case, pieces, protocol=protocol, tiles=tiles)))
    assert all(launch["race_check"] and launch["cooperative"] for launch in launcher.launches)
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors


@pytest.mark.parametrize(
    ("variant", "pieces", "batch", "dtype", "protocol", "arch", "options"),
    [
        ("torch", (3, 2), 16, torch.bfloat16, "data", 90, {}),
        ("cho", (2, 1), 18, torch.float16, "flags", 80, {"packed": True}),
        pytest.param("chung", (3, 1), 5, torch.float32, "data", 90, {"reverse": True}, marks=SLOW),
        pytest.param("torch", (2, 1), 18, torch.float32, "flags", 80, {"packed": True, "both": True}, marks=SLOW),
        pytest.param("cho", (4, 2), 18, torch.bfloat16, "data", 90, {"packed": True, "reverse": True}, marks=SLOW),
        pytest.param("chung", (3, 2), 16, torch.float16, "data", 90, {"both": True}, marks=SLOW),
        pytest.param("torch", (2, 1), 3, torch.float16, "flags", 90, {"packed": True}, marks=SLOW),
    ],
)
def test_every_kind_of_layer(variant, pieces, batch, dtype, protocol, arch, options):
    case = recurrence(3, batch, wide(pieces[0], dtype), variant=variant, dtype=dtype, **options)
    check(case, pieces[1], arch=arch, protocol=protocol, seed=1)


@pytest.mark.parametrize(
    ("variant", "protocol"), [("cho", "data"), *(pytest.param(v, "flags", marks=SLOW) for v in VARIANTS)]
)
def test_what_steps_do_beside_the_equations(variant, protocol):
    case = per_step_recurrence(3, 18, wide(2, torch.float32), OPTIONS[:-1], variant=variant, dtype=torch.float32)
    check(case, 1, protocol=protocol, seed=0)


@pytest.mark.parametrize(
    ("variant", "protocol"),
    [
        ("torch", "data"),
        *(pytest.param(*x, marks=SLOW) for x in (("torch", "flags"), ("cho", "data"), ("cho", "flags"))),
    ],
)
def test_interleavings_and_a_program_starved(variant, protocol):
    case = recurrence(3, 3, wide(2, torch.float32), variant=variant, dtype=torch.float32)
    for seed in range(4):
        check(case, 1, protocol=protocol, seed=seed, quantum=(200, 20, 1000, 50)[seed])
    for program in (0, 3):
        check(case, 1, protocol=protocol, starve=program)


def outcome(schedule, variant="torch", packed=False, tiles=1, **options) -> str:
    case = recurrence(
        3, 18 if packed or tiles > 1 else 3, wide(3, torch.float16), variant=variant, dtype=torch.float16, packed=packed
    )
    with using(ptx_launcher(arch=90, seed=1, **options)):
        try:
            errors = case.errors(case.run(schedule, config_for(case, 2, timeout=0.5, tiles=tiles)))
        except KernelTimeout:
            return "timeout"
        except PtxError:
            return "error"
    return "right" if max(errors.values()) <= TOLERANCE[torch.float16] else "wrong"


@pytest.mark.parametrize(
    ("variant", "pieces", "batch", "tiles", "dtype", "protocol", "options"),
    [
        ("torch", (3, 2), 18, 2, torch.float16, "data", {}),
        pytest.param("cho", (2, 1), 18, 2, torch.float32, "data", {"packed": True}, marks=SLOW),
        pytest.param("torch", (2, 1), 40, 2, torch.float32, "data", {"packed": True, "both": True}, marks=SLOW),
        pytest.param("chung", (4, 2), 20, 3, torch.bfloat16, "flags", {"reverse": True}, marks=SLOW),
        pytest.param("torch", (3, 1), 36, 3, torch.bfloat16, "flags", {"packed": True, "reverse": True}, marks=SLOW),
        pytest.param("cho", (3, 2), 36, 3, torch.bfloat16, "data", {"both": True}, marks=SLOW),
    ],
)
def test_several_batch_tiles(variant, pieces, batch, tiles, dtype, protocol, options):
    case = recurrence(3, batch, wide(pieces[0], dtype), variant=variant, dtype=dtype, **options)
    check(case, pieces[1], arch=80 if dtype == torch.float32 else 90, protocol=protocol, tiles=tiles, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["torch", "cho"])
@pytest.mark.parametrize("protocol", ["data", "flags"])
def test_several_batch_tiles_interleaved_and_starved(variant, protocol):
    case = recurrence(3, 18, wide(2, torch.float32), variant=variant, dtype=torch.float32)
    for seed in range(4):
        check(case, 1, protocol=protocol, tiles=2, seed=seed, quantum=(200, 20, 1000, 50)[seed])
    for program in (0, 3):
        check(case, 1, protocol=protocol, tiles=2, starve=program)
    case = per_step_recurrence(3, 18, wide(2, torch.float32), OPTIONS[:-1], variant=variant, dtype=torch.float32)
    check(case, 1, protocol=protocol, tiles=2, seed=0)


@pytest.mark.parametrize(
    ("variant", "tiles"),
    [("torch", 1), *(pytest.param(*x, marks=SLOW) for x in (("cho", 1), ("torch", 2), ("cho", 2)))],
)
def test_stores_that_are_seen_late(variant, tiles):
    assert outcome(persistent, variant, tiles=tiles, late=1, quantum=50) == "right"


@pytest.mark.parametrize(
    ("file", "old", "new", "found"),
    [
        ("fetched", "S), NEXT, GATES, S)", "S), NEXT - 1, GATES, S)", "wrong"),
        ("fetched_products", "_first_piece(n % EACH, S) + p, x[p]", "_first_piece(n % EACH, S) + p, x[0]", "wrong"),
        ("fetched_products", "_glance(xs[(n + 1) // EACH].rows,", "_glance(xs[0].rows,", "wrong"),
        ("fetched_products", "_part(xs[n // EACH].rows + wait,", "_part(xs[len(xs) - 1].rows + wait,", "wrong"),
        ("fetched", "own.j < S.H, S.H, COLUMN", "own.j < S.H, S.H, 1", "wrong"),
        ("fetched", "first * S.DEPTH\n", "0\n", "wrong"),
        ("fetched", "+ own.j * ROW", "+ own.j * S.H", "error"),
        ("fetched", '("0x11100100", "0x13120302")', '("0x11100100", "0x13120203")', "error"),
        ("exchange", '"@!p bra DONE;"', '"bra DONE;"', "wrong"),
    ],
    ids=[
        "the next piece",
        "its columns",
        "what is looked at ahead",
        "what is looked at again",
        "rows",
        "gate",
        "columns of a unit",
        "numbers of elements",
        "wait",
    ],
)
def test_what_is_left_out_is_noticed(mutated, file, old, new, found):  # noqa: F811
    assert outcome(mutated(file, old, new), races=False, late=1, quantum=50) == found


def test_rows_of_sequences_that_have_ended_are_zeros(mutated):  # noqa: F811
    """Without that, what lies behind the last sequence of a step is waited for."""
    where = "tl.where(own.b < step.count, rows, own.nothing_ptr) if S.PACKED else rows"
    schedule = mutated("fetched_products", where, "rows")
    assert outcome(persistent, packed=True) == "right"
    assert outcome(schedule, packed=True) in ("wrong", "error", "timeout")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_a_size_that_is_no_whole_pieces(monkeypatch, variant):
    """Hidden units are added, as for a larger layer."""
    monkeypatch.setattr(sizes, "KEPT_PIECES", 1)
    monkeypatch.setattr(PersistentConfig, "in_registers", staticmethod(lambda dtype: 256))
    case = recurrence(2, 3, 400, variant=variant)
    config = persistent_config(case.h0.dtype, 3, 400)
    assert (persistent_width(case.h0.dtype, 400), config.fetched, config.num_warps) == (512, 1, 8)
    with using(ptx_launcher(arch=90, seed=1)):
        errors = case.errors(case.run(persistent, config))
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("transposed", [False, True])
def test_where_fetched_columns_lie(dtype, transposed):
    hidden_size, words = wide(3, dtype), 4 // torch.empty((), dtype=dtype).element_size()
    w_hh = torch.arange(3 * hidden_size**2).remainder(251).to(dtype).view(3 * hidden_size, hidden_size)
    config = PersistentConfig(num_warps=WARPS, fetched=2)
    found = fetched.packed(w_hh, config, transposed)
    assert found.is_contiguous()
    flat = found.view(hidden_size // 16, 2, WARPS, 3, 2, 32, 2, 2, words)
    for program, piece, warp, gate, mma, lane, half, row8, element in torch.stack(
        [torch.randint(size, (200,)) for size in flat.shape], 1
    ).tolist():
        unit = program * 16 + row8 * 8 + lane // 4
        depth = config.piece(dtype) // WARPS
        column = (piece + 1) * config.piece(dtype) + warp * depth + lane % 4 * 4 * words
        column += (half * 2 + mma) * words + element
        at = (gate * hidden_size + column, unit) if transposed else (gate * hidden_size + unit, column)
        assert flat[program, piece, warp, gate, mma, lane, half, row8, element] == w_hh[at]


def test_pieces_that_do_not_fit_are_refused():
    case = recurrence(2, 3, wide(2, torch.float16), dtype=torch.float16)
    with using(ptx_launcher(arch=90)), pytest.raises(ValueError, match="expected more of them in hidden_size"):
        case.run(persistent, config_for(case, 2))


@generated_code
@pytest.mark.parametrize(
    ("target", "dtype", "hidden_size", "batch"),
    [
        ("sm_90", "bf16", 2048, 16),
        *(
            pytest.param(*case, marks=SLOW)
            for case in (
                ("sm_80", "tf32", 1024, 16),
                ("sm_100", "fp16", 2048, 8),
                ("sm_100", "bf16", 2048, 16),
                ("sm_100", "tf32", 1024, 8),
                ("sm_80", "bf16", 1280, 8),
            )
        ),
    ],
)
def test_no_spills(target, dtype, hidden_size, batch):
    directions, variants = ["forward", "backward"], ["torch", "cho"]
    rows = inspect.rows_of(
        inspect_cases.cases([target], ["persistent"], directions, variants, [dtype], [hidden_size], [batch])
    )
    config = persistent_config(inspect_cases.DTYPES[dtype][0], batch, hidden_size)
    assert len(rows) == 4
    for row in rows:
        assert row.spill_bytes == 0, row
        assert row.matrix_instruction.startswith("HMMA"), row
        assert row.shared_bytes <= 4096 * config.num_warps, row  # what l1_bytes says


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_planned_where_the_model_takes_it(variant, direction):
    def found(device, batch, hidden_size, dtype=torch.bfloat16, precision="ieee"):
        layer = cost.Layer(variant, dtype, batch, hidden_size, precision=precision)
        return candidates(PRESETS[device], layer, direction)

    for batch, tiles in ((1, (1, 1)), (16, (1, 1)), (32, (2, 1)), (64, (4, 2))):  # H100 has room for 132 programs
        wide, narrow = found("H100", batch, 2048)[0], found("H100", batch, 1024, torch.float32, "tf32")[0]
        for best, each in zip((wide, narrow), tiles, strict=True):
            assert (best.schedule, best.config.fetched, best.config.tiles, best.turns) == ("persistent", 5, each, 1)
    assert found("A100", 16, 1280)[0].config.fetched == 2
    (refused,) = (c for c in found("A100", 16, 1664) if c.schedule == "persistent")
    assert refused.obstacle == "112 programs of a batch tile must run together, 108 can"
    layer = cost.Layer(variant, torch.bfloat16, 16, 2048)
    small = replace(PRESETS["H100"], shared_per_block=99 * 1024)
    (refused,) = (c for c in candidates(small, layer, direction) if c.schedule == "persistent")
    assert refused.obstacle == "columns of W_hh that it fetches take 152 KiB of L1, 99 are there"


@pytest.mark.parametrize("version", [(3, 5), (3, 6), (3, 8), (3, 9)])
def test_other_versions_of_triton_refuse(monkeypatch, version):
    monkeypatch.setattr(sizes, "triton_version", lambda: version)
    layer = cost.Layer("torch", torch.bfloat16, 16, 2048)
    (found,) = (c for c in candidates(PRESETS["H100"], layer) if c.schedule == "persistent")
    assert "spill above hidden_size 1024" in found.obstacle
    assert "version of Triton" in found.obstacle
