"""Single PTX instructions on random and awkward operands, against Python integers and torch's conversions."""

from __future__ import annotations

import math
import random
from itertools import zip_longest

import pytest
import torch

from . import PtxError, run_ptx

LANES = 128
M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_PTX = """\
.version 8.7
.target sm_90a
.address_size 64
.visible .entry unit(
	.param .u64 unit_a,
	.param .u64 unit_b,
	.param .u64 unit_c,
	.param .u64 unit_o
)
.reqntid 128
{
	.reg .pred %p<8>;
	.reg .b16 %rs<16>;
	.reg .b32 %r<16>;
	.reg .b64 %rd<32>;
	mov.u32 %r0, %tid.x;
	mul.wide.u32 %rd0, %r0, 8;
	ld.param.b64 %rd1, [unit_a];
	ld.param.b64 %rd2, [unit_b];
	ld.param.b64 %rd3, [unit_c];
	ld.param.b64 %rd4, [unit_o];
	add.s64 %rd1, %rd1, %rd0;
	add.s64 %rd2, %rd2, %rd0;
	add.s64 %rd3, %rd3, %rd0;
	add.s64 %rd4, %rd4, %rd0;
	ld.global.b64 %rd11, [%rd1];
	ld.global.b64 %rd12, [%rd2];
	ld.global.b64 %rd13, [%rd3];
	mov.b64 %rd10, 0;
	cvt.u32.u64 %r1, %rd11;
	cvt.u32.u64 %r2, %rd12;
	cvt.u32.u64 %r3, %rd13;
	cvt.u16.u32 %rs1, %r1;
	cvt.u16.u32 %rs2, %r2;
	cvt.u16.u32 %rs3, %r3;
	@@
	st.global.b64 [%rd4], %rd10;
	ret;
}
"""
_R32 = " cvt.u64.u32 %rd10, %r4;"
_R16 = " cvt.u64.u16 %rd10, %rs4;"
_PAIRS = "mov.b64 %rd11, {%r1, %r2}; mov.b64 %rd12, {%r2, %r3}; mov.b64 %rd13, {%r3, %r1}; "
_PRED = " selp.b64 %rd10, 1, 0, %p1;"


def s32(v):
    return (v & M32) - (1 << 32) * ((v & M32) >> 31)


def s64(v):
    return (v & M64) - (1 << 64) * ((v & M64) >> 63)


def _quotient(x, y):
    q = abs(x) // abs(y)
    return q if (x < 0) == (y < 0) else -q


def _shf(left, wrap):
    def f(a, b, c):
        n = c & 31 if wrap else min(c, 32)
        pair = b << 32 | a
        return (pair << n >> 32 if left else pair >> n) & M32

    return f


def _bfe(signed):
    def f(a, b, c):
        pos, n = b & 255, c & 255
        if n == 0:
            return 0
        top = min(pos + n - 1, 31)
        sign = (a >> top) & 1 if signed else 0
        r = 0
        for i in range(32):
            bit = (a >> (pos + i)) & 1 if i < n and pos + i < 32 else sign
            r |= bit << i
        return r

    return f


def _bfi(a, b, c, pos):
    r = b
    for i in range(c & 255):
        if pos + i < 32:
            r = r & ~(1 << (pos + i)) | ((a >> i) & 1) << (pos + i)
    return r & M32


def _prmt(a, b, c):
    source = (b << 32 | a).to_bytes(8, "little")
    out = []
    for i in range(4):
        s = c >> 4 * i & 15
        v = source[s & 7]
        out.append((255 if v & 128 else 0) if s & 8 else v)
    return int.from_bytes(bytes(out), "little")


def _lop3(table):
    def f(a, b, c):
        return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))

    return f


def _f(bits):
    return torch.tensor([s32(bits)], dtype=torch.int32).view(torch.float32).item()


def _to_int(fn, lo, hi):
    def f(a, b, c):
        x = _f(a)
        if math.isnan(x):
            return 0
        r = lo if x == -math.inf else hi if x == math.inf else max(lo, min(hi, fn(x)))
        return r & M32

    return f


def _half(dtype):
    def f(x):
        if math.isnan(x):
            return 0x7FFF
        return torch.tensor([x], dtype=torch.float32).to(dtype).view(torch.int16).item() & 0xFFFF

    return f


_f16, _bf16 = _half(torch.float16), _half(torch.bfloat16)


def _nan(a, b):
    return math.isnan(_f(a)) or math.isnan(_f(b))


def _pair(fn):
    """Of two floats, (a, b) with (b, c), and as an addend (c, a); None where one is a NaN, whose bits are free."""

    def f(a, b, c):
        a, b, c = (torch.tensor(_f(x), dtype=torch.float64) for x in (a, b, c))
        found = torch.stack([fn(a, b, c), fn(b, c, a)]).float()
        low, high = (x & M32 for x in found.view(torch.int32).tolist())
        return None if found.isnan().any() else high << 32 | low

    return f


def _low(fn, *shifts):
    """Of floats whose upper 16 bits are the lower ones of an operand, as bfloat16 has them; None for a NaN."""

    def f(*operands):
        a, b, c = ((x << shift) & M32 for x, shift in zip_longest(operands, shifts, fillvalue=0))
        found = fn(*(torch.tensor(_f(x), dtype=torch.float64) for x in (a, b, c))).float()
        return None if found.isnan() else found.view(torch.int32).item() & M32

    return f


# text of the instruction, reference of (a, b, c) as unsigned numbers; 32 bits of each unless the text uses %rd
INTEGER = [
    ("add.s32 %r4, %r1, %r2;", lambda a, b, c: a + b),
    ("sub.s32 %r4, %r1, %r2;", lambda a, b, c: a - b),
    ("mul.lo.s32 %r4, %r1, %r2;", lambda a, b, c: a * b),
    ("mul.hi.s32 %r4, %r1, %r2;", lambda a, b, c: s32(a) * s32(b) >> 32),
    ("mul.hi.u32 %r4, %r1, %r2;", lambda a, b, c: a * b >> 32),
    ("mad.lo.s32 %r4, %r1, %r2, %r3;", lambda a, b, c: a * b + c),
    ("mad.hi.u32 %r4, %r1, %r2, %r3;", lambda a, b, c: (a * b >> 32) + c),
    ("div.s32 %r4, %r1, %r2;", lambda a, b, c: _quotient(s32(a), s32(b)) if b else M32),
    ("div.u32 %r4, %r1, %r2;", lambda a, b, c: a // b if b else M32),
    ("rem.s32 %r4, %r1, %r2;", lambda a, b, c: s32(a) - s32(b) * _quotient(s32(a), s32(b)) if b else a),
    ("rem.u32 %r4, %r1, %r2;", lambda a, b, c: a % b if b else a),
    ("min.s32 %r4, %r1, %r2;", lambda a, b, c: min(s32(a), s32(b))),
    ("max.u32 %r4, %r1, %r2;", lambda a, b, c: max(a, b)),
    ("max.u16x2 %r4, %r1, %r2;", lambda a, b, c: max(a >> 16, b >> 16) << 16 | max(a & 0xFFFF, b & 0xFFFF)),
    (
        "min.s16x2 %r4, %r1, %r2;",
        lambda a, b, c: (
            min(a >> 16 ^ 0x8000, b >> 16 ^ 0x8000) << 16 ^ 0x80000000
            | min(a & 0xFFFF ^ 0x8000, b & 0xFFFF ^ 0x8000) ^ 0x8000
        ),
    ),
    ("abs.s32 %r4, %r1;", lambda a, b, c: abs(s32(a))),
    ("neg.s32 %r4, %r1;", lambda a, b, c: -a),
    ("not.b32 %r4, %r1;", lambda a, b, c: ~a),
    ("xor.b32 %r4, %r1, %r2;", lambda a, b, c: a ^ b),
    ("and.b32 %r5, %r2, 63; shl.b32 %r4, %r1, %r5;", lambda a, b, c: a << (b & 63)),
    ("and.b32 %r5, %r2, 63; shr.u32 %r4, %r1, %r5;", lambda a, b, c: a >> (b & 63)),
    ("and.b32 %r5, %r2, 63; shr.s32 %r4, %r1, %r5;", lambda a, b, c: s32(a) >> (b & 63)),
    ("shr.s32 %r4, %r1, 40;", lambda a, b, c: s32(a) >> 40),
    ("shl.b32 %r4, %r1, 33;", lambda a, b, c: 0),
    ("shf.l.wrap.b32 %r4, %r1, %r2, %r3;", _shf(True, True)),
    ("shf.r.wrap.b32 %r4, %r1, %r2, %r3;", _shf(False, True)),
    ("shf.l.clamp.b32 %r4, %r1, %r2, %r3;", _shf(True, False)),
    ("shf.r.clamp.b32 %r4, %r1, %r2, %r3;", _shf(False, False)),
    (
        "and.b32 %r2, %r2, 63; and.b32 %r3, %r3, 63; bfe.u32 %r4, %r1, %r2, %r3;",
        lambda a, b, c: _bfe(False)(a, b & 63, c & 63),
    ),
    (
        "and.b32 %r2, %r2, 63; and.b32 %r3, %r3, 63; bfe.s32 %r4, %r1, %r2, %r3;",
        lambda a, b, c: _bfe(True)(a, b & 63, c & 63),
    ),
    ("bfe.s32 %r4, %r1, 5, 9;", lambda a, b, c: _bfe(True)(a, 5, 9)),
    ("bfe.u32 %r4, %r1, 4, 14;", lambda a, b, c: _bfe(False)(a, 4, 14)),
    ("and.b32 %r3, %r3, 31; bfi.b32 %r4, %r1, %r2, 7, %r3;", lambda a, b, c: _bfi(a, b, c & 31, 7)),
    ("clz.b32 %r4, %r1;", lambda a, b, c: 32 - a.bit_length()),
    ("popc.b32 %r4, %r1;", lambda a, b, c: a.bit_count()),
    ("brev.b32 %r4, %r1;", lambda a, b, c: int(f"{a:032b}"[::-1], 2)),
    ("bfind.u32 %r4, %r1;", lambda a, b, c: a.bit_length() - 1),
    ("bfind.s32 %r4, %r1;", lambda a, b, c: (~s32(a) if s32(a) < 0 else a).bit_length() - 1),
    ("bfind.shiftamt.u32 %r4, %r1;", lambda a, b, c: 32 - a.bit_length() if a else -1),
    ("prmt.b32 %r4, %r1, %r2, %r3;", _prmt),
    ("prmt.b32 %r4, %r1, %r2, 0x5410U;", lambda a, b, c: _prmt(a, b, 0x5410)),
    ("prmt.b32 %r4, %r1, %r2, 0x7632U;", lambda a, b, c: _prmt(a, b, 0x7632)),
    ("prmt.b32 %r4, %r1, %r2, 0xa9c3U;", lambda a, b, c: _prmt(a, b, 0xA9C3)),
    ("lop3.b32 %r4, %r1, %r2, %r3, 0xe8;", _lop3(0xE8)),
    ("lop3.b32 %r4, %r1, %r2, %r3, 0x96;", _lop3(0x96)),
    ("slct.b32.s32 %r4, %r1, %r2, %r3;", lambda a, b, c: a if s32(c) >= 0 else b),
    (
        "setp.lt.s32 %p2, %r2, %r3; setp.gt.and.u32 %p1, %r1, %r2, %p2; selp.b32 %r4, %r1, %r3, %p1;",
        lambda a, b, c: a if a > b and s32(b) < s32(c) else c,
    ),
    (
        "setp.lt.s32 %p2, %r2, %r3; setp.ne.xor.b32 %p1|%p3, %r1, %r2, !%p2; selp.b32 %r4, 1, 0, %p1;"
        " @%p3 add.s32 %r4, %r4, 2;",
        lambda a, b, c: int((a != b) ^ (not s32(b) < s32(c))) + 2 * int((a == b) ^ (not s32(b) < s32(c))),
    ),
    ("add.cc.u32 %r4, %r1, %r2; addc.u32 %r4, %r3, 0;", lambda a, b, c: c + (a + b >> 32)),
    ("mad.lo.cc.u32 %r5, %r1, %r2, %r3; madc.hi.u32 %r4, %r1, %r2, 0;", lambda a, b, c: a * b + c >> 32),
    ("cvt.s32.s8 %r4, %r1;", lambda a, b, c: (a & 255) - 256 * (a >> 7 & 1)),
    ("cvt.u32.u16 %r4, %rs1;", lambda a, b, c: a & 0xFFFF),
    ("cvt.sat.s16.s32 %rs4, %r1; cvt.s32.s16 %r4, %rs4;", lambda a, b, c: max(-32768, min(32767, s32(a)))),
    ("mov.b32 {%rs5, %rs6}, %r1; mov.b32 %r4, {%rs6, %rs5};", lambda a, b, c: a >> 16 | (a & 0xFFFF) << 16),
    ("mul.wide.u32 %rd10, %r1, %r2;", lambda a, b, c: a * b),
    ("mul.wide.s32 %rd10, %r1, %r2;", lambda a, b, c: s32(a) * s32(b)),
    ("mad.wide.s32 %rd10, %r1, %r2, %rd13;", lambda a, b, c: s32(a) * s32(b) + c),
    ("mul.lo.s64 %rd10, %rd11, %rd12;", lambda a, b, c: a * b),
    ("mul.hi.u64 %rd10, %rd11, %rd12;", lambda a, b, c: a * b >> 64),
    ("mul.hi.s64 %rd10, %rd11, %rd12;", lambda a, b, c: s64(a) * s64(b) >> 64),
    ("and.b32 %r5, %r2, 127; shl.b64 %rd10, %rd11, %r5;", lambda a, b, c: a << (b & 127)),
    ("and.b32 %r5, %r2, 127; shr.s64 %rd10, %rd11, %r5;", lambda a, b, c: s64(a) >> (b & 127)),
    ("min.s64 %rd10, %rd11, %rd12;", lambda a, b, c: min(s64(a), s64(b))),
    ("clz.b64 %r4, %rd11;" + _R32, lambda a, b, c: 64 - a.bit_length()),
    ("cvt.s64.s32 %rd10, %r1;", lambda a, b, c: s32(a)),
]
FLOAT = [
    ("cvt.rni.s32.f32 %r4, %r1;", _to_int(round, -(2**31), 2**31 - 1)),
    ("cvt.rzi.s32.f32 %r4, %r1;", _to_int(math.trunc, -(2**31), 2**31 - 1)),
    ("cvt.rmi.s32.f32 %r4, %r1;", _to_int(math.floor, -(2**31), 2**31 - 1)),
    ("cvt.rpi.u32.f32 %r4, %r1;", _to_int(math.ceil, 0, 2**32 - 1)),
    ("cvt.rn.bf16.f32 %rs4, %r1;" + _R16, lambda a, b, c: _bf16(_f(a))),
    ("cvt.rn.f16.f32 %rs4, %r1;" + _R16, lambda a, b, c: _f16(_f(a))),
    ("cvt.rn.bf16x2.f32 %r4, %r1, %r2;", lambda a, b, c: _bf16(_f(a)) << 16 | _bf16(_f(b))),
    ("cvt.rn.f16x2.f32 %r4, %r1, %r2;", lambda a, b, c: _f16(_f(a)) << 16 | _f16(_f(b))),
    (_PAIRS + "add.rn.f32x2 %rd10, %rd11, %rd12;", _pair(lambda a, b, c: a + b)),
    (_PAIRS + "sub.f32x2 %rd10, %rd11, %rd12;", _pair(lambda a, b, c: a - b)),
    (_PAIRS + "mul.f32x2 %rd10, %rd11, %rd12;", _pair(lambda a, b, c: a * b)),
    (_PAIRS + "fma.rn.f32x2 %rd10, %rd11, %rd12, %rd13;", _pair(lambda a, b, c: a * b + c)),
    ("add.rn.f32.bf16 %r4, %rs1, %r2;", _low(lambda a, b, c: a + b, 16)),
    ("sub.rn.f32.bf16 %r4, %rs1, %r2;", _low(lambda a, b, c: a - b, 16)),
    ("fma.rn.f32.bf16 %r4, %rs1, %rs2, %r3;", _low(lambda a, b, c: a * b + c, 16, 16)),
    ("abs.f32 %r4, %r1;", lambda a, b, c: a & 0x7FFFFFFF),
    ("neg.f32 %r4, %r1;", lambda a, b, c: a ^ 0x80000000),
    ("setp.ltu.f32 %p1, %r1, %r2;" + _PRED, lambda a, b, c: _nan(a, b) or _f(a) < _f(b)),
    ("setp.lt.f32 %p1, %r1, %r2;" + _PRED, lambda a, b, c: _f(a) < _f(b)),
    ("setp.ne.f32 %p1, %r1, %r2;" + _PRED, lambda a, b, c: not _nan(a, b) and _f(a) != _f(b)),
    ("setp.neu.f32 %p1, %r1, %r2;" + _PRED, lambda a, b, c: _f(a) != _f(b)),
    ("setp.geu.f32 %p1, %r1, %r2;" + _PRED, lambda a, b, c: _nan(a, b) or _f(a) >= _f(b)),
    ("setp.nan.f32 %p1, %r1, %r2;" + _PRED, lambda a, b, c: _nan(a, b)),
    ("setp.num.f32 %p1, %r1, %r2;" + _PRED, lambda a, b, c: not _nan(a, b)),
    (
        "setp.gt.ftz.f32 %p1, %r1, %r2;" + _PRED,
        lambda a, b, c: _f(a) > _f(b) if abs(_f(a)) > 1e-37 and abs(_f(b)) > 1e-37 else None,
    ),
    (
        "cvt.rna.tf32.f32 %r4, %r1;",
        lambda a, b, c: (a + 0x1000) & 0xFFFFE000 if (a & 0x7F800000) < 0x7F000000 else None,
    ),
]


def _awkward(rng, bits, floats):
    if floats:
        special = [
            0,
            0x80000000,
            0x3F800000,
            0xBF800000,
            0x7F800000,
            0xFF800000,
            0x7FC00000,
            1,
            0x3FC00000,
            0x40200000,
            0x4F000000,
            0xCF000001,
            0x477FE000,
            0x477FF000,
            0x33800000,
            0x33000001,
            0x3F808000,
            0x3F818000,
        ]
        if rng.random() < 0.4:
            return rng.choice(special)
        return (
            rng.getrandbits(32)
            if rng.random() < 0.3
            else torch.tensor([rng.gauss(0, 10)]).view(torch.int32).item() & M32
        )
    special = [0, 1, (1 << bits) - 1, 1 << bits - 1, (1 << bits - 1) - 1, 31, 32, 33, 0x0000FFFF, 0xFF00FF00]
    return (
        rng.choice(special)
        if rng.random() < 0.4
        else rng.getrandbits(bits) >> rng.choice([0, 0, 0, bits // 2, bits - 6])
    )


def _run(text, columns):
    tensors = [torch.tensor([s64(v) for v in col], dtype=torch.int64) for col in columns]
    out = torch.zeros(LANES, dtype=torch.int64)
    run_ptx(_PTX.replace("@@", text), {"a": tensors[0], "b": tensors[1], "c": tensors[2], "o": out}, (1,), 4)
    return [v & M64 for v in out.tolist()]


@pytest.mark.parametrize(
    ("text", "reference", "floats"),
    [pytest.param(*case, floats, id=case[0]) for cases, floats in ((INTEGER, False), (FLOAT, True)) for case in cases],
)
def test_instruction(text, reference, floats):
    rng = random.Random(text)
    operands = [name for name in ("%rd11", "%rd12", "%rd13") if name in text]
    bits = 64 if operands and "wide" not in text else 32
    columns = [[_awkward(rng, bits, floats) for _ in range(LANES)] for _ in range(3)]
    result64 = "%rd10" in text
    got = _run(text if result64 else text + _R32, columns)
    mask = M64 if result64 else M32
    for i, abc in enumerate(zip(*columns, strict=True)):
        want = reference(*abc)
        if want is not None:
            assert got[i] == int(want) & mask, [hex(v) for v in abc]


@pytest.mark.parametrize(("bits", "register"), [(64, "%rd2"), (32, "%r1")])
def test_a_parameter_whose_address_is_selected(bits, register):
    choose = (
        "and.b32 %r5, %r0, 1; setp.eq.b32 %p1, %r5, 0; mov.BITS REGISTER0, unit_a; mov.BITS REGISTER1, unit_b; "
        "selp.BITS REGISTER2, REGISTER0, REGISTER1, %p1; ld.param.b64 %rd29, [REGISTER2@]; "
        "add.s64 %rd29, %rd29, %rd0; ld.global.b64 %rd10, [%rd29];"
    )
    choose = choose.replace("BITS", f"b{bits}").replace("REGISTER", register)
    columns = [[10 * lane + which for lane in range(LANES)] for which in range(3)]
    assert _run(choose.replace("@", ""), columns) == [10 * lane + lane % 2 for lane in range(LANES)]
    with pytest.raises(PtxError, match="an address that is no parameter's"):
        _run(choose.replace("@", "+8"), columns)
