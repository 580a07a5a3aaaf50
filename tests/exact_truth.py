"""Attention in mpmath and convolution in fractions, one number at a time: what `refattn.exact` is compared with."""

from __future__ import annotations

import itertools
from fractions import Fraction

import mpmath
import numpy as np

DIGITS = 700
"""Decimal: gradients of a row in which one weight takes nearly all are differences of numbers that agree in hundreds of digits."""


def numbers(x):
    """Float64 as numbers of mpmath, in nested lists."""
    return [numbers(row) for row in x] if np.ndim(x) else mpmath.mpf(float(x))


def attention(query, key, value, d_output, d_lse, *, bias, mask, cap, sink):
    """Outputs, lse and gradients of one head, as lists; every row must see a key."""
    with mpmath.workdps(DIGITS):
        q, k, v, dy, dl, b, s = map(numbers, (query, key, value, d_output, d_lse, bias, sink))
        scale = 1 / mpmath.sqrt(query.shape[-1])
        zero = mpmath.mpf(0)
        outputs, lses, d_bias, d_sink = [], [], [[zero] * len(key) for _ in query], zero
        d_q, d_k, d_v = ([[zero] * x.shape[1] for _ in x] for x in (query, key, value))
        for i in range(len(query)):
            seen = [j for j in range(len(key)) if mask[i, j]]
            raw = {j: scale * mpmath.fdot(q[i], k[j]) for j in seen}
            capped = {j: mpmath.mpf(cap) * mpmath.tanh(raw[j] / cap) for j in seen}
            logits = {j: capped[j] + b[i][j] for j in seen}
            total = mpmath.exp(s) + mpmath.fsum(mpmath.exp(x) for x in logits.values())
            p = {j: mpmath.exp(logits[j]) / total for j in seen}
            lses.append(mpmath.log(total))
            outputs.append([mpmath.fsum(p[j] * v[j][c] for j in seen) for c in range(value.shape[1])])
            d_p = {j: mpmath.fdot(dy[i], v[j]) for j in seen}
            row = mpmath.fsum(p[j] * d_p[j] for j in seen)
            d_sink += mpmath.exp(s) / total * (dl[i] - row)
            for j in seen:
                d_logit = p[j] * (d_p[j] - row + dl[i])
                d_bias[i][j] += d_logit
                d_raw = d_logit * mpmath.sech(raw[j] / cap) ** 2 * scale
                for c in range(query.shape[1]):
                    d_q[i][c] += d_raw * k[j][c]
                    d_k[j][c] += d_raw * q[i][c]
                for c in range(value.shape[1]):
                    d_v[j][c] += p[j] * dy[i][c]
        return {"output": outputs, "lse": lses, "query": d_q, "key": d_k, "value": d_v, "bias": d_bias, "sinks": [d_sink]}


def fractions(x):
    """Float64 as fractions, in an array of objects."""
    made = np.empty(x.shape, object)
    for at in np.ndindex(x.shape):
        made[at] = Fraction(float(x[at]))
    return made


def convolution(x, weight, bias, d_output, *, stride, padding, dilation, groups):
    """Output and gradients of `conv2d`, as arrays of fractions."""
    x, weight, bias, dy = map(fractions, (x, weight, bias, d_output))
    y, (d_x, d_weight, d_bias) = np.full(dy.shape, Fraction(0)), (np.full(a.shape, Fraction(0)) for a in (x, weight, bias))
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    for b, o, row, column in np.ndindex(y.shape):
        y[b, o, row, column] += bias[o]
        d_bias[o] += dy[b, o, row, column]
        for c, i, j in itertools.product(*map(range, weight.shape[1:])):
            at = (b, o // outputs * inputs + c, row * stride + i * dilation - padding, column * stride + j * dilation - padding)
            if 0 <= at[2] < x.shape[2] and 0 <= at[3] < x.shape[3]:
                y[b, o, row, column] += weight[o, c, i, j] * x[at]
                d_x[at] += weight[o, c, i, j] * dy[b, o, row, column]
                d_weight[o, c, i, j] += x[at] * dy[b, o, row, column]
    return {"output": y, "x": d_x, "weight": d_weight, "bias": d_bias}


def worst_ulps(got, true):
    """The largest distance in units in the last place of the true number; what is below 2**-969 counts in units of 2**-1022."""
    worst = 0.0
    with mpmath.workdps(DIGITS):
        for g, t in zip(np.ravel(got), np.ravel(np.array(true, dtype=object)), strict=True):
            exact = mpmath.mpf(t.numerator) / t.denominator if isinstance(t, Fraction) else t
            exponent = mpmath.frexp(exact)[1] if exact else -5000
            unit = mpmath.mpf(2) ** (max(exponent, -969 + 1) - 53)
            worst = max(worst, float(abs(mpmath.mpf(float(g)) - exact) / unit))
    return worst
