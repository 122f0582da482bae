"""FlashRNN: the arrays of `flashrnn(Wx, R, b, function="gru")`. Needs no FlashRNN.

    r, z = sigmoid(Wx_r + R_r h + b_r), sigmoid(Wx_z + R_z h + b_z)
    h' = z * h + (1 - z) * tanh(Wx_n + b_n + r * (R_g h + b_g))    in each head by itself

Gates are stacked r, z, n in Wx, g, r, z in R and g, r, z, n in b, heads behind them.
https://github.com/NX-AI/flashrnn/blob/main/flashrnn/flashrnn/vanilla/gru.py
"""

from __future__ import annotations

import numpy as np
import torch

from ..modules import GRU
from .weights import Array, Weights, array, build, one_direction, tensor


def from_flashrnn(R: Array, b: Array, weight: Array, bias: Array | None = None, *, batch_first: bool = True) -> GRU:
    """A `trigru.GRU`, variant "torch", with num_heads, from the arrays that a layer around `flashrnn` holds.

    Args:
        R: (3, heads, head_dim, head_dim), in the default recurrent_shape "GHDP".
        b: (4, heads, head_dim), in the default bias_shape "GHD".
        weight, bias: (3 * heads * head_dim, input_size) and (3 * heads * head_dim,), of the linear layer that makes Wx,
            `linear(x).view(batch, seq_len, 3, heads, head_dim)`. The bias of n is added to that in b: one rounding.
        batch_first: of the module; True is FlashRNN's default input_shape.

    Raises:
        ValueError: an array's shape, dtype or device is not what it must be.

    Example:
        >>> R, b = np.ones((3, 2, 4, 4)), np.ones((4, 2, 4))
        >>> trigru.convert.from_flashrnn(R, b, np.ones((24, 5)))
        trigru.GRU(5, 8, batch_first=True, num_heads=2)
    """
    recurrent = tensor("R", R, (3, "heads", "head_dim", "head_dim"))
    _, heads, size, _ = recurrent.shape
    recurrent = tensor("R", recurrent, (3, heads, size, size))
    gates = 3 * heads * size
    w_ih = tensor("weight", weight, (gates, "input_size"), recurrent)
    g, r, z, n = tensor("b", b, (4, heads, size), recurrent).flatten(1)
    b_ih = torch.zeros_like(w_ih[:, 0]) if bias is None else tensor("bias", bias, (gates,), recurrent).clone()
    b_ih[-heads * size :] += n
    w_hh = torch.cat([recurrent[1:], recurrent[:1]]).reshape(gates, size)
    weights = Weights(w_ih, w_hh, b_ih, torch.cat([r, z, g]))
    return build([[weights]], "torch", batch_first=batch_first, num_heads=heads)


def to_flashrnn(module: GRU) -> dict[str, np.ndarray]:
    """The arguments of `from_flashrnn` for a module, without `bias`: all biases are in b, those of r and z added up.

    Raises:
        ValueError: a variant other than "torch"; several layers; another direction than forward; zoneout, clip or a
            learned first state.
        TypeError: the module is no GRU.

    Example:
        >>> arrays = trigru.convert.to_flashrnn(trigru.GRU(5, 8, num_heads=2))
        >>> {name: array.shape for name, array in arrays.items()}
        {'R': (3, 2, 4, 4), 'b': (4, 2, 4), 'weight': (24, 5)}
    """
    weights = one_direction(module, ("torch",))
    blocks = getattr(module, "_blocks", None)
    heads = 1 if blocks is None else blocks.num_heads
    size = module.hidden_size // heads
    own = torch.arange(heads, device=weights.w_hh.device)
    r, z, n = (w[own, :, own] for w in weights.w_hh.view(3, heads, size, heads, size))
    merged, b_hn = weights.merged_biases
    return {
        "R": array(torch.stack([n, r, z])),
        "b": array(torch.cat([b_hn, merged]).view(4, heads, size)),
        "weight": array(weights.w_ih),
    }
