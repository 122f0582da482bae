"""What an adapter is, and what several of them need."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ..cases.case import Case, Inputs
from ..measuring.side import Side


@dataclass(frozen=True)
class Peer:
    """An implementation to compare with. All of them have the equations of variant "torch" unless `any_variant`.

    obstacle: why it cannot run a case, or None. side: its side, with the weights of an nn.GRU. zero_state: it takes no
    initial state, so both sides get zeros.
    """

    name: str
    obstacle: Callable[[Case], str | None]
    side: Callable[[Case, nn.Module, Inputs], Side]
    any_variant: bool = False
    zero_state: bool = False


def first_obstacle(case: Case, *, package: str, dtypes: Sequence[str], device: str = "cuda") -> str | None:
    """Why a package of kernels for one padded layer cannot run the case, or None."""
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    if case.device != device:
        return f"runs on {device} only"
    if case.dtype not in dtypes:
        return f"is compared in {', '.join(dtypes)} only, where it can be told to multiply as the other side does"
    if case.cell or case.num_layers > 1 or case.bidirectional or case.packed:
        return "has one layer in one direction of padded sequences"
    return None
