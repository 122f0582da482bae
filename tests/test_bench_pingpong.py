"""The round trip between two programs, compiled and executed from PTX."""

from __future__ import annotations

import pytest
from conftest import INTERPRETED

from trigru.bench.suites import pingpong
from trigru.kernels.errors import KernelTimeout
from trigru.kernels.launch import using
from trigru.kernels.offline import Recorder, compile_launch, target_of

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait")

ROUNDS = 20


@pytest.mark.parametrize("access", pingpong.ACCESSES)
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("order", [{"seed": 0}, {"seed": 1, "quantum": 20}, {"seed": "round-robin"}, {"starve": 0}])
def test_every_value_arrives_and_is_answered(arch, order, access):
    from ptx import ptx_launcher

    launcher = ptx_launcher(arch, **order)
    cells, error = pingpong.new_cells(ROUNDS, "cpu")
    with using(launcher):
        pingpong.play(cells, error, access=access)
    pingpong.check(cells, error)
    (launch,) = launcher.launches
    assert launch["cooperative"]
    assert launch["race_check"]


def test_a_program_that_is_left_alone_gives_up_and_says_so():
    from ptx import ptx_launcher

    launcher = ptx_launcher(90, seed=0)
    cells, error = pingpong.new_cells(ROUNDS, "cpu")

    def first_program_only(kernel, grid, args, constexprs, **options):
        launcher(kernel, (1,), args, constexprs, **options)

    with using(first_program_only):
        pingpong.play(cells, error, spins=16)
    assert error.item() == 1
    assert cells[1::2].eq(pingpong.PATTERN).all()
    with pytest.raises(KernelTimeout, match="ping_pong"):
        pingpong.check(cells, error)


def test_rounds_that_were_not_played_are_noticed():
    cells, error = pingpong.new_cells(ROUNDS, "cpu")
    with pytest.raises(KernelTimeout, match="ping_pong"):
        pingpong.check(cells, error)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_compiles_for_gpus_that_are_not_there(target):
    recorder = Recorder()
    cells, error = pingpong.new_cells(ROUNDS, "meta")
    with using(recorder):
        for access in pingpong.ACCESSES:
            pingpong.play(cells, error, access=access)
        pingpong.launch_nothing(cells)
    relaxed, volatile, nothing = (compile_launch(launch, target_of(target)).ptx for launch in recorder.launches)
    assert "ld.volatile.global" in volatile  # never from L1
    assert "st.global.cg" in volatile
    assert "ld.relaxed.gpu.global" in relaxed
    assert "st.relaxed.gpu.global" in relaxed
    assert "st.global.cg" not in relaxed
    assert "ld.global" not in nothing
