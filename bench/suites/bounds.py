"""What the hardware allows for a row, so that a time can be read without a peer.

Latencies are measured in the run: the round trip between two programs (`pingpong`), an empty kernel's launch in a CUDA
graph. Rates are those of `trigru.planning.devices`, the maker's. A row's bound is the largest of

    exchange    steps x exchanges of a step x half a round trip, where one multiprocessor cannot hold the weights
    launch      steps x launches of a step x the launch of an empty kernel, for the stepwise schedule alone
    bytes       every tensor of the layer once, over the bandwidth of memory
    flops       multiplications and additions of all products, over the peak rate of the dtype
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from trigru.planning.cost import GATES
from trigru.planning.devices import Device, present

from ..cases.case import Case
from ..measuring.stats import quantiles
from ..measuring.timers import Call, CudaTimer

ROUNDS = 2048  # and half as many: 16 divides both, so that both run the same binary
LAUNCHES = 200
REPEATS = 11


def _best(timer: Any, call: Call) -> float:
    return quantiles(taken[0] for taken in timer.durations([call], REPEATS))["p20"]


def round_trip(play: Callable[[int], Call], timer: Any) -> float:
    """Seconds of a round: the difference between many rounds and half as many, so that the launch does not count.

    `play(rounds)` makes a call that plays so many."""
    half, whole = (_best(timer, play(rounds)) for rounds in (ROUNDS // 2, ROUNDS))
    return (whole - half) / (ROUNDS - ROUNDS // 2)


def measured_latencies(timer: Any = None, record: Callable[[Callable[[], Call]], Call] | None = None) -> dict[str, Any]:
    """Seconds of a round trip between two programs (`round_trip_s`), of a launch from Python (`launch_s`) and of one
    inside a CUDA graph (`graph_launch_s`), on the current GPU."""
    from ..measuring.graphs import graphed
    from . import pingpong

    timer, record = timer or CudaTimer(flush=lambda: None), record or graphed
    boards: dict[int, Any] = {}

    def play(rounds: int) -> Call:
        cells, error = boards[rounds] = pingpong.new_cells(rounds, "cuda")

        def call() -> None:
            cells.fill_(pingpong.PATTERN)
            pingpong.play(cells, error)

        call()
        torch.cuda.synchronize()
        pingpong.check(cells, error)
        return call

    found: dict[str, Any] = {"round_trip_s": round_trip(play, timer)}
    for cells, error in boards.values():
        pingpong.check(cells, error)
    cells, _ = pingpong.new_cells(1, "cuda")

    def launches() -> None:
        for _ in range(LAUNCHES):
            pingpong.launch_nothing(cells)

    launches()
    torch.cuda.synchronize()
    start = time.perf_counter()
    launches()
    found["launch_s"] = (time.perf_counter() - start) / LAUNCHES
    found["graph_launch_s"] = _best(timer, record(lambda: launches)) / LAUNCHES
    return found


def operations(case: Case, direction: str) -> int:
    """Multiplications and additions of the products of a layer, input projection included; backward has twice as
    many."""
    inputs = [case.input_size] + [case.directions * case.hidden_size] * (case.num_layers - 1)
    once = sum(2 * GATES * case.hidden_size * (size + case.hidden_size) for size in inputs)
    passes = {"forward": 1, "backward": 2, "forward+backward": 3}[direction]
    return passes * case.directions * case.seq_len * case.batch * once


def tensor_bytes(case: Case, direction: str) -> int:
    """Bytes of input, output and weights, once; backward reads them again, with the output's gradient, and writes the
    gradients of input and weights."""
    width = case.directions * case.hidden_size
    inputs = [case.input_size] + [width] * (case.num_layers - 1)
    rows = case.seq_len * case.batch
    weights = sum(case.directions * GATES * case.hidden_size * (size + case.hidden_size) for size in inputs)
    once = rows * sum(inputs) + rows * width * case.num_layers + weights
    passes = {"forward": 1, "backward": 2, "forward+backward": 3}[direction]
    return passes * once * case.number.itemsize


class Bounds:
    """Adds a row's bound: a callable as `compare.Plan.add`.

    Args:
        latencies: those of `measured_latencies`; without them those of the device's description.
        device: the GPU, None for the current one.
    """

    def __init__(self, latencies: Mapping[str, float], device: Device | None = None) -> None:
        self.device = device or present(torch.cuda.current_device())
        self.exchange_s = latencies.get("round_trip_s", 2 * self.device.exchange_time) / 2
        self.launch_s = latencies.get("graph_launch_s", self.device.launch_time)

    def __call__(self, case: Case, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields `bound_..._ms` of each kind, `bound_ms` and `bound_by` of the largest, `bound_ratio`: our time by
        it. None for a packed row, whose rows differ from step to step."""
        if case.packed:
            return {"bound_ms": None}
        direction = row["direction"]
        # Directions of time are independent, and a layer may follow the one below by a step.
        serial = (case.seq_len + case.num_layers - 1) * (2 if direction == "forward+backward" else 1)
        a_step = 1 if case.variant == "torch" else 2
        fits = GATES * case.hidden_size**2 * case.number.itemsize <= self.device.shared_per_block
        kinds = {
            "exchange": 0.0 if fits or case.cell else serial * a_step * self.exchange_s,
            "launch": serial * a_step * self.launch_s if row["schedule"] == "stepwise" else self.launch_s,
            "bytes": tensor_bytes(case, direction) / self.device.memory_bandwidth,
            "flops": operations(case, direction) / self.device.flops(case.number, case.precision),
        }
        by = max(kinds, key=lambda kind: kinds[kind])
        said: dict[str, Any] = {f"bound_{kind}_ms": seconds * 1e3 for kind, seconds in kinds.items()}
        ratio = row["ours_ms"] / (kinds[by] * 1e3)
        return {**said, "bound_ms": kinds[by] * 1e3, "bound_by": by, "bound_ratio": ratio}
