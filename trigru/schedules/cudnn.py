"""All layers and directions by cuDNN, in one call forward and one backward, as torch's own GRU runs on a GPU.

cuDNN reads the weights out of one buffer, laid out in an order of its own. Weights that lie so are taken as they are:
those of a `trigru.GRU` with schedule="cudnn", and those of an nn.GRU, which lies so from its construction on. Others
are copied at each call, into a buffer that lives as long as the call, or as its graph. No copy outlives that: the
weights could change without a trace, under `.data` or by a replay of a CUDA graph.

The reserve is cuDNN's own, then the buffer of the weights and the output; or nothing, and backward runs forward again:
with memory="recompute", and in the operators, whose compiler wants to know sizes that only cuDNN knows. cuDNN's
backward spoils its reserve, so that is copied where the graph is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import batch_sizes_of
from ..layer import Call, Layer
from ..planning.configs import CudnnConfig
from ..planning.cudnn import why_not_here
from ..planning.stages import Choice

if TYPE_CHECKING:
    from .stack import Wanted

GRU_MODE = 3  # CUDNN_GRU
_will_be_kept = torch._C._autograd._get_current_graph_task_keep_graph  # type: ignore[attr-defined]


def is_own(reserve: Sequence[Tensor]) -> bool:
    """Whether a reserve is what `forward` kept: no other schedule keeps bytes."""
    return bool(reserve) and reserve[0].dtype == torch.uint8


def unspent(reserve: Sequence[Tensor]) -> list[Tensor]:
    """A reserve that backward may spoil."""
    return [x.clone() if x.dtype == torch.uint8 else x for x in reserve]


def forward(
    layer: Layer, weights: Sequence[Tensor], call: Call, choice: Choice, first_kept: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(output, h_n, reserve) of all layers. first_kept: 0, or num_layers where nothing is kept.

    Raises:
        RuntimeError: another first_kept, for cuDNN goes back through all layers or none.
    """
    if 0 < first_kept < layer.num_layers:
        raise RuntimeError(f"first_kept: expected 0 or {layer.num_layers} with schedule 'cudnn', got {first_kept}")
    keeps = first_kept == 0 and layer.memory == "keep" and choice.config != CudnnConfig(keeps=False)
    buffer = flat(layer, weights)
    output, h_n, reserve = _run(layer, weights, buffer, call, keeps)
    return output, h_n, [reserve, buffer, output] if keeps else []


def backward(
    layer: Layer, weights: Sequence[Tensor], call: Call, reserve: Sequence[Tensor], wanted: Wanted
) -> list[Tensor | None]:
    """Derivatives by the input, hx and each of the weights; None for those that are not asked for."""
    alone = is_own(reserve) and not _will_be_kept()
    if is_own(reserve):
        kept, buffer, output = (reserve if alone else unspent(reserve))[:3]
    else:
        buffer = flat(layer, weights)
        output, _, kept = _run(layer, weights, buffer, call, True)
    fixed = _Fixed.of(layer, call)
    need_input, need_hx, *need_weights = wanted.needs
    d_input, d_hx, _, d_weights = torch.ops.aten._cudnn_rnn_backward(
        call.input,
        list(weights),
        fixed.stride,
        buffer,
        call.hx.contiguous(),
        None,
        output,
        wanted.grad_output,
        wanted.grad_h_n,
        None,
        *fixed.of_rnn,
        0.0,
        True,
        layer.bidirectional,
        fixed.batch_sizes,
        None,
        kept,
        [need_input, need_hx, False, any(need_weights)],
    )
    if not any(need_weights):
        d_weights = [None] * len(weights)
    elif not alone:  # they share one buffer, and an operator's results share nothing
        d_weights = [d.clone() for d in d_weights]
    given = (d_input, d_hx, *d_weights)
    return [d if need else None for d, need in zip(given, wanted.needs, strict=True)]


def _run(layer: Layer, weights: Sequence[Tensor], buffer: Tensor, call: Call, train: bool) -> tuple[Tensor, ...]:
    """(output, h_n, cuDNN's reserve, which is empty unless train)."""
    fixed = _Fixed.of(layer, call)
    output, h_n, _, reserve, _ = torch._cudnn_rnn(
        call.input,
        list(weights),
        fixed.stride,
        buffer,
        call.hx.contiguous(),
        None,
        *fixed.of_rnn,
        0.0,
        train,
        layer.bidirectional,
        fixed.batch_sizes,
        None,
    )
    return output, h_n, reserve


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
    first = weights[0]
    sizes = (layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.bidirectional)
    size, offsets = _places(*sizes, first.dtype, first.device)
    storage, width = first.untyped_storage(), first.element_size()
    start = storage.data_ptr()
    if storage.nbytes() >= size * width and all(
        w.data_ptr() == start + offset * width and w.is_contiguous() for w, offset in zip(weights, offsets, strict=True)
    ):
        return first.detach().as_strided((size,), (1,), 0)
    buffer = first.new_zeros(size)
    places = [buffer.narrow(0, at, w.numel()).view(w.shape) for w, at in zip(weights, offsets, strict=True)]
    torch._foreach_copy_(places, list(weights))
    return buffer


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
        sizes = (module.input_size, module.hidden_size, module.num_layers, module.bias, bool(module.bidirectional))
        _flatten(weights, *sizes)  # type: ignore[arg-type]
