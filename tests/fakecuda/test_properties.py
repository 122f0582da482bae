"""Random calls on a device: what tests/soak.py asks of as many as one likes with --device cuda."""

from __future__ import annotations

import properties
import property_cases
import property_runs
import torch
from hypothesis import HealthCheck, given, settings


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(property_cases.cases(kernels=True, device=True))
def _any_call(case):
    properties.check(case)


def test_any_call(monkeypatch):
    monkeypatch.setattr(property_runs, "DEVICE", "cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    _any_call()
