"""Suite "overhead": what the host does from the Python call to the launch, and what an import costs. No GPU needed.

T = B = 1 and H = 16, so that nn.GRU on the CPU computes next to nothing and its time is that of its own Python path and
dispatch. trigru takes its way to a kernel on CPU tensors, and a stub stands where the kernel would start.

With a GPU, rows of its own for calls on CUDA tensors, Triton's part included: all but its launcher, which does nothing
meanwhile. They are compared with 1000 additions in Python, for hosts differ: `times_additions`. In the same rounds as
forward+backward goes an empty autograd function with as many tensors, `EMPTY`: what torch alone takes for that, above
all for the thread of its own in which it goes back on a GPU. Nothing is taken off; the rows stand beside each other.
What it costs to wake that thread is the machine's (on a virtual one more than all else), so there are rows "on one
core" too, where waking a thread is no more than going over to it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

import trigru

from ..cases.case import Case
from ..measuring.compare import summed_up
from ..measuring.stats import quantiles
from ..measuring.timers import HostTimer, Timer, in_turns

# Narrower rows are first copied into wider ones by "resident" (multiples of 16) and "persistent" (16 bytes). At larger
# sizes nn.GRU has something to compute.
SIZE = 16
SCHEDULES = ("resident", "stepwise", "persistent", "torch")
EMPTY, BOTH = "an empty function", "forward+backward"
FEW, MANY = 1, 33  # steps of a call by "stepwise"; a step is the difference
CALLS = 20  # in a timed call, for one alone is too short for the clock
IMPORTS = {"tiny": 1, "quick": 3}
IMPORT = (
    "import time; a = time.perf_counter(); import torch; b = time.perf_counter(); import trigru; "
    "print(b - a, time.perf_counter() - b)"
)


class Stub:
    """A starter for `trigru.kernels.launch.using` that starts nothing, and notes when it was first called."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, *args: Any, **options: Any) -> None:
        """Instead of a launch."""
        if self.at is None:
            self.at = time.perf_counter()


def rows(budget_s: float, size: str, timer: Timer | None = None) -> Iterator[dict[str, Any]]:
    """A row for each schedule, without gradients and with; then one for the import."""
    for schedule in SCHEDULES:
        for direction in ("forward", "forward with gradients"):
            yield _call(schedule, direction, timer or HostTimer(), budget_s)
    if torch.cuda.is_available():
        with nothing_started():
            # CPU time, of the thread too in which autograd goes back.
            yield from _on_cuda(timer or HostTimer(time.process_time), budget_s)
    yield import_times(IMPORTS.get(size, 7))


def _call(schedule: str, direction: str, timer: Timer, budget_s: float) -> dict[str, Any]:
    """ "torch": the way of a call that is left to torch's own GRU, as short ones on a CPU are."""
    from trigru.kernels.launch import using

    dtype = "bf16" if schedule == "persistent" else "fp32"  # where float32 is not multiplied in TF32 it is not planned
    case = Case("overhead", "cpu", dtype, "torch", SIZE, 1, 1, schedule=schedule)
    ours = trigru.GRU(SIZE, SIZE, schedule="auto" if schedule == "torch" else schedule, dtype=case.number)  # type: ignore[arg-type]
    peer = nn.GRU(SIZE, SIZE, dtype=case.number)
    x = torch.zeros(1, 1, SIZE, dtype=case.number)

    def repeated(module: nn.Module) -> None:
        for _ in range(CALLS):
            module(x)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # there is no work to share
    try:
        with using(Stub()), torch.set_grad_enabled(direction != "forward"):
            taken = in_turns(timer, [lambda: repeated(ours), lambda: repeated(peer)], budget_s)
            until_launch = [_until_launch(ours, x) for _ in range(50)]
    finally:
        torch.set_num_threads(threads)
    per_call = [tuple(seconds / CALLS for seconds in turn) for turn in taken]
    launched = [seconds for seconds in until_launch if seconds is not None]
    row = {**case.fields(), "direction": direction, "mode": "eager", "peer": "nn.GRU", **summed_up(per_call)}
    row["times_nn_gru"] = row["ours_ms"] / row["peer_ms"]
    row["to_launch_ms"] = quantiles(launched)["p20"] * 1e3 if launched else None
    return row


@contextlib.contextmanager
def nothing_started() -> Iterator[None]:
    """Within the block Triton does all that it does for a launch, but for the call of its launcher."""
    from triton.compiler import CompiledKernel

    from trigru.kernels import launch

    before: Any = CompiledKernel.__dict__["run"]
    CompiledKernel.run = property(lambda kernel: lambda *arguments: None)  # type: ignore[assignment]
    launch.forget()
    try:
        yield
    finally:
        CompiledKernel.run = before
        launch.forget()


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Within the block all threads of the process share a core. On Linux alone."""
    cores = os.sched_getaffinity(0)
    _place({max(cores)})
    try:
        yield
    finally:
        _place(cores)


def _place(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cores)


class Empty(torch.autograd.Function):
    """A function of as many tensors as a layer's, as many results, kept tensors and derivatives, all of them made and
    nothing computed."""

    @staticmethod
    def forward(ctx, input, hx, *weights):  # type: ignore[no-untyped-def]
        """(output, h_n)."""
        ctx.set_materialize_grads(False)
        output, h_n = torch.empty_like(input), torch.empty_like(hx)
        ctx.save_for_backward(input, hx, *weights, torch.empty_like(input), output)
        return output, h_n

    @staticmethod
    def backward(ctx, grad_output, grad_h_n):  # type: ignore[no-untyped-def]
        """Derivatives by the weights."""
        _, _, *weights = ctx.saved_tensors[:6]
        return None, None, *map(torch.empty_like, weights)


def _on_cuda(timer: Timer, budget_s: float) -> Iterator[dict[str, Any]]:
    both: dict[Case, Callable[[], None]] = {}
    for schedule in SCHEDULES[:3]:
        case = Case("overhead", "cuda", "fp16", "torch", SIZE, 1, FEW, schedule=schedule)
        options = {"schedule": schedule, "dtype": case.number, "device": "cuda"}
        module = trigru.GRU(case.hidden_size, case.hidden_size, **options)  # type: ignore[arg-type]
        weights = list(module.parameters())
        few, many = (
            torch.zeros(steps, case.batch, case.hidden_size, dtype=case.number, device="cuda") for steps in (FEW, MANY)
        )
        both[case] = functools.partial(_forward_and_backward, module, few, weights)
        taken = _against_additions(timer, [functools.partial(_forward, module, few)], budget_s)
        yield _additions_row(case, "forward", [(mine, unit) for mine, unit in taken])
        if schedule == "stepwise":
            for direction, call, *more in (("forward", _forward), (BOTH, _forward_and_backward, weights)):
                calls = [functools.partial(call, module, x, *more) for x in (few, many)]
                taken = _against_additions(timer, calls, budget_s)
                steps = [((long - short) / (MANY - FEW), unit) for short, long, unit in taken]
                yield _additions_row(case, f"{direction}, a step", steps)
    state = torch.zeros_like(few)
    empty = functools.partial(_forward_and_backward, lambda x: Empty.apply(x, state, *weights), few, weights)
    both[Case("overhead", "cuda", "fp16", "torch", SIZE, 1, FEW, schedule=EMPTY)] = empty
    yield from _together(timer, both, BOTH, budget_s)
    if hasattr(os, "sched_setaffinity"):
        with on_one_core():
            yield from _together(timer, both, f"{BOTH}, on one core", budget_s)


def _together(
    timer: Timer, calls: dict[Case, Callable[[], None]], direction: str, budget_s: float
) -> Iterator[dict[str, Any]]:
    """Rows of calls in the same rounds, the last of them the empty function."""
    taken = _against_additions(timer, list(calls.values()), budget_s * len(calls))
    rows = [_additions_row(case, direction, [(turn[i], turn[-1]) for turn in taken]) for i, case in enumerate(calls)]
    for row in rows:
        yield {**row, "times_empty": row["ours_ms"] / rows[-1]["ours_ms"]}


def _forward(module: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        module(x)


def _forward_and_backward(
    call: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], x: torch.Tensor, weights: Sequence[torch.Tensor]
) -> None:
    """As a training step goes, with no gradients before: adding to those that are there is torch's."""
    output = call(x)[0]
    output.backward(output.detach())
    for weight in weights:
        weight.grad = None


def _against_additions(timer: Timer, calls: Sequence[Callable[[], None]], budget_s: float) -> list[tuple[float, ...]]:
    """Seconds of each call, and at the end of 1000 additions, in rounds."""

    def additions() -> None:
        total = 0
        for i in range(1000):
            total = total + i

    taken = in_turns(timer, [functools.partial(_repeated, call) for call in (*calls, additions)], budget_s)
    return [tuple(seconds / CALLS for seconds in turn) for turn in taken]


def _repeated(call: Callable[[], None]) -> None:
    for _ in range(CALLS):
        call()


def _additions_row(case: Case, direction: str, rounds: list[tuple[float, float]]) -> dict[str, Any]:
    row = {**case.fields(), "direction": direction, "mode": "eager", "peer": "additions", **summed_up(rounds)}
    row["times_additions"] = row["ours_ms"] / row["peer_ms"]
    return row


def _until_launch(module: nn.Module, x: torch.Tensor) -> float | None:
    from trigru.kernels.launch import using

    stub = Stub()
    with using(stub):
        start = time.perf_counter()
        module(x)
    return None if stub.at is None else stub.at - start


def import_times(repeats: int) -> dict[str, Any]:
    """Seconds that `import torch` takes in a new process, and `import trigru` after it: medians."""
    times = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        times.append(tuple(float(seconds) for seconds in done.stdout.split()))
    of_torch, of_trigru = (quantiles(column)["p50"] for column in zip(*times, strict=True))
    return {
        "suite": "overhead",
        "direction": "import",
        "peer": "torch",
        "rounds": repeats,
        "ours_ms": of_trigru * 1e3,
        "peer_ms": of_torch * 1e3,
        "ratio": of_torch / of_trigru,
    }
