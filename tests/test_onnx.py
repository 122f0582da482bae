"""`torch.onnx.export` to the ONNX operator GRU, run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import error
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import trigru
import trigru.onnx

pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "bidirectional layers": {"num_layers": 2, "bidirectional": True},
    "cho": {"variant": "cho", "bidirectional": True},
    "chung": {"variant": "chung"},
    "chung without bias": {"variant": "chung", "bias": False},
}


def export(model, inputs, shapes=None):
    return torch.onnx.export(
        model,
        inputs,
        dynamo=True,
        dynamic_shapes=shapes,
        custom_translation_table=trigru.onnx.translations(),
        verbose=False,
    )


def execute(program, *inputs):
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    names = [given.name for given in session.get_inputs()]
    feed = {name: x.detach().numpy().astype(np.float32) for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(out) for out in session.run(None, feed)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_onnx_runtime_gives_the_results_of_the_exported_module(options):
    layer = trigru.GRU(5, 7, **options).eval()
    states = layer.num_layers * (1 + layer.bidirectional)
    inputs = torch.randn(4, 4, 5), torch.randn(states, 4, 7)
    program = export(layer, inputs)
    nodes = [node for node in program.model_proto.graph.node if node.op_type == "GRU"]
    assert len(nodes) == states
    for node in nodes:
        attributes = {a.name: a.i for a in node.attribute}
        assert attributes.get("linear_before_reset", 0) == int(layer.variant == "torch")
    for got, want in zip(execute(program, *inputs), layer(*inputs), strict=True):
        assert error(got, want) <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_swapped_model_is_exported_with_dynamic_length_and_batch():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(5, 7, 2), nn.Linear(7, 3)

        def forward(self, x):
            return self.out(self.gru(x)[0])

    model = trigru.swap(Model()).eval()
    program = export(model, (torch.randn(4, 3, 5),), [{0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}])
    for shape in ((4, 3, 5), (9, 2, 5)):
        x = torch.randn(shape)
        assert error(execute(program, x)[0], model(x)) <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_packed_sequences_are_refused():
    packed = pack_sequence([torch.randn(4, 5), torch.randn(2, 5)])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = trigru.GRU(5, 7)

        def forward(self, x, hx):
            return self.gru(packed._replace(data=x), hx)[0].data

    with pytest.raises(torch.onnx.OnnxExporterError) as caught:
        export(Model().eval(), (packed.data, torch.zeros(1, 2, 7)))
    reasons, reason = [], caught.value
    while reason is not None:
        reasons.append(str(reason))
        reason = reason.__cause__
    assert "ONNX has no packed sequences" in " ".join(reasons)
