"""Every stepwise kernel compiled for GPUs that are not there: no spills, matrix instructions, shared memory that fits.
And what reads the machine code."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
import torch
import triton
from conftest import INTERPRETED, generated_code

import trigru
from trigru.command import cli, inspect, inspect_cases
from trigru.kernels import binary, offline
from trigru.kernels.config import fetches, stepwise_config, words_of_a_lane
from trigru.kernels.launch import launch, using
from trigru.schedules import fused

pytestmark = pytest.mark.skipif(INTERPRETED, reason="compiles kernels")

TABLES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
MATRIX = {"sm_80": "HMMA", "sm_90": "HMMA", "sm_100": "HMMA", "gfx942": "v_mfma"}
BEFORE = {"reset_update_step", "candidate_step", "bptt_step", "bptt_reset_step"}
KERNELS = {"torch": {"forward_step", "bptt_step"}, "cho": BEFORE, "chung": BEFORE}
RESULTS = Path(__file__).parents[1] / "bench" / "results" / "static"
QUICK = {("sm_80", "tf32"), ("sm_90", "bf16"), ("sm_100", "fp16"), ("sm_100", "fp32"), ("gfx942", "bf16")}


def _cases():
    for target in inspect_cases.TARGETS:
        for dtype in inspect_cases.DTYPES:
            if inspect_cases.cases([target], ["stepwise"], ["forward"], ["torch"], [dtype], [256], [32]):
                marks = () if (target, dtype) in QUICK else pytest.mark.slow
                yield pytest.param(target, dtype, marks=marks)


@generated_code
@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize(("target", "dtype"), list(_cases()))
def test_no_spills_and_matrix_instructions(target, dtype, variant):
    asked = inspect_cases.cases([target], ["stepwise"], ["forward", "backward"], [variant], [dtype], [256], [32])
    rows = inspect.rows_of(asked)
    assert {row.kernel for row in rows} == KERNELS[variant]
    for row in rows:
        assert row.spill_bytes == 0, row
        assert 0 < row.registers <= 255, row
        assert row.shared_bytes <= inspect_cases.shared_bytes(target), row
        assert row.loop_instructions > 0, row
        assert row.loop_global_loads > 0, row
        assert row.loop_global_stores == 0, row
        if dtype == "fp32" and target != "gfx942":  # no NVIDIA matrix unit multiplies float32 exactly
            assert row.matrix_instruction is None, row
        else:
            assert row.matrix_instruction.startswith(MATRIX[target]), row
            assert row.loop_matrix_instructions > 0, row


@pytest.mark.parametrize("batch", [16, 64])
def test_no_spills_where_rows_are_not_aligned(batch):
    """Such rows are not copied to shared memory asynchronously: they take registers."""
    for row in inspect.rows_of(
        inspect_cases.cases(["sm_100"], ["stepwise"], ["forward"], ["torch"], ["bf16"], [500], [batch])
    ):
        assert row.spill_bytes == 0, row


@pytest.mark.parametrize(("hidden_size", "batch"), [(30, 64), (256, 16)])
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_no_spills_without_matrix_units(variant, hidden_size, batch):
    """Triton no longer uses the matrix units of GPUs older than 8.0: a T4 has 7.5."""
    sizes = [hidden_size], [batch]
    directions = ["forward", "inference", "backward"]
    rows = inspect.rows_of(
        inspect_cases.cases(["sm_75"], inspect_cases.SCHEDULES, directions, [variant], ["fp16"], *sizes)
    )
    assert {row.schedule for row in rows} == {"stepwise", "walking", *(["resident"] if hidden_size <= 32 else [])}
    for row in rows:
        assert row.spill_bytes == 0, row
        assert row.matrix_instruction is None, row


@generated_code
@pytest.mark.parametrize("target", ["sm_80", "sm_100"])
def test_no_spills_at_sizes_that_no_tile_divides(target):
    """Between the sizes of the tables; masks within a warp's part of the columns would spill."""
    rows = inspect.rows_of(
        inspect_cases.cases([target], ["persistent"], ["forward", "backward"], ["torch"], ["bf16"], [520, 904], [16])
    )
    assert len(rows) == 4
    assert all(row.spill_bytes == 0 for row in rows), rows


@generated_code
@pytest.mark.parametrize(
    ("target", "dtype", "hidden_size"), [("sm_80", "bf16", 1024), ("sm_90", "tf32", 512), ("sm_100", "fp16", 1000)]
)
def test_no_spills_in_tiles_of_small_batches(target, dtype, hidden_size):
    """The committed tables are of larger batches."""
    directions, variants = ["forward", "backward"], ["torch", "cho"]
    rows = inspect.rows_of(
        inspect_cases.cases([target], ["persistent"], directions, variants, [dtype], [hidden_size], [5])
    )
    assert [row.block_b for row in rows] == [8] * 4
    assert all(row.spill_bytes == 0 for row in rows), rows


@generated_code
@pytest.mark.parametrize(
    ("target", "dtype", "hidden_size"),
    [
        ("sm_80", "bf16", 512),
        *(pytest.param(target, "bf16", 200, marks=pytest.mark.slow) for target in ("sm_80", "sm_90", "sm_100")),
        *(pytest.param(target, "fp16", 512, marks=pytest.mark.slow) for target in ("sm_90", "sm_100")),
        *(pytest.param(target, "tf32", 256, marks=pytest.mark.slow) for target in ("sm_80", "sm_90", "sm_100")),
    ],
)
def test_no_spills_where_layers_run_together(target, dtype, hidden_size):
    """The largest that are planned; the plan refuses what is between, which spills."""
    directions, variants = ["forward", "backward"], ["torch", "cho"]
    sizes = [dtype], [hidden_size], [16]
    rows = inspect.rows_of(inspect_cases.cases([target], ["stacked"], directions, variants, *sizes))
    assert len(rows) == 4
    assert all(row.spill_bytes == 0 and row.cooperative for row in rows), rows
    assert not inspect_cases.cases([target], ["stacked"], directions, variants, ["bf16"], [384, 504, 1024], [16])


SEVERAL = [
    pytest.param(target, variant, dtype, hidden_size, marks=pytest.mark.slow)
    for target in ("sm_80", "sm_90", "sm_100")
    for variant in ("torch", "cho")
    for dtype, hidden_size in (
        ("bf16", 1024),
        ("bf16", 768),
        ("fp16", 512),
        ("fp16", 400),
        ("bf16", 128),
        ("tf32", 512),
        ("bf16", 2048),
        ("tf32", 1024),
    )
]


@generated_code
@pytest.mark.parametrize(("target", "variant", "dtype", "hidden_size"), [("sm_90", "torch", "bf16", 512), *SEVERAL])
def test_no_spills_where_a_program_takes_several_batch_tiles(target, variant, dtype, hidden_size):
    """What the plan refuses, which spills, is no case."""
    asked = inspect_cases.cases(
        [target], ["several"], inspect_cases.DIRECTIONS, [variant], [dtype], [hidden_size], [64]
    )
    refused = (target, variant, dtype, hidden_size) == ("sm_100", "cho", "bf16", 1024)
    assert len(asked) == (2 if refused else 3)
    rows = inspect.rows_of(asked)
    assert all(row.spill_bytes == 0 and row.cooperative for row in rows), rows
    assert {row.cooperative for row in rows} == {2 if hidden_size == 128 else 1}
    sizes = [dtype], [hidden_size], [64]
    shared = inspect_cases.cases([target], ["several sharing"], ["forward", "backward"], [variant], *sizes)
    if variant == "torch" and hidden_size == 512 and dtype != "tf32":
        (row,) = inspect.rows_of(shared)
        assert (row.direction, row.cooperative, row.spill_bytes) == ("forward", 2, 0)
    else:
        assert not shared


@generated_code
@pytest.mark.parametrize(
    ("target", "variant", "dtype", "hidden_size"),
    [("sm_80", "torch", "fp32", 32), ("sm_80", "cho", "fp32", 64), ("sm_100", "chung", "bf16", 16)],
)
def test_no_spills_where_a_launch_runs_both_directions(target, variant, dtype, hidden_size):
    """The committed tables are of one. An address that is needed behind the loop alone was kept through it."""
    sizes = [dtype], [hidden_size], [16]
    (row,) = inspect.rows_of(inspect_cases.cases([target], ["resident"], ["backward"], [variant], *sizes, both=True))
    assert row.spill_bytes == 0, row


@generated_code
def test_a_kernel_is_compiled_as_its_target_would_compile_it():
    """A look compares halves of words by an instruction that GPUs have from 9.0 on, and by arithmetic before."""
    for target, wanted in (("sm_80", False), ("sm_90", True), ("sm_100", True)):
        (start,) = inspect_cases.recorded(
            inspect_cases.Case(target, "persistent", "inference", "torch", "bf16", 64, 16)
        )
        assert ("max.u16x2" in offline.compile_launch(start, offline.target_of(target)).ptx) == wanted


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_tables_are_of_the_present_configurations_and_show_no_spill(path):
    everything = json.loads(path.read_text())
    assert not [row for row in everything if row["spill_bytes"]]  # of whatever schedule
    rows = [row for row in everything if row["schedule"] == "stepwise"]
    without = {"bf16"} if path.stem == "sm_75" else set()
    assert {row["dtype"] for row in rows} >= {"bf16", "fp16", "fp32"} - without
    shapes = set()
    for row in rows:
        assert row["target"] == path.stem
        assert row["shared_bytes"] <= inspect_cases.shared_bytes(path.stem), row
        exact = (row["dtype"] == "fp32" and path.stem != "gfx942") or path.stem == "sm_75"  # without matrix units
        assert row["loop_matrix_instructions"] or exact or row["hidden_size"] == 1, row  # a single chunk is no loop
        dtype, _ = inspect_cases.DTYPES[row["dtype"]]
        tile = row["block_h"], row["block_b"], row["block_k"], row["num_warps"], row["num_stages"]
        case = case_of(row)
        config = stepwise_config(dtype, row["batch"], row["hidden_size"], inspect_cases.on_units(case))
        assert tile == (config.block_h, config.block_b, config.block_k, config.num_warps, config.num_stages)
        shapes |= {(h, b) for h in row["hidden_sizes"] for b in row["batches"]}
    assert shapes == set(product(inspect_cases.all_hidden_sizes("stepwise", "bf16"), inspect_cases.ALL_BATCHES))


def test_what_was_compiled_for_which_gpus():
    assert {path.stem for path in RESULTS.glob("*.json")} >= set(TABLES)


def case_of(row):
    """The case that a row of a committed table is of."""
    return inspect_cases.Case(**{field.name: row[field.name] for field in fields(inspect_cases.Case)})


def committed(target, schedule):
    """A schedule's rows of the committed table."""
    return [row for row in json.loads((RESULTS / f"{target}.json").read_text()) if row["schedule"] == schedule]


@pytest.mark.parametrize("target", TABLES)
@pytest.mark.parametrize("schedule", sorted(inspect_cases.SCHEDULES))
def test_committed_tables_have_every_configuration(target, schedule):
    kinds = ("variant", "direction", "dtype")
    compiled = {
        (*(row[kind] for kind in kinds), hidden_size, batch)
        for row in committed(target, schedule)
        for hidden_size, batch in product(row["hidden_sizes"], row["batches"])
    }
    asked = inspect_cases.cases(
        [target],
        [schedule],
        inspect_cases.DIRECTIONS,
        trigru.VARIANTS,
        inspect_cases.DTYPES,
        None,
        inspect_cases.ALL_BATCHES,
    )
    present = {(case.variant, case.direction, case.dtype, case.hidden_size, case.batch) for case in asked}
    assert compiled == present if fetches() else compiled >= present  # other versions of Triton fetch no columns


@pytest.mark.parametrize("target", TABLES)
@pytest.mark.parametrize("schedule", ["resident", *inspect_cases.EXCHANGING])
def test_committed_tables_of_whole_sequences_are_of_the_present_configurations(target, schedule):
    for row in committed(target, schedule):
        assert row["target"] == target
        assert row["shared_bytes"] <= inspect_cases.shared_bytes(target), row
        assert row["loop_matrix_instructions"] or row["dtype"] == "fp32" or target == "sm_75", row
        case = case_of(row)
        config = inspect_cases.config_of(case)
        if config is None and not fetches():
            continue  # nor are there wide programs of all sizes
        assert row["block_b"] == config.block_b
        if schedule == "resident" or words_of_a_lane() == 2:  # as in the Triton that compiled these tables
            assert row["num_warps"] == config.num_warps
        if schedule != "resident":
            assert row["block_h"] == config.block_h
            assert row["cooperative"] == config.on_a_multiprocessor


def test_tf32_only_where_it_exists(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert fused.precision_of(torch.float32) == "tf32"
    assert fused.precision_of(torch.bfloat16) == "ieee"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert fused.precision_of(torch.float32) == "ieee"


def test_command_prints_json(capsys):
    arguments = ["--schedule", "stepwise", "--variant", "torch", "--hidden", "256", "--batch", "17", "32", "--json"]
    assert cli.main(["inspect", *arguments]) == 0
    forward, backward = json.loads(capsys.readouterr().out)
    assert (forward["kernel"], backward["kernel"]) == ("forward_step", "bptt_step")
    assert (forward["direction"], backward["direction"]) == ("forward", "backward")
    assert (forward["target"], forward["variant"], forward["dtype"]) == ("sm_90", "torch", "bf16")
    assert forward["hidden_size"] == 256
    assert forward["batches"] == [17, 32]


def test_command_prints_a_table_that_fits(capsys, monkeypatch):
    argv = ["inspect", "--schedule", "stepwise", "--variant", "torch", "--hidden", "256", "--batch", "32"]
    for columns in (60, 300):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert cli.main(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        assert lines[0].startswith("in every row: target sm_90, schedule stepwise,")
        rows = [line for line in lines if "forward_step" in line or "bptt_step" in line]
        assert [line.split()[0] for line in rows] == ["forward_step", "bptt_step"]


def test_equal_binaries_are_one_row():
    """Whether 16 divides H matters to what is compiled, B only by its tile."""
    asked = inspect_cases.cases(["sm_90"], ["stepwise"], ["forward"], ["torch"], ["bf16"], [256, 500, 512], [32, 64])
    keys = {
        offline.specialise_launch(start, offline.target_of(case.target)).key
        for case in asked
        for start in inspect_cases.recorded(case)
    }
    assert len(keys) == 2


def test_recorder_runs_nothing():
    recorder = offline.Recorder()
    x = torch.empty(4, device="meta")
    with using(recorder):
        launch("kernel", (2, 3), {"x": x}, {"N": 1}, num_warps=4, num_stages=2, cooperative=True)
    (start,) = recorder.launches
    assert (start.kernel, start.grid, start.num_warps, start.num_stages) == ("kernel", (2, 3), 4, 2)
    assert start.args == {"x": x}
    assert start.constexprs == {"N": 1}
    assert start.options["launch_cooperative_grid"]


def test_nothing_to_compile(capsys):
    assert cli.main(["inspect", "--schedule", "stepwise", "--target", "gfx942", "--dtype", "tf32"]) == 2
    assert "nothing to compile" in capsys.readouterr().err


def test_unknown_target():
    with pytest.raises(ValueError, match="got 'sm90'"):
        offline.target_of("sm90")


def _found(schedule, variant, direction, dtype, hidden_sizes):
    """By configuration and masked edges: the largest hidden_size of a launch, as the kernel has it. Then the
    configurations, which differ in numbers of fetched pieces no more, each with whether units are added."""
    largest, added = {}, set()
    for hidden_size, batch in product(hidden_sizes, inspect_cases.ALL_BATCHES):
        case = inspect_cases.Case("sm_90", schedule, direction, variant, dtype, hidden_size, batch)
        for start in inspect_cases.recorded(case) if inspect_cases.can_compile(case) else ():
            special = offline.specialise_launch(start, offline.target_of(case.target))
            kinds = dict(zip(special.values, special.kinds, strict=True))
            options = special.kernel.__name__, str(special.options)
            if "H" in start.constexprs:
                del kinds["H"]
            adds = kinds.pop("ADDED", ("constexpr", 0))[1] > 0
            key = *options, str(kinds)
            largest[key] = max(largest.get(key, 0), special.values["H"])
            kinds = {name: kind for name, kind in kinds.items() if name not in ("EVEN_H", "EVEN_K")}
            if "FETCHED" in kinds:
                kinds["FETCHED"] = kinds["FETCHED"][1] > 0
            added.add((*options, str(kinds), adds))
    return largest, added


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 13])
@pytest.mark.parametrize("dtype", ["bf16", "tf32", "fp32"])
@pytest.mark.parametrize("schedule", inspect_cases.SCHEDULES)
def test_all_has_every_configuration(schedule, dtype, stride):
    """At whatever hidden_size, and its largest; with units added and without."""
    for layer in (("torch", "forward"), ("cho", "backward")):
        chosen, with_chosen = _found(schedule, *layer, dtype, inspect_cases.all_hidden_sizes(schedule, dtype))
        there, with_there = _found(schedule, *layer, dtype, range(1, 2049, stride))
        assert there.keys() <= chosen.keys()
        assert all(chosen[key] >= hidden_size for key, hidden_size in there.items())
        assert with_there <= with_chosen


@pytest.mark.parametrize("dtype", ["bf16", "tf32", "fp32"])
@pytest.mark.parametrize("schedule", inspect_cases.SCHEDULES)
def test_all_has_every_configuration_of_a_batch(schedule, dtype):
    def keys(batches):
        sizes = inspect_cases.all_hidden_sizes(schedule, dtype)[::3]
        asked = inspect_cases.cases(["sm_90"], [schedule], ["forward", "backward"], ["torch"], [dtype], sizes, batches)
        return {
            offline.specialise_launch(start, offline.target_of("sm_90")).key
            for case in asked
            for start in inspect_cases.recorded(case)
        }

    assert keys([*range(1, 34), 100, 256, 511]) <= keys(inspect_cases.ALL_BATCHES)


def test_several_kernels_are_read_as_each_alone():
    asked = inspect_cases.cases(["sm_80"], ["stepwise", "resident"], ["forward"], ["torch"], ["bf16"], [16, 32], [16])
    starts = [start for case in asked for start in inspect_cases.recorded(case)]
    compiled = [offline.compile_launch(start, offline.target_of("sm_80")) for start in starts]
    together = binary.Binary.of_all(compiled)
    assert together == [binary.Binary.of(one) for one in compiled]
    assert len({one.instructions for one in together}) > 1
    assert binary.Binary.of_all([]) == []


def test_kernels_compiled_by_several_processes_are_those_of_one():
    asked = inspect_cases.cases(["sm_90"], ["resident"], ["forward", "backward"], ["torch"], ["bf16"], [16, 32], [16])
    assert inspect.rows_of(asked, 2) == inspect.rows_of(asked) != []


def test_a_process_that_ends_while_it_compiles(monkeypatch, capsys):
    """As LLVM ends it where it meets what it does not know."""
    monkeypatch.setattr(inspect, "_compiled_apart", lambda *portion: os._exit(3))
    sizes = ["--schedule", "resident", "--hidden", "16", "--batch", "16", "--variant", "torch", "--jobs", "2"]
    assert cli.main(["inspect", *sizes]) == 1
    assert "a process that compiles ended with exit code 3" in capsys.readouterr().err


def test_kernels_of_packed_sequences(capsys):
    """They read where the rows of a step lie."""
    sizes = ["--schedule", "resident", "--hidden", "16", "--batch", "16", "--variant", "torch", "--json"]
    padded, packed = (
        [row for row in json.loads(capsys.readouterr().out) if row["direction"] == "forward"]
        for more in ([], ["--packed"])
        if cli.main(["inspect", *sizes, *more]) == 0
    )
    assert [row["packed"] for row in (*padded, *packed)] == [False, True]
    assert packed[0]["loop_global_loads"] > padded[0]["loop_global_loads"]


SASS = """
        /*0000*/                   S2R R0, SR_TID.X ;           /* 0x0 */
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ; /* 0x0 */
        /*0020*/              @!P0 LDGSTS.E [R1], [R2.64] ;     /* 0x0 */
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0040*/               @P1 BRA 0x00a0 ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0060*/               @P2 BRA 0x20 ;
        /*0070*/                   STG.E [R2.64], R4 ;
        /*0080*/                   EXIT ;
        /*0090*/                   NOP ;
        /*00a0*/                   LDG.E R6, [R2.64] ;
        /*00b0*/              @!P3 BRA 0xa0 ;
        /*00c0*/              @!PT LDS RZ, [RZ] ;
        /*00d0*/                   BRA 0x50 ;
        /*00e0*/                   BRA 0xe0;
"""


def test_loop_with_a_part_behind_the_end_of_the_kernel():
    code = binary.parse_sass(SASS)
    loop = binary.time_loop(code)
    assert loop == [2, 3, 4, 5, 6, 10, 11, 12, 13]
    counts = binary.count(code, loop)
    assert counts["instructions"] == 9
    assert counts["global_loads"] == 2
    assert counts["matrix_instructions"] == counts["barriers"] == 1
    assert counts["global_stores"] == counts["shared_accesses"] == 0


GCN = """
kernel:                                 ; @kernel
	s_load_dwordx2 s[0:1], s[2:3], 0x0
	s_cbranch_scc1 .LBB0_3
.LBB0_1:
	buffer_load_dwordx4 v[2:5], v1, s[4:7], 0 offen
	s_barrier
.Ltmp0:
	v_mfma_f32_32x32x8_bf16 a[0:15], v[2:3], v[4:5], a[0:15]
	s_cbranch_scc0 .LBB0_1
	s_branch .LBB0_3
.LBB0_3:
	global_store_dword v0, v1, s[0:1]
	s_endpgm
"""


def test_loop_of_an_amd_kernel():
    code = binary.parse_gcn(GCN)
    counts = binary.count(code, binary.time_loop(code))
    assert counts["instructions"] == 4
    assert counts["global_loads"] == counts["barriers"] == counts["matrix_instructions"] == 1


def test_no_loop():
    code = binary.parse_sass(SASS.replace("@P2 BRA 0x20 ", "NOP ").replace("@!P3 BRA 0xa0 ", "NOP "))
    assert binary.time_loop(code) == []
    assert binary.count(code, [])["instructions"] == 0


def test_products_and_sums_are_fused_whatever_tritons_default_is(monkeypatch):
    """By a launch as by the offline compiler, so that another default changes no bit."""
    if hasattr(triton.knobs.language, "default_fp_fusion"):
        monkeypatch.setattr(triton.knobs.language, "default_fp_fusion", False)
    case = inspect_cases.Case("sm_90", "stepwise", "forward", "torch", "bf16", 32, 16)
    start = inspect_cases.recorded(case)[0]
    assert offline.compile_launch(start, offline.target_of("sm_90")).kernel.metadata.enable_fp_fusion is True
    given = {}

    class Kernel:
        def __getitem__(self, grid):
            return lambda **options: given.update(options)

    launch(Kernel(), (1,), {"x": torch.empty(1)}, {}, num_warps=1, num_stages=1)
    assert given["enable_fp_fusion"] is True
