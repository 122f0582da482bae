"""Whether several layers of a stack run in one launch: where they can, and the model takes fewer seconds."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import torch

from ..kernels.config import PersistentConfig, cdiv, stacked_config, why_not_stacked
from . import cost
from .devices import Device
from .stages import Choice, Plan, Stage, grouped, staged

MICRO = 1e6


class Stack(NamedTuple):
    """The layers of a call."""

    num_layers: int
    seq_len: int
    why_apart: str | None  # why none of them can run together, as far as it has nothing to do with sizes


@functools.lru_cache(maxsize=1024)
def together(single: Choice, device: Device, layer: cost.Layer, stack: Stack, direction: str) -> Plan:
    """The plan of a stack of which `single` is the best for a layer by itself: layer by layer, or several in a launch,
    of the persistent schedule. The reason says which, and why."""
    apart = staged(stack.num_layers, layer.directions, single, direction)
    if stack.num_layers == 1:
        return apart
    seconds = apart.seconds(stack.seq_len, device.launch_time)
    why = stack.why_apart or _obstacle(device, layer)
    found: list[tuple[float, Plan]] = []
    for most in range(2, stack.num_layers + 1) if why is None else ():
        plan = _of(most, single, device, layer, stack, direction)
        if plan is not None and (predicted := plan.seconds(stack.seq_len, device.launch_time)) is not None:
            found.append((predicted, plan))
    if why is None and not found:
        programs = cdiv(layer.hidden_size, PersistentConfig.block_h)
        why = f"two need {2 * programs} programs at once, {device.multiprocessors} multiprocessors have too few"
    if why is None and seconds is not None:
        predicted, best = min(found, key=lambda one: one[0])
        if predicted < seconds:
            return best
        why = f"together {predicted * MICRO:.0f} us instead of {seconds * MICRO:.0f} predicted"
    said = replace(single, reason=f"{single.reason}; layer by layer: {why}")
    return staged(stack.num_layers, layer.directions, said, direction)


def _obstacle(device: Device, layer: cost.Layer) -> str | None:
    if torch.version.hip is not None:
        return "a launch of several exchanges as NVIDIA documents"
    if device.capability < (8, 0):
        return "a launch of several needs a GPU of compute capability 8.0 or newer"
    why = why_not_stacked(layer.variant, layer.dtype, layer.hidden_size, layer.precision)
    return None if why is None else f"in a launch of several {why}"


def _of(most: int, single: Choice, device: Device, layer: cost.Layer, stack: Stack, direction: str) -> Plan | None:
    """With so many layers at most in a launch; None where their programs are too many, or a layer is left alone."""
    groups = grouped(stack.num_layers, most, direction)
    if min(len(group) for group in groups) == 1:
        return None
    choices = {size: _choice(size, single, device, layer, stack, direction) for size in {len(g) for g in groups}}
    stages = []
    for group in groups:
        if (choice := choices[len(group)]) is None:
            return None
        stages.append(Stage(group, (0,), choice))
    return Plan(tuple(stages))


def _choice(
    layers: int, single: Choice, device: Device, layer: cost.Layer, stack: Stack, direction: str
) -> Choice | None:
    config = stacked_config(layer.dtype, layer.batch, layer.hidden_size)
    programs, _ = config.grid(layer.hidden_size, layer.batch)
    tiles = config.on_a_multiprocessor * device.multiprocessors // (programs * layers)
    if not tiles:
        return None
    config = replace(config, tiles_at_once=tiles * layers, layers=layers)
    step = cost.stacked(layer, config.block_h, config.block_b, layers, direction)
    step = replace(step, sharing=config.on_a_multiprocessor)
    turns, seconds = cost.turns(step, device), cost.time(step, device, layer)
    reason = (
        f"{single.reason}; {layers} layers in a launch, each a step behind the one before it: {seconds * MICRO:.1f} us "
        f"a step, {stack.seq_len + layers - 1} steps"
    )
    return Choice("persistent", reason, config, turns, (0, turns), seconds)
