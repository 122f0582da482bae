"""The schemas of `torch.ops.trigru.gru` and `gru_backward`: the one place where a layer's records lie flat.

    gru(input, hx, weights, batch_sizes, <options>, first_kept, <given>) -> (output, h_n, reserve)

weights: w_ih, w_hh and, unless the layer has none, b_ih, b_hh of each layer and direction. gain: of normalised
products, see `trigru.layer.Call`; it stands last. reserve: what backward needs of the layers from `first_kept` on, laid
out as `trigru.schedules.stack` says. gru_backward takes the reserve with the last layer's states at its end. has_input:
whether `input` holds the input or, where backward needs no more, stands for its shape. needs: of the derivatives by
input, hx, each of the weights and, where there are so many, by fresh, decay and amount of what was given for each step
(`trigru.layer.Given`) and by the gain, which then stand behind those by the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..layer import Call, Given, Layer

_OPTIONS = (
    "int num_layers, bool batch_first, float dropout, bool bidirectional, bool reverse, str variant, str schedule, "
    "str memory, int first_kept"
)
_GIVEN = (
    "Tensor? reset=None, Tensor? fresh=None, Tensor? decay=None, Tensor? amount=None, Tensor? dropped=None, "
    "Tensor? seed=None, Tensor? lengths=None, float? clip=None, float zoneout=0.0, float recurrent_dropout=0.0, "
    "Tensor? gain=None, int num_heads=1"
)
_TENSORS = "Tensor input, Tensor hx, Tensor[] weights, Tensor? batch_sizes"
NUM_OPTIONS, NUM_GIVEN = _OPTIONS.count(",") + 1, _GIVEN.count(",") + 1
GAIN = [part.split()[1] for part in _GIVEN.split(", ")].index("gain=None")
"""Its place among those given. The last ones are not there where they have their default values."""
SCHEMAS = {
    "gru": f"({_TENSORS}, {_OPTIONS}, {_GIVEN}) -> (Tensor output, Tensor h_n, Tensor[] reserve)",
    "gru_backward": f"(Tensor? grad_output, Tensor? grad_h_n, {_TENSORS}, Tensor[] reserve, {_OPTIONS}, "
    f"bool has_input, bool[] needs, {_GIVEN}) -> (Tensor d_input, Tensor d_hx, Tensor[] d_weights)",
}


def new_library() -> torch.library.Library:
    """The library that owns the operators. One that an earlier import of the package in this process has left behind
    (its modules taken out of sys.modules) gives way; those of other namespaces stay."""
    kept = torch.library.__dict__.setdefault("_trigru_libraries", {})  # outlives the modules; never collected
    if "trigru::gru" in kept:
        kept["trigru::gru"]._destroy()
    library = kept["trigru::gru"] = torch.library.Library("trigru", "DEF")
    for name, schema in SCHEMAS.items():
        seeded = (torch.Tag.nondeterministic_seeded,) if name == "gru" else ()
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, *seeded))
    return library


class Recorded(NamedTuple):
    """A call of the operator: what its flat arguments say."""

    layer: Layer
    weights: Sequence[Tensor]
    call: Call
    first_kept: int


def flat(recorded: Recorded) -> tuple:
    """The arguments of `gru`, in the schema's order."""
    layer, weights, call, first_kept = recorded
    return (
        call.input,
        call.hx,
        list(weights),
        call.batch_sizes,
        layer.num_layers,
        layer.batch_first,
        layer.dropout,
        layer.bidirectional,
        layer.reverse,
        layer.variant,
        layer.schedule,
        layer.memory,
        first_kept,
        *call.given,
        layer.clip,
        layer.zoneout,
        layer.recurrent_dropout,
        call.gain,
        layer.num_heads,
    )


def recorded(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    num_layers: int,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
    reverse: bool,
    variant: str,
    schedule: str,
    memory: str,
    first_kept: int,
    reset: Tensor | None = None,
    fresh: Tensor | None = None,
    decay: Tensor | None = None,
    amount: Tensor | None = None,
    dropped: Tensor | None = None,
    seed: Tensor | None = None,
    lengths: Tensor | None = None,
    clip: float | None = None,
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    gain: Tensor | None = None,
    num_heads: int = 1,
) -> Recorded:
    """The inverse of `flat`."""
    layer = Layer(
        input_size=input.shape[-1],
        hidden_size=hx.shape[-1],
        num_layers=num_layers,
        bias=len(weights) == 4 * num_layers * (2 if bidirectional else 1),
        batch_first=batch_first,
        dropout=dropout,
        bidirectional=bidirectional,
        reverse=reverse,
        variant=variant,
        schedule=schedule,
        memory=memory,
        clip=clip,
        zoneout=zoneout,
        recurrent_dropout=recurrent_dropout,
        num_heads=num_heads,
    )
    given = Given.of((reset, fresh, decay, amount, dropped, seed, lengths))
    return Recorded(layer, weights, Call(input, hx, batch_sizes, given, gain), first_kept)


class Backward(NamedTuple):
    """A call of `gru_backward`."""

    forward: Recorded
    grad_output: Tensor | None
    grad_h_n: Tensor | None
    reserve: Sequence[Tensor]
    has_input: bool
    needs: Sequence[bool]


def flat_backward(backward: Backward) -> tuple:
    """The arguments of `gru_backward`, in the schema's order."""
    input, hx, weights, batch_sizes, *options = flat(backward.forward)
    options, given = options[:-NUM_GIVEN], options[-NUM_GIVEN:]
    tensors = (input, hx, weights, batch_sizes, list(backward.reserve))
    needs = (backward.has_input, list(backward.needs))
    return (backward.grad_output, backward.grad_h_n, *tensors, *options, *needs, *given)


def recorded_backward(*arguments) -> Backward:  # type: ignore[no-untyped-def]
    """The inverse of `flat_backward`; what is given for each step may be left out."""
    grad_output, grad_h_n, input, hx, weights, batch_sizes, reserve, *options = arguments
    at = NUM_OPTIONS
    options, has_input, needs, given = options[:at], *options[at : at + 2], options[at + 2 :]
    forward = recorded(input, hx, weights, batch_sizes, *options, *given)
    return Backward(forward, grad_output, grad_h_n, reserve, has_input, needs)
