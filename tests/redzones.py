"""Red zones: every tensor that a kernel gets lies between two zones of poison, and fresh memory is poison too.

A case runs twice, with two poisons. What it computes must be the same bit by bit, or something outside a tensor, or
never written, was read; and no zone may change, or something outside was written. From PTX the executor also refuses
each access outside, used or not; the interpreter would let it pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ZONE = 4096  # bytes at least, on either side
ALIGNED = 256  # bytes, up to which a copy has the alignment of the original
POISONS = (float("nan"), 3.0e4)  # the second does not pass for a gate, and does not overflow in float16
FRESH = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided"}


class RedZoneError(AssertionError):
    """A launch touched what is not its own."""


def poison_(x: Tensor, poison: float) -> Tensor:
    """Fill with it; integers get one that is no size and no offset, bytes true and false."""
    if x.is_floating_point():
        return x.fill_(poison)
    return x.fill_(0x5A if poison != poison else 0 if x.dtype == torch.uint8 else -0x5A)


class FreshIsPoison(TorchDispatchMode):
    """Memory that torch hands out without a value holds poison."""

    def __init__(self, poison: float):
        super().__init__()
        self.poison = poison

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return poison_(result, self.poison) if function._schema.name in FRESH else result


class RedZones:
    """A starter for `launch.using`: gives `start` copies of the tensors within zones, and copies the results back."""

    def __init__(self, start: Callable[..., None], poison: float):
        self.start, self.poison = start, poison
        self.launches: list[str] = []

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], args: Mapping[str, Any], constexprs: Mapping[str, Any], **options: Any
    ) -> None:
        """Launch, and look at the zones."""
        zoned: dict[tuple, tuple[Tensor, Tensor, int, str]] = {}  # buffer, its inside, length of a zone, first name
        inside = {}
        for name, x in args.items():
            if isinstance(x, Tensor):
                assert x.is_contiguous(), f"{kernel.__name__}: {name} is not contiguous"
                key = (x.data_ptr(), x.numel(), x.dtype)  # one tensor may be given twice
                zoned.setdefault(key, (*self._within_zones(x), name))
                inside[name] = zoned[key][1]
        self.start(kernel, grid, {**args, **inside}, constexprs, **options)
        for name, x in args.items():
            if isinstance(x, Tensor):
                x.copy_(inside[name])
        self.launches.append(kernel.__name__)
        for buffer, tensor, before, name in zoned.values():
            for zone, where in ((buffer[:before], "before"), (buffer[before + tensor.numel() :], "behind")):
                fresh = poison_(torch.empty_like(zone), self.poison)
                changed = (zone.view(torch.uint8) != fresh.view(torch.uint8)).nonzero()
                if len(changed):
                    raise RedZoneError(f"{kernel.__name__} has written {where} {name}, at byte {changed[0].item()}")

    def _within_zones(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        size = x.element_size()
        zone = max(ZONE, x.numel() * size) // size
        buffer = torch.empty(2 * (zone + ALIGNED) + x.numel(), dtype=x.dtype)
        before = zone + ((x.data_ptr() - buffer.data_ptr() - zone * size) % ALIGNED) // size
        poison_(buffer, self.poison)
        middle = buffer[before : before + x.numel()].view(x.shape)
        middle.copy_(x)
        return buffer, middle, before


def check(run: Callable[[], Mapping[str, Tensor]], using: Any, start: Callable[[], Callable[..., None]]) -> list[str]:
    """Run with each poison, within red zones, and compare.

    run: launches kernels and returns results. using: `launch.using` of the kernels' package. start: makes a starter.

    Returns the names of the kernels launched, in both runs.

    Raises:
        RedZoneError: a zone changed, or the results depend on the poison.
    """
    found, launches = [], []
    for poison in POISONS:
        zones = RedZones(start(), poison)
        with using(zones), FreshIsPoison(poison):
            found.append(run())
        launches += zones.launches
    for name, first in found[0].items():
        second = found[1][name]
        if not torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8)):
            raise RedZoneError(f"{name} depends on memory that nobody wrote, or that is outside a tensor")
    return launches
