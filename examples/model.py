"""The model of all examples: a bidirectional GRU and a linear classifier of its two last states."""

import torch
from data import CHANNELS, CLASSES
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import trigru


class Classifier(nn.Module):
    """Logits, (batch, CLASSES), of sequences, (batch, steps, CHANNELS)."""

    def __init__(self, hidden_size: int = 64) -> None:
        super().__init__()
        self.gru = trigru.GRU(CHANNELS, hidden_size, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden_size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, h_n = self.gru(x)
        return self.linear(torch.cat([h_n[0], h_n[1]], dim=-1))


@torch.no_grad()
def accuracy(model: nn.Module, dataset: TensorDataset) -> float:
    """The share of a data set that the model classifies rightly, on the model's device."""
    x, y = (tensor.to(next(model.parameters()).device) for tensor in dataset.tensors)
    return (model(x).argmax(-1) == y).float().mean().item()
