"""TorchRL's Triton GRU: `GRUModule(recurrent_backend="triton")` (https://github.com/pytorch/rl).

It keeps float32 tensors whatever it multiplies in, so it is compared in float32, with and without TF32. Its module
takes a TensorDict and, at every step, a state to start again from, (B, T, layers, H); only step 0's counts here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..cases.case import Case, Inputs
from ..measuring.side import Grads, Side
from .adapter import Peer, first_obstacle


def obstacle(case: Case) -> str | None:
    """See `first_obstacle`."""
    return first_obstacle(case, package="torchrl", dtypes=("tf32", "fp32"))


def side(case: Case, source: nn.Module, inputs: Inputs) -> Side:
    """A GRUModule around a copy of the weights' source, batch first as it demands."""
    from tensordict import TensorDict
    from torchrl.modules import GRUModule

    gru = copy.deepcopy(source)
    gru.batch_first = True  # type: ignore[assignment]
    module = GRUModule(
        gru=gru,
        in_keys=["input", "state"],
        out_keys=["output", ("next", "state")],
        recurrent_backend="triton",
        recurrent_matmul_precision=case.precision,
        default_recurrent_mode=True,
    )
    shape = (case.batch, inputs.x.shape[0])
    x = inputs.x.transpose(0, 1).contiguous().requires_grad_()
    state = torch.zeros(*shape, 1, case.hidden_size, device=case.device)
    state[:, 0, 0] = inputs.h0[0]
    state.requires_grad_()
    is_init = torch.zeros(*shape, 1, dtype=torch.bool, device=case.device)

    def call() -> Tensor:
        data = TensorDict({"input": x, "state": state, "is_init": is_init}, shape)
        return module(data)["output"]

    def grads(found: Sequence[Tensor]) -> Grads:
        d_x, d_state, *d_weights = found
        return [d_x.transpose(0, 1), d_state[:, 0].transpose(0, 1), *d_weights]

    grad = inputs.grad.transpose(0, 1).contiguous()
    leaves = [x, state, *gru.parameters()]
    return Side("TorchRL", call, leaves, grad, output=lambda out: out.transpose(0, 1), grads=grads)


PEER = Peer("TorchRL", obstacle, side)
