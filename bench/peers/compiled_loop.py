"""A loop over time of one step compiled by torch.compile: what a user writes for equations that nn.GRU lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trigru import reference

from ..cases.case import Case, Inputs
from ..measuring.side import Side
from .adapter import Peer

MOST_STEPS = 512


def obstacle(case: Case) -> str | None:
    """Long sequences take it too long to be worth the time of a run."""
    if case.cell or case.num_layers > 1 or case.bidirectional or case.packed:
        return "has one layer in one direction of padded sequences"
    if case.seq_len > MOST_STEPS:
        return f"is compared to seq_len {MOST_STEPS} only"
    return None


def side(case: Case, source: nn.Module, inputs: Inputs) -> Side:
    """The step is the reference's, compiled as a whole."""
    from torch._dynamo import config as of_dynamo  # takes a second, so only here
    from torch._functorch import config as of_autograd

    # Another shape is another compilation; past a limit dynamo would run the step uncompiled without a word. Donated
    # buffers would make backward possible only once after a forward, which is not how it is timed alone. Both settings
    # are looked at when something compiles or runs, so they stay.
    of_dynamo.recompile_limit, of_autograd.donated_buffer = 1000, False
    step = torch.compile(reference.gru_cell, fullgraph=True, dynamic=False)
    x, h0 = inputs.leaves()
    weights = [p.detach().clone().requires_grad_() for p in source.parameters()]

    def call() -> Tensor:
        h, outputs = h0[0], []
        for row in x:
            h = step(row, h, *weights, variant=case.variant)
            outputs.append(h)
        return torch.stack(outputs)

    return Side("torch.compile", call, [x, h0, *weights], inputs.grad)


PEER = Peer("torch.compile", obstacle, side, any_variant=True)
