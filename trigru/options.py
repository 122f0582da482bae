"""What a call gives each step, and what a module does at random: brought into the one form of `trigru.layer.Given`.

The user's arguments are batch-first, packed or unbatched as the input is; here they become time-major. `lengths` and
`mask` become the amount of a step that is done, none of a dead or masked one; zoneout's expected value in evaluation
is an amount as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .checks import assert_batch_sizes, batch_sizes_of, expect
from .kernels.steps import Steps
from .layer import Call, Given, Layer, Records, alive

Rows = Tensor | PackedSequence
"""What is given for each step, packed where the input is."""


class PerCall(NamedTuple):
    """The arguments of a call beside input and hx, as users give them; see `trigru.GRU`."""

    reset: Rows | None = None
    reset_state: Rows | None = None
    lengths: Tensor | None = None
    mask: Tensor | None = None
    decay: Rows | None = None
    attention: Rows | None = None


class Arguments(TypedDict, total=False):
    """The same as keywords."""

    reset: Rows | None
    reset_state: Rows | None
    lengths: Tensor | None
    mask: Tensor | None
    decay: Rows | None
    attention: Rows | None


def per_call(
    reset: Rows | None = None,
    reset_state: Rows | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    decay: Rows | None = None,
    attention: Rows | None = None,
) -> PerCall | None:
    """The arguments of a call; None where there are none."""
    if reset is reset_state is lengths is mask is decay is attention is None:
        return None
    return PerCall(reset, reset_state, lengths, mask, decay, attention)


@dataclass(frozen=True)
class Options:
    """What a module's steps do at every call; arguments of `trigru.GRU`.

    Raises:
        TypeError: a rate or clip that is no number.
        ValueError: a rate outside [0, 1], a clip that is not above 0.
    """

    zoneout: float = 0.0
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("zoneout", "recurrent_dropout", "weight_dropout"):
            _check_number(name, rate := getattr(self, name))
            if not 0 <= rate <= 1:
                raise ValueError(f"{name}: expected a number in range [0, 1], got {rate}")
        if self.clip is not None:
            _check_number("clip", self.clip)
            if not self.clip > 0:
                raise ValueError(f"clip: expected None or a number above 0, got {self.clip}")

    def named(self) -> dict[str, float | None]:
        """Those that differ from their defaults."""
        return {name: x for name, x in vars(self).items() if x != vars(NO_OPTIONS)[name]}


def _check_number(name: str, x: object) -> None:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(x).__name__}")


NO_OPTIONS = Options()


def as_attribute(name: str) -> Any:
    """An argument of `Options` as an attribute of a module that keeps them, checked where it is set."""

    def get(module: Any) -> Any:
        return getattr(module._options or NO_OPTIONS, name)

    def put(module: Any, value: Any) -> None:
        options = replace(module._options or NO_OPTIONS, **{name: value})
        vars(module).pop("_options", None)
        if options != NO_OPTIONS:
            module._options = options

    return property(get, put, doc="As the argument; may be set, for the calls that follow.")


Finish = Callable[[Tensor], Tensor]
"""What the output still goes through."""


def drop_weights(layer: Layer, weights: Sequence[Tensor], rate: float) -> list[Tensor]:
    """DropConnect (Wan et al. 2013): weights of the recurrent products left out at random, the others scaled, the same
    for all steps of a call."""
    width = 4 if layer.bias else 2
    return [F.dropout(w, rate) if i % width == 1 else w for i, w in enumerate(weights)]


def prepare(
    records: Records,
    arguments: PerCall,
    options: Options,
    *,
    training: bool,
    batched: bool = True,
    sorted_indices: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Records, Finish | None]:
    """The records of the call that does what is asked for, and what its output still goes through.

    Args:
        records: of the call without it; its input has a batch.
        batched: whether the user's own input had one.
        sorted_indices: of a packed call.
        initial: (L * D, H), the state that an episode begins from where the call names none; None for zeros.

    Raises:
        TypeError: an argument that is no tensor.
        ValueError: arguments that cannot be combined; lengths outside 0 ... seq_len, where a CPU can tell.
        RuntimeError: a shape, dtype or device does not fit.
    """
    layer, weights, call = records
    _check_combination(layer, call, arguments)
    user = _User(layer, call, batched, sorted_indices)
    finish: Finish | None = None
    if call.batch_sizes is not None:
        layer, call = replace(layer, batch_first=False), call._replace(input=user.padded(call.input), batch_sizes=None)
        finish = user.packed
    reset = user.by_step("reset", arguments.reset, (), torch.bool)
    mask = user.by_step("mask", arguments.mask, (), torch.bool)
    width = layer.directions * layer.hidden_size
    decay = user.by_step("decay", arguments.decay, (1, width), call.input.dtype)
    amount = user.by_step("attention", arguments.attention, (), call.input.dtype)
    lengths = user.packed_lengths() if arguments.lengths is None else user.lengths(arguments.lengths)
    fresh = None
    if reset is not None:
        fresh = user.fresh(arguments.reset_state, initial)
    # What is not used may be anything, and must reach nothing: not even as 0 * NaN in a weight's derivative.
    used = mask
    if lengths is not None:
        before_end = alive(user.steps, lengths)
        used = before_end if mask is None else mask & before_end
        finish = user.without_ends(before_end) if finish is None else finish
    input = call.input
    if used is not None:
        input = input.masked_fill(~user.as_input(used).unsqueeze(-1), 0)
    if options.zoneout and not training:
        amount = call.input.new_ones(user.steps, user.batch) if amount is None else amount
        amount = amount * (1 - options.zoneout)
    if mask is not None:
        amount = mask if amount is None else torch.where(mask, amount, 0)
    zoneout, recurrent_dropout = (float(x) if training else 0.0 for x in (options.zoneout, options.recurrent_dropout))
    dropped = _new_seed(input.device) if recurrent_dropout else None
    seed = _new_seed(input.device) if zoneout else None
    if training and options.weight_dropout:
        weights = drop_weights(layer, weights, options.weight_dropout)
    given = Given.of((reset, fresh, decay, amount, dropped, seed, lengths))
    clip = None if options.clip is None else float(options.clip)
    layer = replace(layer, clip=clip, zoneout=zoneout, recurrent_dropout=recurrent_dropout)
    return Records(layer, weights, Call(input, call.hx, None, given, call.gain)), finish


def _new_seed(device: torch.device) -> Tensor:
    """(), int64: of the masks of a call, which leaves so many numbers above for its rows."""
    return torch.randint(1 << 62, (), dtype=torch.int64, device=device)


def _check_combination(layer: Layer, call: Call, arguments: PerCall) -> None:
    if call.batch_sizes is not None:
        for name in ("lengths", "mask"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"{name}: expected None with packed input, which has its lengths")
    if layer.num_layers > 1:
        for name in ("decay", "attention"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"{name}: expected None with several layers, got num_layers={layer.num_layers}")
    if arguments.reset_state is not None and arguments.reset is None:
        raise ValueError("reset_state: expected None without reset, for no episode begins")


class _User:
    """How a user's tensors are laid out, and what the kernels' order of them is."""

    def __init__(self, layer: Layer, call: Call, batched: bool, sorted_indices: Tensor | None) -> None:
        self.layer, self.input, self.batched = layer, call.input, batched
        self.sizes, self.sorted_indices, self.batch = call.batch_sizes, sorted_indices, call.hx.shape[1]
        self.batch_first = layer.batch_first and batched and self.sizes is None
        packed = self.sizes is not None
        self.steps = self.sizes.shape[0] if self.sizes is not None else call.input.shape[1 if layer.batch_first else 0]
        rows = (call.input.shape[0],) if packed else (self.steps, self.batch)
        self.alive_at = None if self.sizes is None else _alive_at(call, self.sizes)
        self.shape = rows[::-1] if self.batch_first else rows if batched else rows[:1]

    def by_step(self, name: str, x: Rows | None, widths: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """An argument of a value each step, or of one of so many, as (T, B) or (T, B, width)."""
        if x is None:
            return None
        if isinstance(x, PackedSequence):
            x = self._data(name, x)
        shapes = [(*self.shape, width) for width in widths] or [self.shape]
        self._check(name, x, shapes, dtype)
        if self.sizes is not None:
            return self.padded(x, 1 if name == "decay" else 0)
        return x.transpose(0, 1) if self.batch_first else x if self.batched else x.unsqueeze(1)

    def _data(self, name: str, x: PackedSequence) -> Tensor:
        """The rows of a packed argument."""
        if self.sizes is None:
            raise RuntimeError(f"{name}: expected a tensor beside an input that is not packed, got a PackedSequence")
        sizes, words = x.batch_sizes, f"{name}: expected a PackedSequence with the input's batch_sizes"
        compiling = torch.compiler.is_compiling()
        if sizes.shape != self.sizes.shape or not (compiling or torch.equal(sizes, self.sizes)):
            raise RuntimeError(words)
        if compiling:  # a graph asks as it runs
            torch._assert_async((sizes == self.sizes).all(), words)
        if not self._in_order(x.sorted_indices):
            raise RuntimeError(f"{name}: expected a PackedSequence of sequences in the input's order")
        return x.data

    def _in_order(self, sorted_indices: Tensor | None) -> bool:
        """Whether a packed argument's sequences lie as the input's; true where that cannot be asked for."""
        own, other = self.sorted_indices, sorted_indices
        if own is other:
            return True
        if not all(x is None or _can_look_at(x) for x in (own, other)):
            return True
        as_given = torch.arange(self.batch, device="cpu")
        return torch.equal(as_given if own is None else own, as_given if other is None else other)

    def _check(self, name: str, x: object, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        """`expect`; autocast casts any floating dtype."""
        cast = torch._C._is_any_autocast_enabled() and dtype.is_floating_point
        expect(name, x, shapes, None if cast else [dtype], self.input)

    def fresh(self, state: Rows | None, initial: Tensor | None) -> Tensor | None:
        """The state that episodes begin from: (L * D, B, H), or (T, L * D, B, H) by steps."""
        layer, batch = self.layer, self.batch
        parts, size = layer.parts, layer.hidden_size
        if state is None:
            return None if initial is None else initial.unsqueeze(1).expand(parts, batch, size)
        of_rows = isinstance(state, PackedSequence)
        if isinstance(state, PackedSequence):
            state = self._data("reset_state", state)
        steps = self.steps
        by_sequence: tuple[int, ...]
        by_step: tuple[int, ...]
        if self.sizes is not None:
            by_sequence, by_step = (parts, batch, size), (self.shape[0], parts, size)
        elif self.batched:
            by_sequence, by_step = (parts, batch, size), (steps, parts, batch, size)
        else:
            by_sequence, by_step = (parts, size), (steps, parts, size)
        shapes = [by_step] if of_rows else [(parts, size), by_sequence, by_step][0 if self.batched else 1 :]
        self._check("reset_state", state, shapes, self.input.dtype)
        if state.shape == (parts, size):
            return state.unsqueeze(1).expand(parts, batch, size)
        if state.shape == by_sequence and not of_rows:
            return state if self.sorted_indices is None else state.index_select(1, self.sorted_indices)
        if self.sizes is not None:
            return self.padded(state).transpose(1, 2)
        return state if self.batched else state.unsqueeze(2)

    def lengths(self, lengths: Tensor) -> Tensor:
        """(B,) int64."""
        return lengths_of(lengths, (self.batch,) if self.batched else (), self.steps, self.input).reshape(-1)

    def packed_lengths(self) -> Tensor | None:
        """(B,) of the sequences of a packed call."""
        if self.alive_at is None:
            return None
        return (self.alive_at.unsqueeze(1) > torch.arange(self.batch, device=self.alive_at.device)).sum(0)

    def as_input(self, x: Tensor) -> Tensor:
        """(T, B, ...) with its first dimensions in the input's order."""
        return x.transpose(0, 1) if self.layer.batch_first and self.sizes is None else x

    def without_ends(self, alive: Tensor) -> Finish:
        """Zeros past each sequence's end."""
        dead = ~self.as_input(alive).unsqueeze(-1)
        return lambda output: output.masked_fill(dead, 0)

    def _places(self) -> Tensor:
        """(N,) the row t * B + b of each packed row."""
        sizes, rows = self.alive_at, self.input.shape[0]
        assert sizes is not None
        steps = torch.arange(self.steps, device=sizes.device).repeat_interleave(sizes, output_size=rows)
        first = (sizes.cumsum(0) - sizes)[steps]
        return steps * self.batch + torch.arange(rows, device=sizes.device) - first

    def padded(self, x: Tensor, filler: float = 0) -> Tensor:
        """(N, ...) of a packed call as (T, B, ...)."""
        whole = x.new_full((self.steps * self.batch, *x.shape[1:]), filler)
        return whole.index_copy(0, self._places(), x).unflatten(0, (self.steps, self.batch))

    def packed(self, x: Tensor) -> Tensor:
        """The inverse."""
        return x.flatten(0, 1).index_select(0, self._places())


def lengths_of(lengths: Tensor, shape: tuple[int, ...], steps: int, input: Tensor) -> Tensor:
    """As int64, once they are known to fit a call of so many steps: 8 bits have no place for a large seq_len to compare
    with."""
    expect("lengths", lengths, [shape], None, input)
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise RuntimeError(f"lengths: expected an integer dtype, got {lengths.dtype}")
    lengths = lengths.to(torch.int64)
    if _can_look_at(lengths) and not bool(((lengths >= 0) & (lengths <= steps)).all()):
        low, high = int(lengths.min()), int(lengths.max())
        raise ValueError(f"lengths: expected numbers from 0 to {steps}, the steps of input, got {low} to {high}")
    return lengths


def _alive_at(call: Call, sizes: Tensor) -> Tensor:
    """(T,) the batch sizes of a packed call on its input's device, which is not waited for. They are known to fit it
    then: the operator is given a padded call, and cannot tell. Can be captured in a CUDA graph."""
    counts = None
    if _can_look_at(sizes):
        counts = batch_sizes_of(call)
    elif torch.compiler.is_compiling():
        assert_batch_sizes(call)
    if counts is None or not call.input.is_cuda:
        return sizes.to(call.input.device)
    offsets = Steps.of_batch_sizes(counts).row_offsets(call.input.device)
    assert offsets is not None  # of packed steps
    return offsets.diff()


def _can_look_at(x: Tensor) -> bool:
    """Whether its values can be asked for without waiting for a device, breaking a graph or asking a batch of them."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return False
    return type(x) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(x)
