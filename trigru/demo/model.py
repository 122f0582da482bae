"""The classifier of the demo, and a look at its gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..modules import GRU
from ..tapping import tap


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
    with tap(model.gru) as gates:
        model.gru(sequence.unsqueeze(1))
    r, z, h = (values.squeeze(1).cpu() for values in (gates[0].r, gates[0].z, gates[0].h))
    return r, z, h
