"""Several layers of a stack in one cooperative launch: the persistent schedule's host side for it.

Sizes: L layers, T steps, B batch, H hidden_size, which is the layers' input_size too but for the lowest, N = T * B.
Tensors of several layers hold one behind the other; all are contiguous and of one dtype, but for float32 where it says
so. One direction of time, padded sequences, nothing beside the equations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import exchange
from .config import PersistentConfig, why_not_stacked
from .persistent import config_of, first_state, start_groups
from .recurrence import Gradients, Recurrence
from .stacked_backward import stacked_back_reset_first, stacked_back_torch
from .stacked_forward import stacked_reset_first, stacked_torch
from .steps import Steps


class Layers(NamedTuple):
    """What forward reads, and where its results go. backward reads its results, h0 and W."""

    gates_in: Tensor | None  # (N, 3H) input's share of the lowest layer's pre-activations, with its biases but b_hn
    h0: Tensor  # (L, B, H)
    w_ih: Tensor  # (L - 1, 3H, H) of the layers above the lowest
    w_hh: Tensor  # (L, 3H, H)
    bias: Tensor | None  # (L - 1, 3H) what of their biases can be folded together
    b_hn: Tensor | None  # (L, H), variant "torch" only
    steps: Steps
    states: Tensor  # (L - 1, N, H), out: after each step, of all layers but the last
    output: Tensor  # (N, H), out: of the last
    reserve: Tensor | None = None  # (L, N, kept_values * H), out, as in recurrence.Kept; None: not kept
    stays: Tensor | None = None  # (L - 1, N, H) bool: of the dropout between layers
    scale: float = 1.0  # of what stays, as the dtype has it


def forward(run: Recurrence[PersistentConfig], layers: Layers) -> None:
    """All layers; results go where `layers` says. The programs of a batch tile, of all layers, must fit on the device
    together.

    Raises:
        ValueError: a size, dtype or precision of which `why_not_stacked` says so.
        KernelTimeout: a program waited in vain (see watch.py for when it is raised).
    """
    count, _, hidden_size = layers.h0.shape
    reserved, none = [layers.states, layers.output], layers.h0.new_zeros
    args: dict[str, Any] = {
        "gates_in_ptr": layers.gates_in,
        "h0_ptr": first_state(layers.h0, run.config.protocol),
        "w_ih_ptr": torch.cat([none(1, 3 * hidden_size, hidden_size), layers.w_ih]),
        "w_hh_ptr": layers.w_hh,
        "bias_ptr": none(1 if layers.bias is not None else count, 3 * hidden_size),
        "states_ptr": layers.states,
        "output_ptr": layers.output,
        "reserve_ptr": layers.reserve,
        "stays_ptr": None if layers.stays is None else layers.stays.view(torch.uint8),
        "passed_ptr": None if layers.stays is None else torch.empty_like(layers.states),
        "scale": None if layers.stays is None else layers.scale,
    }
    if layers.bias is not None:
        args["bias_ptr"] = torch.cat([args["bias_ptr"], layers.bias])
    if run.variant == "torch":
        kernel, args["b_hn_ptr"], constexprs = stacked_torch, layers.b_hn, {}
    else:
        kernel, constexprs = stacked_reset_first, {"VARIANT": run.variant}
        args["reset_state_ptr"] = layers.h0.new_empty(count, *layers.output.shape)
        reserved.append(args["reset_state_ptr"])
    for buffer in (*reserved, args["passed_ptr"]):
        if buffer is not None:
            exchange.reserve(buffer, run.config.protocol)
    _start(kernel, args, constexprs, run, layers.h0, layers.steps)


class Derivatives(NamedTuple):
    """What backward gives, of all layers."""

    d_gates: Tensor  # (L, N, 3H), by the pre-activations of r, z, n
    d_an: Tensor | None  # (L, N, H), "torch": by W_hn h + b_hn; None otherwise, where it is dn
    d_state: Tensor  # (L, B, H) float32, by h0


def backward(
    run: Recurrence[PersistentConfig], layers: Layers, grad_output: Tensor, grad_h_n: Tensor | None
) -> Derivatives:
    """Back-propagation through time of all layers.

    Args:
        layers: with the reserve.
        grad_output: (N, H), by the last layer's output.
        grad_h_n: (L, B, H), of any strides, or float32; None: zeros.

    Raises:
        As `forward`.
    """
    h0, none = layers.h0, layers.h0.new_zeros
    count, _, hidden_size = h0.shape
    rows, protocol = count * layers.output.shape[0], run.config.protocol
    memory = h0.new_empty((4 if run.variant == "torch" else 3) * rows * hidden_size)
    exchange.reserve(memory, protocol)  # what is exchanged lies together, so that one launch fills it
    d_gates, d_an = memory.split_with_sizes((3 * rows * hidden_size, memory.numel() - 3 * rows * hidden_size))
    d_gates = d_gates.view(count, -1, 3 * hidden_size)
    args: dict[str, Any] = {
        "grad_output_ptr": grad_output,
        "h0_ptr": h0,
        "w_above_ptr": torch.cat([layers.w_ih, none(1, 3 * hidden_size, hidden_size)]),
        "w_hh_ptr": layers.w_hh,
        "states_ptr": layers.states,
        "output_ptr": layers.output,
        "stays_ptr": None if layers.stays is None else layers.stays.view(torch.uint8),
        "reserve_ptr": layers.reserve,
        "d_state_ptr": Gradients(grad_output, grad_h_n).last_state(h0),
        "d_gates_ptr": d_gates,
        "nothing_ptr": none(3 * hidden_size),
        "scale": None if layers.stays is None else layers.scale,
    }
    if run.variant == "torch":
        args["d_an_ptr"] = d_an = d_an.view(count, -1, hidden_size)
        _start(stacked_back_torch, args, {}, run, h0, layers.steps)
        return Derivatives(d_gates, d_an, args["d_state_ptr"])
    _start(stacked_back_reset_first, args, {"VARIANT": run.variant}, run, h0, layers.steps)
    return Derivatives(d_gates, None, args["d_state_ptr"])


def _start(
    kernel: Any,
    args: dict[str, Any],
    constexprs: dict[str, Any],
    run: Recurrence[PersistentConfig],
    h0: Tensor,
    steps: Steps,
) -> None:
    """Launch for all batch tiles, with what forward and backward share."""
    config, (layers, batch, hidden_size) = config_of(run), h0.shape
    if config.protocol != "data" or steps.packed:
        given = f"{'packed' if steps.packed else 'padded'} sequences by protocol {config.protocol!r}"
        raise ValueError(f'several layers in a launch: expected padded sequences by protocol "data", got {given}')
    if (reason := why_not_stacked(run.variant, h0.dtype, hidden_size, run.precision)) is not None:
        raise ValueError(f"several layers in a launch: {reason}")
    if batch:
        args["layers"] = layers
        start_groups(kernel, args, constexprs, run, h0, steps, layers, together=layers)
