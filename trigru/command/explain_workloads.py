"""`trigru explain --workloads`: schedule, launches, turns and predicted time of models that people run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch

from ..bench.cases.workloads import WORKLOADS, Gru, Workload
from ..explain import CELL_REASONS
from ..functional import cell_way
from ..planning.candidates import DIRECTIONS
from ..planning.cost import Layer
from ..planning.devices import Device
from ..planning.plan import MICRO, Site, plan, planned
from ..planning.together import Stack, together, why_apart
from .tables import fitted, wrapped

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MOST_TURNS = 2
"""With more turns, or a launch a step, the reason is printed too."""


def of_gru(gru: Gru, dtype: str, device: Device | None, direction: str, *, recording: bool = True) -> dict[str, Any]:
    """What one GRU of a workload takes for a call; a cell in a loop: for all its steps, each a call of one step.

    recording: gradients can be asked for, which a CPU's plan depends on."""
    sizes = {
        "seq_len": gru.seq_len,
        "batch": gru.batch,
        "input_size": gru.input_size,
        "hidden_size": gru.hidden_size,
        "num_layers": gru.num_layers,
        "directions": gru.directions,
        "variant": gru.variant,
        "rows": gru.rows,
        "cell": gru.by_steps,
        "calls": gru.calls,
    }
    number = DTYPES[dtype]
    if device is None:
        return {**_nothing_counted(*_on_cpu(gru, number, direction, recording)), **sizes}
    precision = "tf32" if number == torch.float32 else "ieee"
    layer = Layer(gru.variant, number, gru.batch, gru.hidden_size, precision=precision, directions=gru.directions)
    times, steps = (gru.calls * gru.seq_len, 1) if gru.by_steps else (gru.calls, gru.seq_len)
    choice = planned("auto", device, layer, direction)
    if choice.schedule == "eager":
        return {**_nothing_counted(choice.schedule, choice.reason), **sizes}
    why = why_apart(gru.layer, direction, packed=gru.rows == "packed", given=bool(gru.given))
    taken = together(choice, device, layer, Stack(gru.num_layers, steps, why), direction)
    started, seconds = taken.launches(steps), taken.seconds(steps, device.eager_launch_time)
    in_graph = taken.seconds(steps, device.launch_time, graph=True)
    assert started is not None  # of kernels all is counted
    assert seconds is not None
    assert in_graph is not None
    return {
        "schedule": taken.schedule,
        "launches": times * started,
        "turns": taken.turns,
        "predicted_us": times * seconds * MICRO,
        "predicted_graph_us": times * in_graph * MICRO,
        "reason": taken.reason,
        **sizes,
    }


def _on_cpu(gru: Gru, dtype: torch.dtype, direction: str, recording: bool) -> tuple[str, str]:
    """Schedule and reason."""
    if gru.by_steps:
        way = cell_way(gru.variant, gru.batch, gru.input_size, gru.hidden_size, dtype)
        return way, CELL_REASONS[way]
    packed, given = gru.rows == "packed", gru.given
    site = Site(torch.device("cpu"), dtype, gru.seq_len, gru.batch, packed, recording, plain=True, given=given)
    taken = plan(gru.layer, site, direction)
    return taken.schedule, taken.reason


def _nothing_counted(schedule: str, reason: str) -> dict[str, Any]:
    counted = dict.fromkeys(("launches", "turns", "predicted_us", "predicted_graph_us"))
    return {"schedule": schedule, **counted, "reason": reason}


def of_workload(workload: Workload, device: Device | None, direction: str) -> dict[str, Any]:
    """The sums of its GRUs, the most turns of any, and each by itself in `parts`; None where nothing is counted."""
    recording = workload.training or direction == "backward"
    parts = [of_gru(gru, workload.dtype, device, direction, recording=recording) for gru in workload.grus]

    def together(name: str, by: Any) -> Any:
        values = [part[name] for part in parts]
        return None if None in values else by(values)

    return {
        "workload": workload.name,
        "pass": direction,
        "schedule": ", ".join(_once(part["schedule"] for part in parts)),
        "launches": together("launches", sum),
        "turns": together("turns", max),
        "predicted_us": together("predicted_us", sum),
        "predicted_graph_us": together("predicted_graph_us", sum),
        "reason": " | ".join(_once(part["reason"] for part in parts)),
        "row": workload.row,
        "source": workload.source,
        "chosen": workload.chosen,
        "dtype": workload.dtype,
        "use": "training" if workload.training else "inference",
        "parts": parts,
    }


def _once(said: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(said))


def show(device: Device | None, *, as_json: bool) -> None:
    """Print the table, or the list of objects. device: None for a CPU, where nothing is launched or predicted."""
    found = [of_workload(workload, device, direction) for workload in WORKLOADS for direction in DIRECTIONS]
    if as_json:
        print(json.dumps(found))
        return
    if device is not None:
        print(
            wrapped(
                f"On {device.name}: predictions from counts and {device.origin} rates, not measurements, without the "
                "products of the inputs. Launches are those of the recurrence, of all GRUs, layers, directions and "
                "turns of a call; a cell in a loop: of all its steps. float32 is multiplied in TF32, as torch's RNNs "
                "do by default. Of models that are used in inference, backward is what training them would take."
            )
        )
        print()
    headings = ["workload", "pass", "schedule", "launches", "turns", "ms"]
    print(fitted(headings, [_line(one) for one in found]))
    said = [f"{one['workload']}, {one['pass']}: {one['reason']}" for one in found if _needs_a_reason(one)]
    if said:
        print()
    for text in said:
        print(wrapped(text, indent="    ", first=""))


def _line(one: dict[str, Any]) -> list[object]:
    ms = None if one["predicted_us"] is None else one["predicted_us"] / 1e3
    return [one["workload"], one["pass"], one["schedule"].replace(", ", "/"), one["launches"], one["turns"], ms]


def _needs_a_reason(one: dict[str, Any]) -> bool:
    return one["turns"] is not None and (one["turns"] > MOST_TURNS or "stepwise" in one["schedule"])
