"""What a schedule gets and gives: one layer, in one direction of time or in both, or several. Sizes as in
`trigru.layer`.

Where a schedule runs both directions together, a tensor of one direction stands for both with a first dimension of 2,
and weights come in pairs; but the states of all steps have one direction's columns beside the other's.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..kernels.recurrence import PerStep
from ..kernels.steps import Steps
from ..planning.stages import Choice


class Part(NamedTuple):
    """What is static of it."""

    choice: Choice
    variant: str
    reverse: bool  # of a single direction
    heads: int = 1  # where the schedule takes them as they are


class Together(NamedTuple):
    """What is between several layers that run together."""

    states: Tensor  # (L - 1, N, H) of all but the last: as a Run's output
    masks: Tensor | None  # (L - 1, T, B, H) bool: of the dropout behind them
    dropout: float


class Run(NamedTuple):
    """What it reads, and where its results go: `output`, `gates` and `h_n` are written by forward, the first two read
    by backward."""

    input: Tensor  # (T, B, I), or (N, I) packed
    h0: Tensor  # (B, H)
    steps: Steps
    output: Tensor  # (N, H): the state after each step; a single direction's may be columns of a wider tensor
    gates: Tensor | None  # (N, kept_values(variant) * H), laid out as the schedule likes; None: not kept
    h_n: Tensor | None = None  # (B, H), contiguous: each sequence's last state; None in backward
    per_step: PerStep | None = None  # what steps do beside the equations
    together: Together | None = None  # where several layers run together: h0, gates, h_n then have one for each
    zeros: bool = False  # h0 is memory alone: forward fills it with zeros first

    @property
    def rows(self) -> Tensor:
        """The input as (N, I)."""
        return self.input if self.steps.packed else self.input.reshape(-1, self.input.shape[-1])


class Upstream(NamedTuple):
    """The loss's derivatives by the results, and which derivatives are wanted: by the input, the first state, and the
    weights and the gain of each direction; by fresh, decay and amount of `per_step`."""

    output: Tensor | None  # (T, B, H), or (N, H) packed
    h_n: Tensor | None  # (B, H)
    needs: tuple[bool, ...]
    given: tuple[bool, ...] = (False, False, False)


class Found(NamedTuple):
    """By what was given for each step, shaped as the PerStep's own; None for what was not asked for."""

    fresh: Tensor | None = None
    decay: Tensor | None = None
    amount: Tensor | None = None


class Gradients(NamedTuple):
    """By the input, the first state and the weights; None for what was not asked for."""

    input: Tensor | None
    h0: Tensor | None
    weights: tuple[Tensor | None, ...]  # w_ih, w_hh, b_ih, b_hh and gain of each direction
    given: tuple[Found, ...] = ()  # of each direction, where something is given for each step
