"""What forward keeps of its layers for backward: the reserve, a list of tensors.

In this order, for the K layers from `first_kept` on (nothing below them takes a gradient):

    the input of the first of them, where it is not the call's own
    with dropout and K > 1, its masks behind each of them but the last, (K - 1, T, B, D * H)
    their gates, (K, D, N, values * H), flat; empty where they are computed again
    their states (K, N, D * H), which are the next layers' inputs

cuDNN, which runs all layers or none, keeps something else behind the masks: see `trigru.schedules.cudnn`.

The states of the last layer are the call's output where `shares_output` says so; then K - 1 are in the list, or where
that is none no tensor, and `backward` wants the output at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.config import kept_values
from ..layer import Call, Layer, time_major
from .pages import empty_again


def shares_output(device: torch.device) -> bool:
    """Whether the last layer's states are the call's output. On a CPU they are not: nn.GRU lets its output be modified
    in place there."""
    return device.type != "cpu"


class Reserve(NamedTuple):
    """The reserve by its parts."""

    first_kept: int
    entry: Tensor | None
    masks: Tensor | None
    gates: Tensor
    states: Tensor | None  # None: of no layer but the last, which is the output
    output: Tensor | None = None  # the last layer's states, where they are not in `states`

    @classmethod
    def empty(cls, layer: Layer, x: Tensor, first_kept: int) -> Reserve:
        """Memory for it, without the entry and the output. x: the call's input, steps first."""
        *sizes, _ = x.shape
        rows, features = sizes[0] * (sizes[1] if len(sizes) == 2 else 1), layer.hidden_size * layer.directions
        kept = layer.num_layers - first_kept
        inner = kept - 1 if shares_output(x.device) else kept
        masks = _empty_masks(layer, x, kept)
        values = kept * layer.directions * rows * kept_values(layer.variant) * layer.hidden_size
        gates = empty_again(x, values if layer.memory == "keep" else 0)
        states = empty_again(x, inner, rows, features) if inner else None
        return cls(first_kept, None, masks, gates, states)

    @classmethod
    def of(cls, layer: Layer, tensors: Sequence[Tensor], first_kept: int) -> Reserve:
        """Of the list, with the call's output at its end or without."""
        left, several = iter(tensors), layer.num_layers - first_kept > 1
        entry = next(left) if first_kept else None
        masks = next(left) if layer.dropout and several else None
        gates = next(left)
        states = next(left) if several or not shares_output(gates.device) else None
        return cls(first_kept, entry, masks, gates, states, next(left, None))

    @property
    def tensors(self) -> list[Tensor]:
        """The list."""
        return [x for x in (self.entry, self.masks, self.gates, self.states) if x is not None]

    def states_of(self, index: int) -> Tensor:
        """(N, D * H) of a layer."""
        place = index - self.first_kept
        if self.states is not None and place < self.states.shape[0]:
            return self.states.select(0, place)
        assert self.output is not None
        return self.output

    def inner(self, layers: Sequence[int]) -> Tensor | None:
        """(L - 1, N, D * H) of several layers but the last of them; None for a single one."""
        return None if self.states is None or len(layers) == 1 else self._of(layers, self.states, 1)

    def masks_in(self, layers: Sequence[int]) -> Tensor | None:
        """The masks between several layers, (L - 1, ..., D * H); None without dropout, or for a single one."""
        return None if self.masks is None or len(layers) == 1 else self._of(layers, self.masks, 1)

    def mask_behind(self, index: int) -> Tensor | None:
        """Of the dropout behind a layer; None without any, and for layers that are not kept."""
        place = index - self.first_kept
        return None if self.masks is None or not 0 <= place < self.masks.shape[0] else self.masks.select(0, place)

    def gates_of(self, layer: Layer, layers: Sequence[int]) -> Tensor | None:
        """(L, D, N, values * H), or None where none are kept."""
        if layer.memory != "keep":
            return None
        kept, width = layer.num_layers - self.first_kept, kept_values(layer.variant) * layer.hidden_size
        gates = self.gates.view(kept, layer.directions, -1 if self.gates.numel() else 0, width)
        return self._of(layers, gates)

    def _of(self, layers: Sequence[int], x: Tensor, but: int = 0) -> Tensor:
        """What belongs to the layers, but for so many of the last."""
        return x.narrow(0, layers[0] - self.first_kept, len(layers) - but)


def _empty_masks(layer: Layer, x: Tensor, kept: int) -> Tensor | None:
    """Memory for those between the uppermost layers, if any. x: the call's input, steps first."""
    if not layer.dropout or kept == 1:
        return None
    return x.new_empty(kept - 1, *x.shape[:-1], layer.hidden_size * layer.directions, dtype=torch.bool)


def dropout_masks(layer: Layer, call: Call) -> Tensor | None:
    """Of the dropout between all layers, drawn in their order."""
    masks = _empty_masks(layer, time_major(layer, call, call.input), layer.num_layers)
    if masks is not None:
        draw_masks(masks, layer.dropout, call.input.dtype)
    return masks


def draw_masks(masks: Tensor, p: float, dtype: torch.dtype) -> None:
    """Several, of states of this dtype."""
    for mask in masks.unbind(0):
        dropout_mask(mask.new_empty((), dtype=dtype).expand(mask.shape), p, mask)


def dropout_mask(x: Tensor, p: float, out: Tensor | None = None) -> Tensor:
    """Which elements stay, drawn as torch's dropout on a CPU draws for a contiguous tensor of this shape and dtype; in
    `out` where that is given."""
    if p == 1:
        return x.new_zeros(x.shape, dtype=torch.bool) if out is None else out.zero_()
    drawn = x.new_empty(x.shape).bernoulli_(1 - p)
    return drawn.bool() if out is None else out.copy_(drawn)


def empty_reserve(layer: Layer, call: Call, first_kept: int) -> list[Tensor]:
    """Memory of the shapes of the reserve that forward returns."""
    if first_kept == layer.num_layers:
        return []
    x = time_major(layer, call, call.input)
    if layer.schedule == "cudnn":
        masks = _empty_masks(layer, x, layer.num_layers)
        return [] if masks is None else [masks]
    reserve = Reserve.empty(layer, x, first_kept)
    if first_kept:
        reserve = reserve._replace(entry=x.new_empty(*x.shape[:-1], layer.hidden_size * layer.directions))
    return reserve.tensors


def lowest_kept(layer: Layer, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of a forward that kept all layers: the gates of the first, (D, N, values * H), and its states, which may be the
    call's output."""
    kept = Reserve.of(layer, tensors, 0)
    gates = kept.gates_of(layer, (0,))
    assert gates is not None
    return gates.select(0, 0), kept.states_of(0)


def scaled(mask: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """What a mask multiplies by."""
    return mask.to(dtype) if p == 1 else mask.to(dtype).div_(1 - p)


def masks_of(layer: Layer, reserve: Sequence[Tensor], first_kept: int, dtype: torch.dtype) -> list[Tensor | None]:
    """What the output of each layer but the last was multiplied with, as far as the reserve holds it."""
    if not layer.dropout:
        return [None] * (layer.num_layers - 1)
    # Not through `Reserve.of`: behind the masks cuDNN keeps what it likes.
    masks = reserve[1 if first_kept else 0] if first_kept + 1 < layer.num_layers else ()
    return [*[None] * first_kept, *(scaled(mask, layer.dropout, dtype) for mask in masks)]
