"""`torch.onnx.export` to the ONNX operator GRU, by both exporters and with nothing to pass, run by ONNX Runtime."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from cases import error
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence

import trigru
import trigru.onnx

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
# Both exporters warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "bidirectional layers": {"num_layers": 2, "bidirectional": True},
    "cho": {"variant": "cho", "bidirectional": True},
    "chung": {"variant": "chung"},
    "chung without bias": {"variant": "chung", "bias": False},
}


def export(model, inputs, shapes=None, dynamo=True, **options):
    """The ONNX model that torch writes, with nothing to pass."""
    if dynamo:
        program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False, **options)
        return program.model_proto
    written = io.BytesIO()
    torch.onnx.export(model, inputs, written, dynamo=False, **options)
    return onnx.load_from_string(written.getvalue())


def execute(model, *inputs):
    session = runtime.InferenceSession(model.SerializeToString())
    names = [given.name for given in session.get_inputs()]
    feed = {name: x.detach().numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(out) for out in session.run(None, feed)]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=OPTIONS)
def test_onnx_runtime_gives_the_results_of_the_exported_module(options, dynamo):
    layer = trigru.GRU(5, 7, **options).eval()
    states = layer.num_layers * (1 + layer.bidirectional)
    inputs = torch.randn(4, 4, 5), torch.randn(states, 4, 7)
    model = export(layer, inputs, dynamo=dynamo)
    nodes = [node for node in model.graph.node if node.op_type == "GRU"]
    assert len(nodes) == layer.num_layers
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes.get("linear_before_reset", 0) == int(layer.variant == "torch")
        assert attributes.get("direction", b"forward") == (b"bidirectional" if layer.bidirectional else b"forward")
    for node in nodes if dynamo else ():
        held = {given.name for given in model.graph.initializer}
        assert set(filter(None, node.input[1:4])) <= held, "weights are computed at every run"
    for got, want in zip(execute(model, *inputs), layer(*inputs), strict=True):
        assert error(got, want) <= 1e-5


def test_a_program_that_was_exported_before_needs_no_table_either():
    layer, x = trigru.GRU(5, 7, variant="cho").eval(), torch.randn(4, 3, 5)
    model = export(torch.export.export(layer, (x,)), (x,))
    assert [node.op_type for node in model.graph.node].count("GRU") == 1
    assert error(execute(model, x)[0], layer(x)[0]) <= 1e-5


def test_the_table_that_was_needed_once_is_still_taken():
    layer, x = trigru.GRU(5, 7), torch.randn(4, 3, 5)
    model = export(layer.eval(), (x,), custom_translation_table=trigru.onnx.translations())
    assert error(execute(model, x)[0], layer(x)[0]) <= 1e-5


def test_without_onnxscript_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'pip install "trigru\[onnx\]"'):
        trigru.onnx.translations()


def test_a_compiler_still_sees_the_operator():
    """What is registered for the exporter stands in every compiler's way."""
    inputs = torch.randn(4, 3, 5), torch.randn(3, 7), torch.randn(21, 5), torch.randn(21, 7)
    graph = make_fx(lambda *tensors: trigru.gru(*tensors)[0], tracing_mode="symbolic")(*inputs).graph
    assert [node.target for node in graph.nodes].count(torch.ops.trigru.gru.default) == 1


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
def test_a_swapped_model_is_exported_with_dynamic_length_and_batch(dynamo):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(5, 7, 2), nn.Linear(7, 3)

        def forward(self, x):
            return self.out(self.gru(x)[0])

    model = trigru.swap(Model()).eval()
    x = torch.randn(4, 3, 5)
    if dynamo:
        written = export(model, (x,), [{0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}])
    else:
        axes = {"x": {0: "time", 1: "batch"}}
        written = export(model, (x,), dynamo=False, input_names=["x"], dynamic_axes=axes)
    for shape in ((4, 3, 5), (9, 2, 5)):
        x = torch.randn(shape)
        assert error(execute(written, x)[0], model(x)) <= 1e-5


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
def test_a_reverse_module_is_written_as_one(dynamo):
    module, x = trigru.convert.ReverseGRU(5, 7), torch.randn(4, 3, 5)
    model = export(module.eval(), (x,), dynamo=dynamo)
    for got, want in zip(execute(model, x), module(x), strict=True):
        assert error(got, want) <= 1e-5


def reasons(error):
    """What an error and its causes say."""
    said = []
    while error is not None:
        said.append(str(error))
        error = error.__cause__
    return " ".join(said)


def test_dropout_in_training_is_refused():
    layer = trigru.GRU(5, 7, num_layers=2, dropout=0.5)
    with pytest.raises(NotImplementedError, match=r"dropout: expected a model in evaluation, .*trigru\.onnx"):
        export(layer, (torch.randn(4, 3, 5),), dynamo=False, training=torch.onnx.TrainingMode.TRAINING)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
def test_packed_sequences_are_refused(dynamo):
    packed = pack_sequence([torch.randn(4, 5), torch.randn(2, 5)])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = trigru.GRU(5, 7)

        def forward(self, x, hx):
            return self.gru(packed._replace(data=x), hx)[0].data

    with pytest.raises((torch.onnx.OnnxExporterError, NotImplementedError)) as caught:
        export(Model().eval(), (packed.data, torch.zeros(1, 2, 7)), dynamo=dynamo)
    assert "ONNX has no packed sequences, expected a padded input (trigru.onnx)" in reasons(caught.value)


class WithLengths(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.gru = trigru.GRU(5, 7, **options)

    def forward(self, x, hx, lengths):
        return self.gru(x, hx, lengths=lengths)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True, "variant": "cho"}]
)
def test_lengths_are_sequence_lens(options, dynamo):
    model, lengths = WithLengths(**options).eval(), torch.tensor([4, 0, 2])
    parts = len(model.gru._all_weights)
    x, hx = torch.randn(*((3, 4) if model.gru.batch_first else (4, 3)), 5), torch.randn(parts, 3, 7)
    written = export(model, (x, hx, lengths), dynamo=dynamo)
    assert [node.op_type for node in written.graph.node].count("GRU") == model.gru.num_layers
    for others in (lengths, torch.tensor([1, 4, 0])):
        for got, want in zip(execute(written, x, hx, others), model(x, hx, others), strict=True):
            assert error(got, want) <= 1e-5


@pytest.mark.parametrize("dynamo", [True, False])
def test_what_onnx_has_not_is_refused_by_name(dynamo):
    class Model(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.gru = trigru.GRU(5, 7, **options)

        def forward(self, x, mask):
            return self.gru(x, mask=mask)[0]

    given = torch.randn(4, 3, 5), torch.ones(4, 3, dtype=torch.bool)
    with pytest.raises((torch.onnx.OnnxExporterError, NotImplementedError)) as caught:
        export(Model().eval(), given, dynamo=dynamo)
    assert "attention, mask or zoneout: ONNX's GRU has nothing like it" in reasons(caught.value)
