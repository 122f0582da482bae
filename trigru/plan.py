"""Which schedule runs, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .kernels.config import StepwiseConfig

SCHEDULES = ("auto", "eager", "stepwise")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Plan:
    """A schedule with its tile sizes (None for "eager") and, in one sentence, why it was chosen."""

    schedule: str
    reason: str
    config: StepwiseConfig | None = None


def check_schedule(schedule: str) -> None:
    """Raise ValueError unless `schedule` is one of SCHEDULES."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(map(repr, SCHEDULES))}, got {schedule!r}")


def why_no_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run on tensors of this device and dtype, or None where they can."""
    if dtype not in TRITON_DTYPES:
        return f"Triton kernels compute in float32, float16 and bfloat16, the tensors are {dtype}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    from .kernels.launch import interpreted, replaced

    if device.type == "cuda":
        if dtype == torch.bfloat16 and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            return "bfloat16 needs a GPU of compute capability 8.0 or newer"
        return None
    if device.type == "cpu" and (interpreted() or replaced()):
        return None
    return f"Triton kernels need tensors on an NVIDIA or AMD GPU, these are on {device.type}"


def stepwise_config(dtype: torch.dtype, batch: int, hidden_size: int) -> StepwiseConfig:
    """Tile sizes of the stepwise schedule.

    A small batch takes narrow tiles, so that more multiprocessors share a step; a large one wider tiles, so that each
    weight loaded from L2 meets more sequences."""
    from .kernels.config import StepwiseConfig

    block_h = 16 if hidden_size <= 16 else 32
    block_b = 16 if batch <= 16 else 32
    block_k = 16 if hidden_size <= 16 else 32 if hidden_size <= 32 or dtype == torch.float32 else 64
    return StepwiseConfig(block_h=block_h, block_b=block_b, block_k=block_k, num_warps=4, num_stages=3)


def choose(schedule: str, device: torch.device, dtype: torch.dtype, batch: int, hidden_size: int) -> Plan:
    """The plan for one layer and direction.

    Args:
        schedule: "auto", or a schedule by name.
        device, dtype: of the tensors.
        batch, hidden_size: sizes of the state.

    Raises:
        ValueError: unknown schedule.
        RuntimeError: the schedule asked for by name cannot run here. Only "auto" falls back.
    """
    check_schedule(schedule)
    if schedule == "eager":
        return Plan("eager", "asked for by name")
    obstacle = why_no_kernels(device, dtype)
    if schedule == "auto":
        if obstacle is not None:
            return Plan("eager", f"{obstacle}, so torch operations run")
        if device.type == "cpu":
            return Plan("eager", "on a CPU torch operations are the fastest schedule")
        return Plan("stepwise", "Triton runs on this device", stepwise_config(dtype, batch, hidden_size))
    if obstacle is not None:
        raise RuntimeError(f"schedule {schedule!r} cannot run here: {obstacle}")
    return Plan(schedule, "asked for by name", stepwise_config(dtype, batch, hidden_size))
