"""Wrong kernels, and right ones with an instruction taken out: each must be caught."""

import re

import pytest
import torch

from . import PtxError, compile_ptx, emulate_ptx, run_ptx
from . import sample_kernels as k


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def without(text: str, pattern: str, which: int) -> str:
    """The PTX with one matching instruction removed."""
    lines = text.split("\n")
    at = [i for i, line in enumerate(lines) if re.search(pattern, line.split("//")[0])]
    lines[at[which]] = ""
    return "\n".join(lines)


def test_store_out_of_bounds():
    x, o = torch.randn(128), torch.zeros(128)
    with pytest.raises(PtxError, match=r"bytes past the end of 'o'.*\n.*warp 3.*PTX line \d+, sample_kernels.py:\d+"):
        emulate_ptx(k.beyond, {"x": x, "o": o, "n": 16}, {"BLOCK": 128}, (1,))


def test_load_out_of_bounds():
    x, o = torch.randn(120), torch.zeros(128)
    with pytest.raises(PtxError, match=r"bytes past the end of 'x'"):
        emulate_ptx(k.beyond, {"x": x, "o": o, "n": 0}, {"BLOCK": 128}, (1,))


def test_misaligned_vector():
    """Compiled for a multiple of 16 and called with 1."""
    x, o = torch.randn(512), torch.zeros(520)
    compiled = compile_ptx(k.beyond, {"x": x, "o": o, "n": 0, "BLOCK": 512}, num_warps=4)
    with pytest.raises(PtxError, match="misaligned"):
        run_ptx(compiled.ptx, {"x": x, "o": o, "n": 1}, (1,))


def test_device_assert():
    x, o = torch.full((128,), 7), torch.zeros(128, dtype=torch.int64)
    with pytest.raises(PtxError, match="too large"):
        emulate_ptx(k.asserting, {"x": x, "o": o}, {"BLOCK": 128}, (1,), debug=True)


@pytest.mark.parametrize("seed", ["round-robin", 0])
def test_endless_wait(seed):
    rows = torch.full((2, 4, 32), -1, dtype=torch.int32)
    with pytest.raises(PtxError, match=r"4 programs did not end.*sample_kernels.py"):
        emulate_ptx(
            k.ring, {"buf": rows, "T": 1}, {"P": 4, "B": 32}, (4,), num_warps=1, seed=seed, max_instructions=20_000
        )


@pytest.mark.parametrize("seed", ["round-robin", 0, 1, 2])
def test_plain_load_of_what_another_program_writes(seed):
    rows = torch.full((4, 4, 32), -1, dtype=torch.int32)
    rows[0] = 5
    with pytest.raises(PtxError, match="has acquired nothing"):
        emulate_ptx(k.careless_ring, {"buf": rows, "T": 3}, {"P": 4, "B": 32}, (4,), num_warps=1, seed=seed)


@pytest.fixture(scope="module")
def reduction():
    """A compiled kernel that uses shared memory, its arguments, and the right results."""
    torch.manual_seed(0)
    args = {
        "x": torch.randn(32, 64),
        "rows": torch.zeros(32),
        "cols": torch.zeros(64),
        "arg": torch.zeros(32, dtype=torch.int32),
    }
    compiled = compile_ptx(k.reductions, {**args, "M": 32, "N": 64}, num_warps=4)
    run_ptx(compiled.ptx, args, (1,), 4, compiled.shared)
    return compiled, args, {name: v.clone() for name, v in args.items()}


def test_missing_barrier(reduction):
    compiled, args, right = reduction
    barriers = len(re.findall(r"^\s*bar\.sync", compiled.ptx, re.M))
    redundant = 0  # some versions of Triton emit a barrier that separates nothing: then the result stays right
    for i in range(barriers):
        try:
            run_ptx(without(compiled.ptx, r"\bbar\.sync", i), args, (1,), 4, compiled.shared)
        except PtxError as e:
            assert "shared memory race" in str(e)  # noqa: PT017
        else:
            redundant += 1
            assert all(torch.equal(args[name], right[name]) for name in right), f"wrong without barrier {i}, not caught"
    assert barriers > 1
    assert redundant <= 1


def test_shared_memory_never_written(reduction):
    compiled, args, _ = reduction
    at = compiled.ptx.index("st.shared")
    with pytest.raises(PtxError, match="never written"):
        run_ptx(compiled.ptx[:at] + "//" + compiled.ptx[at:], args, (1,), 4, compiled.shared)


def test_shared_memory_out_of_range(reduction):
    compiled, args, _ = reduction
    with pytest.raises(PtxError, match="shared access out of range"):
        run_ptx(compiled.ptx, args, (1,), 4, compiled.shared // 2)


def test_barrier_that_one_warp_never_reaches():
    text = """\
.version 8.0
.target sm_80
.address_size 64
.visible .entry stuck(
	.param .u64 stuck_a
)
.reqntid 64
{
	.reg .pred %p<2>;
	.reg .b32 %r<2>;
	mov.u32 %r0, %tid.x;
	setp.lt.u32 %p0, %r0, 32;
	@%p0 bra $L1;
	bar.sync 0;
$L1:
	bar.sync 1;
	ret;
}
"""
    with pytest.raises(PtxError, match="cannot go on"):
        run_ptx(text, {"a": torch.zeros(1)}, (1,), 2)


def test_unknown_instruction():
    text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry f()\n{\n\tfrobnicate.b32 %r1;\n\tret;\n}\n"
    with pytest.raises(NotImplementedError, match="line 6: frobnicate"):
        run_ptx(text, {}, (1,))


REMOVALS = [  # arch, num_stages, what is removed, which one, what is reported
    (80, 3, r"cp\.async\.wait_group", 0, "cp.async"),
    (80, 3, r"cp\.async\.wait_group", 1, "cp.async"),
    (80, 3, r"\bbar\.sync", 1, "race"),
    (90, 3, r"cp\.async\.wait_group", 0, "never written|cp.async"),
    (90, 3, r"wgmma\.wait_group", 0, "wgmma still reads"),
    (90, 3, r"wgmma\.wait_group", 1, "registers of a wgmma"),
    (90, 1, r"fence\.proxy", 0, "fence.proxy.async"),
    (90, 1, r"wgmma\.wait_group", 0, "wgmma"),
]


def test_missing_waits_and_fences_in_pipelines():
    """Around cp.async and wgmma. The order of the code differs between versions of Triton: where a removed instruction
    is one that nothing depends on, the result must stay right."""
    a, b, o = torch.randn(64, 256).half(), torch.randn(256, 64).half(), torch.zeros(64, 64).half()
    sizes = {"M": 64, "N": 64, "K": 256, "sam": 256, "sak": 1, "sbk": 64, "sbn": 1}
    args = {"a": a, "b": b, "o": o, **sizes, "BM": 64, "BN": 64, "BK": 32, "P": "ieee"}
    missed = []
    for arch, stages, pattern, which, message in REMOVALS:
        what = f"{pattern} {which} on {arch}"
        compiled = compile_ptx(k.product, args, arch, num_warps=4, num_stages=stages)
        if len(re.findall(pattern, compiled.ptx)) <= which:
            missed.append(f"{what}: not in this version's code")
            continue
        o.zero_()
        values = {name: args[name] for name in compiled.arguments}
        try:
            run_ptx(without(compiled.ptx, pattern, which), values, (1,), 4, compiled.shared)
        except PtxError as e:
            assert re.search(message, str(e)), f"{what}: {e}"  # noqa: PT017
        else:
            assert torch.allclose(o.float(), a.float() @ b.float(), atol=0.1, rtol=0.01), f"wrong, not caught: {what}"
            missed.append(what)
    assert len(missed) <= 2, missed
