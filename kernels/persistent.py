"""The persistent schedule's host side: buffers, the reserved pattern, cooperative launches, their error word.

One launch runs the whole sequence for as many groups of programs as fit on the device together, a group for each batch
tile and direction, or for several batch tiles (see several.py); more groups take turns."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import exchange, fetched, per_launch, widen
from .config import PersistentConfig, Protocol, persistent_width
from .launch import outdate, prepare
from .persistent_backward import backward_reset_first, backward_torch
from .persistent_forward import forward_reset_first, forward_torch
from .prologue import State, prologue
from .recurrence import Derivatives, Gradients, Kept, Operands, Recurrence
from .steps import Steps
from .watch import watch

_protocol: Protocol | None = None


@contextmanager
def exchanging_by(protocol: Protocol) -> Iterator[None]:
    """Within the block launches exchange by this protocol, whatever their config says; in all threads, for a backward
    has one of its own."""
    global _protocol
    before, _protocol = _protocol, protocol
    outdate()
    try:
        yield
    finally:
        _protocol = before
        outdate()


def forward(run: Recurrence[PersistentConfig], operands: Operands, save: bool) -> Kept:
    """As `stepwise.forward`. The programs of a batch tile must fit on the device together.

    Raises:
        ValueError: float32 with a precision other than "tf32".
        KernelTimeout: a program waited in vain (see watch.py for when it is raised).
    """
    hidden_size = operands.h0.shape[-1]
    if more := persistent_width(operands.h0.dtype, hidden_size) - hidden_size:
        return widen.forward(forward, run, operands, save, more)
    config, kept, begins = config_of(run), Kept.empty(run, operands, save), operands.begins
    args = kept.arguments(operands) | {"h0_ptr": operands.h0} | per_launch.forward_arguments(operands)
    after = (1, -1) if operands.sides == 2 else (-1,) if run.reverse else (1,)
    if config.tiles == 1:
        args |= per_launch.in_words(operands, after)
    if begins is None:
        kept, exchanged = kept._replace(h_n=operands.h_n if config.tiles == 1 else None), [kept.output]
        if run.variant != "torch":
            exchanged.append(operands.new(hidden_size))
            args["reset_state_ptr"] = exchanged[1]
        args["status_ptr"] = _status(operands.h0, config.protocol)
        args["h0_ptr"] = first_state(operands.h0, config.protocol, *exchanged, status=args["status_ptr"])
    else:  # of h0, too, programs pass on what the first step's products see
        exchange.reserve(begins, config.protocol)
    args |= {"h_n_ptr": kept.h_n, "packed_ptr": _packed(operands, config, False)}
    args["nothing_ptr"] = operands.h0.new_zeros(hidden_size) if config.fetched and operands.steps.packed else None
    args["state_ptr"] = None if config.tiles == 1 else _states(operands.h0, run.variant)
    if run.variant == "torch":
        args |= {"b_hn_ptr": operands.b_hn, "b_hn_back_ptr": operands.b_hn_back}
        _start(forward_torch, args, {}, run, operands)
    else:
        if begins is not None:
            args["reset_state_ptr"] = operands.new(hidden_size)
            exchange.reserve(args["reset_state_ptr"], config.protocol)
        _start(forward_reset_first, args, {"VARIANT": run.variant}, run, operands)
    return kept


def backward(run: Recurrence[PersistentConfig], operands: Operands, kept: Kept, gradients: Gradients) -> Derivatives:
    """As `stepwise.backward`, with what `forward` says here."""
    hidden_size = operands.h0.shape[-1]
    if more := persistent_width(operands.h0.dtype, hidden_size) - hidden_size:
        return widen.backward(backward, run, operands, kept, gradients, more)
    status = _status(operands.h0, config_of(run).protocol)
    derivatives = _derivatives(run, operands, gradients, status)
    args = derivatives.arguments(operands, kept) | {"status_ptr": status}
    args |= per_launch.backward_arguments(operands, derivatives) | {"grad_output_ptr": gradients.output}
    if config_of(run).tiles == 1:
        args |= per_launch.in_words(operands)
    config = config_of(run)
    nothing = config.tiles > 1 or (config.fetched and operands.steps.packed)
    args["nothing_ptr"] = operands.h0.new_zeros(hidden_size) if nothing else None
    args["packed_ptr"] = _packed(operands, config, True)
    if run.variant == "torch":
        args["d_an_ptr"] = derivatives.d_an
        _start(backward_torch, args, {}, run, operands)
    else:
        _start(backward_reset_first, args, {"VARIANT": run.variant}, run, operands)
    return derivatives


def _packed(operands: Operands, config: PersistentConfig, transposed: bool) -> Tensor | None:
    """The columns of both directions' W_hh that programs fetch; None where there are none."""
    if not config.fetched:
        return None
    one = fetched.packed(operands.w_hh, config, transposed)
    if operands.w_hh_back is None:
        return one
    return torch.stack([one, fetched.packed(operands.w_hh_back, config, transposed)])


def _states(h0: Tensor, variant: str) -> Tensor:
    """Memory for what goes from turn to turn where a program takes several batch tiles: the running state, of "cho" and
    "chung" z too."""
    return h0.new_empty(h0.shape if variant == "torch" else (2, *h0.shape), dtype=torch.float32)


def _derivatives(
    run: Recurrence[PersistentConfig], operands: Operands, gradients: Gradients, status: Tensor | None
) -> Derivatives:
    """Memory for them. What is exchanged is filled as the protocol wants it, the status with zeros."""
    h0, hidden_size = operands.h0, operands.h0.shape[-1]
    d_gates, d_an = operands.new(3 * hidden_size), operands.new(hidden_size) if run.variant == "torch" else None
    patterns = [x for x in (d_gates, d_an) if x is not None] if config_of(run).protocol == "data" else []
    d_begin = operands.new(hidden_size) if operands.wants_d_begin else None
    return Derivatives(d_gates, d_an, gradients.last_state(h0, patterns=patterns, status=status), d_begin)


def _status(like: Tensor, protocol: Protocol) -> Tensor | None:
    """Memory for a status buffer, which is yet to be filled with zeros; None where its size is not known."""
    if protocol == "flags":
        return None
    return like.new_empty(exchange.STATUS_WORDS.value, dtype=torch.int32)


def config_of(run: Recurrence[PersistentConfig]) -> PersistentConfig:
    """The run's, with the protocol that is in force."""
    return run.config if _protocol is None else replace(run.config, protocol=_protocol)


def first_state(h0: Tensor, protocol: Protocol, *exchanged: Tensor, status: Tensor | None = None) -> Tensor:
    """h0 as the kernels can wait for it: without the reserved pattern, at an address of whole chunks. Buffers through
    which values are exchanged are filled as the protocol wants them, the status with zeros."""
    if protocol == "data":
        state = torch.empty_like(h0)
        prologue(state=State(state, h0), patterns=exchanged, status=status)
        return state
    return h0.clone() if h0.data_ptr() % 16 else h0


@functools.lru_cache(maxsize=256)
def _constexprs(
    config: PersistentConfig,
    size: tuple[int, int],
    dtype: torch.dtype,
    packed: bool,
    precision: str,
    timeout: float,
) -> dict[str, Any]:
    """The compile-time arguments of every kernel. size: hidden units, and how many of them were added. Not to be
    changed."""
    hidden_size, added = size
    tiles = config.constexprs(hidden_size, dtype)
    return tiles | {
        "H": hidden_size,
        "ADDED": added,
        "PACKED": packed,
        "PRECISION": precision,
        "EVEN_H": hidden_size % config.block_h == 0,
        "EVEN_K": tiles["SPLIT"] * tiles["DEPTH"] == hidden_size,
        "PROTOCOL": config.protocol,
        "TIMEOUT": exchange.ticks(timeout),
    }


def _start(
    kernel: Any,
    args: dict[str, Any],
    constexprs: dict[str, Any],
    run: Recurrence[PersistentConfig],
    operands: Operands,
) -> None:
    """Launch for all batch tiles, with what forward and backward share."""
    steps, h0 = operands.steps, operands.h0
    if h0.dtype == torch.float32 and run.precision != "tf32":
        raise ValueError(
            f'the persistent schedule multiplies float32 with precision "tf32" only, got {run.precision!r}'
        )
    if h0.shape[-2]:
        tiles = config_of(run).tiles
        args["offsets_ptr"] = steps.row_offsets(h0.device)
        args |= per_launch.of_masks(operands)
        constexprs |= per_launch.constexprs(operands) | {"FETCHED": config_of(run).fetched}
        args["tiles"] = tiles if tiles > 1 else None
        start_groups(kernel, args, constexprs, run, h0, steps, operands.sides, added=operands.added)


def start_groups(
    kernel: Any,
    args: dict[str, Any],
    constexprs: dict[str, Any],
    run: Recurrence[PersistentConfig],
    h0: Tensor,
    steps: Steps,
    groups: int,
    *,
    together: int = 1,
    added: int = 0,
) -> None:
    """Launch programs that wait for each other, with what all such kernels share.

    Args:
        h0: (..., B, H), B > 0.
        groups: of programs for each batch tile; so many of them, `together`, wait for each other.
        added: of the hidden units, as in Operands.
    """
    config, (*_, batch, hidden_size) = config_of(run), h0.shape
    programs, batch_tiles = config.grid(hidden_size, batch)
    groups *= batch_tiles
    status = args.get("status_ptr")
    if status is None:
        # At most two exchanges a step of a batch tile.
        counters = 2 * steps.seq_len * groups * config.tiles
        status = exchange.new_status(h0, counters if config.protocol == "flags" else 0)
    watched = watch(h0.device, kernel.__name__, programs, groups, steps.seq_len, batch, hidden_size)
    args |= {"status_ptr": status, "host_ptr": watched.word, "number": watched.number}
    args |= {"T": steps.seq_len, "B": batch, "direction": -1 if run.reverse else 1}
    timeout = exchange.default_timeout() if config.timeout is None else config.timeout
    constexprs |= _constexprs(config, (hidden_size, added), h0.dtype, steps.packed, run.precision, timeout)
    # One status buffer for all turns: an expiry in one makes the waits of later turns short.
    at_once = max(1, (config.tiles_at_once or groups) // together) * together
    warps, sharing = config.num_warps, config.on_a_multiprocessor
    start = prepare(kernel, args, constexprs, ("first_tile",), num_warps=warps, num_stages=1, cooperative=sharing)
    for first in range(0, groups, at_once):
        start((programs, min(at_once, groups - first)), first)
    watched.launched()
