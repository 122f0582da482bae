"""Keras: the weights of `keras.layers.GRU`, alone or in `keras.layers.Bidirectional`. Needs no Keras.

Gates are stacked z, r, n; kernels stand right of the product. https://keras.io/api/layers/recurrent_layers/gru
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..modules import GRU
from .reverse import ReverseGRU
from .weights import Array, Module, Weights, array, build, kernels, one_layer, regate, tensor, variant_of


def from_keras(weights: Sequence[Array], *, reset_after: bool = True, batch_first: bool = True) -> GRU:
    """A `trigru.GRU` from `layer.get_weights()` of a Keras GRU: variant "torch" with reset_after, else "cho".

    Args:
        weights: kernel (input_size, 3 * hidden_size), recurrent_kernel (hidden_size, 3 * hidden_size) and, with
            use_bias, bias: (2, 3 * hidden_size) with reset_after, else (3 * hidden_size,). Of a Bidirectional layer
            (merge_mode="concat") those of the forward layer, then those of the backward layer.
        reset_after: as the layer's; True is Keras' default.
        batch_first: of the module; True is Keras' layout.

    The layer's activations must be Keras' defaults, tanh and sigmoid; `from_keras_layer` looks.

    Raises:
        ValueError: the number of arrays, or an array's shape, dtype or device is not what it must be.

    Example:
        >>> kernel, recurrent_kernel, bias = np.ones((5, 21)), np.ones((7, 21)), np.ones((2, 21))
        >>> trigru.convert.from_keras([kernel, recurrent_kernel, bias])
        GRU(5, 7, batch_first=True)
        >>> trigru.convert.from_keras([kernel, recurrent_kernel], reset_after=False)
        GRU(5, 7, bias=False, batch_first=True, variant='cho')
    """
    if len(weights) not in (2, 3, 4, 6):
        raise ValueError(
            f"weights: expected kernel, recurrent_kernel and, with use_bias, bias, or twice these, got {len(weights)}"
        )
    halves = [weights] if len(weights) <= 3 else [weights[: len(weights) // 2], weights[len(weights) // 2 :]]
    names = [""] if len(halves) == 1 else ["forward ", "backward "]
    layer = [_direction(name, half, reset_after) for name, half in zip(names, halves, strict=True)]
    if len(layer) == 2:
        _expect_same_sizes(layer[1], layer[0])
    return build([layer], "torch" if reset_after else "cho", batch_first=batch_first)


def from_keras_layer(layer: Any) -> GRU:
    """A `trigru.GRU`, batch_first, from a built Keras layer: GRU, GRUCell, or Bidirectional of a GRU.

    Its dropout and recurrent_dropout, which act in training only, are left behind; so are return_sequences,
    return_state and stateful, which are up to the caller of a `trigru.GRU`.

    Raises:
        ValueError: the layer computes what no `trigru.GRU` does: other activations, go_backwards (whose outputs come
            in reverse order), a merge_mode other than "concat".

    Example, with Keras:
        layer = keras.layers.GRU(7, return_sequences=True)
        layer.build((None, None, 5))
        trigru.convert.from_keras_layer(layer)
    """
    merge_mode = getattr(layer, "merge_mode", "concat")
    if merge_mode != "concat":
        raise ValueError(f"merge_mode: expected 'concat', got {merge_mode!r}")
    inner = getattr(layer, "forward_layer", layer)
    for name, wanted in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        got = getattr(getattr(inner, name), "__name__", repr(getattr(inner, name)))
        if got != wanted:
            raise ValueError(f"{name}: expected {wanted}, got {got}")
    if getattr(inner, "go_backwards", False):
        raise ValueError("go_backwards: expected False, got True: flip the input of a forward GRU in its place")
    return from_keras(layer.get_weights(), reset_after=inner.reset_after)


def to_keras(module: Module) -> list[np.ndarray]:
    """What `layer.set_weights` of a Keras GRU takes; of a Bidirectional one for a bidirectional module.

    The layer must have reset_after=True for variant "torch", False for "cho" and "chung" (which is written as "cho",
    with z negated), and use_bias as the module. Without reset_after the two biases of each gate are added up.

    Raises:
        ValueError: several layers, or a `ReverseGRU`: the outputs of go_backwards come in reverse order.
        TypeError: the module is no GRU.

    Example:
        >>> [array.shape for array in trigru.convert.to_keras(trigru.GRU(5, 7, variant="cho"))]
        [(5, 21), (7, 21), (21,)]
    """
    if isinstance(module, ReverseGRU):
        raise ValueError("direction: expected forward or both, got reverse, whose outputs Keras gives in reverse order")
    arrays = []
    for weights in one_layer(module, ("torch", "cho")):
        arrays += [regate(weights.w_ih).T, regate(weights.w_hh).T]
        if weights.b_ih is not None:
            b_ih, b_hh = map(regate, weights.biases)
            arrays.append(torch.stack([b_ih, b_hh]) if variant_of(module) == "torch" else b_ih + b_hh)
    return [array(given) for given in arrays]


def _direction(prefix: str, weights: Sequence[Array], reset_after: bool) -> Weights:
    kernel, recurrent = kernels(weights[0], weights[1], (f"{prefix}kernel", f"{prefix}recurrent_kernel"))
    b_ih = b_hh = None
    if len(weights) == 3:
        gates = recurrent.shape[1]
        bias = tensor(f"{prefix}bias", weights[2], (2, gates) if reset_after else (gates,), recurrent)
        b_ih, b_hh = map(regate, bias if reset_after else (bias, torch.zeros_like(bias)))
    return Weights(regate(kernel.T), regate(recurrent.T), b_ih, b_hh)


def _expect_same_sizes(backward: Weights, forward: Weights) -> None:
    if backward.sizes != forward.sizes:
        raise ValueError(
            f"backward kernel: expected input_size and hidden_size {forward.sizes} as the forward layer, "
            f"got {backward.sizes}"
        )
