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
# Of a program that takes several batch tiles, the least for an exchange of one of them, however few bytes it moves:
# product, sum over warps, gates, stores, one after the other, and so many clocks more for each hidden unit. A model of
# the machine code (bfloat16, sm_90) gave 1,100 to 2,140 clocks for hidden_size 128 to 1024, forward of "torch", and 1.2
# to 1.35 times so many where two programs share a multiprocessor.
TURN_CLOCKS, TURN_CLOCKS_OF_A_UNIT, TURN_SHARED = 1000, 1.1, 1.2
# Times so many, forward, for a program of 32 hidden units: with one product for three gates, or with two. The sums over
# warps have twice as much. Going back, what comes from L2 is the limit.
TURN_WIDE = {1: 1.6, 2: 1.2}


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
    normalised: bool = False  # the products, as norm="layer" does it

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
        normalised = GATES if self.normalised else 0
        return 2 + self.kept + derivatives + normalised  # the output's gradient, the state before, what was kept


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
    tiles: int = 1  # batch tiles that a program takes one after the other; the bytes and flops are of all of them
    turn_clocks: float = 0.0  # the least that one of them takes
    parts: int = 0  # of tiles, each looked at while the one before is multiplied, where weights come from L1

    @property
    def total_l2_bytes(self) -> int:
        return self.l2_bytes * self.programs


def stepwise(layer: Layer, block_h: int, block_b: int, direction: str = "forward") -> Step:
    """A launch for each product of the step; W_hh and the state come from L2."""
    size = layer.dtype.itemsize
    weights, state = GATES * block_h * layer.hidden_size, layer.exchanged(direction) * block_b * layer.hidden_size
    gates = layer.own(direction) * block_h * block_b
    # What normalises a product reads all of it, in float32, after a launch of its own; backward all of the
    # derivatives by it once more, and what was normalised.
    rows = GATES * block_b * layer.hidden_size if layer.normalised else 0
    normalising = rows * (4 if direction == "forward" else 2 * size)
    return Step(
        launches=layer.exchanges * (2 if layer.normalised and direction == "forward" else 1),
        exchanges=0,
        programs=layer.directions * cdiv(layer.hidden_size, block_h) * cdiv(layer.batch, block_b),
        l2_bytes=size * (weights + state + gates) + normalising,
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


def persistent(
    layer: Layer, block_h: int, block_b: int, direction: str = "forward", tiles: int = 1, fetches: bool = False
) -> Step:
    """No launch; W_hh stays on chip, what the programs of a batch tile computed goes through L2. tiles: that a program
    takes. fetches: columns of W_hh from L1."""
    if tiles > 1:
        step = persistent(layer, block_h, block_b, direction, fetches=fetches)
        wide = TURN_WIDE[layer.exchanges] if block_h > 16 and direction == "forward" else 1.0
        return replace(
            step,
            programs=layer.directions * step.together * cdiv(layer.batch, block_b * tiles),
            l2_bytes=tiles * step.l2_bytes,
            shared_bytes=tiles * step.shared_bytes,
            flops=tiles * step.flops,
            tiles=tiles,
            turn_clocks=wide * layer.exchanges * (TURN_CLOCKS + TURN_CLOCKS_OF_A_UNIT * layer.hidden_size),
        )
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
        parts=layer.exchanged(direction) * (1 if block_b == 8 or block_h > 16 else 2) if fetches else 0,
    )


def stacked(layer: Layer, block_h: int, block_b: int, layers: int, direction: str = "forward") -> Step:
    """So many layers of the persistent schedule beside each other, each a step further than the one above it: a product
    more, with what the layer beside it has exchanged."""
    step = persistent(layer, block_h, block_b, direction)
    size, beside = layer.dtype.itemsize, 1 if direction == "forward" else GATES
    tile = beside * block_b * layer.hidden_size
    return replace(
        step,
        programs=layers * step.programs,
        l2_bytes=step.l2_bytes + size * tile,
        shared_bytes=step.shared_bytes + size * (GATES * block_h * layer.hidden_size + tile),
        flops=2 * step.flops,
        together=layers * step.together,
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
    if step.parts:  # of the first no product, of the last no look hides the other: the model of the machine code agrees
        products = max(shared, arithmetic)
        l2, shared = max(l2, products) + min(l2, products) / step.parts, 0.0
    if step.tiles > 1:
        turn = crowd(step, device) * max(l2, shared, arithmetic) / step.tiles
        least = step.turn_clocks * (TURN_SHARED if crowd(step, device) > 1 else 1) / device.clock
        # The exchange of a tile hides behind the others, or what it takes beyond them is waited for.
        alone = step.exchanges * device.exchange_time + latency + turn
        return turns(step, device) * max(alone, step.tiles * max(turn, least))
    work = turns(step, device) * (latency + crowd(step, device) * max(l2, shared, arithmetic))
    # With programs in turns, each turn runs the whole sequence and waits for exchanges of its own.
    waiting = step.exchanges * device.exchange_time * turns(step, device)
    on_device = step.launches * (device.launch_time + latency) + waiting + work
    return on_device if graph else max(on_device, step.launches * device.eager_launch_time)
