"""The way of a run on a GPU, with stand-ins where torch.cuda is asked: everything else is what runs there."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import INTERPRETED

from trigru.bench import run
from trigru.bench.cases import grid
from trigru.bench.cases.grid import Choice
from trigru.bench.measuring import compare, graphs, timers
from trigru.bench.peers import PEERS
from trigru.bench.suites import bounds, pingpong
from trigru.command.cli import main
from trigru.kernels.launch import using
from trigru.planning.devices import PRESETS

LATENCIES = {"round_trip_s": 2e-6, "launch_s": 5e-6, "graph_launch_s": 1e-6}


def test_a_run_with_graphs_bounds_and_peers(tmp_path, monkeypatch):
    """Cases of a GPU's grid, their tensors on the CPU."""
    tiny = [replace(case, device="cpu") for case in grid.cases("layer", Choice("cuda", "tiny", ["bf16"], ["torch"]))]
    monkeypatch.setattr(run.bounds, "measured_latencies", lambda: LATENCIES)
    monkeypatch.setattr(run.bounds, "Bounds", partial(bounds.Bounds, device=PRESETS["H100"]))
    monkeypatch.setattr(run.grid, "cases", lambda suite, choice: tiny)
    monkeypatch.setattr(run, "timer_for", lambda device: timers.HostTimer())
    monkeypatch.setattr(run, "Plan", partial(compare.Plan, record=lambda make: make()))
    request = run.Request(
        choice=Choice("cuda", "tiny"),
        suites=["layer"],
        directions=run.default_directions("cuda"),
        peers=[peer for name, peer in PEERS.items() if name != "torch.compile"],
        budget_s=0.0,
        minutes=None,
        out=tmp_path,
        shared={"device": "cuda", "device_name": "H100"},
    )
    outcome = run.execute(request)
    assert outcome.failed == {}
    assert {peer for peer, _ in outcome.skipped} >= {"flashrnn", "gru-qat", "TorchRL", "haste"} - set(_installed())
    rows = [json.loads(line) for line in (tmp_path / "layer.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["peer"] == "nn.GRU"]
    assert {(row["mode"], row["direction"], row["packed"]) for row in own} == {
        (mode, direction, packed)
        for mode in ("eager", "graph")
        for direction in ("forward", "backward", "forward+backward")
        for packed in (False, True)
    }
    for row in own:
        assert row["ours_ms"] > 0, row
        assert (row["bound_ms"] is None) == row["packed"]
        if not row["packed"]:
            assert row["bound_ratio"] == pytest.approx(row["ours_ms"] / row["bound_ms"])
    assert json.loads((tmp_path / "run.json").read_text())["latencies"] == LATENCIES


def _installed():
    return [name for name, peer in PEERS.items() if "not installed" not in (peer.obstacle(CASE) or "")]


CASE = grid.cases("layer", Choice("cuda"))[0]


def test_latencies_that_cannot_be_measured_leave_published_ones(tmp_path, monkeypatch):
    def expired():
        raise RuntimeError("ping_pong: gave up")

    monkeypatch.setattr(run.bounds, "measured_latencies", expired)
    request = run.Request(Choice("cuda"), [], ["forward"], [], 0.0, None, tmp_path, {})
    outcome = run.execute(request)
    assert outcome.failed == {"latencies": "RuntimeError: ping_pong: gave up"}
    bound = bounds.Bounds(outcome.latencies, PRESETS["H100"])
    assert (bound.exchange_s, bound.launch_s) == (PRESETS["H100"].exchange_time, PRESETS["H100"].launch_time)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait")
def test_latencies_from_kernels_that_run(monkeypatch):
    """The kernels are executed from PTX; the clock counts what they are asked to do."""
    from ptx import ptx_launcher

    launcher = ptx_launcher(90, seed=0)
    now = [0.0]

    def start(kernel, grid_, args, constexprs, **options):
        launcher(kernel, grid_, args, constexprs, **options)
        now[0] += 5e-6 + 2e-6 * args.get("rounds", 0)

    class Event:
        def record(self):
            self.at = now[0]

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    new_cells = pingpong.new_cells
    monkeypatch.setattr(pingpong, "new_cells", lambda rounds, device: new_cells(rounds, "cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for name, value in (("ROUNDS", 8), ("LAUNCHES", 3), ("REPEATS", 2)):
        monkeypatch.setattr(bounds, name, value)
    timer = timers.CudaTimer(Event, lambda: None, lambda: None)
    with using(start):
        found = bounds.measured_latencies(timer, lambda make: make())
    assert found["round_trip_s"] == pytest.approx(2e-6)
    assert found["graph_launch_s"] == pytest.approx(5e-6)
    assert found["launch_s"] > 0  # the host's clock, which is not a stand-in


def test_a_graph_is_warmed_up_on_its_own_stream_then_recorded_once(monkeypatch):
    events = []

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            events.append("replay")

    @contextlib.contextmanager
    def within(what):
        events.append(f"into {what}")
        yield
        events.append(f"out of {what}")

    main = Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: within(f"graph on {stream.name}"))

    def make():
        events.append("make")
        return lambda: events.append("call")

    graphs.graphed(make)()
    assert events == [
        "side waits for main",
        "into side",
        "make",
        *["call"] * graphs.WARM_UPS,
        "out of side",
        "main waits for side",
        "into graph on side",
        "call",
        "out of graph on side",
        "replay",
    ]


def on_gpu(test):
    """What only a GPU can show: that nothing of the above is different there."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
    return pytest.mark.gpu(skip(test))


@on_gpu
def test_latencies_of_this_gpu():
    found = bounds.measured_latencies()
    assert set(found) == {"round_trip_s", "launch_s", "graph_launch_s"}
    assert all(seconds > 0 for seconds in found.values())


@on_gpu
def test_every_way_has_a_time_on_this_gpu(tmp_path):
    options = ["--device", "cuda", "--tiny", "--suite", "layer", "module", "step", "memory", "--variant", "torch"]
    assert main(["bench", *options, "--peers", "nn.GRU", "--minutes", "10", "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert not [row["error"] for row in rows if "error" in row]
    assert {row["mode"] for row in rows if "mode" in row} == {"eager", "graph"}
