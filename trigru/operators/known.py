"""The short way of a call like one before on a GPU: by one look at a table, from its tensors to what was noted of them.

What lies between on the long way (checks, records, plan) depends on what a key holds, and on what the tensors are but
for their values (see `alike`), on nothing else, and is not done again. What was noted, and when it may be repeated:
`trigru.schedules.repeat`, `compute`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..layer import Call, Layer
from ..planning import measured
from ..planning.plan import precision_of
from . import compute
from .alike import Fits, like
from .plain import is_unseen
from .schema import Recorded

Key = tuple[Any, ...]
Asked = tuple[Key, Sequence[Tensor], Sequence[int] | None]
"""Of a call: its key, its tensors (input, hx where it is given, the weights) and, where it is not, hx's shape."""

# Each is looked up once: a call of one takes less time than the way to it.
_profiled = torch.autograd._profiler_enabled
_recording = torch.is_grad_enabled
_benchmark = torch._C._get_cudnn_benchmark


@dataclass(slots=True)
class Known:
    """What is known of calls that are alike: what repeats them, and for their derivative what they are."""

    again: compute.Again
    layer: Layer
    first_kept: int
    recording: bool
    backward: dict[Key | None, list[tuple[Fits, compute.Again]]] = field(
        default_factory=dict
    )  # by keys of `_back_key_of`

    def __call__(self, zeros: bool, *tensors: Tensor) -> Sequence[Any]:
        """As `compute.forward`. tensors: input, hx and the weights. zeros: whether hx is memory yet to be filled with
        them."""
        if (again := self.again.again) is not None:
            try:
                if (found := again(*tensors)) is not None:
                    return found
            except RuntimeError as error:
                self.again.refused(error)
        return compute.forward(self.recorded(*tensors, zeros=zeros))

    def recorded(self, input: Tensor, hx: Tensor, *weights: Tensor, zeros: bool = False) -> Recorded:
        """The whole call. zeros: as above."""
        return Recorded(self.layer, weights, Call(input, hx, zeros=zeros), self.first_kept)

    def back(
        self, grad_output: Tensor | None, grad_h_n: Tensor | None, saved: Sequence[Tensor]
    ) -> list[Tensor | None] | None:
        """As `compute.backward`, where that was noted for tensors like these; else None."""
        noted = self.backward.get(_back_key_of(grad_output, grad_h_n, saved[0]))
        if noted is not None:
            there = _there(grad_output, grad_h_n, saved)
            for fits, known in noted:
                if fits(*there) and (again := known.again) is not None:
                    try:
                        return again(grad_output, grad_h_n, *saved)
                    except RuntimeError as error:
                        known.refused(error)
        return None

    def remember(
        self,
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        saved: Sequence[Tensor],
        again: compute.Again,
    ) -> None:
        """From now on derivatives like this one go the short way."""
        key = _back_key_of(grad_output, grad_h_n, saved[0])
        if key is not None and sum(map(len, self.backward.values())) < compute.KINDS:
            _remember(self.backward.setdefault(key, []), _there(grad_output, grad_h_n, saved), again)


def _back_key_of(grad_output: Tensor | None, grad_h_n: Tensor | None, one: Tensor) -> Key | None:
    """All that a derivative depends on but its tensors and the call that it is of, whose tensors' requires_grad says
    what is asked for; None, by which nothing is noted, where only the long way may be gone. one: of the call's tensors.
    """
    if _recording() or not is_unseen() or measured.TABLE or forward_ad._current_level >= 0:
        return None
    if (around := compute.circumstances()) is None:
        return None
    precise = one.dtype != torch.float32 or precision_of(torch.float32)
    return grad_output is None, grad_h_n is None, around, precise


def _there(grad_output: Tensor | None, grad_h_n: Tensor | None, saved: Sequence[Tensor]) -> Sequence[Tensor]:
    if grad_h_n is None:
        return saved if grad_output is None else (grad_output, *saved)
    return (grad_h_n, *saved) if grad_output is None else (grad_output, grad_h_n, *saved)


def _remember(noted: list[tuple[Fits, Any]], tensors: Sequence[Tensor], what: Any) -> None:
    for i, (fits, _) in enumerate(noted):
        if fits(*tensors):
            noted[i] = fits, what
            return
    if (alike := like(tensors)) is not None:
        noted.append((alike, what))


_known: dict[Key, list[tuple[Fits, Known]]] = {}


def key_of(said: tuple[Any, ...], input: Tensor, zeros: Sequence[int] | None) -> Key | None:
    """All that a call on a GPU depends on but its tensors, of which it has what tells most calls apart; None where only
    the long way may be gone: where anything but eager execution looks on, or a plan depends on more.

    Args:
        said: the call's arguments that are no tensors; hashable.
        zeros: hx's shape where it is not given.
    """
    if not is_unseen() or measured.TABLE or forward_ad._current_level >= 0 or _profiled() or _benchmark():
        return None
    if (around := compute.circumstances()) is None:
        return None
    precise = input.dtype != torch.float32 or precision_of(torch.float32)
    return said, input.shape, zeros is None, _recording(), around, precise


def find(key: Key, tensors: Sequence[Tensor]) -> Known | None:
    """What was noted for a key and tensors like these; None where nothing was, or no longer holds."""
    try:
        noted = _known.get(key)
    except TypeError:  # an option that is not even hashable
        return None
    if noted is not None:
        for fits, known in noted:
            if fits(*tensors) and known.again.again is not None:
                return known
    return None


def remember(asked: Asked, known: Known) -> None:
    """From now on calls with this key, of tensors like these, go the short way."""
    key, tensors, _ = asked
    if sum(map(len, _known.values())) >= compute.KINDS:
        _known.clear()
    _remember(_known.setdefault(key, []), tensors, known)


def forget() -> None:
    """As if no call had been made before."""
    _known.clear()
    compute.forget()
