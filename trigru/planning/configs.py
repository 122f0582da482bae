"""What a plan fixes of the schedules that are no kernels; those of kernels are in `trigru.kernels.config`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CudnnConfig:
    """keeps: whether forward keeps what cuDNN's backward wants, of a size that only cuDNN knows; else backward runs
    forward again."""

    keeps: bool = True


@dataclass(frozen=True)
class EagerConfig:
    """Steps of a chunk, and elements of one plane of it, at most (but one step at least)."""

    chunk_steps: int = 64
    chunk_elements: int = 1 << 18
