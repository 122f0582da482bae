"""python -m trigru.bench.first [--tiny] --out DIR PART: a part of the first minutes on a GPU, or "summary"."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..measuring import conditions
from .parts import NAMES, Parts
from .rows import Rows, read
from .summary import summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run a part; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trigru.bench.first", description=__doc__)
    parser.add_argument("part", choices=(*NAMES, "summary"))
    parser.add_argument("share", nargs="?", help="of warm: k/n, the k-th of n shares of the work")
    parser.add_argument("--tiny", action="store_true", help="sizes that take no time: does everything run?")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where rows.jsonl is")
    args = parser.parse_args(argv)
    path = args.out / "rows.jsonl"
    if args.part == "summary":
        print(summary(read(path)))
        return 0
    if not torch.cuda.is_available():
        print("first: expected a GPU that torch can use, torch.cuda.is_available() is false", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    shared = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": conditions.commit()}
    parts = Parts(Rows(path, shared), args.tiny)
    if args.part == "warm":
        parts.warm(args.share)
    else:
        getattr(parts, args.part)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
