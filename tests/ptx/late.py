"""Stores that become visible as late, and in as odd an order, as PTX's memory model allows.

Every program has a buffer of what it has stored and no other program sees yet. It sees its own stores at once, the
others an element later on, elements in any order, by a seed; of one word of 32 bits the stores come in their order
(axiom of coherence). A release shows all that its program has stored before it (causality order), an atomic operation
all at its own word; a program that has acquired sees that, as there is one memory for all that is shown.

Programs take turns, so memory holds what all see and, during a turn, on top of it what this program alone sees. What is
not modelled: loads that are taken out of order, and programs that see a third one's stores in different orders.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

WORD = 4  # bytes
FEW = (0, 0, 0, 1, 2, 8, 64)  # elements that become visible between two turns
ALL_TURNS = 97  # after so many turns one program's are all shown: a store is seen after a finite time


class LateStores:
    """The buffers of all programs of a launch, over the bytes of its global memory."""

    def __init__(self, data: np.ndarray, seed: int) -> None:
        self.data, self.rng = data, random.Random(seed)
        # By program and word: what it has stored there, in order, each a place and its bytes.
        self.hidden: dict[int, dict[int, list[tuple[int, bytes]]]] = {}
        self.under: dict[int, bytes] = {}  # of the program whose turn it is: what the others see of its hidden words
        self.turns = 0

    def store(self, number: int, at: np.ndarray, values: np.ndarray) -> None:
        """Before program `number` writes these rows of items to these places."""
        mine, item = self.hidden.setdefault(number, {}), values.dtype.itemsize
        if item > WORD:
            self.show(number, at, item * values.shape[1])
            return
        raw = values.view(np.uint8).reshape(*values.shape, item)
        for place, row in zip(at.tolist(), raw, strict=True):
            for i, one in enumerate(row):
                where = place + i * item
                word = where // WORD
                if word not in self.under:
                    self.under[word] = self.data[word * WORD : (word + 1) * WORD].tobytes()
                mine.setdefault(word, []).append((where, one.tobytes()))

    def show(self, number: int, at: np.ndarray, width: int) -> None:
        """All that this program has stored to these places, in its turn."""
        mine = self.hidden.get(number, {})
        for place in at.tolist():
            for word in range(place // WORD, -(-(place + width) // WORD)):
                mine.pop(word, None)
                self.under.pop(word, None)

    def release(self, number: int) -> None:
        """All that this program has stored at all, in its turn."""
        self.hidden.pop(number, None)
        self.under.clear()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """While a program runs, memory is as it sees it; then some elements of all programs become visible."""
        for word, stores in self.hidden.get(number, {}).items():
            self.under[word] = self.data[word * WORD : (word + 1) * WORD].tobytes()
            for place, raw in stores:
                self._write(place, raw)
        try:
            yield
        finally:
            for word, raw in self.under.items():
                self._write(word * WORD, raw)
            self.under.clear()
            self._drain()

    def _drain(self) -> None:
        self.turns += 1
        if not self.hidden:
            return
        number = self.rng.choice(list(self.hidden))
        mine = self.hidden[number]
        words = list(mine)
        count = len(words) if self.turns % ALL_TURNS == 0 else min(self.rng.choice(FEW), len(words))
        for word in self.rng.sample(words, count):
            self._write(*mine[word].pop(0))
            if not mine[word]:
                del mine[word]
        if not mine:
            del self.hidden[number]

    def end(self) -> None:
        """All that is left, when the launch has ended."""
        for mine in self.hidden.values():
            for stores in mine.values():
                for place, raw in stores:
                    self._write(place, raw)
        self.hidden.clear()

    def _write(self, place: int, raw: bytes) -> None:
        self.data[place : place + len(raw)] = np.frombuffer(raw, np.uint8)
