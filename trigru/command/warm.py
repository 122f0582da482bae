"""Compile a GRU's kernels ahead of time into Triton's cache on disk, for the GPU at hand or one that need not be there,
as while an image for a container is built; a program that then runs such a GRU compiles nothing. For a model of yours
call trigru.warm(model, ...) instead."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from ..modules import GRU
from ..options import PerCall
from ..planning.devices import PRESETS
from ..planning.plan import MEMORY, SCHEDULES
from ..reference import VARIANTS
from ..warm import warm
from .explain import DTYPES
from .options import Refused, Unable, at_least
from .tables import wrapped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `trigru warm`."""
    size = at_least(1)
    names = ", ".join(PRESETS)
    parser.add_argument("--device", help=f"one of {names}, which need not be there (default: the GPU at hand)")
    parser.add_argument("--hidden", type=size, default=512, metavar="SIZE", help="hidden_size (default: %(default)s)")
    parser.add_argument("--batch", type=size, nargs="+", default=[64], metavar="SIZE", help="sequences (default: 64)")
    parser.add_argument("--layers", type=size, default=1, help="layers of the same size (default: %(default)s)")
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--no-bias", action="store_true")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="(default: %(default)s)")
    parser.add_argument("--variant", choices=VARIANTS, default="torch", help="(default: %(default)s)")
    parser.add_argument("--schedule", choices=SCHEDULES, default="auto", help="(default: %(default)s)")
    parser.add_argument("--memory", choices=MEMORY, default="keep", help="(default: %(default)s)")
    parser.add_argument("--packed", action="store_true", help="for PackedSequences, instead of padded ones")
    parser.add_argument(
        "--given", nargs="+", default=[], choices=PerCall._fields, help="what calls are given each step"
    )
    for name in ("zoneout", "recurrent-dropout", "clip"):
        parser.add_argument(f"--{name}", type=float, metavar="X", help="of trigru.GRU; one stands for all")
    parser.add_argument("--jobs", type=size, metavar="N", help="kernels compiled at once (default: all CPUs)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Compile, and say what and where."""
    options = {name: getattr(args, name) for name in ("zoneout", "recurrent_dropout", "clip")}
    try:
        layer = GRU(
            args.hidden,
            args.hidden,
            args.layers,
            bias=not args.no_bias,
            bidirectional=args.bidirectional,
            device="meta",
            dtype=DTYPES[args.dtype],
            variant=args.variant,
            schedule=args.schedule,
            memory=args.memory,
            **{name: x for name, x in options.items() if x is not None},
        )
        names = warm(layer, *args.batch, device=args.device, packed=args.packed, jobs=args.jobs, given=args.given)
    except ValueError as error:
        raise Refused(f"--{error}") from None
    except RuntimeError as error:
        raise Unable(str(error)) from None
    folder = _cache()
    if args.json:
        print(json.dumps({"kernels": names, "folder": str(folder)}))
        return 0
    if not names:
        print("nothing to compile: torch operations run such a layer")
        return 0
    listed = ", ".join(name if count == 1 else f"{name} ({count})" for name, count in Counter(names).items())
    print(wrapped(f"{len(names)} binaries in {folder}: {listed}"))
    return 0


def _cache() -> Path:
    import triton

    return Path(triton.knobs.cache.dir)
