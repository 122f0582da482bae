"""What holds for every call, of some random ones; soak.py asks it of as many as one likes."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import properties
import property_cases
import pytest
import torch
from accuracy import Overflowing
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
# In 16 bits too, where the sums are float32's.
NARROW = replace(OVERFLOWS, batch=2, hidden_size=9, rows="packed", layout="contiguous", dtype=torch.bfloat16)
# Beside an argument that is infinite: what overflows may leave finite what is NaN in float64, or have another sign.
INFINITE = replace(
    OVERFLOWS,
    seq_len=10,
    batch=3,
    input_size=14,
    hidden_size=10,
    bidirectional=True,
    biases=(True, True),
    rows="packed",
    variant="cho",
    scales=(16, 0, 26, 0, -7),
    special=("w_hh", math.inf),
    seed=234323117,
)
# A derivative at a peak narrower than the digits of 16 bits, which are too few to find it.
PEAK = replace(
    OVERFLOWS,
    seq_len=5,
    input_size=43,
    hidden_size=17,
    num_layers=3,
    batch_first=True,
    rows="packed",
    has_hx=False,
    layout="contiguous",
    dtype=torch.float16,
    variant="cho",
    memory="keep",
    through="h_n",
    scales=(0, 0, 2, 0, 0),
    order="input changed in place",
    seed=3358,
)
# Derivatives of a layer above overflow, behind a clip that lets none of them pass.
CLIPPED = replace(
    OVERFLOWS,
    seq_len=3,
    input_size=2,
    hidden_size=1,
    num_layers=3,
    has_hx=False,
    layout="contiguous",
    options=("clip",),
    memory="keep",
    scales=(0, 0, 14, 0, 0),
)
# A function whose steps are torch's own, and so are its infinities' ways.
BY_TORCH = replace(
    OVERFLOWS,
    kind="function",
    hidden_size=1,
    has_hx=False,
    layout="contiguous",
    memory="keep",
    scales=(0, 0, 0, 0, 0),
    special=("upstream", math.inf),
)
QUICK = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@settings(max_examples=15, **QUICK)
@given(property_cases.cases())
@example(OVERFLOWS)
@example(NARROW)
@example(INFINITE)
@example(PEAK)
@example(BY_TORCH)
@example(replace(BY_TORCH, reverse=True))
@example(replace(BY_TORCH, batch=3, seq_len=4, biases=(False, True), rows="packed"))
@example(CLIPPED)
@example(replace(CLIPPED, variant="cho"))
@example(replace(CLIPPED, options=("clip", "attention"), num_layers=1, scales=(0, 0, 14, 0, 30)))
def test_any_call(case):
    properties.check(case)


@pytest.mark.interpretable
@pytest.mark.skipif(not INTERPRETED, reason="in Triton's interpreter")
@settings(max_examples=4, **QUICK)
@given(property_cases.cases(kernels=True))
def test_any_call_of_kernels(case):
    properties.check(case)


def test_what_may_overflow_in_some_order():
    a = torch.tensor([[1e19, 1e19]])
    b = torch.tensor([[6e18, 6e18, -6e18, 1e10, math.nan], [1e-9, -6e18, 0.0, -1e10, 6e18]])
    for otherwise in (math.nan, -math.inf, 5.0):
        with Overflowing(otherwise):
            found, doubled = a @ b, 2 * torch.tensor([3e38, -3e38, 2e36])
            rows = torch.nn.functional.layer_norm(torch.tensor([[2e19, 1e19], [2e17, 1e17]]), (2,))
        wanted = torch.tensor([[math.inf, otherwise, -math.inf, 0.0, math.nan]])
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
        normalised = torch.tensor([[otherwise, otherwise], [1.0, -1.0]])
        torch.testing.assert_close(rows, normalised, equal_nan=True)
        torch.testing.assert_close(doubled, torch.tensor([math.inf, -math.inf, 4e36]))


SMALL = replace(OVERFLOWS, seq_len=9, batch=2, input_size=4, biases=(True, True), layout="contiguous", scales=(0,) * 5)


@pytest.mark.skipif(INTERPRETED, reason="torch operations need no interpreter")
@pytest.mark.parametrize(
    ("case", "mistake", "said"),
    [
        (SMALL, lambda x: x * (1 + 2.0**-14), "off by"),
        (replace(SMALL, scales=(0, 0, 2, 0, 0)), lambda x: x * 1.01, "off by"),
        (replace(SMALL, scales=(0, 9, 10, 0, 0)), lambda x: x * 2.0**100 * 2.0**100, "not finite"),
        (replace(SMALL, special=("hx", math.inf)), lambda x: x.nan_to_num(), "finite where"),
        (
            replace(SMALL, special=("hx", math.inf), seed=3),
            lambda x: torch.where(x.isinf(), torch.nan, x),
            "not as infinite",
        ),
    ],
)
def test_mistakes_are_noticed(case, mistake, said, monkeypatch):
    """Of the results, where the dtype has digits of them, and by overflows that no order of sums has."""
    right = properties.by_call

    def by_call(case, data, leaves, cls=None):
        outputs = right(case, data, leaves, cls)
        return outputs if cls else (mistake(outputs[0]), outputs[1])

    properties.check(case)
    monkeypatch.setattr(properties, "by_call", by_call)
    with pytest.raises(AssertionError, match=said):
        properties.check(case)


LATE = """
import soak

def check(case):
    batches.end = 0
    raise AssertionError("found at the end")

soak.check, batches = check, soak.Soak(1, device=False)
batches.batch(1, False)
assert batches.failures == 1
"""


@pytest.mark.slow
def test_a_failure_as_the_soak_ends_is_not_taken_for_one_that_comes_and_goes():
    done = subprocess.run(
        [sys.executable, "-c", LATE], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert "AssertionError: found at the end" in done.stdout
    assert "Flaky" not in done.stdout
