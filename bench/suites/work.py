"""Count the work of one time step: the kernels' compiled code, executed from its PTX on the CPU.

    python -m trigru.bench.suites.work [--schedule persistent] [--arch 80 90] [--hidden 256] [--batch 16] [--json FILE]

Counts, not times: the longest path of a warp, the instructions of all warps, the bytes that go to and from global
memory, the barriers of a program. It runs from a checkout, because the executor is among its tests. How the floor of
the bytes follows from the tiles is in `floor`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from trigru.command.inspect_cases import DTYPES
from trigru.command.tables import markdown
from trigru.kernels import launch, stepwise
from trigru.kernels.config import cdiv, persistent_config, stepwise_config
from trigru.kernels.recurrence import Recurrence
from trigru.reference import VARIANTS

from . import work_persistent

SEQ_LEN = 3  # the second step is neither the first nor the last


@dataclass(frozen=True)
class Work:
    """Work of one kernel in one step, all its programs together but for the path and the barriers."""

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
    num_warps: int
    programs: int
    path: int  # instructions of the warp that executes most
    instructions: int  # of all warps of all programs
    barriers: int  # of a program
    load_bytes: int
    load_floor: int
    store_bytes: int
    store_floor: int


def floor(
    kernel: str, variant: str, element: int, hidden_size: int, batch: int, tile: tuple[int, int]
) -> tuple[int, int]:
    """The fewest bytes that the launch of a kernel can load and store with tiles of (BLOCK_H, BLOCK_B).

    With H and B the sizes, s bytes an element, G the gates that the kernel multiplies by:

        weights      G H^2 s             for each of the cdiv(B, BLOCK_B) batch tiles
        multiplied   P B H s             for each of the cdiv(H, BLOCK_H) tiles of hidden units: the whole state, or P
                                         derivatives of gates
        own          B H (s m + 4 f)     once: m elements and f float32 numbers of each unit of each sequence

    and b_hn, H s, for each batch tile. What is stored is stored once.
    """
    torch_gates = variant == "torch"
    gates, multiplied, own, own_float, stored, stored_float = {
        # gate inputs, state | output, reserve, state
        "forward_step": (3, 1, 3, 1, 5, 1),
        # gate inputs of r and z, state | r * h, reserve, z
        "reset_update_step": (2, 1, 2, 1, 3, 1),
        # gate input of n, state, z | output, reserve, state
        "candidate_step": (1, 1, 1, 2, 2, 1),
        # gradient of the output, state before, reserve, running derivative | derivatives of gates, running derivative
        "bptt_step": (3, 3, 6, 1, 4, 1) if torch_gates else (2, 2, 4, 1, 2, 1),
        # state before, r, running derivative | dr, running derivative
        "bptt_reset_step": (1, 1, 2, 1, 1, 1),
    }[kernel]
    units = batch * hidden_size
    loads = cdiv(batch, tile[1]) * gates * hidden_size**2 * element
    loads += cdiv(hidden_size, tile[0]) * multiplied * units * element
    loads += units * (own * element + 4 * own_float)
    if kernel == "forward_step":
        loads += cdiv(batch, tile[1]) * hidden_size * element
    return loads, units * (stored * element + 4 * stored_float)


def _row(
    kind: tuple[str, str, str, str, str, str, int, int],
    tile: tuple[int, int],
    counts: Mapping[str, Any],
    barriers: int,
    load_floor: int,
    store_floor: int,
) -> Work:
    """A kernel's row. kind: Work's fields from `target` to `batch`; tile: (BLOCK_H, BLOCK_B); barriers of a program."""
    return Work(
        *kind,
        *tile,
        num_warps=counts["num_warps"],
        programs=counts["programs"],
        path=counts["critical_path"],
        instructions=counts["instructions"],
        barriers=barriers,
        load_bytes=counts["global_load_bytes"],
        load_floor=load_floor,
        store_bytes=counts["global_store_bytes"],
        store_floor=store_floor,
    )


def of_launches(
    launches: Sequence[dict[str, Any]], seq_len: int, variant: str, dtype: str, hidden_size: int, batch: int
) -> list[Work]:
    """The work of the second step of a forward, and of the second of a backward, from what `ptx.ptx_launcher` recorded
    while both ran once over `seq_len` steps."""
    element = DTYPES[dtype][0].itemsize
    config = stepwise_config(DTYPES[dtype][0], batch, hidden_size)
    tile = (config.block_h, config.block_b)
    kernels = 1 if variant == "torch" else 2
    backward = seq_len * kernels
    rows = []
    for direction, start in (("forward", kernels), ("backward", backward + kernels)):
        for entry in launches[start : start + kernels]:
            loads, stores = floor(entry["kernel"], variant, element, hidden_size, batch, tile)
            barriers = entry["barriers"] // (entry["programs"] * entry["num_warps"])
            target = f"sm_{entry['compiled'].target.arch}"
            kind = target, entry["kernel"], "stepwise", direction, variant, dtype, hidden_size, batch
            rows.append(_row(kind, tile, entry, barriers, loads, stores))
    return rows


def measure_stepwise(arch: int, variant: str, dtype: str, hidden_size: int, batch: int) -> list[Work]:
    """Run a forward and a backward on random numbers, and count."""
    launcher = _executor().ptx_launcher(arch, checks=False, races=False)  # checked in the tests; quicker without
    number, precision = DTYPES[dtype]
    run = Recurrence(variant, False, precision, stepwise_config(number, batch, hidden_size))
    with launch.using(launcher):
        work_persistent.both_ways(stepwise, run, SEQ_LEN, number, hidden_size, batch)
    return of_launches(launcher.launches, SEQ_LEN, variant, dtype, hidden_size, batch)


def measure_persistent(arch: int, variant: str, dtype: str, hidden_size: int, batch: int) -> list[Work]:
    """Run a forward and a backward on random numbers, twice, and count the difference that a step makes."""
    number, precision = DTYPES[dtype]
    config = persistent_config(number, batch, hidden_size)
    rows = []
    launcher = partial(_executor().ptx_launcher, checks=False, races=False)
    for step in work_persistent.measure(launcher, arch, variant, number, precision, hidden_size, batch):
        loads, stores = work_persistent.floor(step["kernel"], hidden_size, batch, number.itemsize, config.block_h)
        kernel = step["kernel"]
        kind = f"sm_{arch}", kernel, "persistent", kernel.split("_")[0], variant, dtype, hidden_size, batch
        rows.append(_row(kind, (config.block_h, config.block_b), step, step["barriers"], loads, stores))
    return rows


MEASURES = {"stepwise": measure_stepwise, "persistent": measure_persistent}


def _executor() -> Any:
    """The package `ptx` of the checkout's tests."""
    tests = Path(__file__).resolve().parents[2] / "tests"
    if not (tests / "ptx" / "__init__.py").exists():
        raise SystemExit(f"this runs from a checkout: the executor tests/ptx is not at {tests / 'ptx'}")
    if str(tests) not in sys.path:
        sys.path.append(str(tests))
    return import_module("ptx")


HEADINGS = {
    "target": "target",
    "kernel": "kernel",
    "variant": "variant",
    "hidden_size": "H",
    "batch": "B",
    "programs": "programs",
    "path": "path",
    "instructions": "instructions",
    "barriers": "barriers",
    "load_bytes": "loaded",
    "load_floor": "floor",
    "store_bytes": "stored",
    "store_floor": "floor",
}


def table(rows: Sequence[Work]) -> str:
    """The rows as a table."""
    return markdown(list(HEADINGS.values()), [[getattr(row, name) for name in HEADINGS] for row in rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", choices=MEASURES, default="stepwise", help="(default: %(default)s)")
    parser.add_argument("--arch", nargs="+", type=int, choices=(80, 90), default=[80, 90])
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16"])
    parser.add_argument("--hidden", nargs="+", type=int, default=[256, 512])
    parser.add_argument("--batch", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here, one object a line")
    args = parser.parse_args(argv)
    rows: list[Work] = []
    for case in product(args.arch, args.variant, args.dtype, args.hidden, args.batch):
        rows += MEASURES[args.schedule](*case)
    print(table(rows))
    if args.json is not None:
        args.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
