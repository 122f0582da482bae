"""PyPOTS: GRU-D, `pypots.nn.modules.grud.BackboneGRUD`. Needs no PyPOTS.

    gamma_h = exp(-relu(temp_decay_h(d)))    gamma_x = exp(-relu(temp_decay_x(d)))    h_bar = gamma_h * h
    h' = rnn_cell([x_hat, h_bar, m], h_bar)

The cell is nn.GRUCell, so the equations are those of "torch", and not the paper's, and takes the decayed state as an
input as well. https://github.com/WenjieDu/PyPOTS/blob/main/pypots/nn/modules/grud/backbone.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..grud import GRUD
from .weights import Array, Weights, build, layers_of, tensor, variant_of


def from_grud(module: nn.Module, *, mean: Array | None = None, batch_first: bool = True) -> GRUD:
    """A `trigru.GRUD` from PyPOTS's BackboneGRUD, or from a module with a `rnn_cell`, `temp_decay_h` and
    `temp_decay_x` like it whose cell takes the values and the mask alone.

    Where the cell takes the state as an input too, its weights for r and z are added to the recurrent ones: one
    rounding. Those for n must be zero: in the candidate they stand outside of the reset gate, where no weights of a GRU
    do. PyPOTS collects the decayed states before each step, here output has those after it; what was never observed is
    the mean here, and there whatever X_filledLOCF begins with.

    Args:
        module: n_features and rnn_hidden_size as there.
        mean: (input_size,), the empirical_mean that PyPOTS is given at each call; zeros if None.
        batch_first: of the module; True is PyPOTS's layout.

    Raises:
        TypeError: the module has not these parts, or its rnn_cell is no GRU cell.
        ValueError: a weight's shape, dtype or device is not what it must be; the candidate sees the state past the
            reset gate; temp_decay_x is not diagonal.

    Example:
        >>> state = trigru.convert.to_grud(trigru.GRUD(3, 7, variant="torch"))
        >>> theirs = nn.Module()  # as BackboneGRUD
        >>> theirs.rnn_cell = nn.GRUCell(2 * 3 + 7, 7)
        >>> theirs.temp_decay_h, theirs.temp_decay_x = nn.ParameterDict(), nn.ParameterDict()
        >>> for name in state:
        ...     part, _, key = name.partition(".")
        ...     if part != "rnn_cell" and key != "m":
        ...         getattr(theirs, part)[key] = nn.Parameter(state[name])
        >>> theirs.temp_decay_x.diag = True
        >>> theirs.rnn_cell.load_state_dict({k.removeprefix("rnn_cell."): v for k, v in state.items() if "rnn" in k})
        <All keys matched successfully>
        >>> trigru.convert.from_grud(theirs).gru
        trigru.GRU(6, 7, batch_first=True)
    """
    parts: list[Any] = [getattr(module, name, None) for name in ("rnn_cell", "temp_decay_h", "temp_decay_x")]
    cell, decay_h, decay_x = parts
    if not isinstance(cell, nn.RNNCellBase) or None in parts:
        raise TypeError(
            f"module: expected rnn_cell, temp_decay_h and temp_decay_x, as PyPOTS's BackboneGRUD, got "
            f"{type(module).__name__}"
        )
    ((weights,),) = layers_of(cell)  # type: ignore[arg-type]  # it looks
    hidden = weights.w_hh.shape[1]
    weight_h = tensor("temp_decay_h.W", decay_h.W, (hidden, "n_features"), weights.w_hh)
    size = weight_h.shape[1]
    weight_x = tensor("temp_decay_x.W", decay_x.W, (size, size), weights.w_hh)
    if not getattr(decay_x, "diag", False):
        raise ValueError("temp_decay_x.diag: expected True, as a feature's decay goes by its own gap, got False")
    values = {
        "weight_gamma_h": weight_h,
        "bias_gamma_h": tensor("temp_decay_h.b", decay_h.b, (hidden,), weights.w_hh),
        "weight_gamma_x": weight_x.diagonal(),
        "bias_gamma_x": tensor("temp_decay_x.b", decay_x.b, (size,), weights.w_hh),
    }
    weights = _without_state(weights, size)
    variant = variant_of(cell)  # type: ignore[arg-type]
    found = GRUD(
        size,
        hidden,
        weights.b_ih is not None,
        batch_first,
        "meta",
        weights.w_hh.dtype,
        variant=variant,  # type: ignore[arg-type]  # a module's
    ).to_empty(device=weights.w_hh.device)
    found.gru = build([[weights]], variant, batch_first=batch_first)
    at = weights.w_hh.new_zeros(size) if mean is None else tensor("mean", mean, (size,))
    with torch.no_grad():
        for name, value in {**values, "mean": at}.items():
            getattr(found, name).copy_(value)
    return found


def _without_state(weights: Weights, size: int) -> Weights:
    """The weights of a cell that takes [x, m], from those of one that takes [x, m] or [x, h, m]."""
    width, hidden = weights.sizes
    if width == 2 * size:
        return weights
    if width != 2 * size + hidden:
        raise ValueError(
            f"rnn_cell.input_size: expected {2 * size + hidden} (values, state, mask) or {2 * size} (values, mask), "
            f"got {width}"
        )
    w_x, w_h, w_m = weights.w_ih.split([size, hidden, size], 1)
    if w_h[2 * hidden :].any():
        raise ValueError(
            f"rnn_cell.weight_ih: expected zeros in rows {2 * hidden} to {3 * hidden} of columns {size} to "
            f"{size + hidden}, got others: there the candidate sees the state past the reset gate, and no weights of a "
            "GRU make it so. Hold them at zero in training, or give the cell the values and the mask alone"
        )
    return Weights(torch.cat([w_x, w_m], 1), weights.w_hh + w_h, weights.b_ih, weights.b_hh)


def to_grud(module: GRUD) -> dict[str, Tensor]:
    """The state_dict of a BackboneGRUD, for its `load_state_dict`; zeros where its cell takes the state as an input.

    Raises:
        ValueError: a variant other than "torch"; steps that do more than the equations, or begin from a learned state.
        TypeError: the module is no GRUD.

    Example:
        >>> {name: tuple(x.shape) for name, x in trigru.convert.to_grud(trigru.GRUD(3, 7, variant="torch")).items()}
        {'rnn_cell.weight_ih': (21, 13), 'rnn_cell.weight_hh': (21, 7), 'rnn_cell.bias_ih': (21,), \
'rnn_cell.bias_hh': (21,), 'temp_decay_h.W': (7, 3), 'temp_decay_h.b': (7,), 'temp_decay_x.W': (3, 3), \
'temp_decay_x.b': (3,), 'temp_decay_x.m': (3, 3)}
    """
    if not isinstance(module, GRUD):
        raise TypeError(f"module: expected a trigru.GRUD, got {type(module).__name__}")
    if module.gru.variant != "torch":
        raise ValueError(f"variant: expected 'torch', which PyPOTS's nn.GRUCell has, got {module.gru.variant!r}")
    ((weights,),) = layers_of(module.gru)
    b_ih, b_hh = weights.biases
    w_x, w_m = weights.w_ih.chunk(2, 1)
    values = {
        "rnn_cell.weight_ih": torch.cat([w_x, torch.zeros_like(weights.w_hh), w_m], 1),
        "rnn_cell.weight_hh": weights.w_hh,
        "rnn_cell.bias_ih": b_ih,
        "rnn_cell.bias_hh": b_hh,
        "temp_decay_h.W": module.weight_gamma_h,
        "temp_decay_h.b": module.bias_gamma_h,
        "temp_decay_x.W": torch.diag(module.weight_gamma_x),
        "temp_decay_x.b": module.bias_gamma_x,
        "temp_decay_x.m": torch.eye(module.input_size, dtype=b_ih.dtype, device=b_ih.device),
    }
    return {name: value.detach().clone() for name, value in values.items()}
