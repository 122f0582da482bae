"""Stores that become visible late: what may be seen, and what may not."""

from __future__ import annotations

import numpy as np
import pytest

from .late import LateStores


def words(*values: int) -> np.ndarray:
    return np.array(values, np.uint32).reshape(-1, 1)


@pytest.fixture
def late():
    return LateStores(np.zeros(64, np.uint8), 0)


def stored(late, number, place, value):
    """Program `number` stores a word in its turn."""
    at = np.array([place])
    late.store(number, at, words(value))
    late.data.view(np.uint32)[at // 4] = value


def seen(late, number, place):
    with late.turn(number):
        return int(late.data.view(np.uint32)[place // 4])


def until_all_is_seen(late, number, places):
    """What another program sees of these words, each time it looks."""
    looks = []
    while late.hidden:
        looks.append(tuple(seen(late, number, place) for place in places))
    return looks


def test_a_program_sees_its_own_stores_at_once_and_others_later():
    own, other = set(), set()
    for seed in range(20):
        late = LateStores(np.zeros(64, np.uint8), seed)
        with late.turn(1):
            stored(late, 1, 8, 5)
        while late.hidden:
            own.add(seen(late, 1, 8))
            other.add(seen(late, 2, 8))
        assert seen(late, 2, 8) == 5
    assert own == {5}
    assert other == {0, 5}


def test_words_come_in_any_order_and_one_word_in_its_own():
    orders = set()
    for seed in range(200):
        late = LateStores(np.zeros(64, np.uint8), seed)
        with late.turn(1):
            for value in (1, 2, 3):
                stored(late, 1, 0, value)
            stored(late, 1, 4, 9)
        looks = until_all_is_seen(late, 2, (0, 4))
        first = [a for a, _ in looks]
        assert first == sorted(first)
        orders |= {"second first" for a, b in looks if b and not a} | {"first first" for a, b in looks if a and not b}
    assert orders == {"second first", "first first"}


def test_a_release_shows_all_and_an_atomic_its_own_word(late):
    with late.turn(1):
        stored(late, 1, 0, 1)
        stored(late, 1, 4, 2)
        late.show(1, np.array([4]), 4)
        late.rng.choice = lambda x: x[0]  # nothing more is shown between turns
    assert [seen(late, 2, place) for place in (0, 4)] == [0, 2]
    with late.turn(1):
        stored(late, 1, 8, 3)
        late.release(1)
    assert [seen(late, 2, place) for place in (0, 4, 8)] == [1, 2, 3]


def test_half_of_a_word_keeps_the_other_half(late):
    with late.turn(1):
        late.store(1, np.array([2]), np.array([[7]], np.uint16))
        late.data.view(np.uint16)[1] = 7
    with late.turn(2):
        late.store(2, np.array([0]), np.array([[3]], np.uint16))
        late.data.view(np.uint16)[0] = 3
    late.end()
    assert late.data.view(np.uint16)[:2].tolist() == [3, 7]
