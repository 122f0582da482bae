"""The parts of the first minutes on a GPU; each leaves rows, and goes on where an earlier run was cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from trigru.kernels import persistent
from trigru.kernels.config import Protocol

from ..measuring.conditions import multiplied_in
from ..measuring.graphs import graphed
from ..suites import pingpong as game
from . import shapes
from .measuring import TOLERANCE, error, forward, inputs, modules, results, times, training
from .rows import Rows, attempt
from .shapes import Shape

MICRO = 1e6
WORKERS = 12  # processes that compile ahead
PROTOCOLS: tuple[Protocol, ...] = ("data", "flags")
EVERY_SCHEDULE = ("persistent", "resident", "walking", "stepwise")


class Parts:
    """Every public method is a part. tiny: sizes that take no time."""

    def __init__(self, rows: Rows, tiny: bool):
        self.rows, self.tiny = rows, tiny
        self.layers = shapes.TINY_LAYERS if tiny else shapes.LAYERS
        self.steps_ = shapes.TINY_STEPS if tiny else shapes.STEPS
        self.protocols_ = shapes.TINY_STEPS if tiny else shapes.PROTOCOLS
        self.schedules_ = shapes.TINY_STEPS if tiny else shapes.SCHEDULES
        self.lengths = shapes.TINY_LENGTHS if tiny else shapes.LENGTHS

    def warm(self, share: str | None = None) -> None:
        """Compile what the other parts need, in processes side by side: Triton keeps it on disk. share: "k/n"."""
        if share is None:
            count = 2 if self.tiny else min(WORKERS, os.cpu_count() or 1)
            command = [sys.executable, "-m", "trigru.bench.first", *(["--tiny"] if self.tiny else [])]
            command += ["--out", str(self.rows.path.parent), "warm"]
            running = [subprocess.Popen([*command, f"{k}/{count}"]) for k in range(count)]
            if broken := sum(process.wait() != 0 for process in running):
                raise RuntimeError(f"{broken} of {count} processes that compile have failed")
            return
        wanted = [(shape, "auto") for shape in self.layers]
        wanted += [(shape, "persistent") for shape in (*self.steps_, *self.protocols_)]
        wanted += [(shape, schedule) for shape in self.schedules_ for schedule in EVERY_SCHEDULE]
        first, every = map(int, share.split("/"))
        for shape, schedule in list(dict.fromkeys(wanted))[first::every]:
            _, failed = attempt(partial(_once, shape, schedule))
            if failed and schedule == "auto":
                print(shape, failed, flush=True)

    def layer(self) -> None:
        """Is it right, and faster than torch's own: forward and training, in a graph and eager."""
        _each(self.layers, self._layer)

    def _layer(self, shape: Shape) -> None:
        named = shape._asdict()
        if self.rows.have(part="layer", what="training", mode="eager", **named):
            return
        ours, theirs = modules(shape)
        wrong, failed = attempt(lambda: error(ours, shape, shape.variant))
        if wrong is None or not wrong < TOLERANCE[shape.numbers]:
            self.rows.write(part="layer", **named, error=wrong, failed=failed or "above the tolerance")
            return
        peer_wrong = attempt(lambda: error(theirs, shape, "torch"))[0]
        x, grad = inputs(shape, shape.batch, shape.steps)
        scale = MICRO / shape.steps / shape.layers
        for what in ("forward", "training"):
            pair = [_call(what, module, x, grad) for module in (ours, theirs)]
            for mode in ("graph", "eager"):
                row: dict[str, Any] = {"part": "layer", "what": what, "mode": mode, **named}
                found, failed = attempt(partial(_paired, pair, mode))
                if found is None:
                    self.rows.write(**row, failed=failed)
                    continue
                mine, peer = found
                row |= {"ours_us": mine * scale, "torch_us": peer * scale, "ratio": peer / mine}
                self.rows.write(**row, error=wrong, torch_error=peer_wrong)

    def steps(self) -> None:
        """A step's time alone, in a graph: the difference of two lengths, one launch each."""
        _each(self.steps_, partial(self._step, "steps"))

    def protocols(self) -> None:
        """The same, by each protocol of the exchange."""
        for protocol in PROTOCOLS:
            with persistent.exchanging_by(protocol):
                _each(self.protocols_, partial(self._step, "protocols", protocol=protocol))

    def _step(self, part: str, shape: Shape, **fields: str) -> None:
        named = {"part": part, **shape._asdict(), **fields}
        if self.rows.have(**named):
            return
        ours, _ = modules(shape, "persistent")
        for what in ("forward", "training"):
            found, failed = attempt(partial(_of_lengths, ours, shape, what, self.lengths))
            if found is None:
                self.rows.write(**named, what=what, failed=failed)
                return
            short, long = self.lengths
            self.rows.write(**named, what=what, us=(found[1] - found[0]) * MICRO / (long - short))

    def host(self) -> None:
        """The host's time of a call: the GPU has next to nothing to do."""
        warm_ups, rounds = (2, 3) if self.tiny else (30, 200)
        for schedule, hidden_size in (("persistent", 256), ("resident", 64), ("stepwise", 256), ("nn.GRU", 256)):
            shape = Shape("torch", "tf32", 8, 40 if self.tiny else hidden_size, 1, 1)
            with multiplied_in(shape.numbers):
                ours, theirs = modules(shape, "auto" if schedule == "nn.GRU" else schedule)
                x, grad = inputs(shape, 1, 1)
                for what in ("forward", "training"):
                    if self.rows.have(part="host", schedule=schedule, what=what):
                        continue
                    call = _call(what, theirs if schedule == "nn.GRU" else ours, x, grad)
                    taken, failed = attempt(partial(_host_seconds, call, warm_ups, rounds))
                    us = None if taken is None else taken * MICRO
                    self.rows.write(part="host", schedule=schedule, what=what, host_us=us, failed=failed)

    def pingpong(self) -> None:
        """The round trip of the exchange by each kind of access, an empty kernel's launch, a copy."""
        few, many = shapes.TINY_ROUNDS if self.tiny else shapes.ROUNDS
        repeats = 2 if self.tiny else 15
        for access in game.ACCESSES:
            if self.rows.have(part="pingpong", access=access):
                continue
            taken, failed = attempt(partial(_more_rounds, few, many, access, repeats))
            us = None if taken is None else taken * MICRO / (many - few)
            self.rows.write(part="pingpong", access=access, round_trip_us=us, failed=failed)
        cells, _ = game.new_cells(1, "cuda")
        launches = 4 if self.tiny else 200

        def launch_all() -> None:
            for _ in range(launches):
                game.launch_nothing(cells)

        (seconds,) = times([_recorded(launch_all)])
        self.rows.write(part="launch", in_graph_us=seconds * MICRO / launches)
        flood = torch.empty(1 << (20 if self.tiny else 30), device="cuda", dtype=torch.uint8)
        other = torch.empty_like(flood)
        (seconds,) = times([lambda: other.copy_(flood)])
        self.rows.write(part="copy", bytes_per_second=2 * flood.numel() / seconds)

    def schedules(self) -> None:
        """Every schedule on the same layer, in a graph: for the plan's constants."""
        for schedule in EVERY_SCHEDULE:
            _each(self.schedules_, partial(self._schedule, schedule=schedule))

    def _schedule(self, shape: Shape, schedule: str) -> None:
        ours, _ = modules(shape, schedule)
        x, grad = inputs(shape, shape.batch, shape.steps)
        for what in ("forward", "training"):
            named = {"part": "schedules", "schedule": schedule, "what": what, **shape._asdict()}
            if self.rows.have(**named):
                continue
            call = _call(what, ours, x, grad)
            found, failed = attempt(partial(_paired, [call], "graph"))
            us = None if found is None else found[0] * MICRO / shape.steps
            self.rows.write(**named, ours_us=us, failed=failed)
            if failed:  # what forward refuses, training does
                return


NAMES = tuple(name for name in vars(Parts) if not name.startswith("_"))


def _each(wanted: Sequence[Shape], measure: Callable[[Shape], None]) -> None:
    for shape in wanted:
        with multiplied_in("tf32" if shape.numbers == "tf32" else "ieee"):
            measure(shape)


def _call(what: str, module: Any, x: Any, grad: Any) -> Callable[[], Any]:
    return training(module, x, grad) if what == "training" else forward(module, x)


def _paired(calls: list[Callable[[], Any]], mode: str) -> list[float]:
    """Seconds of each; in graphs, torch's own, which comes second, as it is where it cannot be recorded."""
    if mode == "graph":
        ours, *others = calls
        calls = [_recorded(ours)]
        for call in others:
            calls.append(attempt(partial(_recorded, call))[0] or call)
    return times(calls)


def _of_lengths(module: Any, shape: Shape, what: str, lengths: Sequence[int]) -> list[float]:
    """Seconds in a graph of sequences of so many steps."""
    return times([_recorded(_call(what, module, *inputs(shape, shape.batch, steps))) for steps in lengths])


def _recorded(call: Callable[[], Any]) -> Callable[[], Any]:
    return graphed(lambda: call)


def _once(shape: Shape, schedule: str) -> None:
    """Everything that is compiled for a shape, run once on few steps."""
    with multiplied_in("tf32" if shape.numbers == "tf32" else "ieee"):
        ours, _ = modules(shape, schedule)
        x, grad = inputs(shape, shape.batch, 2)
        results(ours, x, grad)
        forward(ours, x)()
        torch.cuda.synchronize()


def _host_seconds(call: Callable[[], Any], warm_ups: int, rounds: int) -> float:
    for _ in range(warm_ups):
        call()
    torch.cuda.synchronize()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
        torch.cuda.synchronize()
    return median(taken)


def _more_rounds(few: int, many: int, access: str, repeats: int) -> float:
    """Seconds of the rounds that the longer game has more."""
    return _played(many, access, repeats) - _played(few, access, repeats)


def _played(rounds: int, access: str, repeats: int) -> float:
    """Median seconds of a game."""
    taken = []
    for _ in range(repeats + 1):
        cells, word = game.new_cells(rounds, "cuda")
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        game.play(cells, word, access=access)
        end.record()
        torch.cuda.synchronize()
        game.check(cells, word)
        taken.append(start.elapsed_time(end) / 1e3)
    return median(taken[1:])
