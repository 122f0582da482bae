"""Which schedule of trigru runs a case, or why none does."""

from __future__ import annotations

from dataclasses import replace

import torch

from trigru.checks import layer_of
from trigru.functional import cell_way
from trigru.planning.candidates import DIRECTIONS
from trigru.planning.plan import Site, choose, plan

from .cases.case import Case
from .cases.workloads import Gru


def _place(device: str) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


def why_not(case: Case) -> str | None:
    """Why the schedule that the case names cannot run it, or None."""
    sizes = (case.batch, case.hidden_size)
    try:
        for direction in DIRECTIONS:
            choose(
                case.schedule,
                _place(case.device),
                case.number,
                *sizes,
                variant=case.variant,
                direction=direction,
                directions=2 if case.bidirectional else 1,
            )
    except RuntimeError as error:
        return str(error)
    return None


def schedule_of(case: Case) -> str:
    """The schedule that runs the case's training step; "torch" or "cell" where none of trigru's own does."""
    if case.cell and case.device == "cpu":
        return cell_way(case.variant, case.batch, case.input_size, case.hidden_size, case.number)
    layer = layer_of(
        case.input_size,
        case.hidden_size,
        num_layers=case.num_layers,
        bidirectional=case.bidirectional,
        variant=case.variant,
        schedule=case.schedule,
        memory=case.memory,
    )
    site = Site(_place(case.device), case.number, case.seq_len, case.batch, case.packed, recording=True, plain=True)
    return plan(layer, site).schedule


def schedule_of_gru(gru: Gru, device: str, dtype: torch.dtype, schedule: str, memory: str, recording: bool) -> str:
    """The schedule that runs a workload's GRU; as `schedule_of`.

    Raises:
        RuntimeError: `schedule` cannot run it.
    """
    if gru.by_steps and device == "cpu":
        return cell_way(gru.variant, gru.batch, gru.input_size, gru.hidden_size, dtype)
    layer = gru.layer if gru.by_steps else replace(gru.layer, schedule=schedule, memory=memory)
    packed, given = gru.rows == "packed" and not gru.by_steps, gru.given
    seq_len = 1 if gru.by_steps else gru.seq_len
    site = Site(_place(device), dtype, seq_len, gru.batch, packed, recording, plain=True, given=given)
    return plan(layer, site).schedule
