"""What a kernel would take on trust, checked before anything runs: options, shapes, dtypes, devices, packed steps."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .layer import NOTHING, Call, Layer, present
from .planning.plan import check_memory, check_schedule
from .reference import check_variant

_NAMES = ("w_ih", "w_hh", "b_ih", "b_hh")


def layer_of(input_size: int, hidden_size: int, **options: object) -> Layer:
    """The record of a layer, its options checked; remembered, for every call asks for its own again.

    Raises:
        ValueError: unknown variant, schedule or memory.
        RuntimeError: a dropout that is no probability.
    """
    return _remembered(_layer_of, input_size, hidden_size, **options)


def _remembered(function: Any, *args: object, **options: object) -> Any:
    """What a function with a cache gives."""
    if torch.compiler.is_compiling():  # which has no use for what is remembered, and warns of it
        return function.__wrapped__(*args, **options)
    try:
        return function(*args, **options)
    except TypeError:  # an option that is not even hashable, or a tracer's sizes
        return function.__wrapped__(*args, **options)


@functools.lru_cache(maxsize=1024)
def _layer_of(input_size: int, hidden_size: int, **options: object) -> Layer:
    layer = Layer(input_size, hidden_size, **options)  # type: ignore[arg-type]
    check_variant(layer.variant)
    check_schedule(layer.schedule)
    check_memory(layer.memory)
    if not 0 <= layer.dropout <= 1:  # set on a module that is there; its constructor refuses it
        raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {layer.dropout:g}")
    return layer


def check(layer: Layer, weights: Sequence[Tensor], call: Call) -> None:
    """Raise where a tensor does not fit the layer, naming it, what was expected and what came.

    Raises:
        ValueError: input's dtype differs from that of the weights, as in nn.GRU.
        RuntimeError: anything else.
    """
    input, hx, batch_sizes, given, gain, _ = call
    dims = 3 if batch_sizes is None else 2
    shape, dtype, device = input.shape, input.dtype, input.device  # each makes an object
    if input.layout != torch.strided:
        raise RuntimeError(f"input: expected a strided tensor, got one of layout {input.layout}")
    if len(shape) != dims:
        raise RuntimeError(f"input: expected {dims} dimensions, got {len(shape)}")
    if shape[-1] != layer.input_size:
        raise RuntimeError(f"input: expected {layer.input_size} features, got {shape[-1]}")
    if shape[1 if batch_sizes is None and layer.batch_first else 0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN (input)")
    if not dtype.is_floating_point:
        raise RuntimeError(f"input: expected a floating dtype, got {dtype}")
    check_weights(layer, weights)
    check_state(layer, call)
    if dtype != weights[0].dtype:
        raise ValueError(f"input: expected the weights' dtype {weights[0].dtype}, got {dtype}")
    if hx.dtype != dtype:
        raise RuntimeError(f"{_state(layer)}: expected dtype {dtype} as input, got {hx.dtype}")
    if hx.device != device:
        raise RuntimeError(f"{_state(layer)}: expected device {device} as input, got {hx.device}")
    for index, weight in enumerate(weights):
        if weight.dtype != dtype:
            raise RuntimeError(f"{_name(layer, index)}: expected dtype {dtype} as input, got {weight.dtype}")
        if weight.device != device:
            raise RuntimeError(f"{_name(layer, index)}: expected device {device} as input, got {weight.device}")
    if batch_sizes is not None:
        _check_sizes(batch_sizes)
    if gain is not None:
        expect("gain", gain, [(layer.parts, 2, 3 * layer.hidden_size)], [dtype], input)
    if given is not NOTHING and present(given):  # torch 2.11's compiler has tuples anew, which are not the same
        _check_given(layer, call)


def expect_tensor(name: str, x: object) -> Tensor:
    """The argument. Raises TypeError where it is no tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    return x


def refuse_nested(input: Tensor) -> None:
    """Raise RuntimeError where the input has no shape to speak of."""
    if input.is_nested:
        raise RuntimeError("input: expected a padded tensor, with lengths, or a packed one, got a nested tensor")


def expect(
    name: str,
    x: object,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[torch.dtype] | None,
    like: Tensor,
) -> None:
    """Raise where an argument is no tensor of one of these shapes and dtypes (None: of any) on the device of the input
    `like`.

    Raises:
        TypeError: no tensor.
        RuntimeError: anything else.
    """
    x = expect_tensor(name, x)
    if not any(tuple(x.shape) == shape for shape in shapes):  # torch's compiler finds no dynamic sizes by "in"
        expected = " or ".join(str(tuple(shape)) for shape in shapes)
        raise RuntimeError(f"{name}: expected shape {expected}, got {tuple(x.shape)}")
    if dtypes is not None and x.dtype not in dtypes:
        raise RuntimeError(f"{name}: expected dtype {' or '.join(map(str, dtypes))}, got {x.dtype}")
    if x.device != like.device:
        raise RuntimeError(f"{name}: expected device {like.device} as input, got {x.device}")


def _check_given(layer: Layer, call: Call) -> None:
    """Raise RuntimeError where what is given for each step does not fit."""
    if call.batch_sizes is not None:
        raise RuntimeError("batch_sizes: expected None where something is given for each step")
    sizes, hx = call.input.shape, call.hx
    steps, batch, (parts, _, hidden_size) = sizes[1 if layer.batch_first else 0], hx.shape[1], hx.shape
    state = (parts, batch, hidden_size)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "reset": ((steps, batch),),
        "fresh": (state, (steps, *state)),
        "decay": ((steps, batch, 1), (steps, batch, layer.directions * hidden_size)),
        "amount": ((steps, batch),),
        "dropped": ((),),
        "seed": ((),),
        "lengths": ((batch,),),
    }
    flags, number = [torch.bool], [torch.int64]
    dtypes = dict.fromkeys(("dropped", "seed", "lengths"), number) | {
        "reset": flags,
        "amount": [call.input.dtype, *flags],
    }
    for name in present(call.given):
        x = getattr(call.given, name)
        expect(name, x, shapes[name], dtypes.get(name, [call.input.dtype]), call.input)


@functools.lru_cache(maxsize=1024)
def weight_shapes(layer: Layer) -> tuple[tuple[int, ...], ...]:
    """Of all weights, in their order."""
    gates, of_head = 3 * layer.hidden_size, layer.hidden_size // layer.num_heads
    sizes = [layer.input_size] + [layer.hidden_size * layer.directions] * (layer.num_layers - 1)
    biases = ((gates,), (gates,)) if layer.bias else ()
    return tuple(shape for size in sizes for shape in layer.directions * ((gates, size), (gates, of_head), *biases))


def check_weights(layer: Layer, weights: Sequence[Tensor]) -> None:
    """Raise RuntimeError where the weights are not as many as the layer has, or one is of another shape."""
    shapes = _remembered(weight_shapes, layer)
    width = 4 if layer.bias else 2
    if len(weights) != len(shapes):
        raise RuntimeError(f"weights: expected {len(shapes)} tensors, got {len(weights)}")
    for first in range(0, len(weights), width):
        for index in (first + 1, first, first + 2, first + 3)[:width]:
            shape = weights[index].shape
            if shape != shapes[index]:
                raise RuntimeError(f"{_name(layer, index)}: expected shape {shapes[index]}, got {tuple(shape)}")


def check_state(layer: Layer, call: Call) -> None:
    """Raise RuntimeError where hx is of another shape."""
    hx, parts = call.hx, layer.parts
    batch = hx.shape[1] if hx.dim() == 3 else -1
    if call.batch_sizes is None:
        batch = call.input.shape[0 if layer.batch_first else 1]
    if hx.shape != (parts, batch, layer.hidden_size):
        expected = (batch if batch >= 0 else "batch", layer.hidden_size)
        if parts == 1 and hx.dim() >= 1:
            raise RuntimeError(f"h0: expected shape {_shape(expected)}, got {_shape(hx.shape[1:])}")
        raise RuntimeError(f"hx: expected shape {_shape((parts, *expected))}, got {_shape(hx.shape)}")


def _shape(sizes: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"


def _state(layer: Layer) -> str:
    return "h0" if layer.parts == 1 else "hx"


def _name(layer: Layer, index: int) -> str:
    """What the weight of this number is called: as in `trigru.gru` for a single layer, else as in nn.GRU."""
    part, kind = divmod(index, 4 if layer.bias else 2)
    if layer.parts == 1:
        return _NAMES[kind]
    number, direction = divmod(part, layer.directions)
    name = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[kind]
    return f"{name}_l{number}{'_reverse' if direction else ''}"


def batch_sizes_of(call: Call) -> list[int]:
    """The batch sizes of a packed call, once they are known to fit its rows and its state. Their cost does not grow
    with the rows.

    Raises:
        RuntimeError: not one dimension of int64; a size that is not positive or larger than the one before; their sum
            is not the number of rows, or the first not the batch of the state.
    """
    sizes = call.batch_sizes
    assert sizes is not None
    _check_sizes(sizes)
    counts: list[int] = sizes.tolist()
    if counts[-1] < 1 or any(later > earlier for earlier, later in itertools.pairwise(counts)):
        raise RuntimeError(f"batch_sizes: expected positive sizes that never grow, got {_shortened(counts)}")
    if sum(counts) != call.input.shape[0]:
        raise RuntimeError(
            f"batch_sizes: expected a sum of {call.input.shape[0]}, the rows of input, got {sum(counts)}"
        )
    if counts[0] != call.hx.shape[1]:
        raise RuntimeError(f"h0: expected a batch of {counts[0]} as in batch_sizes, got {call.hx.shape[1]}")
    return counts


def assert_batch_sizes(call: Call) -> None:
    """Have a graph raise RuntimeError, as it runs, where `batch_sizes_of` would."""
    sizes = call.batch_sizes
    assert sizes is not None
    fits = (sizes[-1] > 0) & (sizes.diff() <= 0).all()
    fits = fits & (sizes.sum() == call.input.shape[0]) & (sizes[0] == call.hx.shape[1])
    words = "batch_sizes: expected positive sizes that never grow, as many as the rows of input, the first h0's batch"
    torch._assert_async(fits, words)


def first_of(batch_sizes: Tensor) -> int:
    """The batch of a packed call. Raises RuntimeError for what cannot be batch sizes."""
    _check_sizes(batch_sizes)
    return int(batch_sizes[0])


def _check_sizes(sizes: Tensor) -> None:
    if sizes.dim() != 1 or sizes.dtype != torch.int64:
        raise RuntimeError(f"batch_sizes: expected (seq_len,) int64, got {tuple(sizes.shape)} {sizes.dtype}")
    if not sizes.is_cpu:
        raise RuntimeError(f"batch_sizes: expected a tensor on the CPU, got one on {sizes.device}")
    if sizes.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN (batch_sizes)")


def _shortened(counts: list[int]) -> str:
    return str(counts) if len(counts) <= 12 else f"[{', '.join(map(str, counts[:12]))}, ...]"
