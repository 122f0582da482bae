"""Kernels with known answers, compiled and executed, against torch in float64 and Python integers."""

import itertools

import pytest
import torch

from . import emulate_ptx
from . import sample_kernels as k

ARCHES = (80, 90)
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def error(got, want) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.bfloat16, 5e-3),
        pytest.param(torch.float16, 1e-3, marks=pytest.mark.slow),
        pytest.param(torch.float32, 1e-6, marks=pytest.mark.slow),
    ],
)
def test_pointwise(arch, dtype, tolerance):
    x, y, o = torch.randn(1000).to(dtype), torch.randn(1000).to(dtype), torch.zeros(1000, dtype=dtype)
    s = emulate_ptx(k.pointwise, {"x": x, "y": y, "o": o, "n": 1000}, {"BLOCK": 512}, (2,), arch=arch)
    a, b = x.double(), y.double()
    want = torch.exp(a) + torch.tanh(b) * torch.sigmoid(a) + torch.log(b.abs() + 1) + a.abs().sqrt()
    want += torch.sin(a) / (b.abs() + 1) + torch.cos(b) + torch.floor(a) + torch.erf(a) + torch.rsqrt(b.abs() + 1)
    want += a * b + a + a / 3
    assert error(o, want) < tolerance
    assert s["global_store_bytes"] == o.nbytes
    assert s["global_load_bytes"] == x.nbytes + y.nbytes


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_arithmetic(arch, dtype):
    x, y, o = torch.randn(512).to(dtype), torch.randn(512).to(dtype), torch.zeros(512, dtype=dtype)
    emulate_ptx(k.half_math, {"x": x, "y": y, "o": o}, {"BLOCK": 512}, (1,), arch=arch)
    assert torch.equal(o, torch.where(x > y, torch.maximum(x + y, x * y), torch.minimum(x - y, x.abs())))


@pytest.mark.parametrize("arch", ARCHES)
def test_integers(arch):
    x, y = (
        torch.randint(-(2**31), 2**31 - 1, (700,), dtype=torch.int32) >> torch.randint(0, 28, (700,)).int()
        for _ in range(2)
    )
    o = torch.zeros_like(x)
    emulate_ptx(k.integers, {"x": x, "y": y, "o": o, "n": 700}, {"BLOCK": 512}, (2,), arch=arch)
    want = [integer_reference(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert o.tolist() == want


def integer_reference(a: int, b: int) -> int:
    d = b | 1
    q = abs(a) // abs(d) * (1 if (a < 0) == (d < 0) else -1)
    small = ((a & 255) - 256 * (a >> 7 & 1)) * ((b & 255) - 256 * (b >> 7 & 1)) & 255
    r = a * b + q + (a - q * d) + (a << 3) + (b >> 2) + (a ^ b) + min(a, b) * max(a, b) + (a if a > b else -b)
    r += (a & 0xFFFFFFFF).bit_count() + 32 - (b & 0xFFFFFFFF).bit_length() + small - 256 * (small >> 7)
    r += (a * b >> 32) + ((a & 0xFFFFFFFF) * (b & 0xFFFFFFFF) >> 32)
    return (r + 2**31) % 2**32 - 2**31


@pytest.mark.parametrize("arch", ARCHES)
def test_random_numbers(arch):
    o = torch.zeros(2048)
    emulate_ptx(k.random_numbers, {"o": o}, {"BLOCK": 512}, (4,), arch=arch)
    assert o.min() >= 0
    assert o.max() < 1
    assert abs(o.mean() - 0.5) < 0.02
    assert o.unique().numel() > 2000
    assert o[0] == philox_first(42)


def philox_first(seed: int) -> float:
    """The first number of Philox 4x32-10 with counter 0, as tl.rand makes it."""
    c, key = [0, 0, 0, 0], [seed, 0]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ key[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ key[1], p0 & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    v = c[0] - 2**32 if c[0] >> 31 else c[0]
    v = -v - 1 if v < 0 else v
    return torch.tensor(v, dtype=torch.float32).item() * torch.tensor(4.6566127342e-10).item()


WARPS = [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 4]
WARPS += [pytest.param(8, marks=pytest.mark.slow)]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("num_warps", WARPS)
@pytest.mark.parametrize(("M", "N"), [(32, 64), pytest.param(64, 16, marks=pytest.mark.slow)])
def test_reductions(arch, num_warps, M, N):
    x = torch.randn(M, N)
    rows, cols, arg = torch.zeros(M), torch.zeros(N), torch.zeros(M, dtype=torch.int32)
    args = {"x": x, "rows": rows, "cols": cols, "arg": arg}
    emulate_ptx(k.reductions, args, {"M": M, "N": N}, (1,), arch=arch, num_warps=num_warps)
    assert error(rows, x.double().sum(1)) < 1e-6
    assert torch.equal(cols, x.amax(0))
    assert torch.equal(arg.long(), x.argmax(1))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("num_warps", WARPS)
@pytest.mark.parametrize(
    "dtype", [torch.int16, *(pytest.param(d, marks=pytest.mark.slow) for d in (torch.int8, torch.int32, torch.int64))]
)
def test_transposition(arch, num_warps, dtype):
    v, o = torch.randint(-100, 100, (64, 32)).to(dtype), torch.zeros(32, 64, dtype=dtype)
    emulate_ptx(k.transpose, {"x": v, "o": o}, {"M": 64, "N": 32}, (1,), arch=arch, num_warps=num_warps)
    assert torch.equal(o, v.T)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("num_warps", [1, 2, 4, 8])
def test_scans_sort_and_histogram(arch, num_warps):
    x = torch.rand(256)
    total, ordered, counts = torch.zeros(256), torch.zeros(256), torch.zeros(16, dtype=torch.int32)
    args = {"x": x, "total": total, "ordered": ordered, "counts": counts}
    emulate_ptx(k.scans, args, {"N": 256}, (1,), arch=arch, num_warps=num_warps)
    assert error(total, x.double().cumsum(0)) < 1e-6
    assert torch.equal(ordered, x.sort().values)
    assert torch.equal(counts, torch.bincount((x * 3).long(), minlength=16).int())


KINDS = {
    "fp16": (torch.float16, "ieee", 1e-3),
    "bf16": (torch.bfloat16, "ieee", 1e-6),
    "tf32": (torch.float32, "tf32", 1e-3),
    "fp32": (torch.float32, "ieee", 1e-6),
    "tf32x3": (torch.float32, "tf32x3", 1e-5),
    "fp8": (torch.float8_e5m2, "ieee", 1e-6),
}
QUICK = [  # kind, arch, num_warps, num_stages, transposed, tile
    ("bf16", 80, 4, 3, "b", (64, 32, 64)),
    ("bf16", 90, 4, 3, "b", (64, 32, 64)),
    ("bf16", 90, 4, 1, "", (64, 128, 32)),
    ("fp16", 90, 1, 1, "ab", (16, 16, 32)),
    ("tf32", 80, 4, 1, "b", (64, 32, 64)),
    ("tf32", 90, 4, 3, "b", (64, 32, 64)),
    ("fp32", 90, 1, 1, "b", (16, 16, 32)),
]


def every_product():
    """All combinations but those that take long, or that Triton does not compile to matrix instructions."""
    tiles = ((16, 16, 32), (64, 32, 64), (64, 128, 32), (64, 16, 16))
    cases = itertools.product(KINDS, ARCHES, (1, 2, 4, 8), (1, 3), ("", "a", "b", "ab"), tiles)
    for i, (kind, arch, num_warps, stages, transposed, tile) in enumerate(cases):
        long = tile[0] * tile[1] > 1024 * num_warps or (kind in ("tf32x3", "fp32") and tile[0] > 16)
        fp8 = kind == "fp8" and (num_warps != 4 or arch != 90 or tile[2] < 32)
        if not long and not fp8 and (i % 3 == 0 or transposed in ("", "ab")):
            yield kind, arch, num_warps, stages, transposed, tile


@pytest.mark.parametrize(
    ("kind", "arch", "num_warps", "num_stages", "transposed", "tile"),
    [*QUICK, *(pytest.param(*c, marks=pytest.mark.slow) for c in every_product() if c not in QUICK)],
)
def test_products(kind, arch, num_warps, num_stages, transposed, tile):
    (dtype, precision, tolerance), (BM, BN, BK) = KINDS[kind], tile
    M, N, K = BM, BN * 2, BK * 4
    a, b = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    o = torch.zeros(M, N, dtype=torch.float16 if kind == "fp16" else torch.float32)
    args = {
        "a": a.t().contiguous() if "a" in transposed else a,
        "b": b.t().contiguous() if "b" in transposed else b,
        "o": o,
        "M": M,
        "N": N,
        "K": K,
        "sam": 1 if "a" in transposed else K,
        "sak": M if "a" in transposed else 1,
        "sbk": 1 if "b" in transposed else N,
        "sbn": K if "b" in transposed else 1,
    }
    meta = {"BM": BM, "BN": BN, "BK": BK, "P": precision}
    s = emulate_ptx(k.product, args, meta, (1, 2), arch=arch, num_warps=num_warps, num_stages=num_stages)
    assert error(o, a.double() @ b.double()) < tolerance
    assert s["mma"] or kind == "fp32"
    if arch == 90 and num_warps == 4 and BM == 64 and s["mma"]:
        assert s["wgmma_shared_bytes"], "expected wgmma"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("num_warps", [1, 4])
def test_int8_product(arch, num_warps):
    a, b = (torch.randint(-128, 127, (64, 64), dtype=torch.int8) for _ in range(2))
    o = torch.zeros(64, 64, dtype=torch.int32)
    emulate_ptx(k.product_int8, {"a": a, "b": b, "o": o}, {"S": 64}, (1,), arch=arch, num_warps=num_warps)
    assert torch.equal(o, (a.double() @ b.double().t()).int())


@pytest.mark.parametrize(
    ("arch", "dtype", "num_warps"),
    [
        (90, torch.bfloat16, 8),
        pytest.param(90, torch.float16, 4, marks=pytest.mark.slow),
        pytest.param(80, torch.bfloat16, 8, marks=pytest.mark.slow),
        pytest.param(80, torch.float16, 4, marks=pytest.mark.slow),
    ],
)
def test_product_of_a_product(arch, dtype, num_warps):
    a, b, c = (torch.randn(64, 64).to(dtype) for _ in range(3))
    o = torch.zeros(64, 64)
    emulate_ptx(k.chained, {"a": a, "b": b, "c": c, "o": o}, {"S": 64}, (1,), arch=arch, num_warps=num_warps)
    assert error(o, (a.double() @ b.double()).to(dtype).double() @ c.double()) < 1e-4


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("seed", [None, "round-robin", 0, 1])
def test_atomics(arch, seed):
    x = torch.randint(-1000, 1000, (128,), dtype=torch.int32)
    o, f, lock = torch.zeros(64, dtype=torch.int32), torch.zeros(16), torch.zeros(2, dtype=torch.int32)
    args = {"x": x, "o": o, "f": f, "lock": lock}
    emulate_ptx(k.atomics, args, {"BLOCK": 128}, (3,), arch=arch, seed=seed)
    v = x.view(8, 16)
    assert torch.equal(o[:16], 3 * v.sum(0).int())
    assert torch.equal(o[16:32], v.amax(0).clamp(min=0))
    assert torch.equal(o[32:48], v.amin(0).clamp(max=0))
    assert torch.equal(f, 3.0 * v.sum(0))
    assert lock.tolist() == [0, 3]


def ring_buffers(P: int, T: int, B: int = 128):
    """What the ring starts with, and what it must compute."""
    buf = torch.full((T + 1, P, B), -1, dtype=torch.int32)
    buf[0] = torch.arange(P, dtype=torch.int32)[:, None]
    want = buf.clone()
    for t in range(T):
        for p in range(P):
            want[t + 1, p] = want[t, (p - 1) % P] + p
    return buf, want


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(i, marks=pytest.mark.slow) for i in range(4, 40))])
def test_programs_that_wait_for_each_other(seed):
    P, T = 4 + seed % 2, 6
    buf, want = ring_buffers(P, T)
    again = buf.clone()
    meta, options = {"P": P, "B": 128}, {"num_warps": (2, 4)[seed // 2 % 2], "seed": seed, "arch": ARCHES[seed % 2]}
    first = emulate_ptx(k.ring, {"buf": buf, "T": T}, meta, (P,), **options)
    assert torch.equal(buf, want)
    second = emulate_ptx(k.ring, {"buf": again, "T": T}, meta, (P,), **options)
    assert all(first[c] == second[c] for c in ("instructions", "turns", "critical_path")), "not reproducible"


@pytest.mark.parametrize("starve", range(5))
@pytest.mark.parametrize("seed", [None, "round-robin", 3])
def test_starved_program(starve, seed):
    buf, want = ring_buffers(5, 6)
    emulate_ptx(k.ring, {"buf": buf, "T": 6}, {"P": 5, "B": 128}, (5,), seed=seed, starve=starve, arch=90)
    assert torch.equal(buf, want)


def test_the_starved_program_comes_last():
    """Programs that do not wait: all others have ended when the starved one begins."""
    x = torch.zeros(4, dtype=torch.int32)
    lone = torch.zeros(1, dtype=torch.int32)
    emulate_ptx(k.arrival, {"counter": lone, "order": x}, {}, (4,), seed="round-robin", starve=1, num_warps=1)
    assert x[1] == 3
    assert sorted(x.tolist()) == [0, 1, 2, 3]
