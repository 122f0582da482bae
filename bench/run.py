"""One run: suites one after another, every row written as soon as it is known."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trigru.command.check import PTX_FOLDER
from trigru.planning.triton_state import interpreted, why_unusable

from .cases import grid
from .cases.case import DIRECTIONS, Case
from .cases.grid import Choice
from .measuring.budget import Deadline, until
from .measuring.compare import Plan, rows_of
from .measuring.timers import timer_for
from .peers import PEERS, Peer
from .report.outcome import Outcome
from .suites import bounds, memory, overhead, workloads

SUITES = ("layer", "step", "module", "memory", "overhead", "cpu", "work", "workloads")
OF_DEVICE = {
    "cpu": ("cpu", "module", "memory", "step", "overhead", "work"),
    "cuda": ("layer", "module", "step", "memory", "overhead"),
}
"""What runs where no suite is named, in this order: first what is compared with nn.GRU."""
QUICK = {"cpu": ("cpu", "module", "memory"), "cuda": ("layer", "memory")}
OF_KERNELS = ("overhead", "work")
"""Suites that need Triton. "work" needs the checkout that has its executor too."""
ON_CPU_ONLY = ("cpu", "work")  # overhead compares the host's work, on CPU tensors wherever it runs


@dataclass
class Request:
    """A run as it was asked for."""

    choice: Choice
    suites: Sequence[str]
    directions: Sequence[str]
    peers: Sequence[Peer]
    budget_s: float
    minutes: float | None
    out: Path
    shared: dict[str, Any]  # fields of every row
    of_workloads: workloads.Asked = field(default_factory=workloads.Asked)


def default_suites(choice: Choice) -> tuple[str, ...]:
    """The suites that can run on the device; fewer where it must be quick."""
    suites = (QUICK if choice.size in ("quick", "short") else OF_DEVICE)[choice.device]
    return tuple(suite for suite in suites if why_no_suite(suite) is None)


def why_no_suite(suite: str) -> str | None:
    """Why a suite cannot run in this process, on whichever device, or None."""
    if suite not in OF_KERNELS:
        return None
    if (reason := why_unusable()) is not None:
        return reason
    if suite == "work" and not PTX_FOLDER.is_dir():
        return "the executor of compiled kernels is in a checkout of the repository alone"
    if suite == "work" and interpreted():
        return "TRITON_INTERPRET=1 is set, under which Triton compiles nothing"
    return None


def tracked(items: Iterable[Any], total: int, name: str) -> Iterator[Any]:
    """The items, with a progress bar where tqdm is installed, else a line for each tenth."""
    try:
        from tqdm import tqdm
    except ImportError:
        for i, item in enumerate(items):
            if i * 10 // total != (i - 1) * 10 // total:
                print(f"{name}: {i} of {total}", file=sys.stderr)
            yield item
    else:
        yield from tqdm(items, total=total, desc=name, unit="case", disable=None)  # None: shown on a terminal alone


def execute(request: Request, outcome: Outcome | None = None) -> Outcome:
    """Run all suites, into `outcome` if it is given. One that fails as a whole is noted, and the next one runs."""
    outcome = Outcome() if outcome is None else outcome
    deadline = Deadline(request.minutes)
    if request.choice.device == "cuda":
        try:
            outcome.latencies = bounds.measured_latencies()
        except Exception as error:  # bounds then rest on published figures alone
            outcome.failed["latencies"] = f"{type(error).__name__}: {error}"
    request.out.mkdir(parents=True, exist_ok=True)
    for i, suite in enumerate(request.suites):
        _write_summary(request, outcome, finished=False)  # what there is, should the run be cut off
        if deadline.passed():
            outcome.left_out.append(f"{suite}: all of it")
            continue
        path = request.out / f"{suite}.jsonl"
        try:
            with path.open("a") as file:
                for row in _rows(suite, request, deadline.share(len(request.suites) - i), outcome):
                    row = {**request.shared, **row}
                    outcome.rows.append(row)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
        except Exception as error:
            outcome.failed[suite] = f"{type(error).__name__}: {error}"
    _write_summary(request, outcome, finished=True)
    return outcome


def _rows(suite: str, request: Request, deadline: Deadline, outcome: Outcome) -> Iterator[dict[str, Any]]:
    choice = request.choice
    if suite == "overhead":
        yield from overhead.rows(request.budget_s, choice.size)
    elif suite == "work":
        from .suites import work_suite

        yield from work_suite.rows(choice, deadline, outcome.left_out)
    elif suite == "memory":
        found = list(memory.cases(choice))
        for case in tracked(until(deadline, found, outcome.left_out), len(found), suite):
            yield memory.row(case)
    else:
        yield from _compared(suite, request, deadline, outcome)


def _compared(suite: str, request: Request, deadline: Deadline, outcome: Outcome) -> Iterator[dict[str, Any]]:
    choice = request.choice
    on_gpu = choice.device == "cuda"
    plan = Plan(
        request.peers,
        timer_for(choice.device),
        request.directions,
        ("eager", "graph") if on_gpu else ("eager",),
        request.budget_s,
        skipped=outcome.skipped,
    )
    if suite == "workloads":
        cases = workloads.measured(choice, request.of_workloads)
        begun = tracked(until(deadline, cases, outcome.left_out), len(cases), suite)
        yield from workloads.rows(begun, choice, request.of_workloads, plan)
        return
    found = grid.cases(suite, choice)
    if on_gpu:
        plan.add = bounds.Bounds(outcome.latencies)
    for case in tracked(until(deadline, found, outcome.left_out), len(found), suite):
        yield from rows_of(case, replace(plan, peers=_peers_of(case, request.peers)))


def _peers_of(case: Case, peers: Sequence[Peer]) -> list[Peer]:
    """On a GPU's grid peers beside nn.GRU run where `grid.with_all_peers` says; on a CPU, those asked for."""
    everywhere = case.device == "cpu" or grid.with_all_peers(case)
    return [peer for peer in peers if everywhere or peer.name == "nn.GRU"]


def default_peers(device: str) -> list[Peer]:
    """All on a GPU; on a CPU nn.GRU, for the others either need a GPU or take long to compile."""
    return list(PEERS.values()) if device == "cuda" else [PEERS["nn.GRU"]]


def default_directions(device: str) -> tuple[str, ...]:
    """All three on a GPU; training on a CPU."""
    return DIRECTIONS if device == "cuda" else DIRECTIONS[2:]


def _write_summary(request: Request, outcome: Outcome, *, finished: bool) -> None:
    summary = {
        **request.shared,
        "suites": list(request.suites),
        "left_out": outcome.left_out,
        "skipped": [{"peer": p, "reason": reason, "cases": n} for (p, reason), n in outcome.skipped.items()],
        "failed": outcome.failed,
        "latencies": outcome.latencies,
        "finished": finished,
    }
    (request.out / "run.json").write_text(json.dumps(summary, indent=1) + "\n")
