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
from .weights import Weights, build, layers_of


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
    order = grouped_order(groups, hidden, bidirectional=first.bidirectional)
    if getattr(module, "shuffle", False):
        order = order.view(-1, groups).transpose(0, 1).flatten()
    return _build(parts, order, batch_first=first.batch_first)


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
