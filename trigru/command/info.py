"""Print versions, devices, and for every schedule whether it runs here and, where it does not, why."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

import torch

from ..planning.plan import SCHEDULES, choose

PACKAGES = ("trigru", "torch", "triton", "numpy")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EXAMPLE_BATCH, EXAMPLE_HIDDEN_SIZE = 32, 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`trigru info` has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    print("\n".join(report()))
    return 0


def report() -> list[str]:
    """The lines that `trigru info` prints."""
    lines = ["Versions", f"  {'python':8}{platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [f"  {name:8}{_version(name)}" for name in PACKAGES]
    lines += ["", "Devices"]
    lines += [f"  {device!s:8}{_description(device)}" for device in devices()]
    for device in devices():
        lines += ["", f"Schedules on {device} (batch {EXAMPLE_BATCH}, hidden size {EXAMPLE_HIDDEN_SIZE})"]
        for schedule in SCHEDULES:
            for i, (dtypes, answer) in enumerate(_answers(schedule, device).items()):
                lines.append(f"  {'' if i else schedule:10}{', '.join(dtypes)}: {answer}")
    return lines


def devices() -> list[torch.device]:
    """The devices that a GRU could run on here: the CPU first."""
    found = [torch.device("cpu")]
    found += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _description(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"compute capability {properties.major}.{properties.minor}"
        return f"{properties.name}, {capability}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "cpu":
        return f"{torch.get_num_threads()} threads"
    return "Apple GPU"


def _answers(schedule: str, device: torch.device) -> dict[tuple[str, ...], str]:
    """What the schedule does on the device, by the dtypes that share the answer."""
    by_answer: dict[str, list[str]] = {}
    for dtype in DTYPES:
        if device.type == "mps" and dtype == torch.float64:  # such tensors do not exist there
            continue
        try:
            plan = choose(schedule, device, dtype, EXAMPLE_BATCH, EXAMPLE_HIDDEN_SIZE)
        except RuntimeError as error:
            answer = str(error).removeprefix(f"schedule {schedule!r} cannot run here: ")
            answer = f"no: {answer}"
        else:
            answer = f"runs {plan.schedule!r}: {plan.reason}" if schedule == "auto" else "runs"
        by_answer.setdefault(answer, []).append(str(dtype).removeprefix("torch."))
    return {tuple(dtypes): answer for answer, dtypes in by_answer.items()}
