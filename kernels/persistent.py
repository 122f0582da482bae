"""The persistent schedule's host side: buffers, the reserved pattern, cooperative launches, their error word.

One launch runs the whole sequence for as many batch tiles as fit on the device together; more tiles take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import exchange, widen
from .config import PersistentConfig, Protocol, kept_values, persistent_width
from .launch import prepare
from .persistent_backward import backward_reset_first, backward_torch
from .persistent_forward import forward_reset_first, forward_torch
from .steps import Steps
from .watch import watch

_protocol: Protocol | None = None


@contextmanager
def exchanging_by(protocol: Protocol) -> Iterator[None]:
    """Within the block launches exchange by this protocol, whatever their config says; in all threads, for a backward
    has one of its own."""
    global _protocol
    before, _protocol = _protocol, protocol
    try:
        yield
    finally:
        _protocol = before


def forward(
    gates_in: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    b_hn: Tensor | None,
    steps: Steps,
    *,
    variant: str,
    reverse: bool,
    save: bool,
    precision: str,
    config: PersistentConfig,
    timeout: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `stepwise.forward`.

    precision: "tf32" for float32; "ieee" is refused. config: the programs of a batch tile must fit on the device
    together. timeout: seconds after which a wait gives up, None: see `exchange.default_timeout`.

    Raises:
        ValueError: float32 with precision "ieee".
        KernelTimeout: a program waited in vain (see watch.py for when it is raised).
    """
    hidden_size = h0.shape[1]
    config = config if _protocol is None else replace(config, protocol=_protocol)
    if more := persistent_width(h0.dtype, hidden_size) - hidden_size:
        return widen.forward(
            forward, more, gates_in, h0, w_hh, b_hn, steps, variant=variant, reverse=reverse, save=save,
            precision=precision, config=config, timeout=timeout,
        )  # fmt: skip
    output = exchange.new_buffer(gates_in, steps.num_rows, hidden_size, config.protocol)
    reserve = gates_in.new_empty(steps.num_rows, kept_values(variant) * hidden_size) if save else None
    args: dict[str, Any] = {
        "gates_in_ptr": gates_in,
        "h0_ptr": _first_state(h0, config.protocol),
        "w_hh_ptr": w_hh,
        "output_ptr": output,
        "reserve_ptr": gates_in if reserve is None else reserve,
    }
    constexprs: dict[str, Any] = {"SAVE": save}
    if variant == "torch":
        args["b_hn_ptr"] = w_hh if b_hn is None else b_hn
        constexprs["HAS_BIAS"] = b_hn is not None
        kernel = forward_torch
    else:
        args["reset_state_ptr"] = exchange.new_buffer(gates_in, steps.num_rows, hidden_size, config.protocol)
        constexprs["VARIANT"] = variant
        kernel = forward_reset_first
    _start(kernel, args, constexprs, steps, h0, reverse, precision, config, timeout)
    return output, reserve


def backward(
    grad_output: Tensor,
    grad_h_n: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    steps: Steps,
    output: Tensor,
    reserve: Tensor,
    *,
    variant: str,
    reverse: bool,
    precision: str,
    config: PersistentConfig,
    timeout: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `stepwise.backward`, with what `forward` here says of precision, config and timeout."""
    hidden_size = h0.shape[1]
    config = config if _protocol is None else replace(config, protocol=_protocol)
    if more := persistent_width(h0.dtype, hidden_size) - hidden_size:
        return widen.backward(
            backward, more, grad_output, grad_h_n, h0, w_hh, steps, output, reserve, variant=variant, reverse=reverse,
            precision=precision, config=config, timeout=timeout,
        )  # fmt: skip
    d_gates = exchange.new_buffer(grad_output, steps.num_rows, 3 * hidden_size, config.protocol)
    d_state = grad_h_n.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    args: dict[str, Any] = {
        "grad_output_ptr": grad_output,
        "h0_ptr": h0,
        "w_hh_ptr": w_hh,
        "output_ptr": output,
        "reserve_ptr": reserve,
        "d_state_ptr": d_state,
        "d_gates_ptr": d_gates,
    }
    if variant == "torch":
        d_an = exchange.new_buffer(grad_output, steps.num_rows, hidden_size, config.protocol)
        args["d_an_ptr"] = d_an
        _start(backward_torch, args, {}, steps, h0, reverse, precision, config, timeout)
        return d_gates, d_an, d_state
    _start(backward_reset_first, args, {"VARIANT": variant}, steps, h0, reverse, precision, config, timeout)
    return d_gates, None, d_state


def _first_state(h0: Tensor, protocol: Protocol) -> Tensor:
    """h0 as the kernels can wait for it: without the reserved pattern, at an address of whole chunks."""
    if protocol == "data":
        return exchange.canonical_nan(h0)
    return h0.clone() if h0.data_ptr() % 16 else h0


def _start(
    kernel: Any,
    args: dict[str, Any],
    constexprs: dict[str, Any],
    steps: Steps,
    h0: Tensor,
    reverse: bool,
    precision: str,
    config: PersistentConfig,
    timeout: float | None,
) -> None:
    if h0.dtype == torch.float32 and precision != "tf32":
        raise ValueError(f'the persistent schedule multiplies float32 with precision "tf32" only, got {precision!r}')
    batch, hidden_size = h0.shape
    if not batch:
        return
    tiles = config.constexprs(hidden_size, h0.dtype)
    programs, batch_tiles = config.grid(hidden_size, batch)
    # At most two exchanges a step.
    status = exchange.new_status(h0, 2 * steps.seq_len * batch_tiles if config.protocol == "flags" else 0)
    watched = watch(h0.device, kernel.__name__, programs, batch_tiles, steps.seq_len, batch, hidden_size)
    offsets = steps.row_offsets(h0.device) if steps.packed else status  # which no kernel reads
    args |= {"offsets_ptr": offsets, "status_ptr": status, "host_ptr": watched.word, "number": watched.number}
    args |= {"T": steps.seq_len, "B": batch}
    constexprs |= tiles | {
        "H": hidden_size,
        "REVERSE": reverse,
        "PACKED": steps.packed,
        "PRECISION": precision,
        "EVEN_B": not steps.packed and batch % config.block_b == 0,
        "EVEN_H": hidden_size % config.block_h == 0,
        "EVEN_K": tiles["SPLIT"] * tiles["DEPTH"] == hidden_size,
        "PROTOCOL": config.protocol,
        "TIMEOUT": exchange.ticks(exchange.default_timeout() if timeout is None else timeout),
    }
    # One status buffer for all turns: an expiry in one makes the waits of later turns short.
    at_once = config.tiles_at_once or batch_tiles
    warps = config.num_warps
    start = prepare(kernel, args, constexprs, ("first_tile",), num_warps=warps, num_stages=1, cooperative=True)
    for first in range(0, batch_tiles, at_once):  # batch tiles never wait for each other
        grid = programs, min(at_once, batch_tiles - first)
        start(grid, first)
    watched.launched()
