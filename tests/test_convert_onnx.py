"""trigru.convert's ONNX room, against ONNX Runtime: models exported from trained modules, and nodes of our own."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from cases import error
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import trigru
import trigru.convert
import trigru.onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

DIRECTIONS = ("forward", "reverse", "bidirectional")


def execute(model, *inputs):
    session = runtime.InferenceSession(model.SerializeToString())
    names = [given.name for given in session.get_inputs()]
    return [
        torch.from_numpy(out) for out in session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    ]


def node_model(arrays, weights_as="initialisers", **attributes):
    """A model of one node GRU: X (time, batch, 5) and the state to Y with directions side by side, and Y_h."""
    count = len(arrays["R"])
    inputs = ["X", "W", "R", "B" if "B" in arrays else "", "", "initial_h"]
    nodes = [
        onnx.helper.make_node("GRU", inputs, ["by direction", "Y_h"], "gru", **attributes),
        onnx.helper.make_node("Transpose", ["by direction"], ["beside"], perm=[0, 2, 1, 3]),
        onnx.helper.make_node("Reshape", ["beside", "shape"], ["Y"]),
    ]
    values = {**arrays, "shape": np.array([0, 0, -1])}
    float_inputs = {"X": ["time", "batch", 5], "initial_h": [count, "batch", 7]}
    if weights_as == "inputs":
        float_inputs |= {name: array.shape for name, array in arrays.items()}
        values = {"shape": values["shape"]}
    info = onnx.helper.make_tensor_value_info
    given = [info(name, onnx.TensorProto.FLOAT, shape) for name, shape in float_inputs.items()]
    results = [info(name, onnx.TensorProto.FLOAT, [None] * 3) for name in ("Y", "Y_h")]
    initialisers = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = onnx.helper.make_graph(nodes, "gru", given, results, initialisers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def random_arrays(count, bias=True):
    shapes = {"W": (count, 21, 5), "R": (count, 21, 7)} | ({"B": (count, 42)} if bias else {})
    return {name: (torch.randn(shape) / 2).numpy() for name, shape in shapes.items()}


def trained(module):
    """The module after some steps of Adam."""
    x, y = torch.randn(6, 8, 5), torch.randn(6, 8, module.hidden_size * (1 + module.bidirectional))
    optimiser = torch.optim.Adam(module.parameters(), 0.05)
    losses = []
    for _ in range(5):
        loss = (module(x)[0] - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return module.eval()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_a_node_gives_the_same_outputs_here(linear_before_reset, direction, bias):
    arrays = random_arrays(2 if direction == "bidirectional" else 1, bias)
    attributes = {"linear_before_reset": linear_before_reset, "direction": direction, "hidden_size": 7}
    model = node_model(arrays, **attributes)
    module = trigru.convert.from_onnx(**arrays, **attributes)
    assert module.variant == ("torch" if linear_before_reset else "cho")
    inputs = torch.randn(9, 3, 5), torch.randn(len(arrays["R"]), 3, 7)
    for converted in (module, trigru.convert.from_onnx_model(model, "gru")):
        for got, want in zip(converted(*inputs), execute(model, *inputs), strict=True):
            assert error(got, want) <= 1e-5

    back, same = trigru.convert.to_onnx(module)
    assert same == attributes
    assert set(back) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_onnx_runtime_gives_the_outputs_of_a_module_that_was_trained_here(variant, direction):
    if direction == "reverse":
        module = trained(trigru.convert.ReverseGRU(5, 7, variant=variant))
    else:
        module = trained(trigru.GRU(5, 7, bidirectional=direction == "bidirectional", variant=variant))
    arrays, attributes = trigru.convert.to_onnx(module)
    inputs = torch.randn(9, 3, 5), torch.randn(1 + module.bidirectional, 3, 7)
    for got, want in zip(execute(node_model(arrays, **attributes), *inputs), module(*inputs), strict=True):
        assert error(got, want) <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimize", [True, False], ids=["initialisers", "computed from initialisers"])
def test_a_trained_model_that_torch_exported_gives_the_same_outputs_here(optimize):
    x = torch.randn(9, 3, 5)
    model = trained(nn.GRU(5, 7, num_layers=2, bidirectional=True))
    model = torch.onnx.export(model, (x,), dynamo=True, optimize=optimize, verbose=False).model_proto
    names = [node.name for node in model.graph.node if node.op_type == "GRU"]
    layers = [trigru.convert.from_onnx_model(model, name) for name in names]
    module = trigru.convert.stack_layers(layers)
    assert (module.num_layers, module.bidirectional, module.variant) == (2, True, "torch")
    for got, want in zip(module(x), execute(model, x), strict=True):
        assert error(got, want) <= 1e-5
    with pytest.raises(ValueError, match=r"node: expected the name of one GRU node of \['.*', '.*'\], got None"):
        trigru.convert.from_onnx_model(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", trigru.VARIANTS)
def test_what_trigru_exports_comes_back(variant):
    module = trigru.GRU(5, 7, variant=variant).eval()
    x = torch.randn(9, 3, 5)
    table = trigru.onnx.translations()
    model = torch.onnx.export(module, (x,), dynamo=True, verbose=False, custom_translation_table=table).model_proto
    assert error(trigru.convert.from_onnx_model(model)(x)[0], module(x)[0]) <= 1e-6


def test_a_reverse_module_runs_each_packed_sequence_from_its_own_end():
    arrays = random_arrays(1)
    module = trigru.convert.from_onnx(**arrays, direction="reverse", linear_before_reset=1)
    x, lengths = torch.randn(6, 3, 5), [2, 6, 3]
    output, _ = pad_packed_sequence(module(pack_padded_sequence(x, lengths, enforce_sorted=False))[0])
    for i, length in enumerate(lengths):
        assert error(output[:length, i], module(x[:length, i])[0]) <= 1e-6


def test_weights_that_are_inputs_are_refused():
    model = node_model(random_arrays(1), weights_as="inputs", hidden_size=7)
    with pytest.raises(ValueError, match="W: expected a constant, but 'W' is an input"):
        trigru.convert.from_onnx_model(model)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"clip": 1.0}, "clip: expected none, got 1.0"),
        ({"activations": ["Sigmoid", "Relu"]}, r"activations: expected Sigmoid and Tanh .* got \['Sigmoid', 'Relu'\]"),
        ({"activations": ["HardSigmoid", "Tanh"]}, r"activations: expected Sigmoid and Tanh .* got \['HardSigmoid'"),
        ({"activations": ["Sigmoid"]}, r"activations: expected Sigmoid and Tanh .* got \['Sigmoid'\]"),
        ({"layout": 2}, "layout: expected 0 or 1, got 2"),
        ({"hidden_size": 8}, r"R: expected shape \(1, 24, 8\), got \(1, 21, 7\)"),
        ({"direction": "both"}, "direction: expected one of 'forward', 'reverse', 'bidirectional', got 'both'"),
    ],
)
def test_attributes_without_an_equal_are_refused(attributes, message):
    model = node_model(random_arrays(1), **attributes)
    with pytest.raises(ValueError, match=message):
        trigru.convert.from_onnx_model(model)


def test_a_node_of_another_domain_is_no_gru():
    model = node_model(random_arrays(1))
    model.graph.node[0].domain = "com.example"
    with pytest.raises(ValueError, match=r"node: expected the name of one GRU node of \[\], got None"):
        trigru.convert.from_onnx_model(model)


def test_default_activations_are_accepted_by_name():
    attributes = {"activations": ["Sigmoid", "Tanh"], "activation_alpha": [0.0], "linear_before_reset": 1}
    arrays = random_arrays(1)
    module = trigru.convert.from_onnx_model(node_model(arrays, **attributes))
    x = torch.randn(4, 2, 5)
    assert error(module(x)[0], trigru.convert.from_onnx(**arrays, linear_before_reset=1)(x)[0]) == 0


def test_layout_is_batch_first():
    assert trigru.convert.from_onnx(**random_arrays(1), layout=1).batch_first


def with_input(index, values, shape_of=None):
    """A model whose node GRU has `values` as an input, from an initialiser; expanded to a batch where shape_of."""
    model = node_model(random_arrays(1), hidden_size=7)
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(values, "held"))
    inputs = [*graph.node[0].input, *[""] * 6][:6]
    inputs[index] = "held"
    if shape_of:
        nodes = [
            onnx.helper.make_node("Shape", ["X"], ["batch"], start=1, end=2),
            onnx.helper.make_node("Concat", ["one", "batch", "size"], ["sizes"], axis=0),
            onnx.helper.make_node("Expand", ["held", "sizes"], ["state"]),
        ]
        for name, value in (("one", 1), ("size", 7)):
            graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
        inputs[index] = "state"
        for node in reversed(nodes):
            graph.node.insert(0, node)
    (gru,) = (node for node in graph.node if node.op_type == "GRU")
    del gru.input[:]
    gru.input.extend(inputs)
    return model


@pytest.mark.parametrize("expanded", [False, True], ids=["as it is", "expanded to the batch"])
def test_a_state_that_the_model_holds_is_refused_unless_it_is_zero(expanded):
    shape = (1, 1, 7) if expanded else (1, 3, 7)
    model = with_input(5, np.zeros(shape, np.float32), shape_of=expanded)
    x = torch.randn(9, 3, 5)
    got = execute(model, x, *([torch.zeros(1, 3, 7)]))[0]
    assert error(trigru.convert.from_onnx_model(model)(x)[0], got) <= 1e-5
    model = with_input(5, np.full(shape, 0.5, np.float32), shape_of=expanded)
    with pytest.raises(ValueError, match=r"^initial_h: expected an input .*, or zeros, got .* constant 'held'"):
        trigru.convert.from_onnx_model(model)


def test_lengths_that_the_model_holds_are_refused():
    model = with_input(4, np.array([2, 9, 4], np.int32))
    with pytest.raises(ValueError, match=r"^sequence_lens: expected an input of the model, got the constant 'held'"):
        trigru.convert.from_onnx_model(model)


@pytest.mark.filterwarnings("ignore")
def test_a_learnt_state_of_an_exported_model_is_not_lost():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.start = nn.GRU(5, 7), nn.Parameter(torch.ones(1, 1, 7))

        def forward(self, x):
            return self.gru(x, self.start.expand(1, x.shape[1], 7))[0]

    batch = torch.export.Dim("batch")
    exported = torch.onnx.export(
        Model(), (torch.randn(4, 3, 5),), dynamo=True, verbose=False, dynamic_shapes=[{1: batch}]
    ).model_proto
    with pytest.raises(ValueError, match=r"^initial_h: expected an input of the model, or zeros"):
        trigru.convert.from_onnx_model(exported)


def test_bfloat16_weights_keep_their_dtype():
    values = {name: torch.from_numpy(value).bfloat16() for name, value in random_arrays(1).items()}
    model = node_model(random_arrays(1), linear_before_reset=1)
    del model.graph.initializer[:]
    for name, value in values.items():
        raw = onnx.TensorProto(name=name, data_type=onnx.TensorProto.BFLOAT16, dims=value.shape)
        raw.raw_data = value.view(torch.int16).numpy().tobytes()
        model.graph.initializer.append(raw)
    module = trigru.convert.from_onnx_model(model)
    want = trigru.convert.from_onnx(**values, linear_before_reset=1)
    for name, value in want.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(module.state_dict()[name], value)


def test_a_sparse_initialiser_and_what_is_no_model_are_refused(tmp_path):
    model = node_model(random_arrays(1))
    (index,) = (i for i, given in enumerate(model.graph.initializer) if given.name == "W")
    dense = model.graph.initializer.pop(index)
    sparse = onnx.SparseTensorProto(dims=dense.dims)
    sparse.values.name = "W"
    model.graph.sparse_initializer.append(sparse)
    with pytest.raises(ValueError, match="W: expected a constant, but 'W' is a sparse initialiser"):
        trigru.convert.from_onnx_model(model)
    with pytest.raises(TypeError, match=r"^model: expected an onnx.ModelProto, as onnx.load returns, got str"):
        trigru.convert.from_onnx_model("model.onnx")


def test_every_attribute_of_the_operator_is_honoured_refused_or_without_effect():
    schema = onnx.defs.get_schema("GRU", onnx.defs.onnx_opset_version())
    arguments = set(inspect.signature(trigru.convert.from_onnx).parameters)
    without_effect = {"activation_alpha", "activation_beta"}  # Sigmoid and Tanh, which alone are taken, have none
    assert set(schema.attributes) - without_effect <= arguments
    of_a_run = {"X", "sequence_lens", "initial_h"}
    assert {given.name for given in schema.inputs} - of_a_run <= arguments
