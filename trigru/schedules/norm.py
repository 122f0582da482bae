"""Rows of products that are normalised (`trigru.reference.layer_norm`), and the way back of their derivatives.

In the recurrent products of "cho" and "chung" the candidate's rows are normalised by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..layer import Weights
from ..reference import EPS

_back = torch.ops.aten.native_layer_norm_backward.default


class Rows(NamedTuple):
    """Rows before they are normalised, of the dtype of the arithmetic, and what a derivative's way back takes."""

    values: Tensor  # (N, F)
    gain: Tensor  # (F,)
    mean: Tensor  # (N, 1)
    rstd: Tensor  # (N, 1)

    @classmethod
    def of(cls, values: Tensor, gain: Tensor) -> Rows:
        _, mean, rstd = torch.native_layer_norm(values, values.shape[1:], gain, None, EPS)
        return cls(values, gain, mean, rstd)

    @property
    def hats(self) -> Tensor:
        """(N, F): normalised, without the gain."""
        return (self.values - self.mean).mul_(self.rstd)

    def steps(self, sizes: Sequence[int]) -> list[Rows]:
        """So many rows each."""
        values, mean, rstd = (x.split_with_sizes(list(sizes)) for x in (self.values, self.mean, self.rstd))
        return [Rows(x, self.gain, m, s) for x, m, s in zip(values, mean, rstd, strict=True)]

    def back(self, d: Tensor) -> Tensor:
        """The derivative by the values, from that by the normalised rows."""
        return self._back(d, False)[0]

    def back_in_all(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the derivative by the gain, summed over the rows."""
        d_values, d_gain, _ = self._back(d, True)
        return d_values, d_gain

    def _back(self, d: Tensor, of_gain: bool) -> tuple[Tensor, Tensor, Tensor]:
        d, shape = d.to(self.values.dtype).contiguous(), self.values.shape[1:]
        return _back(d, self.values, shape, self.mean, self.rstd, self.gain, None, [True, of_gain, False])


class Normed(NamedTuple):
    """The normalised products of a layer in one direction, over the rows of some steps."""

    input: Rows  # (N, 3H)
    state: tuple[Rows, ...]  # (N, 3H); in "cho" and "chung" (N, 2H) and (N, H)

    @classmethod
    def of(cls, weights: Weights, variant: str, input: Tensor, seen: Tensor, r: Tensor) -> Normed | None:
        """None where there is no gain. input: (N, I). seen (N, H): what the recurrent products see of the state before
        each step. r (N, H): the reset gate."""
        if weights.gain is None:
            return None
        dtype = torch.promote_types(seen.dtype, torch.float32)
        of_input, of_state = weights.gain.to(dtype)

        def rows(x: Tensor, w: Tensor, gain: Tensor) -> Rows:
            return Rows.of(torch.mm(x, w.t()).to(dtype), gain)

        if variant == "torch":
            return cls(rows(input, weights.ih, of_input), (rows(seen, weights.hh, of_state),))
        parts = [2 * seen.shape[1], seen.shape[1]]
        operands = zip((seen, r * seen), weights.hh.split(parts), of_state.split(parts), strict=True)
        return cls(rows(input, weights.ih, of_input), tuple(rows(*each) for each in operands))

    @property
    def hats(self) -> Tensor:
        """(N, 3H) of the recurrent products: normalised, without the gain."""
        return torch.cat([rows.hats for rows in self.state], 1)

    @property
    def rstd(self) -> Tensor:
        """(N, 1), or (N, 2) of r and z together and of n."""
        return torch.cat([rows.rstd for rows in self.state], 1)

    def back(self, d_gates: Tensor, d_an: Tensor | None) -> Unnormed:
        """From the derivatives by pre-activations, d_gates (N, 3H) and in variant "torch" d_an (N, H)."""
        dtype, size = d_gates.dtype, d_gates.shape[1] // 3
        d_input, d_gain = self.input.back_in_all(d_gates)
        rz, n = d_gates.split([2 * size, size], 1)
        own = (rz, n) if d_an is None else (torch.cat([rz, d_an], 1),)
        found = [rows.back_in_all(d) for rows, d in zip(self.state, own, strict=True)]
        d_state = torch.cat([d for d, _ in found], 1)
        d_gains = torch.stack([d_gain, torch.cat([d for _, d in found])])
        return Unnormed(d_input.to(dtype), d_state.to(dtype), d_gains.to(dtype))


class Unnormed(NamedTuple):
    """Derivatives by the products themselves, and by the gain."""

    input: Tensor  # (N, 3H)
    state: Tensor  # (N, 3H)
    gain: Tensor  # (2, 3H)
