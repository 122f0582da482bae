"""What holds for every call, of some random ones; soak.py asks it of as many as one likes."""

from __future__ import annotations

import properties
import property_cases
import pytest
import torch
from conftest import INTERPRETED
from hypothesis import HealthCheck, example, given, settings

# Of a product some overflow, and torch's own sum of them is infinite or NaN as the matrix lies in memory.
OVERFLOWS = property_cases.Case(
    kind="module",
    seq_len=1,
    batch=1,
    input_size=1,
    hidden_size=3,
    num_layers=1,
    bidirectional=False,
    reverse=False,
    biases=(False, False),
    batch_first=False,
    rows="padded",
    has_hx=True,
    layout="transposed",
    dtype=torch.float32,
    variant="torch",
    options=(),
    memory="recompute",
    schedule="auto",
    through="both",
    scales=(0, 9, 30, 0, 0),
    special=None,
    order="once",
    seed=0,
)
QUICK = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@settings(max_examples=15, **QUICK)
@given(property_cases.cases())
@example(OVERFLOWS)
def test_any_call(case):
    properties.check(case)


@pytest.mark.interpretable
@pytest.mark.skipif(not INTERPRETED, reason="in Triton's interpreter")
@settings(max_examples=4, **QUICK)
@given(property_cases.cases(kernels=True))
def test_any_call_of_kernels(case):
    properties.check(case)
