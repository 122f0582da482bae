"""Time what can run a layer on this machine, and keep the fastest: the schedules with a few tile sizes each and cuDNN,
or on a CPU the eager schedule and torch's own, forward without gradients and a training step. For a layer of yours call
trigru.tune(layer, input) instead."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ..modules import GRU
from ..planning import measured
from ..planning.plan import MEMORY
from ..reference import VARIANTS
from ..tune import Tuned, tune
from .explain import DTYPES
from .machine import devices_named
from .options import Refused, Unable, at_least
from .tables import wrapped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `trigru tune`."""
    size = at_least(1)
    parser.add_argument("--device", help="cpu, cuda:0, ... (default: cuda where there is one, else cpu)")
    parser.add_argument("--hidden", type=size, default=512, metavar="SIZE", help="hidden_size (default: %(default)s)")
    parser.add_argument("--input", type=size, metavar="SIZE", help="input_size (default: hidden_size)")
    parser.add_argument("--batch", type=size, nargs="+", default=[64], metavar="SIZE", help="sequences (default: 64)")
    parser.add_argument("--seq-len", type=size, nargs="+", default=[256], metavar="STEPS", help="(default: 256)")
    parser.add_argument("--layers", type=size, default=1, help="(default: %(default)s)")
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--batch-first", action="store_true")
    parser.add_argument("--no-bias", action="store_true")
    parser.add_argument("--dropout", type=float, default=0.0, metavar="P", help="between layers (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="(default: %(default)s)")
    parser.add_argument("--variant", choices=VARIANTS, default="torch", help="(default: %(default)s)")
    parser.add_argument("--memory", choices=MEMORY, default="keep", help="(default: %(default)s)")
    parser.add_argument("--packed", action="store_true", help="PackedSequences, of lengths from half of --seq-len on")
    parser.add_argument("--inference", action="store_true", help="calls without gradients alone")
    parser.add_argument(
        "--seconds", type=at_least(1e-3, float), default=1.0, help="to time each pass of each shape (default: 1)"
    )
    place = parser.add_mutually_exclusive_group()
    stored = f"store in the file that {measured.VARIABLE} names, else in trigru's own folder, for every later process"
    place.add_argument("--write", action="store_true", help=stored)
    place.add_argument("--out", type=Path, metavar="FILE", help=f"store there; {measured.VARIABLE}=FILE takes it")
    parser.add_argument("--json", action="store_true", help="print a list of objects: key, rows and refused")


def run(args: argparse.Namespace) -> int:
    """Measure, print, store."""
    device = devices_named(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))[0]
    out = measured.place(device) if args.write else args.out
    if out is not None:
        _check_place(out, "--write" if args.write else "--out")
    try:
        layer = GRU(
            args.input or args.hidden,
            args.hidden,
            args.layers,
            bias=not args.no_bias,
            batch_first=args.batch_first,
            dropout=args.dropout,
            bidirectional=args.bidirectional,
            device=device,
            dtype=DTYPES[args.dtype],
            variant=args.variant,
            memory=args.memory,
        )
    except ValueError as error:  # of dropout, which the module checks
        raise Refused(f"--dropout: {error}") from None
    found = Tuned()
    for batch in args.batch:
        for seq_len in args.seq_len:
            with torch.set_grad_enabled(not args.inference):
                try:
                    found.update(tune(layer, _input(layer, batch, seq_len, packed=args.packed), seconds=args.seconds))
                except RuntimeError as error:
                    raise Unable(" ".join(str(error).split())) from None
    if out is not None:
        measured.store(out, found)
    if args.json:
        print(json.dumps([measured.flat(*item) for item in found.items()]))
        return 0
    for line in str(found).splitlines():
        print(wrapped(line, indent="    ", first=""))
    if out is not None:
        print(wrapped(f"stored in {out}"))
    return 0


def _check_place(path: Path, option: str) -> None:
    """Before the work, not after it."""
    try:
        measured.store(path, {})
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Refused(f"{option}: expected a file of tables that can be written, got {path} ({why})") from None


def _input(layer: GRU, batch: int, seq_len: int, *, packed: bool) -> Tensor | PackedSequence:
    sizes = (batch, seq_len) if layer.batch_first else (seq_len, batch)
    like = next(layer.parameters())
    x = torch.randn(*sizes, layer.input_size, dtype=like.dtype, device=like.device)
    if not packed:
        return x
    lengths = torch.linspace(seq_len, (seq_len + 1) // 2, batch).long()
    return pack_padded_sequence(x, lengths, layer.batch_first)
