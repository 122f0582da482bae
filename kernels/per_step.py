"""What a step does beside the equations, as kernels take it: see PerStep in recurrence.py.

Where a step begins from something else than the state before, forward's running state is `begin`: who computes a state
has the next step begin from it at once, and writes what that step's products see. What is absent, None, is no code.

What loads gives values as they lie in memory, for a conversion would wait for them, and for a tile of either
orientation (`Place`). What takes values converts them, and leaves the mathematics to gates.py. The last part does both
at once, for (j, b) tiles.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .counters import factors, renewed
from .gates import begin_grad, begin_of_step, blend, blend_grad, end_grad, end_of_step
from .loop import Step, row_after
from .tiles import at, load_state, there, write


class Beside(NamedTuple):
    """A kernel's arguments of it, as far as it has them. Flags are None or not: in a tuple with a name, Triton keeps
    nothing else constant."""

    reset: Any = None  # pointers
    fresh: Any = None
    decay: Any = None
    amount: Any = None
    dropped: Any = None  # with `dropped_below` not a pointer, but the seed of the masks
    begins: Any = None
    d_begin: Any = None
    clip: Any = None
    behind: Any = None  # where both directions run: rows of all steps, and sequences, that lie before its own
    starts: Any = None
    FRESH_BY_STEP: Any = None  # not None: `fresh` has rows for each step
    DECAY_BY_UNIT: Any = None  # not None: a value for each hidden unit of a row
    AMOUNT_BY_UNIT: Any = None
    seed: Any = None  # of zoneout's masks
    zoneout_below: Any = None  # None: there are none
    norm: Any = None  # a Norm of norm.py, where products are normalised
    dropped_below: Any = None


@triton.constexpr_function
def absent(loaded):
    """Whether something was not there to be loaded: the empty tuple stands for it, since before 3.7 Triton lets no
    function return None, nor a tuple that has it."""
    return isinstance(loaded, (tuple, tl.tuple)) and len(loaded) == 0


@triton.constexpr_function
def in_flags(amount):
    """Whether amounts are all or nothing: bytes, bits or words."""
    return not absent(amount) and amount.dtype in (tl.uint8, tl.int1, tl.int16)


@triton.constexpr_function
def in_parts(amount):
    """Whether they are numbers."""
    return not absent(amount) and not in_flags(amount)


@triton.constexpr_function
def has_words(amount):
    """Whether a Beside's amounts are words that say where a state is reset, too: see `in_words` of per_launch.py."""
    return amount is not None and amount.dtype.element_ty == tl.int16


class Place(NamedTuple):
    """A tile of hidden units and sequences."""

    j: Any  # its hidden units, along one axis
    b: Any  # where the rows of its sequences lie within a step, along the other
    rows: Any  # the same, by themselves
    alive: Any  # of these, those to be loaded
    there: Any  # of the elements, those to be loaded
    H: Any


class Beginning(NamedTuple):
    """What leads from the state before a step to the one that it begins from, as loaded."""

    reset: Any
    fresh: Any
    decay: Any


class Amount(NamedTuple):
    """How much of what the equations say a step takes over: as loaded, and where zoneout lets it."""

    loaded: Any
    renewed: Any


# -- loads -------------------------------------------------------------------------------------------------------------


@triton.jit
def row_of(beside, row):
    """In tensors that hold one direction behind the other, the row that is a step's first in its own."""
    return row if beside.behind is None else row + beside.behind


@triton.jit
def _first_start(beside):
    """The first row of tensors that have one for each sequence."""
    return 0 if beside.starts is None else beside.starts


@triton.jit
def _of_units(pointer, row, place, OTHER: tl.constexpr):
    """A value of each hidden unit, in rows of which `row` is the first; OTHER where there is none."""
    if pointer is None:
        return ()
    else:
        at = pointer + tl.cast(row, tl.int64) * place.H
        return tl.load(at + (place.b * place.H + place.j), mask=place.there, other=OTHER)


@triton.jit
def _of_rows(pointer, row, place, BY_UNIT, OTHER: tl.constexpr):
    """The same, or where BY_UNIT is None a value of each sequence."""
    if pointer is None or BY_UNIT is not None:
        return _of_units(pointer, row, place, OTHER)
    else:
        # By themselves, for along the other axis threads would load the same value again and again.
        x = tl.load(pointer + tl.cast(row, tl.int64) + place.rows, mask=place.alive, other=OTHER)
        return x[None, :] if place.b.shape[0] == 1 else x[:, None]


@triton.jit
def load_beginning(beside, row, place):
    """For the step whose first row is `row`; what changes nothing, where there is no sequence."""
    row = row_of(beside, row)
    reset = _of_rows(beside.reset, row, place, None, 0)
    fresh = _of_units(beside.fresh, _first_start(beside) if beside.FRESH_BY_STEP is None else row, place, 0.0)
    return Beginning(reset, fresh, _of_rows(beside.decay, row, place, beside.DECAY_BY_UNIT, 1.0))


@triton.jit
def load_amount(beside, row, place):
    """For the step whose first row is `row`."""
    row = row_of(beside, row)
    return Amount(
        _of_rows(beside.amount, row, place, beside.AMOUNT_BY_UNIT, 1.0),
        () if beside.zoneout_below is None else renewed(beside.seed, row, place.b, place.j, beside.zoneout_below),
    )


@triton.jit
def load_words(beside, row, place):
    """Those of a step, where there are any."""
    return _of_rows(beside.amount, row_of(beside, row), place, None, 0) if has_words(beside.amount) else ()


@triton.jit
def fresh_once(beside, place):
    """One fresh state for all steps."""
    return _of_units(beside.fresh, _first_start(beside), place, 0.0)


@triton.jit
def _begins_by(beside, words, place):
    return Beginning(words, fresh_once(beside, place), ())


@triton.jit
def load_of_step(beside, row, place, words=None):
    """How the step begins whose first row is `row`, behind its amount; that is in the gates where there are words."""
    if words is None or absent(words):
        return load_amount(beside, row, place), load_beginning(beside, row, place)
    else:
        return Amount((), ()), _begins_by(beside, words, place)


@triton.jit
def load_forward(beside, here, i, T, B, direction, place):
    """The amount of the step `here`, number i in forward's order, how the step behind it begins, and where its rows
    are, or would be where nothing is loaded from them."""
    if has_words(beside.amount):
        words = load_words(beside, here.row, place)
        return Amount(words, ()), _begins_by(beside, words, place), here.row + direction.to(tl.int64) * B
    else:
        amount, row = load_amount(beside, here.row, place), row_after(here, i, T, B, direction)
        return amount, load_beginning(beside, row, place), row


@triton.jit
def load_seed(seed_ptr):
    """For all steps, both directions'; anything where there is none."""
    return 0 if seed_ptr is None else tl.load(seed_ptr)


@triton.jit
def load_dropped(beside, place):
    """For all steps."""
    first = _first_start(beside)
    if beside.dropped_below is None:
        return _of_units(beside.dropped, first, place, 0.0)
    else:
        return factors(beside.dropped, first, place.b, place.j, beside.dropped_below)


# -- values ------------------------------------------------------------------------------------------------------------


@triton.jit
def done(flags):
    """Where a step is done, by flags."""
    return flags.to(tl.uint16, bitcast=True) < 0xA000 if flags.dtype == tl.int16 else flags != 0


@triton.jit
def resets(reset):
    """Where a state is reset, by flags."""
    return reset < -0x4000 if reset.dtype == tl.int16 else reset != 0


@triton.jit
def begun(before, beginning):
    """The state that a step begins from, and that its blend sees."""
    reset = None if absent(beginning.reset) else resets(beginning.reset)
    fresh = None if absent(beginning.fresh) else beginning.fresh.to(tl.float32)
    return begin_of_step(before, reset, fresh, None if absent(beginning.decay) else beginning.decay.to(tl.float32))


@triton.jit
def seen(begin, dropped):
    """What the products see of it; or a derivative on its way back."""
    return begin if absent(dropped) else dropped.to(tl.float32) * begin


@triton.jit
def taken(amount):
    """Of an Amount, what a state's share is multiplied with."""
    if absent(amount.renewed):
        return amount.loaded
    elif absent(amount.loaded):
        return amount.renewed
    elif in_flags(amount.loaded):
        return amount.renewed & (amount.loaded != 0)
    else:
        return tl.where(amount.renewed, amount.loaded, tl.zeros_like(amount.loaded))


@triton.jit
def ended(begin, new, given, clip):
    """The state that a step ends with; `new`: the equations'; given: an Amount."""
    amount = taken(given)
    if in_flags(amount):
        return tl.where(done(amount), end_of_step(begin, new, None, clip), begin)
    else:
        return end_of_step(begin, new, amount.to(tl.float32) if in_parts(amount) else None, clip)


@triton.jit
def unless(x, nothing):
    """x, or 0 where nothing of it counts: there it may be NaN."""
    return x if absent(nothing) else tl.where(nothing, tl.zeros_like(x), x)


@triton.jit
def carries_on(given):
    """Where a unit carries on the state that its step began from, so that its update gate and its candidate lead
    nowhere. given: an Amount."""
    amount = taken(given)
    if in_flags(amount):
        return amount == 0
    else:
        return amount.to(tl.float32) == 0.0 if in_parts(amount) else ()


@triton.jit
def end_back(dh, begin, z, n, given, clip, VARIANT: tl.constexpr):
    """`blend_grad` from dh, the derivative by the state that a step ends with; its `direct` with what passes by the
    equations. z and n are 0 where it `carries_on`. given: an Amount."""
    amount = taken(given)
    d_new, past = dh, None
    if in_parts(amount) or clip is not None:
        wide = amount.to(tl.float32) if in_parts(amount) else None
        d_new, past = end_grad(dh, begin, blend(begin, z, n, VARIANT), wide, clip)
    if in_flags(amount):
        d_new = tl.where(amount != 0, d_new, 0.0)
    dn, dz, direct = blend_grad(d_new, begin, z, n, VARIANT)
    if in_flags(amount):
        direct = tl.where(amount != 0, direct, dh)
    if in_parts(amount):
        direct += past
    return dn, dz, direct


@triton.jit
def reset_gate(beside, r, d_rh):
    """Variants "cho" and "chung": r, or 0 where it leads nowhere, for no unit that sees it takes anything over."""
    return r if beside.amount is None and beside.zoneout_below is None else unless(r, d_rh == 0.0)


@triton.jit
def begin_back(d_begin, beginning):
    """The derivative by the state before a step."""
    reset = None if absent(beginning.reset) else resets(beginning.reset)
    return begin_grad(d_begin, reset, None if absent(beginning.decay) else beginning.decay.to(tl.float32))


# -- both, for (j, b) tiles --------------------------------------------------------------------------------------------


@triton.jit
def place_of(step, b, j, H):
    """A tile of those that are alive at a step."""
    return Place(j[:, None], b[None, :], b, b < step.count, there(j, b, H, step.count), H)


@triton.jit
def following(here, direction, batch, rows):
    """The step that forward takes after the step `here` of a padded sequence; direction: see loop.py. Behind the last
    one without any sequence alive."""
    row = here.row.to(tl.int64) + direction * batch
    return Step(row, tl.where((row >= 0) & (row < rows), here.count, 0))


@triton.jit
def as_seen(beside, x, step, b, j, H):
    """`seen`, of x."""
    return seen(x, load_dropped(beside, place_of(step, b, j, H)))


@triton.jit
def load_seen(beside, output_ptr, h0_ptr, b, k, here, before, H, width):
    """A (k, b) tile of what the products of the step `here` see; the rest as `load_state` of tiles.py."""
    if beside.begins is None:
        x = load_state(output_ptr, h0_ptr, b, k, here, before, H, width)
    else:
        x = tl.load(at(beside.begins, row_of(beside, here.row), b, k, H), mask=there(k, b, H, here.count), other=0.0)
    return x


@triton.jit
def begin_from(beside, before, step, b, j, H):
    """`begun`, after the state `before`."""
    return begun(before, load_beginning(beside, step.row, place_of(step, b, j, H)))


@triton.jit
def pass_on(beside, end, here, direction, batch, rows, b, j, H):
    """The running state after the step `here` that ended with `end`: what the next one begins from. direction: of time,
    see loop.py; rows: of all steps together."""
    begin = end
    if beside.begins is not None:
        step = following(here, direction, batch, rows)
        begin = begin_from(beside, end, step, b, j, H)
        to = at(beside.begins, row_of(beside, step.row), b, j, H)
        write(to, as_seen(beside, begin, step, b, j, H), there(j, b, H, step.count))
    return begin


@triton.jit
def load_counting(beside, pointers, live, amount):
    """Elements as they lie in memory, but 0 where a state is carried on: where all of a sequence is, nothing is
    read."""
    if not absent(amount.renewed):
        live &= amount.renewed
    if absent(amount.loaded):
        x = tl.load(pointers, mask=live, other=0.0)
    elif beside.AMOUNT_BY_UNIT is None:
        x = tl.load(pointers, mask=live & (amount.loaded != 0), other=0.0)
    else:
        x = unless(tl.load(pointers, mask=live, other=0.0), carries_on(amount))
    return x


@triton.jit
def amount_of(beside, step, b, j, H):
    """`load_amount`."""
    return load_amount(beside, step.row, place_of(step, b, j, H))


@triton.jit
def end_from(beside, begin, new, step, b, j, H):
    """`ended`."""
    return ended(begin, new, amount_of(beside, step, b, j, H), beside.clip)


@triton.jit
def before_grad(beside, through, direct, step, b, j, H):
    """The derivative by the state before a step, from those by what the step's products see, and past them by what it
    begins from; the derivative by the latter in all is kept where asked for."""
    place = place_of(step, b, j, H)
    d_begin = seen(through, load_dropped(beside, place)) + direct
    if beside.d_begin is not None:
        write(at(beside.d_begin, row_of(beside, step.row), b, j, H), d_begin, place.there)
    return begin_back(d_begin, load_beginning(beside, step.row, place))
