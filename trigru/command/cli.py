"""The command line: `trigru COMMAND`, also `python -m trigru COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from .options import Parser, Refused, Unable

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
    "tune": ("trigru.command.tune", "time what can run a layer on this machine, and keep the fastest"),
    "warm": ("trigru.command.warm", "compile a GRU's kernels ahead of time into Triton's cache on disk"),
}
INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells count: 128 and the signal's number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (without the program's name; the process's own if None) names; its help without one.

    Returns:
        The exit code: 0 for success, 1 for what failed or cannot be done here, 2 for options that do not fit, 130 when
        interrupted, 141 when nobody reads the output any more.

    Raises:
        SystemExit: --help or --version, as argparse does.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = argv[0] if argv and argv[0] in COMMANDS else ""
    try:
        parser = _parser(name)
        if not argv:
            parser.print_help()
            return 0
        args, rest = parser.parse_known_args(argv)
        if rest:
            raise Refused(f"unrecognized arguments: {' '.join(rest)} ({_called(name)} --help has the options)")
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except (Refused, Unable) as error:
        print(f"{_called(name)}: {error}", file=sys.stderr)
        return 2 if isinstance(error, Refused) else 1
    except KeyboardInterrupt:
        print(f"\n{_called(name)}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer has nowhere else to go
        return BROKEN_PIPE


def _called(name: str) -> str:
    return f"trigru {name}".rstrip()


def _parser(name: str) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of the one that is named."""
    parser = Parser(prog="trigru", description="Fast GRU training for PyTorch.")
    parser.add_argument("-V", "--version", action="version", version=f"trigru {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for each, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(each, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if each == name:
            module = import_module(module_name)
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
