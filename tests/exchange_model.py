"""The protocols of trigru/kernels/exchange.py as a model: every state of a small launch, and whether one breaks a
property that its docstring names.

    python tests/exchange_model.py [--walks 2000]

A launch is a few programs, each a straight line of instructions: store a word, add to a counter, look at words until
none is the pattern, look at a counter until it is full, load words. They interleave one instruction, and within a look
or a load one word, at a time, in every order.

Memory is as weak as PTX allows. A store is made once, and each reader sees it when it likes: a load gives what was
stored last or anything before, but nothing older than what its program has seen of this word, and nothing older than
what it has acquired through a counter. So stores become visible late, in any order, to each program in another order.
A program's own stores are no exception: other threads of it read them. An addition to a counter sees the one before it,
passes on what its program has stored or acquired, and what was passed on before.

A wait may be given up at any look in vain, and may go on for ever: so a model with expiry has every length of time.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from exchange_plans import ALL, BEYOND, IN_ONE_PLACE, THREE_STEPS, Plan, Publish, Value, Wait, layer

PROPERTIES = {
    "never stale": "what a program uses is the value of that step, unless it has given up waiting, or, where memory "
    "serves several steps, any has",
    "never torn": "no part of an element that a program uses is older than another",
    "no deadlock": "where no wait is given up, all programs can still end, from every state",
    "bounded": "where waits are given up, all programs can still end, from every state, even if one never publishes",
    "told": "where a wait was given up, the host knows when all have ended",
}
PATTERN, JUNK, VALUE = "pattern", "junk", "value"
# A name for each step of a protocol left out, and the property that it must break.
MUTATIONS = {
    "data": {
        "no wait": "never stale",
        "one element looked at": "never stale",
        "pattern not filled": "never stale",
        "one place for all steps": "never stale",
        "a word stored in halves": "never torn",
        "a NaN stored as the pattern": "no deadlock",
        "what is missing not looked at again": "no deadlock",
        "a step published behind its own wait": "no deadlock",
        "no clock": "bounded",
        "error word not set": "told",
        "host not told": "told",
    },
    "flags": {
        "no wait": "never stale",
        "no acquire": "never stale",
        "no release": "never stale",
        "no barrier": "never stale",
        "flag before value": "never stale",
        "counter not zeroed": "never stale",
        "one program not waited for": "never stale",
        "a step published behind its own wait": "no deadlock",
        "no clock": "bounded",
        "error word not set": "told",
        "host not told": "told",
    },
}


class Instruction(NamedTuple):
    kind: str  # "look", "load", "store", "add", "poll", "end"
    words: tuple[tuple[int, int], ...] = ()  # of a look or load: number of the word, and of the store that it is to see
    elements: tuple[tuple[int, ...], ...] = ()  # which of them belong together, as positions in `words`
    number: int = 0  # of the store or of the counter
    arrivals: int = 0  # that a counter must have


class Program(NamedTuple):
    at: int  # its next instruction
    seen: tuple[int | None, ...]  # by this look or load: of each word the version, or None: not yet
    known: int  # stores that it has seen or acquired, a bit each
    stored: int  # stores that it has made
    given_up: bool


class State(NamedTuple):
    programs: tuple[Program, ...]
    counters: tuple[tuple[int, ...], ...]  # of each the additions: the stores that each passes on
    error: bool  # the error word
    told: bool  # the host's word


class Broken(Exception):
    """A property that does not hold."""


@dataclass
class Model:
    """A plan by a protocol. silent: a program whose stores and additions come to nothing."""

    plan: Plan
    protocol: str
    expiry: bool = False
    mutation: str | None = None
    silent: int | None = None
    lines: list[list[Instruction]] = field(init=False)

    def __post_init__(self) -> None:
        if self.mutation is not None and self.mutation not in MUTATIONS[self.protocol]:
            raise ValueError(f"mutation: expected one of {list(MUTATIONS[self.protocol])}, got {self.mutation!r}")
        self.versions: list[list[int]] = []  # of each word, the stores that are made to it, in order
        self._numbers: dict[object, int] = {}
        self._counters: dict[tuple, int] = {}
        self._arrivals: dict[tuple, int] = {}
        self.stores = 0
        plan = [self._tasks(tasks) for tasks in self.plan]
        for tasks in plan:
            for task in tasks:
                if isinstance(task, Publish):
                    self._arrivals[task.counter] = self._arrivals.get(task.counter, 0) + 1
                    self._counters.setdefault(task.counter, len(self._counters))
        publishing = [[self._published(task) for task in tasks] for tasks in plan]
        self.reused = any(len(stores) > 1 for stores in self.versions)  # whether memory serves several steps
        self.lines = [
            [one for task, made in zip(tasks, all_made, strict=True) for one in made or self._waited(task)]
            + [Instruction("end")]
            for tasks, all_made in zip(plan, publishing, strict=True)
        ]

    def _tasks(self, tasks: list[Publish | Wait]) -> list[Publish | Wait]:
        if self.mutation == "one place for all steps":  # the tile of step t, in ("h", b, t, unit), where step 0's was
            return [
                task._replace(values=tuple(Value((p[0], p[1], 0, p[3]), p[2] + 1) for p, _ in task.values))
                for task in tasks
            ]
        if self.mutation == "a step published behind its own wait":
            first = next(i for i, task in enumerate(tasks) if isinstance(task, Publish))
            return [
                *tasks[:first],
                Wait(tasks[first].values, (tasks[first].counter,)),
                *tasks[first:],
            ]
        return tasks

    def _words(self, value: Value) -> list[int]:
        parts = 2 if self.mutation == "a word stored in halves" else 1
        return [self._numbers.setdefault((value.place, part), len(self._numbers)) for part in range(parts)]

    def _published(self, task: Publish | Wait) -> list[Instruction]:
        if isinstance(task, Wait):
            return []
        made = []
        for value in task.values:
            for word in self._words(value):
                self.versions += [[] for _ in range(len(self._numbers) - len(self.versions))]
                self.versions[word].append(self.stores)
                made.append(Instruction("store", number=self.stores))
                self.stores += 1
        if self.protocol == "flags":
            add = Instruction("add", number=self._counters[task.counter])
            made = [add, *made] if self.mutation == "flag before value" else [*made, add]
        return made

    def _waited(self, task: Publish | Wait) -> list[Instruction]:
        words, elements = [], []
        for value in task.values:
            numbers = self._words(value)
            elements.append(tuple(range(len(words), len(words) + len(numbers))))
            words += [(number, value.version) for number in numbers]
        if self.protocol == "data":
            return [Instruction("look", tuple(words), tuple(elements))]
        polls = [
            Instruction(
                "poll",
                number=self._counters[counter],
                arrivals=self._arrivals[counter] - (self.mutation == "one program not waited for"),
            )
            for counter in task.counters
        ]
        polls = [] if self.mutation == "no wait" else polls
        return [*polls, Instruction("load", tuple(words), tuple(elements))]

    @property
    def first(self) -> State:
        counted = (0,) if self.mutation == "counter not zeroed" else ()
        programs = (Program(0, (None,) * len(line[0].words), 0, 0, False) for line in self.lines)
        return State(tuple(programs), (counted,) * len(self._counters), False, False)

    def ended(self, state: State) -> bool:
        return all(program.at == len(line) for program, line in zip(state.programs, self.lines, strict=True))

    def content(self, word: int, version: int) -> str:
        if version == 0:
            return JUNK if self.protocol == "flags" or self.mutation == "pattern not filled" else PATTERN
        return PATTERN if self.mutation == "a NaN stored as the pattern" and word == 0 else VALUE

    def moves(self, state: State, p: int) -> Iterator[State]:
        """What program p may do next.

        Raises:
            Broken: it uses what it must not.
        """
        program, line = state.programs[p], self.lines[p]
        if program.at == len(line):
            return
        do = line[program.at]
        heard = p != self.silent
        if program.given_up and do.kind in ("look", "load", "poll"):
            yield self._with(state, p, self._on(p, program))
        elif do.kind == "store":
            made = 1 << do.number if heard else 0
            yield self._with(state, p, self._on(p, program._replace(stored=program.stored | made)))
        elif do.kind == "add":
            yield self._with(self._added(state, program, do) if heard else state, p, self._on(p, program))
        elif do.kind == "poll":
            yield from self._polls(state, p, do)
        elif do.kind == "end":
            told = state.error and self.mutation != "host not told"
            if told:
                yield self._with(state._replace(told=True), p, self._on(p, program))
            if not (told and program.given_up):  # a program that has not given up may not see the error word yet
                yield self._with(state, p, self._on(p, program))
        elif None in program.seen:
            stored = 0
            for other in state.programs:
                stored |= other.stored
            for i, (word, _) in enumerate(do.words):
                if program.seen[i] is None:
                    yield from (self._with(state, p, one) for one in self._loads(program, stored, i, word))
        else:
            yield from self._looked(state, p, do)

    def _on(self, p: int, program: Program) -> Program:
        """The program at its next instruction."""
        at = program.at + 1
        words = self.lines[p][at].words if at < len(self.lines[p]) else ()
        return program._replace(at=at, seen=(None,) * len(words))

    @staticmethod
    def _with(state: State, p: int, program: Program) -> State:
        programs = state.programs
        return State((*programs[:p], program, *programs[p + 1 :]), state.counters, state.error, state.told)

    def _loads(self, program: Program, stored: int, i: int, word: int) -> Iterator[Program]:
        """Every version that a load of its word number i may give."""
        versions = self.versions[word]
        oldest = max((v for v, store in enumerate(versions, 1) if program.known >> store & 1), default=0)
        for version in range(oldest, len(versions) + 1):
            if version and not stored >> versions[version - 1] & 1:
                continue
            known = program.known | (1 << versions[version - 1] if version else 0)
            seen = (*program.seen[:i], version, *program.seen[i + 1 :])
            yield Program(program.at, seen, known, program.stored, program.given_up)

    def _looked(self, state: State, p: int, do: Instruction) -> Iterator[State]:
        """All words are there: use them, look again, or give up."""
        program = state.programs[p]
        missing = []
        if do.kind == "look" and self.mutation != "no wait":
            elements = do.elements[:1] if self.mutation == "one element looked at" else do.elements
            for element in elements:
                if all(self.content(do.words[i][0], program.seen[i] or 0) == PATTERN for i in element):
                    missing += element
        if not missing:
            gave_up = any(other.given_up for other in state.programs)
            for element in do.elements if not (gave_up and self.reused) else ():
                right = {program.seen[i] == do.words[i][1] for i in element}
                if right != {True}:
                    raise Broken("never torn" if True in right else "never stale")
            yield self._with(state, p, self._on(p, program))
            return
        if self.mutation != "what is missing not looked at again":
            again = tuple(None if i in missing else version for i, version in enumerate(program.seen))
            yield self._with(state, p, program._replace(seen=again))
        yield from self._gives_up(state, p)

    def _polls(self, state: State, p: int, do: Instruction) -> Iterator[State]:
        program, additions = state.programs[p], state.counters[do.number]
        if len(additions) >= do.arrivals:
            passed_on = additions[do.arrivals - 1] if do.arrivals and self.mutation != "no acquire" else 0
            yield self._with(state, p, self._on(p, program._replace(known=program.known | passed_on)))
        yield from self._gives_up(state, p)

    def _added(self, state: State, program: Program, do: Instruction) -> State:
        additions = state.counters[do.number]
        own = program.stored
        if self.mutation == "no barrier" and own:  # the last was made by another warp than the one that adds
            own ^= 1 << own.bit_length() - 1
        passed_on = 0 if self.mutation == "no release" else own | program.known
        after = (*additions, passed_on | (additions[-1] if additions else 0))
        return state._replace(counters=(*state.counters[: do.number], after, *state.counters[do.number + 1 :]))

    def _gives_up(self, state: State, p: int) -> Iterator[State]:
        """After a look in vain: by the clock, or because another has. What the program then uses is any value, and no
        longer looked at in the model."""
        if self.expiry and (state.error or self.mutation != "no clock"):
            error = state.error or self.mutation != "error word not set"
            given_up = state.programs[p]._replace(known=0, given_up=True)
            yield self._with(state._replace(error=error), p, self._on(p, given_up))


class Found(NamedTuple):
    states: int
    broken: str | None
    way: list[State]  # that leads to it, from the first state


def explore(model: Model) -> Found:
    """Every state of a model, breadth first, until a property is broken."""
    numbers, states, before = {model.first: 0}, [model.first], [0]
    into: list[list[int]] = [[]]
    ends = []

    def found(broken: str | None, number: int) -> Found:
        way = [number]
        while way[-1]:
            way.append(before[way[-1]])
        return Found(len(states), broken, [states[n] for n in reversed(way)] if broken else [])

    number = 0
    while number < len(states):
        state = states[number]
        if model.ended(state):
            if not state.told and any(program.given_up for program in state.programs):
                return found("told", number)
            ends.append(number)
        for p in range(len(state.programs)):
            try:
                moves = list(model.moves(state, p))
            except Broken as broken:
                return found(str(broken), number)
            for after in moves:
                if after not in numbers:
                    numbers[after] = len(states)
                    states.append(after)
                    before.append(number)
                    into.append([])
                into[numbers[after]].append(number)
        number += 1
    lead_to_an_end = bytearray(len(states))
    todo = list(ends)
    while todo:
        number = todo.pop()
        if not lead_to_an_end[number]:
            lead_to_an_end[number] = 1
            todo += into[number]
    stuck = lead_to_an_end.find(0)
    if stuck >= 0:
        return found("bounded" if model.expiry else "no deadlock", stuck)
    return found(None, 0)


def walk(model: Model, seed: int, longest: int = 100_000) -> Found:
    """One way through a model, drawn at random. A way of so many moves is taken for one without an end."""
    draw = random.Random(seed)
    state, way = model.first, [model.first]
    weights = [draw.choice((1, 1, 1, 20)) for _ in state.programs]  # some programs are faster than others
    while len(way) < longest:
        if model.ended(state):
            untold = not state.told and any(program.given_up for program in state.programs)
            return Found(len(way), "told" if untold else None, way if untold else [])
        (p,) = draw.choices(range(len(weights)), weights)
        try:
            moves = list(model.moves(state, p))
        except Broken as broken:
            return Found(len(way), str(broken), way)
        if moves:
            state = draw.choice(moves)
            way.append(state)
        elif not any(list(model.moves(state, q)) for q in range(len(weights)) if q != p):
            break
    return Found(len(way), "bounded" if model.expiry else "no deadlock", way)


def ways_to_fail(plan: Plan) -> Iterator[dict]:
    """What a model is asked: no wait given up; any given up; any, and a program that never publishes."""
    yield {}
    yield {"expiry": True}
    yield from ({"expiry": True, "silent": p} for p in range(len(plan)))


def smallest(mutation: str) -> Plan:
    """A plan that is enough for a mutation to show."""
    return layer(2, 2, 1) if mutation == "a word stored in halves" else layer(2, 3, 1)


def mutated(protocol: str, mutation: str) -> Model:
    broken = MUTATIONS[protocol][mutation]
    silent = 0 if broken == "bounded" else None
    return Model(smallest(mutation), protocol, broken in ("bounded", "told"), mutation, silent)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--walks", type=int, default=100, metavar="N", help="at random through each larger model")
    parser.add_argument("--seed", type=int, default=0, help="of the first walk")
    given = parser.parse_args()
    began, states, moves, wrong = time.time(), 0, 0, 0
    for protocol in MUTATIONS:
        for name, plan in (ALL | (IN_ONE_PLACE | THREE_STEPS if protocol == "flags" else {})).items():
            counts = []
            for way in ways_to_fail(plan):
                found = explore(Model(plan, protocol, **way))
                counts.append(f"{found.states:>9,}{' BROKEN: ' + found.broken if found.broken else ''}")
                states += found.states
                wrong += found.broken is not None
            print(f"{protocol:5}  {name:75} {' '.join(counts)}", flush=True)
        for mutation, broken in MUTATIONS[protocol].items():
            found = explore(mutated(protocol, mutation))
            print(f"{protocol:5}  without: {mutation:66} {found.states:>9,} breaks: {found.broken}", flush=True)
            wrong += found.broken != broken
        for name, plan in BEYOND.items():
            broken = 0
            for seed in range(given.seed, given.seed + given.walks):
                found = walk(Model(plan, protocol, expiry=seed % 2 == 1), seed)
                moves += found.states
                broken += found.broken is not None
            print(f"{protocol:5}  {name:75} {given.walks} walks, {broken} of them break a property", flush=True)
            wrong += broken
    print(f"{states:,} states, {moves:,} moves of walks, {wrong} wrong, {time.time() - began:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
