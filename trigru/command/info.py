"""Print what a report of a fault should begin with: versions, devices, the state of Triton, torch's settings, and for
every schedule whether it runs here and, where it does not, why."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..planning.devices import PRESETS, cpu_model
from ..planning.plan import SCHEDULES, choose
from ..planning.precision import rnn_in_tf32
from ..planning.triton_state import why_unusable
from .machine import commit, devices, driver
from .tables import wrapped

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EXAMPLE_BATCH, EXAMPLE_HIDDEN_SIZE = 32, 256
VARIABLES = ("TRITON_", "TORCH_ALLOW_TF32", "NVIDIA_TF32_OVERRIDE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""Environment variables that change what runs: those that begin so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `trigru info`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    print(json.dumps(facts(), indent=2) if args.json else "\n".join(report()))
    return 0


def facts() -> dict[str, Any]:
    """What `trigru info` prints, by heading and name."""
    cudnn = torch.backends.cudnn
    return {
        "versions": {
            "trigru": __version__,
            "commit": commit() or "installed",
            "path": str(Path(__file__).resolve().parents[1]),
            "python": f"{platform.python_version()} on {platform.platform()}",
            "torch": torch.__version__,
            "CUDA": torch.version.cuda or "none: torch is built without it",
            **({"HIP": torch.version.hip} if torch.version.hip else {}),
            "cuDNN": str(cudnn.version()) if cudnn.is_available() else "none",
            "driver": driver() or "none",
            "triton": _version("triton"),
            "numpy": _version("numpy"),
        },
        "devices": {str(device): _description(device) for device in devices()},
        "triton": {"state": why_unusable() or "can be imported", "cache": _triton_cache()},
        "settings": {
            "RNNs in TF32": "yes" if rnn_in_tf32() else "no",
            "products in TF32": "yes" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "no",
            "deterministic": "yes" if torch.are_deterministic_algorithms_enabled() else "no",
            "fitted tables": ", ".join(name for name, device in PRESETS.items() if device.origin == "fitted") or "none",
        },
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
        "schedules": {str(device): _answers(device) for device in devices()},
    }


def report() -> list[str]:
    """The lines that `trigru info` prints, as wide as the terminal."""
    found = facts()
    schedules = found.pop("schedules")
    lines: list[str] = []
    for heading, values in found.items():
        lines += ["", heading.capitalize()]
        names = max(map(len, values), default=0)
        for name, value in values.items() if values else {"": "none is set that changes what runs"}.items():
            lines.append(wrapped(value or '""', indent=" " * (names + 4), first=f"  {name:{names}}  "))
    for device, answers in schedules.items():
        lines += ["", f"Schedules on {device} (batch {EXAMPLE_BATCH}, hidden size {EXAMPLE_HIDDEN_SIZE})"]
        alike: dict[str, list[str]] = {}
        for schedule, by_dtype in answers.items():
            alike.setdefault(json.dumps(by_dtype), []).append(schedule)
        for names_alike in alike.values():
            lines.append(f"  {', '.join(names_alike)}")
            by_answer: dict[str, list[str]] = {}
            for dtype, answer in answers[names_alike[0]].items():
                by_answer.setdefault(answer, []).append(dtype)
            lines += [
                wrapped(f"{', '.join(d)}: {answer}", indent=" " * 6, first=" " * 4) for answer, d in by_answer.items()
            ]
    return lines[1:]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _triton_cache() -> str:
    if why_unusable() is not None:
        return "none"
    import triton

    return str(triton.knobs.cache.dir)


def _description(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"compute capability {properties.major}.{properties.minor}"
        return f"{properties.name}, {capability}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "cpu":
        return f"{cpu_model()}, {torch.get_num_threads()} threads"
    return "Apple GPU"


def _answers(device: torch.device) -> dict[str, dict[str, str]]:
    """What each schedule does on the device, by dtype."""
    answers: dict[str, dict[str, str]] = {}
    for schedule in SCHEDULES:
        for dtype in DTYPES:
            if device.type == "mps" and dtype == torch.float64:  # such tensors do not exist there
                continue
            try:
                plan = choose(schedule, device, dtype, EXAMPLE_BATCH, EXAMPLE_HIDDEN_SIZE)
            except RuntimeError as error:
                answer = f"no: {str(error).removeprefix(f'schedule {schedule!r} cannot run here: ')}"
            else:
                answer = f"runs {plan.schedule!r}: {plan.reason}" if schedule == "auto" else "runs"
            answers.setdefault(schedule, {})[str(dtype).removeprefix("torch.")] = answer
    return answers
