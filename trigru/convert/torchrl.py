"""TorchRL: `torchrl.modules.GRUModule`, and the GRU and GRUCell written in Python that it can hold. Needs no TorchRL.

All have nn.GRU's equations and parameter names. https://docs.pytorch.org/rl/stable/reference/generated/torchrl.modules.GRUModule.html
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..modules import GRU
from .reverse import ReverseGRU
from .weights import Module, build, layers_of, recast, variant_of


def from_torchrl(module: nn.Module) -> GRU:
    """A `trigru.GRU`, variant "torch", from a GRUModule, or from torchrl.modules.GRU or GRUCell.

    Layers, directions, biases, dropout and batch_first as there. Left behind: recurrent_backend, recurrent_recompute,
    recurrent_matmul_precision (torch's own flags say it here), use_scan and python_based, which are ways to the same
    numbers; in_keys, out_keys and recurrent mode, which are GRUModule's own; and its resets at is_init, which here are
    `reset` and `reset_state` of a call: `trigru.rl.GRUModule` has all of these.

    Raises:
        TypeError: the module is none of these, or a subclass with code of its own.
        ValueError: a GRUModule with recurrent_backend="triton" whose recurrent_compute_dtype rounds its weights.

    Example:
        >>> holder = nn.Module()  # as GRUModule holds it
        >>> holder.gru = nn.GRU(5, 7, num_layers=2, batch_first=True)
        >>> trigru.convert.from_torchrl(holder)
        trigru.GRU(5, 7, num_layers=2, batch_first=True)
    """
    held: Any = module
    if isinstance(getattr(module, "gru", None), nn.Module):
        held = module.gru
        _expect_plain_holder(module)
    layers = layers_of(held)
    rounded = getattr(module, "recurrent_compute_dtype", torch.float32)
    exact = (torch.float32, layers[0][0].w_hh.dtype)
    if getattr(module, "recurrent_backend", "pad") == "triton" and rounded not in exact:
        raise ValueError(f"recurrent_compute_dtype: expected {torch.float32}, got {rounded}: autocast computes so here")
    options = {} if isinstance(held, nn.RNNCellBase) else {"batch_first": held.batch_first, "dropout": held.dropout}
    return build(layers, variant_of(held), **options)


def _expect_plain_holder(module: nn.Module) -> None:
    """Raise TypeError unless the module is GRUModule itself, or an nn.Module with nothing but its `gru`."""
    cls = type(module)
    theirs = cls.__module__.partition(".")[0] == "torchrl" and cls.__name__ == "GRUModule"
    if not theirs and (cls is not nn.Module or len(list(module.children())) > 1):
        raise TypeError(
            f"module: expected torchrl's GRUModule itself, or a GRU, got {cls.__module__}.{cls.__qualname__}: pass its "
            "gru"
        )


def to_torchrl(module: Module) -> dict[str, Tensor]:
    """The state_dict of a GRUModule with as many layers and directions, for its `load_state_dict`.

    A GRUModule can also hold the `trigru.GRU` itself, batch-first: `GRUModule(gru=module, ...)`, of TorchRL, which pads
    episodes that end within a sequence, or of `trigru.rl`, which does not.

    Raises:
        ValueError: a variant other than "torch"; a `ReverseGRU`.
        TypeError: the module is no GRU.

    Example:
        >>> list(trigru.convert.to_torchrl(trigru.GRU(5, 7, bias=False)))
        ['gru.weight_ih_l0', 'gru.weight_hh_l0']
    """
    if isinstance(module, ReverseGRU):
        raise ValueError("direction: expected forward or both, got reverse, which GRUModule has not")
    layers = [[recast(w, variant_of(module), "torch") for w in layer] for layer in layers_of(module)]
    return {f"gru.{name}": value.detach().clone() for name, value in build(layers, "torch").state_dict().items()}
