"""Fit the planner's constants (`trigru.planning.devices.Device`) to measured rows, and say how well they then predict.

A row's forward step is, by the model of `trigru.planning.cost`, a sum of counts times constants, but for the largest of
three kinds of work that a multiprocessor does at once. So the fit is linear once it is known which kind that is: it
starts from the published constants, solves, looks again which kind is the largest, and ends when that stays the same.
Rows count by their relative error. Two more terms take up what a measured call has beside its steps, the input
projection and a time a call; the planner needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trigru.command.options import Refused
from trigru.command.tables import markdown
from trigru.planning import cost
from trigru.planning.candidates import candidates
from trigru.planning.cost import GATES
from trigru.planning.devices import FITTED, PUBLISHED, Device, slug

from ..measuring.stats import geometric_mean
from ..report.report import of_one_layer
from .least_squares import nonnegative

SCHEDULES = ("stepwise", "resident", "persistent")
RATES = {"half_flops": "half", "tf32_flops": "tf32", "float_flops": "float"}
COLUMNS = ("launch_time", "exchange_time", "l2_bandwidth", *RATES, "projection", "call")
INVERSE = ("l2_bandwidth", *RATES)  # the fit finds seconds a byte, seconds an operation
MOST_TURNS = 50


@dataclass(frozen=True)
class Sample:
    """A measured forward pass, with what the model counts of a step of it."""

    layer: cost.Layer
    schedule: str
    step: cost.Step
    seq_len: int
    seconds: float  # a step

    @property
    def rate(self) -> str:
        """The field of Device that its products go by."""
        if self.layer.dtype != torch.float32:
            return "half_flops"
        return "tf32_flops" if self.layer.precision == "tf32" else "float_flops"


@dataclass(frozen=True)
class Fit:
    """The device with fitted constants, the terms beside them, and the samples with their predictions."""

    device: Device
    fitted: dict[str, float]
    projection: float  # seconds an operation of the input projection
    call: float  # seconds a call
    predicted: list[tuple[Sample, float]]

    @property
    def error(self) -> float:
        """The geometric mean of how far off a prediction is: 1.1 is 10 %."""
        return geometric_mean([max(s.seconds / p, p / s.seconds) for s, p in self.predicted])


def device_of(rows: Sequence[dict[str, Any]]) -> Device:
    """The preset that the rows' GPU is one of, as published, with the multiprocessors that it had.

    Raises:
        ValueError: rows of no preset, or of several GPUs.
    """
    names = {row["device_name"] for row in rows}
    if len(names) != 1:
        raise ValueError(f"rows: expected those of one GPU, got {', '.join(sorted(names)) or 'none'}")
    name = names.pop()
    for preset in PUBLISHED.values():
        if preset.name in name:
            counts = {row["multiprocessors"] for row in rows if row.get("multiprocessors")}
            return replace(preset, multiprocessors=counts.pop()) if counts else preset
    raise ValueError(f"rows: expected those of one of {', '.join(PUBLISHED)}, got {name}")


def samples(rows: Iterable[dict[str, Any]], device: Device) -> list[Sample]:
    """The rows that say something about a step: padded forward passes of trigru's Triton schedules in a CUDA graph,
    each case once."""
    found: dict[tuple, Sample] = {}
    for row in rows:
        wanted = row["suite"] == "layer" and row.get("direction") == "forward" and row.get("mode") == "graph"
        wanted = wanted and not row["packed"] and of_one_layer(row)
        if not wanted or row["schedule"] not in SCHEDULES or row.get("ours_ms") is None:
            continue
        layer = cost.Layer(
            row["variant"],
            getattr(torch, row["dtype"]),
            row["batch"],
            row["hidden_size"],
            training=False,
            precision=row["precision"],
        )
        planned = {found.schedule: found for found in candidates(device, layer)}[row["schedule"]]
        # Turns hide behind each other, fetched columns behind the looks in part: no sum as below says either.
        if planned.step.tiles > 1 or planned.step.parts:
            continue
        sample = Sample(layer, row["schedule"], planned.step, row["seq_len"], row["ours_ms"] / 1e3 / row["seq_len"])
        found.setdefault((layer, row["schedule"], row["seq_len"]), sample)
    return list(found.values())


def _works(sample: Sample, device: Device) -> dict[str, float]:
    """Seconds of each kind of work that a multiprocessor does at once."""
    rate = device.flops(sample.layer.dtype, sample.layer.precision)
    return {
        "l2_bandwidth": sample.step.l2_bytes * device.multiprocessors / device.l2_bandwidth,
        "shared": sample.step.shared_bytes / (cost.SHARED_BYTES_PER_CLOCK * device.clock),
        sample.rate: sample.step.flops * device.multiprocessors / rate,
    }


def _slowest(sample: Sample, device: Device) -> str:
    works = _works(sample, device)
    return max(works, key=lambda kind: works[kind])


def _projection_flops(sample: Sample) -> int:
    return 2 * GATES * sample.layer.batch * sample.layer.hidden_size**2  # input_size is hidden_size


def _row(sample: Sample, device: Device) -> tuple[list[float], float]:
    """Coefficients of COLUMNS, and the seconds that do not depend on them."""
    step, turns, slowest = sample.step, cost.turns(sample.step, device), _slowest(sample, device)
    latency = cost.L2_LATENCY_CLOCKS / device.clock
    fixed = (step.launches + turns) * latency
    values = dict.fromkeys(COLUMNS, 0.0)
    values["launch_time"], values["exchange_time"] = step.launches, step.exchanges * turns
    times = turns * cost.crowd(step, device)
    if slowest == "shared":
        fixed += times * _works(sample, device)["shared"]
    else:
        count = step.l2_bytes if slowest == "l2_bandwidth" else step.flops
        values[slowest] = times * count * device.multiprocessors
    values["projection"], values["call"] = _projection_flops(sample), 1 / sample.seq_len
    return [values[name] for name in COLUMNS], fixed


def _solved(matrix: Tensor, right: Tensor) -> dict[str, float]:
    """Constants by name; those that no row depends on, or that the fit finds to be nothing, are left out."""
    found = dict(zip(COLUMNS, nonnegative(matrix, right).tolist(), strict=True))
    there = {name: value for name, value in found.items() if value > 0}
    return {name: 1 / value if name in INVERSE else value for name, value in there.items()}


def fit(measured: Sequence[Sample], device: Device) -> Fit:
    """Constants of `device` that make the samples' relative errors least.

    Raises:
        ValueError: fewer samples than constants.
    """
    if len(measured) < len(COLUMNS):
        raise ValueError(
            f"rows: expected at least {len(COLUMNS)} forward rows of layers in graphs, got {len(measured)}"
        )
    target = torch.tensor([sample.seconds for sample in measured], dtype=torch.float64)
    now, constants, seen = device, {}, set()
    for _ in range(MOST_TURNS):
        assigned = tuple(_slowest(sample, now) for sample in measured)
        if assigned in seen:
            break
        seen.add(assigned)
        built = [_row(sample, now) for sample in measured]
        matrix = torch.tensor([values for values, _ in built], dtype=torch.float64)
        fixed = torch.tensor([seconds for _, seconds in built], dtype=torch.float64)
        constants = _solved(matrix / target[:, None], (target - fixed) / target)
        known = {name: value for name, value in constants.items() if name not in ("projection", "call")}
        now = replace(device, **known)  # type: ignore[arg-type]
    projection, call = constants.pop("projection", 0.0), constants.pop("call", 0.0)
    predicted = [
        (s, cost.time(s.step, now, s.layer, graph=True) + projection * _projection_flops(s) + call / s.seq_len)
        for s in measured
    ]
    return Fit(now, constants, projection, call, predicted)


def report(result: Fit, published: Device) -> str:
    """Constants and predictions as tables."""
    constants = markdown(
        ["constant", "published", "fitted"],
        [[name, f"{getattr(published, name):.3g}", f"{value:.3g}"] for name, value in result.fitted.items()],
    )
    predictions = markdown(
        ["schedule", "variant", "numbers", "H", "B", "T", "measured us", "predicted us", "predicted / measured"],
        [
            [
                sample.schedule,
                sample.layer.variant,
                sample.layer.precision if sample.rate == "tf32_flops" else str(sample.layer.dtype)[6:],
                sample.layer.hidden_size,
                sample.layer.batch,
                sample.seq_len,
                sample.seconds * 1e6,
                seconds * 1e6,
                seconds / sample.seconds,
            ]
            for sample, seconds in result.predicted
        ],
    )
    beside = f"beside the steps: {result.projection * 1e12:.3g} ps an operation of the projection, "
    beside += f"{result.call * 1e6:.3g} us a call"
    return (
        f"{predictions}\n\n{constants}\n{beside}\ngeometric error {result.error:.3f} over {len(result.predicted)} rows"
    )


def store(result: Fit, rows: Sequence[dict[str, Any]], name: str) -> Path:
    """Store the constants where `trigru.planning.devices` reads them; the path."""
    FITTED.mkdir(parents=True, exist_ok=True)
    path = FITTED / f"{slug(name)}.json"
    source = {key: rows[0].get(key) for key in ("device_name", "commit", "date", "versions")}
    table = {
        "device": name,
        "constants": result.fitted,
        "rows": len(result.predicted),
        "error": result.error,
        "from": source,
    }
    path.write_text(json.dumps(table, indent=1) + "\n")
    return path


def run(path: Path, *, write: bool) -> int:
    """`trigru bench --fit`: print, and store if asked for; the exit code."""
    try:
        rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["device"] == "cuda"]
        device = device_of(rows)
        result = fit(samples(rows, device), device)
    except (OSError, ValueError) as error:
        raise Refused(f"--fit {path}: {error}") from None
    print(report(result, device))
    if write:
        print(f"stored: {store(result, rows, device.name)}")
    return 0
