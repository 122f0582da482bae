"""Suite "work": work of a step of the compiled kernels, executed from their PTX. Counts, not times; from a checkout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from typing import Any

from ..cases.grid import Choice
from ..measuring.budget import Deadline
from . import work, work_peers

ARCH = 90
# hidden_size, batch; "tiny" is for seeing that it runs
SIZES = {"tiny": [(32, 16)], "quick": [(256, 16)], "full": [(512, 16), (1024, 16)]}
VARIANTS = ("torch", "cho")  # the kernels of "chung" are those of "cho"


def rows(choice: Choice, deadline: Deadline, left_out: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each kernel; `ratio` is the floor of the bytes by what was loaded, 1 at best."""
    sizes = SIZES.get(choice.size, SIZES["full"])
    if choice.hidden_sizes or choice.batches:
        sizes = list(product(choice.hidden_sizes or (512,), choice.batches or (16,)))
    for (hidden_size, batch), dtype, schedule, variant in product(
        sizes, choice.dtypes or ("bf16",), work.MEASURES, choice.variants or VARIANTS
    ):
        if deadline.passed():
            left_out.append(f"work: {schedule} {variant} {dtype}, hidden_size {hidden_size}, batch {batch}")
            continue
        if schedule == "persistent" and dtype == "fp32":
            left_out.append(f"work: {schedule} {variant} {dtype}: it multiplies float32 in TF32 only")
            continue
        for counted in work.MEASURES[schedule](ARCH, variant, dtype, hidden_size, batch):
            row = asdict(counted)
            yield {"suite": "work", "peer": "floor", **row, "ratio": row["load_floor"] / row["load_bytes"]}
    yield from work_peers.rows(ARCH, sizes)
