"""What a plan is: records of what runs all layers and directions of a call, and in how many launches."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..kernels.config import Config
from .configs import CudnnConfig, EagerConfig

AnyConfig = Config | CudnnConfig | EagerConfig
WHOLE = ("torch", "cudnn")
"""What runs all layers or none, forward and backward."""


@dataclass(frozen=True)
class Choice:
    """A schedule with its tile sizes and, in one sentence, why it was chosen. Where torch operations run, nothing is
    counted."""

    schedule: str
    reason: str
    config: AnyConfig | None = None
    turns: int | None = None  # how many times the device is filled
    launches: tuple[int, int] | None = None  # kernels of the recurrence: of each step, and once for all steps
    seconds: float | None = None  # predicted, one step
    graph_seconds: float | None = None  # the same, inside a CUDA graph


@dataclass(frozen=True)
class Stage:
    """What of a call runs together: in one launch, or in one launch a step."""

    layers: tuple[int, ...]
    directions: tuple[int, ...]
    choice: Choice


@dataclass(frozen=True)
class Plan:
    """What runs all layers and directions of a call, forward or backward: stages, one after another. Each is of one
    layer, but for torch's own GRU and cuDNN, which run all of them."""

    stages: tuple[Stage, ...]

    @property
    def schedule(self) -> str:
        """That of the first stage: so far all of them are alike."""
        return self.stages[0].choice.schedule

    @property
    def reason(self) -> str:
        """Why, of the first stage."""
        return self.stages[0].choice.reason

    @property
    def turns(self) -> int | None:
        """The most of any stage; None where nothing is counted."""
        turns = [stage.choice.turns for stage in self.stages]
        return None if None in turns else max(number for number in turns if number is not None)

    def launches(self, seq_len: int) -> int | None:
        """Kernels of the recurrence that a call starts; None where nothing is counted. The products of all steps before
        and after it, copies and fills are not among them."""
        total = 0
        for stage in self.stages:
            if stage.choice.launches is None:
                return None
            each, once = stage.choice.launches
            total += each * seq_len + once
        return total

    def seconds(self, seq_len: int, launch_time: float, *, graph: bool = False) -> float | None:
        """Predicted, of the recurrence. launch_time: of the device, inside a CUDA graph or not, as `graph` says."""
        total = 0.0
        for stage in self.stages:
            choice = stage.choice
            step = choice.graph_seconds if graph else choice.seconds
            if step is None or choice.launches is None:
                return None
            each, once = choice.launches
            # A step's time has its launches; the model leaves out what is launched once for all steps.
            total += seq_len * step + (0 if each else once * launch_time)
        return total


@functools.lru_cache(maxsize=1024)
def staged(num_layers: int, directions: int, choice: Choice, direction: str = "forward") -> Plan:
    """So many layers, all by one choice: kernels run both directions of a layer together, torch operations one after
    another."""
    layers, sides = tuple(range(num_layers)), tuple(range(directions))
    if choice.schedule in WHOLE:
        return Plan((Stage(layers, sides, choice),))
    together = [(side,) for side in sides] if choice.schedule == "eager" else [sides]
    order = layers if direction == "forward" else reversed(layers)
    return Plan(tuple(Stage((index,), each, choice) for index in order for each in together))
