"""Layers with hidden units added, where a schedule's kernels want another hidden_size than the layer has.

A unit whose weights, inputs and state are zero stays zero, forward and backward, and adds nothing to the others: its
candidate is tanh(0), and every blend of zeros is zero. So the results are those of the layer, with columns to cut off.
Only where another unit is infinite does its product with a zero weight give NaN; a kernel is told how many units are
`added`, and puts zeros in their place before it multiplies by them.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor
from torch.nn.functional import pad

from .recurrence import Derivatives, Gradients, Kept, Operands

Given = TypeVar("Given", Kept, Gradients)
Found = TypeVar("Found", Kept, Derivatives)


def missing(hidden_size: int, multiple: int) -> int:
    """Units to add until `multiple` divides hidden_size."""
    return -hidden_size % multiple


def operands(given: Operands, more: int) -> Operands:
    """With `more` hidden units."""
    hidden_size = given.h0.shape[1]
    return Operands(
        None if given.gates_in is None else _wider(given.gates_in, hidden_size, more),
        pad(given.h0, (0, more)),
        pad(given.w_hh.unflatten(0, (3, -1)), (0, more, 0, more)).flatten(0, 1),
        None if given.b_hn is None else pad(given.b_hn, (0, more)),
        given.steps,
        added=more,
    )


def wider(given: Given, more: int) -> Given:
    """With `more` hidden units."""
    hidden_size = given.output.shape[1]
    tensors: Any = (None if x is None else _wider(x, hidden_size, more) for x in given)
    return type(given)(*tensors)


def narrower(found: Found, hidden_size: int, more: int) -> Found:
    """The first `hidden_size` of so many and `more` units."""
    tensors: Any = (None if x is None else _narrower(x, hidden_size + more, more) for x in found)
    return type(found)(*tensors)


def _wider(x: Tensor, hidden_size: int, more: int) -> Tensor:
    """(N, parts * H) -> (N, parts * (H + more)), with zeros."""
    return pad(x.unflatten(1, (x.shape[1] // hidden_size, hidden_size)), (0, more)).flatten(1)


def _narrower(x: Tensor, hidden_size: int, more: int) -> Tensor:
    """(N, parts * H) -> (N, parts * (H - more))."""
    parts = x.unflatten(1, (x.shape[1] // hidden_size, hidden_size))
    return parts[:, :, :-more].flatten(1).contiguous()
