"""ONNX: weights and attributes of the operator GRU, and modules from the nodes of a model.

Gates are stacked z, r, h. https://onnx.ai/onnx/operators/onnx__GRU.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modules import GRU
from .reverse import ReverseGRU
from .weights import Array, Module, Weights, array, build, one_layer, regate, tensor, variant_of

if TYPE_CHECKING:
    import onnx

_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h")
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def from_onnx(
    W: Array,
    R: Array,
    B: Array | None = None,
    *,
    linear_before_reset: int = 0,
    direction: str = "forward",
    layout: int = 0,
    hidden_size: int | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
) -> GRU:
    """A `trigru.GRU` from the initialisers and attributes of an ONNX GRU node, whose names and defaults these are.

    Args:
        W: (directions, 3 * hidden_size, input_size). R: (directions, 3 * hidden_size, hidden_size).
        B: (directions, 6 * hidden_size), the biases of W and then of R; None for no biases.
        linear_before_reset: 0 for variant "cho", anything else for "torch".
        direction: "forward", "reverse" (a `ReverseGRU` is returned) or "bidirectional".
        layout: 0, or 1 for batch_first.
        hidden_size: None, or what R must have.
        activations, clip: None, or those that a `trigru.GRU` has: Sigmoid and Tanh, no clipping.

    The node puts directions on an axis of their own, a `trigru.GRU` side by side. sequence_lens and initial_h are
    inputs of a run: a PackedSequence and hx. activation_alpha and activation_beta are no arguments: Sigmoid and Tanh
    have none.

    Raises:
        ValueError: an array's shape, dtype or device, or an attribute, is not what it must be.

    Example:
        >>> W, R, B = np.ones((2, 21, 5)), np.ones((2, 21, 7)), np.ones((2, 42))
        >>> trigru.convert.from_onnx(W, R, B, direction="bidirectional")
        trigru.GRU(5, 7, bidirectional=True, variant='cho')
        >>> trigru.convert.from_onnx(W[:1], R[:1], linear_before_reset=1, direction="reverse")
        ReverseGRU(5, 7, bias=False)
    """
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction: expected one of {', '.join(map(repr, _DIRECTIONS))}, got {direction!r}")
    if (
        activations is not None
        and [name.lower() for name in activations] != ["sigmoid", "tanh"] * _DIRECTIONS[direction]
    ):
        raise ValueError(f"activations: expected Sigmoid and Tanh for each direction, got {list(activations)}")
    if clip is not None:
        raise ValueError(f"clip: expected none, got {clip}")
    if layout not in (0, 1):
        raise ValueError(f"layout: expected 0 or 1, got {layout}")
    count = _DIRECTIONS[direction]
    r = tensor("R", R, (count, "3 * hidden_size", "hidden_size"))
    size = r.shape[2]
    if hidden_size is not None and size != hidden_size:
        raise ValueError(f"R: expected shape ({count}, {3 * hidden_size}, {hidden_size}), got {tuple(r.shape)}")
    r = tensor("R", R, (count, 3 * size, size))
    w = tensor("W", W, (count, 3 * size, "input_size"), r)
    b = None if B is None else tensor("B", B, (count, 6 * size), r)
    layer = []
    for d in range(count):
        b_ih, b_hh = (None, None) if b is None else map(regate, b[d].chunk(2))
        layer.append(Weights(regate(w[d]), regate(r[d]), b_ih, b_hh))
    variant = "torch" if linear_before_reset else "cho"
    return build([layer], variant, reverse=direction == "reverse", batch_first=bool(layout))


def to_onnx(module: Module) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Initialisers W, R and, with biases, B, and the attributes of an ONNX GRU node that computes as the module.

    `onnx.helper.make_node("GRU", ["X", *arrays], ["Y", "Y_h"], **attributes)`; time-major, as layout 0, whatever the
    module's batch_first, since ONNX Runtime has no other layout. "chung" is written as "cho", with z negated. For
    whole models there is `torch.onnx.export`.

    Raises:
        ValueError: several layers.
        TypeError: the module is no GRU.

    Example:
        >>> arrays, attributes = trigru.convert.to_onnx(trigru.GRU(5, 7))
        >>> {name: array.shape for name, array in arrays.items()}
        {'W': (1, 21, 5), 'R': (1, 21, 7), 'B': (1, 42)}
        >>> attributes
        {'direction': 'forward', 'hidden_size': 7, 'linear_before_reset': 1}
        >>> trigru.convert.from_onnx(**arrays, **attributes)
        trigru.GRU(5, 7)
    """
    layer = one_layer(module, ("torch", "cho"))
    stacked = {"W": [regate(w.w_ih) for w in layer], "R": [regate(w.w_hh) for w in layer]}
    if layer[0].b_ih is not None:
        stacked["B"] = [torch.cat([*map(regate, w.biases)]) for w in layer]
    direction = "bidirectional" if len(layer) == 2 else "reverse" if isinstance(module, ReverseGRU) else "forward"
    attributes = {
        "direction": direction,
        "hidden_size": layer[0].sizes[1],
        "linear_before_reset": int(variant_of(module) == "torch"),
    }
    return {name: array(torch.stack(parts)) for name, parts in stacked.items()}, attributes


def from_onnx_model(model: onnx.ModelProto, node: str | None = None) -> GRU:
    """A `trigru.GRU` from a GRU node of an ONNX model (`onnx.load`), as `from_onnx`. Needs the package onnx.

    W, R and B may be initialisers, or computed from initialisers by other nodes. sequence_lens and initial_h may be
    inputs of the model, or depend on them: those of a run.

    Args:
        model: nodes of its main graph are found, not those inside a Loop or If.
        node: the node's name; None where there is only one GRU. `stack_layers` makes one module of several.

    Raises:
        ValueError: no such node, or several; its weights depend on an input of the model; initial_h or sequence_lens
            are constants of the model that change the result, which no module has; as `from_onnx`.
        TypeError: no ModelProto.

    Example:
        >>> from onnx import TensorProto, helper, numpy_helper
        >>> arrays, attributes = trigru.convert.to_onnx(trigru.GRU(5, 7, variant="cho"))
        >>> node = helper.make_node("GRU", ["X", *arrays], ["Y"], **attributes)
        >>> x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["time", "batch", 5])
        >>> y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["time", 1, "batch", 7])
        >>> weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        >>> model = helper.make_model(helper.make_graph([node], "gru", [x], [y], weights))
        >>> trigru.convert.from_onnx_model(model)
        trigru.GRU(5, 7, variant='cho')
    """
    import onnx
    from onnx import helper

    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model: expected an onnx.ModelProto, as onnx.load returns, got {type(model).__name__}")
    candidates = [found for found in model.graph.node if found.op_type == "GRU" and found.domain in ("", "ai.onnx")]
    chosen = [found for found in candidates if node is None or found.name == node]
    if len(chosen) != 1:
        names = [found.name for found in candidates]
        raise ValueError(f"node: expected the name of one GRU node of {names}, got {node!r}")
    inputs = dict(zip(_INPUTS, chosen[0].input, strict=False))
    arrays = _constants(model, {key: inputs[key] for key in "WRB" if inputs.get(key)})
    _expect_no_state_of_its_own(model, inputs.get("sequence_lens", ""), inputs.get("initial_h", ""))
    attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in chosen[0].attribute}
    for parameter in ("activation_alpha", "activation_beta"):
        attributes.pop(parameter, None)  # Sigmoid and Tanh have none
    if "direction" in attributes:
        attributes["direction"] = attributes["direction"].decode()
    if "activations" in attributes:
        attributes["activations"] = [name.decode() for name in attributes["activations"]]
    return from_onnx(arrays["W"], arrays["R"], arrays.get("B"), **attributes)


def _expect_no_state_of_its_own(model: onnx.ModelProto, sequence_lens: str, initial_h: str) -> None:
    """Raise ValueError for lengths or a state that the model itself holds, by name; "" where the node has none."""
    lengths = _sources(model, sequence_lens)
    if sequence_lens and not lengths.inputs and not lengths.shapes:
        raise ValueError(
            f"sequence_lens: expected an input of the model, got the constant {sequence_lens!r}: remove it from the "
            "node and pass a PackedSequence"
        )
    state = _sources(model, initial_h)
    held = [name for name, value in state.constants.items() if "float" in value.dtype.name and value.any()]
    if held and not state.inputs:
        raise ValueError(
            f"initial_h: expected an input of the model, or zeros, got {initial_h!r}, which is made from the constant "
            f"{held[0]!r}: remove it from the node and pass it as hx"
        )


@dataclass
class _Sources:
    """What a value of a graph is computed from."""

    inputs: set[str]  # of the model
    shapes: set[str]  # inputs of which the sizes alone are used
    constants: dict[str, np.ndarray]


def _sources(model: onnx.ModelProto, name: str) -> _Sources:
    """The sources of a value; none for the empty name of an input that a node has not."""
    from onnx import helper, numpy_helper

    initialisers = {given.name: given for given in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    found = _Sources(set(), set(), {})
    seen: set[tuple[str, bool]] = set()
    pending = [(name, False)]
    while pending:
        name, sizes = pending.pop()
        if not name or (name, sizes) in seen:
            continue
        seen.add((name, sizes))
        if name in initialisers:
            if not sizes:
                found.constants[name] = numpy_helper.to_array(initialisers[name])
        elif name not in producers:
            (found.shapes if sizes else found.inputs).add(name)
        else:
            node = producers[name]
            pending += [(needed, sizes or node.op_type in ("Shape", "Size")) for needed in node.input]
            if node.op_type in ("Constant", "ConstantOfShape") and not sizes:
                for attribute in node.attribute:
                    value = helper.get_attribute_value(attribute)
                    is_tensor = hasattr(value, "data_type")
                    found.constants[name] = numpy_helper.to_array(value) if is_tensor else np.asarray(value)
    return found


def _constants(model: onnx.ModelProto, wanted: dict[str, str]) -> dict[str, np.ndarray]:
    """Values of the model that depend on no input; wanted: by key their names in the graph."""
    from onnx import TypeProto, helper
    from onnx.reference import ReferenceEvaluator

    initialisers = {given.name: given for given in model.graph.initializer}
    sparse = {given.values.name for given in model.graph.sparse_initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    used, nodes = {}, {}

    def visit(name: str) -> None:
        """Collect what computes `name`, producers before their consumers."""
        if name in initialisers:
            used[name] = initialisers[name]
        elif name in sparse:
            raise ValueError(f"{name!r} is a sparse initialiser")
        elif name not in producers:
            raise ValueError(f"{name!r} is an input of the model, expected one that is not")
        elif (producer := producers[name]).output[0] not in nodes:
            for needed in filter(None, producer.input):
                visit(needed)
            nodes[producer.output[0]] = producer

    for key, name in wanted.items():
        try:
            visit(name)
        except ValueError as error:
            raise ValueError(f"{key}: expected a constant, but {error}") from None
    outputs = [helper.make_value_info(name, TypeProto()) for name in wanted.values()]
    graph = helper.make_graph([*nodes.values()], "weights", [], outputs, [*used.values()])
    constants = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
    return dict(zip(wanted, ReferenceEvaluator(constants).run(None, {}), strict=True))
