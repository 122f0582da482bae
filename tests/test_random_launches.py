"""A few of what `python tests/random_launches.py` draws."""

from __future__ import annotations

import pytest
import random_launches
from conftest import generated_code
from random_launches import CONFIGS, Launch

pytestmark = generated_code

SEEDS = {"stepwise": 185, "walking": 59, "resident": 115, "persistent": 204}


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(name, marks=[] if name in ("walking", "persistent") else pytest.mark.slow)  # see test_redzones.py
        for name in SEEDS
    ],
)
def test_a_launch_of_each_schedule(schedule):
    launch = Launch.drawn(SEEDS[schedule])
    assert launch.schedule == schedule
    assert len(launch.check()) >= 4  # forward and backward, twice


def test_what_is_wrong_is_noticed(monkeypatch):
    launch = Launch.drawn(SEEDS["resident"])
    monkeypatch.setitem(random_launches.TOLERANCE, launch.dtype, 1e-9)
    with pytest.raises(AssertionError, match="relative errors"):
        launch.check()


def test_everything_is_drawn():
    launches = [Launch.drawn(seed) for seed in range(400)]
    assert {(one.schedule, one.arch, one.variant) for one in launches} == {
        (schedule, arch, variant)
        for schedule in CONFIGS
        for arch in random_launches.ARCHS[schedule]
        for variant in ("torch", "cho", "chung")
    }
    assert {name for one in launches for name in one.options} == set(random_launches.OPTIONS)
    assert any(one.packed for one in launches)
    assert not any(one.packed and one.options for one in launches)
    assert Launch.drawn(7) == Launch.drawn(7)
