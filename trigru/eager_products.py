"""Matrix products for the eager schedule."""

from __future__ import annotations

import torch
from torch import Tensor


def add_product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out += a @ b, in place; returns `out`."""
    return out.addmm_(a, b)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in new memory."""
    return torch.mm(a, b)


def affine(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = x @ w.T + bias."""
    if bias is None:
        torch.mm(x, w.t(), out=out)
    else:
        torch.addmm(bias, x, w.t(), out=out)
