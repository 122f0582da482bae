"""No launch touches what is not its own: every kernel within red zones, in the interpreter and from PTX, and the same
check on kernels with a mistake."""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import redzones
import torch
from conftest import INTERPRETED
from per_step import OPTIONS, per_step_recurrence
from recurrences import recurrence

import trigru.kernels
from trigru.kernels.config import (
    PersistentConfig,
    ResidentConfig,
    StepwiseConfig,
    WalkingConfig,
    persistent_config,
    resident_config,
    stepwise_config,
    walking_config,
)

pytestmark = pytest.mark.interpretable

SOURCES = Path(trigru.kernels.__file__).parent
CONFIGS = {
    "stepwise": stepwise_config,
    "walking": walking_config,
    "resident": resident_config,
    "persistent": persistent_config,
}
WAITING = ("walking", "persistent")
TOLERANCE = {torch.float32: 3e-3, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# What operands cut off to TF32 leave where nothing averages: of that case, 3.585e-3, as computed by the equations.
ONE_NUMBER_IN_TF32 = 4e-3
# T, B, H: one program and several, sizes that fill no tile
SIZES = [(2, 3, 24), (1, 1, 1), (2, 17, 19), (2, 5, 33)]


def interpreter():
    def start(kernel, grid, args, constexprs, *, cooperative=False, **options):
        kernel[grid](**args, **constexprs, **options)

    return start


def executor():
    from ptx import ptx_launcher

    return ptx_launcher(arch=90, seed=0)


start = interpreter if INTERPRETED else executor


def checked(schedule, config, case, package=trigru.kernels):
    """The kernels launched within red zones."""
    module = importlib.import_module(f"{package.__name__}.{schedule}")
    using = importlib.import_module(f"{package.__name__}.launch").using
    precision = "tf32" if schedule == "persistent" else "ieee"
    errors = {}

    def run():
        got = case.run(module, config, precision=precision)
        errors.update(case.errors(got))
        return got

    launches = redzones.check(run, using, start)
    return launches, max(errors.values())


def schedules(*names):
    """The interpreter runs programs one after another, which cannot wait for each other."""
    return [name for name in names if not (INTERPRETED and name in WAITING)]


CASES = [
    pytest.param(
        *(schedule, variant, dtype, size, (i + j + k) % 2 == 1, (i + j) % 2 == 1, both),
        # All takes minutes; quick are each dtype with each variant, and in the interpreter each size, half of them in
        # both directions at once.
        marks=[] if (i + j) % 3 == k and (INTERPRETED or j >= 2) and both == (j % 2 == 1) else pytest.mark.slow,
    )
    for schedule in schedules(*CONFIGS)
    for i, variant in enumerate(("torch", "cho", "chung"))
    for j, size in enumerate(SIZES)
    for k, dtype in enumerate((torch.float32, torch.float16, torch.bfloat16))
    for both in (False, True)
]


@pytest.mark.parametrize(("schedule", "variant", "dtype", "size", "packed", "reverse", "both"), CASES, ids=str)
def test_no_kernel_leaves_its_tensors(schedule, variant, dtype, size, packed, reverse, both):
    case = recurrence(*size, variant=variant, dtype=dtype, packed=packed, reverse=reverse, both=both)
    launches, error = checked(schedule, CONFIGS[schedule](dtype, *size[1:]), case)
    print(f"launches: {len(launches)}")
    assert launches
    in_tf32 = schedule == "persistent" and dtype == torch.float32
    assert error <= (ONE_NUMBER_IN_TF32 if in_tf32 and size == (1, 1, 1) else TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after another: they cannot wait")
@pytest.mark.parametrize(
    ("variant", "packed", "both"),
    [("torch", False, False), ("torch", True, True), ("cho", False, True), ("chung", True, False)],
)
def test_no_kernel_of_several_batch_tiles_leaves_its_tensors(variant, packed, both):
    case = recurrence(2, 35, 33, variant=variant, dtype=torch.bfloat16, packed=packed, both=both)
    config = replace(persistent_config(torch.bfloat16, 35, 33), tiles=2)
    _, error = checked("persistent", config, case)
    assert error <= TOLERANCE[torch.bfloat16]


# -- planted mistakes --------------------------------------------------------------------------------------------------

KERNELS = {
    "stepwise": {
        "torch": ("forward_step", "bptt_step"),
        "cho": ("reset_update_step", "candidate_step", "bptt_reset_step"),
    },
    "walking": {"torch": ("walk_torch", "walk_back"), "cho": ("walk_reset_first",)},
    "resident": {"torch": ("forward_kernel", "bptt_kernel")},
    "persistent": {
        "torch": ("forward_torch", "backward_torch"),
        "cho": ("forward_reset_first", "backward_reset_first"),
    },
}
PLANTED = [
    (schedule, variant, kernel)
    for schedule in schedules(*KERNELS)
    for variant, names in KERNELS[schedule].items()
    for kernel in names
]


def source_of(kernel):
    """The file that defines a kernel, and its definition there."""
    for path in sorted(SOURCES.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == kernel:
                return path, node
    raise LookupError(f"no kernel {kernel} in {SOURCES}")


def pointers(kernel):
    """The kernel's arguments that are tensors."""
    return [a.arg for a in source_of(kernel)[1].args.args if a.arg.endswith("_ptr")]


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A function: `planted(kernel, line)` is a copy of the package in which the kernel begins with that line."""
    loaded = 0

    def forget():
        for module in [module for module in sys.modules if module.partition(".")[0] == "planted"]:
            del sys.modules[module]

    def load(kernel, line):
        nonlocal loaded
        forget()
        loaded += 1
        path, node = source_of(kernel)
        # The same name each time: Triton finds the other kernels where it has compiled them before.
        folder = tmp_path / str(loaded) / "planted"
        shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("__pycache__"))
        body = node.body[1] if isinstance(node.body[0], ast.Expr) else node.body[0]
        lines = path.read_text().splitlines(keepends=True)
        lines.insert(body.lineno - 1, f"    {line}\n")
        (folder / path.name).write_text("".join(lines))
        monkeypatch.syspath_prepend(folder.parent)
        return importlib.import_module("planted")

    yield load
    forget()


def caught(package, schedule, case, config):
    """How the check notices, or None."""
    try:
        checked(schedule, config, case, package)
    except redzones.RedZoneError as error:
        return "a zone" if "written" in str(error) else "the poison"
    except Exception as error:
        if type(error).__name__ == "PtxError" and ("out of bounds" in str(error) or "misaligned" in str(error)):
            return "the executor"
        if type(error).__name__ == "KernelTimeout":
            return "a wait in vain"
        raise
    return None


# Of one program, whose tiles are just right for 16 sequences: nothing is masked away.
WHOLE = {
    "stepwise": (16, StepwiseConfig(block_h=16, block_b=16, block_k=16)),
    "walking": (16, WalkingConfig(block_h=16, block_b=16, block_k=16)),
    "resident": (16, ResidentConfig()),
    "persistent": (32, PersistentConfig(num_warps=2)),
}
OF_NORMS = ("gain_ptr", "products_ptr", "hats_ptr", "rstd_ptr")  # None without, as are:
NOT_THERE = ("lengths_ptr", "packed_ptr", "h_n_ptr")  # of "resident", of larger layers, where it is asked for
UNUSED = ("offsets_ptr", "status_ptr", "host_ptr", *OF_NORMS, *NOT_THERE)  # padded, and nothing expires
OF_SEVERAL = ("state_ptr", "nothing_ptr")  # None where a program of the persistent schedule has one batch tile
BESIDE = [f"{name}_ptr" for name in (*OPTIONS, "seed", "begins", "d_begin")]  # None where a step is the equations alone


def off_by_one(planted, schedule, variant, kernel, pointer):
    """How the check notices a kernel one of whose pointers leads to the next element, or to the one before: which of
    them is outside depends on whether the first or the last element is used."""
    hidden_size, config = WHOLE[schedule]
    both = pointer.endswith("_back_ptr")  # None where one direction runs
    make = per_step_recurrence if pointer in BESIDE else recurrence
    batch = 16
    if schedule == "persistent" and pointer in OF_SEVERAL:
        batch, config = 32, replace(config, tiles=2)
    case = make(2, batch, hidden_size, variant=variant, dtype=torch.float32, both=both)
    for shift in ("+ 1", "- 1"):
        if how := caught(planted(kernel, f"{pointer} = {pointer} {shift}"), schedule, case, config):
            return how
    return None


@pytest.mark.parametrize(("schedule", "variant", "kernel"), PLANTED)
def test_a_kernel_that_writes_one_off(planted, schedule, variant, kernel):
    wrote = "d_gates_ptr" if "back" in kernel or "bptt" in kernel else "output_ptr"
    wrote = "update_ptr" if kernel == "reset_update_step" else wrote
    assert off_by_one(planted, schedule, variant, kernel, wrote)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "variant", "kernel"), PLANTED)
def test_each_pointer_one_off(planted, schedule, variant, kernel):
    """Every tensor of every kernel."""
    unused = (*UNUSED, "nothing_ptr") if kernel.startswith("forward") else UNUSED  # there with fetched columns alone
    used = [pointer for pointer in pointers(kernel) if pointer not in unused]
    noticed = {pointer: off_by_one(planted, schedule, variant, kernel, pointer) for pointer in used}
    print(kernel, noticed)
    assert None not in noticed.values(), noticed
