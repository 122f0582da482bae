"""Layers with hidden units added, where a schedule's kernels want another hidden_size than the layer has.

A unit whose weights, inputs and state are zero stays zero, forward and backward, and adds nothing to the others: its
candidate is tanh(0), and every blend of zeros is zero. So the results are those of the layer, with columns to cut off.
Only where another unit is infinite does its product with a zero weight give NaN; a kernel is told how many units are
`added`, and puts zeros in their place before it multiplies by them.
"""

from __future__ import annotations

from itertools import zip_longest
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
    """With `more` hidden units; results get memory of their own."""
    hidden_size = given.h0.shape[-1]
    return Operands(
        None if given.gates_in is None else _wider(given.gates_in, hidden_size, more),
        pad(given.h0, (0, more)),
        _square(given.w_hh, more),
        None if given.b_hn is None else pad(given.b_hn, (0, more)),
        given.steps,
        added=more,
        w_hh_back=None if given.w_hh_back is None else _square(given.w_hh_back, more),
        b_hn_back=None if given.b_hn_back is None else pad(given.b_hn_back, (0, more)),
    )


def wider(given: Given, hidden_size: int, more: int) -> Given:
    """With `more` hidden units beside so many."""
    tensors: Any = (None if x is None else _wider(x, hidden_size, more) for x in given)
    return type(given)(*tensors)


def narrower(found: Found, hidden_size: int, more: int, *places: Tensor | None) -> Found:
    """The first `hidden_size` of so many and `more` units, in the memory of `places` where that is given."""
    tensors: Any = (
        None if x is None else _narrower(x, hidden_size, more, place) for x, place in zip_longest(found, places)
    )
    return type(found)(*tensors)


def _square(w_hh: Tensor, more: int) -> Tensor:
    """(3H, H) -> (3 * (H + more), H + more), with zeros."""
    return pad(w_hh.unflatten(0, (3, -1)), (0, more, 0, more)).flatten(0, 1)


def _wider(x: Tensor, hidden_size: int, more: int) -> Tensor:
    """(..., parts * H) -> (..., parts * (H + more)), with zeros."""
    return pad(x.unflatten(-1, (x.shape[-1] // hidden_size, hidden_size)), (0, more)).flatten(-2)


def _narrower(x: Tensor, hidden_size: int, more: int, place: Tensor | None) -> Tensor:
    """(..., parts * (H + more)) -> (..., parts * H)."""
    parts = x.unflatten(-1, (x.shape[-1] // (hidden_size + more), hidden_size + more))[..., :hidden_size]
    return parts.flatten(-2).contiguous() if place is None else place.view(parts.shape).copy_(parts).view(place.shape)
