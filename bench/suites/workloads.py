"""Suite "workloads": what people run (`cases/workloads.py`), forward and a training step, against what they write.

A row is one workload: all its GRUs called one after another, each with inputs of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from trigru import reference
from trigru.command.inspect_cases import DTYPES

from ..cases.given import Given, given, source_of
from ..cases.grid import Choice
from ..cases.workloads import WORKLOADS, Gru, Workload
from ..measuring import check
from ..measuring.compare import Plan, said, times
from ..measuring.conditions import multiplied_in
from ..measuring.side import Side
from ..schedules import schedule_of_gru
from .workload_ways import NN_GRU, WAYS, Way, loop, ours

TINY = {"seq_len": 6, "batch": 3, "size": 5}
CPU_SECONDS = {"quick": 0.1, "full": 2.0}
"""The longest call that is measured on a CPU without being asked for by name, as estimated."""
CPU_RATE, CPU_STEP_S = 5e10, 3e-5  # operations a second, and a step's cost beside them: for the estimate alone
MOST_STEPS = 2048  # of a loop in Python


@dataclass(frozen=True)
class Asked:
    """What the user asked for; None: what the suite has."""

    workloads: Sequence[Workload] | None = None
    ways: Sequence[Way] = tuple(WAYS.values())
    directions: Sequence[str] | None = None


@dataclass(frozen=True)
class Measured:
    """A workload on a device. dtype: a name of `trigru.command.inspect_cases.DTYPES`."""

    workload: Workload
    device: str
    dtype: str
    schedule: str = "auto"
    memory: str = "keep"
    suite = "workloads"

    @property
    def number(self) -> torch.dtype:
        """The dtype of the tensors."""
        return DTYPES[self.dtype][0]

    @property
    def precision(self) -> str:
        """How float32 is multiplied."""
        return DTYPES[self.dtype][1]

    def fields(self) -> dict[str, object]:
        """The workload's part of a row; sizes are those of its main GRU."""
        main = self.workload.main
        runs = schedule_of_gru(main, self.device, self.number, self.schedule, self.memory, self.workload.training)
        return {
            "suite": self.suite,
            "workload": self.workload.name,
            "row": self.workload.row,
            "dtype": str(self.number).removeprefix("torch."),
            "precision": self.precision,
            "variant": main.variant,
            "schedule": runs,
            "memory": self.memory,
            "hidden_size": main.hidden_size,
            "input_size": main.input_size,
            "batch": main.batch,
            "seq_len": main.seq_len,
            "num_layers": main.num_layers,
            "bidirectional": main.bidirectional,
            "packed": main.rows == "packed",
            "rows": main.rows,
            "grus": len(self.workload.each),
        }

    def __str__(self) -> str:
        return f"{self.workload} {self.dtype}"


def measured(choice: Choice, asked: Asked) -> list[Measured]:
    """The workloads, on a CPU in float32, as float16 and bfloat16 are not what one computes in there."""
    found = []
    for workload in asked.workloads or WORKLOADS:
        own = workload.dtype if choice.device == "cuda" else "fp32"
        sized = workload.at_most(**TINY) if choice.size == "tiny" else workload
        for dtype in choice.dtypes or ("tf32" if own == "fp32" and choice.device == "cuda" else own,):
            found.append(Measured(sized, choice.device, dtype, choice.schedule, choice.memory))
    return found


def estimated_s(workload: Workload, direction: str) -> float:
    """About how long a call takes on a CPU."""
    passes = {"forward": 1, "backward": 2, "forward+backward": 3}[direction]
    return passes * sum(gru.operations / CPU_RATE + gru.serial_steps * CPU_STEP_S for gru in workload.grus)


def rows(cases: Iterable[Measured], choice: Choice, asked: Asked, plan: Plan) -> Iterator[dict[str, Any]]:
    """A row for each workload, way, mode and direction. What fails is a row too, without times, with `error`."""
    for case in cases:
        both = ("forward", "forward+backward") if case.workload.training else ("forward",)
        directions = list(asked.directions or both)
        if choice.device == "cpu" and asked.workloads is None and choice.size in CPU_SECONDS:
            most = CPU_SECONDS[choice.size]
            for direction in [each for each in directions if estimated_s(case.workload, each) > most]:
                directions.remove(direction)
                plan.skip(
                    f"{case.workload} {direction}", f"estimated above {most} s a call; --rows takes it all the same"
                )
        if directions:
            yield from _compared(case, asked.ways, replace(plan, directions=directions))


def _compared(case: Measured, ways: Sequence[Way], plan: Plan) -> Iterator[dict[str, Any]]:
    with multiplied_in(case.precision):
        try:
            named = case.fields()
        except RuntimeError as error:  # a schedule by name that cannot run
            plan.skip("trigru", str(error))
            return
        trigrus = Way("trigru", lambda gru: None, partial(_ours, case), any_variant=True)
        try:
            own, own_error = checked(trigrus, case)
        except Exception as error:
            yield {**named, "peer": NN_GRU.name, "error": said(error)}
            return
        for way in ways:
            if (reason := obstacle(way, case.workload)) is not None:
                plan.skip(way.name, reason)
                continue
            row = {**named, "peer": way.name}
            try:
                other, other_error = checked(way, case)
            except Exception as error:
                plan.skip(way.name, said(error))
                yield {**row, "error": said(error)}
                continue
            row |= {"ours_error": own_error, "peer_error": other_error}
            try:
                if way.any_variant or case.workload.variants == {"torch"}:
                    row["difference"] = difference(own, other, case)
            except check.WrongResult as error:
                yield {**row, "error": said(error)}
                continue
            yield from _timed(row, own, other, case, plan)


def difference(own: Side, other: Side, case: Measured) -> float:
    """The largest relative difference between the outputs of two sides over all steps, without dropout.

    Raises:
        check.WrongResult: it is above the tolerance.
    """
    found = []
    with torch.no_grad():
        for side in (own, other):
            side.training(False)
            output = side.call()
            found.append([output] if isinstance(output, torch.Tensor) else output)
    return max(
        check.within(f"{own.name}: output of GRU {i}, by {other.name}'s,", a, b, case.dtype)
        for i, (a, b) in enumerate(zip(*found, strict=True))
    )


def _timed(row: dict[str, Any], own: Side, other: Side, case: Measured, plan: Plan) -> Iterator[dict[str, Any]]:
    # Which rows there are, the host has to know, which a graph cannot ask.
    fixed = all(gru.cell or gru.rows == "padded" for gru in case.workload.grus)
    for mode in plan.modes if fixed else [mode for mode in plan.modes if mode != "graph"]:
        for direction in plan.directions:
            found = {**row, "direction": direction, "mode": mode}
            try:
                found |= times(own, other, direction, mode, plan)
            except Exception as error:  # a graph that cannot be recorded, memory that is not there
                found["error"] = said(error)
            yield found


def _ours(case: Measured, gru: Gru, source: nn.Module, inputs: Given) -> Any:
    return ours(gru, source, inputs, schedule=case.schedule, memory=case.memory)


def obstacle(way: Way, workload: Workload) -> str | None:
    """Why a way has nothing to do with a workload, or None."""
    reasons = [way.obstacle(gru) for gru in workload.grus]
    if None not in reasons:
        return reasons[0]
    steps = sum(gru.serial_steps for gru, reason in zip(workload.grus, reasons, strict=True) if reason is None)
    if way.name == "loop over cells" and steps > MOST_STEPS:
        return f"is compared to {MOST_STEPS} steps of all layers and directions"
    return None


def checked(way: Way, case: Measured) -> tuple[Side, float]:
    """The side that will be timed, and the largest relative error of output and gradients of any of its GRUs over the
    first steps, from a loop over the reference's cells in float64.

    Raises:
        check.WrongResult: an error above the tolerance, or no number.
    """
    worst = 0.0
    for seed, gru in enumerate(case.workload.each):
        # Dropout is drawn by each side for itself.
        short = replace(gru.at_most(check.CHECKED_STEPS), dropout=0.0)
        source, inputs = source_of(short, case.device, case.number, seed), given(short, case.device, case.number, seed)
        built = for_gru(way, gru)
        variant = gru.variant if built.any_variant else "torch"
        exact = Way("reference", lambda gru: None, partial(loop, cell=partial(reference.gru_cell, variant=variant)))
        doubled = copy.deepcopy(source).double()
        output, grads = _side(built, [short], [source], [inputs]).results()
        exact_output, exact_grads = _side(exact, [short], [doubled], [inputs.exact()]).results()
        names = ["output", *check.NAMES, *(name for name, _ in source.named_parameters())]
        pairs = zip((output, *grads), (exact_output, *exact_grads), strict=True)
        for name, (got, expected) in zip(names, pairs, strict=True):
            assert got is not None
            assert expected is not None
            worst = max(worst, check.within(f"{way.name}: {name} of GRU {seed}", got, expected, case.dtype))
    return whole(way, case), worst


def for_gru(way: Way, gru: Gru) -> Way:
    """The way itself, or nn.GRU for a GRU that it has nothing to do with."""
    return way if way.obstacle(gru) is None else NN_GRU


def whole(way: Way, case: Measured) -> Side:
    """All GRUs of a workload as one side."""
    each = list(enumerate(case.workload.each))
    sources = [source_of(gru, case.device, case.number, seed) for seed, gru in each]
    inputs = [given(gru, case.device, case.number, seed) for seed, gru in each]
    return _side(way, case.workload.each, sources, inputs)


def _side(way: Way, grus: Sequence[Gru], sources: Sequence[nn.Module], inputs: Sequence[Given]) -> Side:
    """A side of one output for one GRU, of a list for several."""
    calls, leaves, modules = [], [], []
    for gru, source, own in zip(grus, sources, inputs, strict=True):
        call, used = for_gru(way, gru).build(gru, source, own)
        x, h0 = (tensor.detach().clone().requires_grad_() for tensor in (own.x, own.h0))
        calls.append(partial(call, x, h0))
        leaves += [x, h0, *(parameter for module in used for parameter in module.parameters())]
        modules += used
    grads = [own.grad for own in inputs]

    def training(on: bool) -> None:
        for module in modules:
            module.train(on)

    if len(calls) == 1:
        return Side(way.name, calls[0], leaves, grads[0], training=training)
    return Side(way.name, lambda: [call() for call in calls], leaves, grads, training=training)
