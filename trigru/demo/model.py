"""The classifier of the demo."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..modules import GRU


class Classifier(nn.Module):
    """A bidirectional GRU whose two final states (each sequence's own, whatever its length) are classified linearly."""

    def __init__(self, channels: int, hidden_size: int, classes: int, *, variant: str, schedule: str) -> None:
        super().__init__()
        self.gru = GRU(channels, hidden_size, bidirectional=True, variant=variant, schedule=schedule)
        self.linear = nn.Linear(2 * hidden_size, classes)

    def forward(self, sequences: PackedSequence) -> Tensor:
        """Logits, (number of sequences, classes)."""
        _, h_n = self.gru(sequences)
        return self.linear(torch.cat([h_n[0], h_n[1]], dim=-1))
