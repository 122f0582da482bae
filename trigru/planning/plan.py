"""Which schedule runs, and why.

`candidates`, of the module beside this one, knows a device by its description alone. `choose` adds what the machine at
hand can run, `plan` what was measured and how a call looks.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import torch

from ..layer import Layer
from ..schedules import eager_products
from . import cost, cudnn, invariant, measured
from .candidates import WAITING, Candidate, candidates
from .configs import CudnnConfig, heads_apart
from .devices import PRESETS, Device, present
from .precision import rnn_in_tf32
from .stages import WHOLE, AnyConfig, Choice, Plan, staged
from .together import Stack, together, why_apart
from .triton_state import why_unusable

SCHEDULES = ("auto", "eager", "stepwise", "walking", "resident", "persistent", "cudnn")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What Triton kernels compute in."""

MEMORY = ("keep", "recompute")
"""What forward keeps for backward beside its output: the gates of every step, or nothing."""

KERNELS = ("stepwise", "walking", "resident", "persistent")
"""Those of Triton kernels."""

MICRO = 1e6


def check_schedule(schedule: str) -> None:
    """Raise ValueError unless `schedule` is one of SCHEDULES."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(map(repr, SCHEDULES))}, got {schedule!r}")


def check_memory(memory: str) -> None:
    """Raise ValueError unless `memory` is one of MEMORY."""
    if memory not in MEMORY:
        raise ValueError(f"memory: expected one of {', '.join(map(repr, MEMORY))}, got {memory!r}")


class Site(NamedTuple):
    """Where and how a layer is called: what a plan depends on beside the layer."""

    device: torch.device
    dtype: torch.dtype
    seq_len: int
    batch: int
    packed: bool
    recording: bool  # gradients can be asked for
    plain: bool  # nothing but eager execution looks on: no compiler, tracer, transform, mode, subclass, autocast
    given: tuple[str, ...] = ()  # what steps do beside the equations: names of PerStep's fields


def plan(layer: Layer, site: Site, direction: str = "forward") -> Plan:
    """What runs a call: the one decision, for `trigru.explain` too.

    "torch" stands for torch's own GRU, which runs all layers or none.

    Raises:
        RuntimeError: the schedule asked for by name cannot run here, or within `trigru.batch_invariant` only what may
            not.
    """
    if invariant.is_on():
        return _invariant(layer, site, direction)
    if (
        measured.TABLE
        and layer.schedule == "auto"
        and not site.given
        and (winner := _measured(layer, site, direction)) is not None
    ):
        return staged(layer.num_layers, layer.directions, winner, direction)
    return modelled(layer, site, direction)


def _invariant(layer: Layer, site: Site, direction: str) -> Plan:
    """Where what a sequence gets must not depend on its batch: kernels or nothing."""
    if "norm" in site.given:
        invariant.refuse('norm="layer"')
    found = modelled(layer, site, direction)
    if found.schedule not in KERNELS:
        invariant.refuse(f"schedule {found.schedule!r}", found.reason)
    if layer.memory == "recompute":
        raise RuntimeError(
            "memory='recompute' cannot run within trigru.batch_invariant(): gates are computed again by torch's "
            "products, which may be summed otherwise in another batch"
        )
    return found


def _measured(layer: Layer, site: Site, direction: str) -> Choice | None:
    """The fastest of what was measured that can run now."""
    key = measured.key_at_hand(layer, site, direction, precision_of(site.dtype))
    entry = measured.TABLE.get(key)
    if entry is None:
        return None
    obstacles: tuple[str, ...] = ()
    for row in entry.rows:
        if (obstacle := _not_now(row.schedule, layer, site)) is not None:
            obstacles = (*obstacles, obstacle)
            continue
        known = _winners.get(key)
        if known is None or known[0] is not entry or known[1] != obstacles:
            passed_over = zip(entry.rows, obstacles, strict=False)
            said = [entry.said(key), *(f"{one.name} is passed over: {why}" for one, why in passed_over)]
            reason = "; ".join(said) + _heads_said(layer, site, row.schedule)
            known = _winners[key] = entry, obstacles, Choice(row.schedule, reason, row.config)
        return known[2]
    return None


_winners: dict[measured.Key, tuple[measured.Entry, tuple[str, ...], Choice]] = {}
"""Choices that were made of TABLE, which takes longer than a call should."""


def measured_on(device: Device, layer: Layer, site: Site, direction: str, precision: str) -> Choice | None:
    """The fastest of what was measured on a GPU of a preset's kind, which need not be there."""
    found = measured.of_preset(device.name, measured.key_of(layer, site, direction, precision, name=device.name))
    if found is None:
        return None
    key, entry = found
    return Choice(entry.rows[0].schedule, entry.said(key), entry.rows[0].config)


def _not_now(schedule: str, layer: Layer, site: Site) -> str | None:
    """Why a schedule that was measured cannot run a call, or None."""
    if schedule in WHOLE and not site.plain:
        return "what it keeps is no operator's"
    if schedule in WAITING and has_a_part_of(site.device):
        return _DID_NOT_FIT
    if schedule in KERNELS:
        return why_unusable()
    return cudnn.why_not(layer, site) if schedule == "cudnn" else None


def modelled(layer: Layer, site: Site, direction: str = "forward") -> Plan:
    """`plan`, whatever was measured."""
    if torch_serves(layer, site):
        choice = _BY_TORCH
    elif layer.schedule == "cudnn":
        choice = _by_cudnn(cudnn.why_not(layer, site), site.plain)
    else:
        choice = choose(
            layer.schedule,
            site.device,
            site.dtype,
            site.batch,
            layer.hidden_size,
            variant=layer.variant,
            direction=direction,
            directions=layer.directions,
            heads=1 if "norm" in site.given else layer.num_heads,
            normalised="norm" in site.given,
        )
    if said := _heads_said(layer, site, choice.schedule):
        choice = replace(choice, reason=choice.reason + said)
    if layer.num_layers > 1 and layer.num_heads == 1 and choice.schedule in KERNELS:
        return _stacked(layer, site, choice, direction)
    return staged(layer.num_layers, layer.directions, choice, direction)


def _heads_said(layer: Layer, site: Site, schedule: str) -> str:
    """How a schedule runs heads, where its own reason does not say."""
    normalised = "norm" in site.given
    if layer.num_heads == 1 or (schedule == "resident" and not normalised):
        return ""
    sizes = site.batch, layer.hidden_size, layer.num_heads
    apart = schedule == "eager" and not normalised and heads_apart(*sizes)
    how = "multiply by themselves" if apart else "run as one matrix with zeros"
    return f"; {layer.num_heads} heads {how}"


def sizes_of(layer: Layer, site: Site) -> cost.Layer:
    """What the model is told of one layer of a call of the equations alone."""
    return cost.Layer(
        layer.variant,
        site.dtype,
        max(site.batch, 1),
        layer.hidden_size,
        precision=precision_of(site.dtype),
        directions=layer.directions,
    )


def _stacked(layer: Layer, site: Site, choice: Choice, direction: str) -> Plan:
    """The plan of several layers, by a choice of Triton's kernels for one."""
    why = why_apart(layer, direction, packed=site.packed, given=bool(site.given))
    if has_a_part_of(site.device):
        why = _DID_NOT_FIT
    stack = Stack(layer.num_layers, site.seq_len, why)
    return together(choice, _described(site.device), sizes_of(layer, site), stack, direction)


LARGE, LARGE_TRAINING = 100_000_000, 200_000_000
"""Multiplications of a layer's steps, of 8 at most, from which `torch_serves` says no."""


def torch_serves(layer: Layer, site: Site) -> bool:
    """Whether torch's own GRU is the faster one for a padded call on a CPU, so that "auto" leaves it to that.

    The eager schedule has to be set up (some 100 us, and views of each step), which a short sequence does not repay;
    without gradients there is less to win. Bounds from `trigru bench --suite cpu --short`, with and without
    `--direction forward`, float32, 2 threads of an AMD EPYC, and from an Intel Xeon, 1 and 2 threads, torch 2.13. Where
    oneDNN multiplies faster than MKL, large products repay it over few steps: from the bounds below on 1.0 to 1.8 times
    (an AMD EPYC of Zen 5, 2 threads)."""
    if not site.plain or site.packed or site.given or site.dtype != torch.float32 or site.device.type != "cpu":
        return False
    if invariant.is_on():
        return False
    if (layer.variant, layer.schedule, layer.memory) != ("torch", "auto", "keep"):
        return False
    steps, size = site.seq_len, layer.hidden_size
    if site.recording and steps > 8:
        return False
    if eager_products.pays(site.batch, size, 3 * size):
        multiplications = 3 * site.batch * size * (layer.input_size + size) * min(steps, 8)
        if multiplications >= (LARGE_TRAINING if site.recording else LARGE) and (steps > 1 or not site.recording):
            return False
    return steps <= 8 or (steps < 128 and steps * site.batch * size < (1 << 16 if steps >= 32 else 1 << 19))


def why_no_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run on tensors of this device and dtype, or None where they can."""
    if dtype not in DTYPES:
        return f"Triton kernels compute in float32, float16 and bfloat16, the tensors are {dtype}"
    if (reason := why_unusable()) is not None:
        return reason
    if device.type == "cuda":
        if dtype == torch.bfloat16 and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            return "bfloat16 needs a GPU of compute capability 8.0 or newer"
        return None
    if device.type == "cpu" and _kernels_on_cpu():
        return None
    return f"Triton kernels need tensors on an NVIDIA or AMD GPU, these are on {device.type}"


def _kernels_on_cpu() -> bool:
    """Whether kernels run on CPU tensors: in Triton's interpreter, or by another launcher."""
    if why_unusable() is not None:
        return False
    launch = _launch()
    return launch.replaced() or launch.interpreted()


@functools.cache
def _launch() -> ModuleType:
    """Imported where it is first needed, for it imports Triton."""
    from ..kernels import launch

    return launch


def precision_of(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as torch's own RNNs do, in TF32 exactly where torch allows it and the GPU has
    it, which AMD's do not."""
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    return "tf32" if rnn_in_tf32() else "ieee"


def choose(
    schedule: str,
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    hidden_size: int,
    *,
    variant: str = "torch",
    direction: str = "forward",
    directions: int = 1,
    heads: int = 1,
    normalised: bool = False,
) -> Choice:
    """What runs one layer, forward or backward.

    Args:
        schedule: "auto", or a schedule by name.
        device, dtype: of the tensors.
        batch, hidden_size: sizes of the state.
        variant, direction: as for `candidates`.
        directions: of time, which run together.
        heads: of the hidden units.
        normalised: whether the products are.

    Raises:
        ValueError: unknown schedule.
        RuntimeError: the schedule asked for by name cannot run here. Only "auto" falls back.
    """
    check_schedule(schedule)
    if schedule == "eager":
        return _BY_NAME
    if schedule == "cudnn":
        return _by_cudnn(cudnn.why_not_here(variant, device, dtype, batch))
    on_cpu = device.type == "cpu" and _kernels_on_cpu()
    precision, alike = precision_of(dtype), invariant.is_on()
    sizes = batch, hidden_size, variant, direction, directions, heads, normalised
    return _chosen(schedule, device, dtype, *sizes, precision, on_cpu, alike)


def _by_cudnn(obstacle: str | None, plain: bool = True) -> Choice:
    """cuDNN by name. A compiler has to know how much forward keeps, and so gets nothing kept."""
    if obstacle is not None:
        raise RuntimeError(f"schedule 'cudnn' cannot run here: {obstacle}")
    return _CUDNN if plain else _CUDNN_TWICE


def named(schedule: str, config: AnyConfig | None = None) -> Choice:
    """A choice that is kept to: nothing else runs in its place."""
    return Choice(schedule, _BY_NAME.reason, config)


_BY_NAME = Choice("eager", "asked for by name")
_CUDNN = Choice("cudnn", _BY_NAME.reason)
_CUDNN_TWICE = Choice("cudnn", f"{_BY_NAME.reason}; backward runs forward again", CudnnConfig(keeps=False))
_BY_TORCH = Choice("torch", "on a CPU torch's own is faster for so short a sequence")


@functools.lru_cache(maxsize=1024)
def _chosen(
    schedule: str,
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    hidden_size: int,
    variant: str,
    direction: str,
    directions: int,
    heads: int,
    normalised: bool,
    precision: str,
    kernels_on_cpu: bool,
    batch_invariant: bool,  # asked for where it matters
) -> Choice:
    """`choose`, of all that it depends on. Remembered: every call of a layer asks for its own again."""
    obstacle = why_no_kernels(device, dtype)
    if schedule == "auto":
        if obstacle is not None:
            return Choice("eager", f"{obstacle}, so torch operations run")
        if device.type == "cpu":
            return Choice("eager", "on a CPU torch operations are the fastest schedule")
    elif obstacle is not None:
        raise RuntimeError(f"schedule {schedule!r} cannot run here: {obstacle}")
    layer = cost.Layer(
        variant, dtype, max(batch, 1), hidden_size, precision=precision, directions=directions, normalised=normalised
    )
    shared = schedule == "auto" and device in _SHARED
    return planned(schedule, _described(device), layer, direction, shared, heads)


def _described(device: torch.device) -> Device:
    """Without a GPU (interpreter, replaced launcher) tiles are those of an H100."""
    return present(device.index or 0) if device.type == "cuda" else PRESETS["H100"]


_DID_NOT_FIT = "its programs did not fit on the device together"
_SHARED: set[torch.device] = set()
"""Devices of which this process has a part only: programs that wait for each other did not fit on them."""


def shared_devices() -> int:
    """How many devices `has_a_part_of` is true of: plans are others where there are more."""
    return len(_SHARED)


def has_a_part_of(device: torch.device) -> bool:
    """Whether this process shares the device, as far as is known: programs that wait for each other do not fit."""
    return device in _SHARED


def instead(refused: Choice, error: Exception, state: torch.Tensor, variant: str, direction: str) -> Choice:
    """What runs in place of what did not fit on the device together; "auto" makes no such choice for this device again.
    Warns. state: (B, H), or (2, B, H) where both directions run.

    Raises:
        Exception: the given one, where the refused schedule was asked for by name.
    """
    if refused.reason.startswith(_BY_NAME.reason):
        raise error
    _SHARED.add(state.device)
    _chosen.cache_clear()
    *sides, batch, hidden_size = state.shape
    precision, directions = precision_of(state.dtype), sides[0] if sides else 1
    layer = cost.Layer(variant, state.dtype, max(batch, 1), hidden_size, precision=precision, directions=directions)
    choice = planned("auto", _described(state.device), layer, direction, shared=True)
    said = f"trigru: schedule {refused.schedule!r} does not fit on {state.device}, {choice.schedule!r} runs: {error}"
    warnings.warn(said, RuntimeWarning, stacklevel=2)
    return choice


def planned(
    schedule: str, device: Device, layer: cost.Layer, direction: str, shared: bool = False, heads: int = 1
) -> Choice:
    """The choice among Triton's schedules; `shared`: no program may wait for another. heads: of the layer, which run by
    themselves wherever they can."""
    if heads > 1 and schedule in ("auto", "resident"):
        one = replace(layer, hidden_size=layer.hidden_size // heads, directions=layer.directions * heads)
        found = next(c for c in candidates(device, one, direction) if c.schedule == "resident")
        size = one.hidden_size
        if found.obstacle is None:
            why = _BY_NAME.reason if schedule != "auto" else _why([found], device, direction)
            return found.chosen(f"{why}; {heads} heads of {size} units each have programs of their own", direction)
        if schedule != "auto":
            raise RuntimeError(f"schedule {schedule!r} cannot run here: a head of {size} units: {found.obstacle}")
    ranked = candidates(device, layer, direction)
    if invariant.is_on():
        order = [c.schedule for c in candidates(device, replace(layer, batch=invariant.SEQUENCES), direction)]
        ranked.sort(key=lambda c: order.index(c.schedule))
    if shared:
        ranked = [replace(c, obstacle=c.obstacle or _DID_NOT_FIT) if c.step.together > 1 else c for c in ranked]
        ranked.sort(key=lambda c: c.obstacle is not None)
    if schedule == "auto":
        best = ranked[0]
        if best.obstacle is not None:
            return Choice("eager", f"{best.obstacle}, so torch operations run")
        plain = layer.variant == "torch" and not layer.normalised and torch.version.hip is None
        unmeasured, alike = _UNMEASURED if plain else "", invariant.SAID if invariant.is_on() else ""
        return best.chosen(_why(ranked, device, direction) + unmeasured + alike, direction)
    named = next(candidate for candidate in ranked if candidate.schedule == schedule)
    if named.obstacle is not None:
        raise RuntimeError(f"schedule {schedule!r} cannot run here: {named.obstacle}")
    return named.chosen("asked for by name", direction)


_UNMEASURED = "; 'cudnn' is taken only where measured, see trigru.tune"


def _times(candidate: Candidate) -> str:
    said, tiles = _seconds(candidate), candidate.step.tiles
    return said if tiles == 1 else f"{said} with {tiles} batch tiles a program"


def _seconds(candidate: Candidate) -> str:
    eager, graph = (f"{seconds * MICRO:.1f} us" for seconds in (candidate.seconds, candidate.graph_seconds))
    return eager if eager == graph else f"{eager} ({graph} in a CUDA graph)"


def _why(ranked: list[Candidate], device: Device, direction: str) -> str:
    best, *others = ranked
    several = "" if best.step.tiles == 1 else f", {best.step.tiles} batch tiles a program"
    said = [f"{_seconds(best)} a {direction} step predicted, not measured, on {device.name}{several}"]
    said += [f"{other.schedule!r} {other.obstacle or _times(other)}" for other in others]
    return "; ".join(said)
