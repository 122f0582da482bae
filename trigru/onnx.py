"""ONNX export: trigru's operator as the ONNX operator GRU, by both of torch's exporters.

    torch.onnx.export(model, args, "model.onnx", dynamo=True)   # or dynamo=False, TorchScript's

There is nothing to pass and nothing to import: `trigru.exporters` tells torch where to ask. linear_before_reset is 1
for "torch" and 0 for "cho" and "chung". The last swaps the roles of z and 1 - z, which ONNX has not; since
1 - sigmoid(x) = sigmoid(-x), it is written with the weights of z negated. torch's exporter with dynamo=True needs
onnxscript: pip install "trigru[onnx]".

Packed sequences raise NotImplementedError, wrapped in torch's export error, as ONNX does not know their layout: export
the padded model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


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


def gru(
    write: Any,
    input: Any,
    h0: Any,
    weights: Sequence[Sequence[Any]],
    *,
    variant: str,
    direction: str,
) -> tuple[Any, Any]:
    """One layer as a node GRU, in the words of an exporter.

    Args:
        write: `Aten` or `Nodes`.
        input: (T, B, I). h0: (directions, B, H).
        weights: w_ih, w_hh and, with biases, b_ih, b_hh of each direction.
        direction: "forward", "reverse" or "bidirectional".

    Returns:
        output (T, B, directions * H), h_n (directions, B, H).
    """

    def regated(x: Any) -> Any:
        """Gates r, z, n stacked as ONNX wants them: z, r, h."""
        r, z, n = write.gates(x)
        return write.join([write.negative(z) if variant == "chung" else z, r, n])

    def stacked(parts: list[Any]) -> Any:
        """Directions on an axis of their own."""
        return write.join([write.first_axis(part) for part in parts])

    biases = None
    if len(weights[0]) == 4:
        biases = stacked([write.join([regated(b_ih), regated(b_hh)]) for _, _, b_ih, b_hh in weights])
    return write.node(
        input,
        stacked([regated(w[0]) for w in weights]),
        stacked([regated(w[1]) for w in weights]),
        biases,
        h0,
        hidden_size=write.size(weights[0][1], 1),
        direction=direction,
        linear_before_reset=int(variant == "torch"),
    )


class Aten:
    """The words of a graph that torch traces: its own operations, and a node of ONNX by `torch.onnx.ops`."""

    @staticmethod
    def gates(x: Tensor) -> list[Tensor]:
        size = x.shape[0] // 3
        return [x[:size], x[size : 2 * size], x[2 * size :]]  # a Split would keep the exporter from folding weights

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
    def size(x: Tensor, axis: int) -> int:
        return x.shape[axis]

    @staticmethod
    def node(
        input: Tensor, w: Tensor, r: Tensor, b: Tensor | None, h0: Tensor, **attributes: Any
    ) -> tuple[Tensor, Tensor]:
        steps, batch, _ = input.shape
        directions, hidden_size = len(r), h0.shape[2]
        y, h_n = torch.onnx.ops.symbolic_multi_out(
            "GRU",
            (input, w, r, b, None, h0),
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
        return self.g.op("Constant", value_t=torch.tensor(values))

    def rows(self, x: Any, start: int, stop: int) -> Any:
        return self.g.op("Gather", x, self.constant(range(start, stop)), axis_i=0)

    def gates(self, x: Any) -> list[Any]:
        size = self.size(x, 0) // 3
        return [self.rows(x, i * size, (i + 1) * size) for i in range(3)]

    def negative(self, x: Any) -> Any:
        return self.g.op("Neg", x)

    def join(self, parts: list[Any]) -> Any:
        return self.g.op("Concat", *parts, axis_i=0)

    def first_axis(self, x: Any) -> Any:
        return self.g.op("Reshape", x, self.constant([1, *x.type().sizes()]))

    def size(self, x: Any, axis: int) -> int:
        return x.type().sizes()[axis]

    def node(self, input: Any, w: Any, r: Any, b: Any, h0: Any, **attributes: Any) -> tuple[Any, Any]:
        nothing = self.g.op("prim::Constant")
        nothing.setType(torch._C.OptionalType.ofTensor())
        named = {f"{name}_{'s' if isinstance(value, str) else 'i'}": value for name, value in attributes.items()}
        inputs = (input, w, r, nothing if b is None else b, nothing, h0)
        y, h_n = self.g.op("GRU", *inputs, outputs=2, **named)
        y = self.g.op("Transpose", y, perm_i=[0, 2, 1, 3])
        return self.g.op("Reshape", y, self.constant([0, 0, -1])), h_n


def decompose(
    input: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    batch_sizes: Tensor | None,
    variant: str,
    schedule: str,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.ops.trigru.gru` as a node GRU in the graph that `torch.onnx.export(dynamo=True)` traces.

    Raises:
        NotImplementedError: packed sequences.
    """
    _expect_padded(batch_sizes is not None)
    weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
    direction = "reverse" if reverse else "forward"
    output, h_n = gru(Aten, input, h0.unsqueeze(0), [weights], variant=variant, direction=direction)
    return output, h_n.squeeze(0), input.new_empty(0)


def _symbolic(
    g: Any,
    input: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    batch_sizes: Any,
    variant: Any,
    schedule: Any,
    reverse: Any,
    save: Any,
) -> tuple[Any, Any, Any]:
    """The same in the graph of `torch.onnx.export(dynamo=False)`."""
    from torch.onnx import symbolic_helper

    _expect_padded(not symbolic_helper._is_none(batch_sizes))
    variant = symbolic_helper._maybe_get_const(variant, "s")
    direction = "reverse" if symbolic_helper._maybe_get_const(reverse, "b") else "forward"
    weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if not symbolic_helper._is_none(w)]
    write = Nodes(g)
    h0 = g.op("Unsqueeze", h0, write.constant([0]))
    output, h_n = gru(write, input, h0, [weights], variant=variant, direction=direction)
    return output, g.op("Squeeze", h_n, write.constant([0])), write.constant([])


@functools.cache
def register() -> None:
    """Tell TorchScript's exporter of the operator."""
    torch.onnx.register_custom_op_symbolic("trigru::gru", _symbolic, 13)


def _expect_padded(packed: bool) -> None:
    if packed:
        raise NotImplementedError(
            "batch_sizes: ONNX has no packed sequences, expected a padded input (trigru.onnx): export the padded model"
        )
