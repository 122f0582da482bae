"""Handwritten digits as sequences: each image of 8 x 8 is read half a row at a time, 16 steps of 4 pixels.

The images come with scikit-learn: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, 1998 (CC BY 4.0).
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

STEPS, CHANNELS, CLASSES = 16, 4, 10
TRAINING = 1536  # the images after them are other people's handwriting


def load() -> tuple[TensorDataset, TensorDataset]:
    """Training and test set: pixels from 0 to 1, (images, STEPS, CHANNELS), and digits, (images,)."""
    digits = load_digits()
    x = torch.from_numpy(digits.images).float().reshape(-1, STEPS, CHANNELS) / 16
    y = torch.from_numpy(digits.target)
    return TensorDataset(x[:TRAINING], y[:TRAINING]), TensorDataset(x[TRAINING:], y[TRAINING:])


def going_on(checkpoint: Path, after: int, epochs: int) -> str:
    """What to say of a checkpoint that was found."""
    if after >= epochs:
        return (
            f"{checkpoint}: trained for {after} epochs already; more --epochs go on, without the file all starts anew"
        )
    return f"{checkpoint}: going on after epoch {after}"
