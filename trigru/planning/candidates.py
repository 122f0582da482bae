"""The schedules of Triton kernels for a layer on a device, ranked by the model: their tile sizes, what a step costs, or
why one cannot run. A pure function of a device's description and a layer's sizes: no GPU is needed to call it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..kernels.config import (
    Config,
    PersistentConfig,
    cdiv,
    fetches,
    on_matrix_units,
    persistent_config,
    persistent_width,
    resident_config,
    sharing_config,
    stepwise_config,
    triton_version,
    waits_by_thread,
    walking_config,
    why_one_tile,
)
from . import cost, invariant
from .devices import KIB, Device
from .stages import Choice

DIRECTIONS = ("forward", "backward")
WAITING = ("walking", "persistent")
"""Whose programs wait for each other."""


@dataclass(frozen=True)
class Candidate:
    """A schedule with its tile sizes for a layer on a device, what a step of it costs, or why it cannot run."""

    schedule: str
    config: Config
    step: cost.Step
    turns: int
    seconds: float  # predicted, one step
    graph_seconds: float  # the same, inside a CUDA graph
    obstacle: str | None = None

    def chosen(self, reason: str, direction: str) -> Choice:
        """As what runs, forward or backward."""
        each, once = self.step.launches, 0
        if not each:  # in turns of whole launches, where programs wait for each other
            once = self.turns if self.step.together > 1 else 1
        elif direction == "backward":
            once = 1  # for the state before the first step
        return Choice(self.schedule, reason, self.config, self.turns, (each, once), self.seconds, self.graph_seconds)


def candidates(device: Device, layer: cost.Layer, direction: str = "forward") -> list[Candidate]:
    """Every schedule for the layer on the device, those that can run first, the predicted fastest at their head.

    Args:
        device: a preset of `trigru.planning.devices`, or what `present` says of a device at hand.
        layer: sizes, variant and dtype; `training`: whether forward keeps what backward needs.
        direction: "forward" or "backward". Largest sizes are those of the one that needs more; what one schedule keeps,
            any other can go back from.

    Raises:
        ValueError: another direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: expected one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}")
    found = [each(device, layer, direction) for each in (_stepwise, _walking, _resident, _persistent)]
    if layer.normalised:
        found = [(name, config, step, why or _not_normalised(name)) for name, config, step, why in found]
    if not device.has_bfloat16 and layer.dtype == torch.bfloat16:
        found = [(name, config, step, f"{device.name} has no bfloat16") for name, config, step, _ in found]
    listed = []
    for name, config, step, obstacle in found:
        eager, graph = (cost.time(step, device, layer, graph=graph) for graph in (False, True))
        listed.append(Candidate(name, config, step, cost.turns(step, device), eager, graph, obstacle))
    return sorted(listed, key=lambda c: (c.obstacle is not None, c.seconds))


def _not_normalised(schedule: str) -> str | None:
    """Why a schedule does not normalise products, or None."""
    if schedule in WAITING:
        return "has no norm='layer': in each step its programs would exchange statistics, some 1,100 cycles by a model"
    if schedule == "stepwise" and (0, 0) < triton_version() < (3, 7):
        return "has norm='layer' from Triton 3.7 on; older ones do not compile it"
    return None


_Row = tuple[str, Config, cost.Step, str | None]


def _tiled_for(layer: cost.Layer) -> int:
    """Sequences that tile sizes are chosen for."""
    return invariant.SEQUENCES if invariant.is_on() else layer.batch


def _stepwise(device: Device, layer: cost.Layer, direction: str) -> _Row:
    config = stepwise_config(layer.dtype, _tiled_for(layer), layer.hidden_size, matrix_units(device, layer))
    return "stepwise", config, cost.stepwise(layer, config.block_h, config.block_b, direction), None


def _walking(device: Device, layer: cost.Layer, direction: str) -> _Row:
    config = walking_config(layer.dtype, _tiled_for(layer), layer.hidden_size, matrix_units(device, layer))
    at_once = config.on_a_multiprocessor(layer.dtype, device.shared_per_block) * device.multiprocessors
    config = replace(config, programs=at_once)
    obstacle = None
    if torch.version.hip is not None:
        obstacle = "its programs wait in assembly of NVIDIA's"
    elif device.capability < (7, 0):
        obstacle = "needs a GPU of compute capability 7.0 or newer"
    return "walking", config, cost.walking(layer, config.block_h, config.block_b, at_once, direction), obstacle


def matrix_units(device: Device, layer: cost.Layer) -> bool:
    """See `trigru.kernels.config.on_matrix_units`."""
    capability = device.capability if torch.version.hip is None else None
    return on_matrix_units(layer.dtype, layer.precision, capability)


def _resident(device: Device, layer: cost.Layer, direction: str) -> _Row:
    config = resident_config(layer.dtype, _tiled_for(layer), layer.hidden_size)
    needed = config.shared_bytes(layer.dtype, layer.hidden_size)
    largest = config.largest(layer.dtype, layer.precision, matrix_units(device, layer))
    obstacle = None
    if needed > device.shared_per_block:
        obstacle = f"needs {needed // KIB} KiB of shared memory a program, {device.shared_per_block // KIB} are there"
    elif layer.hidden_size > largest:
        obstacle = f"its registers spill above hidden_size {largest}"
    return "resident", config, cost.resident(layer, config.block_b, direction), obstacle


def _persistent(device: Device, layer: cost.Layer, direction: str) -> _Row:
    config, *others = persistent_configs(device, layer, direction)
    run = replace(layer, hidden_size=persistent_width(layer.dtype, layer.hidden_size))
    programs, _ = config.grid(run.hidden_size, layer.batch)
    largest = config.largest(layer.dtype, layer.precision)
    obstacle = None
    if torch.version.hip is not None:
        obstacle = "its exchange relies on what NVIDIA documents of loads and stores through L2"
    elif layer.dtype == torch.float32 and layer.precision != "tf32":
        obstacle = "float32 without TF32 does not fit its registers"
    elif device.capability < (8, 0):
        obstacle = "needs a GPU of compute capability 8.0 or newer"
    elif layer.hidden_size > largest:
        obstacle = f"its registers spill above hidden_size {largest}"
        if not waits_by_thread():
            obstacle += " with this version of Triton, whose layout makes programs wait as a whole"
        elif not fetches():
            obstacle += " with this version of Triton, with which no columns of W_hh are fetched"
    elif config.fetched and (wanted := config.l1_bytes(layer.dtype)) > device.shared_per_block:
        there = device.shared_per_block // KIB
        obstacle = f"columns of W_hh that it fetches take {wanted // KIB} KiB of L1, {there} are there"
    elif programs > config.on_a_multiprocessor * device.multiprocessors:
        obstacle = f"{programs} programs of a batch tile must run together, {device.multiprocessors} can"
    steps = [_step_of(one, run, direction) for one in (config, *others)]
    # No turns where there need be none: what the model says of them is of launches that none disturbs.
    step, config = min(
        zip(steps, (config, *others), strict=True),
        key=lambda found: (cost.turns(found[0], device), cost.time(found[0], device, layer)),
    )
    return "persistent", config, step, obstacle


def _step_of(config: PersistentConfig, layer: cost.Layer, direction: str) -> cost.Step:
    step = cost.persistent(layer, config.block_h, config.block_b, direction, config.tiles, config.fetched > 0)
    return replace(step, sharing=config.on_a_multiprocessor)


def persistent_configs(device: Device, layer: cost.Layer, direction: str) -> list[PersistentConfig]:
    """The tile sizes of the persistent schedule among which it chooses: those in turns of whole launches first, with
    smaller tiles too where they all fit (within trigru.batch_invariant(), the usual ones alone); then,
    where these would be several, with so many batch tiles in a program that one launch has room for all. There is no
    limit to that number: a further tile never takes longer than a turn would, and its memory is the state's. Within
    trigru.batch_invariant() none has several: going back, a step's sum would be rounded otherwise."""
    usual = persistent_config(layer.dtype, _tiled_for(layer), layer.hidden_size)
    why_one = why_one_tile(layer.variant, direction, layer.dtype, layer.hidden_size, device.capability)
    may = why_one is None and not invariant.is_on()
    hidden_size = persistent_width(layer.dtype, layer.hidden_size)
    shared = sharing_config(usual, layer.variant, direction, layer.dtype, hidden_size)
    small = _smallest_tiles(device, layer, usual, hidden_size)
    in_turns, in_one = [], []
    for config in (usual,) if invariant.is_on() else tuple(one for one in (usual, shared, small) if one is not None):
        programs, batch_tiles = config.grid(hidden_size, layer.batch)
        groups = max(1, config.on_a_multiprocessor * device.multiprocessors // programs)
        config = replace(config, tiles_at_once=groups)
        in_turns.append(config)
        tiles = cdiv(batch_tiles, max(1, groups // layer.directions))
        if tiles > 1 and may:
            in_one.append(replace(config, tiles=tiles))
    return in_turns + in_one


def _smallest_tiles(
    device: Device, layer: cost.Layer, usual: PersistentConfig, hidden_size: int
) -> PersistentConfig | None:
    """Tiles as for a small batch, where each of their programs has a multiprocessor to itself: more programs, each with
    half of the bytes to look at, to multiply and to sum. None where they are the usual ones, or too many."""
    small = persistent_config(layer.dtype, 1, layer.hidden_size)
    programs, batch_tiles = small.grid(hidden_size, layer.batch)
    fit = layer.directions * programs * batch_tiles <= device.multiprocessors
    return small if fit and small.block_b < usual.block_b else None
