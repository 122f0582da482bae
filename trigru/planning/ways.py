"""The ways in which a call can run here: what `trigru.tune` chooses among."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..kernels.config import stepwise_config
from ..layer import Layer
from . import cudnn
from .candidates import candidates, matrix_units, persistent_configs
from .configs import EagerConfig
from .devices import present
from .plan import (
    Site,
    choose,
    has_a_part_of,
    modelled,
    named,
    sizes_of,
    why_no_kernels,
)
from .stages import WHOLE, Choice
from .together import Stack, fastest, why_apart

BATCHES = (16, 17)  # on either side of where the stepwise schedule takes another tile
CHUNKS = (EagerConfig(16, 1 << 16), EagerConfig(64, 1 << 18), EagerConfig(256, 1 << 20))


class Way(NamedTuple):
    """How a call runs."""

    forward: Choice
    backward: Choice

    @property
    def whole(self) -> bool:
        """Whether its backward can only follow its own forward."""
        return self.forward.schedule in WHOLE


def ways(layer: Layer, site: Site) -> Iterator[Way]:
    """The candidates, what the model takes first; each forward once, with one and the same backward."""
    first = Way(*(_kept_to(modelled(layer, site, direction).stages[0].choice) for direction in ("forward", "backward")))
    yield first
    backward = _parts_alone(layer, site) if first.whole else first.backward
    yield from (Way(part, backward) for part in parts(layer, site, "forward") if part != first.forward)
    for name in WHOLE:
        if name != first.forward.schedule and _serves(name, layer, site):
            yield Way(named(name), named(name))


def parts(layer: Layer, site: Site, direction: str) -> Iterator[Choice]:
    """The schedules that run layer by layer, or several layers together, with a few tile sizes. What one of them keeps
    any other can go back from; what heads by themselves keep, no other, so that they are all that can be chosen."""
    if site.device.type != "cuda" or why_no_kernels(site.device, site.dtype) is not None:
        yield from (named("eager", config) for config in _chunks(layer, site))
        return
    if layer.num_heads > 1:
        first = modelled(layer, site, direction).stages[0].choice
        if first.schedule == "resident":
            yield _kept_to(first)
            return
    device = present(site.device.index or 0)
    sizes = sizes_of(layer, site)
    for found in candidates(device, sizes, direction):
        if found.obstacle is None and not (found.step.together > 1 and has_a_part_of(site.device)):
            yield named(found.schedule, found.config)
            if found.schedule == "stepwise":
                matrix = matrix_units(device, sizes)
                tiles = (stepwise_config(site.dtype, batch, layer.hidden_size, matrix) for batch in BATCHES)
                yield from (named("stepwise", tile) for tile in tiles if tile != found.config)
            if found.schedule == "persistent":
                others = persistent_configs(device, sizes, direction)
                yield from (named("persistent", config) for config in others if config != found.config)
    why = why_apart(layer, direction, packed=site.packed, given=bool(site.given))
    if layer.num_layers > 1 and layer.num_heads == 1 and not has_a_part_of(site.device):
        stack = Stack(layer.num_layers, site.seq_len, why)
        together, _ = fastest("", device, sizes, stack, direction)
        if together is not None:
            yield named("persistent", together.stages[0].choice.config)


def _chunks(layer: Layer, site: Site) -> Iterator[EagerConfig | None]:
    """Chunks of the eager schedule; None for the usual ones. Those that hold a whole sequence are alike."""
    seen = set()
    for config in sorted(CHUNKS, key=lambda config: config != EagerConfig()):
        rows = config.chunk_elements // layer.hidden_size
        steps = max(1, min(config.chunk_steps, rows // max(site.batch, 1), site.seq_len))
        if steps not in seen:
            yield None if config == EagerConfig() else config
        seen.add(steps)


def _kept_to(choice: Choice) -> Choice:
    return named(choice.schedule, choice.config)


def _parts_alone(layer: Layer, site: Site) -> Choice:
    """The backward that the model takes where nothing runs all layers at once."""
    sizes = (site.device, site.dtype, site.batch, layer.hidden_size)
    options = {"variant": layer.variant, "direction": "backward", "directions": layer.directions}
    return _kept_to(choose("auto", *sizes, **options))  # type: ignore[arg-type]


def _serves(name: str, layer: Layer, site: Site) -> bool:
    """Whether what runs all layers at once can run the call."""
    if not site.plain:
        return False
    if name == "cudnn":
        return cudnn.why_not(layer, site) is None
    as_torch = layer.variant == "torch" and layer.memory == "keep" and not site.packed
    return as_torch and site.device.type == "cpu" and site.dtype in (torch.float32, torch.float64)
