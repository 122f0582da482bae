"""Rows of the first minutes: a line of JSON each, in a file that a later run goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Rows:
    """The rows in `path`; new ones are appended at once."""

    def __init__(self, path: Path, shared: dict[str, Any]):
        self.path, self.shared = path, shared
        self.rows = read(path)

    def have(self, **fields: Any) -> bool:
        """Whether a row of this commit and device with these fields is there, and has not failed."""
        wanted = self.shared | fields
        return any("failed" not in row and all(row.get(k) == v for k, v in wanted.items()) for row in self.rows)

    def write(self, **row: Any) -> None:
        """Append, and print."""
        row = {key: value for key, value in row.items() if value is not None}
        self.rows.append(row | self.shared)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | self.shared) + "\n")
        said = " ".join(f"{k}={f'{v:.4g}' if isinstance(v, float) else v}" for k, v in row.items())
        print(said, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where it is not there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def attempt(what: Callable[[], T]) -> tuple[T | None, str | None]:
    """What it returns, or why there is nothing: a measurement that fails is a row, and the next one runs."""
    try:
        return what(), None
    except Exception as failure:
        torch.cuda.synchronize()
        return None, f"{type(failure).__name__}: {failure}"[:300]
