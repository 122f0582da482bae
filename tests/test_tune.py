"""The measured choice, with a stand-in for cuDNN and one for the clock: taken, kept, loaded, explained, or refused."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import torch.utils.checkpoint
from cudnn_standin import standin

import trigru
from trigru import measuring
from trigru.command.cli import main
from trigru.kernels.config import PersistentConfig, stepwise_config
from trigru.operators import compute, site_of
from trigru.planning import measured, plan
from trigru.planning.candidates import DIRECTIONS
from trigru.planning.configs import EagerConfig
from trigru.planning.measured import Entry, Row
from trigru.planning.plan import Site

SHORT, LONG = "'eager' (chunk_steps 16, chunk_elements 65536)", "'eager' (chunk_steps 256, chunk_elements 1048576)"


class Clock:
    """A timer of `trigru.bench` that says what it was told: the sum of what a candidate's schedules take."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = {repr(name): value for name, value in seconds.items()}
        self.asked: list[set[str]] = []

    def durations(self, calls, rounds):
        self.asked.append({measuring.named(call.way, call.recording) for call in calls})
        return [tuple(map(self._of, calls))] * rounds

    def _of(self, call):
        forward, backward = (self.seconds.get(name(each), 1.0) for each in call.way)
        return forward + backward / 2 if call.recording else forward


def name(taken):
    """As it is printed."""
    return Row(taken.schedule, taken.config, 0.0).name


@pytest.fixture
def there(monkeypatch):
    """cuDNN is there, for CPU tensors."""
    with standin(monkeypatch) as found:
        yield found


@pytest.fixture
def clock(monkeypatch):
    """What the clock says of every schedule, unless a test says otherwise."""
    found = Clock()
    monkeypatch.setattr(measuring, "timer_for", lambda device: found)
    return found


def given(**options):
    module = trigru.GRU(5, 7, 2, bidirectional=True, **options)
    return module, torch.randn(20, 3, 5)


def gradients(module, x):
    return torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))


def by_reference(module, x):
    output, _ = compute.by_reference(*module._records(x, None))
    return torch.autograd.grad(output.square().sum(), list(module.parameters()))


def test_the_winner_is_taken_and_explained(there, clock):
    module, x = given()
    clock.seconds |= {"'cudnn'": 250e-6, "'torch'": 400e-6, "'eager'": 900e-6, SHORT: 950e-6}
    before = trigru.explain(module, x)
    assert before.schedule == "eager"
    found = trigru.tune(module, x)
    assert len(found) == 3  # without gradients, forward and backward of a step
    after = trigru.explain(module, x)
    assert after.schedule == "cudnn"
    device = measured.device_name(x.device)
    figures = f"'cudnn' 375.0 us a training step; 'torch' 600.0 us; 'eager' 1350.0 us; {SHORT} 1400.0 us"
    assert after.reason == f"measured on {device}: {figures}"
    assert f"forward pass of a training step: {after.reason}" in str(found).splitlines()
    there.calls.clear()
    got = gradients(module, x)
    assert there.calls == ["forward", "backward"]
    torch.testing.assert_close(got, by_reference(module, x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert trigru.explain(module, x).reason.startswith(f"measured on {device}: 'cudnn' 250.0 us a call without")


def test_second_derivatives_go_through_what_was_measured(there, clock):
    module, x = given(dtype=torch.float64)
    x = x.double().requires_grad_()
    clock.seconds["'cudnn'"] = 0.1
    trigru.tune(module, x)
    there.calls.clear()
    results = []
    for output in (module(x)[0], compute.by_reference(*module._records(x, None))[0]):
        first = torch.autograd.grad(output.square().sum(), [x, module.weight_hh_l0], create_graph=True)
        results.append(torch.autograd.grad(sum(d.square().sum() for d in first), [x, *module.parameters()]))
    assert there.calls == ["forward", "backward", "backward"]  # the upstream derivative depends on the output
    torch.testing.assert_close(*results)


def test_frozen_layers_below_do_not_matter_to_cudnn(there, clock):
    module, x = given()
    for name, weight in module.named_parameters():
        weight.requires_grad_("_l1" in name)
    clock.seconds["'cudnn'"] = 0.1
    trigru.tune(module, x)
    upper = [w for w in module.parameters() if w.requires_grad]
    got = torch.autograd.grad(module(x)[0].square().sum(), upper)
    assert there.calls[-2:] == ["forward", "backward"]
    want = torch.autograd.grad(compute.by_reference(*module._records(x, None))[0].square().sum(), upper)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_forward_and_backward_are_chosen_each_by_itself(clock, monkeypatch):
    """What one plan of a kind keeps another goes back from."""
    module, x = given()[0], torch.randn(70, 3, 5)
    forward = {SHORT: 1.0, "'eager'": 2.0, LONG: 3.0, "'torch'": 9.0}
    backward = {SHORT: 3.0, "'eager'": 2.0, LONG: 1.0, "'torch'": 9.0}
    monkeypatch.setattr(clock, "_of", lambda call: forward[name(call.way[0])] + backward[name(call.way[1])])
    trigru.tune(module, x)
    records = module._records(x, None)
    taken = [plan.plan(records.layer, site_of(*records), direction).stages[0].choice.config for direction in DIRECTIONS]
    assert taken == [EagerConfig(16, 1 << 16), EagerConfig(256, 1 << 20)]
    torch.testing.assert_close(gradients(module, x), by_reference(module, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["wrong", "raises", "no number"])
def test_a_wrong_candidate_is_refused_however_fast(there, clock, way, monkeypatch):
    module, x = given()
    clock.seconds["'cudnn'"] = 1e-9
    there.wrong = {"wrong": 0.01, "no number": float("nan")}.get(way, 0.0)
    if way == "raises":
        monkeypatch.setattr(torch, "_cudnn_rnn", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDNN_STATUS_X\nmore")))
    why = "RuntimeError: CUDNN_STATUS_X" if way == "raises" else "its results are .* from those of the first candidate"
    with pytest.warns(RuntimeWarning, match=f"trigru: 'cudnn' is refused: {why}"):
        trigru.tune(module, x)
    assert not any("'cudnn'" in names for names in clock.asked)
    found = trigru.explain(module, x)
    assert found.schedule == "eager"
    assert "'cudnn' refused: " in found.reason


def test_what_was_found_is_stored_and_loaded(there, clock, tmp_path, monkeypatch):
    module, x = given()
    clock.seconds |= {"'cudnn'": 2.0, SHORT: 0.5}
    there.wrong = 0.5
    path = tmp_path / "deep" / "tuned.json"
    with pytest.warns(RuntimeWarning, match="'cudnn' is refused"):
        found = trigru.tune(module, x, out=path)
    said = trigru.explain(module, x)
    other, y = trigru.GRU(5, 9), torch.randn(20, 3, 5)
    found |= trigru.tune(other, y, out=path)
    measured.TABLE.clear()
    assert "measured" not in trigru.explain(module, x).reason
    monkeypatch.setenv(measured.VARIABLE, str(path))
    assert measured.place(x.device) == path
    measured.load()
    assert found == measured.TABLE
    assert trigru.explain(module, x) == said
    assert "'cudnn' refused" in said.reason
    assert SHORT in trigru.explain(other, y).reason


@pytest.mark.parametrize("text", ["{", '[{"key": {}}]', '{"device": "H100"}', "[1]"])
def test_a_file_of_something_else_is_left_out_and_named(text, tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    path.write_text(text)
    monkeypatch.setenv(measured.VARIABLE, str(path))
    with pytest.warns(RuntimeWarning, match="what was measured is not read"):
        measured.load()
    assert measured.TABLE == {}
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path / "later.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured.load()
    monkeypatch.setattr(measured, "TUNED", tmp_path / "package")
    measured.store(measured.TUNED / "cpu.json", {})
    measured.load()


def test_a_measurement_is_for_its_sizes_versions_and_device(clock, monkeypatch):
    module, x = given()
    trigru.tune(module, x)

    def is_measured(module=module, x=x):
        return "measured" in trigru.explain(module, x).reason

    assert is_measured()
    assert is_measured(x=torch.randn(32, 3, 5))
    assert is_measured(x=torch.randn(17, 3, 5))
    assert not is_measured(x=torch.randn(16, 3, 5))
    assert not is_measured(x=torch.randn(20, 4, 5))
    assert not is_measured(given(variant="cho")[0])
    assert not is_measured(given(batch_first=True)[0])
    assert not is_measured(given(dtype=torch.float64)[0], x.double())
    assert not is_measured(given(schedule="eager")[0])
    assert not is_measured(trigru.GRU(5, 8, 2, bidirectional=True))
    assert is_measured(trigru.GRU(5, 7, 2, bidirectional=True, dropout=0.5).eval())
    assert not is_measured(trigru.GRU(5, 7, 2, bidirectional=True, dropout=0.5))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([20, 9, 2]))
    assert not is_measured(x=packed)
    measured._key.cache_clear()
    monkeypatch.setattr(measured, "versions", lambda: "trigru 9")
    assert not is_measured()
    measured._key.cache_clear()


def test_what_cannot_run_now_is_passed_over_and_said(there, clock):
    module, x = given()
    clock.seconds |= {"'cudnn'": 0.1, SHORT: 0.5}
    trigru.tune(module, x)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    there.calls.clear()
    torch.testing.assert_close(compiled(x)[0], compute.by_reference(*module._records(x, None))[0])
    with torch.backends.cudnn.flags(enabled=True), torch.autocast("cpu", dtype=torch.bfloat16):
        assert trigru.explain(module, x).schedule == "eager"
    assert there.calls == []
    torch.use_deterministic_algorithms(True)
    try:
        found = trigru.explain(module, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.schedule == "eager"
    assert "'cudnn' is passed over: deterministic algorithms are asked for" in found.reason


def test_a_device_that_is_shared_takes_no_persistent_winner(monkeypatch):
    monkeypatch.setattr(measured, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    layer = trigru.checks.layer_of(512, 512)
    site = Site(torch.device("cuda", 0), torch.bfloat16, 256, 64, False, True, True)
    measured._key.cache_clear()
    key = measured.key_at_hand(layer, site, "forward", plan.precision_of(site.dtype))
    tiles = PersistentConfig(tiles_at_once=4)
    rows = Row("persistent", tiles, 1e-4), Row("stepwise", stepwise_config(site.dtype, 64, 512), 2e-4)
    measured.TABLE[key] = Entry(rows, {})
    assert (plan.plan(layer, site).schedule, plan.plan(layer, site).stages[0].choice.config) == ("persistent", tiles)
    monkeypatch.setattr(plan, "_SHARED", {site.device})
    taken = plan.plan(layer, site).stages[0].choice
    assert taken.schedule == "stepwise"
    assert "tiles_at_once 4) is passed over: its programs did not fit" in taken.reason
    measured._key.cache_clear()


def test_explain_of_a_preset_says_measured(capsys):
    layer = trigru.checks.layer_of(512, 512)
    site = Site(torch.device("cuda", 0), torch.bfloat16, 256, 64, False, True, True)
    key = measured.key_of(layer, site, "forward", "ieee", name="NVIDIA H100 80GB HBM3")
    measured.TABLE[key] = Entry((Row("cudnn", None, 1e-4),), {})
    assert main(["explain", "--device", "h100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["auto"] == "cudnn"
    assert found["reason"] == "measured on NVIDIA H100 80GB HBM3: 'cudnn' 100.0 us a training step"
    assert main(["explain", "--device", "h200", "--json"]) == 0
    assert "predicted, not measured" in json.loads(capsys.readouterr().out)["reason"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)


def test_the_first_call_of_a_shape_is_measured_once(there, clock, benchmark):
    module, x = given(dropout=0.3)
    clock.seconds["'torch'"] = 1e-3
    torch.manual_seed(3)
    with torch.backends.cudnn.flags(benchmark=False):
        want = module(x)[0]
    asked = len(clock.asked)
    torch.manual_seed(3)
    torch.testing.assert_close(module(x)[0], want)  # the same masks: torch's random numbers are as before
    assert len(clock.asked) > asked == 0
    assert trigru.explain(module, x).schedule == "torch"
    asked = len(clock.asked)
    module(x + 1)
    module(torch.randn(30, 3, 5))
    assert len(clock.asked) == asked
    with torch.no_grad():
        module(x)
    assert len(clock.asked) > asked


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_first_call_within_a_checkpoint(there, clock, benchmark, reentrant):
    module, x = given()
    clock.seconds["'cudnn'"] = 0.1
    x.requires_grad_()
    output = torch.utils.checkpoint.checkpoint(lambda x: module(x)[0], x, use_reentrant=reentrant)
    torch.testing.assert_close(output, compute.by_reference(*module._records(x, None))[0])
    output.square().sum().backward()
    got = tuple(w.grad for w in module.parameters())
    torch.testing.assert_close(got, by_reference(module, x), rtol=1e-4, atol=1e-5)
    assert clock.asked


def test_a_first_call_in_inference_mode(there, clock, benchmark):
    module, x = given()
    clock.seconds["'cudnn'"] = 0.1
    with torch.inference_mode():
        got = module(x)[0]
    assert there.calls[-1] == "inference"
    torch.testing.assert_close(got.clone(), compute.by_reference(*module._records(x, None))[0])


def test_calls_that_are_not_measured(clock, benchmark):
    module, x = given()
    torch.compile(module, backend="eager", fullgraph=True)(x)
    torch.func.vmap(lambda one: module(one)[0], randomness="same")(x.unsqueeze(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x)
    given(schedule="eager")[0](x)
    module(torch.randn(20, 0, 5))
    with torch.backends.cudnn.flags(benchmark=True, deterministic=True):
        module(x)
    torch.use_deterministic_algorithms(True)
    try:
        module(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert clock.asked == []
    module(x)
    assert clock.asked != []


def test_a_call_without_numbers_is_not_measured_but_runs(clock, benchmark):
    module, x = given()
    assert module(x * float("nan"))[0].isnan().any()
    assert clock.asked == []
    module(x)
    assert clock.asked != []
    with pytest.raises(RuntimeError, match="results that are no numbers"):
        trigru.tune(module, x * float("nan"))


def test_where_the_first_candidate_raises_so_does_the_call(clock, benchmark, monkeypatch):
    module, x = given()
    monkeypatch.setattr(measuring.stack, "forward", lambda *_: (_ for _ in ()).throw(MemoryError("none left")))
    with pytest.warns(RuntimeWarning, match="nothing was measured: MemoryError: none left"), pytest.raises(MemoryError):
        module(x)


def test_misuse():
    module, x = given()
    with pytest.raises(TypeError, match=r"module: expected a trigru.GRU, got torch.nn.*GRU"):
        trigru.tune(torch.nn.GRU(5, 7), x)
    with pytest.raises(ValueError, match="module: expected schedule 'auto', which can be chosen for, got 'eager'"):
        trigru.tune(given(schedule="eager")[0], x)
    with pytest.raises(ValueError, match="seconds: expected a number above 0, got 0"):
        trigru.tune(module, x, seconds=0)
    with pytest.raises(RuntimeError, match="expected a tensor on one of cpu, cuda, got one on meta"):
        trigru.tune(module.to("meta"), x.to("meta"))


def test_the_command(clock, capsys, tmp_path, monkeypatch):
    clock.seconds |= {"'torch'": 0.5}
    path = tmp_path / "tuned.json"
    asked = ["tune", "--device", "cpu", "--hidden", "6", "--input", "4", "--batch", "2", "3"]
    asked += ["--seq-len", "12", "--layers", "2", "--bidirectional"]
    assert main([*asked, "--json", "--out", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(path.read_text())
    assert {(one["key"]["batch"], one["rows"][0]["schedule"]) for one in found} == {(2, "torch"), (3, "torch")}
    monkeypatch.setenv(measured.VARIABLE, str(path))
    assert main([*asked, "--packed", "--inference", "--write"]) == 0
    shown = capsys.readouterr().out
    assert "there is one candidate only" in shown  # torch's own takes no packed sequences here
    assert f"stored in {path}" in " ".join(shown.split())
    assert json.loads(path.read_text()) == found


def test_tiles_of_the_kernels_are_candidates(monkeypatch):
    """Of an H100 that is not there; what is planned needs no tensors."""
    from trigru.planning import devices, ways

    monkeypatch.setattr(ways, "present", lambda index: devices.preset("h100"))
    monkeypatch.setattr(plan, "present", lambda index: devices.preset("h100"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    layer = trigru.checks.layer_of(64, 64)
    site = Site(torch.device("cuda", 0), torch.bfloat16, 256, 64, False, True, True)
    listed = list(ways.ways(layer, site))
    names = [measuring.named(way, True) for way in listed]
    assert len(set(names)) == len(names)
    assert {way.forward.schedule for way in listed} == {"persistent", "resident", "walking", "stepwise"}
    assert {way.forward.config.block_b for way in listed if way.forward.schedule == "stepwise"} == {16, 32}
    assert len({way.backward for way in listed}) == 1
    first = plan.modelled(layer, site).stages[0].choice
    assert (first.schedule, first.config) == (listed[0].forward.schedule, listed[0].forward.config)
