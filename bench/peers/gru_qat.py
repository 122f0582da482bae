"""gru-qat's dense persistent kernels, without quantisation (https://github.com/LarocheC/gru-qat).

`gru_scan_persistent(gi, h0, W_h, b_h)` takes the input's part of the gates r, z, n, (T, B, 3H), bias included. It
multiplies float32 in TF32, always.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..cases.case import Case, Inputs
from ..measuring.side import Side
from .adapter import Peer, first_obstacle


def obstacle(case: Case) -> str | None:
    """See `first_obstacle`."""
    return first_obstacle(case, package="gru_qat", dtypes=("tf32",))


def side(case: Case, source: nn.Module, inputs: Inputs) -> Side:
    """nn.GRU's parameters as they are."""
    from gru_qat.triton_kernels.scan import gru_scan_persistent

    x, h0 = inputs.leaves()
    w_ih, w_hh, b_ih, b_hh = weights = [p.detach().clone().requires_grad_() for p in source.parameters()]

    def call() -> Tensor:
        return gru_scan_persistent(F.linear(x, w_ih, b_ih), h0[0], w_hh, b_hh)

    return Side("gru-qat", call, [x, h0, *weights], inputs.grad)


PEER = Peer("gru-qat", obstacle, side)
