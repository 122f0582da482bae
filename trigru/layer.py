"""What a layer is, and what travels with it: one family of records. Imports nothing of the package.

A new option is a field of `Layer` (what is static) or of `Call` (what a call brings), its lines in the reference and in
the schedules that have it, and its tests.

Sizes: T seq_len, B batch, N rows of all steps (T * B, or those of a packed sequence), I input_size, H hidden_size,
L num_layers, D directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Variant = Literal["torch", "cho", "chung"]
ScheduleName = Literal["auto", "eager", "stepwise", "walking", "resident", "persistent", "cudnn"]
Memory = Literal["keep", "recompute"]


@dataclass(frozen=True, slots=True)
class Layer:
    """What is static of a GRU of several layers and directions; hashable, so that plans are remembered by it.

    dropout, zoneout, recurrent_dropout: as they apply to the call, 0 in evaluation (zoneout's expected value is then in
    `Given.amount`).
    reverse: a single direction that runs from the last step to the first. bias: whether each layer and direction has
    both biases. num_heads: blocks on the diagonal of W_hh, whose weight has the columns of one. The other fields: as
    the arguments of `trigru.GRU`.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    reverse: bool = False
    variant: str = "torch"
    schedule: str = "auto"
    memory: str = "keep"
    clip: float | None = None
    zoneout: float = 0.0
    recurrent_dropout: float = 0.0
    num_heads: int = 1

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def parts(self) -> int:
        """Layers times directions: as many as there are rows in hx."""
        return self.num_layers * self.directions

    def runs_backwards(self, direction: int) -> bool:
        """Whether this direction, 0 or 1, goes from the last step to the first."""
        return self.reverse or direction == 1

    def weights_of(self, weights: Sequence[Tensor], part: int, gain: Tensor | None = None) -> Weights:
        """Those of one layer and direction, out of the flat sequence: as nn.GRU's `_flat_weights`. gain: as in Call."""
        own = None if gain is None else gain[part]
        if self.bias:
            return Weights._make((*weights[4 * part : 4 * part + 4], own))
        return Weights(weights[2 * part], weights[2 * part + 1], None, None, own)


class Weights(NamedTuple):
    """Of one layer in one direction, gates stacked in the order r, z, n."""

    ih: Tensor  # (3H, I), above the first layer (3H, D * H)
    hh: Tensor  # (3H, H), of several heads (3H, H / num_heads)
    bias_ih: Tensor | None  # (3H,)
    bias_hh: Tensor | None  # (3H,)
    gain: Tensor | None = None  # (2, 3H), of the products with ih and hh, which are then normalised


class Given(NamedTuple):
    """What a padded call brings for each step, time-major whatever `batch_first` says: the one form into which
    `trigru.options` brings the arguments of a call. See `trigru.reference.gru` for the equations."""

    reset: Tensor | None = None  # (T, B) bool: an episode begins
    fresh: Tensor | None = None  # (L * D, B, H) or (T, L * D, B, H): the state that it begins from; None: zeros
    decay: Tensor | None = None  # (T, B, 1) or (T, B, D * H)
    amount: Tensor | None = None  # (T, B); bool: 0 or 1
    dropped: Tensor | None = None  # (), int64: of recurrent_dropout's masks
    seed: Tensor | None = None  # (), int64: of zoneout's masks
    lengths: Tensor | None = None  # (B,) int64: steps past it change nothing of a state, and none begins an episode

    @classmethod
    def of(cls, fields: Iterable[Tensor | None]) -> Given:
        """Of all fields; NOTHING where none is there, which a call is asked for by identity."""
        given = cls._make(fields)
        return given if present(given) else NOTHING

    @property
    def present(self) -> list[str]:
        """The names of what is there."""
        return present(self)

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """Those that may take a gradient: fresh, decay, amount."""
        return self.fresh, self.decay, self.amount


NOTHING = Given()


# Functions, as `differentiable`: torch 2.9's compiler does not see what a NamedTuple has beside its fields.
def present(given: Given) -> list[str]:
    """The names of what is there."""
    return [name for name, x in zip(Given._fields, given, strict=True) if x is not None]


def alive(seq_len: int, lengths: Tensor) -> Tensor:
    """(T, B) bool: the steps before each sequence's end."""
    return torch.arange(seq_len, device=lengths.device).unsqueeze(1) < lengths


class Call(NamedTuple):
    """What a call brings."""

    input: Tensor  # (T, B, I), (B, T, I) with batch_first, or (N, I) packed
    hx: Tensor  # (L * D, B, H)
    batch_sizes: Tensor | None = None  # (T,) int64 on the CPU, as in PackedSequence; None: not packed
    given: Given = NOTHING  # not with batch_sizes
    gain: Tensor | None = None  # (L * D, 2, 3H), of normalised products
    zeros: bool = False  # hx is memory alone: whoever reads it first fills it with zeros


def time_major(layer: Layer, call: Call, x: Tensor) -> Tensor:
    """A tensor shaped as the call's input or output, steps first."""
    return x.transpose(0, 1) if layer.batch_first and call.batch_sizes is None else x


def differentiable(call: Call) -> tuple[Tensor | None, ...]:
    """What may take a gradient beside input, hx and the weights: fresh, decay, amount, gain."""
    given = call.given
    return given.fresh, given.decay, given.amount, call.gain


class Records(NamedTuple):
    """All that travels to the operators."""

    layer: Layer
    weights: Sequence[Tensor]  # w_ih, w_hh and, if layer.bias, b_ih, b_hh of each layer and direction
    call: Call
