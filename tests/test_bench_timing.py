"""How the benchmarks take times: with a fake clock, fake events, and nothing measured."""

from __future__ import annotations

import pytest

from trigru.bench.cases.case import Case
from trigru.bench.cases.grid import SIZES, Choice, cases, with_all_peers
from trigru.bench.measuring import timers
from trigru.bench.measuring.budget import Deadline, estimated_s, until
from trigru.bench.measuring.compare import summed_up
from trigru.bench.measuring.stats import geometric_mean, quantiles
from trigru.bench.report.summary import HEADLINES
from trigru.bench.suites import bounds
from trigru.planning.devices import PRESETS


class World:
    """A clock that moves only when something says how long it takes, with events as torch.cuda has them."""

    def __init__(self):
        self.now = 0.0
        self.done = []

    def takes(self, seconds, name):
        def call():
            self.now += seconds
            self.done.append(name)

        return call

    def event(self):
        return Event(self)


class Event:
    def __init__(self, world):
        self.world = world

    def record(self):
        self.at = self.world.now

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


def test_host_timer_measures_each_call_and_turns_the_order():
    world = World()
    timer = timers.HostTimer(lambda: world.now)
    taken = timer.durations([world.takes(2.0, "ours"), world.takes(3.0, "peer")], 2)
    assert taken == [(2.0, 3.0), (2.0, 3.0)]
    assert world.done == ["ours", "peer", "peer", "ours"]


def test_cuda_timer_flushes_before_each_call_and_counts_no_flush():
    world = World()
    waits = []
    timer = timers.CudaTimer(world.event, world.takes(10.0, "flush"), lambda: waits.append(len(world.done)))
    taken = timer.durations([world.takes(2.0, "ours"), world.takes(3.0, "peer")], 2)
    assert taken == [(pytest.approx(2.0), pytest.approx(3.0))] * 2
    assert world.done == ["flush", "ours", "flush", "peer", "flush", "peer", "flush", "ours"]
    assert waits == [8]  # once, at the end


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 3), (1.0, 20), (1e9, 100)])
def test_rounds_fit_the_budget(budget, rounds):
    world = World()
    timer = timers.HostTimer(lambda: world.now)
    taken = timers.in_turns(timer, [world.takes(0.02, "a"), world.takes(0.03, "b")], budget, lambda: world.now)
    assert len(taken) == rounds
    assert len(world.done) == 2 * (rounds + 2)


def test_a_row_sums_up_its_rounds():
    row = summed_up([(1.0, 2.0), (2.0, 2.0), (4.0, 12.0)])
    assert row["rounds"] == 3
    assert row["ours_ms_p50"] == 2000
    assert row["ours_ms"] == pytest.approx(1400)  # 20th percentile: two fifths of the way from 1 to 2
    assert row["ratio"] == pytest.approx(2.0 / 1.4)
    assert (row["ratio_p20"], row["ratio_p50"]) == (pytest.approx(1.4), 2.0)


def test_statistics():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert quantiles([0.0, 10.0]) == {"p20": pytest.approx(2.0), "p50": 5.0, "p80": pytest.approx(8.0)}


def test_what_does_not_begin_in_time_is_named():
    world = World()
    deadline = Deadline(1.0, lambda: world.now)
    left_out: list[str] = []
    found = [Case("cpu", "cpu", "fp32", "torch", size, 1, 8) for size in (16, 32, 64)]
    begun = []
    for case in until(deadline, found, left_out):
        begun.append(case.hidden_size)
        world.now += 45
    assert begun == [16, 32]
    assert left_out == ["cpu: torch fp32, hidden_size 64, batch 1, seq_len 8"]


def test_suites_share_the_time_that_is_left():
    world = World()
    whole = Deadline(1.0, lambda: world.now)
    world.now = 20.0
    assert whole.share(4).end == 30.0
    assert Deadline(None).share(4).end is None


def test_the_full_run_fits_its_time_on_a_gpu():
    chosen = [case for suite in ("layer", "module", "step") for case in cases(suite, Choice("cuda"))]
    assert estimated_s(chosen, rows_a_pair=6, budget_s=0.25, peers=3) < 18 * 60


def test_the_readmes_lines_are_in_the_grid():
    chosen = cases("layer", Choice("cuda"))
    for dtype, variant, hidden_size, batch, seq_len, packed in HEADLINES:
        assert Case("layer", "cuda", dtype, variant, hidden_size, batch, seq_len, packed=packed) in chosen


def test_the_grid_has_what_was_promised():
    chosen = cases("layer", Choice("cuda"))
    assert {case.hidden_size for case in chosen} >= {64, 100, 128, 200, 256, 512, 768, 1024, 2048}
    assert {case.batch for case in chosen} >= {1, 8, 16, 64, 512}
    assert {case.seq_len for case in chosen} >= {64, 256, 1024, 4096}
    assert {case.dtype for case in chosen} == {"bf16", "fp16", "tf32", "fp32"}
    assert {case.variant for case in chosen} == {"torch", "cho", "chung"}
    assert {case.dtype for case in chosen if with_all_peers(case)} == {"bf16", "fp16", "tf32", "fp32"}


@pytest.mark.parametrize("choice", [Choice("cuda"), Choice("cuda", dtypes=["bf16"]), Choice("cpu")], ids=str)
def test_the_grid_has_shapes_as_people_run_them(choice):
    """Small states, batches of thousands, inputs of another size, layers and directions, cells, long sequences."""
    chosen = [case for case in cases("layer", choice) if case.variant == "torch"]
    assert {case.hidden_size for case in chosen} >= {4, 8, 16, 32}
    assert sum(case.batch >= 1000 for case in chosen) >= 4
    assert any(case.input_size > case.hidden_size for case in chosen)
    assert any(case.input_size < case.hidden_size for case in chosen)
    assert any(case.num_layers > 1 and case.bidirectional for case in chosen)
    assert all(case.seq_len == 1 for case in chosen if case.cell)
    assert any(case.cell for case in chosen)
    assert any(case.seq_len >= 10000 for case in chosen)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_must_be_quick_has_none_of_them(device):
    for size in ("quick", "tiny"):
        for case in cases("layer", Choice(device, size)):
            assert case.input_size == case.hidden_size
            assert case.seq_len <= 256
            assert case.num_layers == 1
            assert not case.cell


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("suite", ["layer", "step", "module", "cpu"])
def test_no_case_twice(suite, device, size):
    found = cases(suite, Choice(device, size))
    assert found
    assert len(found) == len(set(found))


def test_sizes_that_are_asked_for_replace_the_grids():
    found = cases("layer", Choice("cuda", dtypes=["bf16"], variants=["cho"], hidden_sizes=[96], schedule="stepwise"))
    assert [(case.hidden_size, case.variant, case.schedule) for case in found] == [(96, "cho", "stepwise")]


def test_round_trip_is_a_difference():
    """A launch takes 5 us, a round 1.5 us: the launch does not count."""
    world = World()
    timer = timers.CudaTimer(world.event, lambda: None, lambda: None)
    assert bounds.round_trip(lambda rounds: world.takes(5e-6 + rounds * 1.5e-6, rounds), timer) == pytest.approx(1.5e-6)


BASE = {"direction": "forward", "schedule": "persistent", "ours_ms": 8.0}
LAYER = Case("layer", "cuda", "bf16", "torch", 1024, 16, 1000)


def test_bounds_by_hand():
    bound = bounds.Bounds({"round_trip_s": 2e-6, "graph_launch_s": 1e-6}, PRESETS["H100"])
    row = bound(LAYER, BASE)
    assert row["bound_exchange_ms"] == pytest.approx(1.0)  # a thousand half round trips
    assert row["bound_flops_ms"] == pytest.approx(2 * 3 * 2 * 1024**2 * 16 * 1000 / 989e12 * 1e3)
    numbers = 2 * 16 * 1000 * 1024 + 2 * 3 * 1024**2
    assert row["bound_bytes_ms"] == pytest.approx(numbers * 2 / 3.35e12 * 1e3)
    assert (row["bound_by"], row["bound_ratio"]) == ("exchange", pytest.approx(8.0))


def test_bounds_of_other_rows():
    bound = bounds.Bounds({"round_trip_s": 2e-6, "graph_launch_s": 1e-6}, PRESETS["H100"])
    cho = Case("layer", "cuda", "bf16", "cho", 1024, 16, 1000)
    assert bound(cho, BASE)["bound_exchange_ms"] == pytest.approx(2.0)
    assert bound(cho, {**BASE, "schedule": "stepwise"})["bound_launch_ms"] == pytest.approx(2.0)
    assert bound(LAYER, {**BASE, "direction": "forward+backward"})["bound_exchange_ms"] == pytest.approx(2.0)
    small = Case("layer", "cuda", "bf16", "torch", 64, 16, 1000)
    assert bound(small, BASE)["bound_exchange_ms"] == 0  # one multiprocessor holds all weights
    packed = Case("layer", "cuda", "bf16", "torch", 1024, 16, 1000, packed=True)
    assert bound(packed, BASE) == {"bound_ms": None}


def test_operations_and_bytes_of_a_stack():
    stack = Case("module", "cuda", "bf16", "torch", 64, 2, 10, num_layers=2, bidirectional=True)
    once = 2 * 3 * 64 * (64 + 64) + 2 * 3 * 64 * (128 + 64)
    assert bounds.operations(stack, "forward+backward") == 3 * 2 * 10 * 2 * once
    weights = 2 * 3 * 64 * (64 + 64) + 2 * 3 * 64 * (128 + 64)
    assert bounds.tensor_bytes(stack, "forward") == 2 * (20 * (64 + 128) + 20 * 128 * 2 + weights)
