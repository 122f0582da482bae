"""Numbers that sum up repeated measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

QUANTILES = {"p20": 0.2, "p50": 0.5, "p80": 0.8}


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile, by name."""
    found = torch.tensor(list(values), dtype=torch.float64).quantile(torch.tensor(list(QUANTILES.values())).double())
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product."""
    return math.exp(sum(map(math.log, values)) / len(values))
