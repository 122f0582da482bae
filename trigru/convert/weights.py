"""What all converters share: arrays read by name and shape, the weights of a direction, modules built and taken apart.

Gates are stacked r, z, n throughout, as in `nn.GRU`; each converter reorders at its own door.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..blocks import Blocks, whole
from ..cell import GRUCell
from ..modules import GRU
from ..reference import check_variant
from .reverse import ReverseGRU

# A torch tensor, or what np.asarray reads: arrays of numpy and JAX, variables of Keras and Flax.
Array: TypeAlias = Any
Module: TypeAlias = GRU | GRUCell | nn.GRU | nn.GRUCell


@dataclass(frozen=True)
class Weights:
    """A layer in one direction, as `trigru.gru` takes it; biases both there or both None."""

    w_ih: Tensor  # (3 * hidden_size, input_size), or of one of some groups / groups
    w_hh: Tensor  # (3 * hidden_size, hidden_size), or of one of some heads / num_heads
    b_ih: Tensor | None  # (3 * hidden_size,)
    b_hh: Tensor | None

    @property
    def sizes(self) -> tuple[int, int]:
        """input_size (of one group), hidden_size."""
        return self.w_ih.shape[1], self.w_hh.shape[0] // 3

    @property
    def biases(self) -> tuple[Tensor, Tensor]:
        """b_ih and b_hh; zeros where there are none, which computes the same."""
        zeros = self.w_hh.new_zeros(self.w_hh.shape[0])
        return zeros if self.b_ih is None else self.b_ih, zeros if self.b_hh is None else self.b_hh

    @property
    def merged_biases(self) -> tuple[Tensor, Tensor]:
        """All that is not under the reset gate, (3 * hidden_size,), and b_hn, which "torch" has under it."""
        b_ih, b_hh = self.biases
        r, z, n = b_hh.chunk(3)
        return b_ih + torch.cat([r, z, torch.zeros_like(n)]), n


# Arrays.

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(name: str, array: Array, shape: tuple[int | str, ...], like: Tensor | None = None) -> Tensor:
    """`array` as a dense tensor of the same dtype.

    shape: what is expected; a name in place of a size that any number fits.
    like: a tensor whose dtype and device are expected.

    Raises:
        ValueError: the array of this name has another shape, dtype or device, or no floating dtype; it is ragged,
            sparse, quantised, masked or empty, or has no values that can be read.
    """
    given = _dense(name, array) if isinstance(array, Tensor) else _read(name, array)
    if not given.is_floating_point():
        raise ValueError(f"{name}: expected a floating dtype, got {given.dtype}")
    if given.dtype not in _DTYPES:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, _DTYPES))}, got {given.dtype}")
    sizes = tuple(given.shape)
    if len(sizes) != len(shape) or any(isinstance(e, int) and e != s for e, s in zip(shape, sizes, strict=True)):
        raise ValueError(f"{name}: expected shape {_shape(shape)}, got {sizes}")
    if 0 in sizes:
        raise ValueError(f"{name}: expected shape {_shape(shape)} without a size of 0, got {sizes}")
    if like is not None and given.dtype != like.dtype:
        raise ValueError(f"{name}: expected dtype {like.dtype} as the other arrays, got {given.dtype}")
    if like is not None and given.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as the other arrays, got {given.device}")
    return given


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _dense(name: str, given: Tensor) -> Tensor:
    """A torch tensor whose values can be read as they are."""
    kind = None
    if given.is_nested:
        kind = "a nested tensor"
    elif given.is_quantized:
        kind = f"a quantised tensor ({given.dtype})"
    elif given.layout != torch.strided:
        kind = f"layout {given.layout}"
    elif given.is_meta:
        kind = "a tensor without values, on device meta"
    if kind is not None:
        raise ValueError(f"{name}: expected a dense array, got {kind}")
    return given.detach()


def _read(name: str, array: Array) -> Tensor:
    """A tensor of its own with the values of what is no torch tensor."""
    if array is None:
        raise ValueError(f"{name}: expected an array, got None")
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ValueError(f"{name}: expected an array with all its values, got a masked one")
    try:
        values = np.asarray(array)
    except Exception as error:  # whatever the other library raises, by its own words and without a name
        kind = type(array).__name__
        raise ValueError(f"{name}: expected an array, got {kind}, which numpy does not read: {error}") from error
    if values.dtype.name == "bfloat16":  # of ml_dtypes; torch does not know it
        return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16)
    if values.dtype.name in ("float16", "float32", "float64"):
        return torch.from_numpy(np.array(values, dtype=values.dtype.name))  # a copy in this machine's byte order
    if values.dtype == object:
        raise ValueError(f"{name}: expected an array of numbers, got {type(array).__name__}")
    if "float" in values.dtype.name:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, _DTYPES))}, got {values.dtype}")
    raise ValueError(f"{name}: expected a floating dtype, got {values.dtype}")


def array(given: Tensor) -> np.ndarray:
    """A numpy array of its own with the tensor's values and dtype; bfloat16, which numpy has not, is ml_dtypes'."""
    given = given.detach().cpu().contiguous()
    if given.dtype == torch.bfloat16:
        try:
            from ml_dtypes import bfloat16
        except ImportError as error:
            raise ImportError(
                "numpy has no bfloat16 of its own: pip install ml_dtypes, or convert in float32"
            ) from error

        return given.view(torch.int16).numpy().copy().view(bfloat16)
    return given.numpy().copy()


def kernels(kernel: Array, recurrent: Array, names: tuple[str, str] = ("kernel", "recurrent_kernel")) -> list[Tensor]:
    """Weights that stand right of a product, checked: (input_size, 3 * hidden_size), (hidden_size, 3 * hidden_size)."""
    recurrent = tensor(names[1], recurrent, ("hidden_size", "3 * hidden_size"))
    gates = 3 * recurrent.shape[0]
    recurrent = tensor(names[1], recurrent, (recurrent.shape[0], gates))
    return [tensor(names[0], kernel, ("input_size", gates), recurrent), recurrent]


def expect_function(
    name: str, function: Any, wanted: str, call: Callable[[Any, np.ndarray], Any] = lambda function, x: function(x)
) -> None:
    """Raise ValueError unless an activation of this name computes "tanh" or "sigmoid", whatever it calls itself.

    call: its values at an array of numpy, as what `np.asarray` reads.
    """
    x = np.concatenate([np.linspace(-20, 22, 801), [-1e4, 1e4]]).astype(np.float32).reshape(11, 73)
    exact = x.astype(np.float64)
    want = np.tanh(exact) if wanted == "tanh" else (1 + np.tanh(exact / 2)) / 2
    called = getattr(function, "__name__", None) or repr(function)
    try:
        got = np.asarray(call(function, x), dtype=np.float64)
    except Exception as error:  # whatever the other library raises
        raise ValueError(f"{name}: expected {wanted}, got {called}, which cannot be called: {error}") from error
    if got.shape != want.shape or not np.allclose(got, want, rtol=1e-5, atol=2e-6):
        other = f"another function of this name ({called})" if called == wanted else called
        raise ValueError(f"{name}: expected {wanted}, got {other}")


# Gates.


def regate(stacked: Tensor) -> Tensor:
    """Gates r, z, n as z, r, n, and back."""
    r, z, n = stacked.chunk(3)
    return torch.cat([z, r, n])


def recast(weights: Weights, variant: str, wanted: str) -> Weights:
    """Weights that compute in variant `wanted` what `weights` compute in `variant`.

    Since 1 - sigmoid(x) = sigmoid(-x), negated rows of z turn "cho" into "chung" and back; no value is rounded.

    Raises:
        ValueError: no such weights.
    """
    if variant == wanted:
        return weights
    if "torch" in (variant, wanted):
        raise ValueError(
            f"variant: expected {wanted!r}, got {variant!r}, and no weights make them equal: 'torch' multiplies by the "
            "reset gate after the product with W_hn, 'cho' and 'chung' before it, and r * (W_hn h + b_hn) is "
            "W_hn (r * h) + b_hn for all h only where W_hn is diagonal and b_hn zero"
        )

    def negated(stacked: Tensor | None) -> Tensor | None:
        if stacked is None:
            return None
        r, z, n = stacked.chunk(3)
        return torch.cat([r, -z, n])

    w_ih, w_hh = negated(weights.w_ih), negated(weights.w_hh)
    assert w_ih is not None and w_hh is not None  # noqa: PT018
    return Weights(w_ih, w_hh, negated(weights.b_ih), negated(weights.b_hh))


# Modules.


def build(
    layers: Sequence[Sequence[Weights]],
    variant: str,
    *,
    reverse: bool = False,
    batch_first: bool = False,
    **options: Any,
) -> GRU:
    """A `trigru.GRU` with these weights: for each layer one direction, or forward and reverse.

    options: further arguments of `trigru.GRU`."""
    first = layers[0][0]
    input_size, hidden_size = first.sizes
    # On "meta" first: no random numbers are drawn for values that are overwritten.
    module = (ReverseGRU if reverse else GRU)(
        input_size * options.get("groups", 1),
        hidden_size,
        num_layers=len(layers),
        bias=first.b_ih is not None,
        batch_first=batch_first,
        bidirectional=len(layers[0]) == 2,
        device="meta",
        dtype=first.w_ih.dtype,
        variant=variant,  # type: ignore[arg-type]  # checked when it is called
        **options,
    ).to_empty(device=first.w_ih.device)
    for names, weights in zip(module._all_weights, [w for layer in layers for w in layer], strict=True):
        _fill(module, names, weights)
    return module


def build_cell(weights: Weights, variant: str) -> GRUCell:
    """A `trigru.GRUCell` with these weights."""
    bias, dtype = weights.b_ih is not None, weights.w_ih.dtype
    cell = GRUCell(*weights.sizes, bias, "meta", dtype, variant=variant).to_empty(device=weights.w_ih.device)  # type: ignore[arg-type]
    _fill(cell, _CELL_NAMES, weights)
    return cell


_CELL_NAMES = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


@torch.no_grad()
def _fill(module: nn.Module, names: Sequence[str], weights: Weights) -> None:
    values = (weights.w_ih, weights.w_hh, weights.b_ih, weights.b_hh)
    for name, value in zip(names, values, strict=False):  # without biases, the names end before them
        if value is not None:
            getattr(module, name).copy_(value)


def layers_of(module: Module, *, kept: Sequence[str] = ()) -> list[list[Weights]]:
    """The weights of each layer and direction, detached; of heads and groups the whole matrices.

    kept: options of steps that are known where this is called.

    Raises:
        TypeError: the module is no GRU, or has a forward of its own.
        ValueError: a weight has not the shape of its layer, or not the dtype and device of the first; a cell has
            equations that no layer has; in evaluation steps do more than the equations, or begin from a learned state.
    """
    check_variant(variant_of(module))
    # By what they hold: TorchRL has classes of its own.
    if isinstance(module, nn.RNNCellBase) and len(module.weight_hh) == 3 * module.hidden_size:
        _expect_known_forward(module)
        return [[_weights(module, _CELL_NAMES if module.bias else _CELL_NAMES[:2], module.input_size)]]
    if not (isinstance(module, nn.RNNBase) and module.mode == "GRU"):
        raise TypeError(f"module: expected a GRU or GRUCell of trigru or torch.nn, got {type(module).__name__}")
    _expect_known_forward(module)
    further = module.further() if isinstance(module, GRU) else {}
    for name in ("zoneout", "clip", "norm", "learn_initial_state"):
        if name in further and name not in kept:
            raise ValueError(f"{name}: expected none, as weights do not hold it, got {further[name]}")
    directions = 2 if module.bidirectional else 1
    flat: list[Weights] = []
    for index, names in enumerate(module._all_weights):
        width = module.input_size if index < directions else directions * module.hidden_size
        flat.append(_weights(module, names, width, flat[0].w_ih if flat else None, getattr(module, "_blocks", None)))
    return [flat[i : i + directions] for i in range(0, len(flat), directions)]


def _expect_known_forward(module: Module) -> None:
    """Raise TypeError where a class or an instance computes by code of its own, which weights do not hold."""
    known = {cls.forward for cls in (GRU, GRUCell, nn.GRU, nn.GRUCell)}
    theirs = type(module).__module__.partition(".")[0] == "torchrl"
    if "forward" in vars(module) or not (theirs or type(module).forward in known):
        raise TypeError(
            f"module: expected a GRU or GRUCell of trigru or torch.nn, got {type(module).__name__} with a forward of "
            "its own"
        )


def _weights(
    module: Module, names: Sequence[str], width: int, like: Tensor | None = None, blocks: Blocks | None = None
) -> Weights:
    gates, groups, heads = 3 * module.hidden_size, blocks.groups if blocks else 1, blocks.num_heads if blocks else 1
    shapes = [(gates, width // groups), (gates, module.hidden_size // heads), (gates,), (gates,)]
    found: list[Tensor] = []
    for name, shape in zip(names, shapes, strict=False):  # without biases, the names end before the shapes
        found.append(tensor(name, getattr(module, name), shape, like))
        like = found[0] if like is None else like
    w_ih, w_hh, *biases = found
    b_ih, b_hh = biases or (None, None)
    return Weights(whole(w_ih, groups), whole(w_hh, heads), b_ih, b_hh)


def variant_of(module: Module) -> str:
    """The equations that the module computes; nn.GRU's where it has no choice."""
    return getattr(module, "variant", "torch")


def one_layer(module: Module, wanted: Sequence[str]) -> list[Weights]:
    """The directions of a module with one layer, in a variant of `wanted`, where "torch" comes first if it is there.

    Raises:
        ValueError: several layers, or a variant that has no exact counterpart in `wanted`.
        TypeError: the module is no GRU.
    """
    layers = layers_of(module)
    if len(layers) != 1:
        raise ValueError(
            f"num_layers: expected 1, got {len(layers)}: convert each module of trigru.convert.split_layers(module)"
        )
    variant = variant_of(module)
    target = "torch" if variant == "torch" and "torch" in wanted else wanted[-1]
    return [recast(weights, variant, target) for weights in layers[0]]


def one_direction(module: Module, wanted: Sequence[str]) -> Weights:
    """As `one_layer`, of a module that runs forward only.

    Raises:
        ValueError: also where it runs in reverse or both ways.
    """
    directions = one_layer(module, wanted)
    if len(directions) != 1:
        raise ValueError(
            "direction: expected forward, got both: convert each module of trigru.convert.split_directions(module)"
        )
    if isinstance(module, ReverseGRU):
        raise ValueError(
            "direction: expected forward, got reverse: load its state_dict into trigru.GRU, which then "
            "expects the sequence flipped"
        )
    return directions[0]
