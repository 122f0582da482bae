"""A model of what one time step costs, to rank schedules where nobody has measured: it counts, then divides by rates.

A step's time is its launches and exchanges (latency), plus the slowest of what a multiprocessor has to do for it:
bytes through L2, bytes out of shared memory, arithmetic. Programs that do not fit on the device at once go in turns.
Both directions of time run in one grid: its programs are twice as many, its latencies are not.
The constants are those of `trigru.planning.devices`; predictions are marked as such wherever they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..kernels.config import cdiv, kept_values
from .devices import Device

SHARED_BYTES_PER_CLOCK = 128  # of one multiprocessor, every generation since Volta (CUDA C++ programming guide)
L2_LATENCY_CLOCKS = 270  # a load that hits L2; published microbenchmarks give 200 (A100) to 290 (H100)
GATES = 3


@dataclass(frozen=True)
class Layer:
    """What is to be planned: one layer, in one direction of time or in both at once."""

    variant: str
    dtype: torch.dtype
    batch: int
    hidden_size: int
    training: bool = True
    precision: str = "ieee"
    directions: int = 1

    @property
    def exchanges(self) -> int:
        """How often a step needs the whole of something that its programs have computed in parts."""
        return 1 if self.variant == "torch" else 2

    @property
    def kept(self) -> int:
        """Values that forward keeps for each hidden unit beside its state: r, z, n, for "torch" W_hn h + b_hn."""
        return kept_values(self.variant) if self.training else 0

    def exchanged(self, direction: str) -> int:
        """(batch, hidden_size) tensors that a step's products read whole: the state, and r * h; or the derivatives of
        three gates."""
        return self.exchanges if direction == "forward" else GATES

    def own(self, direction: str) -> int:
        """Values of each hidden unit that a step loads and stores beside those."""
        if direction == "forward":  # gates' inputs; new state, r * h, what is kept
            return GATES + self.exchanges + self.kept
        derivatives = 4 if self.variant == "torch" else 3
        return 2 + self.kept + derivatives  # the output's gradient, the state before, what was kept


@dataclass(frozen=True)
class Step:
    """Counts of one time step under a schedule, forward or backward."""

    launches: int
    exchanges: int
    programs: int
    l2_bytes: int  # a program
    shared_bytes: int  # read by a program out of shared memory
    flops: int  # a program
    together: int = 1  # programs that wait for each other, and so must be on the device together
    sharing: int = 1  # programs that fit on a multiprocessor together

    @property
    def total_l2_bytes(self) -> int:
        return self.l2_bytes * self.programs


def stepwise(layer: Layer, block_h: int, block_b: int, direction: str = "forward") -> Step:
    """A launch for each product of the step; W_hh and the state come from L2."""
    size = layer.dtype.itemsize
    weights, state = GATES * block_h * layer.hidden_size, layer.exchanged(direction) * block_b * layer.hidden_size
    gates = layer.own(direction) * block_h * block_b
    return Step(
        launches=layer.exchanges,
        exchanges=0,
        programs=layer.directions * cdiv(layer.hidden_size, block_h) * cdiv(layer.batch, block_b),
        l2_bytes=size * (weights + state + gates),
        shared_bytes=size * (weights + state),
        flops=2 * GATES * block_h * block_b * layer.hidden_size,
    )


def walking(layer: Layer, block_h: int, block_b: int, at_once: int, direction: str = "forward") -> Step:
    """As stepwise in one launch, of at most so many programs, each of which does the work of several where that does
    not suffice. What they meet by costs two trips more than one that the data tell by themselves."""
    step = stepwise(layer, block_h, block_b, direction)
    programs = min(step.programs, at_once)
    tiles = cdiv(step.programs, programs)
    return replace(
        step,
        launches=0,
        exchanges=2 * layer.exchanges,
        programs=programs,
        l2_bytes=tiles * step.l2_bytes,
        shared_bytes=tiles * step.shared_bytes,
        flops=tiles * step.flops,
        together=programs,
    )


def persistent(layer: Layer, block_h: int, block_b: int, direction: str = "forward") -> Step:
    """No launch; W_hh stays on chip, what the programs of a batch tile computed goes through L2."""
    size = layer.dtype.itemsize
    state = layer.exchanged(direction) * block_b * layer.hidden_size
    together = cdiv(layer.hidden_size, block_h)
    return Step(
        launches=0,
        exchanges=layer.exchanges,
        programs=layer.directions * together * cdiv(layer.batch, block_b),
        l2_bytes=size * (state + layer.own(direction) * block_h * block_b),
        shared_bytes=size * (GATES * block_h * layer.hidden_size + state),
        flops=2 * GATES * block_h * block_b * layer.hidden_size,
        together=together,
    )


def resident(layer: Layer, block_b: int, direction: str = "forward") -> Step:
    """No launch and no exchange: a program has all of W_hh for its batch tile."""
    size = layer.dtype.itemsize
    return Step(
        launches=0,
        exchanges=0,
        programs=layer.directions * cdiv(layer.batch, block_b),
        l2_bytes=size * layer.own(direction) * layer.hidden_size * block_b,
        shared_bytes=size * (GATES * layer.hidden_size + layer.exchanged(direction) * block_b) * layer.hidden_size,
        flops=2 * GATES * layer.hidden_size**2 * block_b,
    )


def turns(step: Step, device: Device) -> int:
    """How many times the device has to be filled for all programs to have run."""
    groups_at_once = max(1, step.sharing * device.multiprocessors // step.together)
    return cdiv(step.programs // step.together, groups_at_once)


def crowd(step: Step, device: Device) -> int:
    """How many programs share a multiprocessor, each with its share of what that does."""
    return min(step.sharing, cdiv(step.programs, device.multiprocessors))


def time(step: Step, device: Device, layer: Layer, *, graph: bool = False) -> float:
    """Predicted seconds of one time step; graph: inside a CUDA graph, where launches do not wait for the host."""
    l2 = step.l2_bytes / (device.l2_bandwidth / device.multiprocessors)
    shared = step.shared_bytes / (SHARED_BYTES_PER_CLOCK * device.clock)
    arithmetic = step.flops / (device.flops(layer.dtype, layer.precision) / device.multiprocessors)
    latency = L2_LATENCY_CLOCKS / device.clock
    work = turns(step, device) * (latency + crowd(step, device) * max(l2, shared, arithmetic))
    # With programs in turns, each turn runs the whole sequence and waits for exchanges of its own.
    waiting = step.exchanges * device.exchange_time * turns(step, device)
    on_device = step.launches * (device.launch_time + latency) + waiting + work
    return on_device if graph else max(on_device, step.launches * device.eager_launch_time)
