"""cuDNN as a schedule, and chosen by a measurement, on the fake device: CUDA tensors, kernels executed from PTX, and a
stand-in for cuDNN and for the clock."""

from __future__ import annotations

import pytest
import torch
from cudnn_standin import standin

import fakecuda
import trigru
from trigru import measuring
from trigru.kernels.config import ResidentConfig
from trigru.planning import measured, plan


@pytest.fixture(autouse=True)
def nothing_measured():
    yield
    measured.TABLE.clear()


@pytest.fixture
def there(monkeypatch):
    with standin(monkeypatch) as found:
        yield found


def exact(module, x):
    """Output and gradients in float64, on the CPU."""
    layer = trigru.GRU(*module.args, schedule="eager", **module.options).double()
    layer.load_state_dict({name: w.cpu().double() for name, w in module.state_dict().items()})
    return results(layer, x.detach().cpu().double().requires_grad_())


def results(module, x):
    output, h_n = module(x)
    grads = torch.autograd.grad(output.square().sum() + h_n.sum(), [x, *module.parameters()])
    return [out.detach().cpu().double() for out in (output, h_n, *grads)]


def made(*args, schedule, **options):
    module = trigru.GRU(*args, schedule=schedule, device="cuda", **options)
    module.args, module.options = args, options
    return module


@pytest.mark.parametrize("options", [{"bidirectional": True, "batch_first": True}, {"bias": False}], ids=str)
def test_by_name(there, options):
    module = made(4, 16, 2, schedule="cudnn", **options)
    assert len({w.untyped_storage().data_ptr() for w in module.parameters()}) == 1
    x = torch.randn(3, 2, 4, device="cuda", requires_grad=True)
    torch.testing.assert_close(results(module, x), exact(module, x), rtol=1e-4, atol=1e-5, check_stride=False)
    assert there.calls[-2:] == ["forward", "backward"]
    assert not fakecuda.launches


def test_the_winner_of_a_measurement_runs_and_a_wrong_one_does_not(there, monkeypatch):
    """Kernels are executed to be compared; what they take is what the clock says."""
    monkeypatch.setattr(measuring, "timer_for", lambda device: Clock(cudnn=1e-3, resident=2e-3))
    module = made(4, 16, schedule="auto", bidirectional=True)
    x = torch.randn(3, 2, 4, device="cuda", requires_grad=True)
    trigru.tune(module, x)
    assert fakecuda.launches
    found = trigru.explain(module, x)
    assert found.schedule == "cudnn"
    assert found.reason.startswith(
        "measured on NVIDIA H100 80GB HBM3 (fake): 'cudnn' 1000.0 us a training step; 'resid"
    )
    fakecuda.launches.clear()
    torch.testing.assert_close(results(module, x), exact(module, x), rtol=1e-4, atol=1e-5)
    assert not fakecuda.launches
    there.wrong = 0.1
    with pytest.warns(RuntimeWarning, match="'cudnn' is refused: its results are"):
        trigru.tune(module, x)
    assert trigru.explain(module, x).schedule == "resident"
    torch.testing.assert_close(results(module, x), exact(module, x), rtol=1e-4, atol=1e-5)
    assert fakecuda.launches


class Clock:
    """A timer that says what it was told of a schedule."""

    def __init__(self, **taken):
        self.taken = taken

    def durations(self, calls, rounds):
        return [tuple(self.taken.get(call.way.forward.schedule, 1.0) for call in calls)] * rounds


def test_heads_by_themselves_are_chosen_or_cudnn_or_there_is_nothing_to_choose(there, monkeypatch):
    clock = Clock(resident=1e-3, cudnn=2e-3)
    monkeypatch.setattr(measuring, "timer_for", lambda device: clock)
    x = torch.randn(2, 3, 4, device="cuda", requires_grad=True)
    module = made(4, 32, schedule="auto", num_heads=2)
    for winner in ("resident", "cudnn"):
        clock.taken[winner] = 1e-4
        late = module(x)[0]  # kept by what ran before
        assert len(trigru.tune(module, x)) == 2
        said = f"measured on NVIDIA H100 80GB HBM3 (fake): {winner!r} "
        assert trigru.explain(module, x).reason.startswith(said)
        torch.testing.assert_close(results(module, x), exact(module, x), rtol=1e-4, atol=1e-5)
        found = [torch.autograd.grad(output.sum(), module.weight_hh_l0)[0] for output in (late, module(x)[0])]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        clock.taken[winner] = 1e-3
    assert trigru.explain(module, x).reason.endswith("2 heads run as one matrix with zeros")
    plain = made(4, 32, schedule="auto")
    assert trigru.explain(plain, x).reason.split()[1] != "measured"  # another layer's times
    alone = made(4, 32, schedule="auto", num_heads=2, variant="cho")
    assert str(trigru.tune(alone, x)) == "nothing to choose: there is one candidate only"
    assert trigru.explain(alone, x).schedule == "resident"


def test_whole_matrices_of_heads_are_chosen_among(monkeypatch):
    """Where a head does not fit one program."""
    monkeypatch.setattr(ResidentConfig, "largest", staticmethod(lambda *_: 8))
    monkeypatch.setattr(measuring, "timer_for", lambda device: Clock(stepwise=1e-3))
    plan._chosen.cache_clear()
    module, x = made(4, 32, schedule="auto", num_heads=2, variant="cho"), torch.randn(2, 3, 4, device="cuda")
    assert trigru.explain(module, x).schedule == "walking"
    trigru.tune(module, x)
    assert trigru.explain(module, x).schedule == "stepwise"
    x.requires_grad_()
    torch.testing.assert_close(results(module, x), exact(module, x), rtol=1e-4, atol=1e-5)
    plan._chosen.cache_clear()


def test_in_a_capture_nothing_is_measured(there, monkeypatch):
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: pytest.fail("measured"))
    module, x = made(4, 16, schedule="auto"), torch.randn(3, 2, 4, device="cuda")
    with torch.no_grad():
        module(x)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
        module(x)
