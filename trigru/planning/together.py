"""Whether several layers of a stack run in one launch: where they can, and the model takes fewer seconds."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import torch

from ..kernels.config import PersistentConfig, cdiv, stacked_config, why_not_stacked
from ..layer import Layer
from . import cost, invariant
from .devices import Device
from .stages import Choice, Plan, Stage, grouped, staged

MICRO = 1e6


class Stack(NamedTuple):
    """The layers of a call."""

    num_layers: int
    seq_len: int
    why_apart: str | None  # why none of them can run together, as far as it has nothing to do with sizes


def why_apart(layer: Layer, direction: str, *, packed: bool = False, given: bool = False) -> str | None:
    """Why layers cannot run together in a launch, whatever the sizes and the device; None where they may. given: what
    steps do beside the equations."""
    if layer.schedule not in ("auto", "persistent"):
        return f"asked for {layer.schedule!r} by name"
    if layer.bidirectional:
        return "each needs both directions of the one below"
    if packed:
        return "a launch of several takes no packed sequences"
    if given:
        return "a launch of several runs the equations alone"
    if invariant.is_on():
        return "within trigru.batch_invariant() each layer is a launch"
    if direction == "backward" and layer.memory == "recompute":
        return "gates are computed again layer by layer"
    return None


@functools.lru_cache(maxsize=1024)
def together(single: Choice, device: Device, layer: cost.Layer, stack: Stack, direction: str) -> Plan:
    """The plan of a stack of which `single` is the best for a layer by itself: layer by layer, or several in a launch,
    of the persistent schedule. The reason says which, and why."""
    apart = staged(stack.num_layers, layer.directions, single, direction)
    if stack.num_layers == 1:
        return apart
    best, why = fastest(single.reason, device, layer, stack, direction)
    if best is not None:
        seconds, alone = (plan.seconds(stack.seq_len, device.eager_launch_time) for plan in (best, apart))
        if seconds is None or alone is None or seconds < alone:
            return best
        why = f"together {seconds * MICRO:.0f} us instead of {alone * MICRO:.0f} predicted"
    said = replace(single, reason=f"{single.reason}; layer by layer: {why}")
    return staged(stack.num_layers, layer.directions, said, direction)


def fastest(
    reason: str, device: Device, layer: cost.Layer, stack: Stack, direction: str
) -> tuple[Plan | None, str | None]:
    """The plan with several layers in a launch that is predicted the fastest, or why there is none. reason: of the
    schedule."""
    why = stack.why_apart or _obstacle(device, layer)
    if why is not None:
        return None, why
    sizes = range(2, stack.num_layers + 1)
    found = [plan for most in sizes if (plan := _of(most, reason, device, layer, stack, direction)) is not None]
    if not found:
        if _choice(2, reason, device, layer, stack, direction) is not None:
            return None, "of as many in a launch as fit, one would be left by itself"
        programs = cdiv(layer.hidden_size, PersistentConfig.block_h)
        return (
            None,
            f"two need {2 * programs} programs at once, more than {device.multiprocessors} multiprocessors hold",
        )
    return min(found, key=lambda plan: plan.seconds(stack.seq_len, device.eager_launch_time) or 0.0), None


def _obstacle(device: Device, layer: cost.Layer) -> str | None:
    if torch.version.hip is not None:
        return "a launch of several exchanges as NVIDIA documents"
    if device.capability < (8, 0):
        return "a launch of several needs a GPU of compute capability 8.0 or newer"
    why = why_not_stacked(layer.variant, layer.dtype, layer.hidden_size, layer.precision)
    return None if why is None else f"in a launch of several {why}"


def _of(most: int, reason: str, device: Device, layer: cost.Layer, stack: Stack, direction: str) -> Plan | None:
    """With so many layers at most in a launch; None where their programs are too many, or a layer is left alone."""
    groups = grouped(stack.num_layers, most, direction)
    if min(len(group) for group in groups) == 1:
        return None
    choices = {size: _choice(size, reason, device, layer, stack, direction) for size in {len(g) for g in groups}}
    stages = []
    for group in groups:
        if (choice := choices[len(group)]) is None:
            return None
        stages.append(Stage(group, (0,), choice))
    return Plan(tuple(stages))


def _choice(layers: int, reason: str, device: Device, layer: cost.Layer, stack: Stack, direction: str) -> Choice | None:
    config = stacked_config(layer.dtype, layer.batch, layer.hidden_size)
    programs, _ = config.grid(layer.hidden_size, layer.batch)
    tiles = config.on_a_multiprocessor * device.multiprocessors // (programs * layers)
    if not tiles:
        return None
    config = replace(config, tiles_at_once=tiles * layers, layers=layers)
    step = cost.stacked(layer, config.block_h, config.block_b, layers, direction)
    step = replace(step, sharing=config.on_a_multiprocessor)
    turns = cost.turns(step, device)
    seconds, in_graph = (cost.time(step, device, layer, graph=graph) for graph in (False, True))
    said = (
        f"{reason}; {layers} layers in a launch, each a step behind the one before it: {seconds * MICRO:.1f} us "
        f"a step, {stack.seq_len + layers - 1} steps"
    )
    return Choice("persistent", said, config, turns, (0, turns), seconds, in_graph)
