"""Measure: paired comparisons with nn.GRU and others, after a check of both sides against the float64 reference.

Without --suite: those that can run on the device. Results go to --out: JSON lines, a row a measurement, and figures.
bench/README.md says how each figure is taken and what would make it wrong.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

import torch

from trigru.command.inspect import DTYPES
from trigru.planning.plan import MEMORY, SCHEDULES
from trigru.reference import VARIANTS

from .cases.case import DIRECTIONS
from .cases.grid import Choice
from .fitting import fit
from .measuring import conditions
from .peers import PEERS
from .report import report
from .run import ON_CPU_ONLY, SUITES, Request, default_directions, default_peers, default_suites, execute

MINUTES = {("cpu", "quick"): 1.2, ("cpu", "tiny"): 1.2, ("cuda", "quick"): 4.0, ("cuda", "full"): 18.0}
"""Of a run by device and size, where --minutes does not say: then the rest is left out."""
SECONDS = {"tiny": 0.01, "quick": 0.2, "full": 0.5, "short": 0.5}
SECONDS_ON_CUDA = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `trigru bench`."""
    parser.add_argument("--suite", nargs="+", choices=SUITES, help="(default: those that can run on the device)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="tf32: float32 multiplied in TF32 by both sides")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS)
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, help="(default on a CPU: forward+backward)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, metavar="PEER", help=f"of {', '.join(PEERS)}")
    size = parser.add_mutually_exclusive_group()
    for name, said in (
        ("quick", "few sizes"),
        ("tiny", "one size that takes no time: does everything run?"),
        ("short", "suite cpu: sequences of 2 to 64 steps"),
    ):
        size.add_argument(f"--{name}", dest="size", action="store_const", const=name, default="full", help=said)
    parser.add_argument("--hidden", nargs="+", type=int, metavar="SIZE", help="these sizes instead of the suite's")
    parser.add_argument("--batch", nargs="+", type=int, metavar="SIZE")
    parser.add_argument("--seq-len", nargs="+", type=int, metavar="STEPS")
    parser.add_argument("--schedule", choices=SCHEDULES, default="auto", help="of trigru (default: %(default)s)")
    parser.add_argument("--memory", choices=MEMORY, default="keep", help="of trigru (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU (default: torch's own; with --tiny 1)")
    parser.add_argument("--seconds", type=float, help="time for the rounds of one row, about")
    parser.add_argument("--minutes", type=float, help="leave out what has not begun by then")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(default: out/bench/ and the time)")
    parser.add_argument("--no-figures", action="store_true", help="rows and table alone")
    fitting = parser.add_argument_group("instead of measuring")
    fitting.add_argument("--fit", type=Path, metavar="ROWS", help="fit the planner's constants to rows of suite layer")
    fitting.add_argument("--write", action="store_true", help="with --fit: store them where the planner reads them")


def run(args: argparse.Namespace) -> int:
    """Measure, or fit; the exit code is 1 where a suite failed or a result of trigru was wrong."""
    if args.fit is not None:
        return fit.run(args.fit, write=args.write)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("device: expected one that torch can use, got cuda; torch.cuda.is_available() is false")
        return 2
    if args.threads or args.size == "tiny":
        torch.set_num_threads(args.threads or 1)
    request = _request(args, device)
    if wrong := [suite for suite in request.suites if suite in ON_CPU_ONLY and device != "cpu"]:
        print(f"suite: expected one that runs on {device}, got {wrong[0]}; give --device cpu")
        return 2
    outcome = execute(request)
    report.show(outcome)
    if not args.no_figures:
        _draw(outcome.rows, request.out)
    print(f"results: {request.out}")
    return 1 if outcome.failed or any("error" in row and row["peer"] == "nn.GRU" for row in outcome.rows) else 0


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
    now = datetime.datetime.now(datetime.timezone.utc)
    seconds = SECONDS_ON_CUDA if device == "cuda" else SECONDS[args.size]
    return Request(
        choice,
        suites,
        args.direction or default_directions(device),
        [PEERS[name] for name in args.peers] if args.peers else default_peers(device),
        seconds if args.seconds is None else args.seconds,
        MINUTES.get((device, args.size)) if args.minutes is None else args.minutes,
        args.out or Path("out", "bench", f"{now:%Y%m%d-%H%M%S}"),
        conditions.of_run(device),
    )


def _draw(rows: Sequence[dict], out: Path) -> None:
    try:
        from .report import figures
    except ImportError as error:
        print(f"no figures: {error}")
        return
    for path in figures.draw(rows, out):
        print(f"figure: {path}")
