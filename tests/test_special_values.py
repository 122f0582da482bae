"""NaN, infinities, numbers at the dtype's ends in every argument of the kernels whose programs wait for each other,
compiled and executed from PTX, beside the reference."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import INTERPRETED
from ptx import ptx_launcher
from recurrences import recurrence

from trigru import reference
from trigru.kernels import persistent, walking
from trigru.kernels.config import persistent_config, walking_config
from trigru.kernels.launch import using

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait"),
    pytest.mark.usefixtures("poisoned"),
]

ARGUMENTS = ("gates_in", "h0", "w_hh", "b_hn", "grad_output", "grad_h_n")
LARGEST, TINY, SIZES = 3e38, 1e-40, (2, 4, 32)  # of bfloat16; TINY is subnormal
SCHEDULES = {"persistent": (persistent, persistent_config), "walking": (walking, walking_config)}
TOLERANCE = 0.03


def expected(case, dtype):
    """Of the reference, each row by itself: the input's share is a bias of its own, so that it passes no product."""
    tensors = [getattr(case, name) for name in ARGUMENTS]
    gates, h0, w_hh, b_hn, *upstream = (None if x is None else x.to(dtype).requires_grad_() for x in tensors)
    nothing = w_hh.new_zeros(w_hh.shape[0], 1)
    b_hh = None if b_hn is None else torch.cat([b_hn.new_zeros(2 * b_hn.shape[0]), b_hn])
    outputs, h = [], h0
    for rows in gates.chunk(SIZES[0]):
        steps = zip(rows, h.unsqueeze(1), strict=True)
        cells = [reference.gru_cell(nothing[:1], one, nothing, w_hh, x, b_hh, variant=case.variant) for x, one in steps]
        h = torch.cat(cells)
        outputs.append(h)
    output, leaves = torch.cat(outputs), [x for x in (gates, h0, b_hn) if x is not None]
    found = torch.autograd.grad([output, h], leaves, [x.detach() for x in upstream])
    return dict(zip(("d_gates", "d_h0", "d_b_hn"), found, strict=False)) | {"output": output.detach()}


def wrong(case, got):
    """Names of results that are not finite, or not near the exact ones, where the reference is finite in float64 and
    float32, or that are finite where it is in neither."""
    exact, plain = expected(case, torch.float64), expected(case, torch.float32)
    said = []
    for name, want in exact.items():
        found = got[name].double()
        finite = want.isfinite() & plain[name].isfinite() & (want.abs() < LARGEST / 4)
        lost = ~want.isfinite() & ~plain[name].isfinite()
        difference = (found - want)[finite].norm()
        if not difference <= TOLERANCE * want[finite].norm() + TINY or found[lost].isfinite().any():
            said.append(name)
    return said


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("variant", ["torch", "cho"])
@pytest.mark.parametrize("value", [math.nan, math.inf, pytest.param(-math.inf, marks=pytest.mark.slow), LARGEST, TINY])
def test_in_every_argument(value, variant, schedule):
    kernels, config = SCHEDULES[schedule]
    for name in ARGUMENTS:
        case = recurrence(*SIZES, variant=variant)
        x = getattr(case, name)
        if x is None:
            continue
        if value == TINY:
            x.mul_(TINY)  # all of it: one element among others could be lost unseen
        else:
            x.view(-1)[37 % x.numel()] = value
        with using(ptx_launcher(arch=90, seed=0)):
            got = case.run(kernels, config(torch.bfloat16, *SIZES[1:]))
        assert wrong(case, got) == [], name
        assert wrong(case, got | {"output": torch.zeros_like(got["output"])}) == ["output"]
