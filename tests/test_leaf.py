"""trigru's modules under torch's tools that look into a model: torch.fx, torch.jit, torch.ao.quantization."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import QConfigMapping, get_default_qconfig_mapping, quantize_dynamic
from torch.ao.quantization.quantize_fx import prepare_fx

import trigru

# Of torch.jit and torch.ao.quantization, both deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
REFUSED = r"trigru\.{name}: torch\.jit\.script cannot compile it\. Call trigru\.unswap\(model\)"


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"gru": trigru.GRU(5, 7, batch_first=True), "cell": trigru.GRUCell(7, 7)})
        self.out = nn.Linear(7, 3)

    def forward(self, x, h):
        y, _ = self.inner["gru"](x, h)
        return self.out(self.inner["cell"](y[:, -1]) + y[:, 0])


def test_a_gru_is_a_leaf_of_fx():
    model, inputs = Tagger(), (torch.randn(2, 4, 5), torch.randn(1, 2, 7))
    traced = fx.symbolic_trace(model)
    calls = {node.target: node for node in traced.graph.nodes if node.op == "call_module"}
    assert set(calls) == {"inner.gru", "inner.cell", "out"}
    assert traced.get_submodule("inner.gru") is model.inner["gru"]
    torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=0, atol=0)
    x = torch.randn(5, 9, 5)  # other sizes
    torch.testing.assert_close(traced(x, torch.zeros(1, 5, 7)), model(x, torch.zeros(1, 5, 7)), rtol=0, atol=0)
    traced(*inputs).sum().backward()
    assert model.inner["gru"].weight_ih_l0.grad is not None


def test_a_swapped_model_has_the_graph_of_the_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 6))
    want = [(node.op, node.target, node.args) for node in fx.symbolic_trace(model).graph.nodes]
    got = [(node.op, node.target, node.args) for node in fx.symbolic_trace(trigru.swap(model)).graph.nodes]
    assert str(got) == str(want)


def test_keywords_reach_the_leaf():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = trigru.GRU(5, 7)

        def forward(self, x, h):
            return self.gru(input=x, hx=h)[0]

    model, inputs = Model(), (torch.randn(4, 2, 5), torch.randn(1, 2, 7))
    torch.testing.assert_close(fx.symbolic_trace(model)(*inputs), model(*inputs), rtol=0, atol=0)


def test_gru_d_is_a_leaf_of_fx():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = trigru.GRUD(5, 7)

        def forward(self, x, mask, gaps, lengths):
            return self.inner(x, mask, gaps, lengths=lengths)[0]

    model, x = Model(), torch.randn(4, 2, 5)
    inputs = x, x > 0, x.abs(), torch.tensor([4, 1])
    traced = fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["inner"]
    torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=0, atol=0)


def test_the_module_alone_is_no_graph():
    """As of nn.GRU."""
    for module in (nn.GRU(4, 6), trigru.GRU(4, 6)):
        with pytest.raises(fx.proxy.TraceError):
            fx.symbolic_trace(module)


def test_prepare_fx_takes_a_model_with_a_gru():
    model, inputs = Tagger().eval(), (torch.randn(2, 4, 5), torch.randn(1, 2, 7))
    with pytest.warns(UserWarning, match=r"leaves trigru\.GRU in float.*trigru\.unswap"):
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(), inputs)
    torch.testing.assert_close(prepared(*inputs), model(*inputs))


@pytest.mark.parametrize("make", [trigru.GRU, trigru.GRUCell])
def test_script_is_refused_with_the_way_out(make):
    module = make(4, 6)
    for model in (module, nn.Sequential(nn.Linear(4, 4), module)):
        with pytest.raises(NotImplementedError, match=REFUSED.format(name=make.__name__)):
            torch.jit.script(model)
    torch.jit.script(trigru.unswap(module))


def test_quantize_dynamic_says_what_it_passes_over():
    model = nn.ModuleDict({"gru": nn.GRU(4, 6), "out": nn.Linear(6, 2)})
    trigru.swap(model)
    with pytest.warns(UserWarning, match=r"leaves trigru\.GRU in float: call trigru\.unswap\(model\)"):
        quantised = quantize_dynamic(model)
    assert type(quantised["gru"]) is trigru.GRU
    assert type(quantised["out"]) is not nn.Linear
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="torch.quantize_per")  # torch's own
        quantised = quantize_dynamic(trigru.unswap(model))
    assert type(quantised["gru"]).__module__.startswith("torch.ao")


def test_the_attribute_that_warns_is_an_ordinary_one():
    layer = trigru.GRU(4, 6)
    assert not hasattr(layer, "qconfig")
    with pytest.warns(UserWarning, match="trigru.unswap"):
        layer.qconfig = "any"
    twin = pickle.loads(pickle.dumps(layer))
    assert (layer.qconfig, twin.qconfig) == ("any", "any")
    del layer.qconfig
    assert not hasattr(layer, "qconfig")
    assert QConfigMapping()


def test_a_module_is_traced_by_jit_with_gradients_on():
    x = torch.randn(4, 2, 5)
    for layer in (trigru.GRU(5, 7), trigru.GRU(5, 7, num_layers=2, bidirectional=True, variant="cho")):
        traced = torch.jit.trace(layer, (x,))  # which traces twice, without gradients the second time, and compares
        torch.testing.assert_close(traced(x), layer(x))
        got = torch.autograd.grad(traced(x)[0].sum(), list(traced.parameters()))
        torch.testing.assert_close(got, torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters())))


def test_tensorboard_draws_the_graph_with_gradients_on(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_graph(nn.Sequential(nn.Linear(5, 5), trigru.GRU(5, 7)), torch.randn(4, 2, 5))
    assert list(tmp_path.iterdir())


def test_saved_programs_run_in_a_process_that_imports_trigru(tmp_path):
    """One that does not is told the operator's name, torch.ops.trigru.gru, by torch."""
    layer, x = trigru.GRU(5, 7, variant="cho").eval(), torch.randn(4, 2, 5)
    torch.jit.save(torch.jit.trace(layer, (x,)), tmp_path / "traced.pt")
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "exported.pt2")
    torch.save((x, layer(x)[0].detach()), tmp_path / "results.pt")
    code = f"""
import torch
folder = {str(tmp_path)!r}
try:
    torch.jit.load(folder + "/traced.pt")
except RuntimeError as error:
    assert "trigru::gru" in str(error), error
else:
    raise AssertionError("an operator that is not there")
import trigru
x, want = torch.load(folder + "/results.pt")
for program in (torch.jit.load(folder + "/traced.pt"), torch.export.load(folder + "/exported.pt2").module()):
    torch.testing.assert_close(program(x)[0], want)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
