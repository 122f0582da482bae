"""Compile a schedule's kernels for a GPU that need not be there, and print what the machine code says: registers,
spills, shared memory, the matrix instruction, and what one turn of the largest loop consists of."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, groupby
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from ..planning.triton_state import interpreted, why_unusable
from ..reference import VARIANTS
from .inspect_cases import ALIKE, ALL_BATCHES, DIRECTIONS, DTYPES, SCHEDULES, TARGETS, Case, cases, recorded
from .options import Refused, Unable, at_least
from .tables import fitted


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
    cooperative: int  # programs on a multiprocessor that its launch asks for; 0: no cooperative launch
    hidden_sizes: tuple[int, ...]  # all sizes asked for that run this very binary
    batches: tuple[int, ...]
    both: bool = False
    packed: bool = False


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
    for key, row in zip(first, _all_compiled(list(first.values()), jobs), strict=True):
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
    """Launches of one target that a process compiles: at most 32, for Triton's passes take ever longer in one process,
    after a thousand kernels up to twice as long; ever fewer, so that all processes end at about the same time."""
    portions = []
    for _, same in groupby(starts, key=lambda start: start[0].target):
        left = list(same)
        while left:
            size = max(1, min(32, len(left) // (1 if jobs == 1 else 4 * jobs)))
            portions.append(left[:size])
            del left[:size]
    return portions


def _all_compiled(starts: list[tuple[Case, int]], jobs: int) -> Iterator[Row]:
    """Each portion by a process of its own, `jobs` of them at a time; the first launch here, so that what all need once
    (the hash of Triton, its backend, modules) is there when they are forked."""
    if min(jobs, len(starts)) <= 1 or "fork" not in get_all_start_methods():
        yield from chain.from_iterable(map(_compiled, _portions(starts, 1)))
        return
    yield from _compiled(starts[:1])
    context, left = get_context("fork"), deque(enumerate(_portions(starts[1:], jobs)))
    waiting: dict[Any, tuple[int, Any]] = {}  # by where its rows will come from: a portion's number, its process
    found: dict[int, list[Row]] = {}
    for n in range(len(left)):
        while n not in found:
            while left and len(waiting) < jobs:
                number, portion = left.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_compiled_apart, args=(portion, sender), daemon=True)
                process.start()
                sender.close()  # so that a process that ends is the end of what it sends
                waiting[receiver] = number, process
            ready: Any
            for ready in wait(list(waiting)):
                number, process = waiting.pop(ready)
                try:
                    found[number] = ready.recv()
                except EOFError:
                    process.join()
                    raise Unable(f"a process that compiles ended with exit code {process.exitcode}") from None
                process.join()
        yield from found.pop(n)


def _compiled_apart(starts: list[tuple[Case, int]], sender: Connection) -> None:
    """`_compiled` in a process for that alone, which looks for cycles no sooner than asked: that saves a tenth of the
    time."""
    gc.freeze()
    gc.disable()
    sender.send(_compiled(starts))


def _compiled(starts: list[tuple[Case, int]]) -> list[Row]:
    """Compile these launches, each by its number in its case's; then read the binaries, all at once, for the
    disassembler takes longer to start than to read a dozen."""
    from ..kernels.binary import Binary
    from ..kernels.offline import compile_launch, target_of

    target = target_of(starts[0][0].target)
    launches = [recorded(case)[i] for case, i in starts]
    compiled = []
    for number, launch in enumerate(launches, start=1):
        compiled.append(compile_launch(launch, target))
        if number % 8 == 0:
            gc.collect()  # Triton leaves each module in a cycle
    binaries = Binary.of_all(compiled)
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
    parser.add_argument("--packed", action="store_true", help="kernels of packed sequences")
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
            packed=args.packed,
        ),
        args.jobs or os.cpu_count() or 1,
        progress=sys.stderr.isatty(),
    )
    if not rows:
        raise Refused("nothing to compile: no schedule asked for takes such a layer on such a target")
    print(as_json(rows) if args.json else table(rows))
    return int(any(row.spill_bytes for row in rows))
