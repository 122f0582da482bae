"""Kernels compiled ahead of time are those that a launch finds on disk."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import triton
from conftest import INTERPRETED
from fakecuda import driver_only
from recurrences import recurrence

import trigru
from trigru.command import cli
from trigru.convert import ReverseGRU
from trigru.kernels import launch, offline, resident
from trigru.kernels.config import resident_config
from trigru.planning.plan import MEMORY

pytestmark = pytest.mark.skipif(INTERPRETED, reason="compiles kernels")


_devices = itertools.count(2000)  # Triton keeps what it compiled by the device's number


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for Triton's binaries."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(driver_only, "DEVICE", next(_devices))
    return tmp_path


def binaries(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/*.cubin")}


def by_triton(kernel, grid, args, constexprs, *, num_warps, num_stages, cooperative):
    """A starter that goes through Triton's own launch."""
    options = launch.EVERY | launch.cooperation(num_warps, cooperative)
    kernel[grid](**args, **constexprs, num_warps=num_warps, num_stages=num_stages, **options)


def trained_and_evaluated(layer, *batches):
    """Both on inputs of each batch size; the kernels launched."""
    with driver_only.active() as launches, launch.using(by_triton):
        for batch in batches:
            x = torch.randn(3, batch, layer.input_size, dtype=layer.weight_hh_l0.dtype)
            layer(x)[0].sum().backward()
            with torch.no_grad():
                layer(x)
    return {launched["kernel"] for launched in launches}


@pytest.mark.parametrize(
    ("schedule", "variant", "count"), [("persistent", "torch", 3), ("resident", "cho", 3), ("stepwise", "torch", 3)]
)
def test_a_launch_finds_what_was_compiled_ahead(cache, schedule, variant, count):
    """Two layers of two directions, trained, evaluated, with a last batch that fills no tile: few binaries in all."""
    sizes = {"num_layers": 2, "bidirectional": True, "dtype": torch.bfloat16}
    layer = trigru.GRU(8, 32, **sizes, schedule=schedule, variant=variant)
    names = trigru.warm(layer, 16, 9, device="h100", packed=False, jobs=2)
    ahead = binaries(cache)
    assert len(names) == len(ahead) == count
    assert trained_and_evaluated(layer, 16, 9) == set(names)
    assert binaries(cache) == ahead


GIVEN = {
    "reset": lambda steps, batch, size: torch.rand(steps, batch) < 0.3,
    "reset_state": lambda steps, batch, size: torch.randn(steps, 1, batch, size, dtype=torch.bfloat16),
    "lengths": lambda steps, batch, size: torch.full((batch,), steps),
    "mask": lambda steps, batch, size: torch.rand(steps, batch) < 0.3,
    "decay": lambda steps, batch, size: torch.rand(steps, batch, size, dtype=torch.bfloat16, requires_grad=True),
    "attention": lambda steps, batch, size: torch.rand(steps, batch, dtype=torch.bfloat16),
}


@pytest.mark.parametrize(
    ("schedule", "options", "given", "count"),
    [
        ("resident", {"zoneout": 0.3, "recurrent_dropout": 0.2, "clip": 0.5}, ["reset", "lengths"], 3),
        pytest.param("stepwise", {}, ["decay"], 8, marks=pytest.mark.slow),
        pytest.param("persistent", {"zoneout": 0.3}, ["reset", "reset_state", "attention"], 8, marks=pytest.mark.slow),
    ],
)
def test_what_steps_are_given_is_compiled_for(cache, schedule, options, given, count):
    """In training and in evaluation, which draws no masks; state of the generator is as before."""
    layer = trigru.GRU(8, 32, schedule=schedule, dtype=torch.bfloat16, **options)
    before = torch.get_rng_state()
    names = trigru.warm(layer, 16, device="h100", packed=False, jobs=2, given=given)
    assert torch.equal(torch.get_rng_state(), before)
    ahead = binaries(cache)
    assert len(names) == len(ahead) == count
    x = torch.randn(3, 16, 8, dtype=torch.bfloat16)
    arguments = {name: GIVEN[name](3, 16, 32) for name in given}
    with driver_only.active() as launches, launch.using(by_triton):
        layer(x, **arguments)[0].sum().backward()
        with torch.no_grad():
            layer.eval()(x, **arguments)
    assert {launched["kernel"] for launched in launches} == set(names)
    assert binaries(cache) == ahead


def test_packed_rows_with_options_are_compiled_for_as_padded_ones(monkeypatch):
    """Which they run as; what has lengths of its own is not packed too."""
    monkeypatch.setattr(offline, "compile_launch", lambda start, target: None)
    layer = trigru.GRU(8, 128, schedule="resident", clip=0.5, dtype=torch.bfloat16)
    packed, padded = ([*trigru.warm(layer, 16, device="h100", packed=kind)] for kind in (True, False))
    assert len(packed) == len(padded) == 3
    assert trigru.warm(layer, 16, device="h100", given=["lengths"]) == packed
    assert len(trigru.warm(layer, 16, device="h100")) == 6  # with an amount, and without


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("options", [{"packed": True}, {"packed": False}, {}])
def test_direction_and_last_batch_make_no_binary(monkeypatch, memory, options):
    """Of a persistent layer: forward with and without gates kept, backward; of packed sequences, and of both directions
    at once, the same again. A100 has room for tiles of 8 of all these batches in one direction, of none in two."""
    compiled = []
    monkeypatch.setattr(offline, "compile_launch", lambda start, target: compiled.append(target))
    model = torch.nn.ModuleDict(
        {
            "two ways": trigru.GRU(8, 128, 2, bidirectional=True, schedule="persistent", memory=memory),
            "one way": trigru.GRU(8, 128, schedule="persistent", memory=memory),
            "the other": ReverseGRU(8, 128, schedule="persistent", memory=memory),
        }
    )
    names = trigru.warm(model, 96, 80, 66, 57, device="A100", dtype=torch.float16, **options)
    kinds = 2 * (2 if options == {} else 1)
    assert len(compiled) == len(names) == kinds * (3 if memory == "keep" else 2)
    assert set(names) == {"forward_torch", "backward_torch"}
    assert {target.arch for target in compiled} == {80}


def test_normalised_products_have_a_kernel_of_their_own(monkeypatch):
    monkeypatch.setattr(offline, "compile_launch", lambda start, target: None)
    layer = trigru.GRU(8, 512, norm="layer", variant="cho", dtype=torch.bfloat16)
    names = trigru.warm(layer, 64, device="h100", packed=False)
    steps = {"reset_update_step", "candidate_step", "bptt_step", "bptt_reset_step"}
    assert set(names) == {"product_step", *steps}


def test_what_torch_operations_run_needs_no_kernel():
    assert trigru.warm(trigru.GRU(8, 16, dtype=torch.float64), 4, device="h100") == []
    assert trigru.warm(trigru.GRU(8, 16, schedule="eager"), 4, device="h100") == []


@pytest.mark.parametrize(
    ("model", "batches", "options", "error", "text"),
    [
        (torch.nn.GRU(8, 16), (4,), {}, TypeError, "model: expected a trigru.GRU or a model of some, got GRU"),
        (trigru.GRU(8, 16), (), {}, ValueError, "batches: expected numbers of at least 1"),
        (trigru.GRU(8, 16), (4, 0), {}, ValueError, "batches: expected numbers of at least 1"),
        (trigru.GRU(8, 16), (4,), {"jobs": 0}, ValueError, "jobs: expected at least 1, got 0"),
        (trigru.GRU(8, 16), (4,), {"device": "h999"}, ValueError, "device: expected one of A100, .* got 'h999'"),
        (trigru.GRU(8, 16), (4,), {}, RuntimeError, "no GPU is there; name the one to compile for"),
        (trigru.GRU(8, 4096, schedule="resident", device="meta"), (4,), {"device": "t4"}, RuntimeError, "cannot run"),
        (trigru.GRU(8, 16), (4,), {"given": ["resets"]}, ValueError, "given: expected names of reset, .* got 'resets'"),
        (trigru.GRU(8, 16), (4,), {"given": ["mask"], "packed": True}, ValueError, "given: expected no 'mask'"),
        (trigru.GRU(8, 16), (4,), {"given": ["reset_state"], "device": "t4"}, ValueError, "reset_state: expected None"),
    ],
)
def test_refused(monkeypatch, model, batches, options, error, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=text):
        trigru.warm(model, *batches, **options)


def test_the_command(cache, capsys):
    argv = ["warm", "--device", "h100", "--hidden", "32", "--schedule", "stepwise", "--batch", "3", "--json"]
    assert cli.main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"kernels": ["bptt_step", "forward_step", "forward_step"], "folder": str(cache)}
    assert len(binaries(cache)) == 3


def test_the_command_for_options(monkeypatch, capsys):
    monkeypatch.setattr(offline, "compile_launch", lambda start, target: None)
    argv = ["warm", "--device", "h100", "--hidden", "32", "--batch", "3", "--schedule", "resident", "--json"]
    found = []
    for more in ([], ["--given", "reset", "decay"], ["--zoneout", "0.2"], ["--clip", "1"]):
        assert cli.main([*argv, *more]) == 0
        found.append(len(json.loads(capsys.readouterr().out)["kernels"]))
    assert found == [3, 8, 3, 3]
    assert cli.main([*argv, "--zoneout", "2"]) == 2
    assert "--zoneout: expected a number in range [0, 1], got 2.0" in capsys.readouterr().err


def test_the_command_says_what_does_not_fit(capsys):
    assert cli.main(["warm", "--device", "h999"]) == 2
    assert "--device: expected one of A100" in capsys.readouterr().err
    assert cli.main(["warm", "--device", "h100", "--hidden", "4096", "--schedule", "persistent"]) == 1
    assert "cannot run here" in capsys.readouterr().err


def test_a_kernel_first_launched_in_a_capture(monkeypatch):
    """CUDA refuses to load it; the error says what to do."""

    def load_binary(*args):
        raise RuntimeError("Triton Error [CUDA]: operation not permitted when stream is capturing")

    monkeypatch.setattr(driver_only.Driver, "load_binary", load_binary)
    monkeypatch.setattr(driver_only, "DEVICE", next(_devices))
    case = recurrence(2, 3, 32, dtype=torch.float16)
    config = resident_config(torch.float16, 3, 32)
    said = r"capturing\. forward_kernel .* before the capture, call the layer once"
    with driver_only.active(), pytest.raises(RuntimeError, match=said):
        case.run(resident, config)
