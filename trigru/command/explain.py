"""`trigru explain`: the schedules for a layer on a GPU that need not be there, with what each would cost."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import torch

from ..planning.cost import Layer
from ..planning.devices import PRESETS, preset
from ..planning.plan import DIRECTIONS, candidates
from ..reference import VARIANTS
from .tables import markdown

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `trigru explain`."""
    parser.add_argument("--device", default="h100", help=f"one of {', '.join(PRESETS)} (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=512, metavar="SIZE", help="hidden_size (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="sequences (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="(default: %(default)s)")
    parser.add_argument("--variant", choices=VARIANTS, default="torch", help="(default: %(default)s)")
    parser.add_argument("--direction", choices=DIRECTIONS, default="forward", help="(default: %(default)s)")
    parser.add_argument("--tf32", action="store_true", help="multiply fp32 in TF32, as torch's RNNs may")


def run(args: argparse.Namespace) -> int:
    """Print the candidates for a layer on a device that need not be there, the chosen one first."""
    device = preset(args.device)
    precision = "tf32" if args.tf32 else "ieee"
    layer = Layer(args.variant, DTYPES[args.dtype], args.batch, args.hidden, precision=precision)
    headings = ["schedule", "tiles", "programs", "turns", "launches", "exchanges", "L2 bytes", "us a step", "why not"]
    rows = [
        [
            found.schedule,
            ", ".join(f"{name} {value}" for name, value in asdict(found.config).items()),
            found.step.programs,
            found.turns,
            found.step.launches,
            found.step.exchanges,
            found.step.total_l2_bytes,
            found.seconds * 1e6,
            found.obstacle or "",
        ]
        for found in candidates(device, layer, args.direction)
    ]
    print(f"variant {args.variant!r}, {args.dtype}, hidden_size {args.hidden}, batch {args.batch} on {device.name}")
    print(f"Predictions from counts and {device.origin} rates, not measurements.")
    print(f"Counts are of one {args.direction} step.\n")
    print(markdown(headings, rows))
    return 0
