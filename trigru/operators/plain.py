"""Who looks on at a call: nothing but eager execution, or a compiler, a transform, a mode, forward-mode AD."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

PLAIN_TYPES = frozenset((Tensor, Parameter))
# Each is looked up once: a call of one takes less time than the way to it.
_is_compiling = torch.compiler.is_compiling
_modes = torch._C._len_torch_dispatch_stack
_is_transformed = torch._C._are_functorch_transforms_active
_tracer = torch._C._get_tracing_state
_is_autocast = torch._C._is_any_autocast_enabled
# Under vmap: torch.func's, or the older one by which autograd batches gradients.
_is_batched = torch._C._functorch.is_batchedtensor
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def is_unseen() -> bool:
    """Whether no compiler, tracer, transform, mode or autocast sees what is called now."""
    return not (_is_compiling() or _modes() or _is_transformed() or _tracer() or _is_autocast())


def is_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nothing but eager execution sees a call: no compiler, tracer, transform, mode, subclass, autocast."""
    if not is_unseen():
        return False
    for x in tensors:  # no any(...), which takes as long again
        if x is not None and (type(x) not in PLAIN_TYPES or x.is_meta or _is_batched(x) or is_legacy_batched(x)):
            return False
    return True


def has_tangent(tensors: Iterable[Tensor | None]) -> bool:
    """Whether forward-mode AD is on and one of the tensors takes part in it.

    Its level is one for all threads: it may be on by another thread's doing."""
    return forward_ad._current_level >= 0 and any(
        x is not None and forward_ad.unpack_dual(_whole(x)).tangent is not None for x in tensors
    )


def _whole(x: Tensor) -> Tensor:
    """What a vmap has batches of: a batched tensor cannot be unpacked."""
    while _is_batched(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def is_transformed() -> bool:
    """Whether torch.func takes derivatives, or a compiler traces under forward mode.

    A constant to dynamo, which guards on both; under vmap alone the operators do."""
    if torch._C._are_functorch_transforms_active():
        stack = torch._C._functorch.get_interpreter_stack() or ()
        return any(level.key() != torch._C._functorch.TransformType.Vmap for level in stack)
    return forward_ad._current_level >= 0 and torch.compiler.is_compiling()


def is_batched() -> bool:
    """Whether a transform of torch.func is on: a vmap, where `is_transformed` says no."""
    return torch._C._are_functorch_transforms_active()


is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]  # the decorator would import dynamo
is_batched._dynamo_marked_constant = True  # type: ignore[attr-defined]
