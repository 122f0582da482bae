"""Suite "workloads": every way gives the same results, a wrong one has no time, and rows are whole."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from trigru.bench import run
from trigru.bench.cases.given import given, source_of
from trigru.bench.cases.grid import Choice
from trigru.bench.cases.workloads import ROLLOUT, WORKLOADS, Gru, Workload, named
from trigru.bench.measuring.compare import Plan
from trigru.bench.measuring.timers import HostTimer
from trigru.bench.report import report
from trigru.bench.schedules import schedule_of_gru
from trigru.bench.suites import workloads
from trigru.bench.suites.workload_ways import NN_GRU, WAYS, Way, loop, ours, segments
from trigru.bench.suites.workloads import Asked, Measured, checked, estimated_s, measured, obstacle
from trigru.command.cli import main

GRUS = {
    "plain": Gru(7, 3, 4, 5, 2),
    "both": Gru(7, 3, 4, 5, 2, bidirectional=True, bias=False),
    "packed": Gru(9, 6, 4, 5, 2, rows="packed"),
    "packed, both": Gru(9, 6, 4, 5, bidirectional=True, rows="packed"),
    "resets": Gru(40, 6, 4, 5, 2, rows="resets"),
    "cell": Gru(6, 3, 4, 5, cell=True, bias=False),
    "cell, resets": Gru(6, 3, 4, 5, cell=True, rows="resets"),
    "cell, decayed": Gru(6, 3, 4, 5, cell=True, rows="decayed"),
    "cho": Gru(6, 3, 4, 5, variant="cho", bidirectional=True),
    "cho, cell": Gru(6, 3, 4, 5, variant="cho", cell=True),
}


def only(gru, **options):
    return Measured(Workload(0, "one", "here", (gru,), **options), "cpu", "fp32")


@pytest.mark.parametrize("gru", GRUS.values(), ids=GRUS)
def test_every_way_that_applies_has_the_references_results(gru):
    trigrus = Way("trigru", lambda gru: None, ours, any_variant=True)
    applied = [way for way in WAYS.values() if way.obstacle(gru) is None]
    assert NN_GRU in applied
    for way in (trigrus, *applied):
        side, error = checked(way, only(gru))
        assert 0 < error < 1e-5
        assert side.call().shape == (gru.seq_len, gru.batch, gru.directions * gru.hidden_size)


def test_each_way_is_one_of_some_workload():
    tried = {way for way in WAYS.values() for gru in GRUS.values() if way.obstacle(gru) is None}
    assert tried == set(WAYS.values())
    real = {way for way in WAYS.values() for workload in WORKLOADS if obstacle(way, workload) is None}
    assert real == set(WAYS.values())


def test_the_loop_is_what_torch_computes():
    """The reference of the check, against nn.GRU in float64: padded in both directions, and packed."""
    gru = GRUS["both"]
    source, inputs = source_of(gru, "cpu", torch.float64), given(gru, "cpu", torch.float64)
    call, _ = loop(gru, source, inputs)
    torch.testing.assert_close(call(inputs.x, inputs.h0), source(inputs.x, inputs.h0)[0])
    gru = GRUS["packed, both"]
    source, inputs = source_of(gru, "cpu", torch.float64), given(gru, "cpu", torch.float64)
    found = loop(gru, source, inputs)[0](inputs.x, inputs.h0)
    for b, length in enumerate(inputs.lengths.tolist()):
        alone, _ = source(inputs.x[:length, b], inputs.h0[:, b])
        torch.testing.assert_close(found[:length, b], alone)
        assert not found[length:, b].any()


def test_resets_start_every_sequence_from_zero():
    """Each stretch of each sequence by nn.GRU on its own; a reset at the first step too."""
    source = nn.GRU(3, 4, 2).double()
    x, h0 = torch.randn(9, 5, 3).double(), torch.randn(2, 5, 4).double()
    resets = torch.rand(9, 5) < 0.3
    resets[0, 0], resets[0, 1], resets[8, 2] = True, False, True
    inputs = replace(given(Gru(9, 5, 3, 4, 2), "cpu", torch.float64), resets=resets, keep=~resets[..., None])
    gru = Gru(9, 5, 3, 4, 2, rows="resets")
    expected = torch.empty(9, 5, 4).double()
    for b in range(5):
        starts = sorted({0, *resets[:, b].nonzero().flatten().tolist()})
        for first, last in zip(starts, [*starts[1:], 9], strict=True):
            before = torch.zeros_like(h0[:, b]) if resets[first, b] else h0[:, b]
            expected[first:last, b] = source(x[first:last, b], before)[0]
    builds = {name: WAYS[name].build for name in ("nn.GRU", "split at resets", "padded at resets", "loop over cells")}
    for name, build in {**builds, "trigru": ours}.items():
        call, _ = build(gru, source, inputs)
        torch.testing.assert_close(call(x, h0), expected, msg=name)
    assert sorted(segments(resets).rows.tolist()) == list(range(45))


@pytest.mark.slow
@torch.no_grad()
def test_a_rollout_is_the_split_run():
    """In float64: of nn.GRU over episodes, padded or packed, and of trigru's own layer, called anew at each reset."""
    gru = ROLLOUT.main
    source, inputs = source_of(gru, "cpu", torch.float64), given(gru, "cpu", torch.float64)
    call, (module,) = ours(gru, source, inputs)
    output, h, again = call(inputs.x, inputs.h0), inputs.h0, []
    for name in ("nn.GRU", "padded at resets"):
        other, _ = WAYS[name].build(gru, source, inputs)
        assert (other(inputs.x, inputs.h0) - output).abs().max() <= 2e-15
    starts = [0, *(t for t in inputs.resets.any(1).nonzero().flatten().tolist() if t)]
    for first, last in zip(starts, [*starts[1:], gru.seq_len], strict=True):
        part, h = module(inputs.x[first:last], h * inputs.keep[first])
        again.append(part)
    assert (torch.cat(again) - output).abs().max() <= 2e-15


def wrong(factor):
    def build(gru, source, inputs):
        call, modules = loop(gru, source, inputs)
        return lambda x, h0: call(x, h0) * factor(x.shape[0]), modules

    return Way("wrong", lambda gru: None, build, any_variant=True)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (wrong(lambda steps: 1.01), r"wrong: output of GRU 0 is .* away"),
        (wrong(lambda steps: 1.01 if steps > 32 else 1.0), r"trigru: output of GRU 0, by wrong's, is .* away"),
    ],
    ids=["from the first step", "beyond the first steps"],
)
def test_a_wrong_way_has_no_time(way, said):
    plan = Plan((), HostTimer(), budget_s=0.0)
    (row,) = workloads.rows([only(Gru(40, 2, 3, 4))], Choice("cpu", "tiny"), Asked(None, [way]), plan)
    assert "ours_ms" not in row
    assert row["error"].startswith("WrongResult")
    assert re.search(said, row["error"]), row["error"]


SOME = ["6", "lfads", "gru4rec", "mappo-smac", "moses-vae"]


def test_a_run(tmp_path, capsys):
    options = ["--device", "cpu", "--tiny", "--suite", "workloads", "--rows", *SOME, "--no-figures"]
    assert main(["bench", *options, "--out", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    rows = [json.loads(line) for line in (tmp_path / "workloads.jsonl").read_text().splitlines()]
    for workload in named(SOME):
        own = [row for row in rows if row["workload"] == workload.name]
        assert {row["direction"] for row in own} == {"forward", "forward+backward"}
        applied = {name for name, way in WAYS.items() if obstacle(way, workload) is None}
        assert {row["peer"] for row in own} == applied >= {"nn.GRU"}
        assert workload.name in shown
    for row in rows:
        assert "error" not in row
        assert row["ours_ms"] > 0
        assert row["ratio"] > 0
    assert "nn.GRU by it" in shown


def test_models_in_inference_are_not_trained(tmp_path):
    options = ["--device", "cpu", "--tiny", "--suite", "workloads", "--rows", "rmvpe", "--no-figures"]
    options += ["--peers", "two modules"]
    assert main(["bench", *options, "--out", str(tmp_path)]) == 0
    (row,) = (json.loads(line) for line in (tmp_path / "workloads.jsonl").read_text().splitlines())
    assert (row["direction"], row["peer"], row["row"]) == ("forward", "two modules", 12)


def test_on_a_cpu_what_fits_in_seconds_or_was_asked_for():
    """What is estimated to take longer is skipped and says so."""
    long = only(Gru(10**5, 512, 512, 512))
    assert estimated_s(long.workload, "forward+backward") == pytest.approx(3 * estimated_s(long.workload, "forward"))
    plan = Plan((), HostTimer(), budget_s=0.0)
    assert list(workloads.rows([long], Choice("cpu"), Asked(), plan)) == []
    assert {name for name, _ in plan.skipped} == {"one forward", "one forward+backward"}
    fitting = [w for w in WORKLOADS if estimated_s(w, "forward+backward") < workloads.CPU_SECONDS["full"]]
    assert {workload.row for workload in fitting} >= {16, 17, 19, 20, 21}


def test_dtypes_by_device():
    """A GPU takes the users' own, float32 in TF32; a CPU float32; or what was asked for."""
    some = named(["1", "3"])
    assert [case.dtype for case in measured(Choice("cuda"), Asked(some))] == ["bf16", "tf32"]
    assert [case.dtype for case in measured(Choice("cpu"), Asked(some))] == ["fp32", "fp32"]
    assert [case.dtype for case in measured(Choice("cpu", dtypes=["bf16"]), Asked(some))] == ["bf16"] * 2
    assert len(measured(Choice("cuda"), Asked())) == 31


def test_a_schedule_that_cannot_run_is_skipped():
    plan = Plan((), HostTimer(), budget_s=0.0)
    case = replace(only(GRUS["plain"]), schedule="persistent")
    assert list(workloads.rows([case], Choice("cpu", "tiny"), Asked(), plan)) == []
    ((name, reason),) = plan.skipped
    assert name == "trigru"
    assert "cannot run here" in reason
    assert schedule_of_gru(GRUS["cho, cell"], "cpu", torch.float32, "auto", "keep", recording=True) == "cell"


def test_the_table_has_a_line_for_each_workload_and_pass():
    base = {"suite": "workloads", "workload": "one", "dtype": "float32", "direction": "forward", "mode": "eager"}
    rows = [{**base, "peer": peer, "ours_ms": 2.0, "ratio": r} for peer, r in (("nn.GRU", 1.5), ("a", 3.0), ("b", 2.0))]
    (line,) = report.by_workload(rows)
    assert line == ["one", "float32", "forward", "eager", 2.0, 1.5, "b", 2.0]
    assert report.place(rows[0]) == "one"
    (line,) = report.by_workload(rows[:1])
    assert line[-2:] == [None, None]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--suite cpu --rows 3", "--rows: is for --suite workloads"),
        ("--suite workloads --rows 33", "--rows: expected 1 to 32 or one of brain-to-text"),
        ("--suite workloads --hidden 3", "--hidden: suite workloads has its own"),
        ("--suite workloads --variant cho", "--variant: suite workloads has its own"),
    ],
)
def test_what_does_not_fit_is_refused(options, said, capsys):
    assert main(["bench", "--device", "cpu", *options.split()]) == 2
    assert said in capsys.readouterr().err


def test_it_runs_where_it_is_named_alone():
    """All of it takes longer than a run should."""
    assert "workloads" in run.SUITES
    assert not any("workloads" in run.default_suites(Choice(device)) for device in ("cpu", "cuda"))
