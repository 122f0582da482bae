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


HEADS_MULTIPLICATIONS = 2_000_000
"""Multiplications of a step's whole product from which the eager schedule takes three or more heads apart. A batched
product wants its operands laid out anew: training was 1.3 to 2.1 times as fast from here on (hidden_size 256 and 512,
4 and 8 heads, float32, a thread of an AMD EPYC, torch 2.13), and slower at a quarter of it; two heads won nothing."""


def heads_apart(batch: int, hidden_size: int, heads: int) -> bool:
    """Whether the eager schedule multiplies heads by themselves."""
    return heads > 2 and 3 * batch * hidden_size * hidden_size >= HEADS_MULTIPLICATIONS
