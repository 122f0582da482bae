"""Ways to start a `trigru.GRU`, in place: functions on a module, as `torch.nn.init`'s are on a tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .modules import GRU


@torch.no_grad()
def orthogonal(module: GRU, gain: float = 1.0) -> GRU:
    """Make the recurrent matrix of each gate orthogonal, of each head by itself: it neither lengthens nor shortens a
    state (Saxe et al. 2014; Keras's and Flax's default).

    Args:
        gain: a factor on all of them.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is no trigru.GRU.

    Example:
        >>> layer = trigru.init.orthogonal(trigru.GRU(8, 16))
        >>> w = layer.weight_hh_l0[:16]
        >>> torch.testing.assert_close(w @ w.T, torch.eye(16))
    """
    for names in _checked(module)._all_weights:
        weight = getattr(module, names[1])
        size = weight.shape[1]
        for block in weight.split(size):
            # torch.nn.init computes in the tensor's own dtype, and 16 bits have no QR
            block.copy_(nn.init.orthogonal_(torch.empty(size, size, device=block.device), gain))
    return module


@torch.no_grad()
def update_bias(module: GRU, value: float | None = None, *, max_steps: int | None = None) -> GRU:
    """Set the bias by which a unit keeps its state: the sum of both biases of the update gate, with the sign by which
    "chung" says the opposite.

    Args:
        value: for all units; above 0 they remember longer.
        max_steps: in place of it, at least 3: units remember for times drawn evenly from 1 to max_steps - 1, as
            log(times) keeps a state (chrono initialisation: Tallec and Ollivier 2018).

    Returns:
        `module`.

    Raises:
        TypeError: `module` is no trigru.GRU; neither or both of value and max_steps.
        ValueError: a module without biases; max_steps below 3.

    Example:
        >>> layer = trigru.init.update_bias(trigru.GRU(8, 16), max_steps=100)
        >>> kept = (layer.bias_ih_l0 + layer.bias_hh_l0)[16:32].exp()
        >>> 1 <= kept.min() and kept.max() <= 99
        tensor(True)
    """
    names = _checked(module)._all_weights
    if (value is None) == (max_steps is None):
        raise TypeError("update_bias: expected either value or max_steps")
    if max_steps is not None and max_steps < 3:
        raise ValueError(f"max_steps: expected at least 3, got {max_steps}")
    if not module.bias:
        raise ValueError("module: expected one with biases, got bias=False")
    sign = -1 if module.variant == "chung" else 1
    for _, _, *biases in names:
        own, other = (getattr(module, name).chunk(3)[1] for name in biases)
        own.copy_(sign * (_times(own, max_steps) if max_steps is not None else torch.full_like(own, value or 0.0)))
        other.zero_()
    return module


def _times(like: Tensor, max_steps: int) -> Tensor:
    """Logarithms of times from 1 to max_steps - 1."""
    return torch.empty_like(like, dtype=torch.float32).uniform_(1, max_steps - 1).log_().clamp_(max=math.log(max_steps))


def _checked(module: GRU) -> GRU:
    if not isinstance(module, GRU):
        raise TypeError(f"module: expected a trigru.GRU, got {type(module).__module__}.{type(module).__qualname__}")
    return module
