"""The memory-saving mode: forward keeps the states alone, backward computes the gates again.

With every state known, the recurrent products of many steps no longer wait for each other: they are one GEMM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..kernels.steps import Steps
from .projections import states_before

CHUNK_ELEMENTS = 1 << 24
"""Gate values of a chunk of steps, about: 32 MiB in 16 bits, enough rows for a GEMM to run at its full rate."""


def chunk_length(steps: Steps, hidden_size: int) -> int:
    """Steps whose gates are computed again together."""
    return max(1, min(steps.seq_len, CHUNK_ELEMENTS // max(1, 4 * hidden_size * steps.batch)))


def gates_again(
    input: Tensor,
    output: Tensor,
    h0: Tensor,
    steps: Steps,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    variant: str,
    reverse: bool,
) -> Tensor:
    """What a Triton schedule's forward would have kept of these rows: (N, 4H) r, z, n, W_hn h + b_hn for "torch",
    (N, 3H) r, z, n otherwise.

    input (N, I), output (N, H), h0 (B, H): of the steps in question, as if they were a sequence of their own."""
    before = states_before(output, h0, steps, reverse)
    w_ih, w_hh, b_ih, b_hh = weights
    gates = reference.gates(input, before, w_ih, w_hh, b_ih, b_hh, variant=variant)
    if variant != "torch":
        return torch.cat(gates, 1)
    product = torch.nn.functional.linear(before, w_hh.chunk(3)[2], None if b_hh is None else b_hh.chunk(3)[2])
    return torch.cat([*gates, product], 1)
