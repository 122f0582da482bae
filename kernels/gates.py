"""A step's gate mathematics and its derivative, for the three variants: the only home of a formula.

Every function takes and returns float32 values, never pointers, so each schedule owns only its loads, products, loop
and stores. Gates are ordered r, z, n. Symbols, as in trigru/reference.py:

    gr, gz, gn   the input's share of each pre-activation, W_i. x + b_i. (plus b_h., except b_hn of variant "torch")
    ar, az       the recurrent share of the pre-activations of r and z, W_h. h
    an           "torch": W_hn h + b_hn        "cho", "chung": W_hn (r * h)
    d_x          derivative of the loss by x; dr, dz, dn: by the pre-activations of r, z, n

VARIANT is "torch", "cho" or "chung"; "cho" and "chung" differ only in which side of the blend the update gate keeps.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """Logistic function; saturates to 0 and 1 without overflow, NaN stays NaN.

    Its error is that of rounding x: |x| / 2 units in the last place where x is far below 0."""
    return 1.0 / (1.0 + tl.exp2(-1.442695041 * x))


@triton.jit
def tanh(x):
    """tanh within 2 units in the last place; saturates to -1 and 1, NaN stays NaN.

    Far from 0 it is 1 - 2 / (1 + exp(2 |x|)) with the sign of x. Near 0 that would cancel: there x + x^3 P(x^2), with
    the P of least relative error. This for all dtypes: tanh.approx has 11 bits, too few for float16, whose kernels keep
    the state in float32 as well; and only NVIDIA has it, while the interpreter has not even libdevice's tanh."""
    size, square = tl.abs(x), x * x
    p = -0.00476948824 * square + 0.0196649116
    p = p * square - 0.0533902571
    p = p * square + 0.133265212
    p = p * square - 0.333330691
    near = x * (p * square) + x
    sign = tl.where(x < 0, -1.0, 1.0)
    far = sign * (-2.0 / (1.0 + tl.exp2(2.885390082 * size))) + sign
    return tl.where(size < 0.75, near, far)


@triton.jit
def dsigmoid_from_output(y):
    """Derivative of the logistic function where it took the value y."""
    return y * (1.0 - y)


@triton.jit
def dtanh_from_output(y):
    """Derivative of tanh where it took the value y."""
    return 1.0 - y * y


@triton.jit
def candidate(gn, an, r, VARIANT: tl.constexpr):
    """The candidate state n. For "cho" and "chung" the reset gate is already inside `an`."""
    if VARIANT == "torch":
        return tanh(gn + r * an)
    else:
        return tanh(gn + an)


@triton.jit
def blend(h, z, n, VARIANT: tl.constexpr):
    """The new state from the old state and the candidate.

    As two products: n + z (h - n) would lose a small h behind a large n where z is 1, and an infinite h of "chung"."""
    if VARIANT == "chung":
        return (1.0 - z) * h + z * n
    else:
        return (n - z * n) + z * h


@triton.jit
def blend_grad(dh, h, z, n, VARIANT: tl.constexpr):
    """From dh, the derivative by the new state: (dn, dz, direct), where `direct` is the old state's share through
    the blend alone."""
    if VARIANT == "chung":
        dn = dh * z
        dz = dh * (n - h)
        direct = dh * (1.0 - z)
    else:
        dn = dh * (1.0 - z)
        dz = dh * (h - n)
        direct = dh * z
    return dn * dtanh_from_output(n), dz * dsigmoid_from_output(z), direct


@triton.jit
def reset_after_grad(dn, an, r):
    """Variant "torch", where the reset gate scales the product W_hn h + b_hn = an: (dr, d_an)."""
    return dn * an * dsigmoid_from_output(r), dn * r


@triton.jit
def reset_before_grad(d_rh, h, r):
    """Variants "cho" and "chung", where the reset gate scales the state before its product: (dr, the old state's share
    through r * h), from d_rh = W_hn^T dn."""
    return d_rh * h * dsigmoid_from_output(r), d_rh * r


@triton.jit
def begin_of_step(before, reset, fresh, decay):
    """The state that a step begins from, see PerStep in recurrence.py; what is None is absent. `reset` selects, so that
    nothing of `before`, not even NaN, passes it."""
    begin = before
    if reset is not None:
        begin = tl.where(reset, 0.0 if fresh is None else fresh, begin)
    if decay is not None:
        begin = decay * begin
    return begin


@triton.jit
def begin_grad(d_begin, reset, decay):
    """The derivative by `before` of begin_of_step."""
    d_before = d_begin
    if decay is not None:
        d_before = decay * d_before
    if reset is not None:
        d_before = tl.where(reset, 0.0, d_before)
    return d_before


@triton.jit
def _partly(begin, new, amount):
    """begin + amount * (new - begin), exact where amount is 1."""
    return tl.where(amount == 1.0, new, (1.0 - amount) * begin + amount * new)


@triton.jit
def end_of_step(begin, new, amount, clip):
    """The state that a step ends with, from the one it began from and the equations' own new one."""
    end = new
    if amount is not None:
        end = _partly(begin, new, amount)
    if clip is not None:
        end = tl.where(end > clip, clip, tl.where(end < -clip, -clip, end))  # NaN stays NaN
    if amount is not None:
        end = tl.where(amount == 0.0, begin, end)
    return end


@triton.jit
def end_grad(dh, begin, new, amount, clip):
    """From dh, the derivative by the state that a step ends with: (d_new, direct), where `direct` is the share of
    `begin` past the equations."""
    d_new, direct = dh, tl.zeros_like(dh)
    if clip is not None:
        end = new
        if amount is not None:
            end = _partly(begin, new, amount)
        d_new = tl.where((end > clip) | (end < -clip), 0.0, dh)
    if amount is not None:
        direct = tl.where(amount == 0.0, dh, (1.0 - amount) * d_new)
        d_new = amount * d_new
    return d_new, direct
