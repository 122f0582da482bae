"""Whether tensors are, but for the values in them, like those of a call before: all that its operations depend on.

Torch's own guards, those of its compiler, ask all of it in one call, in a fifth of the time that Python takes to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch._C._dynamo import guards

from .plain import PLAIN_TYPES

Fits = Callable[..., bool]
"""Of so many tensors: whether type, dispatch keys, shape, strides, dtype, device and requires_grad are as they were."""


def like(tensors: Sequence[Tensor]) -> Fits | None:
    """What tells whether others are like these; None where one of them is of a subclass, or has no memory."""
    if any(type(x) not in PLAIN_TYPES for x in tensors):
        return None
    if (of_guards := getattr(guards, "TensorGuards", None)) is not None:
        fits: Fits = of_guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        if fits(*tensors):
            return fits
    facts = _facts(tensors)  # guards have no answer where one tensor stands in two places
    return None if facts is None else lambda *others: _facts(others) == facts


def _facts(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]] | None:
    try:
        for x in tensors:
            x.data_ptr()
    except RuntimeError:  # it has no memory: of vmap, or sparse
        return None
    return [(type(x), x.shape, x.stride(), x.dtype, x.device, x.requires_grad, x.is_neg()) for x in tensors]
