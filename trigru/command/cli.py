"""The command line: `trigru COMMAND`, also `python -m trigru COMMAND`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__

# name: (module, help). The module has a docstring, which `trigru NAME --help` shows, `add_arguments(parser)` and
# `run(args)`, which returns the exit code; it is imported only for its own command.
COMMANDS = {
    "bench": ("trigru.bench.command", "paired comparisons with nn.GRU and others: times, memory, work"),
    "check": (
        "trigru.command.check",
        "every schedule that can run here against the float64 reference, with an exit code",
    ),
    "demo": ("trigru.demo", "train a GRU on spoken vowels, check its gradients, draw what its gates do"),
    "explain": (
        "trigru.command.explain",
        "the schedules for a layer on a GPU that need not be there, with what each would cost",
    ),
    "info": ("trigru.command.info", "versions, devices, and which schedules run here"),
    "inspect": (
        "trigru.command.inspect",
        "compile the kernels for a GPU that need not be there: registers, spills, instructions",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (without the program's name; the process's own if None) names.

    Returns:
        The exit code: 0 for success.

    Raises:
        SystemExit: --help, --version, or arguments that do not fit, as argparse does.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="trigru", description="Fast GRU training for PyTorch.")
    parser.add_argument("--version", action="version", version=f"trigru {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if argv[:1] == [name]:
            module = import_module(module_name)
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    return int(args.run(args))
