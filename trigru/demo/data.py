"""JapaneseVowels as tensors: Kudo, Toyama and Shimbo 1999, as shipped with the package aeon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

CHANNELS = 12  # LPC cepstrum coefficients
SPEAKERS = 9


@dataclass(frozen=True)
class Labelled:
    """Sequences of different lengths, each (length, channels), and the class of each, (number of sequences,)."""

    sequences: list[Tensor]
    labels: Tensor

    def to(self, device: torch.device) -> Labelled:
        """The same on another device."""
        return Labelled([sequence.to(device) for sequence in self.sequences], self.labels.to(device))

    def packed(self, indices: Iterable[int]) -> PackedSequence:
        """The sequences at `indices` (those past the end left out), packed for a GRU."""
        chosen = [self.sequences[i] for i in indices if i < len(self.sequences)]
        return pack_sequence(chosen, enforce_sorted=False)


def load() -> tuple[Labelled, Labelled]:
    """The fixed training and test split, each channel scaled by its mean and deviation in the training sequences.

    Raises:
        ImportError: aeon is not installed.
    """
    from aeon.datasets import load_japanese_vowels

    train, test = (load_japanese_vowels(split=split) for split in ("train", "test"))
    rows = torch.cat([torch.from_numpy(sequence.T) for sequence in train[0]])
    mean, deviation = rows.mean(0), rows.std(0)
    return _labelled(*train, mean, deviation), _labelled(*test, mean, deviation)


def _labelled(sequences, labels, mean: Tensor, deviation: Tensor) -> Labelled:  # type: ignore[no-untyped-def]
    """From aeon's arrays of (channels, length) and labels "1" to "9"."""
    scaled = [((torch.from_numpy(sequence.T) - mean) / deviation).float() for sequence in sequences]
    return Labelled(scaled, torch.tensor([int(label) - 1 for label in labels]))
