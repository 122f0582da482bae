"""Say which schedule "auto" takes for a layer on a device that need not be there, and what each would cost.

With --workloads: for the GRUs of 31 models that people run."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch

from ..checks import layer_of
from ..planning.candidates import DIRECTIONS, candidates
from ..planning.cost import Layer
from ..planning.devices import PRESETS, Device, preset
from ..planning.plan import MICRO, Site, measured_on, plan, planned
from ..planning.stages import Choice, Plan
from ..planning.together import Stack, together, why_apart
from ..planning.triton_state import why_unusable
from ..reference import VARIANTS
from . import explain_workloads
from .options import Refused, at_least
from .tables import fitted, wrapped

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OF_A_LAYER = {
    "hidden": 512,
    "batch": 64,
    "seq_len": 256,
    "layers": 1,
    "dtype": "bf16",
    "variant": "torch",
    "direction": "forward",
    "tf32": False,
}
"""Options that describe a layer, and their defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `trigru explain`."""
    names = ", ".join([*PRESETS, "cpu"])
    size = at_least(1)
    parser.add_argument("--device", default="h100", help=f"one of {names} (default: %(default)s)")
    parser.add_argument("--hidden", type=size, metavar="SIZE", help="hidden_size (default: %(default)s)")
    parser.add_argument("--batch", type=size, metavar="SIZE", help="sequences (default: %(default)s)")
    parser.add_argument("--seq-len", type=size, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--layers", type=size, help="layers of the same size (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="(default: %(default)s)")
    parser.add_argument("--variant", choices=VARIANTS, help="(default: %(default)s)")
    parser.add_argument("--direction", choices=DIRECTIONS, help="(default: %(default)s)")
    parser.add_argument("--tf32", action="store_true", help="multiply fp32 in TF32, as torch's RNNs may")
    parser.set_defaults(**OF_A_LAYER)
    parser.add_argument(
        "--workloads",
        action="store_true",
        help="instead of one layer: 31 models that people run, both passes of each, with launches and turns",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; with --workloads a list of them")


def run(args: argparse.Namespace) -> int:
    """Print what "auto" takes, and the schedules for the layer, those that can run first."""
    if args.tf32 and args.dtype != "fp32":
        raise Refused(f"--tf32: is for --dtype fp32, got {args.dtype}")
    on_cpu = args.device.lower() == "cpu"
    device = None if on_cpu else _preset(args.device)
    if args.workloads:
        if beside := [name for name, usual in OF_A_LAYER.items() if getattr(args, name) != usual]:
            raise Refused(f"--workloads: expected no sizes of a layer beside it, got --{beside[0].replace('_', '-')}")
        explain_workloads.show(device, as_json=args.json)
        return 0
    plan, rows = (_on_cpu(args), []) if device is None else _on_gpu(args, device)
    asked = {
        "device": "cpu" if device is None else device.name,
        **{name: getattr(args, name) for name in ("variant", "dtype", "tf32", "direction", "layers")},
        **{"hidden_size": args.hidden, "batch": args.batch, "seq_len": args.seq_len},
    }
    if args.json:
        origin = None if device is None else device.origin
        print(json.dumps({**asked, "auto": plan.schedule, "reason": plan.reason, "rates": origin, "schedules": rows}))
        return 0
    numbers = "fp32 multiplied in TF32" if args.tf32 else args.dtype
    sizes = f"hidden_size {args.hidden}, batch {args.batch}, {args.seq_len} steps"
    layers = f", {args.layers} layers" if args.layers > 1 else ""
    print(wrapped(f"variant {args.variant!r}, {numbers}, {sizes}{layers} on {asked['device']}"))
    print(wrapped(f'schedule="auto" takes {plan.schedule!r}: {plan.reason}'))
    if device is not None:
        _print_schedules(args, device, rows)
    return 0


def _preset(name: str) -> Device:
    try:
        return preset(name)
    except ValueError:
        amd = "; of AMD GPUs no rates are known: run trigru info on the machine" if _is_amd(name) else ""
        raise Refused(f"--device: expected one of {', '.join(PRESETS)}, cpu, got {name!r}{amd}") from None


def _is_amd(name: str) -> bool:
    return name.lower().startswith(("mi", "gfx", "rx", "radeon", "amd"))


def _on_cpu(args: argparse.Namespace) -> Plan:
    """What a layer in training takes, as a call would."""
    dtype, device = DTYPES[args.dtype], torch.device("cpu")
    layer = layer_of(args.hidden, args.hidden, num_layers=args.layers, variant=args.variant)
    site = Site(device, dtype, args.seq_len, args.batch, packed=False, recording=True, plain=True)
    return plan(layer, site, args.direction)


def _on_gpu(args: argparse.Namespace, device: Device) -> tuple[Choice | Plan, list[dict[str, Any]]]:
    precision = "tf32" if args.tf32 else "ieee"
    layer = Layer(args.variant, DTYPES[args.dtype], args.batch, args.hidden, precision=precision)
    rows = []
    for found in candidates(device, layer, args.direction):
        step = found.seconds * MICRO if found.obstacle is None else None
        in_graph = found.graph_seconds * MICRO if found.obstacle is None else None
        rows.append(
            {
                "schedule": found.schedule,
                "us_a_step": step,
                "us_a_step_in_a_graph": in_graph,
                "us_for_all": None if step is None else step * args.seq_len * args.layers,
                "why_not": found.obstacle,
                "programs": found.step.programs,
                "turns": found.turns,
                "batch_tiles_a_program": found.step.tiles,
                "launches": found.step.launches,
                "exchanges": found.step.exchanges,
                "l2_bytes": found.step.total_l2_bytes,
                "tiles": asdict(found.config),
            }
        )
    record = layer_of(args.hidden, args.hidden, num_layers=args.layers, variant=args.variant)
    site = Site(torch.device("cuda", 0), layer.dtype, args.seq_len, args.batch, False, recording=True, plain=True)
    winner = measured_on(device, record, site, args.direction, precision)
    if winner is not None:
        return winner, rows
    choice = planned("auto", device, layer, args.direction)
    if choice.schedule == "eager":
        return choice, rows
    stack = Stack(args.layers, args.seq_len, why_apart(record, args.direction))
    return together(choice, device, layer, stack, args.direction), rows


def _print_schedules(args: argparse.Namespace, device: Device, rows: list[dict[str, Any]]) -> None:
    print()
    print(
        wrapped(
            f"Predictions from counts and {device.origin} rates, not measurements: they rank schedules. What nn.GRU "
            f"takes is not predicted; trigru bench compares on a machine with a GPU. Counts are of one "
            f"{args.direction} step; the time of all steps is without the product of the inputs."
        )
    )
    if (reason := why_unusable()) is not None:
        print(wrapped(f"Here no kernel can be compiled: {reason}."))
    headings = [
        "schedule",
        "us a step",
        "in a graph",
        "us for all",
        "programs",
        "turns",
        "batch tiles a program",
        "launches",
        "exchanges",
        "L2 bytes",
    ]
    able = [row for row in rows if row["why_not"] is None]
    if able:
        names = ("programs", "turns", "batch_tiles_a_program", "launches", "exchanges", "l2_bytes")
        first = ("schedule", "us_a_step", "us_a_step_in_a_graph", "us_for_all")
        table = [[*(x[name] for name in first), *(x[name] for name in names)] for x in able]
        print(f"\n{fitted(headings, table)}\n")
        for row in able:
            tiles = ", ".join(f"{name} {value}" for name, value in row["tiles"].items())
            print(wrapped(f"{row['schedule']}: tiles {tiles}", indent="    ", first=""))
    for row in rows:
        if row["why_not"] is not None:
            print(wrapped(f"{row['schedule']} cannot run: {row['why_not']}", indent="    ", first=""))
