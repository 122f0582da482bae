"""Rows: one case, all peers, every direction asked for, eager and inside a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from trigru.planning.triton_state import why_unusable

from ..cases.case import DIRECTIONS, Case, Inputs, random_inputs, source_of_weights
from ..peers import Peer
from ..schedules import schedule_of, why_not
from . import check
from .conditions import multiplied_in
from .graphs import graphed
from .side import Side, ours
from .stats import quantiles
from .timers import Call, Timer, in_turns

Make = Callable[[], Call]


@dataclass
class Plan:
    """How cases are measured. modes: "eager", "graph". record: turns a call into its replay in a CUDA graph."""

    peers: Sequence[Peer]
    timer: Timer
    directions: Sequence[str] = DIRECTIONS
    modes: Sequence[str] = ("eager",)
    budget_s: float = 0.5  # for the rounds of one row
    record: Callable[[Make], Call] = graphed
    add: Callable[[Case, dict[str, Any]], dict[str, Any]] = lambda case, row: {}  # more fields of a row
    skipped: dict[tuple[str, str], int] = field(default_factory=dict)  # (peer, reason): cases

    def skip(self, peer: str, reason: str) -> None:
        """Remember that a peer was left out of a case."""
        self.skipped[peer, reason] = self.skipped.get((peer, reason), 0) + 1


def rows_of(case: Case, plan: Plan) -> Iterator[dict[str, Any]]:
    """A row for each peer, direction and mode. What fails is a row too, without times, with `error`."""
    with multiplied_in(case.precision):
        if (reason := why_not(case)) is not None:
            plan.skip("trigru", reason)
            return
        source, inputs = source_of_weights(case), random_inputs(case)
        for peer in plan.peers:
            reason = peer.obstacle(case)
            if reason is not None:
                plan.skip(peer.name, reason)
                continue
            yield from _against(peer, case, plan, source, _for_peer(peer, inputs))


def _for_peer(peer: Peer, inputs: Inputs) -> Inputs:
    return replace(inputs, h0=torch.zeros_like(inputs.h0)) if peer.zero_state else inputs


def _against(peer: Peer, case: Case, plan: Plan, source: nn.Module, inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Both sides checked, then timed in turns."""
    named = {**case.fields(), "schedule": schedule_of(case), "peer": peer.name}
    theirs = case if peer.any_variant else replace(case, variant="torch")
    try:
        own, own_error = _checked(ours, case, source, inputs)
    except Exception as error:
        yield {**named, "error": said(error)}
        return
    try:
        other, other_error = _checked(peer.side, theirs, source, inputs)
    except Exception as error:  # whatever a package raises is the reason why it has no row
        plan.skip(peer.name, said(error))
        yield {**named, "error": said(error)}
        return
    checked = {"ours_error": own_error, "peer_error": other_error}
    for mode in plan.modes:
        for direction in plan.directions:
            row = {**named, "direction": direction, "mode": mode, **checked}
            try:
                row |= times(own, other, direction, mode, plan)
                row |= plan.add(case, row)
            except Exception as error:  # a graph that cannot be recorded, memory that is not there
                row["error"] = said(error)
            yield row


def _checked(
    build: Callable[[Case, nn.Module, Inputs], Side], case: Case, source: nn.Module, inputs: Inputs
) -> tuple[Side, float]:
    """The side to be timed and its error. Its shorter twin lives no longer than the check."""
    whole = build(case, source, inputs)
    first = inputs.first(check.CHECKED_STEPS)
    short = build(replace(case, seq_len=min(case.seq_len, check.CHECKED_STEPS)), source, first)
    return whole, check.check(short, whole, source, case, inputs)


def said(error: Exception) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def times(own: Side, other: Side, direction: str, mode: str, plan: Plan) -> dict[str, Any]:
    """Times and ratios of both sides in turns."""
    calls = []
    for side in (own, other):
        make: Make = _make(side, direction)
        calls.append(plan.record(make) if mode == "graph" else make())
    taken = in_turns(plan.timer, calls, plan.budget_s)
    _raise_if_a_wait_expired()
    return summed_up(taken)


def _make(side: Side, direction: str) -> Make:
    return lambda: side.timed(direction)


def _raise_if_a_wait_expired() -> None:
    """Raise KernelTimeout for a kernel that gave up waiting: what it computed is not a result."""
    if torch.cuda.is_available() and why_unusable() is None:
        from trigru.kernels.watch import check as expired

        torch.cuda.synchronize()
        expired()


def summed_up(taken: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    """The fields of a row from (ours, peer) seconds of every round.

    `ours_ms` and `peer_ms` are the 20th percentile, `ratio` is peer's by ours; `ratio_p..` are percentiles of the ratio
    of single rounds."""
    mine, its = (quantiles(column) for column in zip(*taken, strict=True))
    ratios = quantiles(b / a for a, b in taken)
    return {
        "rounds": len(taken),
        "ours_ms": mine["p20"] * 1e3,
        "peer_ms": its["p20"] * 1e3,
        "ratio": its["p20"] / mine["p20"],
        **{f"ours_ms_{name}": value * 1e3 for name, value in mine.items()},
        **{f"peer_ms_{name}": value * 1e3 for name, value in its.items()},
        **{f"ratio_{name}": value for name, value in ratios.items()},
    }
