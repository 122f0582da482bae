"""Models of installed packages (the extra "models"), swapped: the same outputs and gradients as before."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import warnings

import pytest
import torch
from cases import error
from torch import nn

import trigru


def wavernn():
    """WaveRNN of torchaudio: two GRUs in a vocoder. Its file is loaded by itself, since the package around it wants
    native code built for the very torch that is installed."""
    try:
        path = importlib.metadata.distribution("torchaudio").locate_file("torchaudio/models/wavernn.py")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torchaudio is not installed")
    spec = importlib.util.spec_from_file_location("wavernn", str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"n_res_block": 2, "n_rnn": 24, "n_fc": 16, "kernel_size": 5, "n_freq": 8, "n_hidden": 8, "n_output": 8}
    return module.WaveRNN(upsample_scales=[2, 2, 3], n_classes=16, hop_length=12, **sizes)


def forecaster(name, **options):
    def make():
        pytest.importorskip("neuralforecast", reason="neuralforecast is not installed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import neuralforecast.models

            return getattr(neuralforecast.models, name)(h=4, input_size=12, max_steps=1, **options)

    return make


def series():
    return {"insample_y": torch.randn(3, 12, 1), "futr_exog": None, "hist_exog": None, "stat_exog": None}


MODELS = {
    "torchaudio WaveRNN": (wavernn, lambda: (torch.randn(2, 1, 6 * 12), torch.randn(2, 1, 8, 10)), 2),
    "neuralforecast GRU": (
        forecaster("GRU", encoder_n_layers=2, encoder_hidden_size=16, encoder_dropout=0.2),
        lambda: (series(),),
        1,
    ),
    "neuralforecast recurrent GRU": (forecaster("GRU", encoder_hidden_size=16, recurrent=True), lambda: (series(),), 1),
    "neuralforecast StemGNN": (forecaster("StemGNN", n_series=3), lambda: (panel(),), 1),
}


def panel():
    return {"insample_y": torch.randn(2, 12, 3), "futr_exog": None, "hist_exog": None, "stat_exog": None}


def results(model, inputs):
    torch.manual_seed(7)
    output = model(*inputs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(output.square().mean(), parameters, allow_unused=True)
    return [output, *(g for g in grads if g is not None)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_a_swapped_model_gives_the_same_outputs_and_gradients(name, training):
    make, inputs, count = MODELS[name]
    model = make().train(training)
    given = inputs()
    swapped = trigru.swap(copy.deepcopy(model))
    assert sum(type(m) is nn.GRU for m in model.modules()) == count
    assert sum(type(m) is trigru.GRU for m in swapped.modules()) == count
    for got, want in zip(results(swapped, given), results(model, given), strict=True):
        assert error(got, want) <= 2e-5


@pytest.mark.filterwarnings("ignore")
def test_wavernn_generates_the_same_samples():
    model = wavernn().eval()
    swapped = trigru.swap(copy.deepcopy(model))
    specgram = torch.randn(1, 8, 10)
    generated = []
    for m in (model, swapped):
        torch.manual_seed(3)
        with torch.no_grad():
            generated.append(m.infer(specgram)[0])
    assert torch.equal(*generated)
