"""What autocast does to a layer: its tensors are cast to one dtype, the weights once while autocast's own cache holds.

That cache is within torch's C++ and serves torch's own operators. Here a cast is remembered, weakly, by the parameter
that it was made from: within one stretch of autocast, and as long as a graph holds it, further calls take the same one.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .layer import NOTHING, Call, Given

_casts = WeakIdKeyDictionary()  # parameter: (its version, weak reference to the cast)
_probes: dict[torch.device, tuple[Tensor, dict[torch.dtype, Tensor]]] = {}
_seen: dict[torch.device, Tensor] = {}  # the cast that autocast's own cache held of the probe, the last time


def autocast_dtype(input: Tensor, hx: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype that all tensors of a layer are cast to, as nn.GRU's results are; None without a cast.

    Autocast on a CPU is a matter of products in nn.GRU, and its state keeps the wider of its own and autocast's dtype.
    Everywhere else the whole layer runs in autocast's dtype. float64 is never cast."""
    device = input.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    if any(x.dtype == torch.float64 or not x.is_floating_point() for x in (input, hx, weight)):
        return None
    dtype = torch.get_autocast_dtype(device)
    return torch.promote_types(hx.dtype, dtype) if device == "cpu" else dtype


def cast(weights: Sequence[Tensor], call: Call) -> tuple[Sequence[Tensor], Call]:
    """The tensors of a call in autocast's dtype, where it is on and wants them cast."""
    dtype = autocast_dtype(call.input, call.hx, weights[0])
    if dtype is None:
        return weights, call
    given = call.given
    if given is not NOTHING:
        given = Given.of(None if x is None else x.to(dtype) if x.is_floating_point() else x for x in given)
    gain = None if call.gain is None else call.gain.to(dtype)
    call = Call(call.input.to(dtype), call.hx.to(dtype), call.batch_sizes, given, gain)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return [w.to(dtype) for w in weights], call
    if torch.is_grad_enabled() and _is_another_stretch(call.input.device):
        _casts.clear()
    return [_cast(w, dtype) for w in weights], call


def _is_another_stretch(device: torch.device) -> bool:
    """Whether autocast has dropped its own cache since the last call, as it does at its end, or keeps none: then a
    weight's values may have changed without a new version, by an optimizer or through `.data`.

    Told by a weight of one number, which autocast casts and keeps for a product with nothing."""
    dtype = torch.get_autocast_dtype(device.type)
    if device not in _probes:
        _probes[device] = torch.ones(1, 1, device=device, requires_grad=True), {}
    weight, nothings = _probes[device]
    if dtype not in nothings:
        nothings[dtype] = torch.empty(0, 1, dtype=dtype, device=device, requires_grad=True)
    cast = torch.mm(nothings[dtype], weight).grad_fn._saved_mat2  # type: ignore[union-attr]
    before, _seen[device] = _seen.get(device), cast  # held, so that no other tensor takes its place in memory
    return before is None or before.data_ptr() != cast.data_ptr()


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another dtype: the same tensor as long as a graph holds it and the weight's version is the same."""
    if weight.dtype == dtype or not (weight.is_leaf and weight.requires_grad and torch.is_grad_enabled()):
        return weight.to(dtype)
    version, known = _casts.get(weight, (None, None))
    if known is not None and version == weight._version:
        made = known()
        if made is not None and made.dtype == dtype:
            return made
    made = weight.to(dtype)
    _casts[weight] = (weight._version, weakref.ref(made))
    return made
