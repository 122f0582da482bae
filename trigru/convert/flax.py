"""Flax: the parameters of `flax.linen.GRUCell` and `flax.nnx.GRUCell`. Needs neither Flax nor JAX.

    r = sigmoid(W_ir x + b_ir + W_hr h)    z likewise
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h' = (1 - z) * n + z * h

One matrix a gate in Linen, gates stacked r, z, n in NNX, whose code has no b_hn though its documentation does.
https://flax.readthedocs.io/en/latest/api_reference/flax.linen/layers.html#flax.linen.GRUCell and
https://github.com/google/flax/blob/main/flax/nnx/nn/recurrent.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..modules import GRU
from .weights import Array, Module, Weights, array, build, expect_function, kernels, one_direction, tensor

_GATES = ("r", "z", "n")
_LINEN = [f"i{gate}.{leaf}" for gate in _GATES for leaf in ("kernel", "bias")]
_LINEN += [f"h{gate}.kernel" for gate in _GATES] + ["hn.bias"]
_NNX = ["dense_i.kernel", "dense_i.bias", "dense_h.kernel"]


def from_flax_linen(
    params: Mapping[str, Mapping[str, Array]],
    *,
    batch_first: bool = True,
    gate_fn: Callable[[Any], Any] | None = None,
    activation_fn: Callable[[Any], Any] | None = None,
) -> GRU:
    """A `trigru.GRU`, variant "torch", from a Linen cell's parameters: `cell.init(...)["params"]`.

    The cell's dtype, where it is not that of the parameters, is left behind: it is autocast's part here. So is
    carry_init: the state to begin with is hx. reverse and keep_order of `flax.linen.RNN` are not the cell's.

    Args:
        params: {"ir": {"kernel": (input_size, hidden_size), "bias": (hidden_size,)}, "iz": ..., "in": ...,
            "hr": {"kernel": (hidden_size, hidden_size)}, "hz": ..., "hn": {"kernel": ..., "bias": (hidden_size,)}}.
        batch_first: of the module; True is the layout of `flax.linen.RNN`.
        gate_fn, activation_fn: the cell's, to be checked, as parameters do not tell: `cell.gate_fn` must compute
            sigmoid, `cell.activation_fn` tanh. None for Linen's defaults.

    Raises:
        ValueError: an array is missing, or there is one that a GRUCell has not; an array's shape, dtype or device is
            not what it must be; other activations.

    Example:
        >>> dense = {"kernel": np.ones((5, 7)), "bias": np.ones(7)}
        >>> square = {"kernel": np.ones((7, 7))}
        >>> last = {"kernel": np.ones((7, 7)), "bias": np.ones(7)}
        >>> params = {"ir": dense, "iz": dense, "in": dense, "hr": square, "hz": square, "hn": last}
        >>> trigru.convert.from_flax_linen(params)
        trigru.GRU(5, 7, batch_first=True)
    """
    _expect_sigmoid_and_tanh(gate_fn, activation_fn)
    _expect_no_others(params, _LINEN)
    first = tensor("hr.kernel", _entry(params, "hr", "kernel"), ("hidden_size", "hidden_size"))
    size = first.shape[0]

    def column(name: str, leaf: str, *shape: int | str) -> torch.Tensor:
        return tensor(f"{name}.{leaf}", _entry(params, name, leaf), shape, first)

    width = column("ir", "kernel", "input_size", size).shape[0]
    w_ih = torch.cat([column(f"i{gate}", "kernel", width, size).T for gate in _GATES])
    w_hh = torch.cat([column(f"h{gate}", "kernel", size, size).T for gate in _GATES])
    b_ih = torch.cat([column(f"i{gate}", "bias", size) for gate in _GATES])
    b_hh = torch.cat([b_ih.new_zeros(2 * size), column("hn", "bias", size)])
    return build([[Weights(w_ih, w_hh, b_ih, b_hh)]], "torch", batch_first=batch_first)


def to_flax_linen(module: Module) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of a Linen cell: the biases of r and of z are added up, n keeps both; zeros without biases.

    Raises:
        ValueError: a variant other than "torch"; several layers; another direction than forward.
        TypeError: the module is no GRU.

    Example:
        >>> params = trigru.convert.to_flax_linen(trigru.GRU(5, 7))
        >>> params["ir"]["kernel"].shape, params["hn"]["bias"].shape
        ((5, 7), (7,))
    """
    weights = one_direction(module, ("torch",))
    bias, bias_n = weights.merged_biases
    params: dict[str, dict[str, np.ndarray]] = {}
    for side, stacked in (("i", weights.w_ih), ("h", weights.w_hh)):
        for gate, rows in zip(_GATES, stacked.chunk(3), strict=True):
            params[side + gate] = {"kernel": array(rows.T)}
    for gate, rows in zip(_GATES, bias.chunk(3), strict=True):
        params[f"i{gate}"]["bias"] = array(rows)
    params["hn"]["bias"] = array(bias_n)
    return params


def from_flax_nnx(
    state: Mapping[str, Mapping[str, Array]],
    *,
    batch_first: bool = True,
    gate_fn: Callable[[Any], Any] | None = None,
    activation_fn: Callable[[Any], Any] | None = None,
) -> GRU:
    """A `trigru.GRU`, variant "torch", from an NNX cell's parameters: `nnx.state(cell, nnx.Param)`.

    dtype and promote_dtype, where they are not the parameters' dtype, and carry_init are left behind, as for Linen.

    Args:
        state: {"dense_i": {"kernel": (input_size, 3 * hidden_size), "bias": (3 * hidden_size,)},
            "dense_h": {"kernel": (hidden_size, 3 * hidden_size)}}.
        batch_first: of the module; True is the layout of `flax.nnx.RNN`.
        gate_fn, activation_fn: the cell's, to be checked, as for `from_flax_linen`.

    Raises:
        ValueError: an array is missing, or there is one that a GRUCell has not; an array's shape, dtype or device is
            not what it must be; other activations.

    Example:
        >>> dense_i = {"kernel": np.ones((5, 21)), "bias": np.ones(21)}
        >>> trigru.convert.from_flax_nnx({"dense_i": dense_i, "dense_h": {"kernel": np.ones((7, 21))}})
        trigru.GRU(5, 7, batch_first=True)
    """
    _expect_sigmoid_and_tanh(gate_fn, activation_fn)
    _expect_no_others(state, _NNX)
    given = _entry(state, "dense_i", "kernel"), _entry(state, "dense_h", "kernel")
    kernel, recurrent = kernels(*given, ("dense_i.kernel", "dense_h.kernel"))
    bias = tensor("dense_i.bias", _entry(state, "dense_i", "bias"), (recurrent.shape[1],), recurrent)
    weights = Weights(kernel.T, recurrent.T, bias, torch.zeros_like(bias))
    return build([[weights]], "torch", batch_first=batch_first)


def to_flax_nnx(module: Module) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of an NNX cell, for `nnx.update(cell, ...)`: the biases of r and of z are added up.

    Raises:
        ValueError: b_hn, in bias_hh, is not zero, and the NNX cell has none; a variant other than "torch"; several
            layers; another direction than forward.
        TypeError: the module is no GRU.

    Example:
        >>> state = trigru.convert.to_flax_nnx(trigru.GRU(5, 7, bias=False))
        >>> state["dense_i"]["kernel"].shape, state["dense_i"]["bias"].shape, state["dense_h"]["kernel"].shape
        ((5, 21), (21,), (7, 21))
    """
    weights = one_direction(module, ("torch",))
    bias, bias_n = weights.merged_biases
    if bias_n.any():
        raise ValueError(
            f"bias_hh: expected zeros in its last {len(bias_n)} values, b_hn, which flax.nnx.GRUCell has not, got "
            f"values up to {bias_n.abs().max().item():g}"
        )
    return {
        "dense_i": {"kernel": array(weights.w_ih.T), "bias": array(bias)},
        "dense_h": {"kernel": array(weights.w_hh.T)},
    }


def _expect_sigmoid_and_tanh(gate_fn: Any, activation_fn: Any) -> None:
    for name, function, wanted in (("gate_fn", gate_fn, "sigmoid"), ("activation_fn", activation_fn, "tanh")):
        if function is not None:
            expect_function(name, function, wanted)


def _paths(params: Any) -> list[str]:
    """Names of the arrays two levels deep, "ir.kernel"; of what lies at another depth, as far as it goes."""
    if not isinstance(params, Mapping):
        raise ValueError(f"parameters: expected a mapping of mappings, got {type(params).__name__}")
    return [
        path
        for outer, leaves in params.items()
        for path in ([f"{outer}.{inner}" for inner in leaves] if isinstance(leaves, Mapping) else [str(outer)])
    ]


def _expect_no_others(params: Any, known: Sequence[str]) -> None:
    """Raise ValueError for an array that the converter would drop."""
    others = [path for path in _paths(params) if path not in known]
    if others:
        raise ValueError(f"{others[0]}: expected no such array in a GRUCell, whose arrays are {', '.join(known)}")


def _entry(params: Mapping[str, Mapping[str, Any]], name: str, leaf: str) -> Any:
    try:
        return params[name][leaf]
    except KeyError:
        raise ValueError(
            f"{name}.{leaf}: expected in the parameters, got {', '.join(_paths(params)) or 'none'}"
        ) from None
