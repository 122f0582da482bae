"""lfads-torch: ClippedGRU, one direction or both, and its cell. Needs no lfads-torch.

    z, r = sigmoid(W_iz x + b_iz + W_hz h + b_hz), sigmoid(W_ir x + b_ir + W_hr h + b_hr)
    n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)    h' = clamp(z * h + (1 - z) * n, -clip_value, clip_value)

Gates are stacked z, r, n; bias_hh is zero and takes no gradient.
https://github.com/arsedler9/lfads-torch/blob/main/lfads_torch/modules/recurrent.py
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from ..modules import GRU
from .reverse import ReverseGRU
from .weights import Module, Weights, build, layers_of, recast, regate, tensor, variant_of


def from_lfads(module: nn.Module) -> GRU:
    """A `trigru.GRU`, variant "cho", batch-first, from ClippedGRU, BidirectionalClippedGRU or ClippedGRUCell.

    clip_value becomes `clip`; bias_hh takes no gradient here either. The states of a single direction are (batch,
    hidden_size) there, hx and h_n (1, batch, hidden_size) here.

    Raises:
        TypeError: the module is none of these.
        ValueError: a weight's shape, dtype or device is not what it must be; directions with different clip_value.

    Example:
        >>> cell = nn.GRUCell(5, 7)  # ClippedGRUCell is one, with its own forward
        >>> cell.clip_value = 5.0
        >>> trigru.convert.from_lfads(cell)
        trigru.GRU(5, 7, batch_first=True, variant='cho', clip=5.0)
    """
    directions: list[Any] = [module]
    if hasattr(module, "fwd_gru") and hasattr(module, "bwd_gru"):
        directions = [module.fwd_gru, module.bwd_gru]
    cells = [getattr(direction, "cell", direction) for direction in directions]
    for cell in cells:
        if not isinstance(cell, nn.RNNCellBase) or not hasattr(cell, "clip_value"):
            raise TypeError(
                f"module: expected a ClippedGRU of lfads-torch, of one direction or both, or its cell, got "
                f"{type(module).__name__}"
            )
    first = float(cells[0].clip_value)
    if any(float(cell.clip_value) != first for cell in cells):
        raise ValueError(f"clip_value: expected {first} in both directions, got {cells[1].clip_value}")
    clip = None if math.isinf(first) else first
    found = build([[_weights(cell) for cell in cells]], "cho", batch_first=True, clip=clip)
    for name, parameter in found.named_parameters():
        if name.startswith("bias_hh"):
            parameter.requires_grad_(False)
    return found


def _weights(cell: nn.RNNCellBase) -> Weights:
    gates = 3 * cell.hidden_size
    w_hh = tensor("weight_hh", cell.weight_hh, (gates, cell.hidden_size))
    w_ih = tensor("weight_ih", cell.weight_ih, (gates, cell.input_size), w_hh)
    b_ih, b_hh = (tensor(name, getattr(cell, name), (gates,), w_hh) for name in ("bias_ih", "bias_hh"))
    return Weights(*map(regate, (w_ih, w_hh, b_ih, b_hh)))


def to_lfads(module: Module) -> dict[str, Tensor]:
    """The state_dict of a ClippedGRU, or for both directions of a BidirectionalClippedGRU, for its `load_state_dict`;
    clip is its argument clip_value.

    Raises:
        ValueError: the variant "torch"; several layers; a `ReverseGRU`; zoneout or a learned first state.
        TypeError: the module is no GRU.

    Example:
        >>> list(trigru.convert.to_lfads(trigru.GRU(5, 7, variant="chung", clip=5.0)))
        ['cell.weight_ih', 'cell.weight_hh', 'cell.bias_ih', 'cell.bias_hh']
    """
    layers = layers_of(module, kept=("clip",))
    if len(layers) != 1:
        raise ValueError(f"num_layers: expected 1, got {len(layers)}")
    if isinstance(module, ReverseGRU):
        raise ValueError("direction: expected forward or both, got reverse, which lfads-torch has not")
    prefixes = ["cell."] if len(layers[0]) == 1 else ["fwd_gru.cell.", "bwd_gru.cell."]
    found: dict[str, Tensor] = {}
    for prefix, weights in zip(prefixes, layers[0], strict=True):
        weights = recast(weights, variant_of(module), "cho")
        b_ih, b_hh = weights.biases
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        values = zip(names, (weights.w_ih, weights.w_hh, b_ih, b_hh), strict=True)
        found |= {prefix + name: regate(value) for name, value in values}
    return found
