"""`trigru.gru`: one layer in one direction, the functional form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import operators
from .autocast import cast
from .blocks import Blocks, is_exported, whole
from .checks import check, check_state, expect, expect_tensor, first_of, layer_of, refuse_nested
from .layer import Call, Memory, Records, ScheduleName, Variant
from .operators.plain import is_plain, is_unseen
from .options import NO_OPTIONS, Finish, Options, PerCall, per_call, prepare
from .planning.invariant import refuse
from .reference import check_variant
from .reference import gru_cell as reference_cell
from .schedules import single


def gru(
    input: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    variant: Variant = "torch",
    schedule: ScheduleName = "auto",
    reverse: bool = False,
    batch_sizes: Tensor | None = None,
    memory: Memory = "keep",
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    decay: Tensor | None = None,
    attention: Tensor | None = None,
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    clip: float | None = None,
    num_heads: int = 1,
    groups: int = 1,
    gain: Tensor | None = None,
    training: bool = True,
) -> tuple[Tensor, Tensor]:
    """One GRU layer in one direction, time-major. The equations are those of `trigru.reference`.

    Args:
        input: (seq_len, batch, input_size), seq_len at least 1. With `batch_sizes`: (sum of lengths, input_size), laid
            out as `PackedSequence.data`.
        h0: state before the first step, (batch, hidden_size); zeros if None.
        w_ih: input weights of the gates r, z, n stacked, (3 * hidden_size, input_size).
        w_hh: recurrent weights, (3 * hidden_size, hidden_size).
        b_ih, b_hh: biases, (3 * hidden_size,), or None.
        variant: "torch" (nn.GRU, cuDNN), "cho" (Cho et al. 2014) or "chung" (Chung et al. 2014).
        schedule: "auto", or by name, as in `trigru.GRU`; see `trigru.explain` for what "auto" chooses and why.
        reverse: run from the last step to the first; outputs stay at their own step's place.
        batch_sizes: number of sequences alive at each step, int64 (seq_len,) on the CPU, decreasing, as
            `PackedSequence.batch_sizes`; None for a padded input.
        memory: "keep" keeps the gates of every step for backward, beside the states; "recompute" keeps the states
            alone, and backward computes the gates again, many steps in one product.
        reset, reset_state, lengths, mask, decay, attention: what each step is given, as in a call of `trigru.GRU`,
            time-major; with `batch_sizes` laid out as input. reset_state: (hidden_size,), (batch, hidden_size) or
            (seq_len, batch, hidden_size).
        zoneout, recurrent_dropout, weight_dropout, clip, num_heads, groups: as the arguments of `trigru.GRU`; w_hh is
            then (3 * hidden_size, hidden_size / num_heads), w_ih (3 * hidden_size, input_size / groups).
        gain: normalises the products, as norm="layer" of `trigru.GRU`: (2, 3 * hidden_size); None for none.
        training: whether the three rates draw; if not, zoneout has its expected value and the others do nothing.

    All floating tensors share one dtype (float16, bfloat16, float32, float64) and one device. Under autocast they are
    cast first, see `autocast_dtype`.

    Returns:
        output: the state after each step, (seq_len, batch, hidden_size) or (sum of lengths, hidden_size).
        h_n: each sequence's last state, (batch, hidden_size).

    Raises:
        TypeError: an argument that is no tensor or no number.
        ValueError: unknown variant, schedule or memory; input's dtype differs from that of the weights; a rate or clip
            outside its range; what cannot be combined.
        RuntimeError: a shape, dtype or device does not fit; the schedule asked for by name cannot run here.

    Example:
        >>> x, h0 = torch.randn(5, 2, 8), torch.zeros(2, 16)
        >>> w_ih, w_hh = torch.randn(48, 8) / 4, torch.randn(48, 16) / 4
        >>> output, h_n = trigru.gru(x, h0, w_ih, w_hh, variant="chung")
        >>> torch.equal(output[-1], h_n)
        True

        A schedule asked for by name runs, or raises:

        >>> trigru.gru(x.double(), h0.double(), w_ih.double(), w_hh.double(), schedule="persistent")
        Traceback (most recent call last):
            ...
        RuntimeError: schedule 'persistent' cannot run here: Triton kernels compute in float32, float16 and bfloat16, \
the tensors are torch.float64
    """
    options: dict[str, Any] = {"variant": variant, "schedule": schedule, "reverse": reverse, "memory": memory}
    options["gain"] = gain
    if num_heads != 1 or groups != 1:
        options |= {"num_heads": num_heads, "groups": groups}
    arguments = per_call(reset, reset_state, lengths, mask, decay, attention)
    of_steps = None
    if zoneout != 0 or recurrent_dropout != 0 or weight_dropout != 0 or clip is not None:  # None is no rate
        of_steps = Options(zoneout, recurrent_dropout, weight_dropout, clip)
    asked, tensors = None, (input, h0, w_ih, w_hh, b_ih, b_hh)
    bare = arguments is of_steps is gain is batch_sizes is None
    if bare and num_heads == groups == 1 and not torch.compiler.is_compiling():
        asked = _asked((variant, schedule, reverse, memory), *tensors)
        if asked is not None and (found := operators.gru_again(asked)) is not None:
            return found[0], found[1].squeeze(0)
    options["zeros_later"] = asked is not None
    records, finish = _prepared(*tensors, batch_sizes, arguments, of_steps, training=training, **options)
    output, h_n = operators.gru(*records, asked)
    return output if finish is None else finish(output), h_n.squeeze(0)


def _asked(
    said: tuple[Any, ...],
    input: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> operators.Asked | None:
    """What `operators.gru_again` takes of a call of the equations alone; None where none is known by that."""
    try:
        if (
            not input.is_cuda
            or input.is_nested
            or input.dim() != 3
            or w_hh.dim() != 2
            or (b_ih is None) != (b_hh is None)
        ):
            return None
        zeros, state = ((1, input.shape[1], w_hh.shape[0] // 3), ()) if h0 is None else (None, (h0.unsqueeze(0),))
    except AttributeError:  # no tensor, which `_prepared` names; asking for that here would cost each call
        return None
    tensors = (input, *state, w_ih, w_hh) if b_ih is None or b_hh is None else (input, *state, w_ih, w_hh, b_ih, b_hh)
    key = operators.key_of((*said, len(tensors)), input, zeros)
    return None if key is None else (key, tensors, zeros)


def records_of(input: Tensor, *tensors: Any, **options: Any) -> Records:
    """The records of a call of `gru` with these arguments, checked, and cast, where autocast is on."""
    arguments = per_call(*(options.pop(name, None) for name in PerCall._fields))
    of_steps = {name: options.pop(name) for name in vars(NO_OPTIONS) if name in options}
    devices = [input.device] if expect_tensor("input", input).device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=bool(of_steps)):  # of a call's own masks
        options |= {"arguments": arguments, "of_steps": Options(**of_steps) if of_steps else None}
        return _prepared(input, *tensors, **options)[0]


def _prepared(
    input: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    arguments: PerCall | None = None,
    of_steps: Options | None = None,
    *,
    training: bool = True,
    num_heads: int = 1,
    groups: int = 1,
    gain: Tensor | None = None,
    zeros_later: bool = False,
    **options: Any,
) -> tuple[Records, Finish | None]:
    """The records of a call of `gru`, checked, and cast, where autocast is on; and what its output still goes
    through. zeros_later: where there is no h0, it may be `Call.zeros`."""
    for name, x in (("input", input), ("w_ih", w_ih), ("w_hh", w_hh)):
        expect_tensor(name, x)
    refuse_nested(input)
    for name, y in (("h0", h0), ("b_ih", b_ih), ("b_hh", b_hh), ("batch_sizes", batch_sizes)):
        if y is not None:
            expect_tensor(name, y)
    for name, x, dims in (("input", input, 3 if batch_sizes is None else 2), ("w_ih", w_ih, 2), ("w_hh", w_hh, 2)):
        if x.dim() != dims:
            raise RuntimeError(f"{name}: expected {dims} dimensions, got {x.dim()}")
    if (blocks := Blocks.of(num_heads, groups, input.shape[-1], w_hh.shape[0] // 3, 1)) is not None:
        num_heads = blocks.num_heads
        w_ih = whole(w_ih, blocks.groups)
        if is_exported():
            w_hh, num_heads = whole(w_hh, num_heads), 1
    weights: Sequence[Tensor] = [w_ih, w_hh]
    if b_ih is not None:
        weights = [w_ih, w_hh, b_ih, torch.zeros_like(b_ih) if b_hh is None else b_hh]
    elif b_hh is not None:
        weights = [w_ih, w_hh, torch.zeros_like(b_hh), b_hh]
    if num_heads > 1:
        options["num_heads"] = num_heads
    layer = layer_of(input.shape[-1], num_heads * w_hh.shape[1], bias=len(weights) == 4, **options)
    zeros_later = zeros_later and h0 is None
    if h0 is None:
        batch = input.shape[1] if batch_sizes is None else first_of(batch_sizes)
        h0 = (input.new_empty if zeros_later else input.new_zeros)(batch, layer.hidden_size)
    call, finish = Call(input, h0.unsqueeze(0), batch_sizes, zeros=zeros_later), None
    if gain is not None:
        expect("gain", gain, [(2, 3 * layer.hidden_size)], None, input)
        call = call._replace(gain=gain.unsqueeze(0))
    if arguments is not None or of_steps is not None:
        arguments, of_steps = arguments or PerCall(), of_steps or NO_OPTIONS
        check_state(layer, call)
        state = arguments.reset_state
        if isinstance(state, Tensor):
            size = h0.shape[-1]
            expect("reset_state", state, [(size,), tuple(h0.shape), (*input.shape[:-1], size)], None, input)
            packed_rows = batch_sizes is not None and state.dim() == 2 and len(state) == len(input) > len(h0)
            by_row = state.dim() == 3 or packed_rows
            arguments = arguments._replace(reset_state=state.unsqueeze(1 if by_row else 0))
        (layer, weights, call), finish = prepare(Records(layer, weights, call), arguments, of_steps, training=training)
    if torch._C._is_any_autocast_enabled():
        weights, call = cast(weights, call)
    check(layer, weights, call)
    return Records(layer, weights, call), finish


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    variant: Variant = "torch",
) -> Tensor:
    """One step: the state after it, (batch, hidden_size), from input (batch, input_size) and hx (batch, hidden_size).

    On a CPU a single step has nothing to hoist, so torch's own operations run, or from some size on the same with
    derivatives by hand; see `cell_way`. Weights, variants and errors as for `gru`."""
    weights = (w_ih, w_hh, b_ih, b_hh)
    if not input.is_cpu:
        return gru(input.unsqueeze(0), hx, *weights, variant=variant)[1]
    way = _plain_way(variant)
    refuse("a cell on a CPU")
    if is_unseen() and input.dim() == hx.dim() == 2:  # a compiler would have to know the sizes
        pays = single.pays(hx.shape[0], hx.shape[1], input.shape[1], input.dtype)
        if pays and _is_plain_cell(input, hx, *weights):
            return single.step(variant, input, hx, *weights)
    if way == "torch":
        return torch.gru_cell(input, hx, *weights)
    if way == "cell":
        return single.plain(variant, input, hx, *weights)
    return reference_cell(input, hx, *weights, variant=variant)


def cell_way(variant: str, batch: int, input_size: int, hidden_size: int, dtype: torch.dtype) -> str:
    """What runs a single step on a CPU: "torch", its gru_cell; "cell", the equations in as few operations as they take;
    "eager", these with derivatives by hand, where nothing but eager execution looks on; "reference" where autocast is
    to find each product by itself."""
    eager = not torch._C._is_any_autocast_enabled() and single.pays(batch, hidden_size, input_size, dtype)
    way = _plain_way(variant)
    return "eager" if eager else way


def _plain_way(variant: str) -> str:
    check_variant(variant)
    if variant == "torch":
        return "torch"
    return "reference" if torch._C._is_any_autocast_enabled() else "cell"


def _is_plain_cell(x: Tensor, h: Tensor, *weights: Tensor | None) -> bool:
    """Whether nothing but eager execution sees a call of a cell, and it is none that torch would refuse."""
    tensors = (x, h, *weights)
    if not is_plain(tensors) or forward_ad._current_level >= 0:
        return False
    if any(t is not None and (t.dtype != x.dtype or not t.is_cpu or t.layout != torch.strided) for t in tensors):
        return False
    rows = 3 * h.shape[1]
    shapes = (rows, x.shape[1]), (rows, h.shape[1]), (rows,), (rows,)
    fits = all(t is None or (t.shape == shape and t.is_contiguous()) for t, shape in zip(weights, shapes, strict=True))
    return fits and x.shape[0] == h.shape[0]
