"""What holds for every call, of some random ones; soak.py asks it of as many as one likes."""

from __future__ import annotations

import properties
import property_cases
import pytest
from conftest import INTERPRETED
from hypothesis import HealthCheck, given, settings

QUICK = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@settings(max_examples=15, **QUICK)
@given(property_cases.cases())
def test_any_call(case):
    properties.check(case)


@pytest.mark.interpretable
@pytest.mark.skipif(not INTERPRETED, reason="in Triton's interpreter")
@settings(max_examples=4, **QUICK)
@given(property_cases.cases(kernels=True))
def test_any_call_of_kernels(case):
    properties.check(case)
