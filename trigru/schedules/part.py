"""What a schedule gets and gives: one layer in one direction of time. Sizes as in `trigru.layer`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..kernels.steps import Steps
from ..planning.plan import Plan


class Part(NamedTuple):
    """What is static of it."""

    plan: Plan
    variant: str
    reverse: bool
    keep: bool  # forward keeps the gates of every step for backward


class Run(NamedTuple):
    """What it reads, and where its results go: `output` is written by forward and read by backward."""

    input: Tensor  # (T, B, I), or (N, I) packed
    h0: Tensor  # (B, H)
    steps: Steps
    output: Tensor  # (N, H), contiguous: the state after each step
    h_n: Tensor | None = None  # (B, H), contiguous: each sequence's last state; None in backward

    @property
    def rows(self) -> Tensor:
        """The input as (N, I)."""
        return self.input if self.steps.packed else self.input.reshape(-1, self.input.shape[-1])


class Upstream(NamedTuple):
    """The loss's derivatives by the results, and which derivatives are wanted, in the order of Gradients."""

    output: Tensor | None  # (T, B, H), or (N, H) packed
    h_n: Tensor | None  # (B, H)
    needs: tuple[bool, ...]


class Gradients(NamedTuple):
    """By the input, the first state and the weights; None for what was not asked for."""

    input: Tensor | None
    h0: Tensor | None
    ih: Tensor | None
    hh: Tensor | None
    bias_ih: Tensor | None
    bias_hh: Tensor | None
