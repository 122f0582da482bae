"""haste: the parameters of `haste_pytorch.GRU`. Needs no haste.

    z = sigmoid(x kernel_z + bias_z + h recurrent_kernel_z + recurrent_bias_z)    r likewise
    g = tanh(x kernel_g + bias_g + r * (h recurrent_kernel_g + recurrent_bias_g))
    h' = z * h + (1 - z) * g

Gates are stacked z, r, g. https://github.com/lmnt-com/haste/blob/master/docs/pytorch/haste_pytorch/GRU.md and
https://github.com/lmnt-com/haste/blob/master/lib/gru_forward_gpu.cu.cc
"""

from __future__ import annotations

import numpy as np

from ..modules import GRU
from .weights import Array, Module, Weights, array, build, kernels, one_direction, regate, tensor


def from_haste(
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array,
    recurrent_bias: Array,
    *,
    batch_first: bool = False,
    zoneout: float = 0.0,
) -> GRU:
    """A `trigru.GRU`, variant "torch", from `haste_pytorch.GRU(...).state_dict()` as keyword arguments.

    dropout, haste's DropConnect, is left behind: it acts in training only.

    Args:
        kernel: (input_size, 3 * hidden_size). recurrent_kernel: (hidden_size, 3 * hidden_size).
        bias, recurrent_bias: (3 * hidden_size,).
        batch_first: of the module; False is haste's default.
        zoneout: the layer's, to be checked, as arrays do not tell: it acts in evaluation too, and must be 0.

    Raises:
        ValueError: an array's shape, dtype or device is not what it must be; zoneout other than 0.

    Example:
        >>> trigru.convert.from_haste(np.ones((5, 21)), np.ones((7, 21)), np.ones(21), np.ones(21))
        trigru.GRU(5, 7)
    """
    if zoneout != 0:
        raise ValueError(f"zoneout: expected 0, got {zoneout}: it mixes the states in evaluation too")
    w_ih, w_hh = kernels(kernel, recurrent_kernel)
    gates = (w_hh.shape[1],)
    b_ih, b_hh = tensor("bias", bias, gates, w_hh), tensor("recurrent_bias", recurrent_bias, gates, w_hh)
    weights = Weights(regate(w_ih.T), regate(w_hh.T), regate(b_ih), regate(b_hh))
    return build([[weights]], "torch", batch_first=batch_first)


def to_haste(module: Module) -> dict[str, np.ndarray]:
    """The arguments of `from_haste` for a module; zero biases for one without.

    Raises:
        ValueError: a variant other than "torch"; several layers; another direction than forward.
        TypeError: the module is no GRU.

    Example:
        >>> {name: array.shape for name, array in trigru.convert.to_haste(trigru.GRU(5, 7)).items()}
        {'kernel': (5, 21), 'recurrent_kernel': (7, 21), 'bias': (21,), 'recurrent_bias': (21,)}
    """
    weights = one_direction(module, ("torch",))
    b_ih, b_hh = weights.biases
    return {
        "kernel": array(regate(weights.w_ih).T),
        "recurrent_kernel": array(regate(weights.w_hh).T),
        "bias": array(regate(b_ih)),
        "recurrent_bias": array(regate(b_hh)),
    }
