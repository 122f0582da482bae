"""The time of a training step, beside nn.GRU's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ..modules import GRU

ROUNDS = 30


@dataclass(frozen=True)
class StepTimes:
    """Medians over rounds in which both took their turns."""

    ours_ms: float
    peer_ms: float

    @property
    def said(self) -> str:
        """Which is faster, in words."""
        ratio = self.peer_ms / self.ours_ms
        return f"trigru {max(ratio, 1 / ratio):.2f}x {'faster' if ratio >= 1 else 'slower'}"


def step_times(gru: GRU, sequences: PackedSequence, rounds: int = ROUNDS) -> StepTimes:
    """Forward and backward of `gru`, and of an nn.GRU of its size and weights, which are not changed."""
    peer = nn.GRU(gru.input_size, gru.hidden_size, bidirectional=gru.bidirectional).to(sequences.data)
    peer.load_state_dict(gru.state_dict())
    calls = [_step(layer, sequences) for layer in (gru, peer)]
    taken: list[list[float]] = [[], []]
    for i in range(rounds + 2):
        for k in (0, 1) if i % 2 else (1, 0):
            _wait(sequences)
            start = time.perf_counter()
            calls[k]()
            _wait(sequences)
            if i >= 2:  # before that kernels are compiled and memory is had
                taken[k].append(time.perf_counter() - start)
    ours, others = (statistics.median(seconds) * 1e3 for seconds in taken)
    return StepTimes(ours, others)


def _step(layer: nn.Module, sequences: PackedSequence) -> Callable[[], object]:
    parameters = list(layer.parameters())

    def step() -> object:
        output, _ = layer(sequences)
        return torch.autograd.grad(output.data.sum(), parameters)

    return step


def _wait(sequences: PackedSequence) -> None:
    if sequences.data.is_cuda:
        torch.cuda.synchronize(sequences.data.device)
