"""The planner: pure, so every device's plan is tested without one."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

import trigru
from trigru.bench.suites.work_persistent import floor
from trigru.checks import layer_of
from trigru.command.cli import main
from trigru.kernels import config
from trigru.planning import cost
from trigru.planning.candidates import DIRECTIONS, candidates
from trigru.planning.devices import PRESETS, present, preset
from trigru.planning.plan import Site, plan
from trigru.schedules import eager_products

HALVES = (torch.bfloat16, torch.float16)
SIZES = [(batch, hidden_size) for batch in (1, 16, 64, 512) for hidden_size in (32, 100, 128, 512, 1000, 1024, 2048)]
LAYERS = [
    cost.Layer(variant, dtype, batch, hidden_size, precision=precision)
    for variant in trigru.VARIANTS
    for dtype, precision in ((torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))
    for batch, hidden_size in SIZES
]


@pytest.fixture(autouse=True)
def _any_triton(monkeypatch):
    """Plan as with a Triton under which threads wait for themselves, whichever is installed."""
    monkeypatch.setattr(config, "waits_by_thread", lambda: True)


def test_a_triton_with_another_layout_limits_the_persistent_schedule(monkeypatch):
    monkeypatch.setattr(config, "waits_by_thread", lambda: False)
    monkeypatch.setattr("trigru.planning.candidates.waits_by_thread", lambda: False)
    found = {c.schedule: c for c in candidates(preset("H100"), cost.Layer("torch", torch.bfloat16, 16, 512))}
    assert "this version of Triton" in (found["persistent"].obstacle or "")
    small = {c.schedule: c for c in candidates(preset("H100"), cost.Layer("torch", torch.bfloat16, 16, 128))}
    assert small["persistent"].obstacle is None


@pytest.mark.parametrize("name", PRESETS)
def test_every_layer_has_a_plan_on_every_device_that_has_its_dtype(name):
    device = preset(name)
    for layer, direction in itertools.product(LAYERS, DIRECTIONS):
        found = candidates(device, layer, direction)
        assert {c.schedule for c in found} == {"stepwise", "walking", "resident", "persistent"}
        runnable = [c for c in found if c.obstacle is None]
        assert bool(runnable) == (device.has_bfloat16 or layer.dtype != torch.bfloat16)
        assert found[: len(runnable)] == sorted(runnable, key=lambda c: c.seconds)
        for c in runnable:
            assert 1.0001 * c.seconds * device.l2_bandwidth >= c.step.total_l2_bytes  # however many share it
            arithmetic = c.step.programs * c.step.flops
            assert 1.0001 * c.seconds * device.flops(layer.dtype, layer.precision) >= arithmetic > 0
            if c.schedule == "persistent":
                programs = c.config.grid(layer.hidden_size, layer.batch)[0]
                there = device.multiprocessors * c.config.on_a_multiprocessor
                assert programs * c.config.tiles_at_once <= there
                assert c.turns * there >= c.step.programs
            if c.schedule == "resident":
                assert c.config.shared_bytes(layer.dtype, layer.hidden_size) <= device.shared_per_block


@pytest.mark.parametrize("variant", trigru.VARIANTS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_persistent_reaches_1024_hidden_units_on_an_h100(dtype, direction, variant):
    for batch in (1, 16, 32):
        found = candidates(preset("H100"), cost.Layer(variant, dtype, batch, 1024), direction)
        assert found[0].schedule == "persistent"
    tf32 = cost.Layer(variant, torch.float32, 16, 512, precision="tf32")
    assert candidates(preset("H100"), tf32, direction)[0].schedule == "persistent"


@pytest.mark.parametrize(
    ("device", "layer", "schedule", "reason"),
    [
        ("T4", cost.Layer("torch", torch.bfloat16, 16, 128), "stepwise", "T4 has no bfloat16"),
        ("T4", cost.Layer("torch", torch.float16, 16, 128), "persistent", "compute capability 8.0"),
        ("L4", cost.Layer("torch", torch.float16, 16, 128), "resident", "shared memory a program, 99 are there"),
        ("H100", cost.Layer("torch", torch.float16, 16, 256), "resident", "shared memory a program, 227 are there"),
        ("H100", cost.Layer("torch", torch.float32, 16, 256), "persistent", "float32 without TF32"),
        ("H100", cost.Layer("torch", torch.float16, 16, 2049), "persistent", "spill above hidden_size 2048"),
        ("L4", cost.Layer("torch", torch.float16, 16, 1024), "persistent", "64 programs .* together, 58 can"),
    ],
)
def test_what_does_not_fit_says_why(device, layer, schedule, reason):
    found = {c.schedule: c for c in candidates(preset(device), layer)}
    with pytest.raises(AssertionError, match=reason):
        assert not found[schedule].obstacle, found[schedule].obstacle


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_tile_has_eight_sequences_where_all_tiles_have_multiprocessors_of_their_own(direction):
    def chosen(device, batch, **fields):
        found = candidates(preset(device), cost.Layer("torch", torch.bfloat16, batch, 1024, **fields), direction)
        return next(c.config for c in found if c.schedule == "persistent")

    assert [chosen("H100", batch).block_b for batch in (8, 16, 17)] == [8, 8, 16]  # 64 programs a tile, 132 can run
    assert chosen("A100", 16).block_b == 16
    assert chosen("H100", 16, directions=2).block_b == 16
    with trigru.batch_invariant():
        assert chosen("H100", 16).block_b == 16


def test_counts_of_a_step_are_those_of_the_schedules():
    layer = cost.Layer("torch", torch.bfloat16, 16, 512)
    step = cost.persistent(layer, 16, 16)
    assert (step.launches, step.exchanges, step.programs) == (0, 1, 32)
    assert cost.stepwise(layer, 32, 16).launches == 1
    assert cost.resident(layer, 16).exchanges == 0
    cho = cost.Layer("cho", torch.bfloat16, 16, 512)
    assert cost.persistent(cho, 16, 16).exchanges == 2
    assert cost.stepwise(cho, 32, 16).launches == 2


@pytest.mark.parametrize(
    ("variant", "direction", "kernel"),
    [
        ("torch", "forward", "forward_torch"),
        ("torch", "backward", "backward_torch"),
        ("cho", "forward", "forward_reset_first"),
        ("chung", "backward", "backward_reset_first"),
    ],
)
def test_the_model_counts_the_bytes_that_the_compiled_kernels_move(variant, direction, kernel):
    """`floor` is what executing them gives, see test_work_persistent.py."""
    step = cost.persistent(cost.Layer(variant, torch.bfloat16, 16, 512), 16, 16, direction)
    assert step.total_l2_bytes == sum(floor(kernel, 512, 16, 2, 16))


def test_an_unknown_direction_is_an_error():
    with pytest.raises(ValueError, match="direction: expected one of 'forward', 'backward', got 'up'"):
        candidates(preset("H100"), cost.Layer("torch", torch.bfloat16, 16, 512), "up")


def test_more_of_anything_never_costs_less():
    device = preset("H100")
    for variant, hidden_size in itertools.product(trigru.VARIANTS, (64, 512)):
        times = [
            cost.time(cost.persistent(layer, 16, 16), device, layer)
            for batch in (1, 16, 64, 512)
            for layer in [cost.Layer(variant, torch.bfloat16, batch, hidden_size)]
        ]
        assert times == sorted(times)


def test_presets_have_forgiving_names():
    assert preset("rtx4090") is preset("RTX 4090") is PRESETS["RTX 4090"]
    assert preset("h100").target == "sm_90"
    with pytest.raises(ValueError, match=r"device: expected one of A100.*got 'H1000'"):
        preset("H1000")


def test_explain_prints_the_candidates_as_predictions(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["explain", "--device", "h100", "--hidden", "512", "--batch", "64", "--dtype", "bf16"]) == 0
    text = capsys.readouterr().out
    assert "Predictions" in text
    assert "not measurements" in text
    named = [
        line.split()[0] for line in text.splitlines() if line.startswith(("persistent ", "stepwise ", "resident "))
    ]
    assert named == ["persistent", "stepwise", "resident"]
    assert "resident cannot run: needs 1600 KiB of shared memory a program, 227 are there" in text


@pytest.mark.parametrize(
    ("name", "capability", "multiprocessors", "alike"),
    [
        ("NVIDIA L40S", (8, 9), 142, "RTX 4090"),
        ("NVIDIA L4", (8, 9), 58, "L4"),
        ("NVIDIA H100 80GB HBM3", (9, 0), 132, "H100"),
        ("NVIDIA A100-SXM4-40GB", (8, 0), 108, "A100"),
        ("NVIDIA RTX PRO 6000", (12, 0), 188, "B200"),
    ],
)
def test_a_device_at_hand_gets_the_rates_of_the_one_most_like_it(monkeypatch, name, capability, multiprocessors, alike):
    properties = SimpleNamespace(
        name=name, major=capability[0], minor=capability[1], multi_processor_count=multiprocessors
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    found = present.__wrapped__(0)
    assert (found.name, found.capability, found.multiprocessors) == (name, capability, multiprocessors)
    assert found.l2_bandwidth == PRESETS[alike].l2_bandwidth


def test_large_products_repay_a_short_sequence_where_onednn_is_faster(monkeypatch):
    def schedule(size, batch, seq_len, recording):
        site = Site(torch.device("cpu"), torch.float32, seq_len, batch, False, recording, True)
        return plan(layer_of(size, size), site).schedule

    large = [(512, 240, 2, True), (512, 240, 1, False), (256, 128, 4, True), (128, 128, 9, False)]
    small = [(64, 32, 8, True), (512, 240, 1, True), (64, 32, 8, False)]
    long = [(64, 32, 9, True), (64, 32, 128, False), (64, 32, 32, False)]
    monkeypatch.setattr(eager_products, "is_zen4", lambda: False)
    monkeypatch.setattr(eager_products, "_onednn", lambda: "onednn")
    assert {schedule(*call) for call in large + long} == {"eager"}
    assert {schedule(*call) for call in small} == {"torch"}
    monkeypatch.setattr(eager_products, "_onednn", lambda: None)
    assert {schedule(*call) for call in large + small} == {"torch"}
    assert {schedule(*call) for call in long} == {"eager"}
