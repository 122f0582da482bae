"""Rows made from known constants give these constants back, and the planner reads the table that is stored."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from trigru.bench.fitting import fit
from trigru.bench.fitting.least_squares import nonnegative
from trigru.command.options import Refused
from trigru.planning import cost, devices
from trigru.planning.candidates import candidates

TRUE = {"launch_time": 2.3e-6, "exchange_time": 1.1e-6, "l2_bandwidth": 3.1e12}
PROJECTION, CALL = 2.5e-15, 9e-6


NUMBERS = (("bfloat16", "ieee"), ("float32", "tf32"))
SIZES = tuple(product(("torch", "cho"), (64, 128, 512, 1024), (16, 64, 512), (64, 1024)))


def made(device, noise=0.0):
    """Rows as suite "layer" writes them, with the times of `device` and what is beside its steps."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for (dtype, precision), (variant, hidden_size, batch, seq_len) in product(NUMBERS, SIZES):
        layer = cost.Layer(variant, getattr(torch, dtype), batch, hidden_size, False, precision)
        case = {"variant": variant, "dtype": dtype, "precision": precision, "hidden_size": hidden_size}
        case |= {"batch": batch, "seq_len": seq_len, "packed": False, "direction": "forward", "mode": "graph"}
        case |= {"suite": "layer", "device": "cuda", "device_name": "NVIDIA H100 80GB HBM3"}
        for planned in candidates(device, layer):
            step = cost.time(planned.step, device, layer, graph=True) + PROJECTION * 6 * batch * hidden_size**2
            factor = 1 + noise * float(torch.randn((), generator=generator))
            rows.append({**case, "schedule": planned.schedule, "ours_ms": (seq_len * step + CALL) * factor * 1e3})
    return rows


@pytest.fixture
def h100():
    return devices.PUBLISHED["H100"]


def test_constants_are_recovered(h100):
    rows = made(replace(h100, **TRUE))
    result = fit.fit(fit.samples(rows, h100), h100)
    for name, value in TRUE.items():
        assert getattr(result.device, name) == pytest.approx(value, rel=1e-3), name
    assert result.projection == pytest.approx(PROJECTION, rel=1e-2)
    assert result.call == pytest.approx(CALL, rel=1e-2)
    assert result.error < 1.001


def test_noise_moves_them_little(h100):
    rows = made(replace(h100, **TRUE), noise=0.03)
    result = fit.fit(fit.samples(rows, h100), h100)
    assert result.device.launch_time == pytest.approx(TRUE["launch_time"], rel=0.1)
    assert result.device.exchange_time == pytest.approx(TRUE["exchange_time"], rel=0.1)
    assert result.error < 1.1


def test_only_rows_that_say_something_count(h100):
    (good, *_) = made(h100)
    others = [
        {**good, "mode": "eager"},
        {**good, "direction": "forward+backward"},
        {**good, "packed": True},
        {**good, "schedule": "eager"},
        {**good, "suite": "module"},
        {**good, "ours_ms": None},
        good,  # the same case again, against another peer
    ]
    assert len(fit.samples([good, *others], h100)) == 1


def test_too_few_rows(h100):
    with pytest.raises(ValueError, match="expected at least 8"):
        fit.fit(fit.samples(made(h100)[:3], h100), h100)


def test_which_device():
    assert fit.device_of([{"device_name": "NVIDIA H100 PCIe", "multiprocessors": 114}]).multiprocessors == 114
    with pytest.raises(ValueError, match=r"expected those of one of A100, .*, got GTX 1080"):
        fit.device_of([{"device_name": "GTX 1080"}])
    with pytest.raises(ValueError, match="expected those of one GPU, got A100, H100"):
        fit.device_of([{"device_name": "A100"}, {"device_name": "H100"}])
    with pytest.raises(ValueError, match="got none"):
        fit.device_of([])


def test_stored_and_read_by_the_planner(tmp_path, monkeypatch, capsys, h100):
    monkeypatch.setattr(fit, "FITTED", tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in made(replace(h100, **TRUE))))
    assert fit.run(rows, write=True) == 0
    shown = capsys.readouterr().out
    assert "predicted / measured" in shown
    assert "geometric error 1.000" in shown
    table = json.loads((tmp_path / "h100.json").read_text())
    assert table["rows"] > 100
    read = devices.fitted(h100, tmp_path)
    assert read.origin == "fitted"
    assert read.exchange_time == pytest.approx(TRUE["exchange_time"], rel=1e-3)
    layer = cost.Layer("torch", torch.bfloat16, 64, 512)
    seconds = {found.schedule: found.seconds for found in candidates(read, layer)}
    assert seconds["persistent"] > {found.schedule: found.seconds for found in candidates(h100, layer)}["persistent"]


def test_without_a_table_constants_are_the_published_ones(tmp_path, h100):
    assert devices.fitted(h100, tmp_path) is h100
    assert h100.origin == "published"


def test_rows_of_a_cpu_are_refused(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"device": "cpu", "device_name": "AMD EPYC"}) + "\n")
    with pytest.raises(Refused, match="expected those of one GPU, got none"):
        fit.run(rows, write=False)


@pytest.mark.parametrize("seed", range(20))
def test_least_squares_meet_the_conditions_of_a_minimum(seed):
    """x >= 0, and no component can change for the better: where x > 0 the gradient is 0, elsewhere it is not
    negative."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    matrix *= torch.tensor([1e-6, 1.0, 1e9, 1.0, 0.0, 1.0])
    right = torch.randn(20, generator=generator, dtype=torch.float64)
    x = nonnegative(matrix, right)
    gradient = matrix.T @ (matrix @ x - right) / matrix.norm(dim=0).clamp_min(1e-30)
    assert (x >= 0).all()
    assert gradient[x > 0].abs().max() < 1e-8
    assert gradient.min() > -1e-8
    assert x[4] == 0
