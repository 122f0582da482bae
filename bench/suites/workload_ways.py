"""What users write for the GRUs of a workload, in plain PyTorch: the peers of suite "workloads"; and trigru's side.

A way makes of a GRU, a module with its weights and its inputs a function of (x, h0), which gives the output of every
step, (T, B, D * H), zeros where a packed sequence has ended; and the modules whose parameters it uses, in the order of
nn.GRU's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import trigru
from trigru import reference

from ..cases.given import Given
from ..cases.workloads import Gru

Built = tuple[Callable[[Tensor, Tensor], Tensor], list[nn.Module]]
Step = Callable[..., Tensor]


@dataclass(frozen=True)
class Way:
    """obstacle: why there is nothing of it for a GRU, which is then an nn.GRU; None: there is. any_variant: it has all
    equations, where nn.GRU has those of "torch"."""

    name: str
    obstacle: Callable[[Gru], str | None]
    build: Callable[[Gru, nn.Module, Given], Built]
    any_variant: bool = False


def ours(gru: Gru, source: nn.Module, given: Given, **options: Any) -> Built:
    """trigru's modules, called as `of_torch` calls nn's, but for resets and decays, which a layer takes. options:
    schedule and memory of `trigru.GRU`."""
    places = {"device": given.x.device, "dtype": given.x.dtype, "variant": gru.variant}
    weights = source.state_dict()
    if gru.by_steps:
        cell = trigru.GRUCell(gru.input_size, gru.hidden_size, gru.bias, **places)  # type: ignore[arg-type]
        cell.load_state_dict(weights)
        return _called(gru, cell, given)
    layer = {"bias": gru.bias, "dropout": gru.dropout, "bidirectional": gru.bidirectional}
    module = trigru.GRU(gru.input_size, gru.hidden_size, gru.num_layers, **layer, **places, **options)  # type: ignore[arg-type]
    if gru.cell:
        module.load_state_dict({f"{name}_l0": weight for name, weight in weights.items()})
        return lambda x, h0: module(x, h0[None], decay=given.keep)[0], [module]
    module.load_state_dict(weights)
    resets = given.resets
    if resets is not None:
        return lambda x, h0: module(x, h0, reset=resets)[0], [module]
    return _called(gru, module, given)


def of_torch(gru: Gru, source: nn.Module, given: Given) -> Built:
    """nn.GRU, or nn.GRUCell in a loop. Rows are packed if they are padded to the longest, or start again within."""
    return _called(gru, _copied(gru, source), given)


def _copied(gru: Gru, source: nn.Module) -> nn.Module:
    module = copy.deepcopy(source)
    if isinstance(module, nn.GRU):
        module.dropout = gru.dropout
        module.flatten_parameters()  # a copy has its weights apart, and cuDNN would gather them at every call
    return module


def _called(gru: Gru, module: nn.Module, given: Given) -> Built:
    def call(x: Tensor, h0: Tensor) -> Tensor:
        if gru.cell:
            return _one_direction(module, x, h0, given.keep, None, reverse=False)
        if given.lengths is not None:
            packed, _ = module(pack_padded_sequence(x, given.lengths, enforce_sorted=False), h0)
            return pad_packed_sequence(packed, total_length=x.shape[0])[0]
        if given.resets is not None:
            return _packed_at_resets(module, x, h0, given.resets)
        return module(x, h0)[0]

    return call, [module]


def _one_direction(
    step: Step, x: Tensor, h: Tensor, keep: Tensor | None, alive: Tensor | None, *, reverse: bool
) -> Tensor:
    """A loop over time. keep: (T, B, 1) or (T, B, H), factors of the state before a step; alive: (T, B, 1) bool."""
    outputs = [h] * x.shape[0]
    steps = range(x.shape[0])
    rows = x.unbind(0)
    for t in reversed(steps) if reverse else steps:
        after = step(rows[t], h if keep is None else h * keep[t])
        if alive is None:
            h = outputs[t] = after
        else:
            h, outputs[t] = torch.where(alive[t], after, h), after * alive[t]
    return torch.stack(outputs)


def loop(gru: Gru, source: nn.Module, given: Given, *, cell: Step | None = None) -> Built:
    """Layers, directions and steps in Python. cell: of (x, h, *weights); None: torch's gru_cell, or the reference's for
    equations that torch has not."""
    module = _copied(gru, source)
    if cell is None:
        cell = torch.gru_cell if gru.variant == "torch" else partial(reference.gru_cell, variant=gru.variant)
    parameters, width = list(module.parameters()), 4 if gru.bias else 2
    steps = [_with_weights(cell, parameters[i : i + width]) for i in range(0, len(parameters), width)]
    alive = None
    if given.lengths is not None:
        alive = (torch.arange(gru.seq_len)[:, None] < given.lengths)[..., None].to(given.x.device)

    def call(x: Tensor, h0: Tensor) -> Tensor:
        states = [h0] if gru.cell else h0.unbind(0)
        for first in range(0, len(steps), gru.directions):
            if first and gru.dropout:
                x = F.dropout(x, gru.dropout, module.training)
            outputs = [
                _one_direction(steps[first + back], x, states[first + back], given.keep, alive, reverse=bool(back))
                for back in range(gru.directions)
            ]
            x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        return x

    return call, [module]


def _with_weights(cell: Step, weights: Sequence[Tensor]) -> Step:
    return lambda x, h: cell(x, h, *weights)


def two_modules(gru: Gru, source: nn.Module, given: Given) -> Built:
    """For both directions: an nn.GRU each, the second on the sequence from its end."""
    assert isinstance(source, nn.GRU)
    modules = [_single(source, part) for part in range(gru.num_layers * gru.directions)]

    def call(x: Tensor, h0: Tensor) -> Tensor:
        for first in range(0, len(modules), 2):
            if first and gru.dropout:
                x = F.dropout(x, gru.dropout, modules[0].training)
            ahead, _ = modules[first](x, h0[first : first + 1])
            back, _ = modules[first + 1](x.flip(0), h0[first + 1 : first + 2])
            x = torch.cat([ahead, back.flip(0)], -1)
        return x

    return call, modules


def _single(source: nn.GRU, part: int) -> nn.Module:
    """One layer in one direction, by itself."""
    weights = list(source.parameters())[part * (4 if source.bias else 2) :]
    module = nn.GRU(weights[0].shape[1], source.hidden_size, bias=source.bias).to(weights[0].device, weights[0].dtype)
    with torch.no_grad():
        for mine, given in zip(module.parameters(), weights, strict=False):
            mine.copy_(given)
    return module


def not_packed(gru: Gru, source: nn.Module, given: Given) -> Built:
    """nn.GRU over the padding too, and zeros in its place afterwards."""
    module = _copied(gru, source)
    assert given.lengths is not None
    alive = (torch.arange(gru.seq_len)[:, None] < given.lengths)[..., None].to(given.x.device, given.x.dtype)
    return lambda x, h0: module(x, h0)[0] * alive, [module]


@dataclass(frozen=True)
class Segments:
    """Stretches between resets, the longest first. rows: of the flattened (T * B) sequence, in the order in which a
    PackedSequence has them. grid: (longest, S) of the same, any row where a segment has ended; inside: where it has
    not. env: (S,) whose they are; goes_on: (S, 1) 1 where the state before is the call's, 0 where it is zero."""

    rows: Tensor
    grid: Tensor
    inside: Tensor
    env: Tensor
    goes_on: Tensor

    def states(self, h0: Tensor) -> Tensor:
        """(L, S, H) from (L, B, H)."""
        return h0[:, self.env] * self.goes_on.to(h0.dtype)

    def back(self, found: Tensor, like: Tensor) -> Tensor:
        """(T, B, H) from the rows of the segments."""
        return torch.empty_like(found).index_copy(0, self.rows, found).view(*like.shape[:2], -1)


def segments(resets: Tensor) -> Segments:
    """Of (T, B) bool, True where the state is zero before a step."""
    seq_len, batch = resets.shape
    starts = resets.t().clone()
    starts[:, 0] = True
    first = starts.flatten().nonzero().squeeze(1)  # by environment, then by step
    lengths = torch.diff(first, append=first.new_tensor([seq_len * batch]))
    lengths, order = lengths.sort(descending=True, stable=True)
    first = first[order]
    step = torch.arange(int(lengths[0]), device=resets.device)[:, None]
    inside = step < lengths
    place = torch.where(inside, first + step, first)
    grid = place % seq_len * batch + place // seq_len
    goes_on = ~resets.t().flatten()[first]
    return Segments(grid[inside], grid, inside, first // seq_len, goes_on[:, None])


def _packed_at_resets(module: nn.Module, x: Tensor, h0: Tensor, resets: Tensor) -> Tensor:
    """The stretches between resets as one PackedSequence."""
    parts = segments(resets)
    packed = PackedSequence(x.flatten(0, 1)[parts.rows], parts.inside.sum(1).cpu())
    return parts.back(module(packed, parts.states(h0))[0].data, x)


def padded_at_resets(gru: Gru, source: nn.Module, given: Given) -> Built:
    """The stretches between resets padded to the longest, as one batch: what TorchRL's GRUModule does by default."""
    module = _copied(gru, source)
    resets = given.resets
    assert resets is not None

    def call(x: Tensor, h0: Tensor) -> Tensor:
        parts = segments(resets)
        padded = x.flatten(0, 1)[parts.grid] * parts.inside[..., None]
        return parts.back(module(padded, parts.states(h0))[0][parts.inside], x)

    return call, [module]


def split_at_resets(gru: Gru, source: nn.Module, given: Given) -> Built:
    """A call for each stretch of steps without a reset in any sequence."""
    module = _copied(gru, source)
    resets, keep = given.resets, given.keep
    assert resets is not None
    assert keep is not None

    def call(x: Tensor, h: Tensor) -> Tensor:
        starts = [0, *(t for t in resets.any(1).nonzero().flatten().tolist() if t)]
        outputs = []
        for first, last in zip(starts, [*starts[1:], x.shape[0]], strict=True):
            output, h = module(x[first:last], h * keep[first])
            outputs.append(output)
        return torch.cat(outputs)

    return call, [module]


def _only(gru: Gru, fits: bool, what: str) -> str | None:
    return None if fits and not gru.cell else f"is for {what}"


NN_GRU = Way("nn.GRU", lambda gru: None, of_torch)
WAYS = {
    way.name: way
    for way in (
        NN_GRU,
        Way(
            "loop over cells",
            lambda gru: "is what a cell of nn already is called by" if gru.cell and gru.variant == "torch" else None,
            loop,
            any_variant=True,
        ),
        Way(
            "two modules",
            lambda gru: _only(
                gru,
                gru.bidirectional and gru.rows == "padded" and gru.variant == "torch",
                "both directions of padded rows, by nn.GRU's equations",
            ),
            two_modules,
        ),
        Way(
            "not packed",
            lambda gru: _only(gru, gru.rows == "packed" and not gru.bidirectional, "packed rows in one direction"),
            not_packed,
        ),
        Way("split at resets", lambda gru: _only(gru, gru.rows == "resets", "resets"), split_at_resets),
        Way("padded at resets", lambda gru: _only(gru, gru.rows == "resets", "resets"), padded_at_resets),
    )
}
