"""`trigru check`: green here, red for a wrong schedule, and plain about what it could not check."""

from __future__ import annotations

import json

import pytest
import torch

import trigru
from trigru.command import check
from trigru.command.check_cases import NUMBERS
from trigru.command.cli import main
from trigru.planning.devices import PRESETS
from trigru.schedules import eager

ONE = ["--quick", "--variant", "torch", "--dtype", "fp32"]


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """A terminal in which no sentence is broken."""
    monkeypatch.setenv("COLUMNS", "300")


def test_every_schedule_that_runs_here_is_right(capsys):
    assert main(["check", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert found["versions"]["torch"]
    here = {(row["schedule"], row["variant"], row["numbers"]) for row in found["results"]}
    numbers = ("fp64", "fp32", "fp16", "bf16")
    assert here == {(s, v, n) for s in ("auto", "eager") for v in trigru.VARIANTS for n in numbers}
    for row in found["results"]:
        assert row["where"] == "cpu"
        assert row["passed"] is True
        assert 0 < row["error"] <= row["tolerance"] == NUMBERS[row["numbers"]].tolerance
        assert row["cases"] == len(check.check_cases.CASES)
        assert row["worst"]
    refused = {(row["schedule"], row["numbers"]) for row in found["not_checked"]}
    of_kernels = {(s, n) for s in check.KERNELS for n in ("fp32", "tf32", "fp16", "bf16")}
    assert refused == of_kernels | {("cudnn", n) for n in numbers}
    assert all("on cpu" in row["reason"] for row in found["not_checked"])


def test_what_could_not_be_checked_is_said(capsys, monkeypatch):
    monkeypatch.setattr("trigru.planning.plan.why_no_kernels", lambda device, dtype: "the reason")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["check", "--device", "cpu", *ONE]) == 0
    shown = capsys.readouterr().out
    assert "stepwise, walking, resident, persistent on cpu (fp32): the reason\n" in shown
    assert "No Triton kernel was executed: there is no GPU that torch can use." in shown
    assert "\n  trigru check --ptx" in shown
    monkeypatch.setattr(check, "PTX_FOLDER", check.PTX_FOLDER / "missing")
    assert main(["check", "--device", "cpu", *ONE]) == 0
    assert "\n  in a checkout of the repository, trigru check --ptx" in capsys.readouterr().out


def test_nothing_checked_is_no_success(capsys):
    assert main(["check", "--device", "cpu", "--schedule", "persistent"]) == 1
    shown = capsys.readouterr().out
    assert "persistent on cpu (fp32, tf32, fp16, bf16): " in shown
    assert shown.endswith("Nothing could be checked.\n")


def scaled(function, index, factor):
    def wrong(*args):
        results = function(*args)
        if results is None:
            run = args[2]  # which says where the results are
            (run.output, run.h_n)[index].mul_(factor)
        elif hasattr(results, "weights"):
            flat = [results.input, results.h0, *results.weights]
            flat[index] = flat[index] * factor
            return results._replace(input=flat[0], h0=flat[1], weights=tuple(flat[2:]))
        else:
            results[index].mul_(factor)
        return results

    return wrong


@pytest.mark.parametrize(
    ("function", "index", "factor", "named"),
    [
        ("forward", 0, float("nan"), "output"),
        ("forward", 1, float("nan"), "h_n"),
        ("backward", 1, 1.0001, "gradient of h0"),
        ("backward", 3, -1, "gradient of w_hh"),
        ("backward", 5, 1.0001, "gradient of b_hh"),
    ],
)
def test_a_wrong_schedule_is_found(function, index, factor, named, monkeypatch, capsys):
    monkeypatch.setattr(eager, function, scaled(getattr(eager, function), index, factor))
    assert main(["check", "--device", "cpu", "--schedule", "eager", *ONE]) == 1
    shown = capsys.readouterr().out
    assert f"WRONG: eager, torch, fp32 on cpu: {named} (5 steps, batch 3, 9 -> 17, " in shown
    assert shown.endswith("1 of 1 are wrong.\n")


def test_a_schedule_that_raises_is_wrong_and_the_others_are_checked(monkeypatch, capsys):
    def raises(*args, **kwargs):
        raise RuntimeError("the kernel's message\nand a second line")

    monkeypatch.setattr(eager, "backward", raises)
    assert main(["check", "--device", "cpu", "--schedule", "auto", "eager", *ONE, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    # Of so short a sequence torch's own GRU takes the padded layer, the schedule the packed one.
    assert [row["error"] for row in found["results"]] == [None, None]
    assert all(row["worst"].startswith("RuntimeError: the kernel's message (5 steps") for row in found["results"])


@pytest.mark.parametrize(("target", "schedule"), [("sm_80", "resident"), ("sm_90", "persistent")])
def test_compiled_kernels_are_executed(target, schedule, capsys):
    argv = ["check", "--ptx", target, "--schedule", schedule, "--quick", "--variant", "cho", "--dtype", "bf16"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in (f"PTX {target}", schedule))
    assert "No Triton kernel" not in shown


def test_a_wrong_kernel_is_found(monkeypatch, capsys):
    from trigru.kernels import stepwise

    monkeypatch.setattr(stepwise, "forward", scaled(stepwise.forward, 0, 1.0001))
    argv = ["check", "--ptx", "--schedule", "stepwise", *ONE]
    assert main(argv) == 1
    assert "WRONG: stepwise, torch, fp32 on PTX sm_90: " in capsys.readouterr().out


def test_ptx_needs_a_checkout(monkeypatch, capsys):
    monkeypatch.setattr(check, "PTX_FOLDER", check.PTX_FOLDER / "missing")
    assert main(["check", "--ptx"]) == 1
    assert capsys.readouterr().err.startswith("trigru check: --ptx: expected a checkout of the repository")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_here(device, capsys):
    assert main(["check", "--device", device]) == 2
    assert device in capsys.readouterr().err


def test_precision_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert main(["check", "--device", "cpu", *ONE]) == 0
    assert torch.backends.cudnn.allow_tf32 is True


def test_a_gpu_without_bfloat16_is_checked_in_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr("trigru.planning.plan.present", lambda index: PRESETS["T4"])
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    place = check.Place("cuda:0", torch.device("cuda", 0))
    assert check._half([place]) == "fp16"
    for case in check.check_cases.CASES:
        for schedule in ("eager", "stepwise"):
            why = {n: check._obstacle(place, schedule, "torch", NUMBERS[n], case) for n in NUMBERS if n != "fp64"}
            assert why["fp32"] is None
            assert why["fp16"] is None
            assert "needs a GPU of compute capability 8.0 or newer" in why["tf32"]
            assert "needs a GPU of compute capability 8.0 or newer" in why["bf16"]


def test_every_kernel_schedule_is_checked_in_a_cuda_graph(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr("trigru.planning.plan.present", lambda index: PRESETS["H100"])
    place = check.Place("cuda:0, CUDA graph", torch.device("cuda", 0), check.KERNELS, graph=True)
    for case in check.check_cases.QUICK_CASES:
        for schedule in check.KERNELS:
            assert check._obstacle(place, schedule, "torch", NUMBERS["bf16"], case) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_on_a_gpu(capsys):
    assert main(["check", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ran = {(row["where"], row["schedule"]) for row in found["results"]}
    assert {("cuda:0", "stepwise"), ("cuda:0, CUDA graph", "stepwise"), ("cuda:0, CUDA graph", "resident")} <= ran
