"""Layers with hidden units added, where a schedule's kernels want another hidden_size than the layer has.

A unit whose weights, inputs and state are zero stays zero, forward and backward, and adds nothing to the others: its
candidate is tanh(0), and every blend of zeros is zero. So the results are those of the layer, with columns to cut off.
Only where another unit is infinite does its product with a zero weight give NaN; a kernel is told how many units are
`added`, and puts zeros in their place before it multiplies by them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, TypeVar

from torch import Tensor
from torch.nn.functional import pad

from .recurrence import Derivatives, Gradients, Kept, Normalised, Operands, PerStep, Recurrence

Given = TypeVar("Given", Kept, Gradients)
Found = TypeVar("Found", Kept, Derivatives)


def missing(hidden_size: int, multiple: int) -> int:
    """Units to add until `multiple` divides hidden_size."""
    return -hidden_size % multiple


def forward(
    schedule: Callable[[Recurrence, Operands, bool], Kept], run: Recurrence, given: Operands, save: bool, more: int
) -> Kept:
    """A schedule's `forward` with `more` hidden units."""
    hidden_size, wider = given.h0.shape[-1], _operands(given, more)
    kept = schedule(run, wider, save)
    if given.begins is not None and wider.begins is not None:
        _narrower(wider.begins, hidden_size, more, given.begins)
    return _all_narrower(kept, hidden_size, more, given.output, given.reserve)


def backward(
    schedule: Callable[[Recurrence, Operands, Kept, Gradients], Derivatives],
    run: Recurrence,
    given: Operands,
    kept: Kept,
    gradients: Gradients,
    more: int,
) -> Derivatives:
    """A schedule's `backward` with `more` hidden units."""
    hidden_size = given.h0.shape[-1]
    kept, gradients = _all_wider(kept, hidden_size, more), _all_wider(gradients, hidden_size, more)
    return _all_narrower(schedule(run, _operands(given, more), kept, gradients), hidden_size, more)


def _operands(given: Operands, more: int) -> Operands:
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
        per_step=None if given.per_step is None else _per_step(given.per_step, given.h0.dim(), more),
        heads=given.heads,
        normalised=None if given.normalised is None else _normalised(given.normalised, hidden_size, more),
    )


def _normalised(given: Normalised, hidden_size: int, more: int) -> Normalised:
    """The same: what is added is normalised to zero."""
    hats = None if given.hats is None else _wider(given.hats, hidden_size, more)
    return given._replace(gain=_wider(given.gain, hidden_size, more), hats=hats)


def _per_step(given: PerStep, dims: int, more: int) -> PerStep:
    """The same; dims: of a tensor that has hidden units."""
    values = given.fresh, given.decay, given.amount, given.dropped
    fresh, decay, amount, dropped = (x if x is None or x.dim() < dims else pad(x, (0, more)) for x in values)
    begins = given.begins
    if begins is not None:
        begins = begins.new_empty(*begins.shape[:-1], begins.shape[-1] + more)
    return given._replace(fresh=fresh, decay=decay, amount=amount, dropped=dropped, begins=begins)


def _all_wider(given: Given, hidden_size: int, more: int) -> Given:
    """With `more` hidden units beside so many."""
    tensors: Any = (None if x is None else _wider(x, hidden_size, more) for x in given)
    return type(given)(*tensors)


def _all_narrower(found: Found, hidden_size: int, more: int, *places: Tensor | None) -> Found:
    """The first `hidden_size` of so many and `more` units, in the memory of `places` where that is given."""
    tensors: Any = (
        None if x is None else _narrower(x, hidden_size, more, place) for x, place in zip_longest(found, places)
    )
    return type(found)(*tensors)


def _square(w_hh: Tensor, more: int) -> Tensor:
    """(3H, H), or several of them, -> (3 * (H + more), H + more), with zeros."""
    return pad(w_hh.unflatten(-2, (3, -1)), (0, more, 0, more)).flatten(-3, -2)


def _wider(x: Tensor, hidden_size: int, more: int) -> Tensor:
    """(..., parts * H) -> (..., parts * (H + more)), with zeros."""
    return pad(x.unflatten(-1, (x.shape[-1] // hidden_size, hidden_size)), (0, more)).flatten(-2)


def _narrower(x: Tensor, hidden_size: int, more: int, place: Tensor | None) -> Tensor:
    """(..., parts * (H + more)) -> (..., parts * H)."""
    parts = x.unflatten(-1, (x.shape[-1] // (hidden_size + more), hidden_size + more))[..., :hidden_size]
    return parts.flatten(-2).contiguous() if place is None else place.view(parts.shape).copy_(parts).view(place.shape)
