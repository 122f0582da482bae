"""The kernels' tanh and sigmoid over their whole range, in the interpreter and from PTX."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from trigru.kernels import gates
from trigru.kernels.launch import launch

pytestmark = pytest.mark.interpretable

BLOCK = 4096


@triton.jit
def both(x_ptr, tanh_ptr, sigmoid_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(tanh_ptr + i, gates.tanh(x))
    tl.store(sigmoid_ptr + i, gates.sigmoid(x))


def values_of(x):
    """tanh and sigmoid of x, whose length is a multiple of BLOCK."""
    results = torch.empty_like(x), torch.empty_like(x)
    args = {"x_ptr": x, "tanh_ptr": results[0], "sigmoid_ptr": results[1]}
    launch(both, (len(x) // BLOCK,), args, {"BLOCK": BLOCK}, num_warps=4, num_stages=1)
    return results


def test_tanh_within_2_units_in_the_last_place(on_cpu):
    """From 1e-38 to 20 in steps of a few in a thousand, finer where the two formulas meet, both signs."""
    x = torch.cat([torch.logspace(-38, 1.30103, 9 * BLOCK // 2), torch.linspace(0.4, 4, 7 * BLOCK // 2)])
    x = torch.cat([x, -x])
    with on_cpu():
        got, _ = values_of(x)
    want = x.double().tanh()
    unit = torch.nextafter(want.abs().float(), torch.tensor(2.0)).double() - want.abs().float().double()
    assert ((got.double() - want).abs() / unit).max() <= 2


def test_sigmoid_as_exact_as_its_argument(on_cpu):
    """A unit or two where x > 0; below, no more than rounding x once changes it."""
    x = torch.linspace(-85, 40, 4 * BLOCK)
    with on_cpu():
        _, got = values_of(x)
    want = x.double().sigmoid()
    assert ((got.double() - want).abs() / want / (x.abs().clamp(min=2) * 2.0**-24)).max() <= 2


def test_ends(on_cpu):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e3, -1e3, 0.0, 1e-45, 1e-38])
    x = torch.cat([x, torch.zeros(BLOCK - len(x))])
    with on_cpu():
        got, sigmoid = values_of(x)
    torch.testing.assert_close(got, x.tanh(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(sigmoid, x.sigmoid(), rtol=0, atol=0, equal_nan=True)


@triton.jit
def blended(h_ptr, z_ptr, n_ptr, new_ptr, VARIANT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    new = gates.blend(tl.load(h_ptr + i), tl.load(z_ptr + i), tl.load(n_ptr + i), VARIANT)
    tl.store(new_ptr + i, new)


@pytest.mark.parametrize("variant", ["torch", "chung"])
def test_a_small_state_is_kept_behind_a_large_candidate(on_cpu, variant):
    """A gate that keeps all keeps all digits; the others, those that the sum of two products has."""
    h, n = torch.logspace(-30, 0, BLOCK), torch.linspace(-0.99, 0.99, BLOCK)
    keep = torch.rand(BLOCK)
    keep[::2] = 1.0
    new = torch.empty(BLOCK)
    args = {"h_ptr": h, "z_ptr": 1 - keep if variant == "chung" else keep, "n_ptr": n, "new_ptr": new}
    with on_cpu():
        launch(blended, (1,), args, {"VARIANT": variant, "BLOCK": BLOCK}, num_warps=4, num_stages=1)
    torch.testing.assert_close(new[::2], h[::2], rtol=0, atol=0)
    torch.testing.assert_close(new[1::2], ((1 - keep) * n + keep * h)[1::2], rtol=1e-6, atol=1e-6)
