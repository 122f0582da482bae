"""The model of the exchange between programs: its properties hold, and none holds by itself."""

from __future__ import annotations

import re

import exchange_model
import pytest
from exchange_model import MUTATIONS, PROPERTIES, Model
from exchange_plans import BEYOND, IN_ONE_PLACE, SMALL, WALKING, Wait, layer

from trigru.kernels import exchange

PROTOCOLS = list(MUTATIONS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", [*SMALL, WALKING])
def test_every_state_of_a_small_launch(name, protocol):
    if name == WALKING and protocol == "data":
        pytest.skip('protocol "data" asks for a place for every step')
    plan = (SMALL | IN_ONE_PLACE)[name]
    for way in exchange_model.ways_to_fail(plan):
        found = exchange_model.explore(Model(plan, protocol, **way))
        assert found.broken is None, (way, found.way)
        assert found.states > 50


@pytest.mark.parametrize(
    ("protocol", "mutation"), [(protocol, name) for protocol, names in MUTATIONS.items() for name in names]
)
def test_a_step_of_a_protocol_left_out(protocol, mutation):
    found = exchange_model.explore(exchange_model.mutated(protocol, mutation))
    assert found.broken == MUTATIONS[protocol][mutation]


def test_memory_of_every_step_written_again_before_all_have_read_it():
    plan = [
        [task for task in tasks if not (isinstance(task, Wait) and task.counters[0][0] == "h")]
        for tasks in IN_ONE_PLACE[WALKING]
    ]
    assert exchange_model.explore(Model(plan, "flags")).broken == "never stale"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", BEYOND)
def test_walks_through_larger_launches(name, protocol):
    for seed in range(2):
        found = exchange_model.walk(Model(BEYOND[name], protocol, expiry=seed % 2 == 1), seed)
        assert found.broken is None, seed


@pytest.mark.parametrize(
    ("protocol", "mutation", "expiry"),
    [
        ("data", "one element looked at", False),
        ("flags", "no acquire", False),
        ("data", "what is missing not looked at again", False),
        ("flags", "error word not set", True),
    ],
)
def test_walks_that_find_what_is_wrong(protocol, mutation, expiry):
    plan = layer(4, 4, 2)
    found = [exchange_model.walk(Model(plan, protocol, expiry, mutation), seed).broken for seed in range(5)]
    assert MUTATIONS[protocol][mutation] in found


def test_each_property_is_promised_and_can_be_broken():
    assert {broken for names in MUTATIONS.values() for broken in names.values()} == set(PROPERTIES)
    promised = re.sub(r"\s+", " ", exchange.__doc__).lower()
    for name in PROPERTIES:
        assert re.search(rf"\b{name}\b", promised), name
