"""Layers with hidden units added, where a schedule's kernels want another hidden_size than the layer has.

A unit whose weights, inputs and state are zero stays zero, forward and backward, and adds nothing to the others: its
candidate is tanh(0), and every blend of zeros is zero. So the results are those of the layer, with columns to cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from .config import kept_values
from .steps import Steps

Forward = Callable[..., tuple[Tensor, Tensor | None]]
Backward = Callable[..., tuple[Tensor, Tensor | None, Tensor]]


def missing(hidden_size: int, multiple: int) -> int:
    """Units to add until `multiple` divides hidden_size."""
    return -hidden_size % multiple


def forward(
    run: Forward,
    more: int,
    gates_in: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    b_hn: Tensor | None,
    steps: Steps,
    *,
    variant: str,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """`run`, the `forward` of a schedule, on a layer of `more` more hidden units."""
    bias = None if b_hn is None else pad(b_hn, (0, more))
    output, reserve = run(
        _wider(gates_in, 3, more), pad(h0, (0, more)), _wider_weights(w_hh, more), bias, steps, variant=variant,
        **options,
    )  # fmt: skip
    return _narrower(output, 1, more), None if reserve is None else _narrower(reserve, kept_values(variant), more)


def backward(
    run: Backward,
    more: int,
    grad_output: Tensor,
    grad_h_n: Tensor,
    h0: Tensor,
    w_hh: Tensor,
    steps: Steps,
    output: Tensor,
    reserve: Tensor,
    *,
    variant: str,
    **options: Any,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`run`, the `backward` of a schedule, on a layer of `more` more hidden units."""
    d_gates, d_an, d_state = run(
        _wider(grad_output, 1, more), pad(grad_h_n, (0, more)), pad(h0, (0, more)), _wider_weights(w_hh, more), steps,
        _wider(output, 1, more), _wider(reserve, kept_values(variant), more), variant=variant, **options,
    )  # fmt: skip
    d_an = None if d_an is None else _narrower(d_an, 1, more)
    return _narrower(d_gates, 3, more), d_an, _narrower(d_state, 1, more)


def _wider(x: Tensor, parts: int, more: int) -> Tensor:
    """(N, parts * H) -> (N, parts * (H + more)), with zeros."""
    return pad(x.unflatten(1, (parts, -1)), (0, more)).flatten(1)


def _wider_weights(w_hh: Tensor, more: int) -> Tensor:
    """(3 * H, H) -> (3 * (H + more), H + more), with zeros."""
    return pad(w_hh.unflatten(0, (3, -1)), (0, more, 0, more)).flatten(0, 1)


def _narrower(x: Tensor, parts: int, more: int) -> Tensor:
    """(N, parts * (H + more)) -> (N, parts * H)."""
    return x.unflatten(1, (parts, -1))[:, :, :-more].flatten(1).contiguous()
