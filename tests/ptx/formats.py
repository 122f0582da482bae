"""Number formats: numpy arrays to and from f16, bf16, tf32, fp8, and roundings that numpy does not have."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

_TINY = np.float32(2.0**-126)


def ftz(x: np.ndarray) -> np.ndarray:
    """Subnormal f32 become zeros of the same sign."""
    small = np.abs(x) < _TINY
    if np.count_nonzero(small):
        return np.where(small, np.copysign(np.float32(0), x), x)
    return x


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """uint16 -> float32"""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x: np.ndarray, mode: str = "rn") -> np.ndarray:
    """float32 -> uint16; NaN becomes 0x7fff as on the device."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    if mode == "rn":
        r = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    elif mode == "rz":
        r = u >> np.uint32(16)
    else:
        raise NotImplementedError(f"rounding {mode} to bf16")
    r = r.astype(np.uint16)
    nan = np.isnan(x)
    if np.count_nonzero(nan):
        r[nan] = 0x7FFF
    return r


def f32_to_f16(x: np.ndarray, mode: str = "rn") -> np.ndarray:
    """float32 or float64 -> uint16; NaN becomes 0x7fff as on the device."""
    h = x.astype(np.float16)
    if mode == "rz":
        over = np.abs(h.astype(np.float64)) > np.abs(x)
        h = np.where(over, np.nextafter(h, np.float16(0)), h)
    elif mode != "rn":
        raise NotImplementedError(f"rounding {mode} to f16")
    r = h.view(np.uint16)
    nan = np.isnan(x)
    if np.count_nonzero(nan):
        r = r.copy()
        r[nan] = 0x7FFF
    return r


def f32_to_tf32(x: np.ndarray, mode: str) -> np.ndarray:
    """float32 -> float32 with 10 bits of fraction: rna (ties away), rn (ties to even), rz."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    if mode == "rna":
        r = u + np.uint32(0x1000)
    elif mode == "rn":
        r = u + np.uint32(0xFFF) + ((u >> np.uint32(13)) & np.uint32(1))
    elif mode == "rz":
        r = u
    else:
        raise NotImplementedError(f"rounding {mode} to tf32")
    r = np.where(np.isfinite(x), r & np.uint32(0xFFFFE000), u)
    return r.view(np.float32)


def _e4m3_table() -> np.ndarray:
    t = np.zeros(256, np.float32)
    for i in range(256):
        e, m = (i >> 3) & 15, i & 7
        v = (m / 8) * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
        t[i] = -v if i & 128 else v
    t[0x7F] = t[0xFF] = np.nan
    return t


E4M3 = _e4m3_table()
E5M2 = (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


def f32_to_fp8(x: np.ndarray, kind: str) -> np.ndarray:
    """float32 -> uint8, round to nearest even, satfinite."""
    table = (E4M3 if kind == "e4m3" else E5M2)[:128]
    finite = np.flatnonzero(np.isfinite(table))
    values = table[finite].astype(np.float64)
    a = np.abs(x.astype(np.float64))
    hi = np.clip(np.searchsorted(values, a), 0, len(values) - 1)
    lo = np.maximum(hi - 1, 0)
    up = values[hi] - a
    down = a - values[lo]
    pick = np.where((up < down) | ((up == down) & (hi % 2 == 0)), hi, lo)
    pick = np.where(a >= values[-1], len(values) - 1, pick)
    r = (pick | (np.signbit(x) * 128)).astype(np.uint8)
    r[np.isnan(x)] = 0x7F
    return r


def round_f32(x: np.ndarray, mode: str) -> np.ndarray:
    """float64 -> float32 in a rounding mode (rn, rz, rm, rp)."""
    y = x.astype(np.float32)
    if mode == "rn":
        return y
    back = y.astype(np.float64)
    if mode == "rz":
        return np.where(np.abs(back) > np.abs(x), np.nextafter(y, np.float32(0)), y)
    if mode == "rm":
        return np.where(back > x, np.nextafter(y, np.float32(-np.inf)), y)
    if mode == "rp":
        return np.where(back < x, np.nextafter(y, np.float32(np.inf)), y)
    raise NotImplementedError(f"rounding {mode}")


def to_integral(x: np.ndarray, mode: str) -> np.ndarray:
    """Round to an integral value: rni, rzi, rmi, rpi."""
    return {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode](x)


def saturating_int(x: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Integral floats -> integers; NaN becomes 0, the rest saturates."""
    info = np.iinfo(dtype)
    y = np.where(np.isnan(x), 0.0, x.astype(np.float64))
    inside = np.clip(y, float(info.min), float(info.max))
    r = np.where(inside >= 2.0**63, 0, inside)
    out = r.astype(np.int64).astype(dtype) if info.max < 2**63 else inside.astype(dtype)
    out = np.where(y >= float(info.max), info.max, out)
    return np.where(y <= float(info.min), info.min, out).astype(dtype)
