"""What 16 bits keep of the gates for backward: at both ends as many digits as in the middle.

A gate of 0.9999 rounds to 1 in bfloat16, and with its distance from 1 the derivatives behind it are gone. So what is
kept, computed from the pre-activation x, is

    of y = sigmoid(x)   min(y, 1 - y), with a minus sign where that is 1 - y
    of n = tanh(x)      n while |x| < 0.5, then 1 / (1 - |n|) with the sign of n, which is above 1
"""

from __future__ import annotations

import torch
from torch import Tensor

from .eager_tanh import tanh_

NEAR = 0.5


def keep_(rz: Tensor, n: Tensor) -> None:
    """From the pre-activations of r and z, side by side, and of n what is kept of them, in place."""
    torch.copysign(torch.sigmoid(-rz.abs()), -rz, out=rz)
    size = n.abs()
    far = torch.copysign(0.5 + 0.5 * torch.exp(2 * size), n)
    tanh_(n)
    torch.where(size < NEAR, n, far, out=n)


def sides(kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From what is kept of gates y = sigmoid(x): min(y, 1 - y), y and 1 - y."""
    smaller = kept.abs()
    half = torch.copysign(kept.new_full((), 0.5), kept)
    more = 1 - 2 * smaller
    return smaller, torch.addcmul(smaller, 0.5 - half, more), torch.addcmul(smaller, 0.5 + half, more)


def candidate(kept: Tensor) -> tuple[Tensor, Tensor]:
    """From what is kept of n = tanh(x): n and 1 - n^2."""
    size = kept.abs()
    far = size > 1
    missing = torch.where(far, 1 / size, 1 - size)
    return torch.where(far, torch.copysign(1 - missing, kept), kept), missing * (2 - missing)
