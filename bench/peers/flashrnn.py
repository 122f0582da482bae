"""flashrnn, `function="gru"`: compiled by nvcc at its first call (https://github.com/NX-AI/flashrnn).

Layouts: Wx (B, T, 3, heads, D) holds the input's part of r, z, n; R (3, heads, D, D) the recurrent weights of n, r, z;
b (4, heads, D) the biases of W_hn h, r, z, n; states (1, B, 1, heads, D). One head, so D is the hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cases.case import Case, Inputs
from ..measuring.side import Grads, Side
from .adapter import Peer, first_obstacle

BACKEND = "cuda"  # what `backend="cuda_fused"` comes to for a GRU


def obstacle(case: Case) -> str | None:
    """See `first_obstacle`."""
    return first_obstacle(case, package="flashrnn", dtypes=("bf16", "fp16"))


def side(case: Case, source: nn.Module, inputs: Inputs, backend: str = BACKEND) -> Side:
    """The input projection is one product before the loop, as in every other side."""
    from flashrnn import flashrnn

    hidden_size = case.hidden_size
    w_ih, w_hh, b_ih, b_hh = (p.detach() for p in source.parameters())
    w_r, w_z, w_n = w_hh.chunk(3)
    (ir, iz, in_), (hr, hz, hn) = b_ih.chunk(3), b_hh.chunk(3)
    x = inputs.x.transpose(0, 1).contiguous().requires_grad_()
    h0 = inputs.h0.detach().clone().view(1, case.batch, 1, 1, hidden_size).requires_grad_()
    weight = w_ih.clone().requires_grad_()
    recurrent = torch.stack([w_n, w_r, w_z])[:, None].contiguous().requires_grad_()
    bias = torch.stack([hn, ir + hr, iz + hz, in_])[:, None].contiguous().requires_grad_()
    dtype = str(case.number).removeprefix("torch.")

    def call() -> Tensor:
        gates = F.linear(x, weight).view(*x.shape[:2], 3, 1, hidden_size)
        return flashrnn(gates, recurrent, bias, states=h0, function="gru", backend=backend, dtype=dtype)[0][0]

    def grads(found: Sequence[Tensor]) -> Grads:
        d_x, d_h0, d_weight, d_recurrent, d_bias = found
        d_n, d_r, d_z = d_recurrent[:, 0]
        d_hn, d_br, d_bz, d_in = d_bias[:, 0]
        d_h0 = d_h0.view(1, case.batch, hidden_size)
        by_state = torch.cat([d_r, d_z, d_n]), torch.cat([d_br, d_bz, d_in]), torch.cat([d_br, d_bz, d_hn])
        return [d_x.transpose(0, 1), d_h0, d_weight, *by_state]

    grad = inputs.grad.transpose(0, 1)[:, :, None].contiguous()
    leaves = [x, h0, weight, recurrent, bias]
    return Side("flashrnn", call, leaves, grad, output=lambda out: out[:, :, 0].transpose(0, 1), grads=grads)


PEER = Peer("flashrnn", obstacle, side)
