"""Launches for exchange_model.py: who publishes what, and who waits for it before."""

from __future__ import annotations

from typing import NamedTuple


class Value(NamedTuple):
    """One element at one time: the number of the store that gives it to its place."""

    place: tuple
    version: int = 1


class Publish(NamedTuple):
    values: tuple[Value, ...]
    counter: tuple


class Wait(NamedTuple):
    values: tuple[Value, ...]
    counters: tuple[tuple, ...]


Plan = list[list[Publish | Wait]]


def _tile(name: str, *at: int, units: range, version: int = 1) -> tuple[Value, ...]:
    return tuple(Value((name, *at, unit), version) for unit in units)


def layer(programs: int, steps: int, elements: int, tiles: int = 1) -> Plan:
    """A layer with one exchange a step, the next tile's worked at while one's is on its way."""
    plan: Plan = [[] for _ in range(programs)]
    for p, tasks in enumerate(plan):
        own, everyone = range(p * elements, (p + 1) * elements), range(programs * elements)
        for t in range(steps):
            for b in range(tiles):
                if t:
                    tasks.append(Wait(_tile("h", b, t - 1, units=everyone), ((b, t - 1),)))
                tasks.append(Publish(_tile("h", b, t, units=own), (b, t)))
    return plan


def two_exchanges(programs: int, steps: int, elements: int, one_place: bool = False, tiles: int = 1) -> Plan:
    """A layer that exchanges r * h too; `one_place`: in the same memory at every step, as the walking kernels do. All
    tiles of a program are worked at up to r * h, then all of them to the step's end."""
    plan: Plan = [[] for _ in range(programs)]
    for p, tasks in enumerate(plan):
        own, everyone = range(p * elements, (p + 1) * elements), range(programs * elements)
        for t in range(steps):
            at, version = ((0,), t + 1) if one_place else ((t,), 1)
            for b in range(tiles):
                if t:
                    tasks.append(Wait(_tile("h", b, t - 1, units=everyone), (("h", b, t - 1),)))
                tasks.append(Publish(_tile("rh", b, *at, units=own, version=version), ("rh", b, t)))
            for b in range(tiles):
                tasks.append(Wait(_tile("rh", b, *at, units=everyone, version=version), (("rh", b, t),)))
                tasks.append(Publish(_tile("h", b, t, units=own), ("h", b, t)))
    return plan


def stack(layers: int, programs: int, steps: int, elements: int, both: bool = False) -> Plan:
    """Layers in one launch, so many programs each: a step waits for the layer's own last one and for the one below; or
    in back-propagation, which is the same with layers and steps counted from the other end, for the one above. `both`:
    exchanges of a step, of r * h too."""
    plan: Plan = []
    for i in range(layers):
        for p in range(programs):
            tasks: list[Publish | Wait] = []
            own, everyone = range(p * elements, (p + 1) * elements), range(programs * elements)
            for t in range(steps):
                needed = [(i, t - 1)] * (t > 0) + [(i - 1, t)] * (i > 0)
                if needed:
                    tasks.append(Wait(sum((_tile("h", *at, units=everyone) for at in needed), ()), tuple(needed)))
                if both:
                    tasks.append(Publish(_tile("rh", i, t, units=own), ("rh", i, t)))
                    tasks.append(Wait(_tile("rh", i, t, units=everyone), (("rh", i, t),)))
                tasks.append(Publish(_tile("h", i, t, units=own), (i, t)))
            plan.append(tasks)
    return plan


SMALL = {
    "2 programs, 3 steps": layer(2, 3, 1),
    "2 programs, 2 elements each": layer(2, 2, 2),
    "two exchanges a step": two_exchanges(2, 2, 1),
    "two batch tiles": layer(2, 2, 1, tiles=2),
    "two batch tiles of two exchanges": two_exchanges(2, 1, 1, tiles=2),
    "a stack of 2 layers": stack(2, 1, 3, 1),
    "a stack of 3 layers": stack(3, 1, 2, 1),
    "a stack of 2 layers of two exchanges": stack(2, 1, 2, 1, both=True),
}
ALL = SMALL | {
    "1 program, 3 steps, 3 elements": layer(1, 3, 3),
    "2 programs, 3 steps, 2 elements each": layer(2, 3, 2),
    "3 programs, 2 steps": layer(3, 2, 1),
    "3 programs, 3 steps": layer(3, 3, 1),
    "2 programs, 3 steps of two exchanges, 2 elements each": two_exchanges(2, 3, 2),
    "3 programs, two exchanges a step": two_exchanges(3, 2, 1),
    "2 programs, 3 steps, three batch tiles": layer(2, 3, 1, tiles=3),
    "2 programs, two exchanges a step, two batch tiles": two_exchanges(2, 2, 1, tiles=2),
    "a stack of 3 layers, 3 steps": stack(3, 1, 3, 1),
    "a stack of 2 layers, 2 steps, 2 programs each": stack(2, 2, 2, 1),
    "a stack of 2 layers of two exchanges, 3 steps": stack(2, 1, 3, 1, both=True),
}
BEYOND = {
    "5 programs, 6 steps, 3 elements each, two batch tiles": layer(5, 6, 3, tiles=2),
    "4 programs, 6 steps of two exchanges, 2 elements each": two_exchanges(4, 6, 2),
    "a stack of 4 layers, 2 programs each, 5 steps": stack(4, 2, 5, 2),
    "a stack of 3 layers of two exchanges, 2 programs each, 4 steps": stack(3, 2, 4, 2, both=True),
}
WALKING = "two exchanges a step, one in the same memory at every step"  # as the walking kernels have it
IN_ONE_PLACE = {WALKING: two_exchanges(2, 2, 1, one_place=True)}
THREE_STEPS = {f"3 steps, {WALKING}": two_exchanges(2, 3, 1, one_place=True)}
