"""ONNX export: trigru's operator as the ONNX operator GRU, by both of torch's exporters.

    torch.onnx.export(model, args, "model.onnx", dynamo=True)   # or dynamo=False, TorchScript's

There is nothing to pass and nothing to import: `trigru.exporters` tells torch where to ask.
linear_before_reset is 1 for "torch" and 0 for "cho" and "chung". The last swaps the roles of z and 1 - z, which ONNX
has not; since 1 - sigmoid(x) = sigmoid(-x), it is written with the weights of z negated. torch's exporter with
dynamo=True needs onnxscript: pip install "trigru[onnx]".

`lengths` become ONNX's sequence_lens. What ONNX has not (resets, decay, attention, masks, zoneout in evaluation, a clip
of the state) raises NotImplementedError, wrapped in torch's export error, and names it.

Packed sequences raise NotImplementedError, wrapped in torch's export error, as ONNX does not know their layout: export
the padded model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .layer import Given, Layer, Weights
from .operators.schema import recorded
from .schedules.reserve import empty_reserve


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """An empty `custom_translation_table` for `torch.onnx.export`, which needs none: for code written when it did.

    Raises:
        ImportError: onnxscript is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError('torch.onnx.export needs onnxscript: pip install "trigru[onnx]"') from error
    return {}


def stack(
    write: Any, layer: Layer, weights: Sequence[Any], input: Any, hx: Any, lengths: Any = None
) -> tuple[Any, Any]:
    """A call of the operator as a node GRU a layer, in the words of an exporter, `Aten` or `Nodes`.

    input (T, B, I), or (B, T, I) with batch_first; hx (L * D, B, H); lengths (B,), or None.

    Returns:
        output, h_n, as the operator.

    Raises:
        NotImplementedError: dropout in training.
    """
    if layer.dropout:
        raise NotImplementedError("dropout: expected a model in evaluation, model.eval(), as trigru.onnx writes none")
    if layer.clip is not None:
        raise NotImplementedError("clip: ONNX's is of pre-activations, and has none for the state (trigru.onnx)")
    x = write.swapped(input) if layer.batch_first else input
    ends = None if lengths is None else write.narrow(lengths)
    finals = []
    for first in range(0, layer.parts, layer.directions):
        parts = [layer.weights_of(weights, first + d) for d in range(layer.directions)]
        h0 = write.rows(hx, first, first + layer.directions)
        x, h_n = _gru(write, layer, parts, x, ends, h0)
        # Of no steps ONNX's last state is zeros.
        finals.append(h_n if lengths is None else write.unless_none(lengths, h_n, h0))
    return write.swapped(x) if layer.batch_first else x, write.join(finals)


def _gru(write: Any, layer: Layer, weights: Sequence[Weights], input: Any, ends: Any, h0: Any) -> tuple[Any, Any]:
    """One layer, padded and time-major: its output (T, B, D * H) and h_n (D, B, H)."""

    def regated(x: Any) -> Any:
        """Gates r, z, n stacked as ONNX wants them: z, r, h."""
        r, z, n = (write.rows(x, i * layer.hidden_size, (i + 1) * layer.hidden_size) for i in range(3))
        return write.join([write.negative(z) if layer.variant == "chung" else z, r, n])

    def stacked(parts: Iterable[Any]) -> Any:
        """Directions on an axis of their own."""
        return write.join([write.first_axis(part) for part in parts])

    biases = None
    if layer.bias:
        biases = stacked(write.join([regated(w.bias_ih), regated(w.bias_hh)]) for w in weights)
    return write.node(
        input,
        stacked(regated(w.ih) for w in weights),
        stacked(regated(w.hh) for w in weights),
        biases,
        ends,
        h0,
        hidden_size=layer.hidden_size,
        direction="bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward",
        linear_before_reset=int(layer.variant == "torch"),
    )


class Aten:
    """The words of a graph that torch traces: its own operations, and a node of ONNX by `torch.onnx.ops`."""

    @staticmethod
    def rows(x: Tensor, start: int, stop: int) -> Tensor:
        return x[start:stop]  # a Split would keep the exporter from folding weights

    @staticmethod
    def negative(x: Tensor) -> Tensor:
        return -x

    @staticmethod
    def join(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)

    @staticmethod
    def first_axis(x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    @staticmethod
    def swapped(x: Tensor) -> Tensor:
        return x.transpose(0, 1)

    @staticmethod
    def narrow(lengths: Tensor) -> Tensor:
        return lengths.to(torch.int32)

    @staticmethod
    def unless_none(lengths: Tensor, h_n: Tensor, h0: Tensor) -> Tensor:
        return torch.where((lengths > 0).view(1, -1, 1), h_n, h0)

    @staticmethod
    def node(
        input: Tensor, w: Tensor, r: Tensor, b: Tensor | None, ends: Tensor | None, h0: Tensor, **attributes: Any
    ) -> tuple[Tensor, Tensor]:
        steps, batch, _ = input.shape
        directions, _, hidden_size = r.shape
        y, h_n = torch.onnx.ops.symbolic_multi_out(
            "GRU",
            (input, w, r, b, ends, h0),
            attributes,
            dtypes=(input.dtype, input.dtype),
            shapes=((steps, directions, batch, hidden_size), (directions, batch, hidden_size)),
        )
        return y.transpose(1, 2).flatten(2), h_n


class Nodes:
    """The words of TorchScript's exporter: nodes of a graph `g`, of operators that no opset has changed."""

    def __init__(self, g: Any) -> None:
        self.g = g

    def constant(self, values: Sequence[int]) -> Any:
        return self.g.op("Constant", value_t=torch.tensor(values, device="cpu"))

    def rows(self, x: Any, start: int, stop: int) -> Any:
        return self.g.op("Gather", x, self.constant(range(start, stop)), axis_i=0)

    def negative(self, x: Any) -> Any:
        return self.g.op("Neg", x)

    def join(self, parts: list[Any]) -> Any:
        return self.g.op("Concat", *parts, axis_i=0)

    def first_axis(self, x: Any) -> Any:
        return self.g.op("Reshape", x, self.constant([1, *x.type().sizes()]))

    def swapped(self, x: Any) -> Any:
        return self.g.op("Transpose", x, perm_i=[1, 0, 2])

    def narrow(self, lengths: Any) -> Any:
        return self.g.op("Cast", lengths, to_i=torch.onnx.TensorProtoDataType.INT32)

    def unless_none(self, lengths: Any, h_n: Any, h0: Any) -> Any:
        some = self.g.op("Greater", lengths, self.g.op("Constant", value_t=torch.tensor(0, device="cpu")))
        return self.g.op("Where", self.g.op("Reshape", some, self.constant([1, -1, 1])), h_n, h0)

    def node(self, input: Any, w: Any, r: Any, b: Any, ends: Any, h0: Any, **attributes: Any) -> tuple[Any, Any]:
        nothing = self.g.op("prim::Constant")
        nothing.setType(torch._C.OptionalType.ofTensor())
        named = {f"{name}_{'s' if isinstance(value, str) else 'i'}": value for name, value in attributes.items()}
        inputs = (input, w, r, *(nothing if x is None else x for x in (b, ends)), h0)
        y, h_n = self.g.op("GRU", *inputs, outputs=2, **named)
        y = self.g.op("Transpose", y, perm_i=[0, 2, 1, 3])
        return self.g.op("Reshape", y, self.constant([0, 0, -1])), h_n


def decompose(*arguments: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`torch.ops.trigru.gru` as nodes in the graph that `torch.onnx.export(dynamo=True)` traces.

    Raises:
        NotImplementedError: packed sequences, dropout in training, or what else ONNX has not.
    """
    layer, weights, call, first_kept = recorded(*arguments)
    _expect_padded(call.batch_sizes is not None)
    _expect_lengths_alone([*call.given.present, *(() if call.gain is None else ("gain",))])
    output, h_n = stack(Aten, layer, weights, call.input, call.hx, call.given.lengths)
    return output, h_n, empty_reserve(layer, call, first_kept)


def symbolic(g: Any, input: Any, hx: Any, weights: Any, batch_sizes: Any, *options: Any) -> tuple[Any, Any, Any]:
    """The same in the graph of `torch.onnx.export(dynamo=False)`."""
    helper: Any = torch.onnx.symbolic_helper
    _expect_padded(not helper._is_none(batch_sizes))
    arguments = torch.ops.trigru.gru.default._schema.arguments[4:]
    given = {a.name: x for a, x in zip(arguments, options, strict=True) if not helper._is_none(x)}
    _expect_lengths_alone([name for name in (*Given._fields, "gain") if name in given])
    lengths = given.pop("lengths", None)
    kinds = {a.name: str(a.type).removeprefix("Optional[")[0] for a in arguments}  # i, b, f or s
    named = {name: helper._maybe_get_const(x, kinds[name]) for name, x in given.items()}
    del named["first_kept"]  # for gradients
    unpacked = helper._unpack_list(weights)
    input_size, hidden_size = (unpacked[i].type().sizes()[1] for i in range(2))
    bias = len(unpacked) == 4 * named["num_layers"] * (2 if named["bidirectional"] else 1)
    layer = Layer(input_size, hidden_size, bias=bias, **named)
    output, h_n = stack(Nodes(g), layer, unpacked, input, hx, lengths)
    return output, h_n, g.op("prim::ListConstruct")


def _expect_lengths_alone(given: Sequence[str]) -> None:
    others = [_GIVEN_BY.get(name, name) for name in given if name != "lengths"]
    if others:
        raise NotImplementedError(
            f"{others[0]}: ONNX's GRU has nothing like it (trigru.onnx); of what a step may do beside the "
            "equations it has lengths"
        )


_GIVEN_BY = {
    "fresh": "reset_state",
    "amount": "attention, mask or zoneout",
    "dropped": "recurrent_dropout",
    "seed": "zoneout",
    "gain": "norm",
}


def _expect_padded(packed: bool) -> None:
    if packed:
        raise NotImplementedError(
            "batch_sizes: ONNX has no packed sequences, expected a padded input (trigru.onnx): export the padded model"
        )
