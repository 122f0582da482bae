"""Options of the command line: what they take, checked before any work, and refused in one line."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Refused(Exception):
    """What was asked for does not fit; its text is one line. Exit code 2."""


class Unable(Exception):
    """What was asked for cannot be done here; its text is one line. Exit code 1."""


class Parser(argparse.ArgumentParser):
    """Refuses in one line, where argparse prints the usage too."""

    def error(self, message: str) -> NoReturn:
        """Raise Refused."""
        raise Refused(f"{message} ({self.prog} --help has the options)")


def at_least(least: float, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """A type for argparse: numbers of `kind` from `least` on."""

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value < float("inf"):  # a NaN is neither
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} of at least {least}, got {text!r}")
        return value

    return number


def seed(text: str) -> int:
    """A type for argparse: of torch's random numbers."""
    try:
        value = int(text)
    except ValueError:
        value = 1 << 64
    if not -(1 << 63) <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"expected a whole number from -2**63 to 2**64 - 1, got {text!r}")
    return value


def place_to_write(option: str, folder: Path) -> None:
    """Make the folder, and raise Refused unless files can be written in it: before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise Refused(f"{option}: expected a place that can be written in, got {folder} ({why})") from None
