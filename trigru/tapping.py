"""`trigru.tap` and `trigru.plot_gates`: what the gates of a model's GRUs do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import reference
from .blocks import whole_weights
from .layer import Records, time_major
from .modules import GRU
from .operators import compute, tensors_of
from .operators.plain import has_tangent, is_batched
from .operators.schema import Recorded
from .options import Finish
from .schedules import stack
from .schedules.part import Run
from .schedules.per_step import before_their_ends, is_given, of_part
from .schedules.recompute import seen_before


class Gates(NamedTuple):
    """Of one layer in one direction, in one forward call: each (seq_len, batch, hidden_size), laid out as the call's
    input, so (batch, seq_len, hidden_size) with batch_first, without the batch if it had none, as its data if it was
    packed; without gradients."""

    name: str  # the module's in the tapped one, with "_l0", "_l0_reverse", ... as its weights have
    r: Tensor  # reset gate
    z: Tensor  # update gate
    n: Tensor  # candidate
    h: Tensor  # state after each step


@contextmanager
def tap(module: nn.Module) -> Iterator[list[Gates]]:
    """Record what the gates do in every forward call of the GRUs in `module` while the context lasts.

    A recorded call is computed once more, with the states kept, and its gates from them; calls outside cost nothing. It
    runs uncompiled: a graph of torch.compile breaks around it.

    Args:
        module: a `trigru.GRU`, or a model of them.

    Yields:
        A list to which each call appends its `Gates`, a record for each layer and direction.

    Raises:
        ValueError: no trigru.GRU in `module`.
        RuntimeError: a call by torch.func, forward-mode AD or torch.export, whose tensors are none to look at.

    Example:
        >>> layer = trigru.GRU(8, 16)
        >>> with trigru.tap(layer) as gates:
        ...     output, h_n = layer(torch.randn(5, 2, 8))
        >>> gates[0].name, gates[0].r.shape
        ('_l0', torch.Size([5, 2, 16]))
        >>> torch.testing.assert_close(gates[0].h, output)
    """
    found = {name: one for name, one in module.named_modules() if isinstance(one, GRU)}
    if not found:
        raise ValueError(f"module: expected a trigru.GRU or a model with one, got {type(module).__name__}")
    gates: list[Gates] = []
    with ExitStack() as hooks:
        for name, one in found.items():
            hooks.enter_context(_tapped(name, one, gates))
        yield gates


_RUNS = "trigru.tap records calls as they run"  # what a compiler is told


@contextmanager
def _tapped(name: str, module: GRU, gates: list[Gates]) -> Iterator[None]:
    """One GRU's calls."""
    calls: list[tuple[Records, Finish | None, list[Tensor]]] = []
    prepared, outer = module._prepared, vars(module).get("_prepared")  # by a tap around this one

    @torch.compiler.disable(reason=_RUNS)
    def preparing(*args: Any, **kwargs: Any) -> Any:
        result = prepared(*args, **kwargs)
        _, weights, call = result[0]
        if torch.compiler.is_compiling() or is_batched() or has_tangent(tensors_of(weights, call)):
            raise RuntimeError("tap: expected a call that torch.func, forward-mode AD and torch.export do not look at")
        calls.append((*result, _rng_states(call.input.device)))
        return result

    @torch.compiler.disable(reason=_RUNS)
    def after(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _result: Any) -> None:
        if called is not module or not calls:  # a copy made within the context has the hook; a forward put in its place
            return
        input = args[0] if args else kwargs["input"]
        records, finish, states = calls.pop()
        calls.clear()  # what only asked, such as trigru.explain
        batched, pack = not (isinstance(input, Tensor) and input.dim() == 2), None
        if isinstance(input, PackedSequence) and records.call.batch_sizes is None:  # it ran padded
            pack = finish
        gates.extend(_gates(name, module, records, states, batched, pack))

    vars(module)["_prepared"] = preparing
    hook = module.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        if outer is None:
            del vars(module)["_prepared"]
        else:
            vars(module)["_prepared"] = outer


def _rng_states(device: torch.device) -> list[Tensor]:
    """Of the generators that a call on a device draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@torch.no_grad()
def _gates(
    name: str, module: GRU, records: Records, rng: Sequence[Tensor], batched: bool, pack: Finish | None
) -> list[Gates]:
    layer, weights, call = records
    matrices = whole_weights(layer, weights)
    device = call.input.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(rng[0])  # the masks of the dropout between layers
        for state in rng[1:]:
            torch.cuda.set_rng_state(state, device)
        result = compute.forward(Recorded(layer, weights, call, 0))
    call = before_their_ends(layer, call)
    steps, found = stack.steps_of(layer, call), []
    for index, (x, states) in enumerate(stack.kept_rows(layer, call, result)):
        for direction in range(layer.directions):
            part = index * layer.directions + direction
            own, reverse = states.chunk(layer.directions, 1)[direction], layer.runs_backwards(direction)
            given = of_part(layer, call, part) if is_given(layer, call) else None
            before = seen_before(Run(x, call.hx[part], steps, own, None, per_step=given), reverse)
            parts = layer.weights_of(matrices, part, call.gain)
            r, z, n = reference.gates(x, before, *parts[:4], variant=layer.variant, gain=parts.gain)
            rows = (stack.shaped(values, steps) for values in (r, z, n, own.contiguous()))
            turned = (time_major(layer, call, values) for values in rows)
            shown = [values if batched or steps.packed else values.squeeze(1) for values in turned]
            shown = shown if pack is None else [pack(values) for values in shown]
            suffix = module._all_weights[part][0].removeprefix("weight_ih")
            found.append(Gates(name + suffix, *shown))
    return found


def plot_gates(gates: Sequence[Gates] | Gates, path: str | Path | None = None, *, sequence: int = 0) -> Any:
    """Draw reset gate, update gate, candidate and state over time, a row of four for each record.

    Needs matplotlib: pip install "trigru[demo]".

    Args:
        gates: what `tap` has recorded, or one record of it, of padded input, time-major.
        path: where to write the figure; None: nowhere.
        sequence: which of the batch.

    Returns:
        The matplotlib Figure.

    Raises:
        ImportError: matplotlib is not there.
        ValueError: no record; a sequence that is not there.

    Example:
        >>> layer = trigru.GRU(8, 16)
        >>> with trigru.tap(layer) as gates:
        ...     output, h_n = layer(torch.randn(5, 2, 8))
        >>> figure = trigru.plot_gates(gates)  # doctest: +SKIP
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('trigru.plot_gates needs matplotlib: pip install "trigru[demo]"') from error
    records = [gates] if isinstance(gates, Gates) else list(gates)
    if not records:
        raise ValueError("gates: expected a record of trigru.tap, got none")
    figure = Figure(figsize=(12, 2.6 * len(records)), layout="constrained")
    axes = figure.subplots(len(records), 4, squeeze=False, sharex="row")
    for record, row in zip(records, axes, strict=True):
        if record.h.dim() == 3 and not 0 <= sequence < record.h.shape[1]:
            raise ValueError(f"sequence: expected 0 to {record.h.shape[1] - 1}, got {sequence}")
        for place, (title, (low, colours)) in zip(row, _PANELS.items(), strict=True):
            values = getattr(record, title[0])
            values = values[:, sequence] if values.dim() == 3 else values
            image = place.imshow(values.float().cpu().T, aspect="auto", vmin=low, vmax=1, cmap=colours)
            place.set(title=f"{record.name or 'GRU'}: {title}", xlabel="step", ylabel="unit")
            figure.colorbar(image, ax=place)
    if path is not None:
        figure.savefig(path)
    return figure


_PANELS = {
    "r, reset": (0, "cividis"),
    "z, update": (0, "cividis"),
    "n, candidate": (-1, "RdBu_r"),
    "h, state": (-1, "RdBu_r"),
}
