"""The memory-saving mode: forward keeps the states alone, backward computes the gates again.

With every state known, the recurrent products of many steps no longer wait for each other: they are one GEMM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..kernels.steps import Steps
from ..layer import Weights
from .part import Run
from .projections import states_before

CHUNK_ELEMENTS = 1 << 24
"""Gate values of a chunk of steps, about: 32 MiB in 16 bits, enough rows for a GEMM to run at its full rate."""


def chunk_length(steps: Steps, hidden_size: int) -> int:
    """Steps whose gates are computed again together."""
    return max(1, min(steps.seq_len, CHUNK_ELEMENTS // max(1, 4 * hidden_size * steps.batch)))


def gates_again(run: Run, weights: Weights, variant: str, reverse: bool, out: Tensor) -> None:
    """Put into `out` what a Triton schedule's forward would have kept of these rows, in one direction: (N, 4H) r, z, n,
    W_hn h + b_hn for "torch", (N, 3H) r, z, n otherwise.

    run: of the steps in question, as if they were a sequence of their own, its input as (N, I)."""
    before = seen_before(run, reverse)
    gates: tuple[Tensor, ...] = reference.gates(run.input, before, *weights[:4], variant=variant, gain=weights.gain)
    if variant == "torch":
        gates = (*gates, _recurrent_candidate(before, weights))
    torch.cat(gates, 1, out=out)


def _recurrent_candidate(before: Tensor, weights: Weights) -> Tensor:
    """W_hn h + b_hn of variant "torch", (N, H), its product normalised where there is a gain."""
    b_hn = None if weights.bias_hh is None else weights.bias_hh.chunk(3)[2]
    if weights.gain is None:
        return torch.nn.functional.linear(before, weights.hh.chunk(3)[2], b_hn)
    an = reference.layer_norm(torch.mm(before, weights.hh.t()), weights.gain[1]).chunk(3, 1)[2]
    return an if b_hn is None else an + b_hn


def seen_before(run: Run, reverse: bool) -> Tensor:
    """(N, H): what each step's recurrent products saw, in one direction."""
    before, per_step = states_before(run.output, run.h0, run.steps, reverse), run.per_step
    return before if per_step is None else per_step.seen(per_step.begun(before), run.steps.batch)
