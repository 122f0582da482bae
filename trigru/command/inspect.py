"""Compile a schedule's kernels for a GPU that need not be there, and print what the machine code says: registers,
spills, shared memory, the matrix instruction, and what one turn of the largest loop consists of."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from itertools import chain, groupby, product
from typing import Any

import torch

from ..kernels.config import (
    PersistentConfig,
    ResidentConfig,
    kept_values,
    on_matrix_units,
    persistent_config,
    persistent_width,
    resident_config,
    sharing_config,
    stacked_config,
    stepwise_config,
    walking_config,
    why_not_stacked,
    why_one_tile,
    wide_config,
)
from ..planning.candidates import WAITING
from ..planning.triton_state import interpreted, why_unusable
from ..reference import VARIANTS
from .options import Refused, Unable, at_least
from .tables import fitted

# How numbers are stored and multiplied. "tf32": float32 tensors, multiplied in TF32.
DTYPES = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
DIRECTIONS = ("forward", "inference", "backward")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
ALIKE = ("sm_75", "sm_86", "sm_87", "sm_89", "sm_103", "sm_120", "gfx908", "gfx90a", "gfx950")
"""More that kernels were compiled for. No others are taken: LLVM ends the process at a name that it does not know."""
# The sizes of `--all`, with which it compiles every configuration that there is at hidden_size 1 to 2048 and batch 1 to
# 512 (tests/test_offline.py walks through all). Of each they are the largest, for every combination of edges that it
# masks and of what Triton specialises on; and where sizes have units added to them (see widen.py), one such too. Of
# fetched columns, which are whole pieces, the most are there with added units.
_OF_STEPS = (1, 15, 16, 32, 2047, 2048)
# fmt: off
_EXCHANGING = {  # by bytes of an element
    2: (
        48, 55, 64, 112, 119, 128, 240, 247, 256, 496, 503, 511, 512, 896, 1023, 1024,
        1280, 1536, 1792, 2047, 2048,
    ),
    4: (
        16, 27, 32, 48, 59, 64, 112, 123, 128, 240, 251, 256, 496, 507, 512,
        640, 768, 896, 1023, 1024,
    ),
}
# fmt: on
_WIDE = {2: (224, 256, 480, 512, 768, 1024), 4: (96, 128, 224, 256, 384, 512)}
_STACKED = {2: (64, 128, 240, 248, 256, 512), 4: (32, 64, 112, 124, 128, 256)}
ALL_BATCHES = (8, 16, 512)
SEQ_LEN = 2  # host code does at the second step what it does at all later ones


@dataclass(frozen=True)
class Case:
    """A layer to compile kernels for. direction: "forward" keeps what backward needs, "inference" does not. both: with
    both directions of time in every launch. Schedule "stacked": two layers of the persistent one in a launch;
    "several": several batch tiles in a program of it, which is one binary for any number of them; "sharing": with half
    of the registers; "wide": with more hidden units a program."""

    target: str
    schedule: str
    direction: str
    variant: str
    dtype: str
    hidden_size: int
    batch: int
    both: bool = False

    @property
    def way(self) -> str:
        """Forward or backward, as the plan has it."""
        return "backward" if self.direction == "backward" else "forward"


@dataclass(frozen=True)
class Row:
    """What is known of a compiled kernel. `loop_` counts the instructions of the largest loop: the loop over time of a
    kernel that has one, else the loop over chunks of the product."""

    target: str
    kernel: str
    schedule: str
    direction: str
    variant: str
    dtype: str
    hidden_size: int
    batch: int
    block_h: int
    block_b: int
    block_k: int | None  # None: all of K at once
    num_warps: int
    num_stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    matrix_instruction: str | None
    loop_instructions: int
    loop_barriers: int
    loop_global_loads: int
    loop_global_stores: int
    loop_shared_accesses: int
    loop_matrix_instructions: int
    loop_conversions: int
    cooperative: bool
    hidden_sizes: tuple[int, ...]  # all sizes asked for that run this very binary
    batches: tuple[int, ...]
    both: bool = False


@dataclass(frozen=True)
class Schedule:
    """A module of trigru.kernels with the host functions `forward` and `backward`; what chooses its tile sizes from
    (dtype, batch, hidden_size, matrix); and the largest hidden size of (dtype, precision, matrix). matrix: whether
    products run on matrix units."""

    module: str
    config: Callable[[torch.dtype, int, int, bool], Any]
    largest: Callable[[torch.dtype, str, bool], int]


SEVERAL = ("several", "wide several", "wide sharing")
EXCHANGING = ("persistent", "sharing", "wide", *SEVERAL)
"""Forms of the persistent schedule, of one layer in a launch; SEVERAL those of several batch tiles in a program."""
SCHEDULES = {
    "stepwise": Schedule("stepwise", stepwise_config, lambda dtype, precision, matrix: sys.maxsize),
    "walking": Schedule("walking", walking_config, lambda dtype, precision, matrix: sys.maxsize),
    "resident": Schedule("resident", lambda *sizes: resident_config(*sizes[:3]), ResidentConfig.largest),
    # Of the sizes of those below, `config_of` and `can_compile` say more.
    **dict.fromkeys(
        EXCHANGING,
        Schedule("persistent", lambda *sizes: persistent_config(*sizes[:3]), PersistentConfig.largest),
    ),
    "stacked": Schedule("stacked", lambda *sizes: stacked_config(*sizes[:3]), lambda *options: sys.maxsize),
}


def capability_of(target: str) -> tuple[int, int] | None:
    """Compute capability, None of AMD's."""
    number = target.removeprefix("sm_")
    return divmod(int(number), 10) if number.isdigit() else None


def on_units(case: Case) -> bool:
    """Whether the case's products run on matrix units."""
    return on_matrix_units(*DTYPES[case.dtype], capability_of(case.target))


def shared_bytes(target: str) -> int:
    """Of shared memory that a program may have, by the CUDA C++ programming guide; AMD's by their data sheets."""
    return 1024 * (_SHARED_KIB.get(target, 227) if target.startswith("sm_") else 64)


_SHARED_KIB = {"sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_87": 163, "sm_89": 99, "sm_120": 99}


def config_of(case: Case) -> Any:
    """The plan's tile sizes; None where it has none of that form."""
    dtype, _ = DTYPES[case.dtype]
    config = SCHEDULES[case.schedule].config(dtype, case.batch, case.hidden_size, on_units(case))
    sizes = case.variant, case.way, dtype, persistent_width(dtype, case.hidden_size)
    if "wide" in case.schedule:
        config = wide_config(config, *sizes[:3], case.hidden_size)
    if config is not None and "sharing" in case.schedule:
        config = sharing_config(config, *sizes)
    elif case.schedule == "several":
        config = sharing_config(config, *sizes) or config
    return config if config is None or case.schedule not in SEVERAL else replace(config, tiles=2)


def recorded(case: Case, config: Any = None) -> list:
    """What the schedule's host code would launch (`trigru.kernels.offline.Launch`), with `config` or the plan's.

    Nothing is allocated: its tensors have shapes only."""
    from ..kernels.launch import using
    from ..kernels.offline import Recorder
    from ..kernels.recurrence import Gradients, Operands, Recurrence
    from ..kernels.steps import Steps

    schedule = SCHEDULES[case.schedule]
    module = import_module(f"trigru.kernels.{schedule.module}")
    dtype, precision = DTYPES[case.dtype]
    batch, hidden_size, rows = case.batch, case.hidden_size, SEQ_LEN * case.batch
    sides = (2,) if case.both else ()

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    if config is None:
        config = config_of(case)
    run = Recurrence(case.variant, False, precision, config)
    if case.schedule == "stacked":
        return _recorded_stack(case, run)
    bias = meta(hidden_size) if case.variant == "torch" else None
    gates_in, h0, w_hh = (
        meta(*sides, rows, 3 * hidden_size),
        meta(*sides, batch, hidden_size),
        meta(3 * hidden_size, hidden_size),
    )
    operands = Operands(gates_in, h0, w_hh, bias, Steps.padded(SEQ_LEN, batch))
    if case.both:
        operands = operands._replace(w_hh_back=w_hh, b_hn_back=bias)
    recorder = Recorder()
    with using(recorder):
        kept = module.forward(run, operands, case.direction != "inference")
        if case.direction == "backward":
            recorder.launches.clear()
            module.backward(run, operands, kept, Gradients(meta(*kept.output.shape), meta(*h0.shape)))
    return recorder.launches


def _recorded_stack(case: Case, run: Any) -> list:
    """`recorded` of two layers in a launch, with dropout between them, which takes the more registers."""
    from ..kernels.launch import using
    from ..kernels.offline import Recorder
    from ..kernels.stacked import Layers, backward, forward
    from ..kernels.steps import Steps

    batch, hidden_size, rows, layers = case.batch, case.hidden_size, SEQ_LEN * case.batch, 2

    def meta(*shape: int, dtype: torch.dtype = DTYPES[case.dtype][0]) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    values = kept_values(case.variant) * hidden_size
    given = Layers(
        gates_in=meta(rows, 3 * hidden_size),
        h0=meta(layers, batch, hidden_size),
        w_ih=meta(layers - 1, 3 * hidden_size, hidden_size),
        w_hh=meta(layers, 3 * hidden_size, hidden_size),
        bias=meta(layers - 1, 3 * hidden_size),
        b_hn=meta(layers, hidden_size) if case.variant == "torch" else None,
        steps=Steps.padded(SEQ_LEN, batch),
        states=meta(layers - 1, rows, hidden_size),
        output=meta(rows, hidden_size),
        reserve=None if case.direction == "inference" else meta(layers, rows, values),
        stays=None if case.direction == "inference" else meta(layers - 1, rows, hidden_size, dtype=torch.bool),
    )
    recorder = Recorder()
    with using(recorder):
        if case.direction == "backward":
            backward(run, given, meta(rows, hidden_size), meta(layers, batch, hidden_size))
        else:
            forward(run, given)
    return recorder.launches


def rows_of(cases: Iterable[Case], jobs: int = 1, progress: bool = False) -> list[Row]:
    """A row for each distinct binary that a schedule runs in a direction of a variant, compiled by `jobs` processes."""
    from ..kernels.offline import specialise_launch, target_of

    first: dict[tuple, tuple[Case, int]] = {}  # by binary: who runs it first
    runs: dict[tuple, list[Case]] = {}  # by binary and what else a row says: who runs it
    for case in cases:
        for i, launch in enumerate(recorded(case)):
            key = specialise_launch(launch, target_of(case.target)).key
            first.setdefault(key, (case, i))
            same = runs.setdefault((key, case.schedule, case.direction, case.variant, case.dtype), [])
            if case not in same:
                same.append(case)
    binaries: dict[tuple, Row] = {}
    for key, row in zip(first, _all_compiled(_portions(list(first.values()), jobs), jobs), strict=True):
        binaries[key] = row
        if progress:
            end = "\n" if len(binaries) == len(first) else ""
            print(f"\r{len(binaries)} of {len(first)} kernels compiled", end=end, file=sys.stderr, flush=True)
    rows = []
    for (key, *_), same in runs.items():
        hidden_sizes = tuple(sorted({case.hidden_size for case in same}))
        batches = tuple(sorted({case.batch for case in same}))
        rows.append(replace(binaries[key], **asdict(same[0]), hidden_sizes=hidden_sizes, batches=batches))
    return rows


def _portions(starts: list[tuple[Case, int]], jobs: int) -> list[list[tuple[Case, int]]]:
    """Launches of one target that a process compiles and reads together: at most 8, fewer where there are few, so that
    all processes end at about the same time."""
    size = max(1, min(8, len(starts) // (1 if jobs == 1 else 8 * jobs)))
    of_targets = (list(same) for _, same in groupby(starts, key=lambda start: start[0].target))
    return [same[i : i + size] for same in of_targets for i in range(0, len(same), size)]


def _all_compiled(portions: list[list[tuple[Case, int]]], jobs: int) -> Iterator[Row]:
    """By new processes after some portions each: Triton's passes take ever longer in one process, after a thousand
    kernels up to twice as long."""
    jobs = min(jobs, len(portions))
    if jobs <= 1:
        yield from chain.from_iterable(map(_compiled, portions))
        return
    for first in range(0, len(portions), 8 * jobs):
        with ProcessPoolExecutor(jobs) as pool:
            yield from chain.from_iterable(pool.map(_compiled_apart, portions[first : first + 8 * jobs]))


def _compiled_apart(starts: list[tuple[Case, int]]) -> list[Row]:
    """`_compiled` in a process for that alone: cycles are looked for behind it, which saves a tenth of the time."""
    gc.freeze()
    gc.disable()
    rows = _compiled(starts)
    gc.collect()
    return rows


def _compiled(starts: list[tuple[Case, int]]) -> list[Row]:
    """Compile these launches, each by its number in its case's, and read the binaries."""
    from ..kernels.binary import Binary
    from ..kernels.offline import compile_launch, target_of

    target = target_of(starts[0][0].target)
    launches = [recorded(case)[i] for case, i in starts]
    binaries = Binary.of_all([compile_launch(launch, target) for launch in launches])
    return [_row(case, *found) for (case, _), *found in zip(starts, launches, binaries, strict=True)]


def _row(case: Case, launch: Any, binary: Any) -> Row:
    loop: dict[str, Any] = {f"loop_{name}": number for name, number in binary.loop.items()}
    return Row(
        **asdict(case),
        kernel=launch.kernel.__name__,
        block_h=launch.constexprs.get("BLOCK_H", case.hidden_size),
        block_b=launch.constexprs["BLOCK_B"],
        block_k=launch.constexprs.get("BLOCK_K"),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        registers=binary.registers,
        spill_bytes=binary.spill_bytes,
        shared_bytes=binary.shared_bytes,
        matrix_instruction=binary.matrix_instruction,
        cooperative=launch.cooperative,
        hidden_sizes=(case.hidden_size,),
        batches=(case.batch,),
        **{field.name: loop[field.name] for field in fields(Row) if field.name in loop},
    )


def can_compile(case: Case) -> bool:
    """Whether the schedule runs such a layer on the target: TF32 and the persistent schedule are for NVIDIA's GPUs from
    compute capability 8.0 on, no schedule that waits is for AMD's, schedules have a largest size, some want more shared
    memory than some GPUs have, and a batch that one tile holds has no several."""
    has_dtype, config = True, config_of(case)
    if config is None:
        return False
    if not case.target.startswith("sm_"):
        has_dtype = case.dtype != "tf32" and case.schedule not in (*WAITING, *EXCHANGING)
    elif case.target == "sm_75":
        has_dtype = case.dtype not in ("tf32", "bf16") and case.schedule not in EXCHANGING
    if case.schedule in SEVERAL:
        sizes = case.variant, case.way, DTYPES[case.dtype][0], case.hidden_size
        capability = capability_of(case.target)
        has_dtype &= capability is not None and why_one_tile(*sizes, capability) is None
        has_dtype &= case.batch > persistent_config(sizes[2], case.batch, case.hidden_size).block_b
    if case.schedule == "stacked":
        has_dtype &= case.target.startswith("sm_") and case.target != "sm_75" and not case.both
        return has_dtype and why_not_stacked(case.variant, *_numbers(case)) is None
    largest = SCHEDULES[case.schedule].largest(*DTYPES[case.dtype], on_units(case))
    return has_dtype and case.hidden_size <= largest and _has_room(case, config)


def _has_room(case: Case, config: Any) -> bool:
    """Whether the target's multiprocessors have the shared memory of a resident program, or the L1 of one that fetches
    columns, as the plan asks."""
    dtype, _ = DTYPES[case.dtype]
    if isinstance(config, ResidentConfig):
        wanted = config.shared_bytes(dtype, case.hidden_size)
    elif isinstance(config, PersistentConfig) and config.fetched:
        wanted = config.l1_bytes(dtype)
    else:
        return True
    return wanted <= shared_bytes(case.target)


def _numbers(case: Case) -> tuple[torch.dtype, int, str]:
    dtype, precision = DTYPES[case.dtype]
    return dtype, case.hidden_size, precision


# Heading and value of a column of the printed table.
COLUMNS: dict[str, Callable[[Row], object]] = {
    "target": lambda row: row.target,
    "schedule": lambda row: row.schedule,
    "kernel": lambda row: row.kernel,
    "direction": lambda row: row.direction,
    "variant": lambda row: row.variant,
    "dtype": lambda row: row.dtype,
    "H": lambda row: _range(row.hidden_sizes),
    "B": lambda row: _range(row.batches),
    "tile": lambda row: f"{row.block_h}x{row.block_b}" + (f"x{row.block_k}" if row.block_k else ""),
    "warps": lambda row: row.num_warps,
    "registers": lambda row: row.registers,
    "spills": lambda row: row.spill_bytes,
    "shared": lambda row: row.shared_bytes,
    "matrix instruction": lambda row: row.matrix_instruction or "-",
    "loop": lambda row: row.loop_instructions,
    "barriers": lambda row: row.loop_barriers,
    "loads": lambda row: row.loop_global_loads,
    "stores": lambda row: row.loop_global_stores,
    "matrix": lambda row: row.loop_matrix_instructions,
    "conversions": lambda row: row.loop_conversions,
}


def table(rows: Sequence[Row]) -> str:
    """The rows as a table, as wide as the terminal."""
    return fitted(list(COLUMNS), [[value(row) for value in COLUMNS.values()] for row in rows])


def as_json(rows: Sequence[Row]) -> str:
    """A list of objects, each on a line of its own."""
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    return f"[\n{lines}\n]"


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `trigru inspect`. What is not given is the example, or with --all everything."""
    size = at_least(1)
    parser.add_argument(
        "--target",
        nargs="+",
        choices=(*TARGETS, *ALIKE),
        default=["sm_90"],
        metavar="TARGET",
        help=f"of {', '.join((*TARGETS, *ALIKE))} (default: sm_90)",
    )
    parser.add_argument("--schedule", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="tf32: float32 tensors, multiplied in TF32")
    parser.add_argument("--hidden", nargs="+", type=size, metavar="H", help="hidden sizes (default: 512)")
    parser.add_argument("--batch", nargs="+", type=size, metavar="B", help="batch sizes (default: 64)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="every dtype and direction, and sizes with which every configuration for H 1 to 2048 and B 1 to 512 is "
        "there, where not given; each distinct kernel once",
    )
    parser.add_argument("--both", action="store_true", help="kernels that run both directions of time in a launch")
    parser.add_argument("--jobs", type=size, metavar="N", help="kernels compiled at once (default: all CPUs)")
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")


def run(args: argparse.Namespace) -> int:
    """Compile and print. The exit code is 1 where a kernel spills registers."""
    if (reason := why_unusable()) is not None:
        raise Unable(f"{reason}, so nothing can be compiled")
    if interpreted():
        raise Unable("TRITON_INTERPRET=1 is set, under which Triton compiles nothing")
    rows = rows_of(
        cases(
            args.target,
            args.schedule,
            args.direction or (DIRECTIONS if args.all else ("forward", "backward")),
            args.variant,
            args.dtype or (DTYPES if args.all else ("bf16",)),
            args.hidden or (None if args.all else (512,)),
            args.batch or (ALL_BATCHES if args.all else (64,)),
            both=args.both,
        ),
        args.jobs or os.cpu_count() or 1,
        progress=sys.stderr.isatty(),
    )
    if not rows:
        raise Refused("nothing to compile: no schedule asked for takes such a layer on such a target")
    print(as_json(rows) if args.json else table(rows))
    return int(any(row.spill_bytes for row in rows))


def all_hidden_sizes(schedule: str, dtype: str) -> tuple[int, ...]:
    """Those of `--all`."""
    itemsize = DTYPES[dtype][0].itemsize
    if schedule == "resident":
        return (15, 16, 31, 32, 63, 64, 127, 128)
    if schedule == "stacked":
        return _STACKED[itemsize]
    if "wide" in schedule:
        return _WIDE[itemsize]
    return _EXCHANGING[itemsize] if schedule in EXCHANGING else _OF_STEPS


def cases(
    targets: Iterable[str],
    schedules: Iterable[str],
    directions: Iterable[str],
    variants: Iterable[str],
    dtypes: Iterable[str],
    hidden_sizes: Collection[int] | None,
    batches: Collection[int],
    *,
    both: bool = False,
) -> list[Case]:
    """Every combination that can be compiled. hidden_sizes: None for those of `--all`."""
    every = (
        Case(*layer, hidden_size, batch, both)
        for layer in product(targets, schedules, directions, variants, dtypes)
        for hidden_size in hidden_sizes or all_hidden_sizes(layer[1], layer[-1])
        for batch in batches
    )
    return [case for case in every if can_compile(case)]
