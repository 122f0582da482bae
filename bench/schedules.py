"""Which schedule of trigru runs a case, or why none does."""

from __future__ import annotations

import torch

from trigru.checks import layer_of
from trigru.functional import cell_way
from trigru.planning.plan import Site, choose, plan

from .cases.case import Case


def _place(case: Case) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if case.device == "cuda" else torch.device(case.device)


def why_not(case: Case) -> str | None:
    """Why the schedule that the case names cannot run it, or None."""
    sizes = (case.batch, case.hidden_size)
    try:
        choose(case.schedule, _place(case), case.number, *sizes, variant=case.variant)
        choose(case.schedule, _place(case), case.number, *sizes, variant=case.variant, direction="backward")
    except RuntimeError as error:
        return str(error)
    return None


def schedule_of(case: Case) -> str:
    """The schedule that runs the case's training step; "torch" or "cell" where none of trigru's own does."""
    if case.cell and case.device == "cpu":
        return cell_way(case.variant)
    layer = layer_of(
        case.input_size,
        case.hidden_size,
        num_layers=case.num_layers,
        bidirectional=case.bidirectional,
        variant=case.variant,
        schedule=case.schedule,
        memory=case.memory,
    )
    site = Site(_place(case), case.number, case.seq_len, case.batch, case.packed, recording=True, plain=True)
    return plan(layer, site)[0].schedule
