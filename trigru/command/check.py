"""Compare every schedule that can run here with the float64 reference: outputs and all gradients, for each variant and
dtype, padded and packed, in both directions of time, at even and odd sizes.

The exit code is 0 if every error is within its tolerance, else 1. On a GPU the Triton schedules also run in a CUDA
graph, and compiling their kernels takes minutes the first time; --quick has fewer of them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..functional import gru
from ..planning.candidates import DIRECTIONS, WAITING
from ..planning.cudnn import ONE_WAY
from ..planning.plan import KERNELS, SCHEDULES, choose
from ..planning.precision import multiplied_in_tf32
from ..planning.triton_state import interpreted, why_unusable
from ..reference import VARIANTS
from . import check_cases
from .check_cases import NUMBERS, Case, Numbers, Problem
from .check_report import Refusal, Result, json_report, report
from .machine import devices, devices_named
from .options import Refused, Unable
from .threads import one_thread

PTX_FOLDER = Path(__file__).resolve().parents[2] / "tests" / "ptx"
"""Executes compiled kernels on the CPU; in a checkout only."""

Compute = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Place:
    """A device, and how kernels run there: started one by one, in a CUDA graph, or executed from PTX on the CPU."""

    name: str
    device: torch.device
    schedules: tuple[str, ...] = SCHEDULES
    graph: bool = False
    kernels: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    @property
    def executes(self) -> bool:
        """Whether kernels are executed on the CPU, which takes long."""
        return self.device.type == "cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `trigru check`."""
    parser.add_argument("--quick", action="store_true", help="two layers, float32 and one 16-bit dtype")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--device", help="cpu, cuda:0, ... (default: all that are here)")
    for name, values in (("schedule", SCHEDULES), ("variant", VARIANTS), ("dtype", tuple(NUMBERS))):
        parser.add_argument(f"--{name}", choices=values, nargs="+", default=values, help="(default: all)")
    parser.add_argument(
        "--ptx",
        choices=("sm_80", "sm_90"),
        nargs="?",
        const="sm_90",
        metavar="TARGET",
        help="in a checkout: compile the kernels for a GPU that need not be there, sm_80 or sm_90 (default), and "
        "execute them on the CPU, which takes minutes",
    )


def run(args: argparse.Namespace) -> int:
    """Check, print. Returns 1 if an error is above its tolerance, or if nothing could be checked."""
    if args.ptx and args.device:
        raise Refused(f"--ptx: executes kernels on the CPU, without --device, got --device {args.device}")
    places = [ptx_place(args.ptx)] if args.ptx else list(find_places(args.device))
    names = tuple(n for n in args.dtype if not args.quick or n in ("fp32", "tf32", _half(places)))
    found: list[Result | Refusal] = []
    with one_thread():
        for place in places:
            for schedule in (name for name in place.schedules if name in args.schedule):
                _progress(f"{schedule} on {place.name}")
                for variant in args.variant:
                    for name in names:
                        found += check(place, schedule, variant, NUMBERS[name], quick=args.quick)
    _progress("")
    results = [x for x in found if isinstance(x, Result)]
    refusals = [x for x in found if isinstance(x, Refusal)]
    passed = bool(results) and all(result.passed for result in results)
    if args.json:
        print(json_report(results, refusals, passed))
    else:
        print("\n".join(report(results, refusals, checkout=PTX_FOLDER.is_dir())))
    return 0 if passed else 1


def find_places(device: str | None) -> Iterator[Place]:
    """Where schedules are checked: on the devices here, or on the one that is named; on a GPU in a CUDA graph too.

    Raises:
        Refused: `device` is no device's name, or is not here.
    """
    for here in devices() if device is None else devices_named(device):
        yield Place(str(here), here)
        if here.type == "cuda":
            yield Place(f"{here}, CUDA graph", here, KERNELS, graph=True)


def ptx_place(target: str) -> Place:
    """The CPU, executing what Triton compiles for `target`, with every access to memory checked.

    Raises:
        Unable: not in a checkout, a package that executing needs is missing, or Triton's interpreter is in force.
    """
    if not PTX_FOLDER.is_dir():
        raise Unable(f"--ptx: expected a checkout of the repository, with {PTX_FOLDER.name} in its tests")
    if (reason := why_unusable()) is not None:
        raise Unable(f"--ptx: {reason}")
    if interpreted():
        raise Unable("--ptx: TRITON_INTERPRET=1 is set, under which Triton compiles nothing")
    sys.path.insert(0, str(PTX_FOLDER.parent))
    try:
        ptx = importlib.import_module(PTX_FOLDER.name)
    except ImportError as error:
        raise Unable(f'--ptx: {error}; executing needs the extra: pip install -e ".[test]"') from None
    finally:
        sys.path.remove(str(PTX_FOLDER.parent))
    from ..kernels.launch import using

    def kernels() -> contextlib.AbstractContextManager[None]:
        return using(ptx.ptx_launcher(arch=int(target.removeprefix("sm_")), seed=0))

    return Place(f"PTX {target}", torch.device("cpu"), KERNELS, kernels=kernels)


def check(
    place: Place, schedule: str, variant: str, numbers: Numbers, *, quick: bool = False
) -> Iterator[Result | Refusal]:
    """Run a schedule there on every case that it can run, and compare; what the plan refuses comes as a Refusal."""
    if not _claimed(place, schedule, numbers):
        return
    row = {"where": place.name, "schedule": schedule, "variant": variant, "numbers": numbers.name}
    executed = place.executes and schedule in KERNELS
    cases = {
        (False, False): check_cases.CASES,
        (False, True): check_cases.QUICK_CASES,
        (True, False): check_cases.EXECUTED_CASES,
        (True, True): check_cases.EXECUTED_QUICK_CASES,
    }[executed, quick]
    refused: dict[str, None] = {}  # ordered
    ran: list[tuple[float, str]] = []
    with place.kernels(), multiplied_in_tf32(rnn=numbers.tf32, products=False):
        for case in cases:
            reason = _obstacle(place, schedule, variant, numbers, case)
            if reason is None:
                ran.append(_compare(place, schedule, variant, numbers, case))
            else:
                refused[reason] = None
    if ran:
        error, worst = max(ran, key=lambda pair: pair[0])
        yield Result(**row, cases=len(ran), error=error, tolerance=numbers.tolerance, worst=worst)
    for reason in refused:
        yield Refusal(**row, reason=reason)


def _claimed(place: Place, schedule: str, numbers: Numbers) -> bool:
    """Whether the combination means something: float64 is for torch operations and cuDNN, TF32 for a GPU."""
    if numbers.dtype == torch.float64:
        return schedule not in KERNELS and place.device.type != "mps"
    if numbers.tf32:
        return schedule in KERNELS or (schedule in ("auto", "cudnn") and place.device.type == "cuda")
    return True


def _obstacle(place: Place, schedule: str, variant: str, numbers: Numbers, case: Case) -> str | None:
    """Why the schedule cannot run the case there, or None."""
    for direction in DIRECTIONS:
        try:
            choose(
                schedule,
                place.device,
                numbers.dtype,
                case.batch,
                case.hidden_size,
                variant=variant,
                direction=direction,
            )
        except RuntimeError as error:
            return str(error).removeprefix(f"schedule {schedule!r} cannot run here: ")
    if schedule == "cudnn" and case.reverse:
        return ONE_WAY
    if place.device.type == "cuda" and torch.version.hip is None:
        old = torch.cuda.get_device_capability(place.device) < (8, 0)
        if old and (numbers.tf32 or numbers.dtype == torch.bfloat16):
            return f"{numbers.name} needs a GPU of compute capability 8.0 or newer"
    elif numbers.tf32 and place.device.type == "cuda":
        return "AMD GPUs have no TF32"
    if schedule in WAITING and place.executes and interpreted():
        return "Triton's interpreter runs programs one after another: they cannot wait for each other"
    return None


def _compare(place: Place, schedule: str, variant: str, numbers: Numbers, case: Case) -> tuple[float, str]:
    """The largest relative error of a case and where it is; infinite, with what was raised, if the schedule raises."""
    layer = check_cases.problem(case, variant, numbers.dtype)
    try:
        got = _results(place, schedule, layer, numbers.dtype)
    except Exception as error:  # whatever a compiler, a driver or a kernel raises: the other schedules still run
        first_line = next(iter(str(error).strip().splitlines()), "no message")
        return float("inf"), f"{type(error).__name__}: {first_line} ({case})"
    errors = {
        name: check_cases.relative_error(x, want) for x, (name, want) in zip(got, layer.expected.items(), strict=True)
    }
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst], f"{worst} ({case})"


def _results(place: Place, schedule: str, layer: Problem, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Outputs and gradients of the layer by the schedule, on the CPU."""
    leaves = layer.leaves(dtype, place.device)
    upstream = [x.to(dtype).to(place.device) for x in layer.upstream]
    case = layer.case
    call = functools.partial(
        gru,
        variant=layer.variant,  # type: ignore[arg-type]  # checked when it is called
        schedule=schedule,  # type: ignore[arg-type]  # checked when it is called
        reverse=case.reverse,
        batch_sizes=layer.batch_sizes,
        memory=case.memory,  # type: ignore[arg-type]  # checked when it is called
    )
    compute = functools.partial(check_cases.outputs_and_gradients, call, leaves, upstream)
    if place.device.type != "cuda":
        return tuple(x.cpu() for x in compute())
    with torch.cuda.device(place.device):
        results = _replayed(compute) if place.graph else compute()
        torch.cuda.synchronize()
    if why_unusable() is None:
        from ..kernels import watch

        watch.check()
    return tuple(x.cpu() for x in results)


def _replayed(compute: Compute) -> tuple[Tensor, ...]:
    """The results of `compute` by a replay of its CUDA graph, which must write all of them anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()  # compiles, which a capture must not
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = compute()
    for result in results:
        result.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    return tuple(result.clone() for result in results)


def _half(places: list[Place]) -> str:
    """The 16-bit dtype of --quick: bfloat16 where every GPU has it."""
    gpus = [place.device for place in places if place.device.type == "cuda"]
    old = torch.version.hip is None and any(torch.cuda.get_device_capability(gpu) < (8, 0) for gpu in gpus)
    return "fp16" if old else "bf16"


def _progress(text: str) -> None:
    """Show on a terminal what is being checked, in place of what was."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
