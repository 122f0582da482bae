"""All layers and directions by cuDNN, in one call forward and one backward, as torch's own GRU runs on a GPU; with
dropout between layers in one call a layer, for cuDNN would draw masks that nobody else could read.

cuDNN reads the weights out of one buffer, laid out in an order of its own. Weights that lie so are taken as they are:
those of a `trigru.GRU` with schedule="cudnn", and those of an nn.GRU, which lies so from its construction on. Those of
a stack with dropout lie layer by layer, and so it runs in evaluation too. Others are copied at each call, into a buffer
that lives as long as the call, or as its graph. No copy outlives that: the weights could change without a trace, under
`.data` or by a replay of a CUDA graph.

The reserve is that of dropout's masks, if any, as in reserve.py; then of each of cuDNN's calls its own, the buffer of
the weights and the output. Or those are left out, and backward runs forward again: with memory="recompute", and in the
operators, whose compiler wants to know sizes that only cuDNN knows. cuDNN's backward spoils its reserve, so that is
copied where the graph is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import batch_sizes_of
from ..layer import Call, Layer, time_major
from ..planning.configs import CudnnConfig
from ..planning.cudnn import why_not_here
from ..planning.stages import Choice
from .reserve import dropout_masks, scaled

if TYPE_CHECKING:
    from .stack import Wanted

GRU_MODE = 3  # CUDNN_GRU
_will_be_kept = torch._C._autograd._get_current_graph_task_keep_graph  # type: ignore[attr-defined]


def is_own(reserve: Sequence[Tensor]) -> bool:
    """Whether a reserve is what `forward` kept: no other schedule keeps bytes."""
    return any(x.dtype == torch.uint8 for x in reserve)


def unspent(reserve: Sequence[Tensor]) -> list[Tensor]:
    """A reserve that backward may spoil."""
    return [x.clone() if x.dtype == torch.uint8 else x for x in reserve]


class _Kept(NamedTuple):
    """Of one of cuDNN's calls."""

    reserve: Tensor  # cuDNN's own; empty unless forward was run for backward
    buffer: Tensor  # of the weights
    output: Tensor


def forward(
    layer: Layer, weights: Sequence[Tensor], call: Call, choice: Choice, first_kept: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(output, h_n, reserve) of all layers. first_kept: 0, or num_layers where nothing is kept.

    Raises:
        RuntimeError: another first_kept, for cuDNN goes back through all layers or none.
    """
    if 0 < first_kept < layer.num_layers:
        raise RuntimeError(f"first_kept: expected 0 or {layer.num_layers} with schedule 'cudnn', got {first_kept}")
    differentiable = first_kept == 0
    keeps = differentiable and layer.memory == "keep" and choice.config != CudnnConfig(keeps=False)
    masks = dropout_masks(layer, call)
    output, h_n, kept = _run(layer, weights, call, masks, keeps)
    reserve = [] if masks is None or not differentiable else [masks]
    return output, h_n, [*reserve, *chain.from_iterable(kept)] if keeps else reserve


def backward(
    layer: Layer, weights: Sequence[Tensor], call: Call, reserve: Sequence[Tensor], wanted: Wanted
) -> list[Tensor | None]:
    """Derivatives by the input, hx and each of the weights; None for those that are not asked for."""
    own = is_own(reserve)
    alone = own and not _will_be_kept()
    masks = reserve[0] if layer.dropout else None
    if own:
        ours = (reserve if alone else unspent(reserve))[0 if masks is None else 1 :]
        last = next(i for i in reversed(range(len(ours))) if ours[i].dtype == torch.uint8)
        kept = [_Kept(*ours[i : i + 3]) for i in range(0, last + 3, 3)]
    else:
        _, _, kept = _run(layer, weights, call, masks, True)
    need_input, need_hx, *need_weights = wanted.needs
    grad, d_hx = wanted.grad_output, call.hx.new_empty(call.hx.shape) if need_hx else None
    d_weights: list[Tensor | None] = [None] * len(weights)
    for one in reversed(_parts(layer, len(kept))):
        below = need_input or any(need_weights[: one.weights.start])
        if not (below or need_hx or any(need_weights[one.weights])):
            break
        x = call.input if one.number == 0 else _masked(layer, call, kept[one.number - 1].output, masks, one.number)
        grad_h_n = None if wanted.grad_h_n is None else wanted.grad_h_n[one.states]
        part = call._replace(input=x, hx=call.hx[one.states])
        asked = [below, need_hx, False, any(need_weights[one.weights])]
        grad, own_d_hx, own_d_weights = _back(
            one.layer, weights[one.weights], part, kept[one.number], grad, grad_h_n, asked
        )
        if below and one.number > 0:
            grad = _masked(layer, call, grad, masks, one.number)
        if d_hx is not None:
            d_hx[one.states] = own_d_hx
        if asked[3]:
            # They share one buffer, and an operator's results share nothing.
            d_weights[one.weights] = own_d_weights if alone else [d.clone() for d in own_d_weights]
    return [d if need else None for d, need in zip((grad, d_hx, *d_weights), wanted.needs, strict=True)]


class _Part(NamedTuple):
    """The layers of one of cuDNN's calls."""

    number: int
    layer: Layer
    weights: slice  # of all weights
    states: slice  # of hx


def _parts(layer: Layer, count: int) -> list[_Part]:
    """All layers in one call, or each in its own."""
    if count == 1:
        return [_Part(0, layer, slice(0, None), slice(0, None))]
    above = replace(layer, input_size=layer.hidden_size * layer.directions, num_layers=1, dropout=0.0)
    first = replace(above, input_size=layer.input_size)
    states, width = layer.directions, layer.directions * (4 if layer.bias else 2)
    return [
        _Part(i, above if i else first, slice(i * width, (i + 1) * width), slice(i * states, (i + 1) * states))
        for i in range(count)
    ]


def _masked(layer: Layer, call: Call, x: Tensor, masks: Tensor | None, number: int) -> Tensor:
    """What goes into a layer, or the derivative by it, by dropout's mask below it."""
    if masks is None:
        return x
    # The other way round, it is the same.
    return x * scaled(time_major(layer, call, masks[number - 1]), layer.dropout, x.dtype)


def _run(
    layer: Layer, weights: Sequence[Tensor], call: Call, masks: Tensor | None, train: bool
) -> tuple[Tensor, Tensor, list[_Kept]]:
    """(output, h_n, what each of cuDNN's calls kept)."""
    x, kept, finals = call.input, [], []
    for one in _parts(layer, _count(layer, weights)):
        if one.number:
            x = _masked(layer, call, x, masks, one.number)
        buffer = flat(one.layer, weights[one.weights])
        fixed = _Fixed.of(one.layer, call)
        x, h_n, _, reserve, _ = torch._cudnn_rnn(
            x,
            list(weights[one.weights]),
            fixed.stride,
            buffer,
            call.hx[one.states].contiguous(),
            None,
            *fixed.of_rnn,
            0.0,
            train,
            layer.bidirectional,
            fixed.batch_sizes,
            None,
        )
        finals.append(h_n)
        kept.append(_Kept(reserve, buffer, x))
    return x, finals[0] if len(finals) == 1 else torch.cat(finals), kept


def _count(layer: Layer, weights: Sequence[Tensor]) -> int:
    """How many calls of cuDNN's run the layers."""
    if layer.dropout:
        return layer.num_layers
    lie_apart = (
        layer.num_layers > 1
        and _lying(layer, weights) is None
        and all(_lying(one.layer, weights[one.weights]) is not None for one in _parts(layer, layer.num_layers))
    )
    return layer.num_layers if lie_apart else 1


def _back(
    layer: Layer,
    weights: Sequence[Tensor],
    call: Call,
    kept: _Kept,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    asked: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Derivatives by the input, hx and the weights of one of cuDNN's calls, where they are asked for."""
    fixed = _Fixed.of(layer, call)
    d_input, d_hx, _, d_weights = torch.ops.aten._cudnn_rnn_backward(
        call.input,
        list(weights),
        fixed.stride,
        kept.buffer,
        call.hx.contiguous(),
        None,
        kept.output,
        grad_output,
        grad_h_n,
        None,
        *fixed.of_rnn,
        0.0,
        True,
        layer.bidirectional,
        fixed.batch_sizes,
        None,
        kept.reserve,
        asked,
    )
    return d_input, d_hx, d_weights


class _Fixed(NamedTuple):
    """Arguments of forward and of backward."""

    stride: int  # weights of each layer and direction
    of_rnn: tuple[int, int, int, int, bool]  # mode, hidden_size, projections, num_layers, batch_first
    batch_sizes: list[int]

    @staticmethod
    def of(layer: Layer, call: Call) -> _Fixed:
        packed = call.batch_sizes is not None
        of_rnn = (GRU_MODE, layer.hidden_size, 0, layer.num_layers, layer.batch_first and not packed)
        return _Fixed(4 if layer.bias else 2, of_rnn, batch_sizes_of(call) if packed else [])


def flat(layer: Layer, weights: Sequence[Tensor]) -> Tensor:
    """The buffer of all weights: the one that they lie in, or a new one with a copy of them."""
    if (buffer := _lying(layer, weights)) is not None:
        return buffer
    size, offsets = _places_of(layer, weights[0])
    buffer = weights[0].new_zeros(size)
    places = [buffer.narrow(0, at, w.numel()).view(w.shape) for w, at in zip(weights, offsets, strict=True)]
    torch._foreach_copy_(places, list(weights))
    return buffer


def _lying(layer: Layer, weights: Sequence[Tensor]) -> Tensor | None:
    """The buffer that the weights lie in, if they do."""
    first = weights[0]
    size, offsets = _places_of(layer, first)
    storage, width = first.untyped_storage(), first.element_size()
    start = storage.data_ptr()
    if storage.nbytes() < size * width or not all(
        w.data_ptr() == start + offset * width and w.is_contiguous() for w, offset in zip(weights, offsets, strict=True)
    ):
        return None
    return first.detach().as_strided((size,), (1,), 0)


def _places_of(layer: Layer, like: Tensor) -> tuple[int, tuple[int, ...]]:
    return _places(*_sizes(layer), like.dtype, like.device)


def _sizes(layer: Layer) -> tuple[int, int, int, bool, bool]:
    return layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.bidirectional


@functools.lru_cache(maxsize=256)
def _places(
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bias: bool,
    bidirectional: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[int, tuple[int, ...]]:
    """How many elements cuDNN's buffer has, and where in it each weight begins. cuDNN is asked once."""
    directions, gates = 1 + bidirectional, 3 * hidden_size
    inputs = [input_size] + [directions * hidden_size] * (num_layers - 1)
    shapes = [((gates, size), (gates, hidden_size), *[(gates,)] * (2 * bias)) for size in inputs]
    each = list(chain.from_iterable(shape * directions for shape in shapes))
    weights = [torch.empty(shape, dtype=dtype, device=device) for shape in each]
    buffer = _flatten(weights, input_size, hidden_size, num_layers, bias, bidirectional)
    return buffer.numel(), tuple(int(w.storage_offset()) for w in weights)


def _flatten(
    weights: list[Tensor], input_size: int, hidden_size: int, num_layers: int, bias: bool, bidirectional: bool
) -> Tensor:
    """Move the weights, in place, into cuDNN's buffer, which is returned."""
    with torch.no_grad(), torch.cuda.device_of(weights[0]):
        return torch._cudnn_rnn_flatten_weight(
            weights, 4 if bias else 2, input_size, GRU_MODE, hidden_size, 0, num_layers, False, bidirectional
        )


def lay_flat(module: nn.RNNBase) -> None:
    """Move a module's parameters, in place, to where cuDNN takes them without a copy, as nn.GRU's
    `flatten_parameters()` does. Nothing happens where they are no plain parameters of one kind, or share memory."""
    weights = [w for w in module._flat_weights if type(w) is nn.Parameter]
    if len(weights) < len(module._flat_weights_names):
        return
    first = weights[0]
    alike = all(w.dtype == first.dtype and w.device == first.device for w in weights)
    if not alike or why_not_here("torch", first.device, first.dtype, 1) is not None:
        return
    if len({w.data_ptr() for w in weights}) == len(weights):
        layer = Layer(
            module.input_size,
            module.hidden_size,
            num_layers=module.num_layers,
            bias=module.bias,
            bidirectional=bool(module.bidirectional),
        )
        for one in _parts(layer, module.num_layers if module.dropout else 1):
            _flatten(weights[one.weights], *_sizes(one.layer))  # type: ignore[arg-type]
