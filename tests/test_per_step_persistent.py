"""What a step does beside the equations, in the persistent kernels, compiled and executed from PTX."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from conftest import INTERPRETED, generated_code
from per_step import OPTIONS, per_step_recurrence
from ptx import ptx_launcher
from ptx.compilation import compile_ptx
from test_exchange_order import EVENTS, ORDER, events, time_loop

import trigru
from trigru.kernels import per_launch, persistent
from trigru.kernels.config import PersistentConfig, persistent_config
from trigru.kernels.launch import using
from trigru.kernels.offline import Recorder

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait"),
    pytest.mark.usefixtures("poisoned"),
]

TOLERANCE = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # float32 multiplied in TF32
SETS = [("reset",), ("reset", "fresh"), ("decay",), ("amount",), ("dropped",), ("zoneout",), ("clip",), OPTIONS]


def run(case, *, arch=90, protocol="data", **order):
    """The case's results, checked for races."""
    config = replace(persistent_config(case.h0.dtype, *case.h0.shape[-2:]), protocol=protocol)
    launcher = ptx_launcher(arch=arch, strong=True, **order)
    with using(launcher):
        got = case.run(persistent, config)
    assert all(launch["race_check"] and launch["cooperative"] for launch in launcher.launches)
    return got


def check(case, **how):
    """Against the float64 loop."""
    got = run(case, **how)
    assert ("begins" in got) == case.per_step.carries
    errors = case.errors(got)
    assert max(errors.values()) <= TOLERANCE[case.h0.dtype], errors


# T, B, H: one step, sequences that fill no tile, hidden units that fill none (40), or are added (19)
SIZES = [(3, 16, 64), (1, 3, 48), (2, 18, 40), (3, 5, 19)]


CASES = [
    pytest.param(options, variant, marks=[] if options == OPTIONS or i == j == 0 else pytest.mark.slow)
    for i, options in enumerate(SETS)
    for j, variant in enumerate(trigru.VARIANTS)
]
BY_TURNS = [
    pytest.param(variant, protocol, marks=[] if (variant == "torch") == (protocol == "data") else pytest.mark.slow)
    for variant in trigru.VARIANTS[:2]
    for protocol in ("data", "flags")
]


@pytest.mark.parametrize(("options", "variant"), CASES, ids=lambda x: x if isinstance(x, str) else "+".join(x))
def test_each_option_and_all(options, variant):
    """Sizes, dtypes, protocols, directions of time and the operands' shapes take turns."""
    turn = SETS.index(options) + trigru.VARIANTS.index(variant)
    dtype = (torch.float32, torch.bfloat16, torch.float16)[turn % 3]
    case = per_step_recurrence(
        *SIZES[turn % 4],
        options,
        by_unit=turn % 2 == 0,
        fresh_once=turn % 4 == 1,
        flags=turn % 3 == 1,
        variant=variant,
        dtype=torch.float32 if "clip" in options else dtype,  # rounded further, some come to lie beyond the clip
        reverse=turn % 4 > 1,
        both=turn % 5 == 1,
    )
    check(case, arch=80 if turn % 4 == 3 else 90, protocol=("data", "flags")[turn // 2 % 2], seed=turn)


@pytest.mark.parametrize(("variant", "protocol"), BY_TURNS)
def test_interleavings(variant, protocol):
    """Both directions at once, under several orders, and with a program of either held back."""
    case = per_step_recurrence(3, 3, 48, OPTIONS[:-1], variant=variant, dtype=torch.bfloat16, both=True)
    for order in ({"seed": 0, "quantum": 20}, {"seed": 1, "quantum": 1000}, {"starve": 0}, {"starve": 3}):
        check(case, protocol=protocol, **order)


@pytest.mark.parametrize(("variant", "protocol"), BY_TURNS)
def test_nothing_passes_a_reset_and_nothing_else_counts_where_the_state_is_carried(variant, protocol):
    """Not even NaN, nor the reserved pattern."""
    case = per_step_recurrence(3, 3, 48, ("reset", "fresh", "amount"), variant=variant, dtype=torch.bfloat16)
    reset, amount, gates_in = (
        x.unflatten(0, (3, 3)) for x in (case.per_step.reset, case.per_step.amount, case.gates_in)
    )
    reset[:], amount[:] = False, 1
    reset[0, 0] = reset[2, 1] = True
    amount[1, 2] = 0
    clean = run(case, protocol=protocol, seed=1)
    case.h0.view(torch.int16)[0] = -1
    gates_in[1, 1:] = float("nan")
    got = run(case, protocol=protocol, seed=2)
    for name in clean.keys() - {"d_b_hn"}:  # a sum over all rows
        was, now = (results[name].unflatten(0, (-1, 3)) for results in (clean, got))
        assert torch.equal(now[:, [0, 2]], was[:, [0, 2]]), name
        assert torch.equal(now[2:, 1], was[2:, 1]), name
    output = got["output"].unflatten(0, (3, 3))
    assert output[1, 1].isnan().all()
    assert torch.equal(output[1, 2], output[0, 2])


@pytest.mark.parametrize("variant", ["torch", pytest.param("cho", marks=pytest.mark.slow)])
def test_flags_are_amounts_of_zero_and_one(variant):
    case = per_step_recurrence(3, 3, 48, ("amount",), variant=variant, dtype=torch.bfloat16)
    done = case.per_step.amount > 0.5
    given = [replace(case, per_step=case.per_step._replace(amount=x)) for x in (done.to(torch.bfloat16), done)]
    first, second = (run(case, seed=0) for case in given)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("variant", "way", "size"),
    [
        ("torch", {"both": True}, (3, 18, 40)),
        ("chung", {"fresh_once": True}, (2, 3, 19)),
        pytest.param("cho", {"reverse": True}, (3, 5, 48), marks=pytest.mark.slow),
        pytest.param("torch", {"reverse": True, "fresh_once": True}, (1, 3, 48), marks=pytest.mark.slow),
    ],
)
def test_resets_and_flags_in_one_word(monkeypatch, variant, way, size):
    """As each by itself, bit for bit but for d_h0, of whose last addition the compiler makes one rounding or two; and
    NaN in what does not count reaches nothing."""
    options = ("reset", "amount") + ("fresh",) * ("fresh_once" in way)
    case = per_step_recurrence(*size, options, flags=True, variant=variant, dtype=torch.bfloat16, **way)
    check(case, seed=1)
    case.gates_in[~case.per_step.amount] = float("nan")
    words = run(case, seed=2)
    monkeypatch.setattr(per_launch, "in_words", lambda *_: {})
    apart = run(case, seed=3)
    torch.testing.assert_close(words.pop("d_h0"), apart.pop("d_h0"))
    assert all(x.isfinite().all() and torch.equal(x, apart[name]) for name, x in words.items())


def test_batch_tiles_that_take_turns():
    case = per_step_recurrence(2, 40, 32, OPTIONS[:-1], dtype=torch.bfloat16, both=True)
    launcher = ptx_launcher(arch=90, seed=3, resident_programs=8)
    with using(launcher):
        errors = case.errors(case.run(persistent, PersistentConfig(num_warps=2, tiles_at_once=4)))
    assert max(errors.values()) <= TOLERANCE[torch.bfloat16], errors
    assert [launch["grid"] for launch in launcher.launches] == [(2, 4), (2, 2)] * 2


@generated_code
@pytest.mark.parametrize(("variant", "protocol"), BY_TURNS)
def test_the_order_of_a_step(variant, protocol):
    """Looks, products and publishes as without, one publish of what the first step's products see before the loop, and
    every operand loaded before the step's first wait."""
    case = per_step_recurrence(2, 16, 512, variant=variant, dtype=torch.bfloat16, by_unit=True)
    recorder = Recorder()
    with using(recorder):
        case.run(persistent, replace(persistent_config(torch.bfloat16, 16, 512), protocol=protocol))
    for launch in recorder.launches:
        ptx = compile_ptx(launch.kernel, {**launch.args, **launch.constexprs}, 90, **launch.options).ptx
        name = launch.kernel.__name__
        inside, outside = events(ptx)
        assert (inside, outside) == (ORDER[protocol][name], int(name.startswith("forward"))), name
        lines, first, last = time_loop(ptx)
        wait = next(i for i in range(first, last) if re.match(EVENTS["W"], lines[i]))
        loads = [i for i in range(first, last) if re.match(r"(@\S+ )?ld\.global\.b(8|16|32) ", lines[i])]
        assert max(loads) < wait, name
        assert sum("ld.global.b8 " in lines[i] for i in loads) == 1, name  # of resets
