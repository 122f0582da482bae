"""Equinox: the arrays of `equinox.nn.GRUCell`. Needs neither Equinox nor JAX.

    r = sigmoid(W_ir x + b_r + W_hr h)    z likewise
    n = tanh(W_in x + b_n + r * (W_hn h + bias_n))
    h' = n + z * (h - n)

Gates are stacked r, z, n. https://docs.kidger.site/equinox/api/nn/rnn and
https://github.com/patrick-kidger/equinox/blob/main/equinox/nn/_rnn.py
"""

from __future__ import annotations

import numpy as np
import torch

from ..modules import GRU
from .weights import Array, Module, Weights, array, build, one_direction, tensor


def from_equinox(
    weight_ih: Array,
    weight_hh: Array,
    bias: Array | None = None,
    bias_n: Array | None = None,
    *,
    batch_first: bool = False,
) -> GRU:
    """A `trigru.GRU`, variant "torch", from `cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n`.

    Args:
        weight_ih: (3 * hidden_size, input_size). weight_hh: (3 * hidden_size, hidden_size).
        bias: (3 * hidden_size,). bias_n: (hidden_size,). Both None with use_bias=False.
        batch_first: of the module.

    Raises:
        ValueError: an array's shape, dtype or device is not what it must be; one bias without the other.

    Example:
        >>> trigru.convert.from_equinox(np.ones((21, 5)), np.ones((21, 7)), np.ones(21), np.ones(7))
        trigru.GRU(5, 7)
    """
    w_hh = tensor("weight_hh", weight_hh, ("3 * hidden_size", "hidden_size"))
    hidden_size = w_hh.shape[1]
    w_hh = tensor("weight_hh", weight_hh, (3 * hidden_size, hidden_size))
    w_ih = tensor("weight_ih", weight_ih, (3 * hidden_size, "input_size"), w_hh)
    if (bias is None) != (bias_n is None):
        raise ValueError(f"{'bias' if bias is None else 'bias_n'}: expected with the other bias, got None")
    b_ih = b_hh = None
    if bias is not None:
        b_ih = tensor("bias", bias, (3 * hidden_size,), w_hh)
        b_hh = torch.cat([b_ih.new_zeros(2 * hidden_size), tensor("bias_n", bias_n, (hidden_size,), w_hh)])
    return build([[Weights(w_ih, w_hh, b_ih, b_hh)]], "torch", batch_first=batch_first)


def to_equinox(module: Module) -> dict[str, np.ndarray | None]:
    """The arguments of `from_equinox` for a module: the biases of r and of z are added up, n keeps both.

    Into a cell of the same sizes and use_bias:
        names = ("weight_ih", "weight_hh", "bias", "bias_n")
        arrays = trigru.convert.to_equinox(module)
        cell = eqx.tree_at(lambda c: [getattr(c, n) for n in names], cell, [arrays[n] for n in names],
                           is_leaf=lambda x: x is None)

    Raises:
        ValueError: a variant other than "torch"; several layers; another direction than forward.
        TypeError: the module is no GRU.

    Example:
        >>> {name: array.shape for name, array in trigru.convert.to_equinox(trigru.GRU(5, 7)).items()}
        {'weight_ih': (21, 5), 'weight_hh': (21, 7), 'bias': (21,), 'bias_n': (7,)}
    """
    weights = one_direction(module, ("torch",))
    bias = bias_n = None
    if weights.b_ih is not None:
        bias, bias_n = map(array, weights.merged_biases)
    return {"weight_ih": array(weights.w_ih), "weight_hh": array(weights.w_hh), "bias": bias, "bias_n": bias_n}
