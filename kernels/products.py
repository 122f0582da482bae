"""Matrix products of tiles."""

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32. PRECISION: how float32 operands are multiplied, "tf32" or "ieee"."""
    if _INTERPRETED:  # Triton 3.6's interpreter multiplies the bit patterns of bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)
