"""Kernels with known answers, and wrong ones."""

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice


@triton.jit
def pointwise(x, y, o, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    a = tl.load(x + i, mask=m, other=0.0).to(tl.float32)
    b = tl.load(y + i, mask=m).to(tl.float32)
    r = (
        tl.exp(a)
        + libdevice.tanh(b) * tl.sigmoid(a)
        + tl.log(tl.abs(b) + 1)
        + tl.sqrt(tl.abs(a))
        + tl.sin(a) / (tl.abs(b) + 1)
    )
    r += tl.cos(b) + tl.floor(a) + libdevice.erf(a) + tl.rsqrt(tl.abs(b) + 1) + tl.fma(a, b, a) + tl.div_rn(a, 3.0)
    tl.store(o + i, r.to(o.dtype.element_ty), mask=m)


@triton.jit
def integers(x, y, o, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = i < n
    a = tl.load(x + i, mask=m, other=0)
    b = tl.load(y + i, mask=m, other=1)
    r = (
        a * b
        + a // (b | 1)
        + a % (b | 1)
        + (a << 3)
        + (b >> 2)
        + (a ^ b)
        + tl.minimum(a, b) * tl.maximum(a, b)
        + tl.where(a > b, a, -b)
    )
    r += libdevice.popc(a) + libdevice.clz(b) + (a.to(tl.int8) * b.to(tl.int8)).to(tl.int32)
    r += ((a.to(tl.int64) * b.to(tl.int64)) >> 32).to(tl.int32) + tl.umulhi(a.to(tl.uint32), b.to(tl.uint32)).to(
        tl.int32
    )
    tl.store(o + i, r, mask=m)


@triton.jit
def half_math(x, y, o, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    b = tl.load(y + i)
    tl.store(o + i, tl.where(a > b, tl.maximum(a + b, a * b), tl.minimum(a - b, tl.abs(a))))


@triton.jit
def random_numbers(o, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(o + i, tl.rand(42, i))


@triton.jit
def reductions(x, rows, cols, arg, M: tl.constexpr, N: tl.constexpr):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    a = tl.load(x + m[:, None] * N + n[None, :])
    tl.store(rows + m, tl.sum(a, 1))
    tl.store(cols + n, tl.max(a, 0))
    tl.store(arg + m, tl.argmax(a, 1))


@triton.jit
def scans(x, total, ordered, counts, N: tl.constexpr):
    n = tl.arange(0, N)
    a = tl.load(x + n)
    tl.store(total + n, tl.cumsum(a, 0))
    tl.store(ordered + n, tl.sort(a))
    tl.store(counts + tl.arange(0, 16), tl.histogram((a * 3).to(tl.int32) & 15, 16))


@triton.jit
def transpose(x, o, M: tl.constexpr, N: tl.constexpr):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    tl.store(o + n[:, None] * M + m[None, :], tl.trans(tl.load(x + m[:, None] * N + n[None, :])))


@triton.jit
def product(
    a, b, o, M, N, K, sam, sak, sbk, sbn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, P: tl.constexpr
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for kk in range(0, K, BK):
        x = tl.load(a + m[:, None] * sam + (kk + k)[None, :] * sak)
        y = tl.load(b + (kk + k)[:, None] * sbk + n[None, :] * sbn)
        acc = tl.dot(x, y, acc, input_precision=P)
    tl.store(o + m[:, None] * N + n[None, :], acc.to(o.dtype.element_ty))


@triton.jit
def product_int8(a, b, o, S: tl.constexpr):
    i = tl.arange(0, S)
    x = tl.load(a + i[:, None] * S + i[None, :])
    y = tl.load(b + i[:, None] + i[None, :] * S)
    tl.store(o + i[:, None] * S + i[None, :], tl.dot(x, y))


@triton.jit
def chained(a, b, c, o, S: tl.constexpr):
    """(a b) c: the second product takes its first operand from registers."""
    i = tl.arange(0, S)
    at = i[:, None] * S + i[None, :]
    x = tl.dot(tl.load(a + at), tl.load(b + at)).to(a.dtype.element_ty)
    tl.store(o + at, tl.dot(x, tl.load(c + at)))


@triton.jit
def atomics(x, o, f, lock, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.atomic_add(o + i % 16, v)
    tl.atomic_max(o + 16 + i % 16, v)
    tl.atomic_min(o + 32 + i % 16, v)
    tl.atomic_xor(o + 48 + i % 16, v)
    tl.atomic_add(f + i % 16, v.to(tl.float32), sem="relaxed")
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    tl.store(lock + 1, tl.load(lock + 1, volatile=True) + 1)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@triton.jit
def ring(buf, T, P: tl.constexpr, B: tl.constexpr):
    """Program p adds p to its left neighbour's last value, T times; a value is there when it is not -1."""
    p = tl.program_id(0)
    left = (p + P - 1) % P
    i = tl.arange(0, B)
    for t in range(T):
        at = buf + (t * P + left) * B + i
        v = tl.load(at, volatile=True)
        while tl.min(v, 0) < 0:
            v = tl.load(at, volatile=True)
        tl.store(buf + ((t + 1) * P + p) * B + i, v + p)


@triton.jit
def careless_ring(buf, T, P: tl.constexpr, B: tl.constexpr):
    """The ring, waiting on the last number of a row with a volatile load and then reading the row with a plain one."""
    p = tl.program_id(0)
    left = (p + P - 1) % P
    i = tl.arange(0, B)
    for t in range(T):
        at = buf + (t * P + left) * B
        while tl.load(at + B - 1, volatile=True) < 0:
            pass
        v = tl.load(at + i)
        tl.store(buf + ((t + 1) * P + p) * B + i, v + p)


@triton.jit
def beyond(x, o, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(o + i + n, tl.load(x + i))


@triton.jit
def asserting(x, o, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.device_assert(v < 5, "too large")
    tl.store(o + i, v)


@triton.jit(do_not_specialize=["t"], do_not_specialize_on_alignment=["n"])
def next_row(prev, new, t, n, scale, bias, BLOCK: tl.constexpr):
    """One step of a recurrence: new = prev * scale + t (+ bias), for the first n numbers."""
    i = tl.arange(0, BLOCK)
    m = i < n
    v = tl.load(prev + i, mask=m) * scale + t
    if bias is not None:
        v += tl.load(bias + i, mask=m)
    tl.store(new + i, v, mask=m)


@triton.jit
def arrival(counter, order):
    """Program p stores in order[p] how many programs came before."""
    tl.store(order + tl.program_id(0), tl.atomic_add(counter, 1))


@triton.jit
def optional(o, first=3, second=None, BLOCK: tl.constexpr = 32):
    """Arguments with defaults."""
    tl.store(o + tl.arange(0, BLOCK), tl.arange(0, BLOCK) + first)
