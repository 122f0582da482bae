"""Calls that fail at a place of one's choice: at the n-th operation that this package's code begins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trigru

PACKAGE = str(Path(trigru.__file__).parent)
KERNELS = str(Path(trigru.kernels.__file__).resolve().parent)


class Place:
    """Counts what is called out of this package's code, and raises at one of these calls."""

    def __init__(self, at: int | None, error: type[BaseException], files: tuple[str, ...]) -> None:
        self.at, self.error, self.files, self.calls = at, error, files, 0

    def __call__(self, frame, event: str, function: object) -> None:  # type: ignore[no-untyped-def]
        if event != "c_call" or not frame.f_code.co_filename.startswith(self.files):
            return
        name = getattr(function, "__name__", "")
        # Of a lock's end: nothing allocates there, and Python has no answer to Ctrl-C there.
        if name in ("__exit__", "setprofile"):
            return
        self.calls += 1
        if self.calls - 1 == self.at:
            raise self.error(f"at call {self.at}, of {name}")


@contextmanager
def failing(at: int | None, error: type[BaseException], files: tuple[str, ...] = (PACKAGE, KERNELS)) -> Iterator[Place]:
    """Within the block call number `at` of an operation out of this package fails before it begins, in this thread;
    None: none does, all are counted. What allocates is among them, as is whatever Ctrl-C may interrupt. files: out of
    which code, by the beginnings of their names."""
    place, before = Place(at, error, files), sys.getprofile()
    sys.setprofile(place)
    try:
        yield place
    finally:
        sys.setprofile(before)
