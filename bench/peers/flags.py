"""trigru's own persistent schedule with the other protocol of its exchange, "flags" (see kernels/exchange.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cases.case import Case, Inputs
from ..measuring.side import Grads, Side, ours
from ..measuring.timers import Call
from ..schedules import schedule_of
from .adapter import Peer


class _ByFlags(Side):
    """A side of trigru whose launches exchange by flags, backward too."""

    def timed(self, direction: str) -> Call:
        """See Side."""
        from trigru.kernels.persistent import exchanging_by

        with exchanging_by("flags"):
            call = super().timed(direction)

        def by_flags() -> object:
            with exchanging_by("flags"):
                return call()

        return by_flags

    def results(self) -> tuple[Tensor, Grads]:
        """See Side."""
        from trigru.kernels.persistent import exchanging_by

        with exchanging_by("flags"):
            return super().results()


def obstacle(case: Case) -> str | None:
    """Why the case has no exchange, or None."""
    if case.device != "cuda" or not torch.cuda.is_available() or schedule_of(case) != "persistent":
        return "is for what the persistent schedule runs on a GPU"
    return None


def side(case: Case, source: nn.Module, inputs: Inputs) -> Side:
    """trigru's side again, exchanging by flags."""
    own = ours(case, source, inputs)
    return _ByFlags("trigru, flags", own.call, own.leaves, own.grad, training=own.training)


PEER = Peer("trigru, flags", obstacle, side, any_variant=True)
