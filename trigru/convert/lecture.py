"""The notation of lectures: one matrix a gate, over the state and the input side by side. Variant "chung"."""

from __future__ import annotations

import numpy as np
import torch

from ..modules import GRU
from .weights import Array, Module, Weights, array, build, one_direction, tensor


def from_concatenated(
    W_r: Array,
    W_z: Array,
    W_h: Array,
    b_r: Array | None = None,
    b_z: Array | None = None,
    b_h: Array | None = None,
    *,
    batch_first: bool = False,
) -> GRU:
    """A `trigru.GRU`, variant "chung", from the weights of

        r = sigmoid(W_r [h, x] + b_r)
        z = sigmoid(W_z [h, x] + b_z)
        n = tanh(W_h [r * h, x] + b_h)
        h' = (1 - z) * h + z * n

    as in https://colah.github.io/posts/2015-08-Understanding-LSTMs (without biases). Where z and 1 - z are swapped in
    the last line, negate W_z and b_z.

    Args:
        W_r, W_z, W_h: (hidden_size, hidden_size + input_size); the columns of h come first.
        b_r, b_z, b_h: (hidden_size,); with none of them the module has no biases, a missing one is zero.
        batch_first: of the module.

    Raises:
        ValueError: an array's shape, dtype or device is not what it must be.

    Example:
        >>> W_r, W_z, W_h = torch.randn(3, 7, 7 + 5)
        >>> trigru.convert.from_concatenated(W_r, W_z, W_h)
        trigru.GRU(5, 7, bias=False, variant='chung')
    """
    first = tensor("W_r", W_r, ("hidden_size", "hidden_size + input_size"))
    hidden_size, width = first.shape
    if width <= hidden_size:
        raise ValueError(f"W_r: expected more than {hidden_size} columns for hidden_size {hidden_size}, got {width}")
    matrices = [first, tensor("W_z", W_z, (hidden_size, width), first), tensor("W_h", W_h, (hidden_size, width), first)]
    stacked = torch.cat(matrices)
    bias = [
        first.new_zeros(hidden_size) if given is None else tensor(name, given, (hidden_size,), first)
        for name, given in (("b_r", b_r), ("b_z", b_z), ("b_h", b_h))
    ]
    b_ih = None if b_r is None and b_z is None and b_h is None else torch.cat(bias)
    b_hh = None if b_ih is None else torch.zeros_like(b_ih)
    weights = Weights(stacked[:, hidden_size:], stacked[:, :hidden_size], b_ih, b_hh)
    return build([[weights]], "chung", batch_first=batch_first)


def to_concatenated(module: Module) -> dict[str, np.ndarray]:
    """The arguments of `from_concatenated` for a module: exact for "chung" and, with z negated, for "cho".

    The two biases of each gate are added up.

    Raises:
        ValueError: variant "torch"; several layers; another direction than forward.
        TypeError: the module is no GRU.

    Example:
        >>> arrays = trigru.convert.to_concatenated(trigru.GRU(5, 7, variant="chung"))
        >>> {name: array.shape for name, array in arrays.items()}
        {'W_r': (7, 12), 'W_z': (7, 12), 'W_h': (7, 12), 'b_r': (7,), 'b_z': (7,), 'b_h': (7,)}
    """
    weights = one_direction(module, ("chung",))
    arrays = dict(zip(("W_r", "W_z", "W_h"), torch.cat([weights.w_hh, weights.w_ih], 1).chunk(3), strict=True))
    if weights.b_ih is not None:
        b_ih, b_hh = weights.biases
        arrays |= zip(("b_r", "b_z", "b_h"), (b_ih + b_hh).chunk(3), strict=True)
    return {name: array(given) for name, given in arrays.items()}
