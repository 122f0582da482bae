"""TorchRL: `torchrl.modules.GRUModule`, and the GRU and GRUCell written in Python that it can hold. Needs no TorchRL.

All have nn.GRU's equations and parameter names. https://docs.pytorch.org/rl/stable/reference/generated/torchrl.modules.GRUModule.html
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..modules import GRU
from .weights import Module, build, layers_of, recast, variant_of


def from_torchrl(module: nn.Module) -> GRU:
    """A `trigru.GRU`, variant "torch", from a GRUModule, or from torchrl.modules.GRU or GRUCell.

    Layers, directions, biases, dropout and batch_first as there.

    Raises:
        TypeError: the module is none of these.

    Example:
        >>> holder = nn.Module()  # as GRUModule holds it
        >>> holder.gru = nn.GRU(5, 7, num_layers=2, batch_first=True)
        >>> trigru.convert.from_torchrl(holder)
        GRU(5, 7, num_layers=2, batch_first=True)
    """
    held: Any = getattr(module, "gru", module)
    layers = layers_of(held)
    options = {} if isinstance(held, nn.RNNCellBase) else {"batch_first": held.batch_first, "dropout": held.dropout}
    return build(layers, variant_of(held), **options)


def to_torchrl(module: Module) -> dict[str, Tensor]:
    """The state_dict of a GRUModule with as many layers and directions, for its `load_state_dict`.

    A GRUModule can also hold the `trigru.GRU` itself: `GRUModule(gru=module, ...)`, for batch_first modules and where
    no episode ends within a sequence; TorchRL passes its own GRU more arguments there.

    Raises:
        ValueError: a variant other than "torch".
        TypeError: the module is no GRU.

    Example:
        >>> list(trigru.convert.to_torchrl(trigru.GRU(5, 7, bias=False)))
        ['gru.weight_ih_l0', 'gru.weight_hh_l0']
    """
    layers = [[recast(w, variant_of(module), "torch") for w in layer] for layer in layers_of(module)]
    return {f"gru.{name}": value.detach().clone() for name, value in build(layers, "torch").state_dict().items()}
