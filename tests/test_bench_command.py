"""`trigru bench` from end to end with sizes that take no time: rows, figures, table, exit code; and the summary."""

from __future__ import annotations

import json
import os
import threading

import pytest
import torch

from trigru.bench import run
from trigru.bench.cases.case import Case
from trigru.bench.cases.grid import Choice
from trigru.bench.report import figures, report, summary
from trigru.bench.run import Outcome
from trigru.bench.suites import overhead
from trigru.command.cli import main

SHARED = ("device", "device_name", "threads", "versions", "commit", "command", "date")
SIZES = ("hidden_size", "batch", "seq_len", "variant", "dtype", "precision", "packed", "direction", "peer")
TIMES = ("ours_ms", "peer_ms", "ratio", "ratio_p20", "ratio_p50", "ratio_p80", "ours_ms_p50", "peer_ms_p80")


@pytest.fixture(autouse=True)
def _threads():
    yield
    torch.set_num_threads(1)


def rows_in(folder, suite):
    return [json.loads(line) for line in (folder / f"{suite}.jsonl").read_text().splitlines()]


def test_suites_of_layers(tmp_path, capsys):
    suites = ["layer", "step", "module", "cpu", "memory"]
    assert main(["bench", "--device", "cpu", "--tiny", "--suite", *suites, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for suite in suites:
        assert suite in shown
        rows = rows_in(tmp_path, suite)
        assert rows
        for row in rows:
            assert row["suite"] == suite
            assert not [name for name in SHARED if row.get(name) is None]
            names = SIZES[:-2] if suite == "memory" else (*SIZES, *TIMES)
            assert not [name for name in names if row.get(name) is None]
    for name in ("layer-time", "layer-speedup", "cpu-time", "cpu-speedup"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    ran = json.loads((tmp_path / "run.json").read_text())
    assert ran["suites"] == suites
    assert ran["left_out"] == []
    assert ran["finished"]
    assert {row["variant"] for row in rows_in(tmp_path, "cpu")} == {"torch", "cho", "chung"}


def test_triton_starts_nothing_while_its_part_is_measured():
    from triton.compiler import CompiledKernel

    run = CompiledKernel.__dict__["run"]
    with overhead.nothing_started():
        assert CompiledKernel.run.fget(None)(1, 2, 3) is None
    assert CompiledKernel.__dict__["run"] is run


def test_a_row_against_additions():
    class Timer:
        def durations(self, calls, rounds):
            for call in calls:
                call()
            return [(2.0, 10.0, 4.0)] * rounds

    started = []
    rounds = overhead._against_additions(Timer(), [lambda: started.append(1), lambda: started.append(2)], 0.01)
    assert len(started) >= 2 * overhead.CALLS
    case = Case("overhead", "cuda", "fp16", "torch", 128, 16, 1, schedule="stepwise")
    row = overhead._additions_row(case, "forward", [(mine, unit) for mine, _, unit in rounds])
    assert row["times_additions"] == 0.5


def test_all_threads_go_to_one_core_and_back():
    before, inside, wait = os.sched_getaffinity(0), [], threading.Event()
    thread = threading.Thread(target=lambda: (wait.wait(), inside.append(os.sched_getaffinity(0))))
    thread.start()
    with overhead.on_one_core():
        wait.set()
        thread.join()
        inside.append(os.sched_getaffinity(0))
    assert [len(cores) for cores in inside] == [1, 1]
    assert os.sched_getaffinity(0) == before


def test_an_empty_function_beside_calls():
    x, state = torch.zeros(1, 1, 16), torch.zeros(1, 1, 16)
    weights = [torch.zeros(48, size, requires_grad=True) for size in (16, 16)]
    weights += [torch.zeros(48, requires_grad=True) for _ in range(2)]
    grads = []
    for weight in weights:
        weight.register_post_accumulate_grad_hook(lambda weight: grads.append(weight.grad.shape))
    overhead._forward_and_backward(lambda x: overhead.Empty.apply(x, state, *weights), x, weights)
    assert sorted(grads) == sorted(weight.shape for weight in weights)
    assert all(weight.grad is None for weight in weights)

    class Timer:
        def durations(self, calls, rounds):
            return [(6.0, 2.0, 4.0)] * rounds

    cases = [Case("overhead", "cuda", "fp16", "torch", 16, 1, 1, schedule=name) for name in ("resident", "empty")]
    own, empty = overhead._together(Timer(), dict.fromkeys(cases, lambda: None), "forward+backward", 0.01)
    assert (own["times_additions"], own["times_empty"]) == (1.5, 3.0)
    assert (empty["schedule"], empty["times_additions"], empty["times_empty"]) == ("empty", 0.5, 1.0)


def test_overhead_goes_to_the_launch(tmp_path):
    options = ["--device", "cpu", "--tiny", "--suite", "overhead", "--no-figures"]
    assert main(["bench", *options, "--out", str(tmp_path)]) == 0
    *calls, imported = rows_in(tmp_path, "overhead")
    assert [row["schedule"] for row in calls] == [name for name in overhead.SCHEDULES for _ in range(2)]
    for row in calls:
        launched = row["to_launch_ms"] is not None
        assert launched == (row["schedule"] != "torch")
    assert imported["peer"] == "torch"
    assert imported["ours_ms"] > 0


def test_time_that_is_up_leaves_out_and_says_so(tmp_path, capsys):
    options = ["--device", "cpu", "--quick", "--suite", "cpu", "step", "--minutes", "0", "--no-figures"]
    assert main(["bench", *options, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "left out, for the time was up: 2 (cpu: all of it; step: all of it)" in shown.out
    assert shown.err == "trigru bench: nothing was measured\n"


def test_sizes_and_schedule_by_name(tmp_path):
    options = ["--suite", "cpu", "--variant", "cho", "--hidden", "5", "--batch", "2", "--seq-len", "9"]
    options += ["--schedule", "eager", "--direction", "forward", "--seconds", "0", "--threads", "1", "--device", "cpu"]
    assert main(["bench", *options, "--out", str(tmp_path), "--no-figures"]) == 0
    (row,) = rows_in(tmp_path, "cpu")
    found = [row[name] for name in ("variant", "hidden_size", "batch", "seq_len", "schedule", "direction")]
    assert found == ["cho", 5, 2, 9, "eager", "forward"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_a_device_that_is_not_there(tmp_path, capsys):
    assert main(["bench", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "--device: expected one that torch can use, got cuda" in capsys.readouterr().err


def test_a_suite_that_fails_is_noted_and_the_next_one_runs(tmp_path, capsys, monkeypatch):
    def broken(*args):
        raise RuntimeError("no room")

    monkeypatch.setattr(run.memory, "row", broken)
    options = ["--device", "cpu", "--tiny", "--suite", "memory", "step", "--no-figures"]
    assert main(["bench", *options, "--out", str(tmp_path)]) == 1
    assert "failed: suite memory: RuntimeError: no room" in capsys.readouterr().out
    assert rows_in(tmp_path, "step")


def test_without_tqdm(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    options = ["--device", "cpu", "--tiny", "--suite", "step", "--no-figures"]
    assert main(["bench", *options, "--out", str(tmp_path)]) == 0
    assert "step: 0 of 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--schedule", "persistent"], ["--peers", "flashrnn"]],
    ids=["a schedule that cannot run", "a peer that is not installed"],
)
def test_an_empty_table_is_an_error_and_says_why(options, tmp_path, capsys):
    argv = ["bench", "--device", "cpu", "--tiny", "--suite", "cpu", "--no-figures", *options]
    assert main([*argv, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "skipped: " in shown.out
    assert shown.err == "trigru bench: nothing was measured\n"


def test_quick_begins_with_what_is_compared_with_nn_gru():
    """Training a layer first, the host's work of a call not at all; by kernels only what can run."""
    assert run.default_suites(Choice("cpu", "quick"))[0] == "cpu"
    assert run.default_suites(Choice("cuda", "quick"))[0] == "layer"
    for device in ("cpu", "cuda"):
        assert "overhead" not in run.default_suites(Choice(device, "quick"))
        assert run.default_suites(Choice(device))[0] == run.default_suites(Choice(device, "quick"))[0]


def test_without_triton_suites_of_kernels_are_left_out(monkeypatch):
    monkeypatch.setattr(run, "why_unusable", lambda: "the reason")
    assert run.default_suites(Choice("cpu")) == ("cpu", "module", "memory", "step")
    assert run.why_no_suite("overhead") == "the reason"


def test_json(tmp_path, capsys):
    argv = ["bench", "--device", "cpu", "--tiny", "--suite", "cpu", "--variant", "torch", "--no-figures", "--json"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["headline"].startswith("Training a layer: trigru is ")
    assert found["rows"] == rows_in(tmp_path, "cpu")


def test_a_run_is_shown_again_from_its_folder(tmp_path, capsys):
    argv = ["bench", "--device", "cpu", "--tiny", "--suite", "cpu", "--out", str(tmp_path)]
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert main(["bench", "--show", str(tmp_path)]) == 0
    assert capsys.readouterr().out == first
    assert main(["bench", "--show", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize("columns", ["40", "60", "300"])
def test_the_table_fits_and_says_which_side_is_better(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    rows = [
        row(ratio=1.9, suite="cpu", direction="forward+backward", mode="eager"),
        row(ratio=0.8, suite="cpu", direction="forward", mode="eager"),
        {"suite": "memory", "variant": "torch", "peer": "nn.GRU", "ratio": 1.333, "hidden_size": 128},
    ]
    report.show(Outcome(rows))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= int(columns)
    for said in ("1.90x faster", "1.25x slower", "1.33x less"):
        assert said in " ".join(shown.split())
    assert "Training a layer: trigru is 1.90x faster than nn.GRU" in " ".join(shown.split())


def row(**fields):
    """A GPU's row, invented."""
    base = {
        "suite": "layer", "device": "cuda", "device_name": "H100", "dtype": "bfloat16", "precision": "ieee",
        "variant": "torch", "schedule": "persistent", "memory": "keep", "hidden_size": 512, "batch": 64,
        "seq_len": 1024, "packed": False, "direction": "forward", "mode": "graph", "peer": "nn.GRU",
        "ours_ms": 2.048, "peer_ms": 4.096, "ratio": 2.0, "bound_ms": 1.024, "bound_by": "exchange", "bound_ratio": 2.0,
    }  # fmt: skip
    times = {f"{side}_ms_{p}": base[f"{side}_ms"] for side in ("ours", "peer") for p in ("p20", "p50", "p80")}
    return {**base, **times, **fields}


def test_speeds_fill_the_readmes_table_and_nothing_else_does():
    wrong = [row(device="cpu"), row(mode="eager"), row(peer="haste"), row(error="WrongResult")]
    wrong = [{**one, "dtype": "float32", "seq_len": 256} for one in wrong]
    tf32 = row(dtype="float32", precision="tf32")
    lines = summary.speeds([*wrong, row(), tf32]).splitlines()
    assert len(lines) == 2 + len(summary.HEADLINES)
    filled = [line for line in lines[2:] if line.count(summary.MISSING) == 2]  # forward+backward is missing
    assert [line.split()[1] for line in filled] == ["bf16", "tf32"]
    assert all("2.00" in line for line in filled)


def test_nothing_measured_is_said():
    lines = summary.speeds([]).splitlines()[2:]
    assert all(line.count(summary.MISSING) == 4 for line in lines)


def test_summary_of_a_folder(tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (tmp_path / "parts.tsv").write_text("install\tok\t3\tdone\ntests\tFAILED with exit code 1\t9\t2 failed\n")
    bad = {**row(direction="backward"), "error": "KernelTimeout: gave up"}
    real = row(suite="workloads", workload="rmvpe", ratio=1.25)
    (folder / "layer.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (row(), real, bad)))
    ran = {
        "device_name": "H100", "date": "2030-01-01T00:00:00Z", "commit": "abc", "versions": {"torch": "3"},
        "left_out": ["layer: something"], "skipped": [{"peer": "haste", "reason": "is not installed", "cases": 4}],
        "failed": {}, "latencies": {"round_trip_s": 1.5e-6}, "finished": False,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(ran))
    assert summary.main([str(tmp_path)]) == 0
    text = (tmp_path / "summary.md").read_text()
    for said in (
        "# Benchmarks on H100",
        "FAILED with exit code 1",
        "round_trip 1.50 us",
        "- full: no time: layer torch H 512, B 64, T 1024 backward, graph against nn.GRU: KernelTimeout: gave up",
        "- full: skipped: haste in 4 cases: is not installed",
        "- full: left out, for the time was up: 1 (layer: something)",
        "- full: the run was cut off; what it had measured is above",
        "| exchange",
        "| rmvpe    | bfloat16 | forward | in a graph | 2.05 |         1.25 |",
    ):
        assert said in text, said


def test_summary_of_no_folder(tmp_path, capsys):
    assert summary.main([str(tmp_path / "none")]) == 2
    assert "usage:" in capsys.readouterr().err


def test_the_table_has_geometric_mean_and_lowest():
    lines = report.lines([row(ratio=1.0, batch=1), row(ratio=4.0), row(error="no time", ratio=9.0)])
    ((*_, count, mean, lowest, at),) = lines
    assert (count, mean, lowest, at) == (2, pytest.approx(2.0), 1.0, "H 512, B 1, T 1024")


OTHERS = [{"input_size": 7}, {"num_layers": 2}, {"bidirectional": True}, {"cell": True}]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_other_shapes_are_in_the_table_but_not_beside_plain_layers(other, tmp_path):
    """Figures, headline and the table of speeds know a layer by its sizes alone."""
    plain = row(direction="forward+backward", input_size=512, num_layers=1, bidirectional=False, cell=False)
    odd = {**plain, **other, "ratio": 9.0}
    assert report.headline([plain, odd]) == report.headline([plain])
    assert summary.speeds([odd]) == summary.speeds([])
    assert figures.draw([odd], tmp_path) == []
    ((*_, count, _, _, at),) = report.lines([{**plain, **other, "ratio": 0.1}, plain])
    assert count == 2
    assert (
        at
        == {
            "input_size": "I 7, H 512, B 64, T 1024",
            "num_layers": "H 512, B 64, T 1024, 2 layers",
            "bidirectional": "H 512, B 64, T 1024, both directions",
            "cell": "H 512, B 64, T 1024",
        }[next(iter(other))]
    )


def test_a_row_without_a_time_is_noted():
    outcome = Outcome([row(), row(error="WrongResult: trigru: output")])
    (note,) = report.notes(outcome)
    assert note.startswith("no time: layer torch H 512")


def test_figures_of_a_gpus_rows(tmp_path):
    rows = [
        row(hidden_size=h, batch=b, seq_len=t, mode=mode, direction=direction)
        for h, b, t in ((128, 64, 1024), (512, 64, 1024), (512, 1, 1024), (512, 64, 64))
        for mode in ("eager", "graph")
        for direction in ("forward", "forward+backward")
    ]
    drawn = figures.draw([*rows, row(peer="haste"), row(error="none", direction="backward")], tmp_path)
    assert [path.name for path in drawn] == ["layer-time.png", "layer-speedup.png"]
    for path in drawn:
        width = int.from_bytes(path.read_bytes()[16:20], "big")
        assert width <= 1200, "digits are too small at the 800 pixels that a page has"
    assert all(path.stat().st_size > 10_000 for path in drawn)
    assert figures.draw([row(error="none")], tmp_path) == []


def test_a_run_that_is_cut_off_leaves_and_shows_what_it_had(tmp_path, monkeypatch, capsys):
    def cut_off(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.memory, "row", cut_off)
    options = ["--device", "cpu", "--tiny", "--suite", "step", "memory", "--no-figures"]
    assert main(["bench", *options, "--out", str(tmp_path)]) == 130
    shown = capsys.readouterr()
    assert "step" in shown.out
    assert (
        shown.err.splitlines()[-1] == f"trigru bench: interrupted; {len(rows_in(tmp_path, 'step'))} rows in {tmp_path}"
    )
    assert not json.loads((tmp_path / "run.json").read_text())["finished"]
