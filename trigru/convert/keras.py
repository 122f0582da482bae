"""Keras: the weights of `keras.layers.GRU`, alone or in `keras.layers.Bidirectional`. Needs no Keras.

Gates are stacked z, r, n; kernels stand right of the product. https://keras.io/api/layers/recurrent_layers/gru
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..modules import GRU
from .reverse import ReverseGRU
from .weights import (
    Array,
    Module,
    Weights,
    array,
    build,
    expect_function,
    kernels,
    one_layer,
    regate,
    tensor,
    variant_of,
)


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
        trigru.GRU(5, 7, batch_first=True)
        >>> trigru.convert.from_keras([kernel, recurrent_kernel], reset_after=False)
        trigru.GRU(5, 7, bias=False, batch_first=True, variant='cho')
    """
    if len(weights) not in (2, 3, 4, 6):
        raise ValueError(
            f"weights: expected kernel, recurrent_kernel and, with use_bias, bias, or twice these, got {len(weights)}"
        )
    halves = [weights] if len(weights) <= 3 else [weights[: len(weights) // 2], weights[len(weights) // 2 :]]
    names = [""] if len(halves) == 1 else ["forward ", "backward "]
    layer = [_direction(name, half, reset_after) for name, half in zip(names, halves, strict=True)]
    if len(layer) == 2:
        _expect_alike(layer[1], layer[0])
    return build([layer], "torch" if reset_after else "cho", batch_first=batch_first)


def from_keras_layer(layer: Any) -> GRU:
    """A `trigru.GRU`, batch_first, from a built Keras layer: GRU, GRUCell, or Bidirectional of a GRU.

    Of a Bidirectional layer both directions are checked. Activations are judged by their values, not by their names.

    Left behind, as they change no result of inference: dropout and recurrent_dropout (with a UserWarning where they
    are not 0), regularizers, constraints, initializers, seed and trainable, which act in training; unroll, use_cudnn
    and implementation, which are ways to the same numbers. Up to the caller of a `trigru.GRU`: return_sequences and
    return_state (it returns both), initial_state (hx), a mask (a PackedSequence) and what zero_output_for_mask puts
    there.

    Raises:
        ValueError: the layer computes what no `trigru.GRU` does: other activations, go_backwards (whose outputs come
            in reverse order), stateful, a merge_mode other than "concat", directions that differ in reset_after,
            use_bias or units; or it is not built.
        TypeError: another layer, or a subclass, whose own code would be lost.

    Example, with Keras:
        layer = keras.layers.GRU(7, return_sequences=True)
        layer.build((None, None, 5))
        trigru.convert.from_keras_layer(layer)
    """
    kind = _kind(layer)
    if kind != "Bidirectional":
        halves = {"": layer}
    else:
        if layer.merge_mode != "concat":
            raise ValueError(f"merge_mode: expected 'concat', got {layer.merge_mode!r}")
        halves = {"forward_layer.": layer.forward_layer, "backward_layer.": layer.backward_layer}
    for prefix, half in halves.items():
        _expect_plain(prefix, half)
    first, *others = halves.values()
    for option in ("units", "use_bias", "reset_after"):
        for other in others:
            got, want = getattr(other, option), getattr(first, option)
            if got != want:
                raise ValueError(f"backward_layer.{option}: expected {want!r} as the forward layer, got {got!r}")
    if not layer.get_weights():
        raise ValueError("layer: expected one that is built, got one without weights: call it, or layer.build(...)")
    return from_keras(layer.get_weights(), reset_after=first.reset_after)


def _kind(layer: Any, expected: Sequence[str] = ("GRU", "GRUCell", "Bidirectional")) -> str:
    """The name of a class of Keras itself.

    Raises:
        TypeError: no layer of these, or a subclass.
    """
    cls = type(layer)
    if cls.__name__ not in expected or cls.__module__.partition(".")[0] != "keras":
        raise TypeError(
            f"layer: expected keras.layers.{', '.join(expected[:-1]) + ' or ' if expected[1:] else ''}{expected[-1]} "
            f"itself, got {cls.__module__}.{cls.__qualname__}: where it computes the same, pass layer.get_weights() to "
            "from_keras"
        )
    return cls.__name__


def _expect_plain(prefix: str, layer: Any) -> None:
    """Raise, by name, unless one direction computes what `trigru.GRU` does."""
    backwards = prefix == "backward_layer."
    if prefix:
        _kind(layer, ("GRU",))
    for name, wanted in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        expect_function(f"{prefix}{name}", getattr(layer, name), wanted, _call)
    if getattr(layer, "go_backwards", False) != backwards:
        hint = ": flip the input of a forward GRU in its place" if not prefix else ""
        raise ValueError(f"{prefix}go_backwards: expected {backwards}, got {not backwards}{hint}")
    if getattr(layer, "stateful", False):
        raise ValueError(
            f"{prefix}stateful: expected False, got True: a trigru.GRU keeps no state between calls, hx is it; "
            "from_keras(layer.get_weights()) converts the weights"
        )
    for name in ("dropout", "recurrent_dropout"):
        if getattr(layer, name):
            warnings.warn(
                f"{prefix}{name}={getattr(layer, name)} is left behind: it acts within the layer in training, where "
                "trigru.GRU has none",
                stacklevel=3,
            )


def _call(activation: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """An activation's values on an array of numpy; whoever has a layer of Keras has Keras."""
    import keras

    return keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(x)))


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


def _expect_alike(backward: Weights, forward: Weights) -> None:
    if backward.sizes != forward.sizes:
        raise ValueError(
            f"backward kernel: expected input_size and hidden_size {forward.sizes} as the forward layer, "
            f"got {backward.sizes}"
        )
    for what in ("dtype", "device"):
        got, want = getattr(backward.w_hh, what), getattr(forward.w_hh, what)
        if got != want:
            raise ValueError(f"backward kernel: expected {what} {want} as the forward layer, got {got}")
