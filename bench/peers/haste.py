"""haste's GRU, where its extension was built (https://github.com/lmnt-com/haste).

It has no initial state, stacks its gates in the order z, r, n, holds weights transposed, and multiplies float32 without
TF32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..cases.case import Case, Inputs
from ..measuring.side import Grads, Side
from .adapter import Peer, first_obstacle


def obstacle(case: Case) -> str | None:
    """See `first_obstacle`."""
    return first_obstacle(case, package="haste_pytorch", dtypes=("fp32",))


def swap_gates(stacked: Tensor) -> Tensor:
    """r, z, n to z, r, n along the first dimension, and back."""
    first, second, n = stacked.chunk(3)
    return torch.cat([second, first, n])


def side(case: Case, source: nn.Module, inputs: Inputs) -> Side:
    """A haste_pytorch.GRU in training mode, which it needs for a backward pass."""
    from haste_pytorch import GRU

    module = GRU(case.input_size, case.hidden_size).to(case.device, case.number)
    ours = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
    parameters = [getattr(module, name) for name in ours]
    with torch.no_grad():
        for parameter, weight in zip(parameters, source.parameters(), strict=True):
            parameter.copy_(swap_gates(weight).T if weight.dim() == 2 else swap_gates(weight))
    x, _ = inputs.leaves()

    def grads(found: Sequence[Tensor]) -> Grads:
        d_x, *d_weights = found
        return [d_x, None, *(swap_gates(d.T if d.dim() == 2 else d) for d in d_weights)]

    return Side("haste", lambda: module(x)[0], [x, *parameters], inputs.grad, grads=grads)


PEER = Peer("haste", obstacle, side, zero_state=True)
