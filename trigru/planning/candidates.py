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
    wide_config,
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
    sharing = config.on_a_multiprocessor(layer.dtype, device.shared_per_block)
    at_once = sharing * device.multiprocessors
    config = replace(config, programs=at_once)
    step = replace(cost.walking(layer, config.block_h, config.block_b, at_once, direction), sharing=sharing)
    obstacle = None
    if torch.version.hip is not None:
        obstacle = "its programs wait in assembly of NVIDIA's"
    elif device.capability < (7, 0):
        obstacle = "needs a GPU of compute capability 7.0 or newer"
    return "walking", config, step, obstacle


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
    configs = persistent_configs(device, layer, direction)
    config, run = configs[0], replace(layer, hidden_size=persistent_width(layer.dtype, layer.hidden_size))
    steps = {one: _step_of(one, run, direction) for one in configs}
    fit = [one for one, step in steps.items() if step.together <= one.on_a_multiprocessor * device.multiprocessors]
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
    elif not fit:
        together = min(step.together for step in steps.values())
        obstacle = f"{together} programs of a batch tile must run together, {device.multiprocessors} can"
    # No turns where there need be none: what the model says of them is of launches that none disturbs.
    config = min(
        fit or configs,
        key=lambda one: (cost.turns(steps[one], device), cost.time(steps[one], device, layer)),
    )
    return "persistent", config, steps[config], obstacle


def _step_of(config: PersistentConfig, layer: cost.Layer, direction: str) -> cost.Step:
    step = cost.persistent(layer, config.block_h, config.block_b, direction, config.tiles, config.fetched > 0)
    return replace(step, sharing=config.on_a_multiprocessor)


def persistent_configs(device: Device, layer: cost.Layer, direction: str) -> list[PersistentConfig]:
    """The tile sizes of the persistent schedule among which it chooses: those in turns of whole launches first, the
    usual ones and, outside of trigru.batch_invariant(), others (smaller batch tiles where they all fit, more hidden
    units a program, half of the registers); then, where turns would be several, with so many batch tiles in a program
    that one launch has room for all. There is no limit to that number: one launch is taken before turns, and a further
    tile's memory is the state's. Within trigru.batch_invariant() none has several: going back, a step's sum would be
    rounded otherwise."""
    usual = persistent_config(layer.dtype, _tiled_for(layer), layer.hidden_size)
    run = replace(layer, hidden_size=persistent_width(layer.dtype, layer.hidden_size))
    if invariant.is_on():
        return [_in_turns(device, usual, run)]
    sizes = layer.variant, direction, layer.dtype, run.hidden_size
    shared, wide = sharing_config(usual, *sizes), wide_config(usual, *sizes[:3], layer.hidden_size)
    if wide is not None and not _wins(wide, usual, device, run, direction):
        wide = None
    wide_shared = None if wide is None else sharing_config(wide, *sizes)
    small = _smallest_tiles(device, layer, usual, run.hidden_size)
    one_tile = [config for config in (usual, shared, small, wide) if config is not None]
    several = []
    if why_one_tile(layer.variant, direction, layer.dtype, layer.hidden_size, device.capability) is None:
        several = [*([] if wide_shared is None else [wide_shared]), *one_tile]  # first, where both are as fast
    in_one = [_in_one(device, config, run) for config in several]
    return [_in_turns(device, config, run) for config in one_tile] + [one for one in in_one if one.tiles > 1]


def _wins(wide: PersistentConfig, usual: PersistentConfig, device: Device, run: cost.Layer, direction: str) -> bool:
    """Whether a launch has no room for all of the usual programs, and L1 for the columns that wide ones fetch."""
    step = _step_of(usual, run, direction)
    room = step.programs <= usual.on_a_multiprocessor * device.multiprocessors
    return not room and (not wide.fetched or wide.l1_bytes(run.dtype) <= device.shared_per_block)


def _in_turns(device: Device, config: PersistentConfig, run: cost.Layer) -> PersistentConfig:
    """As many batch tiles at once as fit on the device; one, if not even that."""
    programs, _ = config.grid(run.hidden_size, run.batch)
    return replace(config, tiles_at_once=max(1, config.on_a_multiprocessor * device.multiprocessors // programs))


def _in_one(device: Device, config: PersistentConfig, run: cost.Layer) -> PersistentConfig:
    """As many batch tiles in a program as let one launch have all."""
    config = _in_turns(device, config, run)
    at_once = max(1, (config.tiles_at_once or 1) // run.directions)
    return replace(config, tiles=cdiv(cdiv(run.batch, config.block_b), at_once))


def _smallest_tiles(
    device: Device, layer: cost.Layer, usual: PersistentConfig, hidden_size: int
) -> PersistentConfig | None:
    """Tiles as for a small batch, where each of their programs has a multiprocessor to itself: more programs, each with
    half of the bytes to look at, to multiply and to sum. None where they are the usual ones, or too many."""
    small = persistent_config(layer.dtype, 1, layer.hidden_size)
    programs, batch_tiles = small.grid(hidden_size, layer.batch)
    fit = layer.directions * programs * batch_tiles <= device.multiprocessors
    return small if fit and small.block_b < usual.block_b else None
