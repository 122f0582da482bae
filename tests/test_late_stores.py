"""The walking and persistent kernels where stores become visible as late, and in as odd an order, as the memory model
allows (tests/ptx/late.py): right numbers by both protocols, and no step of a protocol that could be left out.

Of the properties that exchange.py names and exchange_model.py has: "never stale" and "never torn", for a value from
before a store is a wrong number; "no deadlock", for every launch ends; "bounded" and "told", where a store never
comes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import INTERPRETED, generated_code
from ptx import PtxError, ptx_launcher
from recurrences import recurrence
from test_exchange_mutations import SILENT, mutated  # noqa: F401

from trigru.kernels import persistent, walking
from trigru.kernels.config import persistent_config, walking_config
from trigru.kernels.launch import using
from trigru.kernels.watch import KernelTimeout

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait"),
    generated_code,
    pytest.mark.usefixtures("poisoned"),
]

SLOW = pytest.mark.slow
HIDDEN = 48


def outcome(schedule, protocol=None, seeds=2, variant="torch", timeout=60.0, batch=3, tiles=1, **options) -> str:
    """ "right", "wrong", "error" of the executor, or "timeout"; `options`: of `ptx_launcher`."""
    case = recurrence(3, batch, HIDDEN, variant=variant)
    make = walking_config if protocol is None else persistent_config
    config = make(case.h0.dtype, batch, HIDDEN)
    config = replace(config, timeout=timeout, **({} if protocol is None else {"protocol": protocol, "tiles": tiles}))
    for seed in range(seeds):
        try:
            with using(ptx_launcher(arch=90, **{"seed": seed, "late": seed, "quantum": 50} | options)):
                errors = case.errors(case.run(schedule, config))
        except KernelTimeout:
            return "timeout"
        except PtxError:
            return "error"
        if not max(errors.values()) <= 1.5e-2:
            return "wrong"
    return "right"


@pytest.mark.parametrize("protocol", ["data", "flags"])
@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_persistent_kernels(protocol, variant):
    assert outcome(persistent, protocol, variant=variant) == "right"
    assert outcome(persistent, protocol, variant=variant, seeds=1, starve=1) == "right"


@pytest.mark.parametrize("variant", ["torch", pytest.param("cho", marks=SLOW)])
def test_walking_kernels(variant):
    assert outcome(walking, variant=variant) == "right"


@pytest.mark.parametrize(
    ("name", "protocol", "old", "new"),
    [
        ("persistent", "data", '"@!p bra DONE;"', '"bra DONE;"'),
        ("persistent", "flags", "setp.ge.s32 p, t, $2;", "setp.ge.s32 p, t, 0;"),
        ("persistent", "flags", 'sem="release"', 'sem="relaxed"'),
        ("walking", None, "setp.ge.s32 p, t, $2;", "setp.ge.s32 p, t, 0;"),
        ("walking", None, 'sem="release"', 'sem="relaxed"'),
    ],
    ids=["wait", "wait for a counter", "release", "walking: wait", "walking: release"],
)
def test_a_step_of_a_protocol_left_out_gives_wrong_numbers(mutated, name, protocol, old, new):  # noqa: F811
    """Not by what the executor knows of loads and releases, for `races` is off, but by the numbers."""
    schedule = mutated("exchange", old, new, name)
    assert outcome(schedule, protocol, seeds=4, races=False) == "wrong"


def test_a_release_dropped_goes_unnoticed_where_stores_are_visible_at_once(mutated):  # noqa: F811
    """What this mode is for."""
    schedule = mutated("exchange", 'sem="release"', 'sem="relaxed"')
    assert outcome(schedule, "flags", races=False, late=None) == "right"


@pytest.mark.parametrize(
    ("old", "new"),
    [("ld.acquire.gpu", "ld.relaxed.gpu"), ('sem="release"', 'sem="relaxed"')],
    ids=["acquire dropped", "release dropped"],
)
@pytest.mark.parametrize("name", ["persistent", "walking"])
def test_an_order_left_out_is_an_error(mutated, name, old, new):  # noqa: F811
    """Programs take loads in order here, so that an acquire is missed by the check of loads alone."""
    schedule = mutated("exchange", old, new, name)
    assert outcome(schedule, "flags" if name == "persistent" else None) == "error"


@pytest.mark.parametrize("protocol", ["data", "flags"])
def test_a_store_that_never_comes_ends_in_a_timeout(mutated, protocol):  # noqa: F811
    silent = (
        SILENT
        if protocol == "data"
        else ("    tl.atomic_add(flag, 1,", "    tl.atomic_add(flag, tl.program_id(0) != 1,")
    )
    assert outcome(mutated("exchange", *silent), protocol, seeds=1, timeout=0.05) == "timeout"
