"""Grouped GRUs: DeepFilterNet's GroupedGRU and GTCRN's GRNN, lists of nn.GRU that each see a part of the input.

Needs neither. https://github.com/Rikorose/DeepFilterNet/blob/main/DeepFilterNet/df/modules.py and
https://github.com/Xiaobin-Rong/gtcrn/blob/main/gtcrn.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import whole
from ..modules import GRU
from .reverse import ReverseGRU
from .weights import Module, Weights, build, layers_of, recast, variant_of


def from_deepfilternet(module: nn.Module) -> GRU:
    """A `trigru.GRU`, variant "torch", from GroupedGRU or GroupedGRULayer.

    With `groups`, where each layer sees the one below as it puts it out. Where it sees it shuffled, or both directions
    group by group, `num_heads` and whole input weights, zero where a group sees nothing: the same results, and weights
    that can learn more. Both directions: `grouped_order` says how the outputs lie. dropout does nothing in a layer of
    one, there too.

    States are (layers * groups * directions, batch, hidden_size / groups) there; as hx:
    `state.unflatten(0, (layers, groups, directions)).permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 1)`. DeepFilterNet
    passes no gradient to them.

    Raises:
        TypeError: the module is neither.
        ValueError: add_outputs, the sum of all layers' outputs, which one module does not give; a weight's shape, dtype
            or device is not what it must be; groups that are not alike.

    Example:
        >>> theirs = nn.Module()  # as GroupedGRULayer
        >>> theirs.groups, theirs.layers = 2, nn.ModuleList(nn.GRU(3, 4, batch_first=True) for _ in range(2))
        >>> trigru.convert.from_deepfilternet(theirs)
        trigru.GRU(6, 8, batch_first=True, groups=2)
    """
    layers = list(getattr(module, "grus", [module]))
    if not layers or not all(isinstance(getattr(layer, "layers", None), nn.ModuleList) for layer in layers):
        raise TypeError(f"module: expected a GroupedGRU or GroupedGRULayer, got {type(module).__name__}")
    if getattr(module, "add_outputs", False) and len(layers) > 1:
        raise ValueError(
            "add_outputs: expected False, got True: the sum of all layers' outputs takes a module each; convert the "
            "layers in module.grus"
        )
    members: list[Sequence[nn.GRU]] = [list(layer.layers) for layer in layers]  # type: ignore[arg-type]
    parts = [[_layers(f"grus[{i}].layers[{j}]", x, 1)[0] for j, x in enumerate(m)] for i, m in enumerate(members)]
    first = members[0][0]
    groups, hidden = len(parts[0]), first.hidden_size * len(parts[0])
    order = _order_between(groups, hidden, first.bidirectional, getattr(module, "shuffle", False))
    return _build(parts, order, batch_first=first.batch_first)


def to_deepfilternet(module: Module, *, shuffle: bool = True) -> dict[str, Tensor]:
    """The state_dict of a GroupedGRU with as many layers, groups (`groups` of the module, else its num_heads) and
    directions, for its `load_state_dict`; of a GroupedGRULayer, names go on behind "grus.0.".

    Args:
        shuffle: whether it shuffles between its layers.

    Raises:
        ValueError: a variant other than "torch"; a `ReverseGRU`; weights with which a group sees another one, as each
            layer of a trigru.GRU with `groups` does where that one shuffles.
        TypeError: the module is no GRU.

    Example:
        >>> list(trigru.convert.to_deepfilternet(trigru.GRU(6, 8, groups=2, bias=False)))[:2]
        ['grus.0.layers.0.weight_ih_l0', 'grus.0.layers.0.weight_hh_l0']
    """
    found: dict[str, Tensor] = {}
    for i, members in enumerate(_groups_of(module, shuffle)):
        for j, layer in enumerate(members):
            found |= _state_of(f"grus.{i}.layers.{j}.", 0, layer)
    return found


def from_gtcrn(module: nn.Module) -> GRU:
    """A `trigru.GRU`, variant "torch", from GTCRN's GRNN, of either kind that its DPGRNN has.

    With groups=2, and hx and h_n as there. Both directions: `grouped_order` says how the outputs lie; with several
    layers `num_heads` as in `from_deepfilternet`.

    Raises:
        TypeError: the module has not the two halves rnn1 and rnn2.
        ValueError: the halves are not alike.

    Example:
        >>> theirs = nn.Module()  # as GRNN
        >>> theirs.rnn1, theirs.rnn2 = (nn.GRU(8, 4, batch_first=True, bidirectional=True) for _ in range(2))
        >>> ours = trigru.convert.from_gtcrn(theirs)
        >>> ours
        trigru.GRU(16, 8, batch_first=True, bidirectional=True, groups=2)

        A linear layer behind it takes the outputs in their order:

        >>> order = trigru.convert.grouped_order(2, 8, bidirectional=True)
        >>> y1, y2 = theirs.rnn1(torch.ones(1, 3, 8))[0], theirs.rnn2(torch.ones(1, 3, 8))[0]
        >>> torch.testing.assert_close(ours(torch.ones(1, 3, 16))[0][..., order], torch.cat([y1, y2], -1))
    """
    halves = [getattr(module, name, None) for name in ("rnn1", "rnn2")]
    if None in halves:
        raise TypeError(f"module: expected a GRNN with its halves rnn1 and rnn2, got {type(module).__name__}")
    first: nn.GRU = halves[0]  # type: ignore[assignment]
    stacks = [_layers(f"rnn{i + 1}", half, first.num_layers) for i, half in enumerate(halves)]
    order = grouped_order(2, 2 * first.hidden_size, bidirectional=first.bidirectional)
    dropout = first.dropout if first.num_layers > 1 else 0.0
    return _build([list(layer) for layer in zip(*stacks, strict=True)], order, dropout, batch_first=first.batch_first)


def to_gtcrn(module: Module) -> dict[str, Tensor]:
    """The state_dict of a GRNN with as many layers and directions, for its `load_state_dict`.

    Raises:
        ValueError: as `to_deepfilternet`; other than two groups.
        TypeError: the module is no GRU.

    Example:
        >>> list(trigru.convert.to_gtcrn(trigru.GRU(16, 8, groups=2, bias=False)))
        ['rnn1.weight_ih_l0', 'rnn1.weight_hh_l0', 'rnn2.weight_ih_l0', 'rnn2.weight_hh_l0']
    """
    layers = _groups_of(module, shuffle=False)
    if len(layers[0]) != 2:
        raise ValueError(f"groups: expected 2, GTCRN's halves, got {len(layers[0])}")
    found: dict[str, Tensor] = {}
    for half in range(2):
        for index, members in enumerate(layers):
            found |= _state_of(f"rnn{half + 1}.", index, members[half])
    return found


def grouped_order(groups: int, hidden_size: int, *, bidirectional: bool = False) -> Tensor:
    """Where the outputs of a grouped GRU elsewhere are found in those here: theirs = ours[..., order].

    There each group has its directions beside each other, here each direction its groups. A linear layer behind the GRU
    takes ours once its columns are moved: `weight[:, order.argsort()]`.

    Returns:
        (directions * hidden_size,) int64; 0, 1, 2, ... for one direction.

    Example:
        >>> trigru.convert.grouped_order(2, 4, bidirectional=True)
        tensor([0, 1, 4, 5, 2, 3, 6, 7])
    """
    directions = 2 if bidirectional else 1
    return torch.arange(directions * hidden_size).view(directions, groups, -1).transpose(0, 1).flatten()


def _order_between(groups: int, hidden_size: int, bidirectional: bool, shuffle: bool) -> Tensor:
    """Where in the output of a layer here the input of the one above lies, as it is there."""
    order = grouped_order(groups, hidden_size, bidirectional=bidirectional)
    return order.view(-1, groups).transpose(0, 1).flatten() if shuffle else order


def _groups_of(module: Module, shuffle: bool) -> list[list[list[Weights]]]:
    """The weights of each layer, group and direction."""
    layers = [[recast(w, variant_of(module), "torch") for w in layer] for layer in layers_of(module)]
    if isinstance(module, ReverseGRU):
        raise ValueError("direction: expected forward or both, got reverse, which no grouped GRU has")
    blocks = getattr(module, "_blocks", None)
    groups = 1 if blocks is None else blocks.groups if blocks.groups > 1 else blocks.num_heads
    order = _order_between(groups, layers[0][0].w_hh.shape[1], len(layers[0]) == 2, shuffle)
    found = []
    for index, layer in enumerate(layers):
        cut = []
        for weights in layer:
            w_ih = weights.w_ih[:, order.to(weights.w_ih.device)] if index else weights.w_ih
            names = (f"weight_ih_l{index}", f"weight_hh_l{index}")
            matrices = [_cut(name, w, groups) for name, w in zip(names, (w_ih, weights.w_hh), strict=True)]
            biases = [
                [None] * groups if b is None else list(b.view(3, groups, -1).transpose(0, 1).flatten(1))
                for b in (weights.b_ih, weights.b_hh)
            ]
            cut.append([Weights(*each) for each in zip(*matrices, *biases, strict=True)])
        found.append([list(member) for member in zip(*cut, strict=True)])
    return found


def _cut(name: str, weight: Tensor, groups: int) -> list[Tensor]:
    """The blocks of a whole matrix, (3H / groups, columns / groups) each."""
    rows, columns = weight.shape
    if columns % groups:
        raise ValueError(f"{name}: expected columns for {groups} groups alike, got {columns}")
    spread = weight.view(3, groups, rows // (3 * groups), groups, columns // groups)
    own = torch.eye(groups, dtype=torch.bool, device=weight.device).view(groups, 1, groups, 1)
    if spread.masked_fill(own, 0).any():
        raise ValueError(f"{name}: expected zeros where one of {groups} groups sees another, got others")
    return [spread[:, i, :, i].flatten(0, 1) for i in range(groups)]


def _state_of(prefix: str, index: int, layer: Sequence[Weights]) -> dict[str, Tensor]:
    """By their names in nn.GRU, of one layer's directions."""
    found = {}
    for weights, suffix in zip(layer, ("", "_reverse"), strict=False):
        values = (weights.w_ih, weights.w_hh, weights.b_ih, weights.b_hh)
        for kind, x in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), values, strict=True):
            if x is not None:
                found[f"{prefix}{kind}_l{index}{suffix}"] = x.clone()
    return found


def _layers(name: str, module: nn.Module | None, num_layers: int) -> list[list[Weights]]:
    found = layers_of(module) if isinstance(module, nn.RNNBase) else []  # type: ignore[arg-type]
    if len(found) != num_layers:
        raise ValueError(f"{name}: expected a GRU with num_layers={num_layers}, got {module}")
    return found


def _build(parts: list[list[list[Weights]]], order: Tensor, dropout: float = 0.0, *, batch_first: bool) -> GRU:
    """A module from the weights of each layer, group and direction, where the layers above the first see
    `below[..., order]`, cut into as many parts as there are groups."""
    groups = len(parts[0])
    layers = []
    plain = len(parts) == 1 or torch.equal(order, torch.arange(len(order)))
    for index, members in enumerate(parts):
        layer = []
        for direction in zip(*members, strict=True):
            joined = _joined(direction)
            if not plain:
                w_ih = whole(joined.w_ih, groups)
                w_ih = w_ih[:, order.argsort().to(w_ih.device)] if index else w_ih
                joined = replace(joined, w_ih=w_ih)
            layer.append(joined)
        layers.append(layer)
    options: dict[str, Any] = {"dropout": dropout, "groups" if plain else "num_heads": groups}
    return build(layers, "torch", batch_first=batch_first, **options)


def _joined(members: Sequence[Weights]) -> Weights:
    """The groups' weights of one layer and direction, gate by gate."""
    joined: dict[str, Any] = {}
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        values = [getattr(weights, name) for weights in members]
        like = values[0]
        if any((x is None) != (like is None) or (x is not None and x.shape != like.shape) for x in values):
            raise ValueError(f"groups: expected GRUs alike, got others in {name}")
        joined[name] = None if like is None else torch.cat([x.chunk(3)[g] for g in range(3) for x in values])
    return Weights(**joined)
