"""Weights with blocks on their diagonal: heads of units that see each other alone, and groups of inputs.

Row g * H + head * (H / heads) + i of a narrow weight is unit i of a head at gate g, and its columns are the units (or
the inputs) of that head alone. Of groups the whole matrix runs, zeros outside the blocks; of heads wherever a schedule
does not take them as they are (`trigru.planning.stages.TAKES_HEADS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layer import Layer

_GATES = 3


@dataclass(frozen=True)
class Blocks:
    """How many there are in W_hh and in W_ih."""

    num_heads: int
    groups: int

    @classmethod
    def of(cls, num_heads: int, groups: int, input_size: int, hidden_size: int, directions: int) -> Blocks | None:
        """None for one of each.

        Raises:
            TypeError: a number that is no integer.
            ValueError: one below 1; heads that do not divide hidden_size, groups that do not divide hidden_size and
                each layer's features, or that are no multiple of each other.
        """
        for name, count in (("num_heads", num_heads), ("groups", groups)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name}: expected an int, got {type(count).__name__}")
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, got {count}")
            if isinstance(hidden_size, int) and hidden_size % count:
                raise ValueError(f"{name}: expected a divisor of hidden_size {hidden_size}, got {count}")
        if isinstance(input_size, int) and input_size % groups:
            raise ValueError(f"groups: expected a divisor of input_size {input_size}, got {groups}")
        if num_heads > 1 and num_heads % groups:
            raise ValueError(f"num_heads: expected a multiple of groups {groups}, got {num_heads}")
        heads = max(num_heads, groups)
        return None if heads == 1 else cls(heads, groups)

    def named(self) -> dict[str, int]:
        """As the arguments that differ from their defaults."""
        given = {"num_heads": self.num_heads, "groups": self.groups}
        if self.num_heads == self.groups:
            del given["num_heads"]
        return {name: count for name, count in given.items() if count > 1}

    def narrow(self, module: nn.RNNBase) -> None:
        """Give a module's parameters, made for one block, the columns of theirs, without values."""
        for names in module._all_weights:
            for name, blocks in zip(names[:2], (self.groups, self.num_heads), strict=True):
                weight = getattr(module, name)
                setattr(module, name, nn.Parameter(weight.new_empty(weight.shape[0], weight.shape[1] // blocks)))

    def ungrouped(self, weights: Sequence[Tensor], width: int) -> list[Tensor]:
        """A module's weights with whole matrices in the place of groups. width: of each layer and direction."""
        return [whole(w, self.groups) if i % width == 0 else w for i, w in enumerate(weights)]


def whole_weights(layer: Layer, weights: Sequence[Tensor]) -> list[Tensor]:
    """A layer's weights with whole matrices in the place of heads."""
    width = 4 if layer.bias else 2
    return [whole(w, layer.num_heads) if i % width == 1 else w for i, w in enumerate(weights)]


def narrow(whole: Tensor, blocks: int) -> Tensor:
    """The blocks of (3H, all columns), as (3H, columns of a block): what `whole` does to a derivative."""
    rows, columns = whole.shape
    apart = whole.view(_GATES, blocks, rows // (_GATES * blocks), blocks, columns // blocks)
    return apart.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(rows, columns // blocks)


def whole(weight: Tensor, blocks: int) -> Tensor:
    """(3H, columns of a block) as (3H, all columns), zeros outside the blocks.

    Selected, not multiplied: nothing of one block reaches another, not even NaN."""
    if blocks == 1:
        return weight
    rows, columns = weight.shape
    own = torch.eye(blocks, dtype=torch.bool, device=weight.device).view(blocks, 1, blocks, 1)
    spread = weight.view(_GATES, blocks, rows // (_GATES * blocks), 1, columns)
    return torch.where(own, spread, 0).reshape(rows, blocks * columns)


def is_exported() -> bool:
    """Whether a graph for another runtime is made, which has no heads: there the whole matrix is taken."""
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None
