"""Time the candidates that can run a call, and remember which is the fastest that is right: for `trigru.tune`.

Each candidate's results, gradients included, are compared with those of the first, which is what the model takes,
before anything is timed; a wrong one is refused. Without gradients a forward call is timed. With them it is a training
step: first with each forward, then with each backward behind the fastest of them.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .bench.measuring.timers import Timer, in_turns, timer_for
from .layer import Call, Layer, Records
from .operators import compute
from .planning import measured
from .planning.candidates import DIRECTIONS
from .planning.measured import Entry, Key, Row
from .planning.plan import Site, precision_of
from .planning.stages import staged
from .planning.ways import Way, parts, ways
from .schedules import stack
from .schedules.reserve import shares_output

# ||got - first|| / ||first||: of two that are right each may be half of it, or more, from the exact results.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 6e-2}
IN_TF32 = 6e-3
_one_at_a_time = threading.Lock()


class NotFinite(RuntimeError):
    """Results that cannot be compared."""


def measure(records: Records, site: Site, timer: Timer | None = None, seconds: float = 1.0) -> dict[Key, Entry]:
    """Time the candidates for a call, with gradients or without as `site.recording` says, and take what was found into
    `trigru.planning.measured.TABLE`.

    Args:
        records: the call. Gradients are taken of what requires them.
        site: where it runs.
        timer: one of `trigru.bench.measuring.timers`; None: CUDA's events on a GPU, the host's clock on a CPU.
        seconds: about how long candidates are timed, without what it takes to compile and to compare them.

    Returns:
        The new entries; none where there is one candidate only.

    Raises:
        NotFinite: the results of the first candidate are no numbers.
        Exception: whatever the first candidate raises.
    """
    kind, on_gpu = site.device.type, site.device.type == "cuda"
    with (
        _one_at_a_time,
        torch.random.fork_rng([site.device] if on_gpu else []),
        torch.cuda.device(site.device) if on_gpu else contextlib.nullcontext(),
        torch.autocast(kind, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(_itself, _itself),  # a checkpoint counts what is saved within it
    ):
        found = _Measurement(records, site, timer or timer_for(kind), seconds).entries()
    measured.TABLE.update(found)
    return found


def _itself(x: Tensor) -> Tensor:
    return x


class _Measurement:
    """The candidates of one call, and what comes of them."""

    def __init__(self, records: Records, site: Site, timer: Timer, seconds: float) -> None:
        self.records, self.site, self.timer, self.seconds = records, site, timer, seconds
        self.refused: dict[str, str] = {}
        precision = precision_of(site.dtype)
        self.keys = [measured.key_of(records.layer, site, direction, precision) for direction in DIRECTIONS]
        in_tf32 = precision == "tf32" and site.device.type == "cuda"
        self.tolerance = IN_TF32 if in_tf32 else TOLERANCE[site.dtype]

    def entries(self) -> dict[Key, Entry]:
        layer, site = self.records.layer, self.site
        listed = list(ways(layer, site))
        self.first = self._run(listed[0]).results()
        if not all(bool(x.isfinite().all()) for x in self.first):
            raise NotFinite("results that are no numbers cannot be compared: give another input, or other weights")
        entries: dict[Key, Entry] = {}
        times = self._timed(listed)
        apart = [way for way in times if not way.whole]
        if site.recording and apart:
            best = min(apart, key=times.__getitem__)
            backwards = self._timed([best, *(best._replace(backward=part) for part in parts(layer, site, "backward"))])
            if len(backwards) > 1:
                times[best] *= min(backwards.values()) / backwards[best]  # of the same rounds
                entries[self.keys[1]] = self._entry(backwards, 1)
        if len(times) > 1:
            entries[self.keys[0]] = self._entry(times, 0)
        return entries

    def _run(self, way: Way) -> Run:
        return Run(self.records, way, self.site.recording)

    def _timed(self, listed: Iterable[Way]) -> dict[Way, float]:
        """Seconds of each that is right; 0 for a single one, which is compared with nothing."""
        right = [way for way in dict.fromkeys(listed) if self._is_right(way)]
        if len(right) < 2:
            return dict.fromkeys(right, 0.0)
        taken = in_turns(self.timer, [self._run(way) for way in right], self.seconds)
        return {way: statistics.median(times) for way, times in zip(right, zip(*taken, strict=True), strict=True)}

    def _is_right(self, way: Way) -> bool:
        """Whether its results are those of the first; else it is refused, with a warning."""
        name = named(way, self.site.recording)
        if name in self.refused:
            return False
        try:
            found = self._run(way).results()
            error = max(_error(x, first) for x, first in zip(found, self.first, strict=True))
        except Exception as raised:  # whatever a compiler, a driver or a kernel raises: the others still run
            message = next(iter(str(raised).strip().splitlines()), "no message")
            self.refused[name] = f"{type(raised).__name__}: {message}"
        else:
            if error <= self.tolerance:
                return True
            self.refused[name] = f"its results are {error:.1e} from those of the first candidate"
        warnings.warn(f"trigru: {name} is refused: {self.refused[name]}", RuntimeWarning, stacklevel=2)
        return False

    def _entry(self, times: dict[Way, float], direction: int) -> Entry:
        rows = [Row(way[direction].schedule, way[direction].config, seconds) for way, seconds in times.items()]
        return Entry(tuple(sorted(rows, key=lambda row: row.seconds)), dict(self.refused))


def named(way: Way, recording: bool) -> str:
    """A candidate's name: its schedules, where forward and backward are not the same."""
    plans = way if recording and not way.whole else way[:1]
    return " and ".join(dict.fromkeys(Row(plan.schedule, plan.config, 0.0).name for plan in plans))


def _error(got: Tensor, want: Tensor) -> float:
    """Relative; infinite where there is no number."""
    got, want = got.double(), want.double()
    if torch.equal(got, want):
        return 0.0
    error = float((got - want).norm() / want.norm())
    return error if error == error else float("inf")


class Run:
    """A call by one candidate: what is compared, and then timed."""

    def __init__(self, records: Records, way: Way, recording: bool) -> None:
        self.layer, weights, call = records
        self.way, self.recording = way, recording
        leaves = [x.detach().requires_grad_(recording and x.requires_grad) for x in (call.input, call.hx, *weights)]
        self.call, self.weights = call._replace(input=leaves[0], hx=leaves[1]), leaves[2:]
        self.wanted = [x for x in leaves if x.requires_grad]
        features = self.layer.hidden_size * self.layer.directions
        torch.manual_seed(0)
        self.upstream = [stack.new_output(self.layer, call, features).normal_(), torch.randn_like(call.hx)]

    def results(self) -> tuple[Tensor, ...]:
        """Outputs, and gradients; dropout draws the same for every candidate."""
        torch.manual_seed(0)
        return self()

    def __call__(self) -> tuple[Tensor, ...]:
        if not self.recording:
            with torch.no_grad():
                return self._outputs()
        with torch.enable_grad():
            outputs = self._outputs()
        return (*[x.detach() for x in outputs], *torch.autograd.grad(outputs, self.wanted, self.upstream))

    def _outputs(self) -> tuple[Tensor, Tensor]:
        if self.way.forward.schedule == "torch":
            return compute.by_torch(self.layer, self.weights, self.call)
        if self.recording:
            input, hx, batch_sizes, *_ = self.call
            return _Trial.apply(self.layer, self.way, batch_sizes, input, hx, *self.weights)
        return _forward(self.layer, self.way, self.weights, self.call, self.layer.num_layers)[:2]


def _forward(layer: Layer, way: Way, weights: list[Tensor], call: Call, first_kept: int) -> stack.Result:
    return stack.forward(layer, weights, call, staged(layer.num_layers, layer.directions, way.forward), first_kept)


class _Trial(torch.autograd.Function):
    """As the operator's own, with a plan of one's choice for backward too."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, way: Way, batch_sizes: Tensor | None, *leaves: Tensor) -> tuple[Tensor, Tensor]:
        input, hx, *weights = leaves
        result = _forward(layer, way, weights, Call(input, hx, batch_sizes), 0)
        states = [result.output] if shares_output(hx.device) else []
        ctx.save_for_backward(*leaves, *result.reserve, *states)
        ctx.given = (layer, way, batch_sizes, len(leaves))
        return result.output, result.h_n

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        layer, way, batch_sizes, count = ctx.given
        input, hx, *others = ctx.saved_tensors
        call, weights, reserve = Call(input, hx, batch_sizes), others[: count - 2], others[count - 2 :]
        by = staged(layer.num_layers, layer.directions, way.backward, "backward")
        wanted = stack.Wanted(grads[0], grads[1], ctx.needs_input_grad[3:])
        return None, None, None, *stack.backward(layer, weights, call, by, 0, reserve, wanted)
