"""Between modules: other variants, cells and layers, several layers and one, both directions and one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from torch import nn

from ..cell import GRUCell
from ..modules import GRU
from ..reference import check_variant
from .reverse import ReverseGRU
from .weights import Module, Weights, build, build_cell, layers_of, one_direction, recast, variant_of

_RATES = ("recurrent_dropout", "weight_dropout")  # do nothing in evaluation, so weights may stand without them


@overload
def to_variant(module: GRU, variant: str) -> GRU: ...
@overload
def to_variant(module: GRUCell, variant: str) -> GRUCell: ...
def to_variant(module: GRU | GRUCell, variant: str) -> GRU | GRUCell:
    """A new module that computes with `variant` what `module` computes: "cho" as "chung" and back, exactly.

    1 - sigmoid(x) = sigmoid(-x), so the update gate's weights and biases change their sign.

    Args:
        module: a trigru.GRU of any layers and directions, or a trigru.GRUCell.
        variant: "torch", "cho" or "chung".

    Raises:
        ValueError: unknown variant; or one that has no exact counterpart: between "torch" and the others no weights
            make the results equal.
        TypeError: the module is none of trigru's.

    Example:
        >>> cho = trigru.GRU(5, 7, variant="cho")
        >>> chung = trigru.convert.to_variant(cho, "chung")
        >>> x = torch.randn(4, 2, 5)
        >>> torch.testing.assert_close(chung(x), cho(x))
    """
    check_variant(variant)
    if not isinstance(module, (GRU, GRUCell)):
        raise TypeError(f"module: expected a trigru.GRU or trigru.GRUCell, got {type(module).__name__}")
    layers = [[recast(weights, module.variant, variant) for weights in layer] for layer in layers_of(module)]
    if isinstance(module, GRUCell):
        return build_cell(layers[0][0], variant).train(module.training)
    return build(layers, variant, **_options(module)).train(module.training)


def from_cell(cell: GRUCell | nn.GRUCell, *, batch_first: bool = False) -> GRU:
    """A one-layer `trigru.GRU` with a cell's weights: a cell called in a loop over time computes the same.

    Raises:
        TypeError: no cell.

    Example:
        >>> cell = nn.GRUCell(5, 7)
        >>> layer = trigru.convert.from_cell(cell)
        >>> x, h = torch.randn(1, 2, 5), torch.randn(1, 2, 7)
        >>> torch.testing.assert_close(layer(x, h)[0][0], cell(x[0], h[0]))
    """
    if not isinstance(cell, nn.RNNCellBase):
        raise TypeError(f"cell: expected a GRUCell of trigru or torch.nn, got {type(cell).__name__}")
    return build(layers_of(cell), variant_of(cell), batch_first=batch_first)


def to_cell(module: Module) -> GRUCell:
    """A `trigru.GRUCell` with the weights of a one-layer GRU of trigru or torch.nn; `trigru.unswap` makes it nn's.

    Raises:
        ValueError: several layers, or another direction than forward.
        TypeError: the module is no GRU.

    Example:
        >>> layer = trigru.GRU(5, 7, variant="cho")
        >>> cell = trigru.convert.to_cell(layer)
        >>> x, h = torch.randn(1, 2, 5), torch.randn(1, 2, 7)
        >>> torch.testing.assert_close(cell(x[0], h[0]), layer(x, h)[0][0])
    """
    variant = variant_of(module)
    return build_cell(one_direction(module, (variant,)), variant)


def stack_layers(modules: Sequence[GRU | nn.GRU], *, dropout: float = 0.0) -> GRU:
    """One `trigru.GRU` of several layers, from modules of one layer or more, the first nearest to the input.

    Args:
        modules: one or more, alike but for input_size; batch_first, schedule and memory are those of the first.
        dropout: between the layers, as `nn.GRU`; in place of what the modules have between theirs.

    Raises:
        ValueError: no modules; what must be alike is not; a layer's input_size is not what the layer below puts out.
        TypeError: a module is no GRU.

    Example:
        >>> below, above = trigru.GRU(5, 7), trigru.GRU(7, 7)
        >>> both = trigru.convert.stack_layers([below, above])
        >>> x = torch.randn(4, 2, 5)
        >>> torch.testing.assert_close(both(x)[0], above(below(x)[0])[0])
    """
    if not modules:
        raise ValueError("modules: expected one GRU or more, got none")
    first = modules[0]
    layers = [layer for module in modules for layer in _layers(module)]
    for index, module in enumerate(modules):
        _expect_alike(f"modules[{index}]", module, first)
        width = first.hidden_size * len(layers[0])
        if index and module.input_size != width:
            raise ValueError(f"modules[{index}].input_size: expected {width}, got {module.input_size}")
        if isinstance(module, ReverseGRU):
            raise ValueError(f"modules[{index}]: expected a GRU that runs forward or both ways, got ReverseGRU")
    return build(layers, variant_of(first), **{**_options(first), "dropout": dropout}).train(first.training)


def split_layers(module: GRU | nn.GRU) -> list[GRU]:
    """The layers of a GRU as modules of one layer each, without the dropout between them.

    Raises:
        TypeError: the module is no GRU.

    Example:
        >>> module = nn.GRU(5, 7, num_layers=2, bidirectional=True)
        >>> below, above = trigru.convert.split_layers(module)
        >>> x = torch.randn(4, 2, 5)
        >>> torch.testing.assert_close(above(below(x)[0])[0], module(x)[0])
    """
    layers = _layers(module)
    options = {**_options(module), "dropout": 0.0}
    return [build([layer], variant_of(module), **options).train(module.training) for layer in layers]


def join_directions(forward: GRU | nn.GRU, reverse: GRU | nn.GRU) -> GRU:
    """A bidirectional `trigru.GRU` of one layer, from two modules of one layer and one direction.

    Args:
        forward, reverse: alike; batch_first, schedule and memory are those of `forward`. `reverse` holds the weights
            for the sequence from its end, in a trigru.GRU or a `ReverseGRU`.

    Raises:
        ValueError: what must be alike is not; a module has several layers or directions.
        TypeError: a module is no GRU.

    Example:
        >>> forward, reverse = trigru.GRU(5, 7), trigru.GRU(5, 7)
        >>> both = trigru.convert.join_directions(forward, reverse)
        >>> x = torch.randn(4, 2, 5)
        >>> want = torch.cat([forward(x)[0], reverse(x.flip(0))[0].flip(0)], -1)
        >>> torch.testing.assert_close(both(x)[0], want)
    """
    directions: list[Weights] = []
    for name, module in (("forward", forward), ("reverse", reverse)):
        layers = _layers(module)
        if len(layers) != 1 or len(layers[0]) != 1:
            raise ValueError(f"{name}: expected one layer and one direction, got {module}")
        directions += layers[0]
    if isinstance(forward, ReverseGRU):
        raise ValueError("forward: expected a GRU that runs forward, got ReverseGRU")
    _expect_alike("reverse", reverse, forward)
    if reverse.input_size != forward.input_size:
        raise ValueError(f"reverse.input_size: expected {forward.input_size}, got {reverse.input_size}")
    options = {**_options(forward), "dropout": 0.0}
    return build([directions], variant_of(forward), **options).train(forward.training)


def split_directions(module: GRU | nn.GRU) -> tuple[GRU, GRU]:
    """The two directions of a bidirectional GRU of one layer as modules; the second expects the sequence flipped.

    Raises:
        ValueError: several layers, or one direction.
        TypeError: the module is no GRU.

    Example:
        >>> both = nn.GRU(5, 7, bidirectional=True)
        >>> forward, reverse = trigru.convert.split_directions(both)
        >>> x = torch.randn(4, 2, 5)
        >>> want = torch.cat([forward(x)[0], reverse(x.flip(0))[0].flip(0)], -1)
        >>> torch.testing.assert_close(want, both(x)[0])
    """
    layers = _layers(module)
    if len(layers) != 1 or len(layers[0]) != 2:
        raise ValueError(f"module: expected one layer and both directions, got {module}")
    forward, reverse = (build([[weights]], variant_of(module), **_options(module)) for weights in layers[0])
    return forward.train(module.training), reverse.train(module.training)


def _layers(module: GRU | nn.GRU) -> list[list[Weights]]:
    """`layers_of`, of no cell."""
    if isinstance(module, nn.RNNCellBase):
        raise TypeError(f"module: expected a GRU of trigru or torch.nn, got {type(module).__name__}")
    return layers_of(module)


def _options(module: GRU | nn.GRU) -> dict[str, Any]:
    """The arguments of `build` beside weights and variant."""
    options: dict[str, Any] = {
        "batch_first": module.batch_first,
        "dropout": module.dropout,
        "reverse": isinstance(module, ReverseGRU),
    }
    if isinstance(module, GRU):
        options |= {"schedule": module.schedule, "memory": module.memory}
        further = module.further()
        options |= {name: further[name] for name in _RATES if name in further}
    return options


def _expect_alike(name: str, module: GRU | nn.GRU, first: GRU | nn.GRU) -> None:
    """Raise ValueError unless one trigru.GRU could hold the weights of both."""
    for what, got, want in (
        ("variant", variant_of(module), variant_of(first)),
        ("hidden_size", module.hidden_size, first.hidden_size),
        ("bias", module.bias, first.bias),
        ("bidirectional", module.bidirectional, first.bidirectional),
        ("dtype", module.weight_ih_l0.dtype, first.weight_ih_l0.dtype),
        ("device", module.weight_ih_l0.device, first.weight_ih_l0.device),
        *((rate, _options(module).get(rate, 0.0), _options(first).get(rate, 0.0)) for rate in _RATES),
    ):
        if got != want:
            raise ValueError(f"{name}.{what}: expected {want!r} as the first module, got {got!r}")
