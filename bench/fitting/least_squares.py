"""Non-negative least squares, by Lawson and Hanson's active sets, with torch alone."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-12


def nonnegative(matrix: Tensor, right: Tensor) -> Tensor:
    """The x >= 0 that makes ||matrix x - right|| least.

    Args:
        matrix: (rows, columns), float64; columns are scaled inside, so that they may be of any magnitude.
        right: (rows,).
    """
    scale = matrix.norm(dim=0)
    used = scale > 0
    scaled = matrix[:, used] / scale[used]
    x = torch.zeros(scaled.shape[1], dtype=matrix.dtype)
    free = torch.zeros(scaled.shape[1], dtype=torch.bool)
    for _ in range(3 * scaled.shape[1]):
        gain = scaled.T @ (right - scaled @ x)
        gain[free] = -1
        if free.all() or gain.max() <= TOLERANCE * right.norm():
            break
        free[gain.argmax()] = True
        while True:
            trial = torch.zeros_like(x)
            trial[free] = torch.linalg.lstsq(scaled[:, free], right[:, None], driver="gelsd").solution[:, 0]
            negative = free & (trial <= 0)
            if not negative.any():
                break
            step = (x[negative] / (x[negative] - trial[negative])).min()
            x += step * (trial - x)
            free &= x > TOLERANCE
        x = trial
    found = torch.zeros(matrix.shape[1], dtype=matrix.dtype)
    found[used] = x / scale[used]
    return found
