"""What the tests of the persistent kernels must catch: each protocol step taken out in turn, in a copy of the
sources."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import generated_code
from per_step import per_step_recurrence
from ptx import PtxError, ptx_launcher
from recurrences import recurrence
from stacks import stack

import trigru.kernels
from trigru.kernels.config import PersistentConfig, persistent_config, walking_config
from trigru.kernels.launch import using
from trigru.kernels.watch import KernelTimeout

pytestmark = generated_code

SOURCES = Path(trigru.kernels.__file__).parent
FILES = (
    *("fragments", "assembly", "exchange", "fetched", "fetched_products", "parts", "prologue"),
    *("persistent_tiles", "several_backward"),
    "running_state",
    *(f"persistent{part}" for part in ("_forward", "_backward", "")),
    *(f"stacked{part}" for part in ("_tiles", "_forward", "_backward", "")),
    *("walking_kernels", "walking"),
)
AS_THEY_ARE = sorted({path.stem for path in SOURCES.glob("*.py")} - {*FILES, "__init__"})


@pytest.fixture
def mutated(tmp_path, monkeypatch):
    """A function: `mutated(file, old, new)` is the module `persistent`, or another schedule's, with one piece of its
    sources replaced, or several."""
    loaded = 0

    def forget():
        for name in [name for name in sys.modules if name.startswith("mutant_")]:
            del sys.modules[name]

    def load(file: str, old: str | tuple[str, ...], new: str | tuple[str, ...], schedule: str = "persistent"):
        nonlocal loaded
        forget()
        loaded += 1
        folder = tmp_path / str(loaded)
        folder.mkdir()
        pieces = [(old, new)] if isinstance(old, str) else list(zip(old, new, strict=True))
        texts = {name: (SOURCES / f"{name}.py").read_text() for name in FILES}
        for one, other in pieces:
            (where,) = {name for name in (file, "assembly") if one in texts[name]}
            texts[where] = texts[where].replace(one, other)
        # The same names each time: Triton finds a kernel that no piece changed where it has compiled it before.
        for name, text in texts.items():
            for other in AS_THEY_ARE:
                text = text.replace(f"from .{other} import", f"from trigru.kernels.{other} import")
            for other in FILES:
                text = text.replace(f"from .{other} import", f"from mutant_{other} import")
            others = "import mutant_exchange as exchange\nfrom trigru.kernels import "
            text = text.replace("from . import exchange, ", others)
            text = text.replace("from . import exchange\n", "import mutant_exchange as exchange\n")
            (folder / f"mutant_{name}.py").write_text(text)
        monkeypatch.syspath_prepend(folder)
        return importlib.import_module(f"mutant_{schedule}")

    yield load
    forget()


def caught(
    persistent,
    *,
    variant="torch",
    hidden_size=48,
    warps=None,
    timeout=0.05,
    seeds=4,
    protocol="data",
    strong=True,
    both=False,
    options=(),
    **order,
) -> str | None:
    """How the tests notice: "error" (the executor's, or the host's exception), "wrong" numbers, or None. options: of
    what a step does beside the equations."""
    case = recurrence(3, 3, hidden_size, variant=variant, both=both)
    if options:
        case = per_step_recurrence(3, 3, hidden_size, options, variant=variant, dtype=torch.bfloat16, both=both)
    for seed in range(seeds):
        try:
            with using(ptx_launcher(arch=90, strong=strong, **{"seed": seed, **order})):
                config = replace(persistent_config(case.h0.dtype, 3, hidden_size), protocol=protocol)
                config = config if warps is None else replace(config, num_warps=warps)
                errors = case.errors(case.run(persistent, config, timeout=timeout))
        except (PtxError, KernelTimeout):
            return "error"
        if not max(errors.values()) <= 1.5e-2:
            return "wrong"
    return None


SILENT = "number = _numbers_of(mask,", "number = _numbers_of(mask & (tl.program_id(0) != 1),"
AS_A_WHOLE = "exchange", "_BY_THREAD and", "False and"  # how a Triton of unknown layouts makes programs wait


@pytest.mark.parametrize("protocol", ["data", "flags"])
@pytest.mark.parametrize(
    "piece",
    [("parts", "even + odd", "even + odd"), ("assembly", "_KEPT = 16", "_KEPT = 0"), AS_A_WHOLE],
    ids=["thread", "thread, as of many chunks", "program"],
)
@pytest.mark.parametrize(("variant", "options"), [("torch", ()), ("cho", ()), ("torch", ("reset", "fresh", "dropped"))])
def test_nothing_is_caught_without_a_mutation(mutated, piece, protocol, variant, options):
    strong = piece != AS_A_WHOLE  # a program that waits as a whole accesses memory as Triton makes it
    asked = {"protocol": protocol, "variant": variant, "strong": strong, "options": options, "both": bool(options)}
    assert caught(mutated(*piece), timeout=60.0, **asked) is None


def test_the_wait_removed(mutated):
    assert caught(mutated("exchange", '"@!p bra DONE;"', '"bra DONE;"')) == "wrong"


@pytest.mark.parametrize(
    ("old", "new", "how"),
    [
        ("text += find\n", 'text.append("bra DONE;")\n', "wrong"),
        (', f"@p {load}"]', "]", "error"),
        (("_KEPT = 16", '"@p mov.b32 again, 1;", '), ("_KEPT = 0", ""), "wrong"),
        (("_KEPT = 16", ', f"@p {load}"]'), ("_KEPT = 0", "]"), "error"),
    ],
    ids=[
        "what was looked at again not checked",
        "what was missing not looked at again",
        "of many chunks, what is missing again not noted",
        "of many chunks, what was missing not looked at again",
    ],
)
def test_a_second_look_removed(mutated, old, new, how):
    assert caught(mutated("exchange", old, new)) == how


@pytest.mark.parametrize("variant", ["torch", "cho"])
def test_a_look_at_the_first_of_several_tiles_alone(mutated, variant):
    old, new = '_find(found, "t"', '_find(found[:chunks], "t"'
    assert caught(mutated("assembly", old, new), variant=variant, seeds=16, quantum=20) == "wrong"


def test_the_wait_of_a_program_removed(mutated):
    old = "_BY_THREAD and", "while _missing(x) & (looks >= 0)"
    new = "False and", "while _missing(x) & (looks < 0)"
    assert caught(mutated("exchange", old, new), strong=False) == "wrong"


NEW = "STATUS_WORDS.value + flags, dtype=torch.int32, device=like.device)"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("setp.ge.s32 p, t, $2;", "setp.ge.s32 p, t, 0;"),
        ("ld.acquire.gpu", "ld.relaxed.gpu"),
        ('sem="release"', 'sem="relaxed"'),
        (f"torch.zeros({NEW}", f"torch.arange({NEW} // 8"),
    ],
    ids=["no wait", "no acquire", "no release", "counters not zero"],
)  # fmt: skip
def test_a_step_of_the_flag_protocol_left_out(mutated, old, new):
    """All but the barrier before a release: Triton puts one there too."""
    persistent = mutated("exchange", old, new)
    assert caught(persistent, protocol="flags", seeds=8, quantum=20, warps=8) is not None


def test_a_flag_before_the_value(mutated):
    store = '        tl.store(pointers, x.to(dtype), mask=mask, cache_modifier=".cg")\n'
    flag = '    if PROTOCOL == "flags" and flag is not None:\n        arrive(flag)\n'
    early = flag.replace("\n", "\n    ").replace("    if", "        if", 1).rstrip() + "\n"
    assert caught(mutated("exchange", store + flag, early + store), protocol="flags", seeds=8, quantum=20) is not None


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("running_state", "await_state(output_ptr", "await_state(output_ptr - tl.where(i > 1, 3 * S.H, 0)"),
        ("persistent_backward", "rows_at(d_gates_ptr, here", "rows_at(d_gates_ptr, tl.minimum(i, 1) * B + here"),
    ],
    ids=["forward", "backward"],
)  # fmt: skip
def test_reading_another_step(mutated, file, old, new):
    assert caught(mutated(file, old, new)) == "wrong"


@pytest.mark.parametrize(
    ("file", "old", "new", "protocol"),
    [
        ("persistent_tiles", "own.group, S.SIDES", "own.group // 2, S.SIDES", "flags"),
        ("persistent_forward", "output_ptr + side.number * S.H", "output_ptr", "data"),
        ("persistent_backward", "d_gates_ptr + side.rows", "d_gates_ptr + 0", "data"),
        ("persistent_tiles", "tl.where(first, S.H, S.SIDES * S.H)", "S.H", "data"),
    ],
    ids=["one counter", "one output", "one gradient", "rows of one direction"],
)
def test_directions_that_are_not_kept_apart(mutated, file, old, new, protocol):
    assert caught(mutated(file, old, new), protocol=protocol, both=True) is not None


SLOW = pytest.mark.slow
BEGINS = "rows_at(beside.begins, row_of(beside, here.row), own, 1, S), own, here, flags + i, S, None, glance"


@pytest.mark.parametrize(
    ("file", "old", "new", "protocol"),
    [
        ("running_state", BEGINS, BEGINS.replace("here.row)", "before.row)"), "data"),
        ("running_state", BEGINS, BEGINS.replace("flags + i", "flags + tl.maximum(i - 1, 0)"), "flags"),
        pytest.param("running_state", "exists & (i + 1 < T), flag", "exists, flag", "data", marks=SLOW),
        pytest.param("running_state", "tl.minimum(i + 1, T - 1)", "i + 1", "flags", marks=SLOW),
        pytest.param("running_state", "seen(h, dropped), exists, flag", "h, exists, flag", "data", marks=SLOW),
        pytest.param("persistent", "exchange.reserve(begins, config.protocol)", "begins.zero_()", "data", marks=SLOW),
    ],
    ids=["another step", "another counter", "behind the last", "counters behind the last", "not dropped", "not filled"],
)
def test_what_the_products_see_exchanged_otherwise(mutated, file, old, new, protocol):
    options = ("reset", "fresh", "dropped")
    late = {"starve": 3} if protocol == "flags" else {"quantum": 20}  # a program of the second direction
    assert caught(mutated(file, old, new), protocol=protocol, options=options, both=True, **late)


def test_publishing_before_the_value_is_complete(mutated):
    publish = (
        "publish(tile_at(output_ptr, here.row, own, S.SIDES, S), new, there(own, here.count, S), flags + i, S.PROTOCOL)"
    )
    early = publish.replace("new", "h") + "\n        " + publish
    persistent = mutated("running_state", publish, early)
    assert caught(persistent, seeds=8, quantum=20) == "wrong"  # short turns: both stores are close together


def test_the_buffer_not_filled_with_the_pattern(mutated):
    persistent = mutated("prologue", "view(torch.int32).fill_(-1)", "view(torch.int32).fill_(0)")
    assert caught(persistent) == "wrong"


def test_a_nan_stored_as_the_pattern(mutated):
    line = 'f"cvt.rn.{pair}.f32 w{i}, {values[2 * i + 1]}, {values[2 * i]};"'
    marked = """(f".reg .pred q{i}; setp.nan.f32 q{i}, {values[2 * i + 1]}, {values[2 * i]}; "
                 f"cvt.rn.{pair}.f32 w{i}, {values[2 * i + 1]}, {values[2 * i]}; @q{i} mov.b32 w{i}, -1;")"""
    persistent = mutated("exchange", line, marked)
    case = recurrence(2, 3, 48)
    case.gates_in[0, 100] = float("nan")
    with using(ptx_launcher(arch=90, seed=0)), pytest.raises(KernelTimeout):
        case.run(persistent, PersistentConfig(num_warps=2), timeout=0.05)


def test_a_program_that_never_publishes(mutated):
    assert caught(mutated("exchange", *SILENT)) == "error"


def test_the_host_not_told_that_a_wait_was_given_up(mutated):
    told = "tl.store(host_ptr, number)"
    persistent = mutated("exchange", (SILENT[0], told), (SILENT[1], "tl.store(host_ptr, 0)"))
    assert caught(persistent) == "wrong"


def test_the_beginning_of_a_wait_not_noted(mutated):
    long = {"starve": 0, "quantum": 5000, "seeds": 1, "timeout": 60.0}
    assert caught(mutated("parts", "even + odd", "even + odd"), **long) is None
    assert caught(mutated("exchange", "@p mov.b32 since, t;", ""), **long) == "error"


STRONG = 'st.relaxed.gpu.global" + (stored'


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (STRONG, STRONG.replace("relaxed.gpu.global", "global.cg")),
        ('load = "ld.relaxed.gpu" if', 'load = "ld" if'),
        ('if PROTOCOL == "data" and layout_known(num_warps()):', "if False:"),
    ],
    ids=["weak store", "weak look", "halves of a word"],
)  # fmt: skip
def test_accesses_of_which_the_memory_model_says_nothing(mutated, old, new):
    assert caught(mutated("exchange", old, new)) == "error"


@pytest.mark.parametrize(
    ("old", "new", "how"),
    [
        ("{values[0]}, 1, 31", "{values[0]}, 2, 31", "wrong"),
        ("number % 32, -1)", "(number + 2) % 32, -1)", "error"),
        ("t, {each - 1};", "t, {each};", None),
    ],
    ids=["another neighbour", "another order", "of several elements"],
)
def test_threads_that_hold_other_elements_than_assumed(mutated, old, new, how):
    persistent = mutated("exchange", old, new)
    assert caught(persistent, warps=8) == how
    assert (caught(persistent, warps=2) == "error") == (how is None)


def test_a_barrier_left_out():
    """Each barrier of the two sums over the parts, from the compiled code."""
    import re

    from ptx import run_ptx
    from ptx.compilation import compile_ptx

    from trigru.kernels import persistent
    from trigru.kernels.offline import Recorder
    from trigru.kernels.recurrence import Recurrence

    case = recurrence(3, 3, 48)
    recorder = Recorder()
    with using(recorder):
        persistent.forward(Recurrence("torch", False, "tf32", PersistentConfig(num_warps=8)), case.operands, True)
    launch = recorder.launches[0]
    compiled = compile_ptx(
        launch.kernel, {**launch.args, **launch.constexprs}, 90, num_warps=8, num_stages=1, launch_cooperative_grid=True
    )
    text = compiled.asm["ptx"]
    places = [m.start() for m in re.finditer(r"bar\.sync\s+0;", text)]
    names = [n for n in launch.kernel.arg_names if launch.args.get(n) is not None]
    args = {n: launch.args[n] for n in names}
    assert len(places) == 4
    for place in places:
        launch.args["output_ptr"].view(torch.int16).fill_(-1)
        without = text[:place] + re.sub(r"bar\.sync\s+0;", "", text[place:], count=1)
        with pytest.raises(PtxError, match="race"):
            run_ptx(without, args, launch.grid, 8, compiled.shared, seed=0)


def caught_walking(walking, variant: str) -> bool:
    """Whether the tests of the walking kernels notice: two batch tiles, a program for each tile, one late."""
    case = recurrence(3, 40, 48, variant=variant)
    config = replace(walking_config(case.h0.dtype, 40, 48), timeout=0.05)
    for order in ({"seed": 0, "quantum": 2000}, {"starve": 0}, {"starve": 1}, {"starve": 3}):
        try:
            with using(ptx_launcher(arch=90, **order)):
                errors = case.errors(case.run(walking, config))
        except (PtxError, KernelTimeout):
            return True
        if not max(errors.values()) <= 1.5e-2:
            return True
    return False


@pytest.mark.parametrize(
    ("variant", "old", "new"),
    [
        ("torch", "tl.where(there, tl.cdiv(H, BLOCK_H), 0)", "tl.cdiv(H, BLOCK_H) * 0"),
        ("torch", "tl.where(there, tl.cdiv(H, BLOCK_H), 0)", "tl.where(there, tl.cdiv(H, BLOCK_H) - 1, 0)"),
        ("torch", "first // BLOCK_B", "first // BLOCK_B * 0"),
        ("torch", "status_ptr, LAST, first, i - 1, goes_on", "status_ptr, LAST, first, i - 2, goes_on"),
        ("cho", "_await(status_ptr, 0, first, i, True,", "_await(status_ptr, 0, first, i, False,"),
        ("cho", "status_ptr, 1, first, i - 1, first", "status_ptr, 0, first, i - 1, first"),
        ("cho", "LAST: tl.constexpr = 0 if", "LAST: tl.constexpr = 0 if True or"),
        ("cho", "arrive(_flag(status_ptr, 1,", "arrive(_flag(status_ptr, 0,"),
    ],
)
def test_a_wait_of_the_walking_kernels_changed(mutated, variant, old, new):
    assert caught_walking(mutated("walking_kernels", old, new, "walking"), variant)


@pytest.mark.parametrize("variant", [pytest.param("torch", marks=SLOW), "cho"])
def test_nothing_of_the_walking_kernels_is_caught_without_a_mutation(mutated, variant):
    assert not caught_walking(mutated("parts", "even + odd", "even + odd", "walking"), variant)


def caught_stacked(stacked, variant: str, **order) -> bool:
    """Whether the tests of several layers in a launch notice: three of them, with dropout between."""
    case = stack(3, 3, 3, 32, variant=variant, dropout=0.25)
    for seed in range(3):
        try:
            with using(ptx_launcher(arch=90, strong=True, **{"seed": seed, "quantum": 20, **order})):
                errors = case.errors(case.run(stacked, timeout=0.05))
        except (PtxError, KernelTimeout):
            return True
        if not max(errors.values()) <= 1.5e-2:
            return True
    return False


LATE = {"seed": None, "starve": 2}  # a program of the layer between


@pytest.mark.parametrize(
    ("file", "old", "new", "variant", "order"),
    [
        # what is waited for: another step, another layer, another state
        ("stacked_forward", "zeros(below_ptr, own, here", "zeros(below_ptr, own, before", "torch", LATE),
        pytest.param("stacked_forward", "if passed_ptr is None else", "if True else", "cho", {}, marks=SLOW),
        pytest.param("stacked_forward", "(level.number - 1) * level.plane", "0 * level.plane", "cho", {}, marks=SLOW),
        pytest.param("stacked_backward", "own, following, level.has", "own, here, level.has", "torch", {}, marks=SLOW),
        pytest.param("stacked_backward", "(level.number + 1) * (3", "2 * (3", "cho", {}, marks=SLOW),
        # what is published: not all, before it is complete, or where there is no layer
        ("stacked_backward", "here.row, own, 3, S, 2), dn, exists", "here.row, own, 3, S, 1), dz, exists", "torch", {}),
        pytest.param("stacked_forward", "* tl.where(stays != 0, scale, 0.0)", "* scale", "torch", {}, marks=SLOW),
        pytest.param("stacked_forward", "& level.has_above", "& (level.number >= 0)", "torch", {}, marks=SLOW),
        # a buffer that is not filled, one place for all layers
        pytest.param("stacked", '(*reserved, args["passed_ptr"])', "reserved", "torch", {}, marks=SLOW),
        pytest.param("stacked_forward", "state_ptr += level.number *", "state_ptr += 0 *", "cho", {}, marks=SLOW),
    ],
)  # fmt: skip
def test_what_layers_of_one_launch_exchange_changed(mutated, file, old, new, variant, order):
    assert caught_stacked(mutated(file, old, new, "stacked"), variant, **order)


def test_no_wait_for_the_layer_beside_the_own(mutated):
    """A look at the first of the tiles alone."""
    old, new = '_find(found, "t"', '_find(found[:chunks], "t"'
    assert caught_stacked(mutated("assembly", old, new, "stacked"), "torch")


@pytest.mark.parametrize("variant", ["torch", pytest.param("cho", marks=SLOW)])
def test_nothing_of_several_layers_is_caught_without_a_mutation(mutated, variant):
    assert not caught_stacked(mutated("parts", "even + odd", "even + odd", "stacked"), variant)
