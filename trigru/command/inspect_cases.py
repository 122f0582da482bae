"""Which kernels there are to compile: the layers that a schedule takes on a target, and what their host code would
launch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import product
from typing import Any

import torch

from ..kernels.config import (
    PersistentConfig,
    ResidentConfig,
    kept_values,
    on_matrix_units,
    persistent_config,
    persistent_width,
    resident_config,
    sharing_config,
    stacked_config,
    stepwise_config,
    walking_config,
    why_not_stacked,
    why_one_tile,
    wide_config,
)
from ..planning.candidates import WAITING

# How numbers are stored and multiplied. "tf32": float32 tensors, multiplied in TF32.
DTYPES = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
DIRECTIONS = ("forward", "inference", "backward")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
ALIKE = ("sm_75", "sm_86", "sm_87", "sm_89", "sm_103", "sm_120", "gfx908", "gfx90a", "gfx950")
"""More that kernels were compiled for. No others are taken: LLVM ends the process at a name that it does not know."""
# The sizes of `--all`, with which it compiles every configuration that there is at hidden_size 1 to 2048 and batch 1 to
# 512 (tests/test_offline.py walks through all). Of each they are the largest, for every combination of edges that it
# masks and of what Triton specialises on; and where sizes have units added to them (see widen.py), one such too. Of
# fetched columns, which are whole pieces, the most are there with added units.
_OF_STEPS = (1, 15, 16, 32, 2047, 2048)
# fmt: off
_EXCHANGING = {  # by bytes of an element
    2: (
        48, 55, 64, 112, 119, 128, 240, 247, 256, 496, 503, 512, 896, 1023, 1024, 1280,
        1536, 1792, 2047, 2048,
    ),
    4: (
        16, 27, 32, 48, 59, 64, 112, 123, 128, 240, 251, 256, 496, 507, 512,
        640, 768, 896, 1023, 1024,
    ),
}
# fmt: on
_SHARING = {2: (383, 384, 511, 512), 4: (255, 256)}
_WIDE = {2: (224, 256, 480, 512, 768, 1024), 4: (96, 128, 224, 256, 384, 512)}
_STACKED = {2: (64, 128, 240, 248, 256, 512), 4: (32, 64, 112, 124, 128, 256)}
ALL_BATCHES = (8, 16, 512)
SEQ_LEN = 2  # host code does at the second step what it does at all later ones


@dataclass(frozen=True)
class Case:
    """A layer to compile kernels for. direction: "forward" keeps what backward needs, "inference" does not. both: with
    both directions of time in every launch; packed: of packed sequences. Schedule "stacked": two layers of the
    persistent one in a launch; "several": several batch tiles in a program of it, which is one binary for any number of
    them; "sharing": with half of a multiprocessor's registers; "wide": with more hidden units a program."""

    target: str
    schedule: str
    direction: str
    variant: str
    dtype: str
    hidden_size: int
    batch: int
    both: bool = False
    packed: bool = False

    @property
    def way(self) -> str:
        """Forward or backward, as the plan has it."""
        return "backward" if self.direction == "backward" else "forward"


@dataclass(frozen=True)
class Schedule:
    """A module of trigru.kernels with the host functions `forward` and `backward`; what chooses its tile sizes from
    (dtype, batch, hidden_size, matrix); and the largest hidden size of (dtype, precision, matrix). matrix: whether
    products run on matrix units."""

    module: str
    config: Callable[[torch.dtype, int, int, bool], Any]
    largest: Callable[[torch.dtype, str, bool], int]


SEVERAL = ("several", "several sharing", "wide several", "wide sharing")
EXCHANGING = ("persistent", "sharing", "wide", *SEVERAL)
"""Forms of the persistent schedule, of one layer in a launch; SEVERAL those of several batch tiles in a program."""
SCHEDULES = {
    "stepwise": Schedule("stepwise", stepwise_config, lambda dtype, precision, matrix: sys.maxsize),
    "walking": Schedule("walking", walking_config, lambda dtype, precision, matrix: sys.maxsize),
    "resident": Schedule("resident", lambda *sizes: resident_config(*sizes[:3]), ResidentConfig.largest),
    # Of the sizes of those below, `config_of` and `can_compile` say more.
    **dict.fromkeys(
        EXCHANGING,
        Schedule("persistent", lambda *sizes: persistent_config(*sizes[:3]), PersistentConfig.largest),
    ),
    "stacked": Schedule("stacked", lambda *sizes: stacked_config(*sizes[:3]), lambda *options: sys.maxsize),
}


def capability_of(target: str) -> tuple[int, int] | None:
    """Compute capability, None of AMD's."""
    number = target.removeprefix("sm_")
    return divmod(int(number), 10) if number.isdigit() else None


def on_units(case: Case) -> bool:
    """Whether the case's products run on matrix units."""
    return on_matrix_units(*DTYPES[case.dtype], capability_of(case.target))


def shared_bytes(target: str) -> int:
    """Of shared memory that a program may have, by the CUDA C++ programming guide; AMD's by their data sheets."""
    return 1024 * (_SHARED_KIB.get(target, 227) if target.startswith("sm_") else 64)


_SHARED_KIB = {"sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_87": 163, "sm_89": 99, "sm_120": 99}


def config_of(case: Case) -> Any:
    """The plan's tile sizes; None where it has none of that form."""
    dtype, _ = DTYPES[case.dtype]
    config = SCHEDULES[case.schedule].config(dtype, case.batch, case.hidden_size, on_units(case))
    sizes = case.variant, case.way, dtype, persistent_width(dtype, case.hidden_size)
    if "wide" in case.schedule:
        config = wide_config(config, *sizes[:3], case.hidden_size)
    if config is not None and "sharing" in case.schedule:
        config = sharing_config(config, *sizes)
    return config if config is None or case.schedule not in SEVERAL else replace(config, tiles=2)


def recorded(case: Case, config: Any = None) -> list:
    """What the schedule's host code would launch (`trigru.kernels.offline.Launch`), with `config` or the plan's.

    Nothing is allocated: its tensors have shapes only."""
    from ..kernels.launch import using
    from ..kernels.offline import Recorder
    from ..kernels.recurrence import Gradients, Operands, Recurrence

    schedule = SCHEDULES[case.schedule]
    module = import_module(f"trigru.kernels.{schedule.module}")
    dtype, precision = DTYPES[case.dtype]
    batch, hidden_size, rows = case.batch, case.hidden_size, SEQ_LEN * case.batch
    sides = (2,) if case.both else ()

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    if config is None:
        config = config_of(case)
    run = Recurrence(case.variant, False, precision, config)
    if case.schedule == "stacked":
        return _recorded_stack(case, run)
    bias = meta(hidden_size) if case.variant == "torch" else None
    gates_in, h0, w_hh = (
        meta(*sides, rows, 3 * hidden_size),
        meta(*sides, batch, hidden_size),
        meta(3 * hidden_size, hidden_size),
    )
    operands = Operands(gates_in, h0, w_hh, bias, _steps(case))
    if case.both:
        operands = operands._replace(w_hh_back=w_hh, b_hn_back=bias)
    recorder = Recorder()
    with using(recorder):
        kept = module.forward(run, operands, case.direction != "inference")
        if case.direction == "backward":
            recorder.launches.clear()
            module.backward(run, operands, kept, Gradients(meta(*kept.output.shape), meta(*h0.shape)))
    return recorder.launches


def _steps(case: Case) -> Any:
    from ..kernels.steps import Steps

    return Steps.of_batch_sizes((case.batch,) * SEQ_LEN) if case.packed else Steps.padded(SEQ_LEN, case.batch)


def _recorded_stack(case: Case, run: Any) -> list:
    """`recorded` of two layers in a launch, with dropout between them, which takes the more registers."""
    from ..kernels.launch import using
    from ..kernels.offline import Recorder
    from ..kernels.stacked import Layers, backward, forward

    batch, hidden_size, rows, layers = case.batch, case.hidden_size, SEQ_LEN * case.batch, 2

    def meta(*shape: int, dtype: torch.dtype = DTYPES[case.dtype][0]) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    values = kept_values(case.variant) * hidden_size
    given = Layers(
        gates_in=meta(rows, 3 * hidden_size),
        h0=meta(layers, batch, hidden_size),
        w_ih=meta(layers - 1, 3 * hidden_size, hidden_size),
        w_hh=meta(layers, 3 * hidden_size, hidden_size),
        bias=meta(layers - 1, 3 * hidden_size),
        b_hn=meta(layers, hidden_size) if case.variant == "torch" else None,
        steps=_steps(case),
        states=meta(layers - 1, rows, hidden_size),
        output=meta(rows, hidden_size),
        reserve=None if case.direction == "inference" else meta(layers, rows, values),
        stays=None if case.direction == "inference" else meta(layers - 1, rows, hidden_size, dtype=torch.bool),
    )
    recorder = Recorder()
    with using(recorder):
        if case.direction == "backward":
            backward(run, given, meta(rows, hidden_size), meta(layers, batch, hidden_size))
        else:
            forward(run, given)
    return recorder.launches


def can_compile(case: Case) -> bool:
    """Whether the schedule runs such a layer on the target: TF32 and the persistent schedule are for NVIDIA's GPUs from
    compute capability 8.0 on, no schedule that waits is for AMD's, schedules have a largest size, some want more shared
    memory than some GPUs have, and a batch that one tile holds has no several."""
    has_dtype, config = True, config_of(case)
    if config is None:
        return False
    if not case.target.startswith("sm_"):
        has_dtype = case.dtype != "tf32" and case.schedule not in (*WAITING, *EXCHANGING)
    elif case.target == "sm_75":
        has_dtype = case.dtype not in ("tf32", "bf16") and case.schedule not in EXCHANGING
    if case.schedule in SEVERAL:
        sizes = case.variant, case.way, DTYPES[case.dtype][0], case.hidden_size
        capability = capability_of(case.target)
        has_dtype &= capability is not None and why_one_tile(*sizes, capability) is None
        has_dtype &= case.batch > persistent_config(sizes[2], case.batch, case.hidden_size).block_b
    if case.schedule == "stacked":
        has_dtype &= case.target.startswith("sm_") and case.target != "sm_75" and not case.both
        return has_dtype and why_not_stacked(case.variant, *_numbers(case)) is None
    largest = SCHEDULES[case.schedule].largest(*DTYPES[case.dtype], on_units(case))
    return has_dtype and case.hidden_size <= largest and _has_room(case, config)


def _has_room(case: Case, config: Any) -> bool:
    """Whether the target's multiprocessors have the shared memory of a resident program, or the L1 of one that fetches
    columns, as the plan asks."""
    dtype, _ = DTYPES[case.dtype]
    if isinstance(config, ResidentConfig):
        wanted = config.shared_bytes(dtype, case.hidden_size)
    elif isinstance(config, PersistentConfig) and config.fetched:
        wanted = config.l1_bytes(dtype)
    else:
        return True
    return wanted <= shared_bytes(case.target)


def _numbers(case: Case) -> tuple[torch.dtype, int, str]:
    dtype, precision = DTYPES[case.dtype]
    return dtype, case.hidden_size, precision


def all_hidden_sizes(schedule: str, dtype: str) -> tuple[int, ...]:
    """Those of `--all`."""
    itemsize = DTYPES[dtype][0].itemsize
    if schedule == "resident":
        return (15, 16, 31, 32, 63, 64, 127, 128)
    if schedule == "stacked":
        return _STACKED[itemsize]
    if "wide" in schedule:
        return _WIDE[itemsize]
    if schedule.endswith("sharing"):
        return _SHARING[itemsize]
    return _EXCHANGING[itemsize] if schedule in EXCHANGING else _OF_STEPS


def cases(
    targets: Iterable[str],
    schedules: Iterable[str],
    directions: Iterable[str],
    variants: Iterable[str],
    dtypes: Iterable[str],
    hidden_sizes: Collection[int] | None,
    batches: Collection[int],
    *,
    both: bool = False,
    packed: bool = False,
) -> list[Case]:
    """Every combination that can be compiled. hidden_sizes: None for those of `--all`."""
    every = (
        Case(*layer, hidden_size, batch, both, packed)
        for layer in product(targets, schedules, directions, variants, dtypes)
        for hidden_size in hidden_sizes or all_hidden_sizes(layer[1], layer[-1])
        for batch in batches
    )
    return [case for case in every if can_compile(case)]
