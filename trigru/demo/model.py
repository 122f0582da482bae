"""The classifier of the demo, and a look at its gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import reference
from ..modules import GRU


class Classifier(nn.Module):
    """A bidirectional GRU whose two final states (each sequence's own, whatever its length) are classified linearly."""

    def __init__(self, channels: int, hidden_size: int, classes: int, *, variant: str, schedule: str) -> None:
        super().__init__()
        self.gru = GRU(channels, hidden_size, bidirectional=True, variant=variant, schedule=schedule)  # type: ignore[arg-type]
        self.linear = nn.Linear(2 * hidden_size, classes)

    def forward(self, sequences: PackedSequence) -> Tensor:
        """Logits, (number of sequences, classes)."""
        _, h_n = self.gru(sequences)
        return self.linear(torch.cat([h_n[0], h_n[1]], dim=-1))


@torch.no_grad()
def gates_over_time(model: Classifier, sequence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reset gates, update gates and states of the forward direction on one sequence, each (length, hidden_size)."""
    gru = model.gru
    weights = [getattr(gru, name).cpu() for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
    h = torch.zeros(1, gru.hidden_size)
    resets, updates, states = [], [], []
    for x in sequence.cpu().unsqueeze(1):
        r, z, _ = reference.gates(x, h, *weights, variant=gru.variant)
        h = reference.gru_cell(x, h, *weights, variant=gru.variant)
        resets.append(r)
        updates.append(z)
        states.append(h)
    return torch.cat(resets), torch.cat(updates), torch.cat(states)
