"""Heads side by side in a schedule's launch: each is a GRU of its own hidden units, so they lie as both directions of
time do, one behind the other (see `trigru.kernels.recurrence`): the first direction's heads, then the second's.

`apart` makes of a part's tensors those of its heads, `together` the way back, for derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.recurrence import PerStep
from ..layer import Weights
from .part import Found, Gradients, Run, Upstream

_GATES = 3
_KINDS = len(Weights._fields)


def _units(x: Tensor, heads: int) -> Tensor:
    """(N, H), or (2, N, H), as (heads, N, H / heads), or twice as many."""
    return x.unflatten(-1, (heads, -1)).movedim(-2, -3).flatten(0, -3)


def _rows(x: Tensor, heads: int) -> Tensor:
    """(N,), or (2, N), as (heads, N), or twice as many: the same for each."""
    return x.unsqueeze(-2).expand(*x.shape[:-1], heads, x.shape[-1]).flatten(0, -2)


def _weights(weights: Weights, heads: int) -> list[Weights]:
    """Each head's."""
    each = (
        [None] * heads if w is None else [one.flatten(0, 1) for one in w.unflatten(0, (_GATES, heads, -1)).unbind(1)]
        for w in weights
    )
    return [Weights._make(own) for own in zip(*each, strict=True)]


def _per_step(given: PerStep, heads: int, dims: int) -> PerStep:
    """dims: of a tensor that has hidden units."""
    tensors = {name: x for name, x in given._asdict().items() if isinstance(x, Tensor)}
    own: dict[str, Any] = {name: (_units if x.dim() == dims else _rows)(x, heads) for name, x in tensors.items()}
    return given._replace(**own)


def apart(weights: Sequence[Weights], run: Run, heads: int) -> tuple[list[Weights], Run]:
    """The weights of each head, and a run of all of them; its h_n is left to `final_states`."""
    each = [own for one in weights for own in _weights(one, heads)]
    per_step = None if run.per_step is None else _per_step(run.per_step, heads, run.h0.dim())
    return each, run._replace(h0=_units(run.h0, heads), per_step=per_step, h_n=None)


def final_states(h_n: Tensor, heads: int) -> list[Tensor]:
    """Where each head's last states go, (B, H / heads), in memory laid out for all."""
    return [own for one in (h_n.unbind(0) if h_n.dim() == 3 else [h_n]) for own in one.chunk(heads, 1)]


def upstream_of(upstream: Upstream, heads: int) -> Upstream:
    """Of each head's results and weights."""
    first, needs = upstream.needs[:2], upstream.needs[2:]
    directions = [needs[i : i + _KINDS] for i in range(0, len(needs), _KINDS)]
    return upstream._replace(
        h_n=None if upstream.h_n is None else _units(upstream.h_n, heads),
        needs=(*first, *(need for own in directions for _ in range(heads) for need in own)),
    )


def together(found: Gradients, heads: int) -> Gradients:
    """The derivatives of a part from those of its heads."""
    h0, directions = found.h0, len(found.weights) // (_KINDS * heads)
    if h0 is not None:
        h0 = h0.unflatten(0, (directions, heads)).movedim(1, -2).flatten(-2)
        h0 = h0.squeeze(0) if directions == 1 else h0
    weights: list[Tensor | None] = []
    for first in range(0, len(found.weights), _KINDS * heads):
        weights += [_whole(found.weights[first + kind : first + _KINDS * heads : _KINDS]) for kind in range(_KINDS)]
    given = [found.given[first : first + heads] for first in range(0, len(found.given), heads)]
    return Gradients(found.input, h0, tuple(weights), tuple(map(_given, given)))


def _whole(each: Sequence[Tensor | None]) -> Tensor | None:
    """A weight's derivative, (3H, ...), from those of the heads'."""
    known = [x.unflatten(0, (_GATES, -1)) for x in each if x is not None]
    return torch.stack(known, 1).flatten(0, 2) if known else None


def _given(each: Sequence[Found]) -> Found:
    """What is a row's is every head's, what is a unit's is one's alone."""
    whole: list[Tensor | None] = []
    for values in zip(*each, strict=True):
        known = [x for x in values if x is not None]
        by_row = bool(known) and known[0].dim() == 1
        whole.append(torch.stack(known).sum(0) if by_row else torch.cat(known, 1) if known else None)
    return Found._make(whole)
