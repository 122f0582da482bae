"""The short way of a call like one before on a GPU: by one look at a table, from its tensors to what was noted of them.

What lies between on the long way (checks, records, plan) depends on what a key holds and on nothing else, and is not
done again. What was noted, and when it may be repeated: `trigru.schedules.repeat`, `compute`.
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
from ..schedules.stack import Result
from . import compute
from .plain import PLAIN_TYPES, is_unseen
from .schema import Recorded

Key = tuple[Any, ...]

# Each is looked up once: a call of one takes less time than the way to it.
_profiled = torch.autograd._profiler_enabled
_recording = torch.is_grad_enabled
_benchmark = torch._C._get_cudnn_benchmark


@dataclass(slots=True)
class Known:
    """What is known of calls with a key: what repeats them, and for their derivative what they are."""

    again: compute.Again
    layer: Layer
    first_kept: int
    recording: bool
    backward: dict[Key, compute.Again] = field(default_factory=dict)  # by keys of `back_key_of`

    def __call__(self, zeros: bool, input: Tensor, hx: Tensor, *weights: Tensor) -> Result:
        """As `compute.forward`."""
        if (again := self.again.again) is not None:
            try:
                return Result(*again(input, hx, *weights))
            except RuntimeError as error:
                self.again.refused(error)
        return compute.forward(self.recorded(input, hx, *weights, zeros=zeros))

    def recorded(self, input: Tensor, hx: Tensor, *weights: Tensor, zeros: bool = False) -> Recorded:
        """The whole call. zeros: whether hx is memory yet to be filled with them."""
        return Recorded(self.layer, weights, Call(input, hx, zeros=zeros), self.first_kept)

    def back(self, key: Key | None, tensors: Sequence[Tensor | None]) -> list[Tensor | None] | None:
        """As `compute.backward`, where that was noted for a key; else None."""
        if key is None or (known := self.backward.get(key)) is None or (again := known.again) is None:
            return None
        try:
            return again(*tensors)
        except RuntimeError as error:
            known.refused(error)
        return None

    def remember(self, key: Key | None, again: compute.Again) -> None:
        """From now on derivatives with this key go the short way."""
        if key is not None and len(self.backward) < compute.KINDS:
            self.backward[key] = again


_known: dict[Key, Known] = {}


def key_of(said: tuple[Any, ...], tensors: Sequence[Tensor | None]) -> Key | None:
    """All that a call on a GPU depends on; None where only the long way may be gone: where anything but eager execution
    looks on, or a plan depends on more.

    Args:
        said: the call's arguments that are no tensors; hashable.
        tensors: input, hx, and the weights.
    """
    if _watched() or forward_ad._current_level >= 0 or _profiled() or _benchmark():
        return None
    facts: list[Any] = [said, _recording()]
    add, address, first = facts.append, 0, tensors[0]
    try:
        for x in tensors:
            if x is None:
                add(None)
                continue
            if type(x) not in PLAIN_TYPES:
                return None
            address |= x.data_ptr()
            add(x.shape)
            add(x.stride())
            add(x.dtype)
            add(x.device)
            add(x.requires_grad)
    except RuntimeError:  # it has no memory: of vmap, or sparse
        return None
    assert first is not None
    return _key(facts, address, first.dtype)


def back_key_of(needs: tuple[bool, ...], tensors: Sequence[Tensor | None]) -> Key | None:
    """All that a derivative depends on beside the call that it is of; None where only the long way may be gone.

    Args:
        needs: what is asked for; hashable.
        tensors: those that `compute.backward` repeats it by, derivatives by output and h_n first.
    """
    if _recording() or _watched():
        return None
    facts: list[Any] = [needs]
    add, address, like = facts.append, 0, tensors[-1]
    try:
        for x in tensors:
            if x is None:
                add(None)
                continue
            if type(x) not in PLAIN_TYPES:
                return None
            address |= x.data_ptr()
            add(x.stride())
    except RuntimeError:
        return None
    assert like is not None
    return _key(facts, address, like.dtype)


def _watched() -> bool:
    """Whether anything but eager execution looks on, or plans depend on what was measured."""
    return not is_unseen() or bool(measured.TABLE)


def _key(facts: list[Any], address: int, dtype: torch.dtype) -> Key | None:
    if address % 16 or (around := compute.circumstances()) is None:
        return None
    return *facts, around, dtype != torch.float32 or precision_of(dtype)


def find(key: Key) -> Known | None:
    """What was noted for a key; None where nothing was, or no longer holds."""
    try:
        known = _known.get(key)
    except TypeError:  # an option that is not even hashable
        return None
    return known if known is not None and known.again.again is not None else None


def remember(key: Key, known: Known) -> None:
    """From now on calls with this key go the short way."""
    if len(_known) >= compute.KINDS:
        _known.clear()
    _known[key] = known


def forget() -> None:
    """As if no call had been made before."""
    _known.clear()
    compute.forget()
