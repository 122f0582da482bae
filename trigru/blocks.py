"""Weights with blocks on their diagonal: heads of units that see each other alone, and groups of inputs.

Row g * H + head * (H / heads) + i of a narrow weight is unit i of a head at gate g, and its columns are the units (or
the inputs) of that head alone. What runs is the whole matrix, zeros outside the blocks, so every schedule has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
        """Give a module's parameters, made for one block, the columns of theirs, with values as new ones have."""
        for names in module._all_weights:
            for name, blocks in zip(names[:2], (self.groups, self.num_heads), strict=True):
                weight = getattr(module, name)
                setattr(module, name, nn.Parameter(weight.detach()[:, : weight.shape[1] // blocks].clone()))

    def whole(self, module: nn.RNNBase, weights: Sequence[Tensor]) -> list[Tensor]:
        """The matrices that run, in place of a module's narrow ones."""
        width = len(module._all_weights[0])
        blocks = {0: self.groups, 1: self.num_heads}
        return [whole(w, blocks.get(i % width, 1)) for i, w in enumerate(weights)]


def whole(weight: Tensor, blocks: int) -> Tensor:
    """(3H, columns of a block) as (3H, all columns), zeros outside the blocks.

    Selected, not multiplied: nothing of one block reaches another, not even NaN."""
    if blocks == 1:
        return weight
    rows, columns = weight.shape
    own = torch.eye(blocks, dtype=torch.bool, device=weight.device).view(blocks, 1, blocks, 1)
    spread = weight.view(_GATES, blocks, rows // (_GATES * blocks), 1, columns)
    return torch.where(own, spread, 0).reshape(rows, blocks * columns)
