"""Calls that the plan leaves to torch's own GRU, without the records that lead there.

A step of a small layer takes torch less time than the records, their checks and the plan take. Nothing is decided
here: what the plan decides for the call is asked for, and what `trigru.checks` would refuse goes there, for its words.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..checks import weight_shapes
from ..layer import Layer
from ..planning.plan import Site, plan
from .compute import torchs_own
from .plain import PLAIN_TYPES, is_legacy_batched, is_unseen

_benchmark = torch._C._get_cudnn_benchmark


def _fits(x: Tensor) -> bool:
    return type(x) in PLAIN_TYPES and x.dtype == torch.float32 and x.is_cpu and x.layout == torch.strided


def direct(layer: Layer, weights: list[Tensor], input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """(output, h_n) of a padded call in float32 on a CPU that torch's own GRU serves, else None; None too where
    anything does not fit, or anything but eager execution looks on.

    input: (seq_len, batch, input_size), batch first where `layer` says so; hx: (layers * directions, batch,
    hidden_size), None for zeros.
    """
    if not is_unseen() or forward_ad._current_level >= 0 or _benchmark() or layer.reverse:
        return None
    shapes = weight_shapes(layer)
    if len(weights) != len(shapes) or not _fits(input) or input.dim() != 3 or is_legacy_batched(input):
        return None
    first, second, size = input.shape
    steps, batch = (second, first) if layer.batch_first else (first, second)
    state = (layer.parts, batch, layer.hidden_size)
    if size != layer.input_size or not steps:
        return None
    if hx is None:
        hx = input.new_zeros(state)
    elif not _fits(hx) or hx.shape != state:
        return None
    recording = input.requires_grad or hx.requires_grad
    for weight, shape in zip(weights, shapes, strict=True):
        if not _fits(weight) or weight.shape != shape:
            return None
        recording = recording or weight.requires_grad
    recording = recording and torch.is_grad_enabled()
    if plan(layer, Site(input.device, input.dtype, steps, batch, False, recording, True)).schedule != "torch":
        return None
    return torchs_own(layer, weights, input, hx)
