"""The workloads: their sizes, what `trigru explain --workloads` says of them, and the suite that measures them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import INTERPRETED

import trigru
from trigru.bench.cases.workloads import WORKLOADS, Gru, named
from trigru.command.cli import main
from trigru.command.explain_workloads import of_gru, of_workload
from trigru.kernels.launch import using
from trigru.planning.candidates import DIRECTIONS
from trigru.planning.cost import Layer
from trigru.planning.devices import PRESETS
from trigru.planning.plan import planned, staged

H100 = PRESETS["H100"]


def test_the_rows_are_those_of_the_table():
    """Counts that were made when the files were read, of the main GRU of each row."""
    assert [workload.row for workload in WORKLOADS] == list(range(1, 32))
    assert len({workload.name for workload in WORKLOADS}) == 31
    sizes = [workload.main.hidden_size for workload in WORKLOADS]
    assert sum(size <= 64 for size in sizes) == 9
    assert sum(any(gru.bidirectional for gru in workload.grus) for workload in WORKLOADS) >= 10
    assert {workload.name: workload.dtype for workload in WORKLOADS if workload.dtype != "fp32"} == {
        "brain-to-text": "bf16", "medaka": "fp16", "dreamerv3": "bf16"
    }  # fmt: skip
    assert {workload.rows for workload in WORKLOADS} == {"padded", "packed", "resets", "decayed"}


def test_workloads_by_name_and_by_row():
    assert [workload.row for workload in named(["qlib", "17", "3"])] == [19, 17, 3]
    with pytest.raises(ValueError, match=r"expected 1 to 32 or one of brain-to-text, .* got 33"):
        named(["1", "33"])


def test_alike_ones_are_counted_as_often_as_they_are_called():
    one = Gru(10, 4, 3, 5, 2, bidirectional=True)
    assert one.operations == 2 * 10 * 4 * 2 * 15 * (3 + 5 + 10 + 5)
    assert replace(one, calls=3).operations == 3 * one.operations
    assert replace(one, calls=3).serial_steps == 3 * 2 * 2 * 10
    piano = named(["piano-transcription"])[0]
    assert [gru.input_size for gru in piano.each] == [768] * 4 + [176, 264]
    assert sum(gru.operations for gru in piano.each) == sum(gru.operations for gru in piano.grus)


class Counter:
    """A starter that starts nothing."""

    def __init__(self):
        self.count = 0

    def __call__(self, *args, **options):
        self.count += 1


@pytest.mark.skipif(INTERPRETED, reason="replaces the launcher")
@pytest.mark.parametrize("variant", ["torch", "cho"])
@pytest.mark.parametrize(
    ("schedule", "hidden_size", "batch"),
    [("stepwise", 48, 5), ("resident", 48, 40), ("persistent", 512, 96), ("persistent", 128, 8)],
)
def test_launches_are_those_that_a_call_starts(schedule, hidden_size, batch, variant):
    seq_len, dtype = 4, torch.bfloat16
    x = torch.zeros(seq_len, batch, 8, dtype=dtype, requires_grad=True)
    module = trigru.GRU(8, hidden_size, 2, bidirectional=True, variant=variant, schedule=schedule, dtype=dtype)
    for_forward, for_backward = Counter(), Counter()
    with using(for_forward):
        output, _ = module(x)
    with using(for_backward):
        output.sum().backward()
    layer = Layer(variant, dtype, batch, hidden_size, directions=2)
    said = [staged(2, 2, planned(schedule, H100, layer, direction), direction) for direction in DIRECTIONS]
    assert [plan.launches(seq_len) for plan in said] == [for_forward.count, for_backward.count]
    assert len(said[0].stages) == 2  # of a layer each
    if schedule != "stepwise":
        assert for_forward.count == said[0].turns * 2


def test_what_a_workload_takes_is_the_sum_of_its_parts():
    for workload in WORKLOADS:
        for direction in DIRECTIONS:
            found = of_workload(workload, H100, direction)
            parts = found["parts"]
            assert len(parts) == len(workload.grus)
            assert found["launches"] == sum(part["launches"] for part in parts)
            assert found["turns"] == max(part["turns"] for part in parts) >= 1
            assert all(part["predicted_us"] > 0 for part in parts)
            assert found["predicted_us"] == pytest.approx(sum(part["predicted_us"] for part in parts))
            assert all(part["schedule"] in found["schedule"] and part["reason"] in found["reason"] for part in parts)


def test_steps_layers_directions_and_turns_are_all_counted():
    gru = Gru(100, 64, 512, 512, 3, bidirectional=True)
    half = of_gru(replace(gru, batch=32), "bf16", H100, "forward")
    assert (half["schedule"], half["launches"], half["turns"]) == ("persistent", 3, 1)
    alone = of_gru(replace(gru, bidirectional=False, num_layers=1), "bf16", H100, "forward")
    assert half["predicted_us"] == pytest.approx(3 * alone["predicted_us"])  # twice the programs take no longer
    stack = of_gru(replace(gru, batch=16, bidirectional=False), "bf16", H100, "forward")
    assert (stack["schedule"], stack["launches"], stack["turns"]) == ("persistent", 1, 1)
    assert stack["predicted_us"] < half["predicted_us"] / 2
    several = of_gru(gru, "bf16", H100, "forward")  # batch tiles a program
    assert (several["launches"], several["turns"]) == (3, 1)
    assert half["predicted_us"] < several["predicted_us"] < 1.6 * half["predicted_us"]
    with trigru.batch_invariant():
        in_turns = of_gru(replace(gru, batch=32, hidden_size=768, variant="cho"), "bf16", H100, "backward")
    assert (in_turns["launches"], in_turns["turns"]) == (6, 2)
    large = of_gru(replace(gru, hidden_size=4096), "bf16", H100, "forward")
    assert (large["schedule"], large["launches"], large["turns"]) == ("walking", 3, 1)
    cell = Gru(7, 64, 512, 512, cell=True)
    assert of_gru(cell, "bf16", H100, "forward")["launches"] == 7
    assert of_gru(cell, "bf16", H100, "forward")["predicted_us"] > 7 * H100.launch_time * 1e6


def test_resets_are_given_to_the_layer():
    """A sequence is as long as without them, and torch's own GRU, which takes none, is not what runs."""
    gru = Gru(8, 4, 8, 8, rows="resets")
    assert gru.given == ("reset",)
    assert replace(gru, cell=True).given == ()
    decayed = replace(gru, cell=True, rows="decayed")
    assert (decayed.by_steps, decayed.given) == (False, ("decay",))
    assert of_gru(decayed, "fp32", H100, "forward")["launches"] == 1
    assert of_gru(gru, "fp32", None, "forward")["schedule"] == "eager"
    assert of_gru(replace(gru, rows="padded"), "fp32", None, "forward")["schedule"] == "torch"


KEYS = {"workload", "pass", "schedule", "launches", "turns", "predicted_us", "reason"}


@pytest.mark.parametrize("device", ["h100", "a100", "cpu"])
def test_json_has_an_object_for_each_workload_and_pass(device, capsys):
    assert main(["explain", "--workloads", "--device", device, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["workload"], one["pass"]) for one in found] == [(w.name, d) for w in WORKLOADS for d in DIRECTIONS]
    for one in found:
        assert set(one) >= KEYS
        assert one["reason"]
        counted = [one[name] is not None for name in ("launches", "turns", "predicted_us")]
        assert counted == [device != "cpu"] * 3


def test_what_no_kernel_runs_has_no_counts():
    """A T4 has no bfloat16: torch operations run."""
    found = of_workload(named(["brain-to-text"])[0], PRESETS["T4"], "forward")
    assert (found["schedule"], found["launches"], found["predicted_us"]) == ("eager", None, None)
    assert "T4 has no bfloat16" in found["reason"]


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("device", ["h100", "t4", "cpu"])
def test_the_table_fits_the_terminal(device, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["explain", "--workloads", "--device", device]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    assert all(workload.name in shown for workload in WORKLOADS)


def test_sizes_of_a_layer_are_refused_beside_workloads(capsys):
    assert main(["explain", "--workloads", "--seq-len", "7"]) == 2
    assert "--workloads: expected no sizes of a layer beside it, got --seq-len" in capsys.readouterr().err
