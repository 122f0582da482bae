"""ONNX export: how `torch.onnx.export(dynamo=True)` writes trigru's operator, as the ONNX operator GRU.

    torch.onnx.export(model, args, "model.onnx", dynamo=True, custom_translation_table=trigru.onnx.translations())

linear_before_reset is 1 for "torch" and 0 for "cho" and "chung". The last swaps the roles of z and 1 - z, which
ONNX has not; since 1 - sigmoid(x) = sigmoid(-x), it is written with the weights of z negated. Needs onnxscript.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` for `torch.onnx.export`: trigru's operator as the ONNX operator GRU.

    Raises:
        ImportError: onnxscript is not installed.

    The export itself raises NotImplementedError, wrapped in torch's export error, for packed sequences, whose layout
    ONNX does not know: export the padded model.
    """
    from onnxscript import opset18 as op

    def regated(x: Any, variant: str) -> Any:
        """Gates r, z, n stacked as ONNX wants them: z, r, h."""
        r, z, n = op.Split(x, axis=0, num_outputs=3)
        return op.Concat(op.Neg(z) if variant == "chung" else z, r, n, axis=0)

    def gru(  # type: ignore[no-untyped-def]
        input,
        h0,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        batch_sizes,
        variant: str,
        schedule: str,
        reverse: bool,
        save: bool,
    ):
        if batch_sizes is not None:
            raise NotImplementedError("batch_sizes: ONNX has no packed sequences, expected a padded input")
        first = op.Constant(value_ints=[0])
        biases = None
        if b_ih is not None:
            biases = op.Unsqueeze(op.Concat(regated(b_ih, variant), regated(b_hh, variant), axis=0), first)
        output, h_n = op.GRU(
            input,
            op.Unsqueeze(regated(w_ih, variant), first),
            op.Unsqueeze(regated(w_hh, variant), first),
            biases,
            None,
            op.Unsqueeze(h0, first),
            hidden_size=w_hh.shape[1],
            direction="reverse" if reverse else "forward",
            linear_before_reset=int(variant == "torch"),
        )
        nothing_kept = op.Constant(value_floats=[])
        return op.Squeeze(output, op.Constant(value_ints=[1])), op.Squeeze(h_n, first), nothing_kept

    return {torch.ops.trigru.gru.default: gru}
