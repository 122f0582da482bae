"""The ways in which a case of property_cases.py runs: by the reference, by what is tested, and by torch's own modules.
Of leaves as `properties.fresh` gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from property_cases import CLIP, ZONEOUT, Case, Data, further_of, leaves_of
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import trigru
from trigru import reference
from trigru.layer import Weights

ROWS_OF = ("reset", "decay", "attention")  # packed as the input
DEVICE = "cpu"  # where what is tested runs; soak.py has it otherwise


def _given(case: Case, leaves: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    x, hx, weights = leaves[0], None, list(leaves[1:])
    if case.has_hx:
        hx, *weights = weights
    if case.layout == "expanded" and case.batch:  # views: gradients by the leaves are the same sums
        dim = 0 if case.batch_first else 1
        x = x.narrow(dim, 0, 1).expand_as(x)
        hx = None if hx is None else hx[:, :1].expand_as(hx)
    return x, hx, weights


def _further(case: Case, weights: list[Tensor]) -> dict[str, Tensor]:
    """What a layer has beside its weights, taken off the end of the leaves that it stands at."""
    return {name: weights.pop() for name in reversed(further_of(case))}


def _whole(weight: Tensor | None, blocks: int) -> Tensor:
    """With zeros outside the blocks."""
    assert weight is not None
    return torch.cat([torch.block_diag(*gate.chunk(blocks)) for gate in weight.chunk(3)])


Outputs = tuple[Tensor, Tensor]


def by_reference(case: Case, data: Data, leaves: Sequence[Tensor]) -> Outputs:
    """(output, h_n) of the reference; rows alone where packed."""
    x, hx, flat = _given(case, leaves)
    further = _further(case, flat)
    if hx is None:
        hx = further["h0"].unsqueeze(1) if "h0" in further else x.new_zeros(case.parts, 1, case.hidden_size)
        hx = hx.expand(-1, case.batch, -1)
    there = [True, True, *case.biases]
    weights = []
    for _ in range(case.parts):
        w_ih, w_hh, *biases = (flat.pop(0) if one else None for one in there)
        weights.append(Weights(_whole(w_ih, case.groups), _whole(w_hh, case.num_heads), *biases))
    x = x.transpose(0, 1) if case.batch_first else x
    if case.options:
        x, own = _reference_options(case, data, x, further)
    sizes = order = None
    if case.packed and not case.options:
        assert data.lengths is not None
        packed = pack_padded_sequence(x, data.lengths, enforce_sorted=False)
        x, sizes, order, back = packed
        hx = hx[:, order]
    options: dict[str, Any] = {
        "bidirectional": case.bidirectional,
        "reverse": case.reverse,
        "variant": case.variant,
    }
    output, h_n = reference.stack(x, hx, weights, batch_sizes=sizes, options=own if case.options else (), **options)
    if case.packed and case.options:
        assert data.lengths is not None
        return pack_padded_sequence(output, data.lengths, enforce_sorted=False).data, h_n
    if case.packed:
        return output, h_n[:, back]
    if case.has_lengths:
        output = output.masked_fill(~_alive(case, data).unsqueeze(-1), 0)
    return output.transpose(0, 1) if case.batch_first else output, h_n


def _alive(case: Case, data: Data) -> Tensor:
    """(seq_len, batch), the steps of each sequence."""
    assert data.lengths is not None
    return torch.arange(case.seq_len).unsqueeze(1) < data.lengths


def _reference_options(
    case: Case, data: Data, x: Tensor, further: dict[str, Tensor]
) -> tuple[Tensor, list[reference.Options]]:
    """The input as far as it is used, and the options of each layer and direction, time-major."""

    def time_major(given: Tensor | None) -> Tensor | None:
        return given.transpose(0, 1) if case.batch_first and given is not None else given

    reset, mask = time_major(data.reset), time_major(data.mask)
    decay, amount = time_major(further.get("decay")), time_major(further.get("attention"))
    if case.has_lengths:
        alive = _alive(case, data)
        mask = alive if mask is None else alive & mask
        reset = None if reset is None else alive & reset
        decay = None if decay is None else torch.where(alive.unsqueeze(-1), decay, 1)
    if "zoneout" in case.options:
        amount = (1 - ZONEOUT) * (x.new_ones(x.shape[:2]) if amount is None else amount)
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0)
        amount = mask.to(x.dtype) if amount is None else amount * mask
    options = []
    for part in range(case.parts):
        fresh = further["reset_state"][part] if "reset_state" in further else None
        if reset is not None and "h0" in further:
            fresh = further["h0"][part].expand(case.batch, -1)
        direction = part % (1 + case.bidirectional)
        own = None if decay is None else decay[..., direction * case.hidden_size :][..., : case.hidden_size]
        whole = None if amount is None else amount.unsqueeze(-1)
        clip = CLIP if "clip" in case.options else None
        gain = further["gain"][part] if "gain" in further else None
        options.append(reference.Options(reset, fresh, own, whole, None, clip, gain))
    return x, options


def by_call(case: Case, data: Data, leaves: Sequence[Tensor], cls: type[nn.Module] | None = None) -> Outputs:
    """(output, h_n) of what is tested, or with `cls` of torch's module; shapes as `by_reference` gives them.

    Raises:
        AssertionError: shapes or dtypes are not as they must be.
    """
    if cls is None and DEVICE != "cpu":
        return _by_call_on_device(case, data, leaves)
    with torch.autocast("cpu", case.dtype, enabled=case.autocast and cls is None):
        return _by_call(case, data, leaves, cls)


def _by_call_on_device(case: Case, data: Data, leaves: Sequence[Tensor]) -> Outputs:
    """There and back, which autograd goes too."""
    reset, mask, lengths = (x if x is None else x.to(DEVICE) for x in (data.reset, data.mask, data.lengths))
    own = replace(data, reset=reset, mask=mask, lengths=data.lengths if case.packed else lengths)
    output, h_n = _by_call(case, own, [x.to(DEVICE) for x in leaves], None)
    assert (output.device.type, h_n.device.type) == (DEVICE, DEVICE)
    return output.cpu(), h_n.cpu()


def _by_call(case: Case, data: Data, leaves: Sequence[Tensor], cls: type[nn.Module] | None) -> Outputs:
    x, hx, weights = _given(case, leaves)
    if case.kind == "module":
        return _by_module(case, data, x, hx, weights, cls or trigru.GRU)
    if case.kind == "cell":
        only_trigru: dict[str, Any] = {} if cls else {"variant": case.variant}
        cell = (cls or trigru.GRUCell)(case.input_size, case.hidden_size, case.biases[0], dtype=x.dtype, **only_trigru)
        _set(cell, weights)
        alone = case.rows == "unbatched"
        hx = None if hx is None else hx[0, 0] if alone else hx[0]
        state = (cell(x[0, 0], hx)[None] if alone else cell(x[0], hx))[None]
        return state, state
    given: dict[str, Any] = _options(case, data, weights)
    given |= {name: given[name][0] for name in ("reset_state", "gain") if name in given}
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = (weights[2 + sum(case.biases[:i])] if case.biases[i] else None for i in range(2))
    sizes = None
    if case.packed:
        assert data.lengths is not None
        x, sizes, *_ = pack_padded_sequence(x, data.lengths)
        given |= {name: pack_padded_sequence(v, data.lengths).data for name, v in given.items() if name in ROWS_OF}
    given |= {"variant": case.variant, "schedule": case.schedule, "reverse": case.reverse, "memory": case.memory}
    given |= _of_module(case) | {"batch_sizes": sizes, "training": "zoneout" not in case.options}
    output, h_n = trigru.gru(x, None if hx is None else hx[0], w_ih, w_hh, b_ih, b_hh, **given)
    return output, h_n[None]


def by_torch(case: Case, data: Data, leaves: Sequence[Tensor]) -> Outputs:
    """nn.GRUCell or nn.GRU; a function's as a module, with zeros for one bias where only the other is there, and the
    steps turned around where it runs from the last to the first."""
    if case.kind == "cell":
        return by_call(case, data, leaves, nn.GRUCell)
    if case.kind == "function":
        given = dict(zip(leaves_of(case), leaves, strict=True))
        none = leaves[0].new_zeros(3 * case.hidden_size)
        if case.reverse:
            given["input"] = given["input"].flip(0)
        own = replace(case, kind="module", biases=(any(case.biases),) * 2)
        output, h_n = by_call(own, data, [given.get(name, none) for name in leaves_of(own)], nn.GRU)
        return output.flip(0) if case.reverse else output, h_n
    return by_call(case, data, leaves, nn.GRU)


def _options(case: Case, data: Data, weights: list[Tensor]) -> dict[str, Tensor]:
    """Keywords of a call: those in `weights`, which are taken off its end, and the others."""
    lengths = data.lengths if "lengths" in case.options else None
    given = _further(case, weights) | {"reset": data.reset, "mask": data.mask, "lengths": lengths}
    return {name: x for name, x in given.items() if x is not None}


def _of_module(case: Case) -> dict[str, Any]:
    """The options that are a module's."""
    found: dict[str, Any] = {name: x for name, x in (("clip", CLIP), ("zoneout", ZONEOUT)) if name in case.options}
    return found | ({"num_heads": case.num_heads, "groups": case.groups} if case.num_heads > 1 else {})


def _set(module: nn.Module, weights: list[Tensor]) -> None:
    """Leaves in the place of a module's parameters."""
    names = [name for name, parameter in module._parameters.items() if parameter is not None]
    for name, weight in zip(names, weights, strict=True):
        module._parameters[name] = weight  # type: ignore[assignment]  # a leaf, which need not be a Parameter


def _by_module(
    case: Case, data: Data, x: Tensor, hx: Tensor | None, weights: list[Tensor], cls: type[nn.Module]
) -> Outputs:
    options: dict[str, Any] = {
        "bias": case.biases[0],
        "batch_first": case.batch_first,
        "bidirectional": case.bidirectional,
    }
    given = _options(case, data, weights)
    options |= _of_module(case)
    if cls is trigru.GRU:
        options |= {"variant": case.variant, "schedule": case.schedule, "memory": case.memory}
        options |= {"norm": "layer" if "gain" in given else None, "learn_initial_state": "h0" in given}
    module = cls(case.input_size, case.hidden_size, case.num_layers, dtype=x.dtype, **options)
    module.train("zoneout" not in case.options)
    _set(module, [*weights, *given.pop("gain", ()), *([given.pop("h0")] if "h0" in given else ())])
    if hasattr(module, "_flat_weights"):
        module._flat_weights = list(weights)  # type: ignore[assignment]  # a list, as torch itself has it
    if case.packed:
        assert data.lengths is not None
        pack = partial(
            pack_padded_sequence,
            lengths=data.lengths,
            batch_first=case.batch_first,
            enforce_sorted=case.rows == "packed",
        )
        packed = pack(x)
        output, h_n = module(packed, hx, **{name: pack(v) if name in ROWS_OF else v for name, v in given.items()})
        assert isinstance(output, PackedSequence)
        assert output.batch_sizes is packed.batch_sizes
        assert output.sorted_indices is packed.sorted_indices
        return output.data, h_n
    if case.rows == "unbatched":
        dim = 0 if case.batch_first else 1
        of_batch = {"reset_state": 1, "lengths": 0}
        given = {name: v.squeeze(of_batch.get(name, dim)) for name, v in given.items()}
        output, h_n = module(x.squeeze(dim), None if hx is None else hx.squeeze(1), **given)
        assert (output.dim(), h_n.dim()) == (2, 2)
        return output.unsqueeze(dim), h_n.unsqueeze(1)
    return module(x, hx, **given)
