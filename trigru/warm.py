"""Compile ahead of time what a model will launch, into Triton's cache on disk: also where no GPU is, as while an image
for a container is built."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from .layer import Call, Layer, Records
from .modules import GRU
from .options import NO_OPTIONS, PerCall, prepare
from .planning import cost
from .planning.candidates import DIRECTIONS
from .planning.devices import Device, present, preset
from .planning.plan import DTYPES, planned, precision_of
from .planning.stages import Choice, Plan, staged
from .planning.together import Stack, together, why_apart
from .planning.triton_state import interpreted, why_unusable
from .schedules import stack
from .schedules.reserve import shares_output

_STEPS = 3  # how many there are is nothing that a kernel is compiled for
_MANY = 1 << 16


def warm(
    model: nn.Module,
    *batches: int,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    packed: bool | None = None,
    jobs: int | None = None,
    given: Collection[str] = (),
) -> list[str]:
    """Compile the kernels of every `trigru.GRU` in a model, for training and evaluation, and keep them on disk.

    A process that launches them later finds them in Triton's cache (`TRITON_CACHE_DIR`, or `~/.triton/cache`), if its
    versions of Triton and trigru, its settings of TF32 and its GPU are the same. Sequence lengths do not matter, and of
    batch sizes only the plan and tiles that come of them.

    Args:
        model: a `trigru.GRU`, or a model that holds some; on any device, "meta" too.
        batches: numbers of sequences in a call.
        device: a GPU that need not be there, as `trigru explain` names them ("h100"); None: the current one.
        dtype: of the inputs, where they are not the weights', as under autocast.
        packed: whether inputs are PackedSequences; None: both kinds are compiled for.
        jobs: kernels compiled at once; None: as many as there are CPUs.
        given: names of what calls are given for each step, together: of "reset", "reset_state", "lengths", "mask",
            "decay" and "attention". Kernels are compiled for whatever shapes and gradients these may have.

    Returns:
        Names of the kernels, sorted, one for each binary.

    Raises:
        TypeError: `model` holds no trigru.GRU.
        ValueError: no batch, or one below 1; jobs below 1; an unknown device; names in `given` that are unknown, or
            that a call cannot have together.
        RuntimeError: Triton cannot compile here; no device named, and none is there; a schedule asked for by name
            cannot run.

    Example:
        >>> layer = trigru.GRU(8, 16, bidirectional=True, dtype=torch.bfloat16)
        >>> trigru.warm(layer, 64, 7, device="h100", packed=False)  # doctest: +SKIP
        ['bptt_kernel', 'forward_kernel', 'forward_kernel']
    """
    layers = [module for module in model.modules() if isinstance(module, GRU)]
    if not layers:
        raise TypeError(f"model: expected a trigru.GRU or a model of some, got {type(model).__name__} without any")
    if not batches or min(batches) < 1:
        raise ValueError(f"batches: expected numbers of at least 1, got {batches}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    if unknown := [name for name in given if name not in PerCall._fields]:
        raise ValueError(f"given: expected names of {', '.join(PerCall._fields)}, got {unknown[0]!r}")
    if packed and (own := [name for name in ("lengths", "mask") if name in given]):
        raise ValueError(f"given: expected no {own[0]!r} with packed input, which has its lengths")
    if (reason := why_unusable()) is not None:
        raise RuntimeError(f"nothing can be compiled: {reason}")
    if interpreted():
        raise RuntimeError("nothing can be compiled: TRITON_INTERPRET=1 is set")
    from .kernels import offline

    described, target = _target(device)
    binaries: dict[Any, Any] = {}
    for layer in layers:
        for batch in batches:
            for is_packed in (False, True) if packed is None else (packed,):
                for launch in _launches(layer, batch, dtype, is_packed, described, given):
                    binaries.setdefault(offline.specialise_launch(launch, target).key, launch)
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:  # ptxas, which takes the longest, is a process
        list(pool.map(lambda launch: offline.compile_launch(launch, target), binaries.values()))
    return sorted(launch.kernel.__name__ for launch in binaries.values())


def _target(name: str | None) -> tuple[Device, Any]:
    """The GPU as the plan and as Triton know it."""
    from .kernels.offline import target_of

    if name is not None:
        described = preset(name)
        return described, target_of(described.target)
    if not torch.cuda.is_available():
        raise RuntimeError("device: no GPU is there; name the one to compile for, such as device='h100'")
    from triton.runtime import driver

    return present(torch.cuda.current_device()), driver.active.get_current_target()


def _launches(
    module: GRU, batch: int, dtype: torch.dtype | None, packed: bool, device: Device, given: Collection[str]
) -> Iterable[Any]:
    """What calls of the module launch: with gradients, and without. Nothing is computed: tensors have shapes only."""
    from .kernels.launch import using
    from .kernels.offline import Recorder

    recorder = Recorder()
    with using(recorder), torch.no_grad():
        for (layer, weights, call), training in _calls(module, batch, dtype, packed, given):
            if call.input.dtype not in DTYPES or layer.schedule == "cudnn":
                continue
            # Layers that run together in a long call may run one after another in a short one.
            for seq_len in (1, _MANY) if layer.num_layers > 1 else (_MANY,):
                forward, backward = (_plan(layer, call, device, direction, seq_len) for direction in DIRECTIONS)
                if forward.schedule == backward.schedule == "eager":
                    continue
                if training:
                    _train(layer, weights, call, forward, backward)
                elif forward.schedule != "eager":
                    stack.forward(layer, weights, call, forward, layer.num_layers)
    return recorder.launches


def _train(layer: Layer, weights: Sequence[Tensor], call: Call, forward: Plan, backward: Plan) -> None:
    """Forward and backward, without and with derivatives by what is given for each step."""
    output, h_n, reserve = stack.forward(layer, weights, call, forward, 0)
    if shares_output(call.input.device):
        reserve = [*reserve, output]
    needs = [True] * (2 + len(weights))
    may = [x is not None and x.is_floating_point() for x in call.given.differentiable]
    for of_given in [[], may] if any(may) else [[]]:
        stack.backward(layer, weights, call, backward, 0, reserve, stack.Wanted(output, h_n, needs, of_given))


def _calls(
    module: GRU, batch: int, dtype: torch.dtype | None, packed: bool, given: Collection[str]
) -> Iterator[tuple[Records, bool]]:
    """Calls of the module, all of their tensors on "meta", in evaluation and in training: of each form that what is
    given may have."""
    layer, weights = module._layer(), module._weights()
    dtype = dtype or weights[0].dtype
    given = set(given)
    beside = given or module._options is not None
    if packed and beside:  # runs padded
        if "mask" in given or "lengths" in given:
            return
        packed, given = False, given | {"lengths"}

    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    steps = (batch, _STEPS) if layer.batch_first else (_STEPS, batch)
    rows = (batch * _STEPS,) if packed else steps
    sizes = torch.full((_STEPS,), batch, device="cpu") if packed else None
    hx = meta(layer.parts, batch, layer.hidden_size)
    gain = meta(layer.parts, 2, 3 * layer.hidden_size) if "norm" in module.further() else None
    call = Call(meta(*rows, layer.input_size), hx, sizes, gain=gain)
    records = Records(layer, [meta(*weight.shape) for weight in weights], call)
    if not beside:
        yield from ((records, training) for training in (False, True))
        return
    flags = meta(*steps, dtype=torch.bool)
    forms = {
        "reset": [flags],
        "reset_state": [meta(*hx.shape), meta(_STEPS, *hx.shape)],
        "lengths": [meta(batch, dtype=torch.int64)],
        "mask": [flags],
        "decay": [meta(*steps, width) for width in (1, layer.directions * layer.hidden_size)],
        "attention": [meta(*steps)],
    }
    initial = meta(layer.parts, layer.hidden_size) if module._learns_state else None
    for chosen in product(*(forms[name] if name in given else [None] for name in PerCall._fields)):
        for training in (False, True):
            options, arguments = module._options or NO_OPTIONS, PerCall(*chosen)
            yield prepare(records, arguments, options, training=training, initial=initial)[0], training


def _plan(layer: Layer, call: Call, device: Device, direction: str, seq_len: int) -> Plan:
    if layer.schedule == "eager":
        choice = Choice("eager", "asked for by name")
    else:
        dtype = call.input.dtype
        sizes = cost.Layer(
            layer.variant,
            dtype,
            call.hx.shape[1],
            layer.hidden_size,
            precision=precision_of(dtype),
            directions=layer.directions,
            normalised=call.gain is not None,
        )
        heads = layer.num_heads if call.gain is None else 1
        choice = planned(layer.schedule, device, sizes, direction, heads=heads)
        if choice.schedule != "eager" and layer.num_heads == 1:
            why = why_apart(layer, direction, packed=call.batch_sizes is not None, given=bool(call.given.present))
            return together(choice, device, sizes, Stack(layer.num_layers, seq_len, why), direction)
    return staged(layer.num_layers, layer.directions, choice, direction)
