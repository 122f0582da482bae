"""From the gates that forward kept back to their pre-activations: for derivatives where the input was not kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..layer import Weights
from . import eager_turned
from .eager_kept import candidate
from .part import Part, Run
from .projections import states_before


def share_of_input(part: Part, weights: Weights, run: Run) -> Tensor:
    """W_i. x of the gates r, z, n, (N, 3H), without b_i.: what is left of a pre-activation, in one direction.

    Exact as far as the kept gates tell: where one is saturated, its share is infinite, and its derivative zero."""
    before = states_before(run.output, run.h0, run.steps, part.reverse)
    hidden_size = before.shape[1]
    assert run.gates is not None
    turned = part.choice.schedule == "eager" and eager_turned.fits(part, weights, run)
    kept = eager_turned.gates_as_rows(run) if turned else run.gates
    r, z, n = _pre_activations(part, kept, hidden_size)
    recurrent = linear(before, weights.hh, weights.bias_hh)
    if part.variant == "torch":
        *of_rz, an = recurrent.chunk(3, 1)
        an = torch.sigmoid(r) * an
    else:
        *of_rz, _ = recurrent.chunk(3, 1)
        bias = None if weights.bias_hh is None else weights.bias_hh.chunk(3)[2]
        an = linear(torch.sigmoid(r) * before, weights.hh.chunk(3)[2], bias)
    shares = torch.cat([r - of_rz[0], z - of_rz[1], n - an], 1)
    return shares if weights.bias_ih is None else shares - weights.bias_ih


def _pre_activations(part: Part, kept: Tensor, hidden_size: int) -> tuple[Tensor, Tensor, Tensor]:
    eager = part.choice.schedule == "eager"
    planes = kept.split(hidden_size, 1)
    r, z, n = planes[-3:] if eager else planes[:3]
    if not eager or kept.dtype.itemsize > 2:
        return torch.logit(r), torch.logit(z), torch.atanh(n)
    # See eager_kept.py for what is kept in 16 bits.
    r, z = (-torch.copysign(torch.log((1 - y.abs()) / y.abs()), y) for y in (r, z))
    value, slope = candidate(n)
    return r, z, torch.copysign(torch.log((1 + value.abs()) / slope.sqrt()), value)
