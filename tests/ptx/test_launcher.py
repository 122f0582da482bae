"""The launcher: what is compiled, in which order programs run, what is recorded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trigru.kernels import launch

from . import PtxError, compile_ptx, ptx_launcher
from . import sample_kernels as k


def start(launcher, kernel, grid, args, constexprs, num_warps=4, cooperative=False):
    """Launch as the package does."""
    with launch.using(launcher):
        launch.launch(kernel, grid, args, constexprs, num_warps=num_warps, num_stages=2, cooperative=cooperative)
    return launcher


def ring(launcher, P=4, T=6, cooperative=True):
    """The ring; returns the last row."""
    buf = torch.full((T + 1, P, 32), -1, dtype=torch.int32)
    buf[0] = 0
    start(launcher, k.ring, (P,), {"buf": buf, "T": T}, {"P": P, "B": 32}, 1, cooperative)
    want = [sum((p - i) % P for i in range(T)) for p in range(P)]
    assert buf[T, :, 0].tolist() == want


def test_records_launches():
    launcher = ptx_launcher(90)
    x, o = torch.randn(128), torch.zeros(128)
    for _ in range(2):
        start(launcher, k.beyond, (1,), {"x": x, "o": o, "n": 0}, {"BLOCK": 128})
    assert torch.equal(o, x)
    first, second = launcher.launches
    assert first["kernel"] == "beyond"
    assert first["grid"] == (1,)
    assert first["num_warps"] == 4
    assert first["num_stages"] == 2
    assert not first["cooperative"]
    assert first["global_load_bytes"] == first["global_store_bytes"] == x.nbytes
    assert first["critical_path"] > 0
    assert second["instructions"] == first["instructions"]
    assert launcher.total("instructions") == 2 * first["instructions"]


@pytest.mark.parametrize("grid", [(4,), (2, 2), (2, 1, 2)])
def test_grid(grid):
    launcher = ptx_launcher(80)
    counter, order = torch.zeros(1, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    start(launcher, k.arrival, grid, {"counter": counter, "order": order}, {}, 1)
    assert counter.item() == launcher.launches[0]["programs"] == 4


def test_rows_of_one_buffer():
    """Every step reads one row and writes the next."""
    h = torch.zeros(9, 64)
    launcher = ptx_launcher(90)
    for t in range(8):
        args = {"prev": h[t], "new": h[t + 1], "t": t, "n": 64, "scale": 0.5, "bias": None}
        start(launcher, k.next_row, (1,), args, {"BLOCK": 64})
    want = [0.0]
    for t in range(8):
        want.append(want[-1] * 0.5 + t)
    assert torch.equal(h, torch.tensor(want)[:, None].expand(9, 64))
    assert len({id(entry["compiled"]) for entry in launcher.launches}) == 1


def test_overlapping_arguments():
    x = torch.arange(256.0)
    want = torch.cat([x[:64], x[:128], x[192:]])
    start(ptx_launcher(90), k.beyond, (1,), {"x": x[:128], "o": x[64:192], "n": 0}, {"BLOCK": 128})
    assert torch.equal(x, want)


def test_one_tensor_twice():
    x = torch.randn(256)
    want = torch.cat([x[:128], x[:128]])
    start(ptx_launcher(90), k.beyond, (1,), {"x": x, "o": x, "n": 128}, {"BLOCK": 128})
    assert torch.equal(x, want)


def test_outside_a_view_is_out_of_bounds():
    x = torch.zeros(3, 64)
    with pytest.raises(PtxError, match="out of bounds"):
        start(ptx_launcher(90), k.beyond, (1,), {"x": x[0], "o": x[1], "n": 32}, {"BLOCK": 64})


def test_other_arguments():
    x, o = torch.zeros(64, 2)[:, 0], torch.zeros(64)
    with pytest.raises(ValueError, match="argument x is not contiguous"):
        start(ptx_launcher(90), k.beyond, (1,), {"x": x, "o": o, "n": 0}, {"BLOCK": 64})
    with pytest.raises(ValueError, match="argument x is on meta"):
        start(ptx_launcher(90), k.beyond, (1,), {"x": o.to("meta"), "o": o, "n": 0}, {"BLOCK": 64})
    with pytest.raises(TypeError, match=r"beyond has no arguments \['y'\]"):
        start(ptx_launcher(90), k.beyond, (1,), {"x": o, "o": o, "n": 0, "y": 1}, {"BLOCK": 64})
    with pytest.raises(TypeError, match="missing"):
        start(ptx_launcher(90), k.beyond, (1,), {"x": o, "n": 0}, {"BLOCK": 64})


@pytest.mark.parametrize("args", [{}, {"first": 1}, {"first": 7, "second": None}])
def test_defaults(args):
    o = torch.zeros(32, dtype=torch.int32)
    start(ptx_launcher(90), k.optional, (1,), {"o": o, **args}, {})
    assert o.tolist() == list(range(args.get("first", 3), args.get("first", 3) + 32))


def test_specialisation():
    """As Triton's launcher: t is never specialised, n not on alignment, and a None or an integer 1 is a constant."""
    row = torch.zeros(64)

    def compiled(**changes):
        args = {"prev": row, "new": row, "t": 5, "n": 40, "scale": 1.0, "bias": row, "BLOCK": 64}
        return compile_ptx(k.next_row, args | changes, 90, num_warps=1)

    usual = compiled()
    assert usual.arguments == ("prev", "new", "t", "n", "scale", "bias")
    assert compiled(t=1) is usual
    assert compiled(t=16) is usual
    assert compiled(n=64) is usual
    assert compiled(scale=2.0) is usual
    assert compiled(n=1).arguments == ("prev", "new", "t", "scale", "bias")
    assert compiled(bias=None).arguments == ("prev", "new", "t", "n", "scale")
    assert compiled(prev=torch.zeros(65)[1:]) is not usual


def test_unaligned_view():
    """A view that 16 bytes do not divide is compiled without vector accesses, as on the device."""
    x, o = torch.randn(513), torch.zeros(512)
    start(ptx_launcher(90), k.beyond, (1,), {"x": x[1:], "o": o, "n": 0}, {"BLOCK": 512})
    assert torch.equal(o, x[1:])


@pytest.mark.parametrize("options", [{}, {"seed": "round-robin"}, {"seed": 5}, {"starve": 0}, {"starve": 3, "seed": 1}])
def test_cooperative_launch_in_any_order(options):
    ring(ptx_launcher(90, resident_programs=4, **options))


def test_cooperative_launch_too_large():
    with pytest.raises(PtxError, match="cooperative launch too large: 4 programs, at most 3"):
        ring(ptx_launcher(90, resident_programs=3))


@pytest.mark.parametrize(
    ("cooperative", "options"),
    [
        (False, {}),
        (False, {"seed": 0, "resident_programs": 3}),
        (False, {"seed": "round-robin", "resident_programs": 3}),
        (True, {"sequential": True}),
    ],
)
def test_wait_for_a_program_that_has_not_started(cooperative, options):
    with pytest.raises(PtxError, match=r"4 programs did not end within 20000 instructions \(\d of them never began"):
        ring(ptx_launcher(90, max_instructions=20_000, **options), cooperative=cooperative)


def test_sequential_counts_work_without_waiting():
    """Where all is there already, a cooperative launch can run one program after another."""
    T, P = 3, 4
    buf = torch.zeros(T + 1, P, 32, dtype=torch.int32)
    launcher = ptx_launcher(90, sequential=True)
    start(launcher, k.ring, (P,), {"buf": buf, "T": T}, {"P": P, "B": 32}, 1, True)
    assert launcher.launches[0]["global_load_bytes"] == T * P * 32 * 4


def test_more_programs_than_fit():
    counter, order = torch.zeros(1, dtype=torch.int32), torch.zeros(9, dtype=torch.int32)
    start(ptx_launcher(90, seed=0, resident_programs=2), k.arrival, (9,), {"counter": counter, "order": order}, {}, 1)
    assert sorted(order.tolist()) == list(range(9))
    assert all(order[p] >= p - 1 for p in range(9))


def test_wrong_options():
    with pytest.raises(ValueError, match="not 'backwards'"):
        ring(ptx_launcher(90, seed="backwards"))
    with pytest.raises(ValueError, match="sequential excludes"):
        ptx_launcher(90, seed=0, sequential=True)


def test_interpreter_in_force():
    code = (
        "import torch, ptx; from ptx import sample_kernels as k\n"
        "o = torch.zeros(64)\n"
        "ptx.ptx_launcher()(k.beyond, (1,), dict(x=o, o=o, n=0), dict(BLOCK=64), num_warps=1, num_stages=1)\n"
    )
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "TRITON_INTERPRET=1 is in force" in done.stderr
