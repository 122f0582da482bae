"""Why this process was started, as far as its arguments say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import PurePath

WITHOUT_TORCH: tuple[list[str], ...] = ([], ["-h"], ["--help"], ["-V"], ["--version"])


def only_for_help(argv: Sequence[str] | None = None, original: Sequence[str] | None = None) -> bool:
    """Whether the process is the command `trigru`, or `python -m trigru`, and prints its help or version alone.

    argv, original: the process's own `sys.argv` and `sys.orig_argv` if None. While Python looks for the module of -m,
    `sys.argv[0]` is "-m"."""
    argv = getattr(sys, "argv", None) or [""] if argv is None else argv
    original = sys.orig_argv if original is None else original
    name, arguments = argv[0], list(argv[1:])
    as_module = name == "-m" and list(original[len(original) - len(arguments) - 2 :]) == ["-m", "trigru", *arguments]
    return arguments in WITHOUT_TORCH and (as_module or PurePath(name).stem == "trigru")
