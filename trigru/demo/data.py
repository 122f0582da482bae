"""JapaneseVowels as tensors: Kudo, Toyama and Shimbo 1999, as shipped with the package aeon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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

    def scaled(self, mean: Tensor, deviation: Tensor) -> Labelled:
        """The same with each channel's mean, (channels,), taken away and its deviation divided out."""
        return Labelled([(sequence - mean) / deviation for sequence in self.sequences], self.labels)

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

    train, test = (_tensors(*load_japanese_vowels(split=split)) for split in ("train", "test"))
    rows = torch.cat(train.sequences)
    return train.scaled(rows.mean(0), rows.std(0)), test.scaled(rows.mean(0), rows.std(0))


def _tensors(arrays: Iterable[Any], labels: Iterable[str]) -> Labelled:
    """From aeon's arrays of (channels, length) and labels "1" to "9"."""
    sequences = [torch.from_numpy(array.T).float().contiguous() for array in arrays]
    return Labelled(sequences, torch.tensor([int(label) - 1 for label in labels]))
