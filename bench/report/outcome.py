"""What a run came to: the rows, and all that there is to say of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """What came out of a run."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    skipped: dict[tuple[str, str], int] = field(default_factory=dict)  # (peer, reason): cases
    failed: dict[str, str] = field(default_factory=dict)  # suite: error
    latencies: dict[str, float] = field(default_factory=dict)
