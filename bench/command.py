"""Measure: paired comparisons with nn.GRU and others, after a check of both sides against the float64 reference.

Without --suite: those that can run on the device. Results go to --out: JSON lines, a row a measurement, and figures.
bench/README.md says how each figure is taken and what would make it wrong.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from trigru.command.cli import INTERRUPTED
from trigru.command.inspect_cases import DTYPES
from trigru.command.options import Refused, Unable, at_least, place_to_write
from trigru.planning.plan import MEMORY, SCHEDULES
from trigru.reference import VARIANTS

from .cases.case import DIRECTIONS
from .cases.grid import Choice
from .cases.workloads import named
from .fitting import fit
from .measuring import conditions
from .peers import PEERS
from .report import report
from .report.outcome import Outcome
from .report.summary import outcome_in
from .run import (
    ON_CPU_ONLY,
    SUITES,
    Request,
    default_directions,
    default_peers,
    default_suites,
    execute,
    why_no_suite,
)
from .suites.workload_ways import WAYS
from .suites.workloads import Asked

MINUTES = {("cpu", "quick"): 2.0, ("cpu", "tiny"): 1.2, ("cuda", "quick"): 4.0, ("cuda", "full"): 18.0}
"""Of a run by device and size, where --minutes does not say: then the rest is left out."""
SECONDS = {"tiny": 0.01, "quick": 0.2, "full": 0.5, "short": 0.5}
SECONDS_ON_CUDA = 0.25
OF_GRIDS = ("hidden", "batch", "seq_len", "variant")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `trigru bench`."""
    count = at_least(1)
    parser.add_argument("--suite", nargs="+", choices=SUITES, help="(default: those that can run on the device)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="tf32: float32 multiplied in TF32 by both sides")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS)
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, help="(default on a CPU: forward+backward)")
    peers = list(dict.fromkeys([*PEERS, *WAYS]))
    parser.add_argument("--peers", nargs="+", choices=peers, metavar="PEER", help=f"of {', '.join(peers)}")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="of suite workloads: names or numbers, however long")
    size = parser.add_mutually_exclusive_group()
    for name, said in (
        ("quick", "few sizes"),
        ("tiny", "one size that takes no time: does everything run?"),
        ("short", "suite cpu: sequences of 2 to 64 steps"),
    ):
        size.add_argument(f"--{name}", dest="size", action="store_const", const=name, default="full", help=said)
    parser.add_argument("--hidden", nargs="+", type=count, metavar="SIZE", help="these sizes instead of the suite's")
    parser.add_argument("--batch", nargs="+", type=count, metavar="SIZE")
    parser.add_argument("--seq-len", nargs="+", type=count, metavar="STEPS")
    parser.add_argument("--schedule", choices=SCHEDULES, default="auto", help="of trigru (default: %(default)s)")
    parser.add_argument("--memory", choices=MEMORY, default="keep", help="of trigru (default: %(default)s)")
    parser.add_argument(
        "--threads", type=count, help="torch's threads on the CPU (default: torch's own; with --tiny 1)"
    )
    parser.add_argument("--seconds", type=at_least(0, float), help="time for the rounds of one row, about")
    parser.add_argument("--minutes", type=at_least(0, float), help="leave out what has not begun by then")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: out/bench/ and the time)")
    parser.add_argument("--no-figures", action="store_true", help="rows and table alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    fitting = parser.add_argument_group("instead of measuring")
    fitting.add_argument("--fit", type=Path, metavar="ROWS", help="fit the planner's constants to rows of suite layer")
    fitting.add_argument("--show", type=Path, metavar="DIR", help="the table and the figures of a run that wrote DIR")
    fitting.add_argument("--write", action="store_true", help="with --fit: store them where the planner reads them")


def run(args: argparse.Namespace) -> int:
    """Measure, or fit, or show; the exit code is 1 where nothing was measured, a suite failed or a result of trigru was
    wrong, 130 after Ctrl-C."""
    if args.fit is not None:
        return fit.run(args.fit, write=args.write)
    if args.write:
        raise Refused("--write: is for --fit ROWS")
    if args.show is not None:
        return _show(args)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise Refused("--device: expected one that torch can use, got cuda; torch.cuda.is_available() is false")
    if args.threads or args.size == "tiny":
        torch.set_num_threads(args.threads or 1)
    request = _request(args, device)
    if wrong := [suite for suite in request.suites if suite in ON_CPU_ONLY and device != "cpu"]:
        raise Refused(f"--suite: expected one that runs on {device}, got {wrong[0]}; give --device cpu")
    for suite in request.suites:
        if (reason := why_no_suite(suite)) is not None:
            raise Unable(f"--suite {suite}: {reason}")
    place_to_write("--out", request.out)
    outcome = Outcome()
    try:
        execute(request, outcome)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    _report(args, outcome, request.out)
    if interrupted:
        print(f"trigru bench: interrupted; {len(outcome.rows)} rows in {request.out}", file=sys.stderr)
        return INTERRUPTED
    if not outcome.rows:
        raise Unable("nothing was measured")
    return 1 if outcome.failed or any("error" in row and row["peer"] == "nn.GRU" for row in outcome.rows) else 0


def _show(args: argparse.Namespace) -> int:
    try:
        _, outcome = outcome_in(args.show)
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"--show: expected a folder that trigru bench wrote, got {args.show} ({error})") from None
    _report(args, outcome, args.show)
    return 0


def _report(args: argparse.Namespace, outcome: Outcome, out: Path) -> None:
    """Print what came out, and draw it."""
    figures = [] if args.no_figures else _drawn(outcome.rows, out)
    if args.json:
        found = {"headline": report.headline(outcome.rows), "results": str(out), "figures": list(map(str, figures))}
        print(json.dumps({**found, "rows": outcome.rows, "notes": report.notes(outcome)}))
        return
    report.show(outcome)
    for path in figures:
        print(f"figure: {path}")
    print(f"results: {out}")


def _request(args: argparse.Namespace, device: str) -> Request:
    choice = Choice(
        device,
        args.size,
        args.dtype,
        args.variant,
        args.hidden,
        args.batch,
        args.seq_len,
        args.schedule,
        args.memory,
    )
    suites = args.suite or default_suites(choice)
    workloads = _workloads(args, suites)
    now = datetime.datetime.now(datetime.timezone.utc)
    seconds = SECONDS_ON_CUDA if device == "cuda" else SECONDS[args.size]
    return Request(
        choice,
        suites,
        args.direction or default_directions(device),
        [PEERS[name] for name in args.peers if name in PEERS] if args.peers else default_peers(device),
        seconds if args.seconds is None else args.seconds,
        MINUTES.get((device, args.size)) if args.minutes is None else args.minutes,
        args.out or Path("out", "bench", f"{now:%Y%m%d-%H%M%S}"),
        conditions.of_run(device),
        workloads,
    )


def _workloads(args: argparse.Namespace, suites: Sequence[str]) -> Asked:
    """What is asked of suite "workloads", which has sizes and equations of its own."""
    taken = "workloads" in suites
    if args.rows and not taken:
        raise Refused("--rows: is for --suite workloads")
    if taken and (sizes := [name for name in OF_GRIDS if getattr(args, name)]):
        raise Refused(f"--{sizes[0].replace('_', '-')}: suite workloads has its own; give it --rows")
    try:
        chosen = named(args.rows) if args.rows else None
    except ValueError as error:
        raise Refused(f"--rows: {error}") from None
    ways = [WAYS[name] for name in args.peers or WAYS if name in WAYS]
    return Asked(chosen, ways, args.direction)


def _drawn(rows: Sequence[dict], out: Path) -> list[Path]:
    try:
        from .report import figures
    except ImportError as error:
        print(f"trigru bench: no figures: {error}", file=sys.stderr)
        return []
    return figures.draw(rows, out)
